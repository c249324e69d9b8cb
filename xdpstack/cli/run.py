"""``xdpstack run CONFIG.toml``: the engine, free-running, until SIGINT; everything put back on exit.

Its counters lie in /dev/shm under ``[engine] name``, or the name of the file, for ``stats``, ``top`` and
``metrics``. A killed engine's stay there until the next of that name begins, or ``stats --sweep``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from xdpstack import config, fleet, replay
from xdpstack import node as nodes
from xdpstack._ffi import names_of_code
from xdpstack.cli._numbers import count, microseconds, seconds
from xdpstack.cli._settings import SET, settings
from xdpstack.cli.feed import print_notes, print_summary, tell_alerts
from xdpstack.errors import ConfigError
from xdpstack.stats import ROOT, sweep

__all__ = ["register"]

_ROOM = 16 << 20  # in /dev/shm, for the segments of an engine and what it refused


def register(commands: Any) -> None:
    """Add ``run``."""
    parser = commands.add_parser(
        "run", help="run the engine of a TOML file until SIGINT", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("config", help="ports, feeds and engine; see xdpstack.config")
    parser.add_argument("--set", **SET)
    parser.add_argument("--cpu", type=count, metavar="N", help="the core of the engine's thread")
    parser.add_argument("--rt-priority", type=count, metavar="N", help="SCHED_FIFO, 1 to 99; 0: none")
    parser.add_argument("--lock-memory", action="store_true", help="no page of the process leaves memory")
    parser.add_argument(
        "--cpu-latency",
        type=microseconds,
        metavar="US",
        help="µs that idle cores may take to wake",
    )
    parser.add_argument("--seconds", type=seconds, default=0.0, help="end by itself after that time")
    parser.add_argument(
        "--takeover",
        action="store_true",
        help="take the ports of the process that runs it now, which ends; no frame is lost ([handover])",
    )
    parser.add_argument("--force", action="store_true", help="replace what somebody else attached")
    parser.add_argument("--check", action="store_true", help="read the file, touch nothing")
    parser.add_argument("--json", action="store_true", help="the summary as one object at the end")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Bring the host up, turn on a native thread, wait, put everything back."""
    program = _placed(config.load(args.config, settings(args.set)), args)
    if args.check:
        print(
            json.dumps({"ok": True})
            if args.json
            else f"{args.config}: {len(program.ports)} ports, {len(program.feeds)} feeds"
        )
        return 0
    logging.basicConfig(format="xdpstack: %(message)s", level=logging.WARNING)
    for word in ("xdpstack.links", "xdpstack.alerts"):
        logging.getLogger(word).setLevel(logging.INFO)
    program = _seen(program, args.config)
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: stop.append(n))
    end = time.monotonic() + args.seconds if args.seconds else float("inf")
    if program.engines == "queue":
        if program.handover or args.takeover:
            raise ConfigError(f"{args.config}: a handover is of one engine, not of one a queue")
        return run_fleet(args, program, fleet.open(program, force=args.force), stop, end)
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(nodes.open(program, takeover=args.takeover, force=args.force))
        node.start(cpu=program.cpu)
        offer = stack.enter_context(node.offer()) if program.handover else None
        _say_running(node, program)
        print_notes(node)
        judge = node.judge()
        shown = time.monotonic()
        while not stop and time.monotonic() < end and node.running:
            judge.look()
            node.link_events()  # logged as they come; an interface that stays away ends the run
            if offer is None:
                time.sleep(0.05)
            elif (asked := offer.wait(0.05)) is not None:
                if node.hand_over(offer, asked):
                    print(f"handed over to process {offer.taken_by}", file=sys.stderr, flush=True)
                    return _report(args, replay.summary(node), 0)
                node.start(cpu=program.cpu)
            tell_alerts(node)
            if time.monotonic() - shown > 1.0:
                shown = time.monotonic()
                node.missing()  # for `xdpstack stats`
        failed = node.stop()
        tell_alerts(node)
        result = replay.summary(node)
    return _report(args, result, failed)


