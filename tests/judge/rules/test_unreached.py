"""GW104 says which layers no gradient reaches, and why."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from lightning_gradwatch.judge.rules.unreached import UnreachedLayer
from lightning_gradwatch.record.finding import CauseKind, Severity, UnreachedLayerWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, LayerState, LostGradient, OptimizerInfo, SiteInfo

NONE, ZERO, OK = LayerState.NONE, LayerState.ZERO, LayerState.OK
FROZEN, UNMEASURED = LayerState.FROZEN, LayerState.UNMEASURED


def judged(runs, states, *, info=None, **given):
    """`states`: for each record, the states of the layers that aren't OK."""
    info = info or runs.stack(function="relu")
    records = [runs.measure(info, step, states=each, **given) for step, each in enumerate(states)]
    return runs.feed(UnreachedLayer(), records, info)


@pytest.mark.parametrize("state", [NONE, ZERO])
def test_fires_at_the_third_measured_step_without_warm_up(runs, state):
    fed = judged(runs, [{"net.0": state}] * 4)
    assert [len(told) for told in fed.told] == [0, 0, 1, 0]
    assert fed.confirming == [True, True, False, False]
    finding = fed.only
    assert (finding.severity, finding.layers) == (Severity.ERROR, ("net.0",))
    assert (finding.first_step, finding.last_step, finding.value, finding.threshold) == (0, 3, 4.0, 3.0)
    assert fed.evaluator.warning_for(finding) is UnreachedLayerWarning


@pytest.mark.parametrize(
    "states",
    [
        [{"net.0": ZERO}, {}, {}, {}],
        [{"net.0": ZERO}, {"net.0": ZERO}, {}, {"net.0": ZERO}, {"net.0": ZERO}, {}],
        [{"net.0": FROZEN}] * 5,
        [{"net.0": UNMEASURED}] * 5,
        [{"net.0": ZERO}, {"net.0": ZERO}, {"net.0": FROZEN}, {"net.0": ZERO}],
    ],
    ids=["zero-init head", "two nested", "frozen", "another optimizer's", "frozen in between"],
)
def test_healthy_layers_are_left_alone(runs, states):
    fed = judged(runs, states)
    assert not fed.findings
    assert not fed.evaluator.unjudged


def test_steps_that_didnt_measure_the_layer_neither_count_nor_reset(runs):
    zero, other = {"net.0": ZERO}, {"net.0": UNMEASURED}
    fed = judged(runs, [zero, other, zero, other, zero])
    assert [len(told) for told in fed.told] == [0, 0, 0, 0, 1]


def test_a_skipped_step_doesnt_count(runs):
    info = runs.stack()
    record = runs.measure(info, 0, states={"net.0": ZERO})
    assert not runs.feed(UnreachedLayer(), [dataclasses.replace(record, skipped=True)] * 5, info).findings


def test_a_rate_of_zero_keeps_what_starts_at_zero(runs):
    """In a rate warm-up that starts at 0 a zero-init head can't leave 0 yet."""
    assert not judged(runs, [{"net.0": ZERO}] * 6, rates=(0.0,)).findings
    assert judged(runs, [{"net.0": ZERO}] * 6, rates=(1e-12,)).findings
    assert judged(runs, [{"net.0": ZERO}] * 6, rates=()).findings


def test_the_rate_is_that_of_the_optimizer_that_holds_the_layer(runs):
    info = runs.stack()
    names = [layer.name for layer in info.layers]
    info = dataclasses.replace(
        info, optimizers=(OptimizerInfo("SGD", {}, (names[0],)), OptimizerInfo("SGD", {}, tuple(names[1:])))
    )
    both = {"net.0": ZERO, "net.6": ZERO}
    assert judged(runs, [both] * 3, info=info, rates=(0.0, 0.1)).only.layers == ("net.6",)


def test_a_loss_of_zero_has_nothing_to_teach(runs):
    assert not judged(runs, [{f"net.{place}": ZERO for place in range(0, 13, 2)}] * 5, loss=0.0).findings


