"""Situations of parameters: who owns them, whether they are trained, and how they come to be."""

from __future__ import annotations

import warnings

import torch
from integration.nets import CLASSES, FEATURES, Classifier, FrozenEncoder, relu_net
from integration.situation import Situation
from integration.situations.loop import SITES, adam
from pytorch_lightning.callbacks import BackboneFinetuning, BaseFinetuning
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import LayerState

NONE = (LayerState.NONE,)
UNTRAINED = dict.fromkeys(SITES, "nothing before it is trained")


def trained_only(parameters):
    return torch.optim.SGD([parameter for parameter in parameters if parameter.requires_grad], lr=0.1)


def frozen():
    module = Classifier(relu_net(), trained_only)
    module.net[:3].requires_grad_(requires_grad=False)
    return module


def frozen_but_held():
    """Its optimizer holds the frozen parameters too, as most people write it."""
    module = Classifier(relu_net())
    module.net[:3].requires_grad_(requires_grad=False)
    return module


class FrozenNested(FrozenEncoder):
    """Padding takes torch's fused path through nested tensors."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2).requires_grad_(requires_grad=False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        padding = torch.zeros(len(x), 3, dtype=torch.bool)
        padding[::2, -1] = True
        self.encoder.eval()
        features = self.encoder(F.pad(x, (0, 2)).unsqueeze(1).expand(-1, 3, -1), src_key_padding_mask=padding)
        return F.cross_entropy(self.net(features.sum(1)), y)


class Backbone(Classifier):
    """A backbone that Lightning's own callback unfreezes in the second epoch."""

    def __init__(self):
        super().__init__()
        self.backbone, self.net = self.net[:4], self.net[4]

    def forward(self, x):
        return self.net(self.backbone(x))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class FreezesLater(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        pass

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.freeze(pl_module.net[0], train_bn=False)


class Unused(Classifier):
    """Has a layer that the forward pass leaves out, and one that the optimizer doesn't know."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(4, 4)
        self.unknown = nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        return self.unknown(self.net(x))

    def configure_optimizers(self):
        return torch.optim.SGD([*self.net.parameters(), *self.unused.parameters()], lr=0.1)


class Tokens(Classifier):
    """Words in, the next word out: an embedding whose weights may be the head's too."""

    def __init__(self, *, tied=False, sparse=False):
        super().__init__()
        self.embedding = nn.Embedding(10, 8, sparse=sparse)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 10)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.net(self.embedding(x)))


class TwoOptimizers(Tokens):
    """Sparse gradients have an optimizer of their own."""

    def __init__(self):
        super().__init__(sparse=True)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        rest = [*self.net.parameters(), *self.head.parameters()]
        return [torch.optim.SparseAdam(self.embedding.parameters(), lr=0.01), torch.optim.Adam(rest, lr=0.01)]


def tokens():
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 10, (24, 5), generator=generator)
    return DataLoader(TensorDataset(x[:, 0], x[:, 1]), 8)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.spectral = nn.Linear(FEATURES, 8, dtype=torch.complex64)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.spectral(torch.fft.fft(x)).abs() - 1.0))


class Direct(Classifier):
    """Owns parameters by itself, and in lists and dictionaries of them."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(FEATURES, 8) / 3)
        self.offset = nn.Parameter(torch.zeros(8))
        self.listed = nn.ParameterList([nn.Parameter(torch.randn(8, 8) / 3)])
        self.named = nn.ParameterDict({"out": nn.Parameter(torch.randn(8, CLASSES) / 3)})
        self.net = nn.Identity()

    def forward(self, x):
        h = torch.tanh(x @ self.matrix + self.offset)
        return F.relu(h @ self.listed[0]) @ self.named["out"]


class Empty(Classifier):
    """Has a parameter without entries, as a feature that is switched off leaves one."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0, 4))

    def forward(self, x):
        return self.net(x) + self.nothing.sum()


class LowRank(nn.Module):
    """A frozen matrix and a low-rank addition whose second factor starts at 0."""

    def __init__(self, inside, out):
        super().__init__()
        self.frozen = nn.Linear(inside, out).requires_grad_(requires_grad=False)
        self.lora_a = nn.Linear(inside, 2, bias=False)
        self.lora_b = nn.Linear(2, out, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x):
        return self.frozen(x) + self.lora_b(self.lora_a(x))


