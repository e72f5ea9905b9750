"""A small character-level transformer on the language reference that ships with Python (`help()` shows it)."""

import argparse
from pydoc_data.topics import topics

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_gradwatch import GradWatch


class Characters(Dataset):
    """Windows of a text, and the same windows one character on."""

    def __init__(self, text: str, length: int) -> None:
        self.alphabet = sorted(set(text))
        index = {character: number for number, character in enumerate(self.alphabet)}
        self.codes = torch.tensor([index[character] for character in text])
        self.length = length

    def __len__(self) -> int:
        return (len(self.codes) - 1) // self.length

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = item * self.length
        window = self.codes[start : start + self.length + 1]
        return window[:-1], window[1:]


class Block(nn.Module):
    """Attention and a feed-forward net, each behind a LayerNorm and beside a skip connection (Pre-LN)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.mlp_norm(x))


class Transformer(pl.LightningModule):
    def __init__(self, *, characters: int, length: int, width: int = 64, heads: int = 4, blocks: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(characters, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(codes.shape[1], device=codes.device)
        return self.head(self.norm(self.blocks(self.tokens(codes) + self.positions(positions))))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        codes, following = batch
        loss = F.cross_entropy(self(codes).flatten(0, 1), following.flatten())
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train, and print what the monitor saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--logdir", default="lightning_logs")
    options = parser.parse_args()

    torch.manual_seed(0)
    text = "\n".join(topics[name] for name in sorted(topics))
    data = Characters(text, options.length)
    model = Transformer(characters=len(data.alphabet), length=options.length)
    watch = GradWatch()
    trainer = pl.Trainer(
        max_steps=options.max_steps,
        callbacks=[watch],
        logger=pl.loggers.TensorBoardLogger(options.logdir, name="char_transformer"),
        accelerator="cpu",
        log_every_n_steps=10,
        enable_checkpointing=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=16, shuffle=True, drop_last=True))

    first, last = watch.records[0], watch.records[-1]
    print("layer                      gradient norm  update ratio")
    for column, layer in enumerate(watch.info.layers):
        gradient, update = last.metrics["grad_norm"][column], last.metrics["update_ratio"][column]
        print(f"{layer.name:<26} {gradient:>13.3g} {update:>13.3g}")
    print(f"loss {first.loss:.2f} at step {first.step}, {last.loss:.2f} at step {last.step}")
    print("findings:", ", ".join(f"{finding.code} {finding.name}" for finding in watch.findings) or "none")


if __name__ == "__main__":
    main()
