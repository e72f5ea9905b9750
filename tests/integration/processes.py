"""Several real processes that train together on this machine, and run what a test asks them to.

Started once for many tests, as importing torch takes longer than a fit. Each waits for a function and its arguments on a
pipe and sends back what it returned or raised. What doesn't answer in time is killed, with all that it has started.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path

TESTS = Path(__file__).parents[1]
START_SECONDS = 120
"""To import torch and Lightning on a busy machine."""


class Processes:
    """`count` processes, ranks of one run: each sees the environment that a launcher would give it."""

    def __init__(self, count=2):
        self.port = free_port()
        self._ranks = [self._start(rank, count) for rank in range(count)]
        self._collect(time.monotonic() + START_SECONDS)

    def _start(self, rank, count):
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "integration.processes", str(rank), str(theirs_in), str(theirs_out)],
            env=environment,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        return process, Connection(ours_out, readable=False), Connection(ours_in, writable=False)

    def run(self, function, /, *, seconds=60, last=False, **arguments):
        """Return what ``function(rank, **arguments)`` returned in each process; an exception comes as `Raised`.

        After the `last` one each process ends by itself, whatever the others do.
        """
        for _, to, _ in self._ranks:
            to.send((function.__module__, function.__name__, arguments, last))
        return self._collect(time.monotonic() + seconds)

    def _collect(self, deadline):
        answers = {}
        pipes = {back: rank for rank, (_, _, back) in enumerate(self._ranks)}
        while pipes:
            ready = wait(list(pipes), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                waiting = sorted(pipes.values())
                self.kill()
                raise TimeoutError(f"no answer from ranks {waiting}; answered: {answers}")
            for pipe in ready:
                try:
                    answers[pipes.pop(pipe)] = pipe.recv()
                except EOFError:
                    self.kill()
                    raise RuntimeError(f"a process died; answered: {answers}") from None
        return [answers[rank] for rank in range(len(self._ranks))]

    def ended(self, seconds):
        """Return the exit codes, once all processes have ended by themselves; None for one that hasn't in time."""
        deadline = time.monotonic() + seconds
        codes = []
        for process, _, _ in self._ranks:
            try:
                codes.append(process.wait(max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append(None)
        return codes

    def kill(self):
        """End the processes and all that they have started."""
        for process, to, back in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            to.close()
            back.close()


class Raised:
    """An exception in another process."""

    def __init__(self, error):
        self.kind = type(error).__name__
        self.text = str(error)
        self.trace = traceback.format_exc()

    def __repr__(self):
        return self.trace[-3000:]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(rank, to_us, to_them):
    """Run what is asked for until the pipe is closed."""
    import torch  # noqa: PLC0415 - in the child only

    from lightning_gradwatch.measure import faults  # noqa: PLC0415 - as above

    torch.set_num_threads(1)
    faults.RAISE = True
    to_them.send("ready")
    while True:
        try:
            module, name, arguments, last = to_us.recv()
        except EOFError:
            return
        try:
            answer = getattr(importlib.import_module(module), name)(rank, **arguments)
        except BaseException as error:  # noqa: BLE001 - the parent judges it
            answer = Raised(error)
        to_them.send(answer)
        if last:
            return


if __name__ == "__main__":
    _, which, inward, outward = sys.argv
    # By its own name, under which what it sends can be read.
    importlib.import_module("integration.processes").serve(
        int(which), Connection(int(inward), writable=False), Connection(int(outward), readable=False)
    )
