"""What all code of a process shares, and an import could change for others; for programs that tests run on their own."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import warnings
from zlib import crc32


def named(thing):
    return f"{thing.__module__}.{thing.__qualname__}"


def shared_state():
    """Return it as plain data. Left out: which modules there are, the finders of modules, and our own logger."""
    loggers = {"": logging.root} | {
        name: logger for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)
    }
    state = {
        "loggers": {
            name: [
                logger.level,
                logger.propagate,
                logger.disabled,
                [[named(type(handler)), handler.level] for handler in logger.handlers],
            ]
            for name, logger in loggers.items()
            if name != "lightning_gradwatch"
        },
        "logging": [logging.root.manager.disable, named(logging.getLoggerClass())],
        "filters": sorted(
            str([action, getattr(text, "pattern", text), named(kind), getattr(module, "pattern", module), line])
            for action, text, kind, module, line in warnings.filters
        ),
        "warnings": [named(warnings.showwarning), named(warnings.formatwarning)],
        "environment": dict(os.environ),
        "hooks": [named(hook) for hook in (sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook)],
        "signals": {each.name: str(signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)},
        "random": crc32(repr(random.getstate()).encode()),
    }
    if (rank_zero := sys.modules.get("lightning_utilities.core.rank_zero")) is not None:
        state["rank zero"] = [
            rank_zero.log.name,
            getattr(rank_zero.rank_zero_only, "rank", None),
            named(rank_zero.rank_zero_deprecation_category),
        ]
    if (torch := sys.modules.get("torch")) is not None:
        state["torch"] = [
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            str(torch.get_default_dtype()),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.get_rng_state().sum().item(),
        ]
    if (numpy := sys.modules.get("numpy")) is not None:
        state["numpy"] = [
            str(numpy.geterr()),
            str(numpy.get_printoptions()),
            crc32(repr(numpy.random.get_state()).encode()),
        ]
    return state


def differences(before, after):
    """Return what differs, by name."""
    found = {}
    for key in sorted({*before, *after}):
        one, other = before.get(key), after.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found |= {f"{key}: {name}": change for name, change in differences(one, other).items()}
        elif one != other:
            found[key] = [one, other]
    return found
