"""δ = dL/dz through one activation, against torch.autograd.grad."""

import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradwatch.measure.probe import Probe

FUNCTIONS = [
    F.relu, F.relu6, F.leaky_relu, nn.PReLU(), nn.RReLU(), nn.RReLU().eval(), F.elu, F.celu, F.selu, F.gelu, nn.GELU("tanh"),
    F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.hardshrink, F.softshrink, torch.sigmoid, F.logsigmoid,
    torch.tanh, F.softsign, F.tanhshrink, F.softplus, lambda z: F.threshold(z, 0.1, 2.0), F.glu, lambda z: F.softmax(z, -1),
    lambda z: F.log_softmax(z, -1), lambda z: z.relu(), lambda z: F.leaky_relu(z, 0.0), nn.PReLU(8),
]  # fmt: skip
IN_PLACE = [
    F.relu_, nn.ReLU6(inplace=True), F.leaky_relu_, nn.RReLU(inplace=True), F.elu_, F.celu_, F.selu_, nn.SiLU(inplace=True),
    nn.Mish(inplace=True), nn.Hardswish(inplace=True), nn.Hardsigmoid(inplace=True), F.hardtanh_, torch.sigmoid_, torch.tanh_,
    lambda z: F.threshold_(z, 0.1, 2.0), torch.Tensor.relu_,
]  # fmt: skip


class Net(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


def probe_of(model):
    return Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))


def signals(probe):
    return dict(zip([site.name for site in probe.info.sites], probe.record.metrics["signal_norm"], strict=True))


@pytest.mark.parametrize("function", FUNCTIONS + IN_PLACE)
def test_delta_is_autograds_for_every_function(function):
    torch.manual_seed(0)
    kept = []

    def forward(m, x):
        kept.append(m.a(x) * 3)
        a = function(kept[0].clone())  # what is made of z alone, so that an in-place function may overwrite it
        return a * torch.arange(1, a.shape[-1] + 1)

    model = Net(forward)
    with probe_of(model) as probe:
        loss = model(torch.randn(20, 4)).square().sum()
        (expected,) = torch.autograd.grad(loss, kept[0], retain_graph=True)
        loss.backward()
    (delta,) = signals(probe).values()
    assert delta == pytest.approx(expected.norm().item(), rel=1e-6)
    assert delta > 0


def test_a_tensor_used_elsewhere_too_has_the_signal_of_this_activation_only():
    kept = []

    def forward(m, x):
        z = m.a(x)
        a = F.relu(z)
        kept[:] = [z, a]
        return m.c(m.b(a) + 5 * z)

    model = Net(forward)
    with probe_of(model) as probe:
        loss = model(torch.randn(9, 4)).sum()
        z, a = kept
        (upstream,) = torch.autograd.grad(loss, a, retain_graph=True)
        (total,) = torch.autograd.grad(loss, z, retain_graph=True)
        loss.backward()
    local = (upstream * (z > 0)).norm().item()
    assert signals(probe)[":relu"] == pytest.approx(local, rel=1e-6)
    assert total.norm().item() != pytest.approx(local, rel=0.1)


def test_two_activations_of_one_tensor_have_each_its_own_signal():
    kept = []

    def forward(m, x):
        z = m.a(x)
        kept[:] = [z, torch.tanh(z), torch.sigmoid(z)]
        return m.c(kept[1] - 3 * m.b(kept[2]))

    model = Net(forward)
    with probe_of(model) as probe:
        loss = model(torch.randn(9, 4)).square().sum()
        up = torch.autograd.grad(loss, kept[1:], retain_graph=True)
        loss.backward()
    tanh, sigmoid = kept[1].detach(), kept[2].detach()
    assert signals(probe) == {
        ":tanh": pytest.approx((up[0] * (1 - tanh**2)).norm().item(), rel=1e-5),
        ":sigmoid": pytest.approx((up[1] * sigmoid * (1 - sigmoid)).norm().item(), rel=1e-5),
    }


def test_an_output_changed_in_place_afterwards_keeps_its_signal():
    kept = []

    def forward(m, x):
        kept[:] = [m.a(x)]
        a = F.gelu(kept[0])
        a += 1.0
        a *= 2.0
        return m.c(a)

    with probe_of(Net(forward)) as probe:
        loss = probe._model(torch.randn(9, 4)).square().sum()
        (expected,) = torch.autograd.grad(loss, kept, retain_graph=True)
        loss.backward()
    assert signals(probe)[":gelu"] == pytest.approx(expected.norm().item(), rel=1e-6)


def test_a_residual_block_all_in_place_has_the_signals_of_the_plain_one():
    def in_place(m, x):
        x = m.act(m.a(x))
        out = m.b(x)
        out += x
        return m.c(m.act(out))

    def plain(m, x):
        x = F.relu(m.a(x))
        return m.c(F.relu(m.b(x) + x))

    x, found = torch.randn(9, 4), []
    for way, modules in ((in_place, {"act": nn.ReLU(inplace=True)}), (plain, {})):
        torch.manual_seed(1)
        with probe_of(Net(way, **modules)) as probe:
            probe._model(x).square().sum().backward()
        found.append(list(signals(probe).values()))
    assert found[0] == found[1]
    assert all(delta > 0 for delta in found[0])


