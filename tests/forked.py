"""A process forked off the test's own, for what would take the test with it: limits, signals, exhausted handles."""

from __future__ import annotations

import multiprocessing
import traceback


def in_child(function, /, *arguments, seconds=120, **named):
    """Return what a function returns in a process of its own; fail with its traceback, or when it doesn't end in time."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(sender, function, arguments, named))
    process.start()
    sender.close()
    try:
        assert receiver.poll(seconds), f"{function.__name__} didn't end in {seconds} s"
        kind, answer = receiver.recv()
    except EOFError:
        process.join(10)
        raise AssertionError(f"{function.__name__} ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    assert kind == "returned", answer
    return answer


def _run(sender, function, arguments, named):
    try:
        answer = "returned", function(*arguments, **named)
    except BaseException:  # noqa: BLE001 - whatever it is, the test shows it
        answer = "raised", traceback.format_exc()
    sender.send(answer)
