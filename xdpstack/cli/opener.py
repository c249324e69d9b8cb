"""``xdpstack opener POLICY.toml``: lend queues and flows to workers that have no privilege."""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import signal
import sys
from typing import Any

__all__ = ["register"]

_KEPT = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_BPF": 39}


def register(commands: Any) -> None:
    """Add ``opener``."""
    parser = commands.add_parser(
        "opener",
        help="lend queues and flows to workers that have no privilege",
        description="Serve a policy until SIGINT or SIGTERM, with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF "
        "only. Its interfaces have a filter already: xdpstack load. See xdpstack.opener.policy for the file.",
    )
    parser.add_argument("policy", help="users, interfaces, queues, rules (TOML)")
    parser.add_argument("--check", action="store_true", help="read the file, touch nothing")
    parser.add_argument("--status", action="store_true", help="ask the opener that serves it")
    parser.add_argument(
        "--keep", action="store_true", help="at the end leave workers running, for the next opener to adopt"
    )
    parser.add_argument("--json", action="store_true", help="with --check or --status: one JSON object")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from xdpstack.opener import policy as policies

    policy = policies.load(args.policy)
    if args.check:
        names = [worker.name for worker in policy.workers]
        print(
            json.dumps({"ok": True, "workers": names}) if args.json else f"{args.policy}: {', '.join(names)}"
        )
        return 0
    if args.status:
        return _status(policy.socket, args.json)
    _restrict()
    return _serve(policy, args.keep)


def _restrict() -> None:
    """Keep three capabilities, and start over with them: each thread has capabilities of its own, and
    libraries that were loaded until now may have begun some."""
    from xdpstack._ffi import lib
    from xdpstack.errors import SetupError

    wanted = sum(1 << number for number in _KEPT.values())
    if lib.xds_privilege_permitted() == wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    code = lib.xds_privilege_keep(wanted)
    if code < 0:
        raise SetupError(
            "keep " + ", ".join(_KEPT),
            os.strerror(-code),
            "run it as root, or from its systemd unit",
            -code,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _serve(policy: Any, keep: bool) -> int:
    from xdpstack.opener.server import Server

    logging.basicConfig(format="xdpstack: %(message)s", level=logging.INFO)
    stop: list[int] = []
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: stop.append(n))
    with Server(policy, keep=keep) as server:
        server.wake_by(wake)
        print(
            f"serving {policy.socket} to {', '.join(w.name for w in policy.workers)}",
            file=sys.stderr,
            flush=True,
        )
        while not stop:
            server.step()
    return 0


def _status(path: str, as_json: bool) -> int:
    from xdpstack.opener.client import status

    found = status(path)
    if as_json:
        print(json.dumps(found))
        return 0
    held = f"{len(found['leases'])} leases, {found['connections']} connections"
    print(f"opener {found['pid']} at {path}: {held}")
    for lease in found["leases"]:
        first, last = lease["queues"]
        waits = " (waiting for its worker)" if lease["orphan_since"] is not None else ""
        where = f"{lease['interface']}:{first}-{last}"
        print(f"  {lease['id']}: {lease['worker']}, pid {lease['pid']}, {where}{waits}")
        for rule in lease["rules"]:
            print(f"     {rule}")
    for name, count in sorted(found.get("counts", {}).items()):
        print(f"  {name.replace('_', ' '):<20} {count}")
    return 0
