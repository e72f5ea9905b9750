"""Probe in a plain PyTorch loop."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_gradwatch import Probe
from lightning_gradwatch.record.metrics import METRICS
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerState


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def take_step(model, optimizer, x=None):
    optimizer.zero_grad()
    model(torch.randn(40, 4) if x is None else x).square().mean().backward()
    optimizer.step()


def hooks_of(model, optimizer):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [len(getattr(module, kind)) for module in model.modules() for kind in kinds],
        [sorted(vars(module)) for module in model.modules()],
        [sorted(vars(parameter)) for parameter in model.parameters()],
        len(optimizer._optimizer_step_pre_hooks),
        len(optimizer._optimizer_step_post_hooks),
        torch._C._len_torch_function_stack(),
    )


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (lambda m: ("net", sgd(m)), TypeError, "model='net' must be a torch.nn.Module, not str"),
        (lambda m: (m, "adam"), TypeError, "must be a torch.optim.Optimizer, not str"),
        (lambda m: (m, 3), TypeError, "optimizer"),
        (lambda m: (m, None), TypeError, "optimizer"),
        (lambda m: (m, [sgd(m), m]), TypeError, "must be a torch.optim.Optimizer, not Sequential"),
        (lambda m: (m, m.parameters()), TypeError, "must be a torch.optim.Optimizer"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, text):
    with pytest.raises(error, match=text):
        Probe(*arguments(make_model()))


@pytest.mark.parametrize("window", [{"observations": 0}, {"batch_elements": 0}, {"observations": -5}])
def test_a_window_of_nothing_is_refused(window):
    model = make_model()
    (name, value) = next(iter(window.items()))
    with pytest.raises(ValueError, match=f"{name}={value}.*at least 1"):
        Probe(model, sgd(model), **window)


def test_a_model_that_no_optimizer_trains_is_refused():
    for optimizer in (sgd(make_model()), []):
        with pytest.raises(ValueError, match="holds no parameter of the model"), Probe(make_model(), optimizer):
            pass
        assert torch._C._len_torch_function_stack() == 0


def test_the_record_before_a_step_is_an_error_that_says_when_it_is_there():
    model = make_model()
    probe = Probe(model, sgd(model))
    with pytest.raises(RuntimeError, match="no step was measured yet"):
        _ = probe.record
    with probe, pytest.raises(RuntimeError, match="no step was measured yet"):
        _ = probe.record


def test_info_is_there_before_a_step_and_complete_after_it():
    model = make_model()
    probe = Probe(model, sgd(model))
    assert isinstance(probe.info, RunInfo)
    with probe:
        take_step(model, probe._optimizers[0])
    info = probe.info
    assert [layer.name for layer in info.layers] == ["0", "3", "5"]
    assert [site.name for site in info.sites] == ["1", "4"]
    (optimizer,) = info.optimizers
    assert (optimizer.name, optimizer.settings["lr"], optimizer.layers) == ("SGD", 0.1, ("0", "3", "5"))
    assert info.coverage == ()
    assert info.versions["torch"] == torch.__version__
    assert probe.record.layout == info.layout


def test_a_record_holds_every_metric():
    model = make_model()
    with Probe(model, optimizer := sgd(model)) as probe:
        take_step(model, optimizer)
    record = probe.record
    assert set(record.metrics) == set(METRICS)
    for metric, vector in record.metrics.items():
        assert vector.dtype == float
        assert len(vector) == len(probe.info.names(metric))
    assert (record.step, record.optimizers, record.learning_rates, record.skipped) == (0, (0,), (0.1,), False)
    assert record.loss > 0
    assert math.isnan(record.clip_factor)


def test_steps_are_numbered_and_windows_run_on():
    model = make_model()
    optimizer = sgd(model)
    probe = Probe(model, optimizer, observations=100, batch_elements=100)
    for step, fill in enumerate([0.4, 0.8, 1.0, 1.0]):
        with probe:
            take_step(model, optimizer)
        assert probe.record.step == step
        assert probe.record.window_fill.tolist() == [fill, fill]
        assert math.isnan(probe.record.metrics["dead_fraction"][0]) is (fill < 1)
        assert math.isnan(probe.record.metrics["saturated_fraction"][1]) is (fill < 1)


def test_windows_go_on_after_a_checkpoint():
    model = make_model()
    optimizer = sgd(model)
    first, second = (Probe(model, optimizer, observations=100, batch_elements=1) for _ in range(2))
    with first:
        take_step(model, optimizer)
    second.load_state_dict(first.state_dict())
    assert second.state_dict().keys() == first.state_dict().keys() == {"1", "4"}
    with second:
        take_step(model, optimizer)
    assert second.record.window_fill.tolist() == [0.8, 0.8]


def test_weights_are_bit_identical_with_and_without_it():
    models = []
    for watched in (False, True):
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        probe = Probe(model, optimizer)
        torch.manual_seed(7)
        for _ in range(30):
            if watched:
                with probe:
                    take_step(model, optimizer)
            else:
                take_step(model, optimizer)
        models.append((model, torch.get_rng_state()))
    for one, other in zip(models[0][0].parameters(), models[1][0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(models[0][1], models[1][1])


class Broken(nn.Module):
    def forward(self, x):
        raise KeyError("broken")


class BrokenBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise KeyError("broken")


class BrokenInBackward(nn.Module):
    def forward(self, x):
        return BrokenBackward.apply(x)


@pytest.mark.parametrize("where", ["nowhere", "forward", "backward", "optimizer", "after"])
def test_nothing_is_left_behind_and_the_users_error_is_the_users(where):
    model = make_model()
    if where in ("forward", "backward"):
        model.insert(5, Broken() if where == "forward" else BrokenInBackward())
    optimizer = sgd(model)
    probe = Probe(model, optimizer)
    before = hooks_of(model, optimizer)

    def refuse(*_):
        raise KeyError("broken")

    def run():
        with probe:
            handle = optimizer.register_step_pre_hook(refuse) if where == "optimizer" else None
            try:
                take_step(model, optimizer)
            finally:
                if handle is not None:
                    handle.remove()
            if where == "after":
                raise KeyError("broken")

    if where == "nowhere":
        run()
    else:
        with pytest.raises(KeyError, match="broken"):
            run()
        with pytest.raises(RuntimeError, match="no step was measured"):
            _ = probe.record
    assert hooks_of(model, optimizer) == before
    copy.deepcopy(model)


def test_after_an_exception_the_same_probe_measures_the_next_step():
    model = make_model()
    optimizer = sgd(model)
    probe = Probe(model, optimizer, observations=80, batch_elements=1)
    with pytest.raises(RuntimeError, match="shapes"), probe:
        take_step(model, optimizer, torch.randn(40, 5))
    with probe:
        take_step(model, optimizer)
    assert probe.record.step == 0
    assert probe.record.window_fill.tolist() == [0.5, 0.5]
    assert set(probe.record.layer_state.tolist()) == {LayerState.OK}


def test_micro_batches_are_one_step():
    model = make_model()
    optimizer = sgd(model)
    batches, losses = torch.randn(4, 10, 4), []
    with Probe(model, optimizer, observations=40, batch_elements=40) as probe:
        for batch in batches:
            loss = model(batch).square().mean() / 4
            losses.append(loss.item())
            loss.backward()
        optimizer.step()
    assert probe.record.window_fill.tolist() == [1.0, 1.0]
    assert probe.record.loss == pytest.approx(sum(losses))


def test_two_optimizers_of_one_model_are_one_record():
    model = make_model()
    optimizers = [sgd(model[0]), torch.optim.Adam(model[3:].parameters(), lr=0.01)]
    with Probe(model, optimizers) as probe:
        model(torch.randn(8, 4)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert probe.record.optimizers == (0, 1)
    assert probe.record.learning_rates == (0.1, 0.01)
    assert set(probe.record.layer_state.tolist()) == {LayerState.OK}
    assert (probe.record.metrics["update_ratio"] > 0).all()
    assert [entry.layers for entry in probe.info.optimizers] == [("0",), ("3", "5")]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("overflow", [False, True])
def test_a_gradient_scaler_is_taken_out_of_the_numbers(fused, overflow):
    model = make_model()
    plain = copy.deepcopy(model)
    x = torch.randn(40, 4)
    expected = Probe(plain, optimizer := torch.optim.Adam(plain.parameters(), lr=1e-3, fused=fused))
    torch.manual_seed(3)
    with expected:
        take_step(plain, optimizer, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.manual_seed(3)
    with Probe(model, optimizer) as probe:
        loss = model(x).square().mean() * (math.inf if overflow else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    if overflow:
        assert all(math.isnan(ratio) or ratio == 0.0 for ratio in probe.record.metrics["update_ratio"])
        assert LayerState.OK not in probe.record.layer_state.tolist()
        return
    for metric in ("grad_norm", "grad_rms", "update_ratio", "weight_rms"):
        assert probe.record.metrics[metric] == pytest.approx(expected.record.metrics[metric], rel=1e-3), metric
    assert not probe.record.skipped


def test_a_model_is_given_back_as_it_was_and_can_be_saved(tmp_path):
    model = make_model()
    with Probe(model, optimizer := sgd(model)):
        take_step(model, optimizer)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert again.state_dict().keys() == model.state_dict().keys()
