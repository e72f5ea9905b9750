"""What is said of a metric where it is shown: one row a metric. One that has no row yet is shown by its own name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class MetricText(NamedTuple):
    """A row of the table."""

    title: str
    """In a few words, as a heading has it."""
    description: str
    """In a sentence, for who hasn't met it."""
    log: bool = True
    """Whether it spans decades, so that its axis is a logarithm; else it is a share from 0 to 1."""
    unit: str = ""
    """Behind its numbers; empty for a ratio and for a share, which is shown in percent."""


TEXTS: Mapping[str, MetricText] = {
    "grad_norm": MetricText(
        "gradient norm", "L2 norm of the gradient of all parameters of the layer, unscaled and before clipping."
    ),
    "grad_rms": MetricText("gradient rms", "Root mean square of the entries of the layer's gradient."),
    "weight_rms": MetricText(
        "weight rms", "Root mean square of the layer's parameters of two or more dimensions, before the step."
    ),
    "update_ratio": MetricText(
        "update ratio", "rms of what the optimizer's step changed over rms of the weights: about 1e-3 is usual."
    ),
    "dead_fraction": MetricText(
        "dead units", "Share of units that were inactive in every observation of the window.", log=False
    ),
    "saturated_fraction": MetricText(
        "saturated units",
        "Share of units that were saturated in at least 95 % of the window's observations.",
        log=False,
    ),
    "inactive_share": MetricText(
        "inactive observations", "Share of the step's observations that are inactive or saturated.", log=False
    ),
    "signal_norm": MetricText(
        "signal", "L2 norm of the gradient of the loss at the activation's input: what comes back to it from the loss."
    ),
    "activation_gain": MetricText(
        "activation gain", "Share of the signal that the activation function itself passes back."
    ),
    "weight_gain": MetricText(
        "weight gain", "Share of the signal that what lies before the activation, its weights above all, passes back."
    ),
}

_SHARES = ("_fraction", "_share")


def text_of(metric: str) -> MetricText:
    """Return what is said of a metric; of one without a row, what its name says.

    >>> text_of("grad_norm").title, text_of("attention_entropy"), text_of("lost_share").log
    ('gradient norm', MetricText(title='attention entropy', description='', log=True, unit=''), False)
    """
    known = TEXTS.get(metric)
    return known or MetricText(metric.replace("_", " "), "", log=not metric.endswith(_SHARES))
