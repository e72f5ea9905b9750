"""What a remedy's actions do to the training: each is compared with the same done by hand."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.plugins import AsyncCheckpointIO, MixedPrecision
from torch import nn

from lightning_gradwatch.record.finding import Action
from lightning_gradwatch.testing.check_training import _without_precision
from lightning_gradwatch.testing.trials import Prepared, WarmUp


class Module(nn.Module):
    automatic_optimization = True

    def __init__(self, optimizer):
        super().__init__()
        self.trainer = type("Trainer", (), {"optimizers": [optimizer], "lr_scheduler_configs": []})


def weights():
    return [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]


def test_weight_decay_is_scaled_in_each_group_that_has_one():
    first, second = weights()
    groups = [{"params": [first], "weight_decay": 0.5}, {"params": [second], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    prepared = Prepared(Module(optimizer), [Action("scale_weight_decay", (), (("factor", 0.01),))])
    prepared.start()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.005), 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    assert [action.kind for action in prepared.applied] == ["scale_weight_decay"]


@pytest.mark.parametrize("by", ["norm", "value"])
def test_a_limit_of_the_trainer_is_raised(by):
    prepared = Prepared(nn.Linear(1, 1), [Action("raise_clip", (), ((by, 40.0),))])
    assert prepared.trainer_options == {"gradient_clip_val": 40.0, "gradient_clip_algorithm": by}


def test_one_in_the_code_is_left_to_its_author():
    prepared = Prepared(nn.Linear(1, 1), [Action("raise_clip", (), (("norm", 40.0), ("where", "code")))])
    assert not prepared.trainer_options
    assert [why for _, why in prepared.refused] == ["it is clipped in the code"]


def test_a_warm_up_scales_each_step_and_leaves_the_rate_and_its_schedule_as_they_were():
    """Four steps of SGD with a gradient of 1 at 1/4, 2/4, 3/4 and all of a rate that a schedule halves, and one more."""
    (parameter, _) = weights()
    optimizer = torch.optim.SGD([parameter], lr=0.8)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    prepared = Prepared(Module(optimizer), [Action("warm_up", (), (("steps", 4),))])
    prepared.start()
    moved, rates = [], []
    for _ in range(5):
        before = parameter.detach().clone()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved.append(float((before - parameter.detach()).mean()))
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    assert moved == pytest.approx([0.8 / 4, 0.4 * 2 / 4, 0.2 * 3 / 4, 0.1, 0.05])
    assert rates == pytest.approx([0.8, 0.4, 0.2, 0.1, 0.05])


def test_it_ends_while_others_listen_to_the_optimizer_too():
    """Torch goes through the hooks of a step while it calls them: none may go."""
    (parameter, _) = weights()
    optimizer = torch.optim.SGD([parameter], lr=0.8)
    WarmUp(optimizer, 2)
    heard = []
    optimizer.register_step_post_hook(lambda *_: heard.append(optimizer.param_groups[0]["lr"]))
    moved = []
    for _ in range(4):
        parameter.grad = torch.ones_like(parameter)
        before = parameter.detach().clone()
        optimizer.step()
        moved.append(float((before - parameter.detach()).mean()))
    assert moved == pytest.approx([0.4, 0.8, 0.8, 0.8])
    assert heard == [0.8] * 4


def test_a_precision_that_is_tried_takes_the_place_of_the_users_plugin():
    """A Trainer takes either; with both it raises."""
    kept, given = AsyncCheckpointIO(), MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))
    assert _without_precision(given) == []
    assert _without_precision([given, kept, "ddp"]) == [kept, "ddp"]
