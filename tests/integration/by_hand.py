"""The reference for several ranks: one process, the whole batch, autograd and numpy by hand."""

from __future__ import annotations

import math

import torch
from integration.nets import batches
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid)


def norm(tensors):
    return math.sqrt(sum(tensor.detach().double().square().sum().item() for tensor in tensors))


def rms(tensors):
    tensors = list(tensors)
    return norm(tensors) / math.sqrt(sum(tensor.numel() for tensor in tensors))


def train_by_hand(net, make_optimizer, *, steps, rows, clip=None, count=8, size=8):
    """Return what each step is, for a chain of layers and activation functions; `rows` rows of the data a step."""
    x, y = batches(count, size).dataset.tensors
    optimizer = make_optimizer(net.parameters())
    layers = {f"net.{name}": layer for name, layer in net.named_children() if list(layer.parameters())}
    found = []
    for step in range(steps):
        part = slice(step * rows % len(x), step * rows % len(x) + rows)
        h, sites = x[part], {}
        for name, layer in net.named_children():
            z, h = h, layer(h)
            if isinstance(layer, ACTIVATIONS):
                for tensor in (z, h):
                    tensor.retain_grad()
                sites[f"net.{name}"] = layer, z, h
        loss = F.cross_entropy(h, y[part])
        optimizer.zero_grad()
        loss.backward()
        before = {name: [each.detach().clone() for each in layer.parameters()] for name, layer in layers.items()}
        gradients = {name: [each.grad.clone() for each in layer.parameters()] for name, layer in layers.items()}
        total = norm(each for several in gradients.values() for each in several)
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        after = norm(each.grad for each in net.parameters())
        optimizer.step()
        found.append(
            {
                "loss": loss.item(),
                "global_grad_norm": total,
                "clip_factor": after / total if clip else math.nan,
                "layers": {name: _layer(before[name], gradients[name], layer) for name, layer in layers.items()},
                "sites": {name: _site(*site) for name, site in sites.items()},
                # As each of two ranks alone would have it, to which a sampler gives every second row.
                "dead_on_ranks": {
                    name: [(z[rank::2] <= 0).all(0).double().mean().item() for rank in range(2)]
                    for name, (layer, z, _) in sites.items()
                    if isinstance(layer, nn.ReLU)
                },
            }
        )
    return found


def _layer(before, gradients, layer):
    after = list(layer.parameters())
    matrices = [place for place, each in enumerate(before) if each.dim() > 1]
    return {
        "grad_norm": norm(gradients),
        "grad_rms": rms(gradients[place] for place in matrices),
        "weight_rms": rms(before[place] for place in matrices),
        "update_ratio": rms(after[place] - before[place] for place in matrices)
        / rms(before[place] for place in matrices),
    }


def _site(layer, z, a):
    inactive = z <= 0 if isinstance(layer, nn.ReLU) else torch.zeros_like(z, dtype=torch.bool)
    saturated = {nn.ReLU: None, nn.Tanh: z.abs() > 2, nn.Sigmoid: z.abs() > 4}[type(layer)]
    return {
        "signal_norm": norm([z.grad]),
        "activation_gain": norm([z.grad]) / norm([a.grad]),
        "arriving": norm([a.grad]),
        "inactive_share": (inactive if saturated is None else saturated).double().mean().item(),
        "dead_fraction": inactive.all(0).double().mean().item(),
        "saturated_fraction": math.nan
        if saturated is None
        else (saturated.double().mean(0) >= 0.95).double().mean().item(),
        "forward_rms": rms([a]),
    }
