"""Which steps are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_gradwatch.record.checkpoint import count_of, mapping_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_EVERY_N_STEPS = 50
_FIRST_STEPS = 64
"""At most so many steps are watched, activations only, until the first windows are full."""
_CONFIRMING_STEPS = 16
"""A rule that goes back and forth gets no more than so many extra steps between two that are due anyway."""
_LOOKS, _STEPS_A_LOOK = 192, 200
"""Because units may have died at most so many steps are watched, or later one of so many: with the first ones that is at
most 1 % of a fit from 25,600 steps on. A suspicion takes up to 64 at a batch of 4, and 16 at one of 16."""
_TURNS = 4
"""Steps that are measured behind a due one until each optimizer has stepped in one: those that take turns by batch would else
meet the even steps with one of them always. Each time that this is in vain, half as many are left."""


@dataclass
class Schedule:
    """Decides about each step by an integer comparison or two.

    Due are the steps at which Lightning's loggers log (the last of each `every_n_steps`), so that our curves have their
    points where the loss has its own, and below the first of them 0, 1, 2, 4, 8, …, where most of what goes wrong shows.
    """

    every_n_steps: int
    _confirmed: int = 0
    _watched: int = 0
    _looked: int = 0
    _last: int = 0
    """The last step that was due, or was watched because units may have died."""
    _turn: int = -1
    """The step that is measured for the optimizers that didn't step in those before it."""
    _turns: int = 0
    _vain: int = 0
    _stepped: frozenset[int] = frozenset()
    """Optimizers that have stepped since the last due step."""

    def due(self, step: int, *, confirming: bool) -> bool:
        """Whether everything is measured in a step; `confirming` asks for extra ones."""
        every = self.every_n_steps
        if (step + 1) % every == 0 or (step < every and step & (step - 1) == 0):
            self._confirmed = self._turns = 0
            self._stepped = frozenset()
            self._last = step
            return True
        if step == self._turn:
            self._last = step
            return True
        if confirming and self.confirms:
            self._confirmed += 1
            self._last = step
            return True
        return False

    def note_measured(self, step: int) -> None:
        """Take in that a step was measured that wasn't due."""
        self._last = step

    def note_stepped(self, step: int, stepped: Iterable[int], of: int) -> None:
        """Take in which optimizers stepped in a step that was measured, of so many."""
        self._stepped |= frozenset(stepped)
        if len(self._stepped) >= of:
            self._vain = 0
        elif self._turns < _TURNS >> self._vain:
            self._turns += 1
            self._turn = step + 1
        elif self._turns and self._turns == _TURNS >> self._vain:
            self._vain += 1

    def takes_turn(self, step: int) -> bool:
        """Whether a step is measured for the optimizers that didn't step in those before it."""
        return step == self._turn

    def gap(self, step: int) -> int:
        """Return how many steps after this one the next is due."""
        every = self.every_n_steps
        next_due = step + every - (step + 1) % every
        power = 1 << step.bit_length()  # the next above
        return (min(power, next_due) if power < every else next_due) - step

    @property
    def watches(self) -> bool:
        """Whether steps that aren't due may still be watched."""
        return self._watched < _FIRST_STEPS

    @property
    def confirms(self) -> bool:
        """Whether there is an extra step left before the next that is due."""
        return self._confirmed < _CONFIRMING_STEPS

    def fills_windows(self) -> bool:
        """Whether a step that isn't due is watched all the same, because some window isn't full yet."""
        if not self.watches:
            return False
        self._watched += 1
        return True

    def looks(self, step: int, wanted: int) -> bool:
        """Whether a step that isn't due is watched, as units may have died and the windows lack so many steps since."""
        if not wanted or self.next_look(step - 1, wanted) != step:
            return False
        self._looked += 1
        self._last = step
        return True

    def next_look(self, step: int, wanted: int) -> int:
        """Return the next step after this one to be measured or watched, where windows lack so many steps.

        Those are spread up to the next one that is due: what is the same in all of a stretch of batches says little.
        """
        next_due = step + self.gap(step)
        if not wanted or self._looked >= max(_LOOKS, step // _STEPS_A_LOOK):
            return next_due
        spread = self._last + max(self.gap(self._last) // wanted, 1)
        return min(max(spread, step + 1), next_due)

    def state_dict(self) -> dict[str, int]:
        """Return how many extra steps were spent, so that a resumed run spends no more than one that never stopped."""
        return {
            "confirmed": self._confirmed,
            "watched": self._watched,
            "looked": self._looked,
            "last": self._last,
            "vain": self._vain,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            StateError: it isn't what that gives.
        """
        mapping_of(state, "schedule", required=("confirmed", "watched"), optional=self.state_dict())
        for name, number in state.items():
            count_of(number, f"{name} of the schedule")
        self._confirmed, self._watched = int(state["confirmed"]), int(state["watched"])
        self._looked, self._last = int(state.get("looked", 0)), int(state.get("last", 0))
        self._vain = min(int(state.get("vain", 0)), _TURNS)
