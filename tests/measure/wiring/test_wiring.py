"""What the first measured steps show of how things are put together: each mistake is seen, and what only looks like one isn't."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import Probe

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 4
BITS = (Y % 2).float()


def facts(net, loss_of, optimizer=None, *, steps=3):
    """Train for a few measured steps; return what is known of the wiring by kind."""
    optimizer = optimizer or torch.optim.SGD([each for each in net.parameters() if each.requires_grad], lr=0.01)
    probe = Probe(net, optimizer)
    for _ in range(steps):
        with probe:
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
    return {fact.kind: fact for fact in probe.info.wiring}


def with_head(body):
    """Return a net whose head alone an optimizer holds, a loss of it, and that optimizer."""
    torch.manual_seed(0)
    net = nn.Sequential(*body, nn.ReLU(), nn.LazyLinear(4))
    net(X)
    return net, lambda net: F.cross_entropy(net(X), Y), torch.optim.SGD(net[-1].parameters(), lr=0.1)


def drawn(layer):
    """Start the weights from a normal distribution, which has no bounds, and the biases at 0."""
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def trained(layer):
    """Train a layer for a few steps."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        (layer(X) - 1).square().mean().backward()
        optimizer.step()


def moved(layer):
    """Train a layer by hand."""
    with torch.no_grad():
        layer.weight += 1e-3


def mlp(*last, outputs=4):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs), *last)


class TestOutputAppliedTwice:
    @pytest.mark.parametrize(
        ("last", "loss_of"),
        [
            ((nn.Softmax(1),), lambda net: F.cross_entropy(net(X), Y)),
            ((nn.Softmax(1),), lambda net: nn.CrossEntropyLoss(label_smoothing=0.1)(net(X), Y)),
            ((nn.Softmax(1),), lambda net: F.nll_loss(F.log_softmax(net(X), 1), Y)),
            ((nn.Softmax(1),), lambda net: F.nll_loss(net(X).log_softmax(dim=-1), Y)),
            ((), lambda net: F.cross_entropy(net(X).softmax(-1), Y)),
            ((), lambda net: F.cross_entropy(torch.softmax(net(X), 1).view(8, 2, 4).flatten(0, 1), Y)),
            ((), lambda net: F.cross_entropy(net(X).sigmoid(), Y)),
            ((nn.Sigmoid(),), lambda net: F.binary_cross_entropy_with_logits(net(X)[:, 0], BITS)),
            ((nn.Sigmoid(),), lambda net: nn.BCEWithLogitsLoss()(net(X).squeeze(1)[:, 1], BITS)),
            ((nn.Sigmoid(),), lambda net: F.multilabel_soft_margin_loss(net(X), F.one_hot(Y, 4).float())),
        ],
    )
    def test_is_seen(self, last, loss_of):
        fact = facts(mlp(*last), loss_of)["output-twice"]
        assert len(fact.names) == 1
        assert fact.line.startswith(("<lambda>", "test_wiring.py"))

    @pytest.mark.parametrize(
        ("last", "loss_of"),
        [
            ((), lambda net: F.cross_entropy(net(X), Y)),
            ((nn.LogSoftmax(1),), lambda net: F.nll_loss(net(X), Y)),
            ((nn.LogSoftmax(1),), lambda net: F.cross_entropy(net(X), Y)),  # which changes nothing
            ((nn.Sigmoid(),), lambda net: F.binary_cross_entropy(net(X)[:, 0], BITS)),
            ((nn.Softmax(1),), lambda net: F.mse_loss(net(X), F.one_hot(Y, 4).float())),
            ((nn.Softmax(1), nn.Linear(4, 4)), lambda net: F.cross_entropy(net(X), Y)),
            ((nn.Softmax(1),), lambda net: F.cross_entropy(net(X) * 20, Y)),  # a temperature
            ((nn.Tanh(),), lambda net: F.cross_entropy(net(X), Y)),
            ((), lambda net: F.cross_entropy(net(X), net(X).detach().softmax(1))),  # of a teacher
            ((), lambda net: F.kl_div(F.log_softmax(net(X), 1), torch.full((16, 4), 0.25), reduction="batchmean")),
            ((), lambda net: (net(X).softmax(1) * net(X)).sum(1).square().mean()),  # a gate
            ((), lambda net: -(torch.log(net(X).softmax(1) + 1e-6)[:, 0]).mean()),
            ((), lambda net: -((net(X).softmax(1) + 1e-6).gather(1, Y[:, None]).log()).mean()),
            ((), lambda net: -((0.9 * net(X).softmax(1) + 0.1 / 4)[torch.arange(16), Y].log()).mean()),
        ],
    )
    def test_what_only_looks_like_it_is_quiet(self, last, loss_of):
        found = facts(mlp(*last), loss_of)
        assert not {"output-twice", "log-of-output"} & found.keys()

    @pytest.mark.parametrize(
        "loss_of",
        [
            lambda net: F.nll_loss(torch.log(net(X).softmax(1)), Y),
            lambda net: F.nll_loss(net(X).softmax(1).log(), Y),
            lambda net: -net(X)[:, 0].sigmoid().log().mean(),
            lambda net: -net(X).softmax(1).gather(1, Y[:, None]).log().mean(),
            lambda net: -torch.log(net(X).softmax(1)[torch.arange(16), Y]).mean(),
            lambda net: -net(X).softmax(1).index_select(0, torch.arange(3)).view(-1).log().mean(),
        ],
    )
    def test_the_logarithm_of_what_was_put_out(self, loss_of):
        assert facts(mlp(), loss_of)["log-of-output"].operation == "log"

    def test_the_line_that_calls_the_function_is_known_where_no_module_does(self):
        def loss_of(net):
            probabilities = net(X).softmax(1)
            return F.cross_entropy(probabilities, Y)

        begins = loss_of.__code__.co_firstlineno
        fact = facts(mlp(), loss_of)["output-twice"]
        assert fact.origin == f"loss_of (test_wiring.py:{begins + 1})"
        assert fact.line == f"loss_of (test_wiring.py:{begins + 2})"
        assert not facts(mlp(nn.Softmax(1)), lambda net: F.cross_entropy(net(X), Y))["output-twice"].origin

    def test_a_metric_without_gradient_is_quiet(self):
        def loss_of(net):
            out = net(X)
            with torch.no_grad():
                F.cross_entropy(out.softmax(1), Y)
            return F.cross_entropy(out, Y)

        assert facts(mlp(), loss_of) == {}


