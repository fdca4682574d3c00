"""Join a Ray cluster, or start one on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evomerge.errors import RunError

_ANSWERS = 10.0
"""Seconds within which a cluster is to answer."""
_INSTALL = "Install it (`pip install ray`), or score on this machine: `evaluator: {name: local}`."


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """Yield the module ``ray``, connected; what was started here is shut down afterwards.

    Args:
        address: ``local`` starts a cluster on this machine; ``auto`` joins that of ``RAY_ADDRESS``, or one that
            `ray start` has started on this machine, and starts one otherwise; anything else is that of one to join.

    Raises:
        RunError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _ray()
    if ray.is_initialized():  # by whoever runs us
        yield ray
        return
    try:
        _connect(ray, address)
        yield ray
    finally:
        ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Many processes that start at once import slowly.
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise RunError(f"Ray cannot be imported ({error})", where="evaluator.name: ray", fix=_INSTALL) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    place = os.environ.get("RAY_ADDRESS") if address == "auto" else address
    known = None if place in (None, "local") else place
    try:
        if known:
            _knock(known)
        ray.init(address=known or (None if address == "auto" else "local"), **_quiet(own=known is None))
    except Exception as error:
        told = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
        if known is None:
            cause, fix = f"Ray does not start here: {told}", "`ray stop` ends what is left of another one."
        else:
            cause = f"no Ray cluster can be joined at {known}: {told}"
            fix = f"`ray status --address {known}` looks at it; `ray start --head` starts one; `local` needs none."
        raise RunError(cause, where="evaluator.address", fix=fix) from error


def _quiet(*, own: bool) -> dict[str, Any]:
    settings = {"log_to_driver": False, "logging_level": "ERROR"}
    return {**settings, "include_dashboard": False} if own else settings


def _knock(address: str) -> None:
    """Raise ``OSError`` if nobody answers: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_ANSWERS).close()
