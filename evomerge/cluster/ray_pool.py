"""Workers on a Ray cluster: given work one by one, replaced when they die, stopped when they hang."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from evomerge.cluster.layout import Layout
from evomerge.cluster.parcels import packed
from evomerge.cluster.pool import Item, Lost, Make, Tell, Work
from evomerge.cluster.slots import Slot, Slots
from evomerge.cluster.worker import About, Raised

RETRIES = 2
"""How often an item is tried again after the worker that was at it died."""
_TICK = 1.0
"""Seconds between two looks at the clock."""


class RayPool:
    """Workers on a cluster that this process has joined.

    Args:
        ray: the module, connected.
        layout: how many workers, and what each gets.
        make: makes what each of them holds.
        threads: of each.
        tell: hears of what happens to them.
        patience: seconds without anybody alive after which there is no hope.
        placing: seconds after which what a dead worker was at goes to another, if no node takes its successor.

    Raises:
        RunError: nobody could begin; a node has other versions than this one; what is to be held cannot be made.
    """

    def __init__(
        self,
        ray: Any,
        layout: Layout,
        make: Make,
        threads: int,
        tell: Tell,
        *,
        patience: float = 300.0,
        placing: float = 30.0,
    ) -> None:
        self._ray, self._layout, self._tell = ray, layout, tell
        self._patience, self._placing = patience, placing
        self._works: dict[int, tuple[Work, str, list[Any]]] = {}
        self._slots = Slots(ray, layout, make, threads, tell)
        try:
            self._slots.have_begun(patience)
        except BaseException:
            self._slots.stop()
            raise

    @property
    def workers(self) -> int:
        """Return how many places for workers there are."""
        return self._layout.workers

    @property
    def abouts(self) -> list[About]:
        """Return where the workers are, in the order of their places."""
        return [about for _, about in sorted(self._slots.abouts.items())]

    def run(self, work: Work, take: Callable[[], Item | None]) -> Iterator[tuple[Item, Any]]:
        """Work until nothing is left; see ``Pool.run``."""
        name, parcel = self._sent(work)
        backlog = _Backlog(take, self._tell)
        seen = time.monotonic()
        try:
            while True:
                for slot in self._slots.all:
                    if slot.stage == "ready" and slot.awaited is None and (item := slot.item or backlog.next()):
                        slot.item = item
                        slot.asks(slot.actor.work.remote(name, parcel, item.value))
                if not backlog.left(self._slots.all):
                    return
                for slot in self._slots.heard(_TICK):
                    yield from self._settle(slot, backlog)
                for slot in self._slots.all:
                    yield from self._clock(slot, backlog)
                seen = time.monotonic() if self._slots.living() else seen
                if time.monotonic() - seen > self._patience or all(slot.stage == "gone" for slot in self._slots.all):
                    raise self._slots.hopeless(time.monotonic() - seen)
        finally:
            for slot in self._slots.all:
                slot.item = None  # whoever is still at it will be heard, and not listened to

    def close(self) -> None:
        """Stop all workers."""
        self._slots.stop()

    def _settle(self, slot: Slot, backlog: _Backlog) -> Iterator[tuple[Item, Any]]:
        """Yield what a worker has done, or nothing."""
        if slot.stage != "ready":
            self._slots.advance(slot)
            return
        said, item = self._slots.answer(slot), slot.item
        if isinstance(said, Raised):
            raise said.error
        if slot.stage == "ready":
            slot.item, slot.deaths = None, 0
            if item is not None:
                yield item, said
        elif item is not None and (lost := backlog.died(item)):
            slot.item = None
            yield item, lost

    def _clock(self, slot: Slot, backlog: _Backlog) -> Iterator[tuple[Item, Any]]:
        """Stop who is late, and give what a dead worker was at to another."""
        item, took = slot.item, time.monotonic() - slot.since
        if item is None:
            return
        if slot.stage == "gone" or (slot.stage == "placing" and took > self._placing):
            slot.item = None
            backlog.returned.append(item)
        elif slot.stage == "ready" and slot.awaited is not None and item.limit is not None and took > item.limit:
            slot.item = None
            message = f"it did not answer for {item.limit:g} s"
            self._slots.replace(slot, message)
            yield item, Lost("late", message)

    def _sent(self, work: Work) -> tuple[str, list[Any]]:
        """Return the name of some work and a parcel with a reference to it; it travels once to each node."""
        if id(work) not in self._works:
            parcel = [self._ray.put(packed(work))]
            self._works[id(work)] = (work, str(len(self._works)), parcel)
        _, name, parcel = self._works[id(work)]
        return name, parcel


class _Backlog:
    """What is left of the items of one ``run``.

    Attributes:
        returned: items to be given out again.
    """

    def __init__(self, take: Callable[[], Item | None], tell: Tell) -> None:
        self._take, self._tell = take, tell
        self._deaths: Counter[int] = Counter()
        self.returned: deque[Item] = deque()

    def next(self) -> Item | None:
        """Return the next item, if there is one now."""
        return self.returned.popleft() if self.returned else self._take()

    def left(self, slots: list[Slot]) -> bool:
        """Return whether anybody is at something, or something waits for somebody."""
        if any(slot.item is not None for slot in slots):
            return True
        # Nobody may be ready to take what there is.
        if (item := self.next()) is not None:
            self.returned.append(item)
        return bool(self.returned)

    def died(self, item: Item) -> Lost | None:
        """Take note that a worker died at an item; return ``Lost`` if it is not tried again."""
        self._deaths[item.number] += 1
        tries = self._deaths[item.number]
        again = tries <= RETRIES
        self._tell({"event": "retry" if again else "lost", "item": item.number, "tries": tries})
        return None if again else Lost("died", f"{tries} workers died at it")
