"""``xdpstack feed listen|replay|build``: decode a feed from the wire or from a capture."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from xdpstack import node as nodes
from xdpstack import replay as replays
from xdpstack.cli._numbers import count, microseconds, seconds, speed
from xdpstack.cli._settings import SET, settings
from xdpstack.config import check_options
from xdpstack.engine import EngineConfig
from xdpstack.errors import ConfigError
from xdpstack.feed import Feed
from xdpstack.schema import native

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add ``feed`` and its subcommands."""
    feed = commands.add_parser("feed", help="decode a feed from the wire or a capture, build a decoder")
    verbs = feed.add_subparsers(dest="verb", metavar="VERB", required=True)

    listen = verbs.add_parser("listen", help="decode live until SIGINT, --seconds or --packets")
    listen.add_argument("--port", required=True, help="xsk:IFACE[:QUEUE[-LAST]] or sock:IFACE")
    listen.add_argument("--queues", metavar="Q", help='"all", 0-3 or 1,3: instead of numbers in --port')
    listen.add_argument("--steer", action="store_true", help="the NIC sends the feed to these queues")
    listen.add_argument("--set", **SET)
    _common(listen)
    listen.add_argument("--request", metavar="ADDRESS:PORT", help="MoldUDP64 request server")
    listen.add_argument(
        "--record", metavar="FILE", help="tap every frame into a pcapng that replays bit for bit"
    )
    listen.add_argument("--seconds", type=seconds, default=0.0, help="end after that time")
    listen.add_argument(
        "--slow", type=microseconds, default=10.0, metavar="US",
        help="alert where a turn took more than so many µs (10; 0: off), a line a second at most",
    )  # fmt: skip
    listen.add_argument("--packets", type=count, default=0, help="end after so many")
    listen.set_defaults(run=run_listen)

    replay = verbs.add_parser(
        "replay",
        help="run a capture, print what was in it",
        description="Run a capture (pcap, pcapng; gzip, zstd) through the engine. Flows with the same "
        "payloads are taken for lines of one channel unless --groups says otherwise. A recording of ours "
        "needs no --feed: it says itself what it holds.",
    )
    replay.add_argument("capture")
    _common(replay, required=False)
    replay.add_argument(
        "--speed", type=speed, default=0.0, help="1: as recorded, 10: ten times that, 0: flat out (default)"
    )
    replay.add_argument("--out", metavar="FILE", help="updates into FILE.parquet or FILE.csv")
    replay.set_defaults(run=run_replay)

    build = verbs.add_parser("build", help="a loadable decoder from a schema file")
    build.add_argument("schema", help="a TOML schema of fixed layouts, or one that names SBE XML")
    build.add_argument("-o", "--out", help="the shared object to write (default: NAME.so)")
    build.add_argument("--json", action="store_true")
    build.set_defaults(run=run_build)


def _common(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--feed",
        required=required,
        help=f"one of {', '.join(native.decoders())}, or a decoder built by `feed build`",
    )
    parser.add_argument(
        "--groups",
        action="append",
        metavar="A:PORT[,B:PORT…]",
        help="the lines of one channel; once for each channel",
    )
    parser.add_argument("--symbols", default="", help="only these instruments, comma-separated")
    parser.add_argument("--max-orders", type=count, help="orders alive at once that the books have room for")
    parser.add_argument("--json", action="store_true", help="one object, keys as in xdpstack.replay.summary")


def _channels(args: argparse.Namespace) -> Sequence[Sequence[str]] | None:
    if not args.groups:
        return None
    return [lines.split(",") for lines in args.groups]


def _symbols(args: argparse.Namespace) -> list[str]:
    return [symbol for symbol in args.symbols.split(",") if symbol]


def _bounds(args: argparse.Namespace) -> dict[str, int]:
    return {"max_orders": args.max_orders} if args.max_orders else {}


def run_replay(args: argparse.Namespace) -> int:
    """``feed replay CAPTURE --feed NAME``."""
    shown = [0.0]

    def progress(packets: int) -> None:
        if time.monotonic() - shown[0] > 0.2:
            shown[0] = time.monotonic()
            print(f"\r{packets:,} packets", end="", file=sys.stderr, flush=True)

    result = replays.replay(
        args.capture,
        args.feed,
        channels=_channels(args),
        speed=args.speed,
        symbols=_symbols(args),
        out=args.out,
        bounds=_bounds(args),
        progress=progress if sys.stderr.isatty() else None,
    )
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if args.json:
        print(json.dumps(result))
    else:
        print_summary(result)
    return 0


