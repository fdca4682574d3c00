"""Write a report's file whole or not at all. A report can be made again, so there is no fsync."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from evomerge.errors import RunError


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` through a temporary name; raise ``RunError`` if the system refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        cause = f"cannot write {path.name}: {error.strerror}"
        fix = "Free space there or make the folder writable, then `evomerge report`."
        raise RunError(cause, where=str(path), fix=fix) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
