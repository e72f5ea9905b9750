"""A mask from the batch, in a real Trainer: padded positions are no samples, and nothing else changes."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch
from integration.nets import seed, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_gradwatch import DeadUnits, GradWatch, GradWatchWarning, check_training
from lightning_gradwatch.measure import faults

LENGTH, WIDTH = 6, 8


class Padded(pl.LightningModule):
    """Tokens with padding, whose embedding is 0; a unit that only padding keeps alive."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, WIDTH, padding_idx=0)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)
        with torch.no_grad():
            self.embedding.weight[1:] = self.embedding.weight[1:].abs() + 0.5
            self.hidden.weight[0] = -1.0  # dead for every token, and alive where there is none
            self.hidden.bias[0] = 0.5
        self.seen = []

    def training_step(self, batch, batch_idx):
        tokens, mask = batch["tokens"], batch["mask"].bool()
        z = self.hidden(self.embedding(tokens))
        self.seen.append((z.detach().clone(), mask))
        return F.cross_entropy(self.head(F.relu(z))[mask], tokens[mask])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def tokens():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, LENGTH + 1, (64,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    words = torch.randint(1, 10, (64, LENGTH), generator=generator) * mask
    return DataLoader([{"tokens": row, "mask": own} for row, own in zip(words, mask, strict=True)], 16)


def fit(folder, *, accumulate=1, **settings):
    seed()
    module = Padded()
    watch = GradWatch(every_n_steps=1, rules=[DeadUnits(observations=64, batch_elements=16)], **settings)
    run = trainer(folder, watch, max_steps=8 // accumulate, accumulate_grad_batches=accumulate)
    run.fit(module, tokens())
    return watch, module


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_padding_is_no_sample(accumulate, tmp_path):
    masked, module = fit(tmp_path, accumulate=accumulate, mask=lambda batch: batch["mask"])
    plain, _ = fit(tmp_path, accumulate=accumulate)
    for place, record in enumerate(masked.records):
        passes = module.seen[place * accumulate : (place + 1) * accumulate]
        samples = torch.cat([z[mask] for z, mask in passes])
        assert record.metrics["inactive_share"][0] == pytest.approx(float((samples <= 0).double().mean()))
        everything = torch.cat([z.reshape(-1, WIDTH) for z, _ in passes])
        other = plain.records[place].metrics["inactive_share"][0]
        assert other == pytest.approx(float((everything <= 0).double().mean()))
        assert other != record.metrics["inactive_share"][0]
    samples = torch.cat([z[mask] for z, mask in module.seen])
    assert masked.records[-1].metrics["dead_fraction"][0] == (samples <= 0).all(0).double().mean() >= 1 / WIDTH
    assert plain.records[-1].metrics["dead_fraction"][0] == masked.records[-1].metrics["dead_fraction"][0] - 1 / WIDTH
    for one, other in zip(masked.records, plain.records, strict=True):
        assert one.metrics["grad_norm"].tolist() == other.metrics["grad_norm"].tolist()


def test_a_mask_that_fails_switches_the_activations_off_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "RAISE", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch, _ = fit(tmp_path, mask=lambda batch: batch["attention_mask"])
    (told,) = [str(entry.message) for entry in caught if issubclass(entry.category, GradWatchWarning)]
    assert "the function handed in as mask failed: KeyError: 'attention_mask'" in told
    assert len(watch.records) == 8
    assert watch.records[-1].metrics["grad_norm"].min() > 0


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="is Tensor, must be a function of the batch, or None"):
        GradWatch(mask=torch.ones(2, 2))


def test_a_check_takes_a_mask():
    """The dead unit is found where padding isn't taken for a sample."""
    seed()
    report = check_training(
        Padded(),
        tokens(),
        max_steps=8,
        rules=[DeadUnits(observations=64, batch_elements=16)],
        mask=lambda batch: batch["mask"],
    )
    dead = report.records[-1].metrics["dead_fraction"][0]
    seed()
    report = check_training(Padded(), tokens(), max_steps=8, rules=[DeadUnits(observations=64, batch_elements=16)])
    assert dead == report.records[-1].metrics["dead_fraction"][0] + 1 / WIDTH
