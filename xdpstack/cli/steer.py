"""``xdpstack load | unload | status | rules``: the steering filter of an interface."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xdpstack import bpf
from xdpstack.attached import ifindex_of
from xdpstack.bpf import Counters, Filter
from xdpstack.cli._numbers import seconds
from xdpstack.dispatcher import PRIORITY, chained, evict
from xdpstack.errors import ConfigError, SetupError
from xdpstack.linklife import seen_by_engines
from xdpstack.links import CARRIER_SECONDS, Link, links
from xdpstack.missing import missing
from xdpstack.pins import clean_up_dead, forget, pin_dir
from xdpstack.rules import Rule, decide, load_rules, parse_rule

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the commands of steering to the command tree."""
    load = commands.add_parser("load", help="load the steering filter; it stays until `unload`")
    load.add_argument("interface")
    load.add_argument("--mode", choices=("auto", "native", "generic"), default="auto")
    load.add_argument("--rules", metavar="FILE", help="one rule a line; # starts a comment")
    load.add_argument("--force", action="store_true", help="replace what somebody else attached")
    load.add_argument(
        "--carrier-wait",
        type=seconds,
        default=CARRIER_SECONDS,
        metavar="S",
        help="how long attaching may take the carrier away (30; 0: do not wait)",
    )
    load.add_argument("--device-bound", action="store_true", help="ask the driver for receive time stamps")
    load.add_argument(
        "--metadata",
        type=lambda text: text.split(","),
        default=[],
        metavar="WORDS",
        help="ask the driver, which must have them, for some of timestamp,hash,vlan-tag",
    )
    load.add_argument("--no-stamp", action="store_true", help="write no receive stamps before the frames")
    load.add_argument(
        "--dispatcher", action="store_true",
        help="beside other XDP programs, in libxdp's dispatcher; frames are stamped at delivery",
    )  # fmt: skip
    load.add_argument(
        "--priority",
        type=int,
        metavar="N",
        help=f"with --dispatcher: its place, lower ones run first ({PRIORITY}; libxdp's default is 50)",
    )
    load.set_defaults(run=_load)

    unload = commands.add_parser("unload", help="detach the steering filter and remove its pins")
    unload.add_argument("interface")
    unload.add_argument("--force", action="store_true", help="detach also what is not ours")
    unload.set_defaults(run=_unload)

    status = commands.add_parser("status", help="filters on the interfaces, their rules and counters")
    status.add_argument("interface", nargs="?")
    status.set_defaults(run=_status)

    rules = commands.add_parser("rules", help="rules of a loaded filter: list, add, del, test")
    verbs = rules.add_subparsers(dest="verb", metavar="VERB", required=True)
    show = verbs.add_parser("list", help="the rules in force, in order, with their counters")
    show.add_argument("interface")
    show.set_defaults(run=_rules_list)
    add = verbs.add_parser("add", help="put a rule in force: rules add eth0 'udp dst 239.1.2.3:5000 -> feed'")
    add.add_argument("interface")
    add.add_argument("rule")
    add.add_argument("--before", type=int, metavar="ID", help="before this rule; else as the last")
    add.set_defaults(run=_rules_add)
    delete = verbs.add_parser("del", help="take a rule out of force")
    delete.add_argument("interface")
    delete.add_argument("id", type=int)
    delete.set_defaults(run=_rules_del)
    test = verbs.add_parser("test", help="what the rules would do: a dry run in the kernel, nothing moves")
    test.add_argument("interface", help="an interface with a filter, or - with --rules")
    test.add_argument("frame", help="an Ethernet frame in hex, or a capture file")
    test.add_argument("--rules", metavar="FILE", help="these rules instead of those in force")
    test.set_defaults(run=_rules_test)

    for parser in (load, unload, status, show, add, delete, test):
        parser.add_argument("--json", action="store_true", help="one JSON object")


def _say(args: argparse.Namespace, data: dict[str, Any], text: str) -> int:
    print(json.dumps(data) if args.json else text)
    return 0


