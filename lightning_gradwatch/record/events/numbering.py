"""In which order events were written: a number of the fit among the files of its folder, and one of the event in its file.

Not by the clock, which may be set back between two fits, and which copying a file changes. Readers order by it, and see
which events are missing. It stands in a field of the event's envelope that TensorBoard's readers leave alone, as do our
own of the first releases; with a checksum, so that no flipped bit puts a file before another.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lightning_gradwatch.record.events.encoding import PLUGIN
from lightning_gradwatch.record.events.reader import EventReader
from lightning_gradwatch.record.events.tags import STEP_TAG, Stamp, check_of
from lightning_gradwatch.record.run_folders import is_event_file

if TYPE_CHECKING:
    import os

_FIRST_BYTES = 16 << 20
_MOST_BYTES = 64 << 20
"""What is looked through for the numbers of earlier files, in each and in all: a fit starts with it."""


class Numbering:
    """Numbers the events of one file.

    Args:
        folder: Where it lies; what lies there already is earlier. None: nowhere that could be looked at.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._fit = 0 if folder is None else 1 + _last_fit(Path(folder))
        self._number = 0

    def stamp(self, event: Any) -> None:
        """Write the next number into an event, if it is one that readers look for."""
        for value in event.summary.value:
            if value.tag == STEP_TAG:
                text = b"%d.%d" % (self._fit, self._number)
                value.node_name = (text + b"." + check_of(text, value.tensor.string_val[1])).decode()
                self._number += 1
                return


_numberings: WeakKeyDictionary[Any, Numbering] = WeakKeyDictionary()


def numbering_of(file_writer: Any) -> Numbering:
    """Return the numbering of the file of a logger's own writer, which may outlive a fit: its numbers go on."""
    found = _numberings.get(file_writer)
    if found is None:
        get_folder = getattr(file_writer, "get_logdir", None)
        found = _numberings[file_writer] = Numbering(get_folder() if get_folder is not None else None)
    return found


def _last_fit(folder: Path) -> int:
    """Return the highest number of a fit that wrote into a folder; -1 if none did."""
    last, room = -1, _MOST_BYTES
    try:
        for path in sorted(folder.iterdir(), reverse=True):
            if is_event_file(path) and room > 0:
                stamp = _first_stamp(path)
                last = last if stamp is None else max(last, stamp.fit)
                room -= min(path.stat().st_size, _FIRST_BYTES)
    except OSError:
        pass  # it isn't there yet, or isn't on this machine
    return last


def _first_stamp(path: Path) -> Stamp | None:
    from lightning_gradwatch.record.events.decoding import decode_event  # noqa: PLC0415 - decoding reads stamps

    reader = EventReader(path, marker=PLUGIN.encode(), problem=lambda _: None, limit=_FIRST_BYTES)
    try:
        for _, payload in reader:
            try:
                event = decode_event(payload)
            except ValueError:
                continue
            if event is not None and event.stamp is not None:
                return event.stamp
    except OSError:
        pass
    return None
