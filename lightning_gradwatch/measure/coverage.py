"""What isn't measured, and why; said at the start of a run and stored in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.measure.compiled import is_compiled
from lightning_gradwatch.measure.layers import qualified_name
from lightning_gradwatch.record import NotCovered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.layers import Layers

OPAQUE: Mapping[str, str] = {
    "lstm": "the gates inside torch's fused LSTM aren't seen; its parameters are",
    "gru": "the gates inside torch's fused GRU aren't seen; its parameters are",
    "rnn_tanh": "the tanh inside torch's fused RNN isn't seen; its parameters are",
    "rnn_relu": "the ReLU inside torch's fused RNN isn't seen; its parameters are",
    "lstm_cell": "the gates inside torch's LSTM cell aren't seen; its parameters are",
    "gru_cell": "the gates inside torch's GRU cell aren't seen; its parameters are",
    "rnn_tanh_cell": "the tanh inside torch's RNN cell isn't seen; its parameters are",
    "rnn_relu_cell": "the ReLU inside torch's RNN cell isn't seen; its parameters are",
    "scaled_dot_product_attention": "scaled_dot_product_attention is fused: its softmax isn't seen",
    "multi_head_attention_forward": "multi_head_attention_forward is one call: its softmax isn't seen",
}
"""Torch calls that hold activation functions which can't be looked into, by name."""


def not_covered(
    model: nn.Module,
    layers: Layers,
    optimizers: Sequence[Optimizer],
    opaque: Mapping[str, str],
    *,
    estimated: bool,
    eager: bool,
) -> Iterator[NotCovered]:
    """Yield everything that isn't measured.

    Args:
        model: The module that is trained.
        layers: Its layers.
        optimizers: The optimizers.
        opaque: Reasons by module name, for what the forward pass ran into.
        estimated: Whether update ratios are taken from a part of the weights.
        eager: Whether compiled modules run eagerly in measured steps.
    """
    for name, module in model.named_modules():
        if is_compiled(module) and not eager:
            yield NotCovered(
                qualified_name(f"{name}.")[:-1],
                'compiled: its activations aren\'t seen; pass compiled="eager" to run measured steps eagerly',
            )
    for name, reason in opaque.items():
        yield NotCovered(name, reason)
    yield from layers.without_optimizer(optimizers)
    if estimated:
        yield NotCovered("update_ratio", "estimated from a fixed part of the entries: the weights exceed 64 MB")
