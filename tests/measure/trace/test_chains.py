"""What is left of the signal over a loop that a pass turns several times: of each sequence by itself, by autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradwatch.measure.probe import Probe


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.rec, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.chains = []

    def turn(self, x, h):
        z = self.inp(x) + self.rec(h)
        if z.requires_grad:
            z.retain_grad()
        return z, torch.sigmoid(z)

    def encode(self, steps, h=None):
        """Turn over a sequence; each is noted as a chain of its own."""
        h = torch.zeros(len(steps[0]), 8) if h is None else h
        chain = []
        for x in steps:
            z, h = self.turn(x, h)
            chain.append(z)
        self.chains.append(chain)
        return h


def sequence(length=5):
    return torch.randn(length, 6, 4)


def one(net):
    return net.out(net.encode(sequence()))


def siamese(net):
    return net.out(net.encode(sequence(7)) - net.encode(sequence(7)))


def of_different_lengths(net):
    return net.out(net.encode(sequence(3)) * net.encode(sequence(9)).square())


def truncated(net):
    h, losses = None, []
    for _ in range(4):
        h = net.encode(sequence(), h)
        losses.append(net.out(h))
        h = h.detach()
    return torch.stack(losses)


def side_by_side(net):
    """Two sequences whose turns take turns."""
    chains = [], []
    states = [torch.zeros(6, 8)] * 2
    for one, other in zip(sequence(), sequence(), strict=True):
        for place, x in enumerate((one, other)):
            z, states[place] = net.turn(x, states[place])
            chains[place].append(z)
    net.chains += chains
    return net.out(states[0]) * net.out(states[1])


def goes_on(net):
    """A decoder that begins where the encoder ended is the same chain."""
    h = net.encode(sequence())
    last = net.encode(sequence(), h)
    net.chains[-2:] = [[*net.chains[-2], *net.chains[-1]]]
    return net.out(last)


def unread(net):
    """One of which only the middle is looked at has its end there."""
    chain, states, h = [], [], torch.zeros(6, 8)
    for x in sequence(6):
        z, h = net.turn(x, h)
        chain.append(z)
        states.append(h)
    net.chains.append(chain[:4])
    return net.out(states[3])


PASSES = [one, siamese, of_different_lengths, truncated, side_by_side, goes_on, unread]


def measured(net, forward, passes=1):
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.0))
    with probe:
        for _ in range(passes):
            forward(net).square().mean().backward()
        probe._optimizers[0].step()
    return probe.record


@pytest.mark.parametrize("forward", PASSES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("passes", [1, 2])
def test_what_is_left_of_the_signal_is_told_of_each_sequence_by_itself(forward, passes):
    torch.manual_seed(0)
    net = Loop()
    record = measured(net, forward, passes)
    first, last = (math.hypot(*(chain[end].grad.norm().item() for chain in net.chains)) for end in (0, -1))
    assert record.loop_attenuation == pytest.approx([first / last], rel=1e-5)
    assert record.loop_calls == pytest.approx([sum(map(len, net.chains)) / len(net.chains)])


def test_calls_that_do_not_follow_each_other_are_no_loop():
    torch.manual_seed(0)
    net = Loop()
    record = measured(net, lambda net: sum(net.out(torch.sigmoid(net.inp(x))) for x in sequence()))
    assert record.loop_calls.shape == record.loop_attenuation.shape == (0,)


def test_a_loop_around_which_the_data_is_led_is_one_chain():
    """As in a net that adds what each turn makes, where each turn is fed by all before it."""
    torch.manual_seed(0)
    net = Loop()

    def forward(net):
        h, chain = torch.zeros(6, 8), []
        for x in sequence(8):
            z, more = net.turn(x, h)
            h = h + 0.3 * more
            chain.append(z)
        net.chains.append(chain)
        return net.out(h)

    record = measured(net, forward)
    (chain,) = net.chains
    assert record.loop_attenuation == pytest.approx([(chain[0].grad.norm() / chain[-1].grad.norm()).item()], rel=1e-5)
    assert record.loop_calls == pytest.approx([8])


def test_sites_that_a_loop_feeds_are_the_same_as_without_one():
    torch.manual_seed(0)
    net = Loop()
    net.mid = nn.Linear(8, 8)
    net.late = nn.Linear(8, 8)
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.0))
    with probe:
        h = torch.relu(net.mid(net.encode(sequence()) + net.encode(sequence())))
        net.out(torch.tanh(net.late(h))).square().mean().backward()
        probe._optimizers[0].step()
    assert {site.name: site.predecessors for site in probe.info.sites} == {
        ":sigmoid": (":sigmoid",),
        ":relu": (":sigmoid",),
        ":tanh": (":relu",),
    }
