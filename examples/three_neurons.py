"""A chain of three neurons: the chain rule by hand beside what GradWatch measures, and the two ways a gradient is lost.

Case 1: one derivative is exactly zero, so the weights before it never change.
Case 2: all derivatives are near zero, so the first weight changes too slowly to matter.
"""

import argparse
import math
import textwrap
from collections import OrderedDict

import torch
from torch import nn

from lightning_gradwatch import DEFAULT_RULES, Finding, Probe, VanishingGradient, evaluate

X, Y = 1.0, 1.0  # the one example: input and target
LEARNING_RATE = 1.0

# GW101 judges how the signal shrinks from site to site, for which it needs three hidden activation sites. This chain has
# two: its last neuron is the output. So we give it the plain threshold, to which each single early layer is held.
PLAIN_THRESHOLD = VanishingGradient(min_grad_rms=1e-5)


def chain(functions: list[nn.Module], weights: list[float], biases: list[float]) -> nn.Sequential:
    """Build x -> f1(w1 x + b1) -> f2(w2 a1 + b2) -> f3(w3 a2 + b3)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (function, weight, bias) in enumerate(zip(functions, weights, biases, strict=True), start=1):
        neuron = nn.Linear(1, 1)
        nn.init.constant_(neuron.weight, weight)
        nn.init.constant_(neuron.bias, bias)
        layers[f"neuron{number}"] = neuron
        layers[f"f{number}"] = function
    return nn.Sequential(layers)


def derivative(function: nn.Module, z: float) -> float:
    """Return f'(z), written down by hand."""
    if isinstance(function, nn.ReLU):
        return 1.0 if z > 0 else 0.0
    sigmoid = 1 / (1 + math.exp(-z))
    return sigmoid * (1 - sigmoid)


def by_hand(net: nn.Sequential) -> list[float]:
    """Return dL/dw1, dL/dw2 and dL/dw3 for L = (a3 - y)² / 2, with the factors of dL/dw1 printed."""
    neurons, functions = list(net[0::2]), list(net[1::2])
    inputs, slopes = [X], []
    print("  neuron           w           z        f(z)       f'(z)")
    for number, (neuron, function) in enumerate(zip(neurons, functions, strict=True), start=1):
        w, b = neuron.weight.item(), neuron.bias.item()
        z = w * inputs[-1] + b
        inputs.append(function(torch.tensor(z, dtype=torch.float64)).item())
        slopes.append(derivative(function, z))
        print(f"  {number} {type(function).__name__:<8} {w:>8.3g} {z:>11.4g} {inputs[-1]:>11.4g} {slopes[-1]:>11.4g}")
    delta = inputs[-1] - Y
    gradients = [0.0, 0.0, 0.0]
    for place in (2, 1, 0):
        delta *= slopes[place]  # now dL/dz of this neuron
        gradients[place] = delta * inputs[place]
        delta *= neurons[place].weight.item()
    w2, w3 = neurons[1].weight.item(), neurons[2].weight.item()
    factors = (inputs[-1] - Y, slopes[2], w3, slopes[1], w2, slopes[0], X)
    print("  dL/dw1 = (a3 - y) · f'(z3) · w3 · f'(z2) · w2 · f'(z1) · x")
    print(f"         = {' · '.join(f'{factor:.4g}' for factor in factors)} = {gradients[0]:.6g}")
    return gradients


def show(title: str, net: nn.Sequential, *, steps: int, plain_threshold: bool = False) -> tuple[Finding, ...]:
    """Train the chain on its one example, measure every step, and say what the rules found."""
    print(title)
    hand = by_hand(net)
    before = net[0].weight.item()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    x, y = torch.tensor([[X]]), torch.tensor([[Y]])
    probe = Probe(net, optimizer)
    records = []
    for _ in range(steps):
        with probe:
            optimizer.zero_grad()
            loss = (net(x) - y).square().sum() / 2
            loss.backward()
            optimizer.step()
        records.append(probe.record)

    first = records[0]
    print("  first step   |dL/dw| by hand     measured   update ratio |Δw|/|w|")
    for number, expected in enumerate(map(abs, hand)):
        measured = first.metrics["grad_rms"][number]  # one weight, so its root mean square is its size
        ratio = first.metrics["update_ratio"][number]
        print(f"    neuron {number + 1} {expected:>17.6g} {measured:>12.6g} {ratio:>23.3g}")
        assert math.isclose(measured, expected, rel_tol=1e-4), (measured, expected)
    after = net[0].weight.item()
    change = "the same, to the last bit" if after == before else f"{after:.6g} ({after / before - 1:+.2g} of it)"
    print(f"  w1 is {before:g}, and after {steps} steps {change}")

    rules = [PLAIN_THRESHOLD if plain_threshold and rule.code == "GW101" else rule for rule in DEFAULT_RULES]
    findings = evaluate(records, rules, info=probe.infos)
    for finding in findings:
        print(f"\n  {finding.code} {finding.name}, {finding.severity.label} since step {finding.first_step}")
        for text in (finding.message, finding.cause):
            print(textwrap.fill(text, 80, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    print()
    return findings


def main() -> None:
    """Show both cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps
    show(
        "Case 1: neuron 2 is a ReLU whose input is negative, so f'(z2) = 0",
        chain([nn.Sigmoid(), nn.ReLU(), nn.Sigmoid()], weights=[0.5, -2.0, 1.5], biases=[0.0, 0.0, -0.5]),
        steps=steps,
    )
    show(
        "Case 2: three sigmoids far out on their flat side, so every f'(z) is near 0",
        chain([nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()], weights=[0.5, 0.8, 1.5], biases=[-5.0, -5.0, -4.0]),
        steps=steps,
        plain_threshold=True,
    )


if __name__ == "__main__":
    main()
