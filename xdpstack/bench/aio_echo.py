"""The answering end of the asyncio bench: one protocol, over three transports.

    python -m xdpstack.bench.aio_echo ours|asyncio|uvloop --iface NAME --core N --local A --remote A …

Prints ``ready``, answers until the asking end has closed or SIGTERM, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdpstack import aio
from xdpstack.bench.breakdown import merged
from xdpstack.bench.tcp_worker import engine_of
from xdpstack.bench.worker import PRIORITY
from xdpstack.streams import Streams

__all__ = ["Echo", "main"]

SPINS = 2000
"""Empty turns of ours before the event loop waits: some hundred microseconds."""


class Echo(asyncio.Protocol):
    """Sends back what comes; the same class over every transport."""

    def __init__(self, ended: asyncio.Future[None]) -> None:
        self._ended = ended
        self.messages = 0

    def connection_made(self, transport: Any) -> None:
        """Keep it: uvloop's is no subclass of asyncio's."""
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        """Back with it."""
        self.messages += 1
        self._write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The bench is over."""
        self.error = exc
        if not self._ended.done():
            self._ended.set_result(None)


async def _serve(args: argparse.Namespace, streams: Streams | None) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def stop(*_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: it ends anyway
            loop.call_soon_threadsafe(end)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)  # a handler of the loop would be gone before the process is
    made: list[Echo] = []

    def factory() -> Echo:
        made.append(Echo(ended))
        return made[-1]

    server: Any
    if streams is not None:
        server = await aio.create_server(streams, factory, args.port, spins=args.spins)
    else:
        server = await loop.create_server(factory, args.local, args.port)
    print("ready", flush=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ended, args.seconds)
    server.close()
    places = streams.engine.connections.places if streams and streams.engine.connections else ()
    told = {"messages": sum(one.messages for one in made), "stages": merged(places)}
    return {"peer": f"asyncio over {args.transport}", **told}


def _runner(transport: str) -> Callable[[Any], Any]:
    if transport != "uvloop":
        return asyncio.run
    peers = Path(__file__).resolve().parents[2] / "build" / "peers"
    sys.path.append(str(peers))
    uvloop: Any = __import__("uvloop")
    run: Callable[[Any], Any] = uvloop.run
    return run


def main(argv: list[str] | None = None) -> int:
    """Run the answering end; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport", choices=["ours", "asyncio", "uvloop"])
    parser.add_argument("--iface", required=True)
    parser.add_argument("--local", required=True, help="this end's IPv4 address")
    parser.add_argument("--remote", required=True, help="the other end's IPv4 address")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--queue", type=int, default=0)
    parser.add_argument("--tx-queue", type=int, default=None)
    parser.add_argument("--stamps", action="store_true", help="of ours: stamp what comes")
    parser.add_argument("--ring", type=int, default=64, help="descriptors and frames")
    parser.add_argument("--spins", type=int, default=SPINS, help="of ours: empty turns before it waits")
    parser.add_argument("--seconds", type=float, default=50)
    args = parser.parse_args(argv)
    run = _runner(args.transport)
    os.sched_setaffinity(0, {args.core})
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    with contextlib.ExitStack() as undo:
        streams = None
        if args.transport == "ours":
            engine, _ = engine_of(args, undo)
            streams = undo.enter_context(Streams(engine, 0))
        answer = run(_serve(args, streams))
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
