"""What the user copies, saves or scripts in a measured step is his own, with nothing of ours, and computes with its own weights."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch.measure.probe import Probe


class Subclass(nn.TransformerEncoderLayer):
    def forward(self, src, **settings):
        return super().forward(src, **settings) * 1.0


ENCODERS = {
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
    "layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "the user's own": lambda: Subclass(8, 2, 16, batch_first=True),
}


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


def with_own_state(module):
    twin = copy.copy(module)
    twin._modules, twin._parameters = copy.deepcopy(module._modules), copy.deepcopy(module._parameters)
    return twin


COPIES = {
    "deepcopy": copy.deepcopy,
    "save": saved,
    "copy": with_own_state,
    "script": torch.jit.script,
}


def train(make, copied, probed):
    torch.manual_seed(0)
    encoder = make().requires_grad_(False).eval()
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    model = nn.ModuleDict({"encoder": encoder, "net": net})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step():
        x, y = torch.randn(16, 8), torch.randint(0, 3, (16,))
        teacher = copied(encoder)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(0.5)
            h = teacher(x[:, None])[:, 0]
        F.cross_entropy(net(x + h), y).backward()
        optimizer.step()
        return teacher, h

    if probed:
        with Probe(model, optimizer):
            teacher, h = step()
    else:
        teacher, h = step()
    return teacher, h, encoder, net[0].weight.detach().clone()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_copy_made_in_a_measured_step_is_the_users(encoder, copied):
    if copied == "script" and encoder == "the user's own":
        pytest.skip("torch can't script this class, with or without us")
    classes = {kind: vars(kind)["forward"] for kind in (nn.TransformerEncoder, nn.TransformerEncoderLayer, Subclass)}
    _, h, _, weight = train(ENCODERS[encoder], COPIES[copied], probed=False)
    teacher, h_too, original, weight_too = train(ENCODERS[encoder], COPIES[copied], probed=True)
    assert torch.equal(h, h_too)
    assert torch.equal(weight, weight_too)
    assert "forward" not in vars(original)
    assert copied == "script" or "forward" not in vars(teacher)
    assert all(vars(kind)["forward"] is before for kind, before in classes.items())
