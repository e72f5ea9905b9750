"""What a program can do of a remedy: to a module, and to a copy of it that is trained again."""

from __future__ import annotations

import linecache
import re
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from integration.nets import pl
from tell.samples import make_finding
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_gradwatch import NotApplicableError, apply_action, check_training
from lightning_gradwatch.record.finding import Action, Remedy, Severity
from lightning_gradwatch.testing.trials import Prepared, trial_of, trial_text

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

    @pytest.mark.parametrize(
        ("held", "kind"),
        [
            ([nn.Linear(2, 2)], nn.ModuleList),
            ((nn.Linear(2, 2), [nn.Linear(2, 2)]), nn.ModuleList),
            ({"a": nn.Linear(2, 2)}, nn.ModuleDict),
            ([torch.ones(2, requires_grad=True)], nn.ParameterList),
            ({"a": torch.ones(2, requires_grad=True)}, nn.ParameterDict),
            (torch.ones(2, requires_grad=True), nn.Parameter),
        ],
    )
    def test_what_a_plain_attribute_holds_becomes_a_part_of_the_module(self, held, kind):
        net = nn.Sequential(nn.Identity())
        net[0].held = held
        apply_action(net, Action("register_parameters", ("0.held",)))
        assert type(net[0].held) is kind
        entries = [name for name, _ in net.named_parameters()]
        assert entries
        assert all(name.startswith("0.held") for name in entries)

    @pytest.mark.parametrize("held", [{1: nn.Linear(2, 2)}, object(), [nn.Linear(2, 2), 3], None])
    def test_what_torch_has_no_counterpart_for_is_refused(self, held):
        net = nn.Identity()
        net.held = held
        with pytest.raises(NotApplicableError, match=r"held is (a \w+|gone), for which torch has no counterpart"):
            apply_action(net, Action("register_parameters", ("held",)))

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


class Listed(Net):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(6, 3), nn.Linear(3, 1)]
        self.net = nn.Linear(1, 4)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def training_step(self, batch, _):
        x = batch[0]
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return F.cross_entropy(self.net(x), batch[1])


