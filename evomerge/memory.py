"""How much memory there is, and the error that says before heavy work that it is not enough."""

from __future__ import annotations

from pathlib import Path

import psutil

from evomerge.errors import RunError

_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return the bytes of memory that this process may still take: the machine's, or its control group's."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_GROUP / "memory.max").read_text())
        free = min(free, limit - int((_GROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no control groups here, or no limit ("max")
        pass
    return free


def check_memory(needed: int, what: str, fix: str) -> None:
    """Raise ``RunError`` if ``what`` needs more bytes of memory than there are."""
    free = available_memory()
    if needed > free:
        cause = f"{what} needs about {needed / 2**30:.1f} GiB of memory; {max(free, 0) / 2**30:.1f} GiB are free"
        raise RunError(cause, where="memory", fix=fix)