def test_neighbours_share_a_finding_that_grows(runs):
    few, more = {"net.2": ZERO}, {"net.0": ZERO, "net.2": ZERO, "net.4": ZERO}
    fed = judged(runs, [few] * 3 + [more] * 3)
    assert [len(told) for told in fed.told] == [0, 0, 1, 0, 0, 0]
    assert fed.only.layers == ("net.0", "net.2", "net.4")
    assert fed.only.first_step == 0


def test_what_was_cut_off_in_two_places_is_two_findings_until_the_gap_closes(runs):
    """Where the way of the gradient wasn't followed."""
    apart = {"net.0": NONE, "net.4": NONE}
    fed = judged(runs, [apart] * 3)
    assert [finding.layers for finding in fed.findings] == [("net.0",), ("net.4",)]
    fed = judged(runs, [apart] * 3 + [{**apart, "net.2": NONE}] * 3)
    assert fed.only.layers == ("net.0", "net.2", "net.4")
    assert sum(len(told) for told in fed.told) == 2


def test_zeros_are_one_finding_wherever_they_are(runs):
    """What the step's sites say of one, they say of all."""
    assert judged(runs, [{"net.0": ZERO, "net.4": ZERO}] * 3).only.layers == ("net.0", "net.4")


def lost(info, **by_name):
    """The description, with where the gradients of some layers are lost: (kind, operation, module) by name."""
    layers = tuple(
        dataclasses.replace(layer, lost=LostGradient(*by_name[layer.name])) if layer.name in by_name else layer
        for layer in info.layers
    )
    return dataclasses.replace(info, layers=layers)


