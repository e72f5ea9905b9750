"""What a constant answer costs: the number beside the loss is that of a net whose outputs are all alike, or there is none."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch, Probe

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 4
BITS = (Y % 2).float()
TARGETS = 5 + 3 * torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(16) % 3 > 0).float()


def mlp(outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


def answers(loss_of, *, steps=1, net=None):
    """Train for a few measured steps; return what a constant answer would have cost in each."""
    net = net or mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    probe, found = Probe(net, optimizer), []
    for _ in range(steps):
        with probe:
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
        found.append(probe.record.constant_answer)
    return found


def cost(loss_of):
    """Return it of one step; None where it isn't known."""
    (answer,) = answers(loss_of)
    return answer[0] if answer else None


class _Constant(nn.Module):
    """Puts out one number everywhere, so that a loss is what it costs: the reference."""

    def __init__(self, value=0.0, outputs=4):
        super().__init__()
        self.value, self.outputs = value, outputs

    def forward(self, x):
        return torch.full((len(x), self.outputs), self.value, dtype=torch.float64)


def reference(loss_of, value=0.0):
    return float(loss_of(_Constant(value)))


ONE_HOT = F.one_hot(Y, 4).double()
SHARES = torch.softmax(torch.randn(16, 4, generator=torch.Generator().manual_seed(2)).double(), 1)
IGNORED = torch.where(torch.arange(16) % 5 == 0, -100, Y)
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 4.0])


