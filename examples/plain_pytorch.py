"""GradWatch without Lightning: measure single steps of a plain PyTorch loop with Probe, and judge them."""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_gradwatch import DEFAULT_RULES, Probe, Run, evaluate

EVERY = 10


def main() -> None:
    """Train, look, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32)
    inputs = (inputs - inputs.mean()) / inputs.std()
    labels = torch.tensor(digits.target)

    net = nn.Sequential(
        nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    probe = Probe(net, optimizer)
    records = []

    def train(batch: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        return loss

    for step in range(steps):
        batch = torch.randint(0, len(inputs), (64,))
        if step % EVERY:
            train(batch)
            continue
        with probe:  # around the whole step; outside of it nothing is left on the net
            train(batch)
        records.append(probe.record)

    info, last = probe.info, records[-1]
    print("layer       gradient norm  update ratio")
    for column, layer in enumerate(info.layers):
        print(
            f"{layer.name:<10} {last.metrics['grad_norm'][column]:>14.3g} {last.metrics['update_ratio'][column]:>13.3g}"
        )
    print("\nsite        signal norm    saturated units")
    for column, site in enumerate(info.sites):
        saturated = last.metrics["saturated_fraction"][column]  # NaN until 256 examples were seen
        print(f"{site.name:<10} {last.metrics['signal_norm'][column]:>14.3g} {saturated:>16.0%}")

    findings = evaluate(Run(path=Path(), info=info, infos={info.layout: info}, records=records), DEFAULT_RULES)
    print("\nfindings:", ", ".join(f"{finding.code} {finding.name}" for finding in findings) or "none")


if __name__ == "__main__":
    main()