class TestFollowed:
    """Where a step was followed, a cause is where the gradient is lost."""

    def finding(self, runs, place, *, state=ZERO, others=None, count=3):
        info = lost(runs.stack(function="relu"), **{"net.2": place})
        states = {"net.2": state, **(others or {})}
        return judged(runs, [states] * count, info=info).only

    @pytest.mark.parametrize(
        ("place", "state", "severity", "said", "do"),
        [
            (("discarded",), NONE, Severity.INFO, "is gone when the optimizer steps", "zero_grad()"),
            (("discarded",), ZERO, Severity.INFO, "is gone when the optimizer steps", "if that is meant"),
            (
                ("zero-input", "linear", "net.2"),
                ZERO,
                Severity.INFO,
                "given is exactly 0",
                "look at what net.2 is given",
            ),
            (("zero-input", "embedding", "net.2"), ZERO, Severity.INFO, "nothing but padding", "if that is meant"),
            (("left-out",), NONE, Severity.INFO, "no loss depends on what it puts out", "or remove it"),
            (
                ("escaped", "item", "net"),
                NONE,
                Severity.INFO,
                "item(), called in net, takes its values out",
                "in tensors",
            ),
            (
                ("times-zero", "mul", ""),
                ZERO,
                Severity.INFO,
                "multiplied by the number 0, in the training step itself",
                "meant",
            ),
            (
                ("cut", "detach", "net"),
                NONE,
                Severity.ERROR,
                "the graph is cut by detach(), called in net",
                "take detach()",
            ),
            (
                ("cut", "detach", "", ("training_step (gan.py:18)", "training_step (gan.py:21)")),
                NONE,
                Severity.ERROR,
                "cut by detach(), called in training_step (gan.py:18, 21).",
                "take detach() in training_step (gan.py:18, 21) out of the gradient's way, where it is on the way to the loss",
            ),
            (
                ("cut", "no_grad", "", ("training_step (gan.py:18)",)),
                NONE,
                Severity.ERROR,
                "the graph is cut by torch.no_grad()",
                "move the call in training_step (gan.py:18) out of torch.no_grad()",
            ),
            (
                ("clamped", "clamp", "net.0", ("forward (model.py:31)",)),
                ZERO,
                Severity.ERROR,
                "each value that clamp(), called in net.0, forward (model.py:31), is given",
                "widen the range",
            ),
            (("cut", "data", "net"), NONE, Severity.ERROR, "the graph is cut by .data, called in net", "take .data"),
            (("cut", "no_grad", "net"), NONE, Severity.ERROR, "the graph is cut by torch.no_grad()", "torch.no_grad()"),
            (
                ("softmax-of-one", "softmax", "net"),
                ZERO,
                Severity.ERROR,
                "softmax over a single entry",
                "more than one pos",
            ),
            (
                ("softmax-certain", "softmax", "net"),
                ZERO,
                Severity.ERROR,
                "everything on one entry",
                "look at the mask",
            ),
            (
                ("norm-of-one", "layer_norm", "net"),
                ZERO,
                Severity.ERROR,
                "a norm of a single value: layer_norm()",
                "fewer groups",
            ),
            (
                ("zero-factor", "mul", "net"),
                ZERO,
                Severity.ERROR,
                "exactly 0 (mul(), called in net)",
                "factor be trained",
            ),
            (
                ("zero-weights", "linear", "net.9"),
                ZERO,
                Severity.ERROR,
                "the weights of net.9, which are exactly 0",
                "net.9",
            ),
            (("clamped", "clamp", "net"), ZERO, Severity.ERROR, "outside of its range", "widen the range"),
            (
                ("rounded", "round", "net"),
                ZERO,
                Severity.ERROR,
                "round(), called in net, has a derivative of 0",
                "straight",
            ),
            (("dropped", "dropout", "net"), ZERO, Severity.ERROR, "lets nothing through", "lower the probability"),
            (("masked", "where", "net"), ZERO, Severity.ERROR, "takes none of its values", "condition"),
            (
                ("other", "cummax", "net"),
                ZERO,
                Severity.ERROR,
                "arrives at cummax(), called in net",
                "look at cummax()",
            ),
        ],
        ids=lambda value: value[0] if isinstance(value, tuple) else "",
    )
    def test_says_what_is_so_at_the_severity_it_has(self, runs, place, state, severity, said, do):
        finding = self.finding(runs, place, state=state)
        assert (finding.severity, finding.layers) == (severity, ("net.2",))
        assert said in finding.cause[:1].lower() + finding.cause[1:]
        assert do in finding.remedy.text[:1].lower() + finding.remedy.text[1:]
        assert "initialize" not in kinds(finding)

    def test_a_softmax_that_became_certain_asks_for_smaller_steps_first(self, runs):
        info = lost(runs.stack(), **{"net.2": ("softmax-certain", "softmax", "net")})
        finding = judged(runs, [{}, *[{"net.2": ZERO}] * 3], info=info).only
        assert finding.cause.endswith(" It began at step 1, most likely by a step that was too large.")
        assert finding.remedy.text.startswith(
            "Multiply the learning rate by 0.1, or warm it up. If it stays so: look at the mask"
        )
        assert [cause.kind for cause in finding.causes] == [CauseKind.CERTAIN_SOFTMAX, CauseKind.HIGH_LEARNING_RATE]
        finding = judged(runs, [{"net.2": ZERO}] * 3, info=info).only
        assert finding.first_step == 0
        assert finding.remedy.text.startswith("Look at the mask")
        # A run that goes on from another's weights begins so at any step.
        late = [runs.measure(info, step, states={"net.2": ZERO}) for step in range(500, 503)]
        finding = runs.feed(UnreachedLayer(), late, info).only
        assert finding.first_step == 500
        assert finding.remedy.text.startswith("Look at the mask")

    def test_a_gradient_that_is_thrown_away_in_every_layer_is_an_error(self, runs):
        info = runs.stack()
        info = lost(info, **{layer.name: ("discarded",) for layer in info.layers})
        finding = judged(runs, [{layer.name: NONE for layer in info.layers}] * 3, info=info).only
        assert finding.severity == Severity.ERROR
        assert "zero_grad() belongs before backward()" in finding.remedy.text

    def test_layers_that_lose_it_for_the_same_reason_are_one_finding(self, runs):
        softmax = {
            name: ("softmax-of-one", "softmax", f"block.{place}")
            for place, name in enumerate(("net.0", "net.4", "net.8"))
        }
        info = lost(runs.stack(), **softmax, **{"net.2": ("norm-of-one", "layer_norm", "block.1")})
        states = dict.fromkeys((*softmax, "net.2"), ZERO)
        fed = judged(runs, [states] * 3, info=info)
        assert {finding.layers for finding in fed.findings} == {("net.0", "net.4", "net.8"), ("net.2",)}
        assert "called in block.0, block.1, block.2" in next(
            finding.cause for finding in fed.findings if len(finding.layers) == 3
        )

    @pytest.mark.parametrize(
        ("factors", "said", "do"),
        [
            (
                ("net.a", "net.b"),
                "net.a and net.b are both exactly 0, and are multiplied (matmul(), called in net).",
                "Initialise net.a at random (Xavier) and leave net.b at 0",
            ),
            (
                ("net.a", "net.c", "net.b"),
                "net.a, net.c and net.b are all exactly 0",
                "Initialise net.a, net.c at random (Xavier) and leave net.b at 0",
            ),
        ],
    )
    def test_factors_that_are_all_0(self, runs, factors, said, do):
        finding = self.finding(runs, ("zero-factors", "matmul", "net", (), factors))
        assert finding.severity is Severity.ERROR
        assert said in finding.cause
        assert do in finding.remedy.text

    def test_pairs_of_zeros_are_one_finding_that_says_which_to_initialise(self, runs):
        places = {
            name: ("zero-factors", "linear", f"{name}.b", (), (f"{name}.a.weight", f"{name}.b.weight"))
            for name in ("net.0", "net.4")
        }
        finding = judged(runs, [dict.fromkeys(places, ZERO)] * 3, info=lost(runs.stack(), **places)).only
        assert finding.layers == ("net.0", "net.4")
        assert "called in net.0.b), as in 1 further place." in finding.cause
        (action,) = finding.remedy.actions
        assert (action.kind, action.targets) == ("initialize", ("net.0.a.weight", "net.4.a.weight"))
        assert dict(action.arguments) == {"method": "xavier_uniform_"}

    def test_a_layer_of_one_parameter_is_initialised_by_its_own_name(self, runs):
        plain = runs.stack(function="relu")
        layers = tuple(dataclasses.replace(layer, shapes=layer.shapes[:1]) for layer in plain.layers)
        info = lost(
            dataclasses.replace(plain, layers=layers),
            **{"net.2": ("zero-factors", "linear", "net.4", (), ("net.2.weight", "net.4.weight"))},
        )
        (action,) = judged(runs, [{"net.2": ZERO}] * 3, info=info).only.remedy.actions
        assert action.targets == ("net.2",)

    def test_cuts_in_two_places_are_two(self, runs):
        info = lost(
            runs.stack(),
            **{"net.0": ("cut", "detach", "a"), "net.2": ("cut", "detach", "b"), "net.4": ("cut", "detach", "a")},
        )
        fed = judged(runs, [dict.fromkeys(("net.0", "net.2", "net.4"), NONE)] * 3, info=info)
        assert {finding.layers for finding in fed.findings} == {("net.0", "net.4"), ("net.2",)}

    def test_what_is_given_zeros_by_a_dead_layer_shares_its_finding(self, runs):
        info = lost(
            runs.stack(function="relu"),
            **{"net.0": ("inactive", "relu", "net.1"), "net.2": ("zero-input", "linear", "net.2")},
        )
        dead = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        finding = judged(
            runs, [{"net.0": ZERO, "net.2": ZERO}] * 3, info=info, dead_fraction=dead, inactive_share=dead
        ).only
        assert finding.layers == ("net.0", "net.2")
        assert finding.cause.startswith("Dead layer")

    def test_what_is_learned_of_it_later_takes_its_place_and_is_not_told_again(self, runs):
        plain = runs.stack(function="relu")
        info = lost(plain, **{"net.2": ("cut", "detach", "net")})
        fed = judged(runs, [{"net.2": NONE}] * 3, info=plain)
        evaluator = fed.evaluator
        assert "was cut" not in fed.only.cause
        for step in (3, 4):
            assert not evaluator.feed(runs.measure(info, step, states={"net.2": NONE}), info)
        (finding,) = evaluator.findings
        assert "cut by detach()" in finding.cause
        assert (finding.first_step, finding.last_step) == (0, 4)

    @pytest.mark.parametrize("place", [("discarded",), ("cut", "detach", "net")])
    def test_it_heals_when_its_layers_have_had_a_gradient_for_three_steps(self, runs, place):
        info = lost(runs.stack(), **{"net.2": place})
        missing = {"net.2": NONE}
        fed = judged(runs, [*[missing] * 3, {}, {}, missing, {}, {}], info=info)
        assert fed.only.healed_step is None
        fed = judged(runs, [*[missing] * 3, {}, {}, missing, {}, {}, {}], info=info)
        assert (fed.only.severity, fed.only.last_step, fed.only.healed_step) == (Severity.INFO, 2, 8)

    def test_steps_that_do_not_measure_it_heal_nothing(self, runs):
        fed = judged(runs, [*[{"net.2": NONE}] * 3, *[{"net.2": UNMEASURED}] * 9])
        assert fed.only.healed_step is None


