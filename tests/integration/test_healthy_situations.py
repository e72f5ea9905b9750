"""No rule fires falsely in any situation: trained on until each window is full and each rule has judged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from integration.situation import fit, ours
from integration.table import SITUATIONS

from lightning_gradwatch import GradWatch, Severity

pytestmark = [pytest.mark.slow, pytest.mark.judges]

STEPS = 140
"""A window of 1,024 observations takes 128 batches of 8."""
ILL = {
    "unused": "a layer gets a gradient and no optimizer holds it, while the loss stands",
    "vanishing": "as it is meant to be",
    "lbfgs-line-search": "learns two dozen samples by heart: half of its Tanh units really saturate",
}
SHORT = {"fast-dev-run", "an-epoch-cut-short", "saves-and-stops"}
"""Their length is what they are about."""
TWICE = {"gan", "sparse-with-its-own-optimizer"}
"""Their Trainer counts each optimizer's step."""
ROWS = [name for name, row in SITUATIONS.items() if not row.compiles and name not in {*ILL, *SHORT}]


@pytest.mark.parametrize("name", ROWS)
def test_a_healthy_net_is_left_alone_for_long(name, tmp_path):
    row = SITUATIONS[name]
    kept = {key: value for key, value in row.settings.items() if key != "max_epochs"}
    longer = dataclasses.replace(
        row,
        settings={**kept, "max_steps": STEPS * (2 if name in TWICE else 1)},
        steps=None,
    )
    watch = GradWatch(**{"every_n_steps": 1, **row.watch})
    fitted = fit(longer, tmp_path / "fit", watch)
    assert ours(fitted.warned) == []
    assert [finding for finding in watch.findings if finding.severity >= Severity.WARNING] == []
    fills = watch.records[-1].window_fill
    assert np.nanmax(fills, initial=0) == 1 or row.sites == () or np.isnan(fills).all(), fills
    assert len(watch.records) >= 6