def _hear_warnings() -> None:
    """Warnings of the control plane (mounted bpffs, generic mode) reach the user's terminal."""
    logging.basicConfig(format="xdpstack: %(message)s", level=logging.WARNING)


# ---- load, unload -------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> int:
    _hear_warnings()
    if args.priority is not None and not args.dispatcher:
        raise ConfigError("--priority is of a filter in the dispatcher: add --dispatcher")
    rules: list[Rule] = load_rules(args.rules) if args.rules else []
    with Filter.load(
        args.interface,
        args.mode,
        rules,
        pin=True,
        force=args.force,
        device_bound=args.device_bound,
        metadata=args.metadata,
        stamp=not args.no_stamp,
        carrier_wait=args.carrier_wait,
        dispatcher=args.dispatcher,
        priority=PRIORITY if args.priority is None else args.priority,
    ) as steering:
        data = {"interface": args.interface, "mode": steering.mode, "rules": len(rules), **steering.info()}
        data["replaced"] = steering.replaced
        data["dispatcher"] = _members(args.interface)
        text = f"{args.interface}: filter loaded in {steering.mode} mode with {len(rules)} rules"
        if args.dispatcher:
            others = sum(not one["ours"] for one in data["dispatcher"])
            text += f", in the dispatcher with {others} other program{'' if others == 1 else 's'}"
        return _say(args, data, text)


def _unload(args: argparse.Namespace) -> int:
    _hear_warnings()
    name = args.interface
    ends_with, there = bpf.owner(name), bpf.all_attached(name)
    if clean_up_dead(name):
        text = f"{name}: the filter that dead process {ends_with.pid if ends_with else 0} left is taken out"
    elif any(one.ours for one in chained(name)) and not bpf.ours(name):  # of a process that runs
        whose = f"process {ends_with.pid}" if ends_with else "nobody that we know of"
        if not args.force:
            raise SetupError(name, f"the filter in its dispatcher ends with {whose}", "--force takes it out")
        evict(name)
        forget(pin_dir(ifindex_of(name)))
        text = f"{name}: the filter of {whose} is taken out of the dispatcher"
    elif there and not bpf.ours(name):
        if not args.force:
            reason = f"{' and '.join(map(str, there))} was not loaded by `xdpstack load`"
            raise SetupError(name, reason, "--force detaches it")
        bpf.detach_any(name)
        text = f"{name}: detached {' and '.join(map(str, there))}"
    else:
        with Filter.open_pinned(name) as steering:
            steering.unload()
        left = chained(name)
        text = f"{name}: filter unloaded" + (f"; {' and '.join(map(str, left))} stays" if left else "")
    return _say(args, {"interface": name, "unloaded": True}, text)


# ---- status -------------------------------------------------------------------------------------


def _describe(name: str, link: Link | None, engines: list[dict[str, Any]]) -> dict[str, Any]:
    """What is on one interface, and what the engines that watch it say; ``link`` None: it is gone."""
    data: dict[str, Any] = {"interface": name, "attached": None, "pinned": False, "engines": engines}
    data |= {"others": [], "ours": False, "dispatcher": [], "owner": None}
    if link is None:
        return data | {"state": engines[0]["state"] if engines else "deleted", "mtu": 0}
    data |= {"state": link.state, "mtu": link.mtu}
    if there := bpf.all_attached(name):
        data["attached"] = asdict(there[0]) | {"origin": there[0].origin()}
        data["others"] = [asdict(one) | {"origin": one.origin()} for one in there[1:]]
    data["ours"] = bpf.ours(name)
    data["dispatcher"] = _members(name)
    if ends_with := bpf.owner(name):
        data["owner"] = {"pid": ends_with.pid, "alive": ends_with.is_alive}
    if name in bpf.pinned():
        with Filter.open_pinned(name) as steering:
            data |= {"pinned": True, **steering.info(), "groups": steering.groups}
            data |= _counted(name, steering.rules, steering.counters())
    return data


def _members(name: str) -> list[dict[str, Any]]:
    return [asdict(one) for one in chained(name)]


