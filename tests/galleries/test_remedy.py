"""Each kind of action does to a net what it says, and the remedies of some ill runs make them learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from benchmarks.galleries import remedy
from benchmarks.galleries.cases import CASES
from benchmarks.galleries.judge import judge
from benchmarks.galleries.remedy import NotApplicableError, try_remedy
from benchmarks.galleries.runner import run
from benchmarks.galleries.training import prepare
from lightning_gradwatch.judge.remedies import Prescription
from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.record.finding import Action, Remedy

SITES = tuple(f"net.blocks.{place}.activation" for place in range(3))
LAYERS = tuple(f"net.blocks.{place}.layer" for place in range(3))


@pytest.fixture
def module():
    return prepare(CASES["small-data/wine"], seed=0).module


def apply(module, kind, targets=(), **arguments):
    return remedy._apply(module, Action(kind, targets, tuple(arguments.items())))


def change(case, kind, **arguments):
    return remedy._OF_CASE[kind](case, **arguments)


def test_an_activation_is_replaced_where_it_stands(module):
    assert apply(module, "replace_activation", SITES[:2], **{"with": "LeakyReLU"}) == []
    assert [type(block.activation) for block in module.net.blocks] == [nn.LeakyReLU, nn.LeakyReLU, nn.Tanh]


def test_the_function_that_an_encoder_layer_holds_is_replaced():
    module = prepare(CASES["attention/post-norm-digits"], seed=0).module
    assert apply(module, "replace_activation", ("net.layers.0:relu",), **{"with": "SiLU"}) == []
    assert module.net.layers[0].activation is nn.functional.silu


def test_layers_are_initialised_by_the_method_that_is_named(module):
    assert apply(module, "initialize", LAYERS[1:2], method="orthogonal_", gain=2.0, bias=0.5) == []
    layer = module.net.blocks[1].layer
    assert torch.allclose(layer.weight @ layer.weight.T, 4 * torch.eye(32), atol=1e-5)
    assert torch.equal(layer.bias, torch.full((32,), 0.5))


class Rooted(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.bias = nn.Parameter(torch.zeros(5, 5)), nn.Parameter(torch.zeros(5))


HELD = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(5, 5)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(5, 5), n_power_iterations=50),
    "weight norm in its old form": lambda: weight_norm(nn.Linear(5, 5)),
    "a layer": lambda: nn.Linear(5, 5),
    "parameters of the root": Rooted,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("make", HELD.values(), ids=HELD)
def test_what_a_remedy_initialises_is_there_whatever_holds_the_weights(make, inside):
    net = make()
    if inside and not isinstance(net, Rooted):
        net = nn.Sequential(net, nn.ReLU())
    with Probe(net, optimizer := torch.optim.SGD(net.parameters(), 0.0)) as probe:
        optimizer.step()
    cure = Prescription(probe.info)
    cure.initialize()
    (action,) = cure.remedy().actions
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(0)
    assert remedy._apply(net, replace(action, arguments=(("method", "orthogonal_"), ("bias", 0.5)))) == []
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[2] for name in changed} & {"weight", "original", "original1", "weight_v", "table"}
    if "parametrizations" in str(net.state_dict().keys()):
        weight = (net[0] if inside else net).weight
        assert torch.allclose(weight @ weight.T, torch.eye(5), atol=1e-3)


def test_each_of_n_skip_connections_adds_an_nth(module):
    x = torch.randn(5, 32)
    block = module.net.blocks[1]
    plain = block(x)
    assert apply(module, "add_skip_connections", SITES) == []
    assert torch.allclose(block(x), x + plain / 3)
    narrowing = module.net.blocks[0]
    assert narrowing(torch.randn(5, 13)).shape == (5, 32), "where the widths differ there is nothing to add"


@pytest.mark.parametrize("kind", ["LayerNorm", "BatchNorm"])
def test_a_norm_stands_before_the_function(module, kind):
    block = module.net.blocks[0]
    assert apply(module, "add_normalization", SITES[:1], **{"with": kind}) == []
    z = block.norm(block.layer(100 * torch.randn(64, 13)))
    mean = z.mean(1 if kind == "LayerNorm" else 0)
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-4)
    assert float(z.detach().std()) == pytest.approx(1, rel=0.1)


def test_a_norm_suits_a_convolution():
    module = prepare(CASES["dying/conv-rate"], seed=0).module
    apply(module, "add_normalization", SITES, **{"with": "LayerNorm"})
    apply(module, "add_normalization", SITES[:1], **{"with": "BatchNorm"})
    assert [type(block.norm) for block in module.net.blocks] == [nn.BatchNorm2d, nn.GroupNorm, nn.GroupNorm]
    assert module.net(torch.randn(3, 64)).shape == (3, 10)


def test_a_cut_graph_is_joined_and_a_whole_one_refuses():
    for name in ("cut/digits-narrow", "cut/second-tower"):
        module = prepare(CASES[name], seed=0).module
        assert apply(module, "reconnect_graph", ("net.blocks.0.layer",)) == []
        module.net(torch.randn(3, 64 if "digits" in name else 4)).sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        assert apply(module, "reconnect_graph", ()) == ["reconnect_graph: the graph is whole"]


def test_the_output_is_replaced():
    module = prepare(CASES["one-unit/softmax-cancer"], seed=0).module
    assert apply(module, "replace_output", **{"with": "Sigmoid"}) == []
    assert isinstance(module.net.output, nn.Sigmoid)


def test_what_a_net_has_no_place_for_is_told():
    module = prepare(CASES["recurrent/lstm-digits"], seed=0).module
    with pytest.raises(NotApplicableError, match="isn't in a block"):
        remedy._block(module, "net.cell")
    assert apply(module, "replace_output", **{"with": "Sigmoid"}) == [
        "replace_output: nothing follows the output layer"
    ]


def test_training_and_data_are_changed_as_asked():
    case = CASES["saturation/tanh-wine-raw"]
    assert change(case, "set_learning_rate", factor=0.1).training.rate == pytest.approx(0.1 * case.training.rate)
    assert change(case, "clip_gradients", norm=2.0).training.clip == 2.0
    assert change(case, "set_precision", to="bf16-mixed").training.precision == "bf16-mixed"
    assert change(case, "normalize_inputs").data.inputs == "standard"
    assert change(CASES["targets/sines-raw-momentum"], "normalize_targets").data.targets == "standard"
    half = change(CASES["half-precision/mixed-small-loss"], "use_gradient_scaler").training
    assert (half.precision, half.scaler) == ("16-mixed", True)


def test_a_remedy_is_applied_as_a_whole_and_what_it_cannot_do_is_listed():
    case = CASES["vanishing-activation/sigmoid-8-iris"]
    sites = tuple(f"net.blocks.{place}.activation" for place in range(8))
    layers = tuple(f"net.blocks.{place}.layer" for place in range(8))
    trial = try_remedy(
        case,
        0,
        Remedy(
            text="",
            actions=(
                Action("replace_activation", sites, (("with", "ReLU"),)),
                Action("initialize", layers, (("method", "kaiming_normal_"), ("bias", 0.0))),
                Action("trace_gradient"),
            ),
        ),
    )
    assert trial.outcome.learned
    assert trial.refused == ("trace_gradient: nothing that a program could do",)


@pytest.mark.slow
@pytest.mark.judges
@pytest.mark.parametrize(
    "name",
    ["vanishing-start/tanh-8-small-sgd", "vanishing-activation/sigmoid-8-sgd", "dying/bias-3-wine", "cut/spirals"],
)
def test_a_run_learns_with_the_remedy_of_its_root_finding(name, tmp_path):
    run(CASES[name], 0, tmp_path)
    judged = judge(name, 0, tmp_path)
    assert judged.ill
    assert judged.root is not None
    assert try_remedy(judged.case, 0, judged.root.remedy).outcome.learned