def _placed(program: config.Program, args: argparse.Namespace) -> config.Program:
    """The program with what the flags say of its core, priority and memory."""
    if args.cpu is not None:
        if program.engines == "queue":
            raise ConfigError("run: --cpu is of one engine; of one a queue, [engine] cpus = [2, 3] says it")
        if args.cpu >= 8192:
            raise ConfigError(f"run: --cpu {args.cpu}: no machine has so many cores")
        program = dataclasses.replace(program, cpu=args.cpu)
    given: dict[str, Any] = {"lock_memory": True} if args.lock_memory else {}
    given |= {} if args.rt_priority is None else {"rt_priority": args.rt_priority}
    given |= {} if args.cpu_latency is None else {"cpu_latency": args.cpu_latency / 1e6}
    return dataclasses.replace(program, placement=dataclasses.replace(program.placement, **given))


def _seen(program: config.Program, path: str) -> config.Program:
    """The program with a name for what other processes see of it: without one in the file, the file's own.
    What a killed engine of that name left is removed. Where there is no room to be seen a name of the file
    is an error, and without one the engine runs unseen."""
    name = program.engine.name
    if not name:
        name = re.sub(r"[^A-Za-z0-9_.:+-]", "_", Path(path).stem)[:24] or f"engine-{os.getpid()}"
        if why := _no_room():
            print(f"xdpstack: stats and top will not see this engine: {why}", file=sys.stderr)
            return program
    sweep(name=name)
    return dataclasses.replace(program, engine=dataclasses.replace(program.engine, name=name))


def _no_room() -> str:
    """Why no segment can be made; empty where one can."""
    try:
        there = os.statvfs(ROOT)
    except OSError as error:
        return f"{ROOT}: {error.strerror}"
    if not os.access(ROOT, os.W_OK):
        return f"{ROOT} may not be written"
    free = there.f_bavail * there.f_frsize
    return f"{ROOT} has {free >> 20} MiB free, wanted are {_ROOM >> 20}" if free < _ROOM else ""


def _report(args: argparse.Namespace, result: dict[str, Any], failed: int) -> int:
    """Print the summary; the exit code."""
    if args.json:
        print(json.dumps(result))
    else:
        print_summary(result)
    if failed:
        why = os.strerror(-failed) if failed > -4096 else names_of_code(failed)
        print(f"xdpstack: {args.config}: the engine's thread ended: {why}", file=sys.stderr)
    return 1 if failed else 0


def tell_fleet_alerts(engines: fleet.Fleet) -> None:
    """A line on standard error for each alert since the last call, with the engine's name."""
    for name, alert in engines.alerts():
        print(f"xdpstack: {name}: {alert}", file=sys.stderr, flush=True)


def _say_running(what: nodes.Node | fleet.Fleet, program: config.Program) -> None:
    name = program.engine.name
    look = f"look with `xdpstack stats` and `top` (it is {name})" if name else "nothing shows it"
    print(f"running: {what!r}; end with Ctrl-C, {look}", file=sys.stderr, flush=True)


def run_fleet(
    args: argparse.Namespace, program: config.Program, engines: fleet.Fleet, stop: list[int], end: float
) -> int:
    """The same for one engine a queue."""
    with engines:
        engines.start()
        _say_running(engines, program)
        print_notes(engines)
        judge = engines.judge()
        shown = time.monotonic()
        while not stop and time.monotonic() < end and engines.running:
            judge.look()
            engines.link_events()  # logged as they come; an interface that stays away ends the run
            time.sleep(0.05)
            tell_fleet_alerts(engines)
            if time.monotonic() - shown > 1.0:
                shown = time.monotonic()
                engines.missing()  # for `xdpstack stats`
        failed = engines.stop()
        tell_fleet_alerts(engines)
        result = engines.summary()
    if args.json:
        print(json.dumps(result))
    else:
        for one in result.get("missing", ()):
            print(one["text"])
        for one in result["engines"]:
            core = "" if one["cpu"] is None else f" on core {one['cpu']}"
            print(f"{one['engine']}: queue {one['queue']}{core}")
            if "packets" in one:
                print_summary(one)
    for sentence in failed:
        print(f"xdpstack: {args.config}: {sentence}", file=sys.stderr)
    return 1 if failed else 0
