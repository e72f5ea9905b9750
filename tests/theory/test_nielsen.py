"""Nielsen, Neural Networks and Deep Learning, chapter 5: the gradient of each layer's biases before training."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from theory.published import agrees, percent, show
from torch import nn
from torch.nn import functional

from lightning_gradwatch import Probe

pytestmark = pytest.mark.judges

PUBLISHED = {
    2: (0.0657, 0.3092),
    3: (0.0118, 0.0600, 0.2831),
    4: (0.00298, 0.0171, 0.0695, 0.2851),
}
SEEDS = 500


class Bias(nn.Module):
    """Biases as a layer of their own, so that their gradient, the mean δ over the images, has a reading of its own."""

    def __init__(self, units):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(units))

    def forward(self, z):
        return z + self.bias


@pytest.fixture(scope="module")
def images():
    """A thousand digits as Nielsen's are: 28 x 28, between 0 and 1; and their labels, one-hot."""
    digits = load_digits()
    small = torch.tensor(digits.images[:1000, None] / 16, dtype=torch.float32)
    large = functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    return large.flatten(1), functional.one_hot(torch.tensor(digits.target[:1000])).float()


def bias_gradients(hidden, images):
    """Return the norms of each hidden layer's bias gradients, one row a seed."""
    x, y = images
    sizes = [784, *[30] * hidden, 10]
    model = nn.Sequential()
    for inputs, units in itertools.pairwise(sizes):
        model.extend([nn.Linear(inputs, units, bias=False), Bias(units), nn.Sigmoid()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, rows = Probe(model, optimizer), []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0)
        with probe:
            loss = functional.binary_cross_entropy(model(x), y, reduction="sum") / len(x)
            loss.backward()
            optimizer.step()
        norms = dict(zip(probe.info.names("grad_norm"), probe.record.metrics["grad_norm"], strict=True))
        rows.append([norms[f"{3 * layer + 1}"] for layer in range(hidden)])
    return np.array(rows)


@pytest.mark.slow
def test_the_speeds_of_learning_of_chapter_5_are_such_as_one_seed_gives(images):
    gains = []
    for hidden, published in PUBLISHED.items():
        readings = bias_gradients(hidden, images)
        gains.append(np.log(readings[:, :-1] / readings[:, 1:]).mean())
        lowest, highest = np.quantile(readings, [0.025, 0.975], axis=0)
        for layer, value in enumerate(published):
            # The book has one seed, which must be such as ours are.
            what = f"Nielsen, {hidden} hidden layers, ‖∂C/∂b‖ of layer {layer + 1} (median of {SEEDS} seeds)"
            band = f"95 % of seeds: {lowest[layer]:.3g} to {highest[layer]:.3g}"
            line = show(what, np.median(readings[:, layer]), value, band)
            assert lowest[layer] <= value <= highest[layer], line
    factors = [low / high for row in PUBLISHED.values() for low, high in itertools.pairwise(row)]
    published = math.exp(np.log(factors).mean())
    reading = math.exp(np.average(gains, weights=[len(row) - 1 for row in PUBLISHED.values()]))
    agrees("Nielsen, gain a layer", reading, published, percent(10))