class TestFewSamples:
    """A gradient of exactly 0 through a ReLU says nothing before a window does."""

    SILENT: ClassVar = [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]

    def fed(self, runs, dead, *, function="relu", **given):
        return judged(
            runs,
            [{"net.0": ZERO}] * 9,
            info=runs.stack(function=function),
            inactive_share=self.SILENT,
            dead_fraction=dead,
            **given,
        )

    @pytest.mark.parametrize("dead", [np.nan, [0.75, 0.0, 0.0, 0.0, 0.0, 0.0]], ids=["not full", "not dead"])
    def test_units_that_few_samples_leave_inactive(self, runs, dead):
        fed = self.fed(runs, dead)
        assert not fed.findings
        assert sum(fed.confirming) == 2

    def test_a_full_window_of_dead_units(self, runs):
        finding = self.fed(runs, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).only
        assert (finding.severity, finding.first_step) == (Severity.ERROR, 0)

    def test_derivatives_that_round_to_zero_in_few_samples(self, runs):
        assert not self.fed(runs, np.nan, function="sigmoid").findings
        assert self.fed(runs, 0.0, function="sigmoid", saturated_fraction=[1.0, *[0.0] * 5]).findings

    def test_an_operation_that_was_given_few_values_is_told_after_many_steps(self, runs):
        info = lost(runs.stack(), **{"net.0": ("few", "clamp", "net")})
        assert not judged(runs, [{"net.0": ZERO}] * 31, info=info).findings
        finding = judged(runs, [{"net.0": ZERO}] * 32, info=info).only
        assert "arrives at clamp()" in finding.cause


