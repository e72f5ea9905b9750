"""Which folders are runs, and which runs lie below one: what a person means by the folder that his logs are in. No torch.

Whoever made the folders chose how many there are, so the search has a limit; it follows no links, which may lead in a
circle, and goes no deeper than a run, whose folders are its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lightning_gradwatch.record.reasons import CannotJudgeError

_MOST_ENTRIES = 200_000
"""Files and folders that are looked at."""
_DEEPEST = 32


def runs_below(folder: Path) -> list[Path]:
    """Return the runs below a folder that is none itself, in natural order.

    Hidden folders are left out. One that can't be listed is taken for a run, so that reading it says so.

    Raises:
        CannotJudgeError: there is more below it than is looked through.
    """
    found: list[Path] = []
    left = [(folder, 0)]
    seen = 0
    while left:
        place, depth = left.pop()
        try:
            with os.scandir(place) as entries:
                inner: list[Path] = []
                is_run = False
                for entry in entries:
                    seen += 1
                    if seen > _MOST_ENTRIES:
                        raise CannotJudgeError(
                            f"there are more than {_MOST_ENTRIES:,} files and folders below {folder}: name a run, or a "
                            "folder nearer to it"
                        )
                    is_run = is_run or ("tfevents" in entry.name and entry.is_file())
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        inner.append(Path(entry.path))
        except OSError:
            found += [place] * (place != folder)
            continue
        if is_run:
            found.append(place)
        elif depth < _DEEPEST:
            left += [(each, depth + 1) for each in inner]
    return sorted(found, key=natural)


def holds_event_files(folder: Path) -> bool:
    """Tell whether a folder is a run; one that can't be listed is, so that reading it says so."""
    try:
        return any(map(is_event_file, folder.iterdir()))
    except OSError:
        return True


def is_event_file(path: Path) -> bool:
    """Tell whether a path is one that TensorBoard would read; a pipe, which would block, and a broken link aren't."""
    return "tfevents" in path.name and path.is_file()


def natural(path: Path) -> list[tuple[int, str]]:
    """Return by what paths are sorted as people count, ``version_9`` before ``version_10``."""
    return [(int(part[:18]), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", str(path))]
