"""``xdpstack traffic``: send numbered frames at a rate or flat out, and count them at the other end."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

from xdpstack.cli._numbers import count as a_count
from xdpstack.cli._numbers import some_seconds, speed
from xdpstack.errors import ConfigError

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add ``traffic`` to the command tree."""
    group = commands.add_parser("traffic", help="generate frames and count them at both ends: send, receive")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)

    send = verbs.add_parser("send", help="send by an AF_XDP queue, or as live XDP frames")
    send.add_argument("port", help="xsk:INTERFACE[:QUEUE]")
    what = send.add_argument_group("what (one of --dst, --scapy, --capture)")
    what.add_argument("--dst", metavar="ADDRESS:PORT", help="UDP to there; over IPv6: [ADDRESS]:PORT")
    what.add_argument("--src", metavar="ADDRESS:PORT", help="from there (default: the interface, port 5000)")
    what.add_argument("--dmac", default="", help="default: the neighbour's, or the group's")
    what.add_argument("--smac", default="", help="default: the interface's")
    what.add_argument("--vlan", default="", metavar="ID[.ID]")
    what.add_argument("--size", type=a_count, default=0, help="bytes of a frame (default: the least)")
    what.add_argument("--scapy", metavar="EXPRESSION", help="e.g. 'Ether()/IP()/UDP(dport=9)'")
    what.add_argument("--capture", metavar="FILE", help="the frames of a capture, round and round")
    what.add_argument("--number", action="store_true", help="number a capture's UDP frames: changes them")
    send.add_argument("--rate", type=speed, default=0, help="frames a second (default 0: flat out)")
    send.add_argument("--batch", type=a_count, default=32, help="frames a commit (default 32)")
    send.add_argument("--live", action="store_true", help="by BPF_PROG_TEST_RUN, no socket")
    send.add_argument(
        "--to", metavar="PORT", help="count here as well: xsk:INTERFACE[:QUEUE], sock:INTERFACE"
    )
    send.set_defaults(run=_send)

    receive = verbs.add_parser(
        "receive", help="count what a sender elsewhere sends; says so when it is ready"
    )
    receive.add_argument("port", help="xsk:INTERFACE[:QUEUE[-QUEUE]], sock:INTERFACE or pcap:FILE")
    receive.add_argument("--dst", metavar="ADDRESS:PORT", help="what to take; needed but with pcap")
    receive.set_defaults(run=_receive)

    for verb in (send, receive):
        verb.add_argument(
            "--count", type=a_count, default=100_000, metavar="N", help="frames (default 100000)"
        )
        verb.add_argument(
            "--seconds", type=some_seconds, default=10.0, metavar="S", help="bound (default 10)"
        )
        verb.add_argument("--json", action="store_true", help="one JSON object")


def _template(args: argparse.Namespace, interface: str) -> Any:
    from xdpstack.interface import Interface
    from xdpstack.traffic import Template, endpoint

    given = [name for name in ("dst", "scapy", "capture") if getattr(args, name)]
    if len(given) != 1:
        raise ConfigError("traffic send needs one of --dst, --scapy and --capture")
    if args.number and not args.capture:
        raise ConfigError("traffic send --number is for --capture: other frames are numbered anyway")
    if args.scapy:
        return Template.scapy(args.scapy)
    if args.capture:
        return Template.capture(args.capture, number=args.number)
    address, _ = endpoint(args.dst)
    here = Interface.find(interface)
    dmac = args.dmac or ("" if address.is_multicast else here.neighbour(str(address)) or "")
    return Template.udp(
        src=args.src or _source(here, address),
        dst=args.dst,
        smac=args.smac or here.mac,
        dmac=dmac,
        vlan=args.vlan,
        size=args.size,
    )


def _source(here: Any, to: Any) -> str:
    """An address of the interface to send from: with the destination's longest prefix, of its scope."""
    import ipaddress

    if to.version == 4:
        return f"{here.address}:5000"
    own = [ipaddress.IPv6Interface(text) for text in here.addresses6]
    near = to.is_link_local or (to.is_multicast and to.packed[1] & 15 <= 2)  # RFC 4291 2.7: of this link
    fit = [one for one in own if one.is_link_local == near] or own
    if not fit:
        raise ConfigError(f"{here.name} has no IPv6 address that is in use: give --src [ADDRESS]:PORT")
    best = max(fit, key=lambda one: (to in one.network, one.network.prefixlen))
    return f"[{best.ip}]:5000"