def test_a_frozen_layer_doesnt_part_its_neighbours(runs):
    assert judged(runs, [{"net.0": ZERO, "net.2": FROZEN, "net.4": ZERO}] * 3).only.layers == ("net.0", "net.4")


def test_a_missing_and_a_zero_gradient_have_different_causes(runs):
    fed = judged(runs, [{"net.0": NONE, "net.2": ZERO}] * 3)
    assert [finding.layers for finding in fed.findings] == [("net.0",), ("net.2",)]
    assert "the graph is cut behind it, or the loss leaves it out" in fed.findings[0].cause
    assert fed.findings[0].remedy.actions[0].kind == "reconnect_graph"


@pytest.mark.parametrize(
    ("used", "state", "severity"),
    [
        (False, NONE, Severity.INFO),
        (False, ZERO, Severity.INFO),
        (None, NONE, Severity.INFO),
        (None, ZERO, Severity.ERROR),
        (True, NONE, Severity.ERROR),
    ],
)
def test_a_layer_that_isnt_used_is_information(runs, used, state, severity):
    layer = LayerInfo("spare", "Linear", ((2, 2),), 4, weight=True, used=used)
    assert judged(runs, [{"spare": state}] * 3, info=RunInfo(layers=(layer,))).only.severity == severity


def test_a_layer_appended_in_mid_run_keeps_the_others_count(runs):
    before = runs.stack(depth=2)
    after = dataclasses.replace(before, layers=(*before.layers, LayerInfo("late", "Linear", ((2, 2),), 4, weight=True)))
    evaluator = runs.feed(UnreachedLayer(), [runs.measure(before, s, states={"net.2": ZERO}) for s in (0, 1)], before)
    told = evaluator.evaluator.feed(runs.measure(after, 2, states={"net.2": ZERO, "late": ZERO}), after)
    assert [finding.layers for finding in told] == [("net.2",)]