class Holder(nn.Module):
    def __init__(self, hold):
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.held = hold(nn.Linear(6, 6))

    def forward(self, x):
        held = self.held
        while not isinstance(held, nn.Module):
            held = next(iter(held.values())) if isinstance(held, dict) else held[0]
        return self.head(torch.relu(held(x)))


class Plain:
    """No nn.Module, by mistake."""

    def __init__(self, layer):
        self.layer = layer

    def __getitem__(self, place):
        return self.layer


class TestUntrainedParameters:
    @pytest.mark.parametrize(
        "hold",
        [lambda m: [m], lambda m: (m,), lambda m: {"x": m}, lambda m: [[m]], lambda m: {"x": [m]}, Plain],
        ids=["list", "tuple", "dict", "list of lists", "dict of lists", "an object"],
    )
    def test_layers_in_a_plain_attribute(self, hold):
        net = Holder(hold)
        fact = facts(net, lambda net: F.cross_entropy(net(X), Y))["unregistered"]
        assert fact.names == ("held",)
        assert fact.value == 42

    def test_a_tensor_that_asks_for_a_gradient_and_is_no_parameter(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(6, 4)
                self.scale = torch.ones(4, requires_grad=True)

            def forward(self, x):
                return self.net(x) * self.scale

        assert facts(Net(), lambda net: F.cross_entropy(net(X), Y))["unregistered"].names == ("scale",)

    def test_a_list_that_an_optimizer_holds_is_quiet(self):
        net = Holder(lambda m: [m])
        optimizer = torch.optim.SGD([*net.parameters(), *net.held[0].parameters()], lr=0.1)
        assert facts(net, lambda net: F.cross_entropy(net(X), Y), optimizer=optimizer) == {}

    def test_a_frozen_list_is_quiet(self):
        net = Holder(lambda m: [m.requires_grad_(False)])
        assert facts(net, lambda net: F.cross_entropy(net(X), Y)) == {}

    def test_inputs_that_ask_for_a_gradient_are_quiet(self):
        def penalty(net):
            x = X.clone().requires_grad_()
            out = net(x)
            (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            return F.cross_entropy(out, Y) + grad.square().sum()

        def adversarial(net):
            delta = torch.zeros_like(X, requires_grad=True)
            return F.cross_entropy(net(X + delta), Y)

        for loss_of in (penalty, adversarial):
            assert facts(mlp(), loss_of) == {}

    def test_another_net_of_the_program_is_quiet(self):
        critic = nn.Linear(4, 1)
        assert facts(mlp(), lambda net: critic(net(X)).mean()) == {}

    def test_a_layer_that_gets_a_gradient_and_no_optimizer(self):
        net = mlp()
        optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
        assert facts(net, lambda net: F.cross_entropy(net(X), Y), optimizer=optimizer)["unheld"].names == ("0",)

    @pytest.mark.parametrize(
        "body",
        [
            lambda: [nn.Linear(6, 32)],
            lambda: [nn.Linear(6, 32, bias=False)],
            lambda: [drawn(nn.Linear(6, 8))],
            lambda: [nn.Linear(6, 8), nn.BatchNorm1d(8)],
            lambda: [nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 32, 3), nn.Flatten()],
        ],
        ids=["default", "without biases", "normal", "norm", "convolution"],
    )
    def test_one_that_stays_as_it_was_initialised_is_told_apart(self, body):
        found = facts(*with_head(body()), steps=4)
        assert set(found["unheld-initial"].names) <= set(found["unheld"].names)

    @pytest.mark.parametrize("steps", [1, 3])
    def test_not_before_the_first_steps_are_over(self, steps):
        assert facts(*with_head([nn.Linear(6, 32)]), steps=steps).keys() == {"unheld"}

    @pytest.mark.parametrize(
        "change",
        [
            trained,  # as if loaded from elsewhere
            lambda body: body.eval(),
            lambda body: nn.init.normal_(body.weight),
            lambda body: body.register_forward_pre_hook(lambda *_: moved(body)),
            lambda body: body.requires_grad_(False),
        ],
        ids=["pretrained", "in evaluation mode", "of another start", "trained out of sight", "frozen"],
    )
    def test_what_only_looks_like_it_is_quiet(self, change):
        net, loss_of, optimizer = with_head([nn.Linear(6, 32)])
        change(net[0])
        found = facts(net, loss_of, optimizer, steps=4)
        assert "unheld-initial" not in found

    def test_a_layer_behind_those_that_are_trained_may_be_a_judge_of_what_they_make(self):
        net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
        optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
        found = facts(net, lambda net: F.cross_entropy(net(X), Y), steps=4, optimizer=optimizer)
        assert found.keys() == {"unheld"}

    def test_a_frozen_backbone_is_quiet(self):
        net = mlp()
        net[0].requires_grad_(False)
        assert facts(net, lambda net: F.cross_entropy(net(X), Y)) == {}


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised by a batch normalisation of one sample."""

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


class TestSingleValueNormalization:
    def test_standardised_weights_are_quiet(self):
        net = nn.Sequential(Standardised(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
        assert facts(net, lambda net: F.cross_entropy(net(torch.randn(16, 1, 6, 6)), Y)) == {}

    @pytest.mark.parametrize(
        ("norm", "kind"),
        [
            (nn.LayerNorm(1), "norm-of-one"),
            (nn.GroupNorm(1, 1), "norm-of-one"),
            (nn.RMSNorm(1), "norm-of-one"),
        ],
    )
    def test_over_one_value(self, norm, kind):
        net = nn.Sequential(nn.Linear(6, 1), norm, nn.Linear(1, 4))
        fact = facts(net, lambda net: F.cross_entropy(net(X), Y))[kind]
        assert fact.names == ("1",)

    @pytest.mark.parametrize(("size", "seen"), [(1, True), (2, False)])
    def test_a_batch_of_one(self, size, seen):
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
        image = torch.randn(size, 1, 6, 6)
        found = facts(net, lambda net: F.cross_entropy(net(image), Y[:size]))
        assert ("norm-of-sample" in found) is seen
        if seen:
            assert found["norm-of-sample"].value == 16

    @pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.GroupNorm(4, 8), nn.BatchNorm1d(8)])
    def test_over_several_is_quiet(self, norm):
        net = nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 4))
        assert facts(net, lambda net: F.cross_entropy(net(X), Y)) == {}

    def test_an_instance_norm_is_quiet(self):
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
        assert facts(net, lambda net: F.cross_entropy(net(torch.randn(1, 1, 6, 6)), Y[:1])) == {}


def block():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))


class Fine(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = block()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.backbone(x))


class TestEvaluationMode:
    @staticmethod
    def found(net):
        return facts(net, lambda net: F.cross_entropy(net(X), Y))

    def test_a_part(self):
        net = Fine()
        net.backbone.eval()
        probe_facts = self.found(net)
        assert probe_facts["evaluation-mode"].names == ("backbone",)

    def test_the_whole(self):
        assert self.found(Fine().eval())["evaluation-mode"].names == ("",)

    def test_dropout_called_as_a_function(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

            def forward(self, x):
                return self.b(F.dropout(self.a(x), 0.2, training=self.training))

        assert self.found(Net().eval())["evaluation-mode"].operation == "dropout"
        assert self.found(Net()) == {}

    def test_in_training_mode_it_is_quiet(self):
        assert self.found(Fine()) == {}

    def test_a_frozen_part_is_quiet(self):
        net = Fine()
        net.backbone.eval().requires_grad_(False)
        assert self.found(net) == {}

    def test_normalisations_put_there_one_by_one_are_quiet(self):
        net = Fine()
        for each in net.modules():
            if isinstance(each, nn.BatchNorm1d):
                each.eval()
        assert self.found(net) == {}

    def test_a_frozen_part_with_something_added_is_quiet(self):
        """As LoRA is: next to nothing of it is trained."""
        net = Fine()
        net.backbone.eval().requires_grad_(False)
        net.backbone[0].bias.requires_grad_(True)
        assert self.found(net) == {}

    def test_a_dropout_of_nothing_is_quiet(self):
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 4)).eval()
        assert self.found(net) == {}


def test_a_healthy_net_has_none():
    assert facts(mlp(), lambda net: F.cross_entropy(net(X), Y)) == {}


class Adapted(nn.Linear):
    """A frozen weight with two factors beside it, whose bias learns."""

    def __init__(self, first, *, bias=True):
        super().__init__(6, 4)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(bias)
        self.down = nn.Parameter(torch.full((6, 2), float(first)))
        self.up = nn.Parameter(torch.zeros(2, 4))

    def forward(self, x):
        return super().forward(x) + (x @ self.down @ self.up) * 2.0


class TestZeroFactors:
    def test_are_seen_where_the_layer_gets_a_gradient_otherwise(self):
        found = facts(nn.Sequential(Adapted(0)), lambda net: F.cross_entropy(net(X), Y))
        assert found["zero-factors"].names == ("0.down",)
        assert found["zero-factors-kept"].names == ("0.up",)
        assert found["zero-factors"].operation == "matmul"

    @pytest.mark.parametrize("net", [Adapted(0.1), Adapted(0, bias=False)], ids=["one is drawn", "all of it is zero"])
    def test_are_none(self, net):
        """Of a layer that gets no gradient at all, it is known where that is lost."""
        assert "zero-factors" not in facts(nn.Sequential(net), lambda net: F.cross_entropy(net(X), Y))
