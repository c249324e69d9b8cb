"""``xdpstack lab``: a venue and a trader namespace joined by a veth pair, kept until ``down``.

The namespaces are named ``/run/xdpstack/lab/NAME/venue`` and ``…/trader`` (``nsenter --net=PATH`` knows
them too). ``lab vm``, also spelled ``lab --vm``, is a virtual machine with network cards (tools/vmlab).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from xdpstack.errors import ConfigError, SetupError

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add ``lab`` to the command tree."""
    group = commands.add_parser("lab", help="two namespaces to try things in, or a virtual machine (--vm)")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)

    up = verbs.add_parser("up", help="make the lab; it stays until `lab down`")
    up.add_argument("name", nargs="?", default="lab")
    up.add_argument(
        "--queues", type=int, default=1, help="receive and transmit queues of either end (default 1)"
    )
    up.add_argument("--mtu", type=int, default=1500, help="bytes (default 1500)")
    up.add_argument("--offloads", action="store_true", help="leave checksum and segmentation offloads on")
    up.set_defaults(run=_up)

    down = verbs.add_parser("down", help="end what runs in the lab and remove it")
    down.add_argument("name", nargs="?", default="lab")
    down.set_defaults(run=_down)

    execute = verbs.add_parser("exec", help="run a command in a namespace: lab exec trader ip addr")
    execute.add_argument("--lab", default="lab", metavar="NAME")
    execute.add_argument("namespace")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND …")
    execute.set_defaults(run=_exec)

    status = verbs.add_parser("status", help="the labs that stand on this host")
    status.set_defaults(run=_status)

    machine = verbs.add_parser("vm", help="a virtual machine with network cards: lab vm -- ethtool -i igb0")
    machine.add_argument(
        "--timeout", type=float, metavar="S", help="seconds until it is killed (default 480, a shell 4 hours)"
    )
    machine.add_argument("--verbose", action="store_true", help="kernel messages on stderr")
    machine.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND …", help="none: a shell")
    machine.set_defaults(run=_vm)

    for verb in (up, down, status):
        verb.add_argument("--json", action="store_true", help="one JSON object")


def _up(args: argparse.Namespace) -> int:
    from xdpstack.lab import Lab, pair

    if not 1 <= args.queues <= 64:
        raise ConfigError(f"--queues {args.queues}: from 1 to 64")
    if not 68 <= args.mtu <= 65535:
        raise ConfigError(f"--mtu {args.mtu}: from 68 to 65535 bytes")
    with Lab(args.name, persistent=True) as lab:
        pair(lab, queues=args.queues, mtu=args.mtu, offloads=args.offloads)
        lab.settle()
    _show([_described(args.name)], args.json, single=True)
    return 0


def _down(args: argparse.Namespace) -> int:
    from xdpstack.lab import Lab

    if not Lab.remove(args.name):
        raise SetupError(f"remove lab {args.name}", "there is none")
    print(json.dumps({"name": args.name, "removed": True}) if args.json else f"lab {args.name} is gone")
    return 0


def _exec(args: argparse.Namespace) -> int:
    from xdpstack.lab import Lab, host

    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    if not argv:
        raise ConfigError("lab exec: name a command, e.g. lab exec trader ip addr")
    fd = Lab.attach(args.lab, args.namespace)
    host.setns(fd)
    os.close(fd)
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        raise ConfigError(f"lab exec: there is no program {argv[0]!r}") from None


def _vm(args: argparse.Namespace) -> int:
    from xdpstack.lab import host, vm

    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    host.die_with_parent(os.getppid())  # and QEMU with us
    try:
        return vm.run(argv, timeout_s=args.timeout, verbose=args.verbose)
    except vm.CannotRunError as error:
        print(f"xdpstack: {error}", file=sys.stderr)
        return vm.CANNOT_RUN


def _status(args: argparse.Namespace) -> int:
    from xdpstack.lab import host

    _show([_describe(state) for state in host.live_states()], args.json)
    return 0


def _described(name: str) -> dict[str, Any]:
    from xdpstack.lab import host

    return _describe(host.read_state(host.STATE_DIR / f"{name}.json"))


def _describe(state: dict[str, Any]) -> dict[str, Any]:
    """What ``status`` shows of a lab; these keys are its JSON."""
    from xdpstack.lab import host

    return {
        "name": state["name"],
        "persistent": state["persistent"],
        "owner": None if state["persistent"] else state["owner"],
        "namespaces": [
            {
                "name": name,
                "cookie": ns["cookie"],
                "path": ns["path"],
                "processes": host.processes_in([ns], ""),
                "links": [link for link in state["links"] if link["namespace"] == name],
            }
            for name, ns in state["namespaces"].items()
        ],
    }


def _show(labs: list[dict[str, Any]], as_json: bool, single: bool = False) -> None:
    if as_json:
        print(json.dumps(labs[0] if single else {"labs": labs}))
        return
    if not labs:
        print("no lab stands on this host")
    for lab in labs:
        held = "until `lab down`" if lab["persistent"] else f"held by process {lab['owner']}"
        print(f"{lab['name']}  {held}")
        for ns in lab["namespaces"]:
            links = (
                ", ".join(f"{link['name']} {link['address'] or link['mac']}" for link in ns["links"])
                or "no link"
            )
            print(f"  {ns['name']:8} {links}  {len(ns['processes'])} processes  {ns['path'] or 'no name'}")