def _counted(interface: str, rules: list[Rule], counters: Counters) -> dict[str, Any]:
    return {
        "rules": [{"id": r.id, "rule": str(r), **asdict(counters.rules[r.id])} for r in rules],
        "reasons": {word: asdict(count) for word, count in counters.reasons.items()},
        "no_socket": [{**asdict(one), "text": str(one)} for one in missing(interface, counters)],
    }


def _status(args: argparse.Namespace) -> int:
    there, engines = links(), seen_by_engines()
    gone: dict[str, list[dict[str, Any]]] = {}
    for one in engines.get(0, []):
        if one["interface"] not in there:
            gone.setdefault(one["interface"], []).append(one)
    name = args.interface
    if name and name not in there and name not in gone:
        raise SetupError(f"{name}: no such interface in this network namespace", errno=errno.ENODEV)
    found = [_describe(one.name, one, engines.get(one.index, [])) for one in there.values()]
    found += [_describe(one, None, watched) for one, watched in gone.items()]
    if name:
        found = [data for data in found if data["interface"] == name]
    else:
        found = [data for data in found if data["attached"] or data["pinned"] or data["engines"]]
    text = "\n".join(_status_text(data) for data in found) or "no XDP program on any interface"
    return _say(args, {"interfaces": found}, text)


_STATES = {
    "up": "up",
    "no_carrier": "no carrier",
    "down": "down",
    "moved": "in another network namespace",
    "deleted": "deleted",
}


def _status_text(data: dict[str, Any]) -> str:
    name, there = data["interface"], data["attached"]
    lines = []
    if there is None:
        left = ", but pins of ours are left: xdpstack unload" if data["pinned"] else ""
        lines.append(f"{name}: no XDP program{left}")
    else:
        by = "loaded by xdpstack" if data["ours"] and not data["dispatcher"] else there["origin"]
        lines.append(f"{name}: program {there['prog_id']} ({there['name']}), {there['mode']} mode, {by}")
    lines += [
        f"  and program {one['prog_id']} ({one['name']}), {one['mode']} mode, {one['origin']}"
        for one in data["others"]
    ]
    lines += [_member_text(one, data) for one in data["dispatcher"]]
    if not any(one["ours"] for one in data["dispatcher"]) and data["owner"] and not data["owner"]["alive"]:
        lines.append(f"  pins are left of dead process {data['owner']['pid']}: xdpstack unload {name}")
    if data["pinned"] and data["device_bound"]:
        asked = data["metadata"]
        words = "what is told to root alone" if asked is None else ", ".join(asked) or "nothing"
        lines.append(f"  asks the driver for {words} of each frame")
    lines.append(f"  {_STATES[data['state']]}" + (f", MTU {data['mtu']}" if data["mtu"] else ""))
    lines += [_engine_text(name, one) for one in data["engines"]]
    if data["pinned"]:
        lines += _table(data)
    return "\n".join(lines)


def _member_text(one: dict[str, Any], data: dict[str, Any]) -> str:
    """A program of the dispatcher; of ours, whose it is and what it does without."""
    text = f"  {one['priority']:>4} program {one['prog_id']} ({one['name']})"
    text += f", goes on after {', '.join(one['goes_on']) or 'nothing'}"
    if not one["ours"]:
        return text
    owner = data["owner"]
    if owner is None:
        whose = "loaded by xdpstack" if data["ours"] else "ours"
    elif owner["alive"]:
        whose = f"of process {owner['pid']}, ends with it"
    else:
        mend = f"xdpstack unload {data['interface']}"
        whose = f"left by dead process {owner['pid']}, the kernel gets its frames: {mend}"
    return f"{text}, {whose}; frames are stamped at delivery, not at the hook"


def _engine_text(name: str, one: dict[str, Any]) -> str:
    """How an engine sees the interface, and what happened to it since the engine started."""
    text = f"  engine {one['engine']} (pid {one['pid']}): {_STATES[one['state']]}"
    if one["interface"] != name:
        text += f", called {one['interface']} at its start"
    if 0 < one["mtu_max"] < one["mtu"]:
        text += f", MTU above the {one['mtu_max']} that its frames hold: longer packets are dropped"
    happened = ", ".join(f"{kind} {count}" for kind, count in one["events"].items())
    return text + (f"; so far: {happened}" if happened else "")