class Borrows(Classifier):
    """Its optimizer also holds a parameter that isn't the module's, and its loss uses it."""

    def __init__(self):
        super().__init__()
        self.__dict__["temperature"] = nn.Parameter(torch.ones(1, 1))

    def forward(self, x):
        return self.net(x) * self.temperature

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), self.temperature], lr=0.1)


def weight_norm():
    first, second = (
        parametrizations.weight_norm(nn.Linear(FEATURES, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
    )
    last = parametrizations.orthogonal(nn.Linear(8, CLASSES))
    return nn.Sequential(first, nn.ReLU(), second, nn.Tanh(), last)


def weight_norm_by_hook():
    """Torch's earlier way, which computes the weight in a hook of the module; deprecated, and still common in audio."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        first, last = nn.utils.weight_norm(nn.Linear(FEATURES, 8)), nn.utils.spectral_norm(nn.Linear(8, CLASSES))
    return nn.Sequential(first, nn.ReLU(), last)


def shared():
    linear = nn.Linear(8, 8)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), linear, nn.ReLU(), linear, nn.Tanh(), nn.Linear(8, CLASSES))


def later(*layers):
    """States of layers that are trained first or later only."""
    return dict.fromkeys(layers, (LayerState.OK, LayerState.FROZEN))


SITUATIONS = {
    "frozen": Situation(make=frozen, uncovered=UNTRAINED),
    "frozen-but-held": Situation(make=frozen_but_held, uncovered=UNTRAINED),
    "frozen-encoder": Situation(
        make=FrozenEncoder, sites=("net.1",), uncovered={"encoder": "nothing before it is trained"}
    ),
    "frozen-encoder-nested": Situation(
        make=FrozenNested, sites=("net.1",), uncovered={"encoder": "nothing before it is trained"}
    ),
    "unfrozen-later": Situation(
        make=Backbone,
        settings={"callbacks": lambda: [BackboneFinetuning(1, verbose=False)]},
        sites=("backbone.1", "backbone.3"),
    ),
    "frozen-later": Situation(
        make=lambda: Classifier(relu_net()),
        settings={"callbacks": lambda: [FreezesLater()]},
        sites=SITES,
        states=later("net.0"),
    ),
    "unused": Situation(
        make=Unused,
        sites=SITES,
        states={"unused": NONE, "unknown": (LayerState.UNMEASURED,)},
        uncovered={"unknown": "no optimizer holds"},
        zeros=("update_ratio",),
    ),
    "tied": Situation(make=lambda: Tokens(tied=True), data=tokens, sites=("net.1",)),
    "sparse": Situation(make=lambda: Tokens(sparse=True), data=tokens, sites=("net.1",)),
    "sparse-with-its-own-optimizer": Situation(
        make=TwoOptimizers, data=tokens, settings={"max_steps": 10}, sites=("net.1",)
    ),
    "complex": Situation(make=lambda: Classifier(Complex(), adam), sites=("net:relu",)),
    "direct": Situation(make=Direct, sites=(":tanh", ":relu")),
    "without-entries": Situation(make=Empty, sites=SITES),
    "borrowed": Situation(make=Borrows, sites=SITES),
    "low-rank": Situation(
        make=lambda: Classifier(nn.Sequential(LowRank(FEATURES, 8), nn.ReLU(), LowRank(8, CLASSES)), trained_only),
        sites=("net.1",),
        states=dict.fromkeys(("net.0.lora_a", "net.2.lora_a"), (LayerState.OK, LayerState.ZERO)),
        zeros=("grad_norm", "grad_rms", "update_ratio", "weight_rms"),
    ),
    "weight-norm": Situation(make=lambda: Classifier(weight_norm()), sites=SITES),
    "weight-norm-by-hook": Situation(make=lambda: Classifier(weight_norm_by_hook()), sites=("net.1",)),
    "shared": Situation(make=lambda: Classifier(shared()), sites=("net.1", "net.3", "net.5")),
    "lazy": Situation(
        make=lambda: Classifier(
            nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, CLASSES))
        ),
        sites=SITES,
    ),
    "another-dtype-inside": Situation(
        make=lambda: Classifier(nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), Wide(), nn.Linear(8, CLASSES))),
        sites=("net.1", "net.2:tanh"),
    ),
}


class Wide(nn.Module):
    """Computes in float64 inside of a float32 net."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8, dtype=torch.float64)

    def forward(self, x):
        return torch.tanh(self.inner(x.double())).float()
