"""Where a step was followed, the cause of a missing gradient is where it is lost."""

from __future__ import annotations

import dataclasses

import pytest
from judge.unreached import NONE, ZERO, judged, kinds, lost

from lightning_gradwatch.judge.evidence.lost_gradients import Lost, lost_cause, reason
from lightning_gradwatch.judge.rules.unreached import UnreachedLayer
from lightning_gradwatch.record.finding import CauseKind, Severity
from lightning_gradwatch.record.step import LayerState, LostGradient

UNMEASURED = LayerState.UNMEASURED


def found_of(runs, place, *, state=ZERO):
    info = lost(runs.stack(function="relu"), **{"net.2": place})
    return judged(runs, [{"net.2": state}] * 3, info=info).only


MEANT = (
    (("discarded",), "is gone when the optimizer steps", "if that is meant"),
    (("zero-input", "linear", "net.2"), "given is exactly 0", "look at what net.2 is given"),
    (("zero-input", "embedding", "net.2"), "nothing but padding", "if that is meant"),
    (("left-out",), "no loss depends on what it puts out", "or remove it"),
    (("escaped", "item", "net"), "item(), called in net, takes its values out", "in tensors"),
    (("times-zero", "mul", ""), "multiplied by the number 0, in the training step itself", "meant"),
)
ERRORS = (
    (("cut", "detach", "net"), "the graph is cut by detach(), called in net", "take detach()"),
    (
        ("cut", "detach", "", ("training_step (gan.py:18)", "training_step (gan.py:21)")),
        "cut by detach(), called in training_step (gan.py:18, 21).",
        "take detach() in training_step (gan.py:18, 21) out of the gradient's way, where it is on the way to the loss",
    ),
    (
        ("cut", "no_grad", "", ("training_step (gan.py:18)",)),
        "the graph is cut by torch.no_grad()",
        "move the call in training_step (gan.py:18) out of torch.no_grad()",
    ),
    (
        ("clamped", "clamp", "net.0", ("forward (model.py:31)",)),
        "each value that clamp(), called in net.0, forward (model.py:31), is given",
        "widen the range",
    ),
    (("cut", "data", "net"), "the graph is cut by .data, called in net", "take .data"),
    (("cut", "no_grad", "net"), "the graph is cut by torch.no_grad()", "torch.no_grad()"),
    (("softmax-of-one", "softmax", "net"), "softmax over a single entry", "more than one pos"),
    (("softmax-certain", "softmax", "net"), "everything on one entry", "look at the mask"),
    (("norm-of-one", "layer_norm", "net"), "a norm of a single value: layer_norm()", "fewer groups"),
    (("zero-factor", "mul", "net"), "exactly 0 (mul(), called in net)", "factor be trained"),
    (("zero-weights", "linear", "net.9"), "the weights of net.9, which are exactly 0", "net.9"),
    (("clamped", "clamp", "net"), "outside of its range", "widen the range"),
    (("rounded", "round", "net"), "round(), called in net, has a derivative of 0", "straight"),
    (("dropped", "dropout", "net"), "lets nothing through", "lower the probability"),
    (("masked", "where", "net"), "takes none of its values", "condition"),
    (("other", "cummax", "net"), "arrives at cummax(), called in net", "look at cummax()"),
)
"""Where it is lost, what is said of it, and what is to be done."""


