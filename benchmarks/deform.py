"""Trains a small transformer with each of DEForm's mutations, and says which failed by outcome and which GradWatch reported.

DEForm is the fault injection of ``defaultplusplus`` (Apache-2.0), a package that nothing here depends on: install it and
``transformers`` beside this package, then run ``python benchmarks/deform.py [OPERATOR …] [--seeds 0,1]``. Mutations of decoders alone
(the cache, causal masks) are left out: the net is an encoder. Of a mutation's parameters the last, most severe one is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import time
import warnings

import lightning.pytorch as pl
import torch
from defaultplusplus.deform import OPERATORS, get_injector
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from lightning_gradwatch import GradWatch, Severity

_CLASSES, _LENGTH, _WORDS = 4, 12, 24
_FAILED = 0.1
"""Accuracy by which a mutant must be below the net as it is to have failed."""


class Classifier(pl.LightningModule):
    """Which of four words is in the sentence."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=_WORDS,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=_LENGTH,
            num_labels=_CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
        self.net = BertForSequenceClassification(config)
        self.rate = rate

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        words, mask, labels = batch
        return self.net(input_ids=words, attention_mask=mask, labels=labels).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([each for each in self.parameters() if each.requires_grad], lr=self.rate)


def sentences(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return words, mask and labels; sentences end at different places."""
    source = torch.Generator().manual_seed(seed)
    words = torch.randint(_CLASSES + 2, _WORDS, (count, _LENGTH), generator=source)
    lengths = torch.randint(_LENGTH // 2, _LENGTH + 1, (count, 1), generator=source)
    labels = torch.randint(_CLASSES, (count,), generator=source)
    places = 1 + (torch.rand(count, 1, generator=source) * (lengths - 1)).long()
    words.scatter_(1, places, labels[:, None] + 2)
    words[:, 0] = 1
    mask = (torch.arange(_LENGTH) < lengths).long()
    return words * mask, mask, labels


def train(operator: str | None, value: object, seed: int, *, steps: int, rate: float) -> tuple[float, list[str], str]:
    """Return accuracy, what was reported at warning or above (roots), and why it ended early, if it did."""
    torch.manual_seed(seed)
    module = Classifier(rate)
    data = TensorDataset(*sentences(2048, seed))
    loader = DataLoader(data, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(seed))
    injector = None if operator is None else get_injector(operator, param_value=value)(module.net)
    watch, ended = GradWatch(), ""
    with tempfile.TemporaryDirectory() as root, injector or contextlib.nullcontext():
        trainer = pl.Trainer(
            callbacks=[watch],
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=root,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                trainer.fit(module, loader)
            except Exception as error:  # noqa: BLE001 - a mutant that can't run is told as that
                ended = f"{type(error).__name__}: {error}".splitlines()[0][:60]
        words, mask, labels = sentences(1024, seed + 1000)
        module.eval()
        with torch.no_grad():
            try:
                found = module.net(input_ids=words, attention_mask=mask).logits.argmax(1)
                accuracy = float((found == labels).float().mean())
            except Exception as error:  # noqa: BLE001 - as above
                accuracy, ended = 0.0, ended or type(error).__name__
    roots = [
        finding.code
        for finding in watch.findings
        if finding.severity >= Severity.WARNING and not finding.consequence_of and finding.healed_step is None
    ]
    return accuracy, sorted(set(roots)), ended


def main() -> None:
    """Print the table, a line a mutation, and what it comes to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operators", nargs="*")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rate", type=float, default=2e-3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    seeds = [int(each) for each in given.seeds.split(",")]
    clean = {}
    print("| mutation | component | value | accuracy | failed | reported |\n|---|---|---|---|---|---|", flush=True)
    for seed in seeds:
        accuracy, roots, ended = train(None, None, seed, steps=given.steps, rate=given.rate)
        clean[seed] = accuracy
        print(f"| none, seed {seed} | | | {accuracy:.2f} | {ended or 'no'} | {', '.join(roots) or '-'} |", flush=True)
    tally: dict[tuple[bool, bool], int] = {}
    begun = time.perf_counter()
    for name, operator in OPERATORS.items():
        if operator.scope == "decoder" or (given.operators and name not in given.operators):
            continue
        value = operator.param_grid[-1] if operator.param_grid else None
        for seed in seeds:
            accuracy, roots, ended = train(name, value, seed, steps=given.steps, rate=given.rate)
            failed = bool(ended) or accuracy < clean[seed] - _FAILED
            tally[failed, bool(roots)] = tally.get((failed, bool(roots)), 0) + 1
            told = ended or ("yes" if failed else "no")
            print(
                f"| {name} {operator.root_cause} | {operator.component.value} | {'' if value is None else value} | {accuracy:.2f} | "
                f"{told} | {', '.join(roots) or '-'} |",
                flush=True,
            )
    failed = tally.get((True, True), 0), tally.get((True, False), 0)
    sound = tally.get((False, True), 0), tally.get((False, False), 0)
    print(
        f"\nOf {sum(failed)} that failed, {failed[0]} were reported; of {sum(sound)} that learned all the same, {sound[0]}."
    )
    print(f"{time.perf_counter() - begun:.0f} s, {given.steps} steps each, torch {torch.__version__}")


if __name__ == "__main__":
    main()
