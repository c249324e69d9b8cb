"""``xdpstack capture``: frames from a port into a capture file, and a summary of a capture file."""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from xdpstack._ffi import ffi, lib
from xdpstack.cli._dropped import capture_dropped, sentence
from xdpstack.cli._numbers import count as a_count
from xdpstack.cli._numbers import seconds as a_time
from xdpstack.dropped import Refused
from xdpstack.errors import ConfigError
from xdpstack.port import NEVER, Hints, LinkPort, PcapPort, PcapWriter, XskPort, open_link, parse_spec
from xdpstack.port.base import hints_of

__all__ = ["capture", "register", "summary"]

GROUP = "capture"
_BURST = 64
_WAIT_MS = 100
_SHOWN = 20
"""Destinations that a summary names."""


def register(commands: Any) -> None:
    """Add ``capture`` to the command tree."""
    parser = commands.add_parser(
        "capture",
        help="frames from a port into a pcap or pcapng file; --read sums a file up",
        description="What the rules name goes into the file: while the capture runs it reaches nobody else.",
    )
    parser.add_argument("port", nargs="?", help="xsk:INTERFACE[:QUEUE[-QUEUE]], or pcap:FILE to convert")
    parser.add_argument("-w", "--write", metavar="FILE", help="*.pcap or *.pcapng, then .gz or .zst")
    parser.add_argument(
        "--dropped",
        action="store_true",
        help="of an interface, or of a running engine by its name: what was refused, and why",
    )
    parser.add_argument(
        "--every", type=a_count, default=1, metavar="N", help="with --dropped: one in N of the filter's"
    )
    parser.add_argument("--read", metavar="FILE", help="sum a capture up")
    parser.add_argument(
        "--rules",
        action="append",
        default=[],
        metavar="MATCH",
        help="what to capture, e.g. 'udp dst 233.54.12.0/24' (again for more); needed with xsk",
    )
    parser.add_argument(
        "--metadata",
        type=lambda text: text.split(","),
        default=[],
        metavar="WORDS",
        help="with xsk: have the driver tell some of timestamp,hash,vlan-tag, which a .pcapng keeps",
    )
    parser.add_argument("--count", type=a_count, default=0, metavar="N", help="end after N frames")
    parser.add_argument("--seconds", type=a_time, default=0.0, metavar="S", help="end after S seconds")
    parser.add_argument(
        "--snaplen", type=a_count, default=65535, metavar="BYTES", help="cut longer frames (default 65535)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.every != 1 and not args.dropped:
        raise ConfigError("capture --every goes with --dropped")
    if args.metadata and (args.read or args.dropped):
        raise ConfigError("capture --metadata goes with a port, not with --read or --dropped")
    if args.read:
        if args.port or args.write or args.dropped:
            raise ConfigError("capture --read FILE takes neither PORT nor -w nor --dropped")
        found = summary(args.read)
        _show(found, args.json)
        return 1 if found["damaged"] else 0
    if args.dropped:
        return _dropped(args)
    if not args.port or not args.write:
        raise ConfigError("capture needs PORT and -w FILE, or --read FILE")
    progress = _progress if sys.stderr.isatty() and not args.json else None
    result = capture(
        args.port,
        args.write,
        rules=args.rules,
        metadata=args.metadata,
        count=args.count,
        seconds=args.seconds,
        snaplen=args.snaplen,
        progress=progress,
    )
    return _show(result, args.json)


def _print(one: Refused) -> None:
    print(sentence(one, _name(_destination(memoryview(one.data)))), flush=True)


def _dropped(args: argparse.Namespace) -> int:
    if not args.port or args.rules:
        raise ConfigError("capture --dropped needs an interface or an engine's name, and takes no --rules")
    with _told_to_end() as told:
        result = capture_dropped(
            args.port,
            args.write,
            every=args.every,
            count=args.count,
            seconds=args.seconds,
            snaplen=args.snaplen,
            show=None if args.json else _print,
            told=told,
        )
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{result['frames']:,} refused frames of {', '.join(result['watched'])}")
    for reason, number in result["reasons"].items():
        print(f"  {reason:<50} {number:>12,}")
    for source, number in result["lost"].items():
        if number:
            print(f"  {source}: {number:,} more found no room to be shown")
    return 0


def _progress(frames: int, size: int) -> None:
    print(f"\r{frames:,} frames, {size:,} bytes", end="", file=sys.stderr, flush=True)


def _show(result: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(result))
        return 0
    for key, value in result.items():
        if key == "destinations":
            for one in value:
                print(f"  {one['to']:<40} {one['packets']:>12,} packets {one['bytes']:>14,} bytes")
        elif key == "interfaces":
            for one in value:
                name, kind, frames = one["name"] or "-", one["linktype"], one["frames"]
                print(f"  interface {name}: link type {kind}, {frames:,} frames")
        else:
            text = f"{value:,}" if type(value) is int else value
            print(f"{key.replace('_', ' '):<16} {text}")
    return 0


# ---- capturing ---------------------------------------------------------------------------------------


def capture(
    port: str,
    path: str | Path,
    *,
    rules: list[str] | None = None,
    metadata: Collection[str] = (),
    count: int = 0,
    seconds: float = 0.0,
    snaplen: int = 65535,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write what comes by ``port`` to ``path``, until ``count`` frames, ``seconds``, SIGINT or SIGTERM.

    ``metadata``: words of ``bpf.METADATA`` that the driver is to tell; hash and tag become comments of the
    packets. Returns what the command prints. ConfigError: a name, rule or suffix; SetupError: the host's.
    """
    spec = parse_spec(port)
    if spec.kind == "pipe":
        raise ConfigError("capture: a pipe has nobody at its other end; use xsk:INTERFACE or pcap:FILE")
    if spec.kind == "xsk" and not rules:
        raise ConfigError("capture from xsk needs --rules: what to take, e.g. 'udp dst 239.0.0.0/8'")
    if spec.kind == "pcap" and rules:
        raise ConfigError("capture from a file takes no --rules")
    if metadata and spec.kind != "xsk":
        raise ConfigError("capture --metadata asks the driver of an interface: capture from xsk:INTERFACE")
    if set(metadata) - {"timestamp"} and ".pcapng" not in Path(path).suffixes:
        raise ConfigError(f"{path}: pcap keeps nothing of a frame but its stamp; write .pcapng")
    with contextlib.ExitStack() as stack:
        if spec.kind == "xsk":
            link: LinkPort = stack.enter_context(_steered(port, rules or [], metadata))
            clock = "tai"
        else:
            link = stack.enter_context(PcapPort(spec.path, all_types=True))
            clock = link.clock
        writer = stack.enter_context(
            PcapWriter(path, clock="tai" if clock == "tai" else "utc", snaplen=snaplen)
        )
        names = _interfaces(link, writer)
        began = time.monotonic()
        ended_by = _pump(link, writer, names, count, seconds, progress)
        took = time.monotonic() - began
        stats = link.stats()
        writer.close()
        written = writer.stats()
    return {
        "port": port,
        "file": str(path),
        "granted": link.granted,
        "ended_by": ended_by,
        "frames": written["records"],
        "bytes": written["bytes"],
        "cut": written["cut"],
        "file_bytes": written["written"],
        "seconds": round(took, 3),
        "dropped": stats["rx_dropped"] + stats["rx_ring_full"],
        "truncated": stats["rx_truncated"],
    }


@contextlib.contextmanager
def _steered(port: str, matches: list[str], metadata: Collection[str] = ()) -> Iterator[LinkPort]:
    """An AF_XDP port that gets what ``matches`` name; the filter is as before at the end."""
    from xdpstack.bpf import Filter, ours
    from xdpstack.phc import NicTimes

    spec = parse_spec(port)
    lines = [f"{match} -> {GROUP}" if "->" not in match else match for match in matches]
    for line in lines:
        if line.rsplit("->", 1)[1].strip() != GROUP:
            raise ConfigError(f"rule {line!r}: a capture's rule has no other target than {GROUP}")
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(open_link(spec))
        assert isinstance(link, XskPort)
        if ours(spec.interface):
            steering = stack.enter_context(Filter.open_pinned(spec.interface).asking(metadata))
            for line in reversed(lines):
                there = steering.rules
                number = steering.add_rule(line, before=there[0].id if there else None)
                stack.callback(steering.delete_rule, number)
        else:
            loaded = Filter.load(spec.interface, rules="\n".join(lines), metadata=metadata)
            steering = stack.enter_context(loaded)
        if "timestamp" in (steering.info()["metadata"] or ()):
            times = stack.enter_context(NicTimes())
            times.map(link, spec.interface)
        for queue, fd in link.fds().items():
            steering.set_socket(GROUP, queue, fd)
            stack.callback(steering.set_socket, GROUP, queue, None)
        yield link


def _interfaces(link: LinkPort, writer: PcapWriter) -> dict[int, int]:
    """The writer's interface by ``frame.queue``: one a queue, or those of the file that is copied."""
    if isinstance(link, XskPort):
        several = len(link.queues) > 1
        return {
            q: writer.add_interface(f"{link.interface}:{q}" if several else link.interface)
            for q in link.queues
        }
    return {}


def _pump(
    link: LinkPort,
    writer: PcapWriter,
    names: dict[int, int],
    count: int,
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> str:
    """Move frames until there is a reason to end, and return it."""
    frames, left = ffi.new("struct xds_frame[]", _BURST), count or NEVER
    end, shown = time.monotonic() + seconds if seconds else float("inf"), time.monotonic()
    with _told_to_end() as told:
        while not told:
            now = time.monotonic()
            if left <= 0 or now >= end:
                return "count" if left <= 0 else "seconds"
            got = lib.xds_link_rx(
                link.handle, frames, min(_BURST, left), NEVER if link.virtual_time else _tai()
            )
            if got < 0:
                if isinstance(link, PcapPort) and got == -32:
                    return "end of file"
                link._ended(got)
            for frame in frames[0 : max(got, 0)]:
                _write(link, writer, names, frame)
            lib.xds_link_release(link.handle)
            left -= got
            if now - shown >= 1:
                shown = now
                writer.flush()
                if progress:
                    progress(writer.stats()["records"], writer.stats()["bytes"])
            if got == 0:
                _wait(link.fileno(), min(_WAIT_MS, 1000 * (end - now)))
    return "signal"


def _write(link: LinkPort, writer: PcapWriter, names: dict[int, int], frame: Any) -> None:
    if frame.queue not in names:  # a file that is copied: its interfaces come as they are met
        assert isinstance(link, PcapPort)
        for number, one in enumerate(link.info()["interfaces"]):
            if number in names:
                continue
            try:
                names[number] = writer.add_interface(one["name"], one["linktype"])
            except ValueError:
                raise ConfigError(f"{writer.path}: pcap holds one interface; write .pcapng") from None
    # How much a cut frame had on the wire is not known here, only that it was more.
    wire = frame.len + (1 if frame.flags & lib.XDS_FRAME_CUT else 0)
    said = _told(hints).encode() if (hints := hints_of(frame)) else b""
    code = lib.xds_pcap_writer_write_comment(
        writer.handle, names[frame.queue], frame.rx_ns, frame.data, frame.len, wire, said, len(said)
    )
    if code < 0:
        raise OSError(-code, f"write {writer.path}")


def _told(hints: Hints) -> str:
    """What the NIC told of a frame, as a comment: tag as TPID and TCI in hex."""
    parts = [] if hints.hash is None else [f"hash {hints.hash:#010x} of type {hints.hash_type}"]
    if hints.vlan is not None:
        parts.append("VLAN tag {:#06x} {:04x}".format(*hints.vlan))
    return ", ".join(parts)


def _tai() -> int:
    return time.clock_gettime_ns(time.CLOCK_TAI)


def _wait(fd: int, limit_ms: float) -> None:
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, select.POLLIN)
    poll.poll(limit_ms)


@contextlib.contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """A list that is not empty once SIGINT or SIGTERM came; in the main thread only."""
    told: list[int] = []
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda got, _: told.append(got))
    try:
        yield told
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


# ---- summing up ----------------------------------------------------------------------------------------


def summary(path: str | Path) -> dict[str, Any]:
    """What is in a capture: counts, times, interfaces, the busiest destinations. SetupError: it is none."""
    packets: Counter[tuple[bytes, int]] = Counter()
    size: Counter[tuple[bytes, int]] = Counter()
    total = cut = seen = 0
    first, last, damaged = NEVER, 0, ""
    with PcapPort(path, all_types=True) as port:
        while True:
            try:
                frames = port.receive(_BURST)
            except ValueError as error:
                damaged = str(error)
                break
            if not frames:
                break
            for frame in frames:
                to = _destination(frame.data)
                packets[to] += 1
                size[to] += len(frame.data)
                total += len(frame.data)
                cut += bool(frame.flags & lib.XDS_FRAME_CUT)
                first, last = min(first, frame.rx_ns), max(last, frame.rx_ns)
            seen += len(frames)
        info, stats = port.info(), port.stats()
    return {
        "file": str(path),
        "format": info["format"],
        "packing": info["packing"],
        "clock": info["clock"],
        "packets": seen,
        "bytes": total,
        "cut": cut,
        "truncated": stats["rx_truncated"],
        "damaged": damaged,
        "first_ns": first if seen else 0,
        "last_ns": last,
        "seconds": (last - first) / 1e9 if seen else 0.0,
        "interfaces": info["interfaces"],
        "destinations": [
            {"to": _name(to), "packets": number, "bytes": size[to]}
            for to, number in packets.most_common(_SHOWN)
        ],
    }


def _destination(data: memoryview) -> tuple[bytes, int]:
    """``(address, port)`` of a UDP or TCP frame; ``(link address or type, -1)`` of others."""
    at, kind = 14, bytes(data[12:14])
    while kind in (b"\x81\x00", b"\x88\xa8") and at < 22:
        kind, at = bytes(data[at + 2 : at + 4]), at + 4
    if kind == b"\x08\x00" and len(data) >= at + 20:
        header = (data[at] & 15) * 4
        address, protocol, body = bytes(data[at + 16 : at + 20]), data[at + 9], at + header
        whole = not int.from_bytes(data[at + 6 : at + 8], "big") & 0x1FFF
    elif kind == b"\x86\xdd" and len(data) >= at + 40:
        address, protocol, body, whole = bytes(data[at + 24 : at + 40]), data[at + 6], at + 40, True
    else:
        return kind, -1
    if protocol in (6, 17) and whole and len(data) >= body + 4:
        return address, int.from_bytes(data[body + 2 : body + 4], "big")
    return address, -1


def _name(to: tuple[bytes, int]) -> str:
    address, port = to
    if len(address) < 2:
        return "cut before its type"
    if len(address) == 2:
        return f"ethertype 0x{address.hex()}"
    text = str(IPv4Address(address)) if len(address) == 4 else f"[{IPv6Address(address)}]"
    return f"{text}:{port}" if port >= 0 else text
