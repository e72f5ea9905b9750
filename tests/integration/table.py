"""All situations. A new one is a row in one of these files; every promise is then tested for it."""

from __future__ import annotations

from integration.situations import activations, around, compiled, hidden, loop, parameters

_PARTS = (loop, parameters, activations, hidden, around, compiled)

SITUATIONS = {name: row for part in _PARTS for name, row in part.SITUATIONS.items()}
assert len(SITUATIONS) == sum(len(part.SITUATIONS) for part in _PARTS)
