"""Compiled nets: nothing is compiled again for us, weights stay identical, and what isn't seen is said."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from integration.nets import Classifier, batches, relu_net, seed, trainer

from lightning_gradwatch import GradWatch

pytestmark = pytest.mark.slow


class Silent(Classifier):
    """Logs nothing: Lightning's own `log` can't be compiled here."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)


def fitted(folder, how, watch):
    """Train a net compiled in one of three ways; return its weights and how many graphs were compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    seed()
    module = Silent(relu_net())
    whole = module
    if how == "submodule":
        module.net = torch.compile(module.net, backend="aot_eager")
    elif how == "method":
        module.net.compile(backend="aot_eager")
    else:
        whole = torch.compile(module, backend="aot_eager")
    trainer(folder, *([watch] if watch else []), max_steps=6).fit(whole, batches())
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]), graphs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("how", ["submodule", "method", "whole"])
def test_nothing_is_compiled_again_and_weights_stay_identical(how, tmp_path):
    watch = GradWatch(every_n_steps=2)
    weights, graphs = fitted(tmp_path / "without", how, None)
    watched_weights, watched_graphs = fitted(tmp_path / "with", how, watch)
    assert torch.equal(weights, watched_weights)
    assert graphs == watched_graphs
    assert any("compiled" in entry.reason for entry in watch.coverage)
    if how != "whole":
        assert [(entry.name, entry.sites) for entry in watch.coverage] == [("net", 2)]
    assert [layer.name for layer in watch.info.layers] == ["net.0", "net.2", "net.4"]
    assert (watch.records[-1].layer_state == 1).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("how", ["submodule", "method", "whole"])
def test_eager_measured_steps_show_the_activations(how, tmp_path):
    watch = GradWatch(every_n_steps=2, compiled="eager")
    weights, _ = fitted(tmp_path / "without", how, None)
    watched_weights, _ = fitted(tmp_path / "with", how, watch)
    torch.testing.assert_close(weights, watched_weights)
    assert [site.name for site in watch.info.sites] == ["net.1", "net.3"]
    assert watch.coverage == ()
