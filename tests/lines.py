"""How much work something is, counted, as no clock tells it twice alike."""

import sys


def lines_run(action, *, within=""):
    """Return how many lines of Python an action runs, in files whose path contains `within`."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if within not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count
