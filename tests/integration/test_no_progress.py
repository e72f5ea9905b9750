"""A loss beside what one constant answer gives, from the training to the stored run and back."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import check_training, evaluate, read_run

pytestmark = pytest.mark.judges


class _Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


@pytest.mark.parametrize("shuffled", [True, False])
def test_labels_that_belong_to_no_input_are_found_and_the_stored_run_says_so_again(tmp_path, shuffled):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 6, generator=draw)
    labels = x[:, :4].argmax(1)
    y = labels[torch.randperm(len(labels), generator=draw)] if shuffled else labels
    report = check_training(_Module(), DataLoader(TensorDataset(x, y), batch_size=64), max_steps=208, folder=tmp_path)
    assert [(each.code, each.consequence_of) for each in report.findings if each.severity > 0] == (
        [("GW601", "")] if shuffled else []
    )
    run = read_run(report.path)
    assert [each.constant_answer for each in run.records[:5]] == [
        pytest.approx(each.constant_answer, nan_ok=True) for each in report.records[:5]
    ]
    assert evaluate(run) == report.findings == run.findings