@pytest.mark.parametrize("state", [NONE, ZERO])
@pytest.mark.parametrize(
    ("severity", "place", "said", "do"),
    [(Severity.INFO, *row) for row in MEANT] + [(Severity.ERROR, *row) for row in ERRORS],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_says_what_is_so_at_the_severity_it_has(runs, severity, place, said, do, state):
    found = found_of(runs, place, state=state)
    assert (found.severity, found.layers) == (severity, ("net.2",))
    assert said in found.cause[:1].lower() + found.cause[1:]
    assert do in found.remedy.text[:1].lower() + found.remedy.text[1:]
    assert "initialize" not in kinds(found)


def test_a_softmax_that_became_certain_asks_for_smaller_steps_first(runs):
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


def test_a_gradient_that_is_thrown_away_in_every_layer_is_an_error(runs):
    info = runs.stack()
    info = lost(info, **{layer.name: ("discarded",) for layer in info.layers})
    finding = judged(runs, [{layer.name: NONE for layer in info.layers}] * 3, info=info).only
    assert finding.severity == Severity.ERROR
    assert "zero_grad() belongs before backward()" in finding.remedy.text


def test_layers_that_lose_it_for_the_same_reason_are_one_finding(runs):
    softmax = {
        name: ("softmax-of-one", "softmax", f"block.{place}") for place, name in enumerate(("net.0", "net.4", "net.8"))
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
def test_factors_that_are_all_0(runs, factors, said, do):
    finding = found_of(runs, ("zero-factors", "matmul", "net", (), factors))
    assert finding.severity is Severity.ERROR
    assert said in finding.cause
    assert do in finding.remedy.text


def test_pairs_of_zeros_are_one_finding_that_says_which_to_initialise(runs):
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


def test_a_layer_of_one_parameter_is_initialised_by_its_own_name(runs):
    plain = runs.stack(function="relu")
    layers = tuple(dataclasses.replace(layer, shapes=layer.shapes[:1]) for layer in plain.layers)
    info = lost(
        dataclasses.replace(plain, layers=layers),
        **{"net.2": ("zero-factors", "linear", "net.4", (), ("net.2.weight", "net.4.weight"))},
    )
    (action,) = judged(runs, [{"net.2": ZERO}] * 3, info=info).only.remedy.actions
    assert action.targets == ("net.2",)


def test_cuts_in_two_places_are_two(runs):
    info = lost(
        runs.stack(),
        **{"net.0": ("cut", "detach", "a"), "net.2": ("cut", "detach", "b"), "net.4": ("cut", "detach", "a")},
    )
    fed = judged(runs, [dict.fromkeys(("net.0", "net.2", "net.4"), NONE)] * 3, info=info)
    assert {finding.layers for finding in fed.findings} == {("net.0", "net.4"), ("net.2",)}


def test_what_is_given_zeros_by_a_dead_layer_shares_its_finding(runs):
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


def test_what_is_learned_of_it_later_takes_its_place_and_is_not_told_again(runs):
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
def test_it_heals_when_its_layers_have_had_a_gradient_for_three_steps(runs, place):
    info = lost(runs.stack(), **{"net.2": place})
    missing = {"net.2": NONE}
    fed = judged(runs, [*[missing] * 3, {}, {}, missing, {}, {}], info=info)
    assert fed.only.healed_step is None
    fed = judged(runs, [*[missing] * 3, {}, {}, missing, {}, {}, {}], info=info)
    assert (fed.only.severity, fed.only.last_step, fed.only.healed_step) == (Severity.INFO, 2, 8)


def test_steps_that_do_not_measure_it_heal_nothing(runs):
    fed = judged(runs, [*[{"net.2": NONE}] * 3, *[{"net.2": UNMEASURED}] * 9])
    assert fed.only.healed_step is None


def test_what_runs_under_one_no_grad_is_one_finding():
    """Where it begins isn't known, so no place is named as that; what runs under it is."""

    places = tuple(LostGradient("cut", "no_grad", f"backbone.{number}") for number in range(3))
    assert len({reason(place) for place in places}) == 1
    cause, remedy, _ = lost_cause(Lost(("backbone.0", "backbone.1", "backbone.2"), places), everything=False)
    assert "cut by torch.no_grad(), under which it ran." in cause
    assert "called in" not in cause
    assert remedy.text.startswith("Call backbone.0, backbone.1, backbone.2 outside of torch.no_grad()")
    assert len({reason(LostGradient("cut", "detach", f"backbone.{number}")) for number in range(3)}) == 3