def run_listen(args: argparse.Namespace) -> int:
    """``feed listen --port PORT --feed NAME --groups …``."""
    if not args.groups:
        raise ConfigError("feed listen needs --groups A:PORT[,B:PORT…] for each channel")
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: stop.append(n))
    end = time.monotonic() + args.seconds if args.seconds else float("inf")
    keys = settings(args.set) | ({"steer": True} if args.steer else {})
    keys |= {"queues": args.queues} if args.queues else {}
    if keys:
        check_options(args.port.partition(":")[0], keys)
    engine = EngineConfig(slow=args.slow / 1e6)
    with nodes.open(args.port, record=args.record, engine=engine, **keys) as node:
        feed = node.feed(args.feed, channels=_channels(args), request=args.request, bounds=_bounds(args))
        counts = np.zeros(feed.config.max_instruments, np.int64)
        packets, shown = 0, time.monotonic()
        node.build()
        print(f"listening: {node!r}; end with Ctrl-C", file=sys.stderr, flush=True)
        print_notes(node)
        for batch in node.run(idle=lambda: bool(stop) or time.monotonic() > end, spins=2000):
            packets += batch.packets
            replays.count_updates(batch.of(feed), counts)
            now = time.monotonic()
            if now - shown > 1.0:
                shown = now
                node.missing()  # for `xdpstack stats`
                tell_alerts(node)
                if not args.json:
                    _print_top(feed, counts)
            if stop or now > end or (args.packets and packets >= args.packets):
                break
        tell_alerts(node)
        result = replays.summary(node, _symbols(args))
    if args.json:
        print(json.dumps(result))
    else:
        print_summary(result)
    return 0


def tell_alerts(node: nodes.Node) -> None:
    """A line on standard error for each alert since the last call; a caller's loop, not the turn's."""
    for alert in node.engine.alerts():
        print(f"xdpstack: {alert}", file=sys.stderr, flush=True)


def run_build(args: argparse.Namespace) -> int:
    """``feed build FILE``."""
    from xdpstack.schema import plugin

    built = plugin.build(args.schema, args.out)
    print(json.dumps({"decoder": str(built)}) if args.json else f"built {built}; use it as --feed {built}")
    return 0


def _print_top(feed: Feed, counts: np.ndarray[Any, Any]) -> None:
    for index in replays.busiest(counts, 5):
        shown = repr(feed.books.at(index)) if feed.books is not None else feed.symbol(index)
        print(f"  {shown} {counts[index]:,} updates")


def print_notes(what: Any) -> None:
    """What the host did not grant, and the mend: ``notes`` of a node or a fleet."""
    for note in what.notes:
        print(f"xdpstack: {note}", file=sys.stderr)


def print_summary(result: dict[str, Any]) -> None:
    """The summary as a page of text."""
    print(
        f"packets {result['packets']:,}"
        + (f", {result['truncated']} cut short" if result["truncated"] else "")
        + (f", {result['unrouted']:,} of no line (see --groups)" if result["unrouted"] else "")
    )
    for one in result.get("missing", ()):
        print(one["text"])
    if result["slow_turns"]:
        print(
            f"slow turns: {result['slow_turns']:,} took over {result['slow_limit_ns'] / 1000:g} µs, "
            f"the longest {result['slow_worst_ns'] / 1000:,.1f} µs"
        )
    for feed in result.get("feeds", {result.get("feed", ""): result}).values():
        print(
            f"{feed['feed']}: {feed['messages_total']:,} messages, {feed['updates']:,} updates, "
            f"{feed['instruments']:,} instruments"
        )
        for name, number in sorted(feed["messages"].items(), key=lambda item: -item[1]):
            print(f"    {name:<36} {number:>12,}")
        print(f"  {'line':<34} {'packets':>10} {'first':>10} {'duplicate':>10} {'lost':>8} {'reordered':>9}")
        for line in feed["lines"]:
            print(
                f"  {line['line']:<34} {line['packets']:>10,} {line['won']:>10,} {line['duplicate']:>10,}"
                f" {line['lost']:>8,} {line['reordered']:>9,}"
            )
        gaps = feed["gaps"]
        print(
            f"  gaps: {gaps['found']} found, {gaps['filled']} filled, {gaps['lost']} given up, "
            f"{gaps['open']} open;",
            end=" ",
        )
        print(f"restarts {feed['restarts']}")
        if feed.get("unknown_symbols"):
            print(f"  unknown symbols: {', '.join(feed['unknown_symbols'])}")
        for layer, reasons in feed["reasons"].items():
            print(f"  {layer}: " + ", ".join(f"{name} {count:,}" for name, count in reasons.items()))