def _table(data: dict[str, Any]) -> list[str]:
    lines = [f"  {'id':>4} {'packets':>14} {'bytes':>16}  rule"] if data["rules"] else ["  no rules"]
    lines += [f"  {r['id']:>4} {r['packets']:>14} {r['bytes']:>16}  {r['rule']}" for r in data["rules"]]
    for word, count in data["reasons"].items():
        if count["packets"]:
            lines.append(f"  {'':>4} {count['packets']:>14} {count['bytes']:>16}  ({word.replace('_', ' ')})")
    for row in data["no_socket"]:
        lines.append(f"  {row['text']}")
    return lines


# ---- rules --------------------------------------------------------------------------------------


def _rules_list(args: argparse.Namespace) -> int:
    with Filter.open_pinned(args.interface) as steering:
        data = {"interface": args.interface, **_counted(args.interface, steering.rules, steering.counters())}
    return _say(args, data, "\n".join(_table(data)))


def _rules_add(args: argparse.Namespace) -> int:
    parse_rule(args.rule)  # a malformed one is a usage mistake, whatever is loaded
    with Filter.open_pinned(args.interface) as steering:
        number = steering.add_rule(args.rule, before=args.before)
        (rule,) = [rule for rule in steering.rules if rule.id == number]
    return _say(args, {"interface": args.interface, "id": number, "rule": str(rule)}, f"{number}: {rule}")


def _rules_del(args: argparse.Namespace) -> int:
    with Filter.open_pinned(args.interface) as steering:
        gone = steering.delete_rule(args.id)
    data = {"interface": args.interface, "id": gone.id, "rule": str(gone)}
    return _say(args, data, f"{gone.id} deleted: {gone}")


def _tester(args: argparse.Namespace) -> Filter:
    if args.rules:
        return Filter.dry(load_rules(args.rules))
    if args.interface == "-":
        raise ConfigError("rules test -: which rules? give --rules FILE")
    return Filter.open_pinned(args.interface)


def _rules_test(args: argparse.Namespace) -> int:
    if Path(args.frame).is_file():
        return _test_capture(args)
    try:
        frame = bytes.fromhex(args.frame.replace(":", ""))
    except ValueError:
        raise ConfigError(f"{args.frame!r} is neither a file nor a frame in hex") from None
    with _tester(args) as steering:
        found = steering.test(frame)
        model = decide(steering.rules, frame)
    if found != model:
        raise SetupError("the program and its model disagree", f"{found} and {model}", "please report it")
    data = {
        "action": found.action,
        "reason": found.reason,
        "rule": {"id": found.rule.id, "rule": str(found.rule)} if found.rule else None,
        "group": found.rule.group if found.rule else None,
        "counted": [rule.id for rule in found.counted],
    }
    why = f"rule {found.rule.id}: {found.rule}" if found.rule else found.reason
    return _say(args, data, f"{found.action} ({why})")


def _frames(path: str) -> Iterator[bytes]:
    """The frames of a capture; on a terminal, with their number as they go."""
    from xdpstack.port import PcapPort

    told, count = time.monotonic(), 0
    with PcapPort(path) as capture:
        while not capture.at_end:
            for frame in capture.receive(64):
                yield bytes(frame.data)
                count += 1
            if sys.stderr.isatty() and time.monotonic() - told > 0.5:
                told = time.monotonic()
                print(f"\r{count} frames", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


def _test_capture(args: argparse.Namespace) -> int:
    with _tester(args) as steering:
        rules, counters = steering.rules, steering.test_all(_frames(args.frame))
    total = sum(count.packets for count in counters.reasons.values())
    data = {"capture": args.frame, "frames": total, **_counted(args.interface, rules, counters)}
    return _say(args, data, "\n".join([f"{args.frame}: {total} frames", *_table(data)]))
