"""What a program can do of a remedy: to a module, and to a copy of it that is trained again."""

from __future__ import annotations

import pytest
import torch
from integration.nets import pl
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_gradwatch import NotApplicableError, apply_action, check_training
from lightning_gradwatch.record.finding import Action

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()


class TestApplyAction:
    def test_a_function_takes_the_place_of_another(self):
        net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Sigmoid()))
        apply_action(net, Action("replace_activation", ("1.0",), (("with", "ReLU"),)))
        assert isinstance(net[1][0], nn.ReLU)

    def test_an_encoder_layer_takes_it_for_its_own(self):
        layer = nn.TransformerEncoderLayer(4, 2, 8, activation="relu")
        net = nn.ModuleDict({"a": layer})
        apply_action(net, Action("replace_activation", ("a:relu",), (("with", "GELU"),)))
        assert layer.activation is F.gelu

    @pytest.mark.parametrize("site", ["net:relu", "gone", "net.0.weight"])
    def test_what_is_no_module_is_refused(self, site):
        net = nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 2))})
        with pytest.raises(NotApplicableError, match=r"called in forward|there is no module"):
            apply_action(net, Action("replace_activation", (site,), (("with", "ReLU"),)))

    def test_weights_start_anew_and_biases_as_they_are_told(self):
        net = nn.Sequential(nn.Linear(200, 100))
        apply_action(net, Action("initialize", ("0",), (("method", "kaiming_normal_"), ("gain", 3.0), ("bias", 0.5))))
        assert float(net[0].weight.detach().std()) == pytest.approx(3 * (2 / 200) ** 0.5, rel=0.05)
        assert (net[0].bias == 0.5).all()

    def test_a_parametrized_weight_is_assigned(self):
        net = nn.Sequential(parametrizations.weight_norm(nn.Linear(50, 40)))
        apply_action(net, Action("initialize", ("0",), (("method", "kaiming_normal_"),)))
        assert float(net[0].weight.detach().std()) == pytest.approx((2 / 50) ** 0.5, rel=0.1)

    def test_a_single_parameter_starts_anew_and_its_neighbours_stay(self):
        layer = nn.Linear(50, 40)
        layer.a, layer.gate = nn.Parameter(torch.zeros(8, 50)), nn.Parameter(torch.zeros(4))
        before = layer.weight.detach().clone()
        net = nn.ModuleDict({"net": layer})
        apply_action(net, Action("initialize", ("net.a",), (("method", "xavier_uniform_"), ("gain", 2.0))))
        assert float(layer.a.detach().std()) == pytest.approx(2 * (2 / 58) ** 0.5, rel=0.1)
        assert torch.equal(layer.weight, before)
        with pytest.raises(NotApplicableError, match=r"xavier_uniform_ can't fill net\.gate"):
            apply_action(net, Action("initialize", ("net.gate",), (("method", "xavier_uniform_"),)))
        apply_action(net, Action("initialize", ("net.gate",), (("method", "normal_"),)))
        assert layer.gate.detach().abs().min() > 0

    @pytest.mark.parametrize("kind", ["remove_output", "remove_normalization"])
    def test_a_module_goes(self, kind):
        net = nn.Sequential(nn.Linear(2, 2), nn.Softmax(1))
        apply_action(net, Action(kind, ("1",)))
        assert isinstance(net[1], nn.Identity)

    def test_what_was_left_in_evaluation_mode_trains(self):
        net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
        apply_action(net, Action("set_training_mode", ("",)))
        assert all(each.training for each in net.modules())

    @pytest.mark.parametrize(
        "action", [Action("zero_gradients"), Action("reconnect_graph", ("0",)), Action("clip_gradients"), Action("new")]
    )
    def test_what_is_no_modules_says_why(self, action):
        with pytest.raises(NotApplicableError, match=r"code|training"):
            apply_action(nn.Linear(1, 1), action)


class Net(pl.LightningModule):
    def __init__(self, *last, rate=0.3, manual=False, scheduled=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4), *last)
        self.rate, self.scheduled = rate, scheduled
        self.automatic_optimization = not manual

    def training_step(self, batch, _):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)  # and nobody empties the gradients
        self.optimizers().step()
        return None

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate)
        if not self.scheduled:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def batches():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)


@pytest.mark.judges
class TestTrials:
    def test_a_remedy_that_works_is_seen_to(self):
        net = Net(nn.Softmax(1), nn.Identity(), rate=0.05)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        report = check_training(net, batches(), max_steps=64, ignore=("GW3",), try_remedies=True)
        trial = report.trial
        if trial is None:  # it learned all the same
            pytest.fail(str(report))
        assert [action.kind for action in trial.applied] == ["remove_output"]
        assert trial.works is True
        assert trial.loss_after < trial.loss_before
        assert "It works: after as many steps the loss is" in " ".join(str(report).split())
        assert isinstance(net.net[3], nn.Softmax)  # it was a copy
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_what_has_to_be_done_in_the_code_is_said(self):
        report = check_training(Net(manual=True, rate=3.0), batches(), try_remedies=True)
        assert report.trial.code == "GW502"
        assert report.trial.works is None
        assert "wasn't tried: nothing of it can be done by a program. To be done in your code" in " ".join(
            str(report).split()
        )

    @pytest.mark.parametrize("scheduled", [False, True])
    def test_a_rate_is_changed_for_the_copy_alone(self, scheduled):
        net = Net(rate=300.0, scheduled=scheduled)
        report = check_training(net, batches(), try_remedies=True)
        kinds = [action.kind for action in report.trial.applied]
        assert "set_learning_rate" in kinds
        assert report.trial.loss_after < report.trial.loss_before or not report.trial.loss_before < 1e30
        assert net.rate == 300.0

    def test_a_healthy_net_has_no_trial(self):
        assert check_training(Net(), batches(), try_remedies=True).trial is None

    def test_a_module_that_cant_be_copied_is_said(self):
        net = Net(rate=300.0)
        net.held = (each for each in ())  # a generator
        report = check_training(net, batches(), try_remedies=True)
        assert "can't be copied" in report.trial.error
        assert report.trial.works is None

    def test_the_switch_is_a_switch(self):
        with pytest.raises(TypeError, match=r"try_remedies='yes'\): must be True or False"):
            check_training(Net(), batches(), try_remedies="yes")
