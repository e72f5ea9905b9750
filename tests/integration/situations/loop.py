"""Situations of the loop: precision, accumulation, clipping, optimizers and who steps them when."""

from __future__ import annotations

import torch
from integration.nets import Classifier, Everything, Gan, Penalized, batches, relu_net, vanishing_net
from integration.situation import Situation
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.plugins import MixedPrecision
from torch.nn import functional as F

from lightning_gradwatch import LayerState

SITES = ("net.1", "net.3")  # of `relu_net`
EVERYTHING = ("relu@net.norm", "relu@net.second", ":tanh", ":sigmoid", ":gelu", ":silu", ":leaky_relu")
EVERYTHING = tuple(f"net.{name}" if not name.startswith(":") else f"net{name}" for name in EVERYTHING)
GAN = ("generator.1", "discriminator.1", ":softplus")
NON_FINITE = (LayerState.OK, LayerState.NON_FINITE)


def everything(make_optimizer=None):
    return lambda: Classifier(Everything(), make_optimizer)


def small(make_optimizer=None):
    return lambda: Classifier(relu_net(), make_optimizer)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def adamw_fused(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, fused=True)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


def searches_lines(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=2, line_search_fn="strong_wolfe")


def one_batch():
    """All data in each step: LBFGS takes a curvature from two steps' gradients, and diverges where batches differ."""
    return batches(1, 24)


def scaled(scale=1024.0, **settings):
    """Half precision with a real scaler; ``precision="16-mixed"`` alone becomes bf16 on a CPU."""
    scaler = lambda: torch.amp.GradScaler("cpu", init_scale=scale, **settings)  # noqa: E731 - a new one each fit
    return lambda: [MixedPrecision("16-mixed", "cpu", scaler=scaler())]


class Manual(Classifier):
    """Steps by hand."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.step(optimizer, batch_idx)

    def step(self, optimizer, batch_idx):
        optimizer.step()
        optimizer.zero_grad()


class ClipsByHand(Manual):
    def step(self, optimizer, batch_idx):
        self.unclipped = {id(each): each.grad.clone() for each in self.parameters()}
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
        super().step(optimizer, batch_idx)


class UnscalesByHand(Manual):
    """For an optimizer that would do it by itself."""

    def step(self, optimizer, batch_idx):
        self.trainer.precision_plugin.scaler.unscale_(optimizer.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 10.0)
        super().step(optimizer, batch_idx)


class StepsEverySecond(Manual):
    """Accumulates by hand."""

    def step(self, optimizer, batch_idx):
        if batch_idx % 2:
            super().step(optimizer, batch_idx)


class ClosesByHand(Manual):
    """Hands the optimizer a closure."""

    def training_step(self, batch, batch_idx):
        def closure():
            loss = Classifier.training_step(self, batch, batch_idx)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            return loss

        self.optimizers().step(closure)


class Alternates(Gan):
    """Trains one net a batch, and toggles what requires gradients, as Lightning's documentation has it."""

    def training_step(self, batch, batch_idx):
        which = batch_idx % 2
        optimizer = self.optimizers()[which]
        real, _ = batch
        self.toggle_optimizer(optimizer)
        score = self.discriminator(self.generator(torch.randn(len(real), 4)))
        self.manual_backward(F.softplus(score if which else -score).mean())
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)


class LeavesOut(Classifier):
    """Its second batch has no loss."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss


class CutsShort(Classifier):
    """Ends its second epoch early."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if (self.current_epoch, batch_idx) == (1, 2) else None


class ReturnsMore(Classifier):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "size": len(batch[0])}


class Groups(Classifier):
    """Two groups with learning rates and a schedule of their own, which starts at 0."""

    def configure_optimizers(self):
        early, late = [*self.net[:2].parameters()], [*self.net[2:].parameters()]
        optimizer = torch.optim.AdamW([{"params": early, "lr": 0.001}, {"params": late}], lr=0.01)
        warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm, "interval": "step"}}


