"""How asyncio follows a tape or a ring: busy, or asleep in its futex on a thread that tells by an eventfd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Sized
from typing import TypeVar

__all__ = ["follow"]

T = TypeVar("T", bound=Sized)
SLICE = 0.05
"""Seconds that a reader sleeps before it looks whether the writer still lives."""


async def follow(
    take: Callable[[], T],
    wait: Callable[[float], object],
    writer_alive: Callable[[], bool],
    *,
    busy: bool = False,
    on_writer: Callable[[bool], None] | None = None,
) -> AsyncIterator[T]:
    """What ``take`` gives, as it comes and where it is not empty, until it raises EOFError.

    ``wait`` sleeps for at most so many seconds until there is something; with ``busy`` each turn of the loop
    takes, and nothing sleeps. ``on_writer`` is called with False when no writer is found to live (within
    0.1 s of its death), with True when there is one again.
    """
    alive, checked = True, 0.0
    loop = asyncio.get_running_loop()
    wake = None if busy else _Wake(wait)
    try:
        while True:
            try:
                batch = take()
            except EOFError:
                return
            if len(batch):
                yield batch
                if busy:
                    await asyncio.sleep(0)
                continue
            if loop.time() - checked > SLICE:
                checked = loop.time()
                if writer_alive() is not alive:
                    alive = not alive
                    if on_writer:
                        on_writer(alive)
            await (wake.wait() if wake else asyncio.sleep(0))
    finally:
        if wake:
            wake.close()


class _Wake:
    """The thread that sleeps."""

    def __init__(self, sleep: Callable[[float], object]) -> None:
        self._sleep = sleep
        self._loop = asyncio.get_running_loop()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._asked, self._ends = threading.Event(), False
        self._came: asyncio.Future[None] | None = None
        self._loop.add_reader(self._fd, self._on_event)
        self._thread = threading.Thread(target=self._main, name="xds-wake", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._ends:
                return
            self._sleep(SLICE)
            with contextlib.suppress(OSError):
                os.eventfd_write(self._fd, 1)

    def _on_event(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        if self._came and not self._came.done():
            self._came.set_result(None)

    async def wait(self) -> None:
        """Until something waits, at most a slice."""
        self._came = self._loop.create_future()
        self._asked.set()
        await self._came

    def close(self) -> None:
        self._ends = True
        self._asked.set()
        self._thread.join()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
