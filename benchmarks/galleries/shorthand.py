"""What the two lists of cases are written in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.galleries.spec import HE, Case, Data, Dense, Start, Training

if TYPE_CHECKING:
    from benchmarks.galleries.spec import Net

DIGITS = Data(task="digits")
IRIS = Data(task="iris")
WINE = Data(task="wine")
CANCER = Data(task="cancer")
DIABETES = Data(task="diabetes")
SPIRALS = Data(task="spirals")
SINES = Data(task="sines")
XOR = Data(task="xor")
ZEN = Data(task="zen")
RING = Data(task="ring")

SGD = Training(rate=0.1)
MOMENTUM = Training(rate=0.02, options={"momentum": 0.9})
ADAM = Training(optimizer="Adam", rate=1e-3)
QUICK = Training(optimizer="Adam", rate=1e-2)


def dense(depth: int, activation: str, start: Start | None = HE, width: int = 64, **options: Any) -> Dense:
    """Return a net of equal widths."""
    return Dense(widths=(width,) * depth, activation=activation, start=start, **options)


def family(
    name: str,
    *rows: tuple[str, Data, Net, Training] | tuple[str, Data, Net, Training, tuple[str, ...]],
    roots: tuple[str, ...] = (),
) -> list[Case]:
    """Return the cases of one family; a row's fifth entry replaces the roots that the family shares."""
    return [
        Case(name=f"{name}/{what}", data=data, net=net, training=training, roots=own[0] if own else roots)
        for what, data, net, training, *own in rows
    ]
