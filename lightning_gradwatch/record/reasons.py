"""Why a run can't be judged, as a sentence: what a file holds may make any calculation fail."""

from __future__ import annotations


class CannotJudgeError(Exception):
    """Something can't be judged; the message says what and why."""


DATA_ERRORS = (ArithmeticError, MemoryError, RecursionError, ValueError)
"""What numbers and sizes in a file can bring about; anything else is a fault of ours."""


def reason_of(error: BaseException) -> str:
    """Return a sentence on what made a calculation fail.

    >>> reason_of(OverflowError("int too large to convert to float"))
    'a number in it is too large to calculate with'
    """
    if isinstance(error, CannotJudgeError):
        return str(error)
    if isinstance(error, RecursionError):
        return "what it holds is nested too deeply"
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    if isinstance(error, OverflowError):
        return "a number in it is too large to calculate with"
    told = f"{type(error).__name__}: {error}"
    if isinstance(error, (ArithmeticError, ValueError)):
        return f"a number in it is outside of the range that can be calculated with ({told:.200})"
    return f"its numbers can't be calculated with ({told:.200})"
