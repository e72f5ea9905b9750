"""TensorBoard's own data providers over a folder, as a server has them: its own loader, and the fast one in a process of its own."""

from __future__ import annotations

import gc
import threading
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

from tensorboard.backend.event_processing import data_ingester, data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.data import server_ingester
from tensorboard.plugins import base_plugin
from tensorboard.util import grpc_util

from lightning_gradwatch.tab.loader import GradWatchLoader
from lightning_gradwatch.tab.stored import STEP_TAG

LOADERS = ["true", "false"]
"""Values of ``--load_fast``."""
CONTEXT = RequestContext()
_PATIENCE = 600
_TURN = 0.05
_LOOKS = 4


@contextmanager
def provider_of(folder, load_fast, *, samples=None, steps=True):
    """Give the data provider of a TensorBoard that has read a folder, and how many points of a series it keeps.

    Args:
        folder: Where the runs lie.
        load_fast: As on TensorBoard's command line.
        samples: How many points of a series of ours are kept; None: as our loader wants it.
        steps: Whether there are any to wait for.
    """
    flags = SimpleNamespace(samples_per_plugin={} if samples is None else {"gradwatch": samples})
    GradWatchLoader().fix_flags(flags)
    kept = flags.samples_per_plugin
    if load_fast == "false":
        runs = plugin_event_multiplexer.EventMultiplexer(
            size_guidance=data_ingester.DEFAULT_SIZE_GUIDANCE,
            tensor_size_guidance={**data_ingester.DEFAULT_TENSOR_SIZE_GUIDANCE, **kept},
            purge_orphaned_data=True,
        )
        runs.AddRunsFromDirectory(str(folder))
        runs.Reload()
        yield SimpleNamespace(
            provider=data_provider.MultiplexerDataProvider(runs, str(folder)), samples=kept["gradwatch"]
        )
        del runs
        gc.collect()  # its readers, which it leaves open
        return
    server = server_ingester.SubprocessServerDataIngester(
        server_ingester.get_server_binary(),
        str(folder),
        reload_interval=0,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
        samples_per_plugin=kept,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a process that it lets go of
        server.start()
        try:
            found = SimpleNamespace(provider=server.data_provider, samples=kept["gradwatch"])
            if steps:
                looks = []
                until(lambda: has_settled(found, looks))
            yield found
        finally:
            server._stdin_handle.close()  # which ends it
            gc.collect()


def until(holds):
    """Wait for something that another process brings about; a bound, so that what doesn't come is a red test."""
    event = threading.Event()
    for _ in range(_PATIENCE):
        if holds():
            return
        event.wait(_TURN)
    raise AssertionError("it didn't come about")


def has_settled(found, looks):
    """Tell whether some looks in a row saw the same steps, and some."""
    points = found.provider.read_tensors(CONTEXT, experiment_id="", plugin_name="gradwatch", downsample=10**6)
    looks.append({run: len(tags.get(STEP_TAG, ())) for run, tags in points.items()})
    return len(looks) > _LOOKS and bool(looks[-1]) and all(look == looks[-1] for look in looks[-_LOOKS:])


def context_of(found):
    """Return what TensorBoard hands a plugin."""
    return base_plugin.TBContext(data_provider=found.provider, sampling_hints={"gradwatch": found.samples})