class Module(pl.LightningDataModule):
    def __init__(self, loader):
        super().__init__()
        self.loader = loader

    def train_dataloader(self):
        return self.loader


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

    def test_gradients_are_emptied_for_the_copy_and_the_line_that_steps_is_said(self):
        report = check_training(Net(manual=True, rate=0.5), batches(), max_steps=48, try_remedies=True)
        trial = report.trial
        assert trial.code == "GW502"
        assert trial.works is True
        assert not any(finding.code == "GW502" for finding in trial.findings)
        (action,) = trial.applied
        assert action.in_code
        assert re.fullmatch(r"training_step \(test_remedies\.py:\d+\)", action.where)
        assert (
            linecache.getline(__file__, int(action.where.partition(":")[2][:-1])).strip() == "self.optimizers().step()"
        )
        assert f"In your code: zero_gradients(SGD) in {action.where}" in " ".join(str(report).split())

    def test_a_list_of_layers_becomes_a_part_of_the_copy(self):
        net = Listed()
        trial = check_training(net, batches(), max_steps=48, try_remedies=True).trial
        assert [action.kind for action in trial.applied] == ["register_parameters"]
        assert trial.works is True
        assert trial.applied[0].where.startswith("__init__ (test_remedies.py:")
        assert isinstance(net.layers, list)  # it was a copy

    @pytest.mark.parametrize("given", ["loader", "module", "datamodule"])
    def test_batches_of_one_sample_are_put_together(self, given, tmp_path):
        sizes = []

        class Sized(Net):
            def training_step(self, batch, batch_idx):
                sizes.append(len(batch[0]))
                return super().training_step(batch, batch_idx)

        module = Sized()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=1)
        data = {"loader": loader, "module": None, "datamodule": Module(loader)}[given]
        if given == "module":
            module.train_dataloader = lambda: loader
        prepared = Prepared(module, (Action("larger_batch", ("net.1",)),))
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_steps=6, max_epochs=9, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        trainer.fit(module, prepared.batches(data))
        assert sizes == [16] * 6
        if given == "datamodule":
            assert data.train_dataloader() is loader  # the user's own is as it was

    def test_entries_of_batches_are_put_together_one_by_one(self):
        pair = namedtuple("pair", "x y")  # noqa: PYI024 - as users' code has them
        batches = [{"a": torch.full((1, 2), n), "b": [pair(torch.tensor(n), "name")]} for n in range(33)]
        loader = Prepared(Net(), (Action("larger_batch"),)).batches(
            torch.utils.data.DataLoader(batches, batch_size=None)
        )
        assert len(loader) == 2
        first, second = loader
        assert torch.equal(first["a"][:, 0], torch.arange(16))
        assert torch.equal(second["b"][0].x, torch.arange(16, 32))
        assert second["b"][0].y == "name"
        assert isinstance(second["b"][0], pair)

    def test_several_loaders_are_not_put_together(self):
        with pytest.raises(NotApplicableError, match="several loaders"):
            Prepared(Net(), (Action("larger_batch"),)).batches({"a": batches()})

    def test_what_has_to_be_done_in_the_code_is_said(self):
        finding = make_finding(remedy=Remedy("", (Action("pack_sequences", ("lstm",)),)))
        trial = trial_of(finding, Net(), 1.0, lambda _: pytest.fail("nothing is to be trained"))
        assert trial.works is None
        assert trial_text(trial) == (
            f"The remedy of {finding.code} wasn't tried: nothing of it can be done by a program. "
            "In your code: pack_sequences(lstm): how sequences are handed over is in the code."
        )

    def test_which_of_two_optimizers_is_meant_isnt_guessed(self):
        class Two(Net):
            def __init__(self):
                super().__init__(manual=True)

            def configure_optimizers(self):
                return [torch.optim.SGD(self.net[place].parameters(), 0.1) for place in (0, 2)]

        module = Two()
        module.extra = nn.Linear(2, 2)
        module.trainer = SimpleNamespace(optimizers=module.configure_optimizers(), lr_scheduler_configs=[])
        prepared = Prepared(module, (Action("add_to_optimizer", ("extra",)),))
        prepared.start()
        assert prepared.applied == []
        assert prepared.refused[0][1] == "which of 2 optimizers is to hold them isn't known"

    def test_what_so_few_steps_leave_information_is_tried_and_said(self):
        report = check_training(Net(nn.Softmax(1), rate=0.05), batches(), max_steps=24, try_remedies=True)
        (finding,) = report.findings
        assert (finding.code, finding.severity) == ("GW501", Severity.INFO)
        assert report.ok
        assert [action.kind for action in report.trial.applied] == ["remove_output"]
        said = " ".join(str(report).split())
        assert "a warning once the loss has stood for 50 steps, for which max_steps=64 is enough" in said

    def test_nothing_waits_where_the_net_learns(self):
        report = check_training(Net(nn.Softmax(1), rate=3.0), batches(), try_remedies=True)
        assert [finding.severity for finding in report.findings] == [Severity.INFO]
        assert report.trial is None
        assert "may keep it from learning" not in " ".join(str(report).split())

    def test_a_function_in_forward_is_the_users_to_remove(self):
        class Fn(Net):
            def training_step(self, batch, _):
                return F.cross_entropy(torch.softmax(self.net(batch[0]), 1), batch[1])

        trial = check_training(Fn(rate=0.01), batches(), max_steps=24, try_remedies=True).trial
        ((action, why),) = trial.refused
        assert action.in_code
        assert linecache.getline(__file__, int(action.where.partition(":")[2][:-1])).count("torch.softmax") == 1
        assert why == ":softmax is a function that is called in forward"

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
