"""``xdpstack trace``: what the kernel does with packets on their way to us, as a live table.

XDP redirects, their errors and exceptions; NAPI polls by queue; softirq time by CPU; kicks and wake-ups of
AF_XDP sockets. Counted by bcc on tracepoints of the whole machine: softirqs and kicks are everybody's, and a
send of XDP is known by its interface's number alone, which another network namespace may use, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from xdpstack.cli._numbers import some_seconds

__all__ = ["register"]

_CLEAR = "\x1b[H\x1b[2J\x1b[3J"


def register(commands: Any) -> None:
    """Add ``trace``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "trace",
        help="redirects, NAPI polls, softirq time and kicks, counted in the kernel",
        description=__doc__,
    )
    parser.add_argument("interface", nargs="?", help="only its redirects, sends and polls")
    parser.add_argument(
        "--json", action="store_true",
        help="one object when the time is over: seconds, headers, borrowed_headers (of another kernel), "
        "xdp (interface, program, what, action, error, map, packets), "
        "sends (interface, from, error, sent, dropped), "
        "napi (device, napi, queue, polls, packets, full, empty), "
        "softirq (cpu, vector, runs, ns, longest_ns), "
        "kicks (pid, process, fd, kind, error, calls), wakeups (sockets, calls; null before Linux 6.3)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds",
        type=some_seconds,
        metavar="S",
        help="end after S seconds (with --json 1, else by SIGINT)",
    )
    parser.add_argument("--interval", type=some_seconds, default=1.0, metavar="S", help="seconds a table (1)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Count until the time is over, or SIGINT."""
    from xdpstack.trace import Tracer

    limit = args.seconds or (1.0 if args.json else float("inf"))
    with Tracer(args.interface) as tracer:
        if tracer.headers is not None and tracer.headers.borrowed:
            words = "the running kernel ships no headers; tracepoints are read with Debian's of"
            print(f"xdpstack: {words} {tracer.headers.version}", file=sys.stderr)
        try:
            print("tracing", file=sys.stderr, flush=True)
            end, last = time.monotonic() + limit, None
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, limit if args.json else args.interval))
                if not args.json:
                    counts = tracer.counts()
                    print((_CLEAR if sys.stdout.isatty() else "") + render(counts, last), flush=True)
                    last = counts
        except KeyboardInterrupt:
            pass
        if args.json:
            print(json.dumps(tracer.counts()))
    return 0


# What a row of each part is about, and what is counted of it.
_PARTS = {
    "xdp": (("interface", "program", "what", "action", "error"), ("packets",)),
    "sends": (("interface", "from", "error"), ("sent", "dropped")),
    "napi": (("device", "queue", "napi"), ("polls", "packets", "full", "empty")),
    "softirq": (("cpu", "vector"), ("runs", "ns", "longest_ns")),
    "kicks": (("process", "pid", "fd", "kind", "error"), ("calls",)),
}
_NO_RATE = ("longest_ns",)


def render(counts: dict[str, Any], last: dict[str, Any] | None) -> str:
    """The table: totals since the start, and behind each its rate a second since ``last``."""
    elapsed = counts["seconds"] - (last["seconds"] if last else 0.0)
    lines = [f"{counts['seconds']:.1f} s"]
    for part, (about, sums) in _PARTS.items():
        before = {tuple(row[k] for k in about): row for row in (last or {}).get(part, ())}
        if not counts[part]:
            continue
        lines += ["", _line(part, about, [cell for name in sums for cell in _columns(name, "/s")])]
        for row in counts[part]:
            key = tuple(row[k] for k in about)
            cells = []
            for name in sums:
                rate = (row[name] - before.get(key, {}).get(name, 0)) / max(elapsed, 1e-9)
                cells += _columns(name, f"{rate:,.0f}", f"{row[name]:,}")
            lines.append(_line("", ["-" if word in ("", None) else str(word) for word in key], cells))
    if counts["wakeups"]:
        calls, sockets = counts["wakeups"]["calls"], counts["wakeups"]["sockets"]
        lines += [
            "",
            f"wake-ups of AF_XDP readers: {calls:,} ({sockets} socket{'' if sockets == 1 else 's'})",
        ]
    return "\n".join(lines)


def _columns(name: str, rate: str, total: str = "") -> list[str]:
    return [total or name] if name in _NO_RATE else [total or name, rate]


def _line(head: str, about: Any, cells: list[str]) -> str:
    words = " ".join(f"{word:<12}" for word in about)
    return f"{head:<8}{words:<66}{' '.join(f'{cell:>12}' for cell in cells)}".rstrip()