SITUATIONS = {
    "plain": Situation(make=everything(), sites=EVERYTHING),
    "adam": Situation(make=everything(adam), sites=EVERYTHING),
    "adamw-fused": Situation(make=everything(adamw_fused), sites=EVERYTHING),
    "momentum": Situation(make=everything(momentum), sites=EVERYTHING),
    "vanishing": Situation(
        make=lambda: Classifier(vanishing_net()),
        settings={"max_steps": 20},
        steps=20,
        sites=tuple(f"net.{place}" for place in range(1, 27, 2)),
        zeros=("update_ratio",),
    ),
    # -- precision
    "64-true": Situation(make=everything(adam), settings={"precision": "64-true"}, sites=EVERYTHING),
    "bf16-mixed": Situation(make=everything(adam), settings={"precision": "bf16-mixed"}, sites=EVERYTHING),
    "bf16-true": Situation(make=everything(), settings={"precision": "bf16-true"}, sites=EVERYTHING),
    "16-true": Situation(make=everything(), settings={"precision": "16-true"}, sites=EVERYTHING),
    "fp16-scaler": Situation(make=everything(), settings={"plugins": scaled()}, sites=EVERYTHING),
    "fp16-scaler-fused": Situation(make=everything(adamw_fused), settings={"plugins": scaled()}, sites=EVERYTHING),
    "fp16-scaler-clipping": Situation(
        make=everything(adam), settings={"plugins": scaled(), "gradient_clip_val": 0.05}, sites=EVERYTHING
    ),
    "fp16-scaler-accumulation": Situation(
        make=everything(adam),
        settings={"plugins": scaled(growth_interval=2), "accumulate_grad_batches": 2, "max_steps": 5},
        sites=EVERYTHING,
    ),
    # So large a scale that the first steps overflow and are skipped.
    "fp16-scaler-skips": Situation(
        make=everything(),
        settings={"plugins": scaled(2.0**27), "max_steps": 16},
        steps=16,
        sites=EVERYTHING,
        states=dict.fromkeys(("net.first", "net.norm", "net.second", "net.gate", "net.last"), NON_FINITE),
    ),
    "fp16-scaler-fused-skips": Situation(
        make=everything(adamw_fused),
        settings={"plugins": scaled(2.0**27), "max_steps": 16},
        steps=16,
        sites=EVERYTHING,
        states=dict.fromkeys(("net.first", "net.norm", "net.second", "net.gate", "net.last"), NON_FINITE),
    ),
    "fp16-scaler-manual": Situation(make=lambda: Manual(relu_net()), settings={"plugins": scaled()}, sites=SITES),
    "fp16-scaler-unscaled-by-hand": Situation(
        make=lambda: UnscalesByHand(relu_net(), adamw_fused), settings={"plugins": scaled()}, sites=SITES
    ),
    # -- accumulation, clipping
    "accumulation": Situation(
        make=everything(adam),
        settings={"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
        data=lambda: batches(4, shuffle=True),
        sites=EVERYTHING,
    ),
    "last-window-partial": Situation(make=everything(), settings={"accumulate_grad_batches": 2}, sites=EVERYTHING),
    "accumulation-changes": Situation(
        make=everything(),
        settings={"callbacks": lambda: [GradientAccumulationScheduler({0: 1, 1: 2})]},
        sites=EVERYTHING,
    ),
    "clipping-by-norm": Situation(make=everything(), settings={"gradient_clip_val": 0.05}, sites=EVERYTHING),
    "clipping-by-value": Situation(
        make=everything(),
        settings={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        sites=EVERYTHING,
    ),
    "gradient-penalty": Situation(make=lambda: Penalized(relu_net()), sites=SITES),
    # -- optimizers, and who steps them
    "lbfgs": Situation(make=small(lbfgs), data=one_batch, sites=SITES),
    "lbfgs-line-search": Situation(make=small(searches_lines), data=one_batch, sites=SITES),
    "adafactor": Situation(make=small(lambda parameters: torch.optim.Adafactor(parameters, lr=0.01)), sites=SITES),
    "rprop": Situation(make=small(lambda parameters: torch.optim.Rprop(parameters, lr=0.01)), sites=SITES),
    "groups-and-warm-up": Situation(make=lambda: Groups(relu_net()), sites=SITES, zeros=("update_ratio",)),
    "gan": Situation(make=Gan, settings={"max_steps": 10}, sites=(*GAN, ":softplus#2", ":softplus#3")),
    "alternating": Situation(
        make=Alternates,
        sites=GAN,
        states=dict.fromkeys(
            ("generator.0", "generator.2", "discriminator.0", "discriminator.2"),
            (LayerState.OK, LayerState.UNMEASURED),
        ),
    ),
    "manual": Situation(make=lambda: Manual(relu_net(), adam), sites=SITES),
    "manual-clipping": Situation(make=lambda: ClipsByHand(relu_net()), sites=SITES),
    "manual-accumulation": Situation(
        make=lambda: StepsEverySecond(relu_net()),
        data=lambda: batches(4, shuffle=True),
        steps=10,
        records=5,
        sites=SITES,
    ),
    "manual-closure": Situation(make=lambda: ClosesByHand(relu_net(), adam), sites=SITES),
    "manual-lbfgs": Situation(make=lambda: ClosesByHand(relu_net(), lbfgs), data=one_batch, sites=SITES),
    "a-batch-without-a-loss": Situation(
        make=lambda: LeavesOut(relu_net(), momentum),
        sites=SITES,
        states=dict.fromkeys(("net.0", "net.2", "net.4"), (LayerState.OK, LayerState.NONE)),
        zeros=("update_ratio",),
    ),
    "an-epoch-cut-short": Situation(make=lambda: CutsShort(relu_net()), settings={"max_epochs": 2}, sites=SITES),
    "a-dictionary-with-the-loss": Situation(make=lambda: ReturnsMore(relu_net()), sites=SITES),
    "anomaly-detection": Situation(make=everything(), settings={"detect_anomaly": True}, sites=EVERYTHING),
}