class TestCause:
    def test_a_dead_layer(self, runs):
        finding = judged(
            runs,
            [{"net.0": ZERO, "net.2": ZERO}] * 3,
            dead_fraction=[0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
            signal_norm=[0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
        ).only
        assert finding.cause.startswith("Dead layer: each unit of ReLU at net.3 ")
        assert finding.remedy.actions[0].targets == ("net.3",)

    @pytest.mark.parametrize("dead", [np.nan, 0.06])
    def test_of_a_layer_that_is_silent_now_nothing_is_said_that_its_window_does_not(self, runs, dead):
        """Not full, or 6 % dead by it (GW201): a few samples may leave all units inactive."""
        share = {"inactive_share": [1.0, 0.5, 0.5, 0.5, 0.5, 0.5], "dead_fraction": [dead, 0.0, 0.0, 0.0, 0.0, 0.0]}
        assert judged(runs, [{"net.0": ZERO}] * 5, **share).findings == ()
        share["dead_fraction"][0] = 1.0
        assert judged(runs, [{"net.0": ZERO}] * 5, **share).only.cause.startswith("Dead layer: each unit of ReLU ")

    def test_of_several_layers_each_is_called_what_its_window_says(self, runs):
        cause = judged(
            runs,
            [{"net.0": ZERO}] * 3,
            dead_fraction=[1.0, np.nan, 0.25, 0.0, 0.0, 0.0],
            inactive_share=[1.0, 1.0, 1.0, 0.5, 0.5, 0.5],
        ).only.cause
        dead, open_, silent = cause.index("at net.1 "), cause.index("at net.3 "), cause.index("at net.5 ")
        assert (
            dead < cause.index("in every observation, so") < open_ < cause.index("once their window is full") < silent
        )
        assert "no more than 25 %" in cause

    def test_underflow(self, runs):
        info = runs.stack()
        signal = [0.0, 0.0, 1e-43, 1e-30, 1e-15, 1.0]
        finding = judged(runs, [{"net.0": ZERO, "net.2": ZERO}] * 3, info=info, signal_norm=signal).only
        assert finding.cause.startswith("Underflow of the number format")
        assert "1e-43 at net.5" in finding.cause

    def test_a_signal_that_stops_at_once_is_no_underflow(self, runs):
        info = runs.stack()
        finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, signal_norm=[0.0, 0.5, 1.0, 1.0, 1.0, 1.0]).only
        assert "neither a dead layer nor underflow" in finding.cause

    def test_half_precision_underflows_earlier(self, runs):
        info = runs.stack(precision="16-mixed")
        finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, signal_norm=[0.0, 1e-6, 1e-4, 0.1, 1.0, 1.0]).only
        assert "16-mixed (6e-8)" in finding.cause

    def test_half_precision_whose_signal_is_level_asks_for_a_scaler(self, runs):
        info = runs.stack(function="relu", precision="16-mixed")
        zero = [{"net.0": ZERO}] * 3
        finding = judged(runs, zero, info=info, signal_norm=[0.0, 1e-7, 1e-7, 1e-7, 1e-7, 1e-7]).only
        assert kinds(finding) == ["use_gradient_scaler"]
        finding = judged(runs, zero, info=info, **fading_to_zero(runs, info)).only
        assert kinds(finding) == ["initialize", "use_gradient_scaler"]

    @pytest.mark.parametrize(
        ("precision", "kind"),
        [("16-mixed", "use_gradient_scaler"), ("16-true", "set_precision"), ("32-true", "trace_gradient")],
    )
    def test_half_precision_in_which_nothing_is_left(self, runs, precision, kind):
        info = runs.stack(function="relu", precision=precision)
        everything = {f"net.{place}": ZERO for place in range(0, 13, 2)}
        finding = judged(runs, [everything] * 3, info=info, signal_norm=0.0).only
        assert kinds(finding) == [kind]
        assert kinds(judged(runs, [{"net.0": ZERO}] * 3, info=info).only) == ["trace_gradient"]

    @pytest.mark.parametrize(
        ("precision", "operation", "kind"),
        [
            ("16-mixed", "other", "use_gradient_scaler"),
            ("16-true", "other", "set_precision"),
            ("32-true", "other", "trace_gradient"),
            ("16-mixed", "rounded", "trace_gradient"),
        ],
    )
    def test_what_a_function_makes_0_of_in_half_precision_is_too_small_for_it(self, runs, precision, operation, kind):
        """Unless its derivative is known to be 0."""
        everything = {f"net.{place}": ZERO for place in range(0, 13, 2)}
        place = operation, "cross_entropy", "net", ("train.py:3",)
        info = lost(runs.stack(function="relu", precision=precision), **dict.fromkeys(everything, place))
        finding = judged(runs, [everything] * 3, info=info, signal_norm=0.0).only
        assert kinds(finding) == [kind]

    def test_a_scaler_that_is_there_isnt_recommended(self, runs):
        info = runs.stack(function="relu", precision="16-mixed")
        everything = {f"net.{place}": ZERO for place in range(0, 13, 2)}
        records = [
            dataclasses.replace(runs.measure(info, step, states=everything, signal_norm=0.0), gradient_scale=1024.0)
            for step in range(3)
        ]
        assert kinds(runs.feed(UnreachedLayer(), records, info).only) == ["trace_gradient"]

    def test_underflow_mends_what_leads_up_to_it(self, runs):
        info = runs.stack(depth=8)
        metrics = runs.gains(info, 1e-10, 1.0)
        for values in metrics.values():
            values[:3] = np.nan
        metrics["signal_norm"][:3] = 0
        finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, **metrics).only
        assert "below the smallest number of 32-true" in finding.cause
        assert "an activation passes back 1e-10 of the signal" in finding.cause
        assert kinds(finding) == ["replace_activation", "initialize"]

    @pytest.mark.parametrize("function", ["sigmoid", "tanh"])
    def test_derivatives_that_round_to_zero(self, runs, function):
        info = runs.stack(function=function)
        finding = judged(
            runs,
            [{"net.0": ZERO}] * 3,
            info=info,
            inactive_share=[1.0, 0.1, 0.1, 0.1, 0.1, 0.1],
            saturated_fraction=[1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            signal_norm=1.0,
        ).only
        assert "so far out that the derivative rounds to 0" in finding.cause
        replaced = ["replace_activation"] if function == "sigmoid" else []
        assert kinds(finding) == [*replaced, "initialize", "normalize_inputs"]

    def test_saturated_units_of_which_a_few_observations_are_not_flat(self, runs):
        """As of weights that steps have thrown far out: what passes is next to nothing at each of them, and 0 after all."""
        metrics = {"saturated_fraction": 1.0, "signal_norm": [0.0, 0.0, 1e-2, 0.1, 1.0, 1.0]}
        info = runs.stack(function="tanh")
        finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, inactive_share=0.996, **metrics).only
        assert (
            "99.6 % or more of the observations of Tanh at net.1 … net.11 (6 activations) are on a flat side"
            in finding.cause
        )
        assert kinds(finding) == ["initialize", "normalize_inputs"]
        finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, inactive_share=0.9, **metrics).only
        assert kinds(finding) == ["trace_gradient"]

    def test_a_function_that_is_flat_in_the_middle(self, runs):
        info = runs.stack(function="tanhshrink")
        finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, signal_norm=[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).only
        assert finding.cause.startswith("The derivative of Tanhshrink, at net.1 … net.9 (5 activations), is 0 at 0")
        assert finding.remedy.actions[0].targets == ("net.1", "net.3", "net.5", "net.7", "net.9")

    @pytest.mark.parametrize(
        ("outputs", "role", "found"), [(1, "output", True), (2, "output", False), (1, "hidden", False)]
    )
    def test_softmax_over_a_single_unit(self, runs, outputs, role, found):
        info = runs.stack(depth=2, function="relu")
        last = dataclasses.replace(info.layers[-1], shapes=((outputs, 8), (outputs,)))
        info = dataclasses.replace(
            info, layers=(*info.layers[:-1], last), sites=(*info.sites, SiteInfo("net.5", "softmax", role, 0))
        )
        finding = judged(runs, [{"net.0": ZERO, "net.2": ZERO, "net.4": ZERO}] * 3, info=info, signal_norm=0.0).only
        assert finding.cause.startswith("Softmax over a single unit: net.5 follows net.4") is found
        assert (kinds(finding) == ["replace_output"]) is found

    def test_where_a_graph_is_cut_isnt_claimed_where_it_wasnt_followed(self, runs):
        finding = judged(runs, [{"net.0": NONE, "net.2": NONE}] * 3).only
        assert "net.4" not in finding.cause + finding.remedy.text
        assert finding.remedy.text.startswith("Look behind net.2 for detach(), .data,")

    @pytest.mark.parametrize("before", [True, False])
    def test_a_layer_that_had_a_gradient_was_killed(self, runs, before):
        states = [{}] * before + [{"net.0": ZERO}] * 3
        finding = judged(runs, states, dead_fraction=[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).only
        assert ("It had a gradient before step 1," in finding.cause) is before
        assert ("set_learning_rate" in kinds(finding)) is before

    def test_an_output_that_is_dead_blocks_as_well(self, runs):
        info = runs.stack(function="relu")
        output = dataclasses.replace(info.sites[-1], role="output")
        info = dataclasses.replace(info, sites=(*info.sites[:-1], output))
        inactive = [0.5] * 5 + [1.0]
        dead = [0.0] * 5 + [1.0]
        finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, inactive_share=inactive, dead_fraction=dead).only
        assert finding.remedy.actions[0].targets == (output.name,)