def test_an_unrolled_loop_and_micro_batches_add_up_as_norms_do():
    calls = []

    def forward(m, x):
        h = torch.zeros(len(x), 8)
        for _ in range(4):
            calls.append(m.a(x) + m.b(h))
            h = torch.tanh(calls[-1])
        return m.c(h)

    model = Net(forward)
    squares = 0.0
    with probe_of(model) as probe:
        for _ in range(3):
            calls.clear()
            loss = model(torch.randn(5, 4)).square().sum() / 3
            gradients = torch.autograd.grad(loss, calls, retain_graph=True)
            squares += sum(gradient.square().sum().item() for gradient in gradients)
            loss.backward()
    assert signals(probe) == {":tanh": pytest.approx(math.sqrt(squares), rel=1e-6)}


def test_a_gradient_penalty_is_not_the_steps_own_backward():
    def forward(m, x):
        m.z = m.a(x)
        return m.c(F.softplus(m.z))

    model = Net(forward)
    x = torch.randn(9, 4, requires_grad=True)
    with probe_of(model) as probe:
        output = model(x)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        loss = output.square().sum() + 10 * slope.square().sum()
        loss.backward()
    # The part of the penalty that reaches z through the derivative of softplus goes past the call's own node.
    assert math.isnan(signals(probe)[":softplus"])
    with probe_of(model) as probe:
        output = model(x)
        (slope,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
        (output.square().sum() + 10 * slope.square().sum()).backward()
    (expected,) = torch.autograd.grad(model(x).square().sum(), model.z)
    assert signals(probe)[":softplus"] == pytest.approx(expected.norm().item(), rel=1e-5)


def test_a_second_backward_through_the_same_graph_gives_no_signal():
    model = Net(lambda m, x: m.c(F.relu(m.a(x))))
    with probe_of(model) as probe:
        loss = model(torch.randn(9, 4)).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert math.isnan(signals(probe)[":relu"])


def test_two_losses_with_a_backward_each_give_no_signal_where_they_share_an_activation():
    def forward(m, x):
        shared = torch.tanh(m.a(x))
        return m.c(F.relu(shared)), m.c(m.b(shared))

    model = Net(forward)
    with probe_of(model) as probe:
        one, two = model(torch.randn(9, 4))
        one.sum().backward(retain_graph=True)
        two.sum().backward()
    found = signals(probe)
    assert math.isnan(found[":tanh"])
    assert found[":relu"] > 0


@pytest.mark.parametrize("view", [lambda z: z[:, :4], lambda z: z.view(-1), lambda z: z.T, lambda z: z[2]])
def test_in_place_on_a_view_gives_the_right_signal_where_it_is_the_whole_tensor(view):
    def forward(m, x):
        z = m.a(x) * 1.0
        part = view(z)
        m.before = part.detach().clone()
        torch.relu_(part)
        m.z = z
        return m.c(z)

    model = Net(forward)
    with probe_of(model) as probe:
        loss = model(torch.randn(9, 4)).square().sum()
        (total,) = torch.autograd.grad(loss, model.z, retain_graph=True)
        loss.backward()
    expected = (view(total) * (model.before > 0)).norm().item()
    delta = signals(probe)[":relu"]
    whole = model.before.numel() == model.z.numel()
    assert delta == pytest.approx(expected, rel=1e-6) if whole else math.isnan(delta)


def test_a_site_that_the_loss_does_not_reach_has_no_signal():
    def forward(m, x):
        m.side = torch.tanh(m.b(F.relu(m.a(x))))
        return m.c(F.gelu(m.a(x)))

    model = Net(forward)
    with probe_of(model) as probe:
        model(torch.randn(9, 4)).sum().backward()
    found = signals(probe)
    assert found[":gelu"] > 0
    assert math.isnan(found[":relu"])
    assert math.isnan(found[":tanh"])


def test_an_activation_of_the_input_itself_has_its_signal():
    x = torch.randn(9, 4, requires_grad=True)
    model = Net(lambda m, x: m.c(m.a(torch.tanh(x))))
    with probe_of(model) as probe:
        loss = model(x).sum()
        loss.backward()
    assert signals(probe)[":tanh"] == pytest.approx(x.grad.norm().item(), rel=1e-6)


def test_signals_of_a_denormal_size_are_not_zero():
    model = Net(lambda m, x: m.c(torch.tanh(m.a(x))))
    with probe_of(model) as probe:
        (model(torch.randn(9, 4)) * 1e-42).sum().backward()
    assert 0 < signals(probe)[":tanh"] < 1e-40


def test_nothing_of_the_graph_outlives_the_pass():
    alive = []

    def forward(m, x):
        z = m.a(x)
        a = torch.tanh(z)
        swish = z * torch.sigmoid(z)
        alive[:] = [weakref.ref(tensor) for tensor in (z, a, swish)]
        return m.c(a + swish)

    model = Net(forward)
    gc.collect()
    gc.disable()
    try:
        with probe_of(model) as probe:
            loss = model(torch.randn(9, 4)).sum()
            loss.backward()
            del loss
            assert [ref() for ref in alive] == [None] * 3
        assert [ref() for ref in alive] == [None] * 3
    finally:
        gc.enable()
    assert probe.record is not None


@pytest.mark.parametrize("retain", [False, True])
def test_the_hooks_are_gone_after_the_step(retain):
    model = Net(lambda m, x: m.c(torch.tanh(m.a(x))))
    with probe_of(model) as probe:
        loss = model(torch.randn(9, 4)).sum()
        loss.backward(retain_graph=True)
    before = probe.record.metrics["signal_norm"].copy()
    loss.backward(retain_graph=retain)
    assert (probe.record.metrics["signal_norm"] == before).all()
    node = loss.grad_fn
    seen = []
    while node is not None:
        seen.append(node)
        node = node.next_functions[0][0] if node.next_functions else None
    assert len(seen) > 1