class TestClasses:
    def test_of_cross_entropy_it_is_the_logarithm_of_their_number(self):
        assert cost(lambda net: F.cross_entropy(net(X), Y)) == pytest.approx(math.log(4), rel=1e-12)

    @pytest.mark.parametrize(
        "loss_of",
        [
            lambda net: nn.CrossEntropyLoss()(net(X), Y),
            lambda net: F.cross_entropy(net(X), Y, reduction="sum"),
            lambda net: F.cross_entropy(net(X), Y, reduction="none").mean(),
            lambda net: F.cross_entropy(net(X), IGNORED),
            lambda net: F.cross_entropy(net(X), IGNORED, reduction="sum") / 7,
            lambda net: F.cross_entropy(net(X).reshape(4, 4, 4).transpose(1, 2), Y.view(4, 4)),
            lambda net: F.cross_entropy(net(X), SHARES.to(net(X).dtype)),
            lambda net: F.cross_entropy(net(X), 3 * SHARES.to(net(X).dtype), label_smoothing=0.2, reduction="sum"),
            lambda net: F.cross_entropy(net(X), SHARES.to(net(X).dtype), weight=WEIGHT.to(net(X).dtype)),
            lambda net: F.cross_entropy(net(X), Y, ignore_index=2, label_smoothing=0.1),
            lambda net: F.nll_loss(F.log_softmax(net(X), 1), Y),
            lambda net: F.nll_loss(net(X).log_softmax(-1).view(-1, 4), IGNORED, weight=WEIGHT.to(net(X).dtype)),
            lambda net: nn.NLLLoss(reduction="sum")(nn.LogSoftmax(1)(net(X)), Y) / 3,
            lambda net: -net(X).log_softmax(1)[torch.arange(16), Y].mean(),
            lambda net: -net(X).log_softmax(1).gather(1, Y[:, None]).sum(),
            lambda net: -(net(X).log_softmax(1) * ONE_HOT).sum(1).mean(),
            lambda net: F.kl_div(net(X).log_softmax(1), SHARES, reduction="batchmean"),
            lambda net: sum(F.cross_entropy(net(X)[i::2], Y[i::2]) for i in range(2)) * 0.25,
            lambda net: 0.3 * F.cross_entropy(net(X), Y) + 0.7 * F.cross_entropy(net(X), Y.flip(0)),  # mixup
            lambda net: torch.stack([F.cross_entropy(net(X), Y), F.cross_entropy(net(X), Y.flip(0))]).mean(),
            lambda net: (F.cross_entropy(net(X), Y, reduction="none") * MASK).sum() / MASK.sum(),
            lambda net: F.cross_entropy(net(X), Y, reduction="none")[MASK > 0].mean() - 0.25,
            lambda net: ((1 - (-(ce := F.cross_entropy(net(X), Y, reduction="none"))).exp()) ** 2 * ce).mean(),  # focal
        ],
    )
    def test_it_is_what_the_loss_gives_where_all_are_alike(self, loss_of):
        found = cost(loss_of)
        if torch.isnan(loss_of(_Constant())):
            assert found is None
        else:
            assert found == pytest.approx(reference(loss_of), rel=1e-6)

    @settings(max_examples=60, deadline=None)
    @given(
        shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
        classes=st.integers(2, 9),
        reduction=st.sampled_from(["mean", "sum", "none"]),
        smoothing=st.sampled_from([0.0, 0.1, 0.7]),
        weighted=st.booleans(),
        ignored=st.sampled_from([-100, 0, 1]),
        soft=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def test_in_every_shape_and_way_to_reduce(
        self, shape, classes, reduction, smoothing, weighted, ignored, soft, seed
    ):
        draw = torch.Generator().manual_seed(seed)
        sizes = [shape[0], classes, *shape[1:]]
        target = torch.randint(classes, shape, generator=draw)
        if soft:
            target = torch.rand(sizes, generator=draw)
        weight = torch.rand(classes, generator=draw) + 0.1 if weighted else None
        scale = nn.Linear(1, classes, bias=False)
        options = {"reduction": reduction, "label_smoothing": smoothing}
        if not soft:
            options["ignore_index"] = ignored

        def loss_of(net):
            scores = net(torch.ones(math.prod(shape), 1)).view(shape[0], -1, classes).transpose(1, 2).reshape(sizes)
            kind = scores.dtype
            given = {"weight": None if weight is None else weight.to(kind), **options}
            loss = F.cross_entropy(scores, target.to(kind) if soft else target, **given)
            return loss.mean() if reduction == "none" else loss

        (answer,) = answers(loss_of, net=scale)
        wanted = reference_of(loss_of, classes)
        alike = target.numel() > 1 and bool(target.min() == target.max())
        known = not alike and math.isfinite(wanted) and wanted > 0
        assert answer[:1] == ((pytest.approx(wanted, rel=1e-5),) if known else ())

    def test_that_the_outputs_are_too_large_is_told_beside_it(self):
        net = mlp()
        ((_, rms, mean, deviation),) = answers(lambda net: F.cross_entropy(net(X), Y), net=net)
        with torch.no_grad():
            outputs = mlp()(X).double().numpy()
        assert rms == pytest.approx(np.sqrt((outputs**2).mean()), rel=1e-6)
        assert math.isnan(mean)
        assert math.isnan(deviation)


def reference_of(loss_of, classes):
    return float(loss_of(_Constant(outputs=classes)))


class TestTwoSided:
    @pytest.mark.parametrize(
        "loss_of",
        [
            lambda net: F.binary_cross_entropy_with_logits(net(X)[:, 0], BITS),
            lambda net: nn.BCEWithLogitsLoss(reduction="sum")(net(X), ONE_HOT.to(net(X).dtype)) / 16,
            lambda net: F.binary_cross_entropy_with_logits(net(X)[:, 0], BITS, weight=MASK + 1),
            lambda net: F.binary_cross_entropy_with_logits(net(X)[:, 0], 0.8 * BITS + 0.1),
            lambda net: F.binary_cross_entropy_with_logits(net(X)[:, 0], BITS, pos_weight=torch.tensor(9.0)),
            lambda net: F.binary_cross_entropy_with_logits(net(X), ONE_HOT.to(net(X).dtype), pos_weight=WEIGHT),
            lambda net: F.binary_cross_entropy(net(X)[:, 0].sigmoid(), BITS.to(net(X).dtype)),
            lambda net: (nn.BCELoss(reduction="none")(net(X)[:, 0].sigmoid(), BITS.to(net(X).dtype)) * MASK).mean(),
        ],
    )
    def test_it_is_what_the_loss_gives_for_one_half(self, loss_of):
        assert cost(loss_of) == pytest.approx(reference(loss_of), rel=1e-6)

    def test_labels_that_are_all_alike_have_none(self):
        """As of a GAN: who always answers that costs nothing."""
        ones = torch.ones(16)
        assert cost(lambda net: F.binary_cross_entropy_with_logits(net(X)[:, 0], ones)) is None


class TestErrors:
    @pytest.mark.parametrize(
        "loss_of",
        [
            lambda net: F.mse_loss(net(X), TARGETS),
            lambda net: F.mse_loss(TARGETS, net(X), reduction="sum"),
            lambda net: nn.L1Loss()(net(X), TARGETS),
            lambda net: F.smooth_l1_loss(net(X), TARGETS, beta=2.0),
            lambda net: F.smooth_l1_loss(net(X), TARGETS, beta=0.0),
            lambda net: F.huber_loss(net(X), TARGETS, delta=0.5, reduction="sum"),
            lambda net: F.huber_loss(net(X), TARGETS, "mean", 2.0),
            lambda net: ((net(X) - TARGETS) ** 2).mean(),
            lambda net: (TARGETS - net(X)).pow(2).sum(1).mean(),
            lambda net: (TARGETS - net(X)).abs().mean(),
            lambda net: torch.sub(net(X), TARGETS).square().sum() / 16,
            lambda net: (d := net(X) - TARGETS).mul(d).mean(),
            lambda net: torch.sqrt(F.mse_loss(net(X), TARGETS)),
            lambda net: torch.linalg.vector_norm(net(X) - TARGETS),
            lambda net: (F.mse_loss(net(X), TARGETS, reduction="none") * MASK[:, None]).sum() / MASK.sum(),
            lambda net: torch.maximum(0.9 * (TARGETS - net(X)), -0.1 * (TARGETS - net(X))).mean(),  # a quantile
            lambda net: F.mse_loss(net(X), TARGETS) + 0.5 * F.l1_loss(net(X), TARGETS),
        ],
    )
    def test_it_is_what_the_loss_gives_for_the_mean_of_the_targets(self, loss_of):
        assert cost(loss_of) == pytest.approx(reference(loss_of, float(TARGETS.double().mean())), rel=1e-5)

    def test_of_squares_it_is_the_targets_variance_wherever_their_mean_is(self):
        far = TARGETS + 1e6
        ((loss, _, mean, deviation),) = answers(lambda net: F.mse_loss(net(X), far))
        assert loss == pytest.approx(far.double().numpy().var(), rel=1e-9)
        assert mean == pytest.approx(far.double().numpy().mean(), rel=1e-12)
        assert deviation == pytest.approx(far.double().numpy().std(), rel=1e-9)

    def test_targets_without_spread_have_none(self):
        assert cost(lambda net: F.mse_loss(net(X), torch.full((16, 4), 3.0))) is None


class TestAbsent:
    @pytest.mark.parametrize(
        "loss_of",
        [
            lambda net: F.cross_entropy(net(X), Y) + 1e-3 * sum(each.square().sum() for each in net.parameters()),
            lambda net: F.cross_entropy(net(X), Y) * net[0].bias.exp().sum(),
            lambda net: F.cross_entropy(net(X), net(X).detach().softmax(1)),  # of a teacher
            lambda net: F.cross_entropy(net(X), net(X).argmax(1)),  # of itself
            lambda net: F.mse_loss(net(X), TARGETS + 0.9 * net(X).detach().amax(1, keepdim=True)),  # a bootstrap
            lambda net: F.mse_loss(net(X), net(X.flip(0))),
            lambda net: (F.cross_entropy(net(X), Y, reduction="none") * net(X).detach().softmax(1)[:, 0]).mean(),
            lambda net: -(net(X).log_softmax(1)[torch.arange(16), Y] * (1 + X[:, 0])).mean(),  # of returns
            lambda net: F.nll_loss(net(X), Y),  # no log probabilities, as far as it shows
            lambda net: -net(X).mean(),
            lambda net: F.triplet_margin_loss(net(X), net(X.flip(0)), net(X.roll(3, 0))),
            lambda net: F.gaussian_nll_loss(net(X)[:, :2], TARGETS[:, :2], net(X)[:, 2:].exp()),
            lambda net: (
                F.binary_cross_entropy_with_logits(net(X), torch.ones_like(net(X)))
                + F.binary_cross_entropy_with_logits(net(X), torch.zeros_like(net(X)))
            ),
            lambda net: F.mse_loss(net(X), TARGETS) + 0.1 * net(X).square().mean(),  # an ELBO
            lambda net: F.cross_entropy(net(X), Y) * net(X).detach().softmax(1)[0, 0],
            lambda net: F.cross_entropy(net(X), Y) / net(X).detach().std(),
            lambda net: F.cross_entropy(net(X), Y, reduction="none").mean().mul_(net(X).mean()),
        ],
    )
    def test_where_something_else_that_is_trained_takes_part_there_is_none(self, loss_of):
        assert cost(loss_of) is None

    def test_a_loss_that_was_changed_in_place_behind_its_back_has_none(self):
        def loss_of(net):
            loss = F.cross_entropy(net(X), Y)
            loss.view(1).mul_(3)
            return loss

        assert cost(loss_of) is None

    def test_it_is_looked_for_in_the_first_measured_steps_alone(self):
        found = answers(lambda net: F.cross_entropy(net(X), Y), steps=6)
        assert [len(each) for each in found] == [4, 4, 4, 4, 0, 0]


ONES = st.sampled_from(
    [
        ("ce", lambda net: F.cross_entropy(net(X), Y, reduction="none")),
        ("logp", lambda net: -net(X).log_softmax(1)[torch.arange(16), Y]),
        ("bce", lambda net: F.binary_cross_entropy_with_logits(net(X)[:, 0], BITS, reduction="none")),
    ]
)
STEPS = st.sampled_from(
    [
        ("scale", lambda loss, net: loss * 0.3),
        ("shift", lambda loss, net: loss + 2),
        ("half", lambda loss, net: loss / 2),
        ("mask", lambda loss, net: loss * MASK),
        ("pick", lambda loss, net: torch.where(MASK > 0, loss, 0.0)),
        ("square", lambda loss, net: loss**2),
        ("heads", lambda loss, net: torch.stack([loss, 2 * loss]).mean(0)),
        ("in place", lambda loss, net: loss.clone().mul_(2)),
        ("twice", lambda loss, net: loss + F.cross_entropy(net(X), Y.flip(0), reduction="none")),
        ("penalty", lambda loss, net: loss + net(X).square().sum(1)),
        ("confidence", lambda loss, net: loss * net(X).detach().sigmoid()[:, 0]),
        ("certainty", lambda loss, net: loss * net(X).softmax(1)[:, 0]),
    ]
)
UNKNOWN = {"penalty", "confidence", "certainty"}


@settings(max_examples=80, deadline=None)
@given(
    first=ONES,
    steps=st.lists(STEPS, max_size=5),
    end=st.sampled_from(["mean", "sum"]),
    data=st.sampled_from([1.0, 0.5]),
)
def test_whatever_a_program_makes_of_a_loss_it_is_right_or_absent(first, steps, end, data):
    def loss_of(net):
        loss = first[1](net)
        for _, step in steps:
            loss = step(loss, net)
        return getattr(loss, end)() * data

    found = cost(loss_of)
    if UNKNOWN & {name for name, _ in steps}:
        assert found is None
    else:
        assert found == pytest.approx(reference(loss_of), rel=1e-5)


class _Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def training_step(self, batch, _):
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_under_a_trainer_it_stands_beside_the_loss_of_the_step(tmp_path, options):
    """It adds up over micro-batches, as the loss does."""
    watch = GradWatch(every_n_steps=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    data = DataLoader(TensorDataset(X.repeat(3, 1), torch.cat([TARGETS, 2 * TARGETS, TARGETS])), batch_size=8)
    trainer.fit(_Module(), data)
    size = 8 * options.get("accumulate_grad_batches", 1)
    targets = torch.cat([TARGETS, 2 * TARGETS, TARGETS]).double().numpy()
    for step, record in enumerate(watch.records):
        batches = targets[step * size : (step + 1) * size].reshape(-1, 8, 4)
        assert record.constant_answer[0] == pytest.approx(np.mean([each.var() for each in batches]), rel=1e-5)