def kinds(finding):
    return [action.kind for action in finding.remedy.actions]


def fading_to_zero(runs, info):
    """Weights that are too small, and a signal that ends at the first site."""
    metrics = runs.gains(info, 2**-0.5, 0.1)
    metrics["signal_norm"][0] = 0.0
    metrics["activation_gain"][0] = 0.0
    return metrics


def test_a_layer_that_a_step_left_out_doesnt_part_its_neighbours(runs):
    states = {"net.0": ZERO, "net.2": LayerState.UNUSED, "net.4": ZERO}
    assert judged(runs, [states] * 3).only.layers == ("net.0", "net.4")


def test_cant_judge_without_a_measured_layer(runs):
    fed = judged(runs, [{f"net.{place}": UNMEASURED for place in range(0, 13, 2)}])
    assert fed.evaluator.unjudged == {"GW104": "not yet: no trainable layer was measured"}


@pytest.mark.parametrize(("count", "found"), [(100, 100), (101, 1)])
def test_more_root_causes_than_anyone_reads_share_a_finding(runs, count, found):
    """A file can describe a hundred thousand layers of which every other has no gradient."""
    info = runs.stack(depth=2 * count)
    fed = judged(runs, [{f"net.{4 * place}": NONE for place in range(count)}] * 4, info=info)
    assert len(fed.findings) == found
    assert sum(len(finding.layers) for finding in fed.findings) == count