def _sending_interface(text: str) -> tuple[str, int]:
    from xdpstack.port import parse_spec

    spec = parse_spec(text)
    if spec.kind != "xsk" or (spec.queues is not None and len(spec.queues) > 1):
        raise ConfigError(f"traffic send: {text!r} is not xsk:INTERFACE or xsk:INTERFACE:QUEUE")
    return spec.interface, spec.queues[0] if spec.queues else 0


def _receiver(
    stack: contextlib.ExitStack, args: argparse.Namespace, text: str, want: int, seconds: float
) -> Any:
    """A receiver over what ``text`` names, steered to ``--dst``."""
    from xdpstack.cli.capture import _steered
    from xdpstack.port import PcapPort, SockPort, parse_spec
    from xdpstack.traffic import Receiver, endpoint

    if text.startswith("sock:"):
        _needs_dst(args)
        endpoint(args.dst)
        return Receiver(
            stack.enter_context(SockPort([args.dst], interface=text.removeprefix("sock:"))),
            want=want,
            seconds=seconds,
        )
    spec = parse_spec(text)
    if spec.kind == "pcap":
        return Receiver(stack.enter_context(PcapPort(spec.path)), want=want, seconds=seconds)
    if spec.kind != "xsk":
        raise ConfigError(f"traffic: {text!r} is neither xsk:INTERFACE, sock:INTERFACE nor pcap:FILE")
    _needs_dst(args)
    endpoint(args.dst)
    return Receiver(stack.enter_context(_steered(text, [f"udp dst {args.dst}"])), want=want, seconds=seconds)


def _needs_dst(args: argparse.Namespace) -> None:
    if not args.dst:
        raise ConfigError("traffic needs --dst ADDRESS:PORT to know what to count")


def _send(args: argparse.Namespace) -> int:
    from xdpstack.cli.capture import _told_to_end
    from xdpstack.port import XskPort
    from xdpstack.traffic import Sender, send_live

    interface, queue = _sending_interface(args.port)
    bounds = {"rate": args.rate, "count": args.count, "seconds": args.seconds, "batch": args.batch}
    with contextlib.ExitStack() as stack:
        template = _template(args, interface)
        counter = None
        if args.to:
            counter = _receiver(stack, args, args.to, 0, args.seconds + 5)
        told = stack.enter_context(_told_to_end())
        if args.live:
            send: Callable[[], Any] = lambda: send_live(  # noqa: E731
                interface, template, **bounds, stop=lambda: told
            )
        else:
            port = stack.enter_context(XskPort(interface, queue, rx_ring=64, rx_frames=64))
            sender = Sender(port, template, **bounds)
            send = lambda: sender.run(lambda: told)  # noqa: E731
        if counter is None:
            sent, found = send(), None
        else:
            sent, found = _both(send, counter)
    result = dataclasses.asdict(sent)
    result["rate"] = round(sent.sent / sent.seconds) if sent.seconds else None
    if found is not None:
        result |= found
    return _show(result, args.json)


def _both(send: Callable[[], Any], counter: Any) -> tuple[Any, dict[str, Any]]:
    """Send here while another thread counts; it ends by the end mark, or when nothing came for a while."""
    over = threading.Event()
    thread = threading.Thread(target=counter.run, args=(over.is_set,), daemon=True)
    thread.start()
    try:
        sent = send()
        thread.join(1.0)
    finally:
        over.set()
        thread.join()
    return sent, counter.report(sent.numbered)


def _receive(args: argparse.Namespace) -> int:
    from xdpstack.cli.capture import _told_to_end

    with contextlib.ExitStack() as stack:
        counter = _receiver(stack, args, args.port, args.count, args.seconds)
        told = stack.enter_context(_told_to_end())
        print("counting", file=sys.stderr, flush=True)
        result = counter.run(lambda: told)
    return _show(result, args.json)


def _show(result: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(result))
        return 0
    ages = result.pop("age_ns", None)
    for key, value in result.items():
        text = "unknown" if value is None else f"{value:,}" if isinstance(value, int) else value
        print(f"{key.replace('_', ' '):<16} {text if not isinstance(text, float) else round(text, 6)}")
    if ages and result["received"]:
        print("age, us          " + "  ".join(f"{key} {ns / 1000:.1f}" for key, ns in ages.items()))
    return 0