def test_more_root_causes_are_still_told_apart_by_kind(runs):
    info = runs.stack(depth=800)
    states = {f"net.{4 * place}": (ZERO, NONE)[place % 2] for place in range(400)}
    fed = judged(runs, [states] * 4, info=info)
    assert sorted(len(finding.layers) for finding in fed.findings) == [200, 200]
    assert len({finding.cause for finding in fed.findings}) == 2


def test_what_runs_under_one_no_grad_is_one_finding():
    """Where it begins isn't known, so no place is named as that; what runs under it is."""
    from lightning_gradwatch.judge.evidence.lost_gradients import Lost, lost_cause, reason  # noqa: PLC0415 - as above
    from lightning_gradwatch.record.step import LostGradient  # noqa: PLC0415 - here alone

    places = tuple(LostGradient("cut", "no_grad", f"backbone.{number}") for number in range(3))
    assert len({reason(place) for place in places}) == 1
    cause, remedy, _ = lost_cause(Lost(("backbone.0", "backbone.1", "backbone.2"), places), everything=False)
    assert "cut by torch.no_grad(), under which it ran." in cause
    assert "called in" not in cause
    assert remedy.text.startswith("Call backbone.0, backbone.1, backbone.2 outside of torch.no_grad()")
    assert len({reason(LostGradient("cut", "detach", f"backbone.{number}")) for number in range(3)}) == 3
