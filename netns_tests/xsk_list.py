"""The ground of test_xsk_list.py: two ends, veth or real ports, one frame format, programs of the test's own.

Real ports are named by the environment, as `make test-nic IFACE=eth1 [PEER=eth2]` does: XDPSTACK_TEST_NIC and
XDPSTACK_TEST_PEER. Without a peer the one interface is looped back, and sends by its second queue.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pyroute2 import IPRoute

from xdpstack._ffi import lib
from xdpstack.bpf import Filter
from xdpstack.errors import SetupError
from xdpstack.lab import Lab, Namespace, pair
from xdpstack.netdev import capabilities
from xdpstack.port import Frame, XskPort

ROOT = Path(__file__).resolve().parents[1]
OBJECT = ROOT / "build" / "tests" / "xsk_list.bpf.o"
NIC, PEER = os.environ.get("XDPSTACK_TEST_NIC", ""), os.environ.get("XDPSTACK_TEST_PEER", "")
ETHERTYPE = b"\x88\xb5"
"""Local experimental (IEEE 802): no host answers it."""
LEAST = 64
"""Bytes of the shortest frame of the list."""
COUNT = 4096
"""Frames of a test that names no other number."""
CHUNKS = 1024
BATCH = 64
JUMBO = 9000
PATIENCE = 5.0
CONTD = 1  # XDP_PKT_CONTD


# ---- where -----------------------------------------------------------------------------------------


@dataclass
class Bed:
    """Two ends: the sender's and the receiver's interface and where each is."""

    sender: str
    receiver: str
    sender_ns: Namespace | None = None
    receiver_ns: Namespace | None = None
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _filters: dict[str, Filter] = field(default_factory=dict)

    def filter(self, which: str, attach: str) -> Filter:
        """The steering filter of one end, kept from test to test: attaching waits for a second of RCU."""
        if which in self._filters and self._filters[which].mode != attach:
            self.clear(which)
        if which not in self._filters:
            name = self.sender if which == "sender" else self.receiver
            with self.enter(which):
                self._filters[which] = Filter.load(name, mode=attach, rules="any -> list")
        return self._filters[which]

    def clear(self, *which: str) -> None:
        """Detach the filters of these ends (all: none named), for a program of the test's own."""
        for one in which or tuple(self._filters):
            if one in self._filters:
                self._filters.pop(one).close()

    def enter(self, which: str) -> contextlib.AbstractContextManager[Any]:
        namespace = self.sender_ns if which == "sender" else self.receiver_ns
        return namespace.enter() if namespace else contextlib.nullcontext()

    @property
    def veth(self) -> bool:
        return self.sender_ns is not None

    @property
    def looped(self) -> bool:
        """One interface, its own far end."""
        return self.sender == self.receiver

    def mac(self, which: str) -> bytes:
        with self.enter(which), IPRoute() as route:
            name = self.sender if which == "sender" else self.receiver
            link = route.get_links(ifname=name)[0]
            return bytes.fromhex(link.get_attr("IFLA_ADDRESS").replace(":", ""))

    def bring_up(self) -> None:
        """Real ports that are down; put back with the bed."""
        for name in {self.sender, self.receiver}:
            with IPRoute() as route:
                link = route.get_links(ifname=name)[0]
                if not link["flags"] & 1:  # IFF_UP
                    route.link("set", index=link["index"], state="up")
                    self.undo.callback(_put_down, name)

    def set_mtu(self, mtu: int) -> None:
        """On both ends; put back with the bed."""
        for name in {self.sender, self.receiver}:
            with IPRoute() as route:
                link = route.get_links(ifname=name)[0]
                before = link.get_attr("IFLA_MTU")
                if before == mtu:
                    continue
                self.clear()  # a driver may refuse to change it under a program
                if mtu > 1500 and not can(name, "rx-sg"):
                    pytest.skip(
                        f"{name} takes no XDP program at an MTU of {mtu}: no frames in several buffers"
                    )
                try:
                    route.link("set", index=link["index"], mtu=mtu)
                except Exception as error:
                    pytest.skip(f"{name} takes no MTU of {mtu}: {error}")
                self.undo.callback(_put_mtu_back, name, before)


def _put_down(name: str) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], state="down")


def _put_mtu_back(name: str, mtu: int) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], mtu=mtu)


class Beds:
    """Beds by MTU, made when first asked for, kept for the module."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self._made: dict[int, Bed] = {}

    def get(self, mtu: int) -> Bed:
        if NIC:
            if not self._made:
                self.stack.callback(self._made.setdefault(0, Bed(NIC, PEER or NIC)).undo.close)
                self._made[0].bring_up()
                self.stack.callback(self._made[0].clear)
            self._made[0].set_mtu(mtu)
            return self._made[0]
        if mtu not in self._made:
            lab = self.stack.enter_context(Lab(f"xsk{os.getpid()}-{mtu}"))
            venue, trader = pair(lab, mtu=mtu, queues=2)
            self._made[mtu] = Bed("v0", "t0", venue, trader)
            self.stack.callback(self._made[mtu].clear)
        return self._made[mtu]


# ---- frames ----------------------------------------------------------------------------------------


_WORDS = np.arange(JUMBO // 4 + 8, dtype=np.uint32)


def frames(
    bed: Bed, count: int, size: int | Sequence[int] = LEAST, *, first: int = 0, back: bool = False
) -> list[bytes]:
    """Numbered frames; word i behind the header is number << 16 | i, big-endian. ``back``: the other way."""
    ends = ("sender", "receiver") if back else ("receiver", "sender")
    head = bed.mac(ends[0]) + bed.mac(ends[1]) + ETHERTYPE
    sizes = [size] * count if isinstance(size, int) else list(size)
    return [
        (head + ((number << 16) | _WORDS[: one // 4]).astype(">u4").tobytes())[:one]
        for number, one in enumerate(sizes, first)
    ]


def can(name: str, feature: str) -> bool:
    """Whether a port of this namespace has an XDP feature; what the kernel does not tell is tried."""
    return capabilities(socket.if_nametoindex(name)).can(feature) is not False


def is_ours(frame: Frame) -> bool:
    return bytes(frame.data[12:14]) == ETHERTYPE


def collect(
    port: XskPort, count: int, *, patience: float | None = None, poll: bool = False
) -> list[tuple[bytes, Frame]]:
    """``count`` frames of ours, fewer when no more come; ``poll``: by poll(), which must tell the truth."""
    got: list[tuple[bytes, Frame]] = []
    end = time.monotonic() + (PATIENCE if patience is None else patience)
    while len(got) < count and time.monotonic() < end:
        if poll:
            assert select_in(port.fileno(), int(PATIENCE * 1000)), (
                "poll() saw nothing though frames are under way"
            )
        came = port.receive(BATCH)
        assert came or not poll, "poll() said there was something"
        got += [(bytes(frame.data), frame) for frame in came if is_ours(frame)]
    port.release()
    return got


def select_in(fd: int, ms: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(ms))


def select_out(fd: int, ms: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(ms))


# ---- two ports -------------------------------------------------------------------------------------


@dataclass
class Rig:
    """A sender, a receiver, and what steers frames to it."""

    bed: Bed
    tx: XskPort
    rx: XskPort
    steering: Filter | Program

    def carry(
        self, sent: Sequence[bytes], expected: Sequence[bytes] | None = None, *, poll: bool = False
    ) -> None:
        """Send in batches; each frame has to come whole, in order, once."""
        for at in range(0, len(sent), BATCH):
            part = sent[at : at + BATCH]
            assert self.tx.send(part) == len(part)
            if expected is None:
                same([data for data, _ in collect(self.rx, len(part), poll=poll)], part)
        if expected is not None:
            same([data for data, _ in collect(self.rx, len(expected))], expected)

    def post(self, table: Sequence[Entry]) -> None:
        """Write the data of a raw sender's table into its UMEM and put its descriptors onto the ring."""
        umem = self.tx.umem(len(self.tx.queues))
        for one in table:
            if one.data:
                umem[one.addr : one.addr + len(one.data)] = one.data
        umem.release()
        descriptors = [(one.addr % (1 << 64), one.length, one.options) for one in table]
        assert self.tx.post(descriptors) == len(table)

    def drain(self) -> None:
        """Kick until all that was posted is completed."""
        end = time.monotonic() + PATIENCE
        while self.tx.flush() and time.monotonic() < end:
            pass
        assert self.tx.flush() == 0, "the kernel did not complete what was posted"


@dataclass
class Entry:
    """One descriptor: what is written at its address (valid ones), what the ring gets."""

    addr: int
    length: int
    options: int = 0
    data: bytes = b""


def same(got: Sequence[bytes], expected: Sequence[bytes]) -> None:
    """Count, order, length and content, said so that a failure can be read."""
    for number, (one, other) in enumerate(zip(got, expected, strict=False)):
        assert len(one) == len(other), f"frame {number}: {len(one)} bytes for {len(other)}"
        assert one == other, f"frame {number}: {one[:32].hex()}… for {other[:32].hex()}…"
    assert len(got) == len(expected), f"{len(got)} frames came of {len(expected)}"


@contextlib.contextmanager
def rig(
    bed: Bed,
    mode: str,
    busy: bool,
    *,
    tx: dict[str, Any] | None = None,
    rx: dict[str, Any] | None = None,
    program: str = "",
    queue: int = 0,
    queues: range | None = None,
    both: bool = False,
    share: bool = False,
) -> Iterator[Rig]:
    """Both ports with these options (``rx`` is the sender's too, unless ``tx`` says otherwise).

    ``both``: what comes to the sender is steered to it as well. ``share``: it uses the receiver's UMEM.
    """
    # Drivers let go of a zero-copy queue a moment after its socket's close.
    zerocopy = {"mode": "zerocopy", "require": True, "bind_wait_ms": 60_000}
    port_mode = zerocopy if mode == "zerocopy" else {"mode": "copy"}
    common = {**port_mode, "busy_poll": 20 if busy else 0, "rx_frames": CHUNKS, "rx_ring": CHUNKS}
    unaligned = bool((rx or {}).get("unaligned") or (tx or {}).get("unaligned"))
    common["huge_pages"] = mode == "zerocopy" and unaligned  # a chunk over two pages that are not neighbours
    attach = "generic" if mode == "generic" else "native"
    with contextlib.ExitStack() as stack:
        steering: Filter | Program
        with bed.enter("receiver"):
            if program:
                bed.clear("receiver")
                steering = stack.enter_context(Program(program, bed.receiver, attach))
            else:
                steering = bed.filter("receiver", attach)
            settle(bed)
            options = {**common, **(rx or {})}
            receiver = stack.enter_context(_open(mode, bed.receiver, queues or queue, options))
            _steer(stack, steering, receiver)
        if both or mode == "zerocopy":  # zero-copy: a driver sends only where a program is
            bed.filter("sender", attach)
            settle(bed)
        with bed.enter("sender"):
            sends_on = queue + 1 if bed.looped else queue
            options = {**common, **(rx or {} if tx is None else tx)}
            if share:
                options = {**common, "share": receiver}
            sender = stack.enter_context(_open(mode, bed.sender, sends_on, options))
            if both:
                _steer(stack, bed.filter("sender", attach), sender)
        yield Rig(bed, sender, receiver, steering)


def _open(mode: str, name: str, queues: range | int, options: dict[str, Any]) -> XskPort:
    """A port. In zero-copy, which a driver need not have for every size of chunks and frames, a skip with
    what the port says of it."""
    try:
        return XskPort(name, queues, **options)
    except SetupError as error:
        if mode == "zerocopy" and error.errno in (errno.EMSGSIZE, errno.EOPNOTSUPP):
            pytest.skip(str(error))
        raise


def _steer(stack: contextlib.ExitStack, steering: Filter | Program, port: XskPort) -> None:
    for queue, fd in port.fds().items():
        steering.set_socket("list", queue, fd)
        stack.callback(steering.set_socket, "list", queue, None)


def settle(bed: Bed) -> None:
    """Attaching may take the carrier of a real port for a moment."""
    for which, name in (("sender", bed.sender), ("receiver", bed.receiver)):
        end = time.monotonic() + 10 * PATIENCE
        with bed.enter(which), IPRoute() as route:
            while not route.get_links(ifname=name)[0].get_attr("IFLA_CARRIER"):
                assert time.monotonic() < end, f"{name} has no carrier: is the cable plugged?"
                time.sleep(0.05)


def sender_fd(port: XskPort) -> int:
    """The socket that a port sends by."""
    return int(lib.xds_xsk_fd(port.handle, len(port.queues)))


def kick(fd: int) -> int:
    """One sendto() and no more; 0 or the errno."""
    with socket.socket(44, socket.SOCK_RAW, 0, fileno=os.dup(fd)) as one:
        try:
            one.send(b"", socket.MSG_DONTWAIT)
        except OSError as error:
            return error.errno or -1
    return 0


# ---- programs of the test's own ----------------------------------------------------------------------


class Program:
    """A program of xsk_list.bpf.c, attached by a BPF link: detached when it is closed, or we are killed."""

    SEEN, ADJUST, RESULT, REFUSED = range(4)
    _FLAGS: ClassVar = {"generic": 1 << 1, "native": 1 << 2}

    def __init__(self, name: str, interface: str, mode: str) -> None:
        libbpf = self._libbpf = _libbpf()
        self._object = libbpf.bpf_object__open_file(bytes(built()), None)
        assert self._object, f"{OBJECT} does not open"
        code = libbpf.bpf_object__load(self._object)
        assert code == 0, f"{name}: the kernel refuses the programs: {os.strerror(-code)}"
        self._fd = libbpf.bpf_program__fd(
            libbpf.bpf_object__find_program_by_name(self._object, name.encode())
        )
        self._sockets = libbpf.bpf_object__find_map_fd_by_name(self._object, b"list_sockets")
        self._state = libbpf.bpf_object__find_map_fd_by_name(self._object, b"list_state")
        options = ctypes.create_string_buffer(struct.pack("=QI4x", 16, self._FLAGS[mode]), 16)
        index = socket.if_nametoindex(interface)
        self._link = libbpf.bpf_link_create(self._fd, index, 37, options)  # BPF_XDP
        assert self._link >= 0, f"attach {name} to {interface} ({mode}): {os.strerror(-self._link)}"

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._link)
        self._libbpf.bpf_object__close(self._object)

    def set_socket(self, group: str, key: int, fd: int | None) -> None:
        """As the filter's; every group is the same one, and the queue is the place in the map."""
        if fd is not None:  # what is closed leaves the map by itself
            self._update(self._sockets, key, struct.pack("=I", fd))

    def set(self, which: int, value: int) -> None:
        self._update(self._state, which, struct.pack("=q", value))

    def get(self, which: int) -> int:
        key, value = ctypes.c_uint32(which), ctypes.c_int64()
        assert self._libbpf.bpf_map_lookup_elem(self._state, ctypes.byref(key), ctypes.byref(value)) == 0
        return value.value

    def _update(self, fd: int, key: int, value: bytes) -> None:
        number = ctypes.c_uint32(key)
        code = self._libbpf.bpf_map_update_elem(fd, ctypes.byref(number), value, 0)
        assert code == 0, os.strerror(-code)


def _libbpf() -> Any:
    libbpf = ctypes.CDLL("libbpf.so.1")
    for name in ("bpf_object__open_file", "bpf_object__find_program_by_name"):
        getattr(libbpf, name).restype = ctypes.c_void_p
    libbpf.bpf_object__open_file.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    libbpf.bpf_object__find_program_by_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    libbpf.bpf_object__find_map_fd_by_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("bpf_object__load", "bpf_object__close", "bpf_program__fd"):
        getattr(libbpf, name).argtypes = [ctypes.c_void_p]
    return libbpf


def built() -> Path:
    """The compiled programs; made here where the sources are and `make bpf` was not."""
    if not OBJECT.exists():
        made = subprocess.run(
            ["make", "-s", str(OBJECT.relative_to(ROOT))], cwd=ROOT, capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"{OBJECT.name} is not built and cannot be here: {made.stderr.strip()[-200:]}")
    return OBJECT


def refused(code: int) -> str:
    """An errno of a program in words."""
    return f"{errno.errorcode.get(-code, str(code))}: {os.strerror(-code)}"


# ---- the NIC's own rings -----------------------------------------------------------------------------------

_ETHTOOL, _GET_RINGS, _SET_RINGS = 0x8946, 0x10, 0x11


def _rings(name: str, command: int, sizes: Sequence[int] = (0,) * 8) -> list[int]:
    """ETHTOOL_GRINGPARAM and ETHTOOL_SRINGPARAM: the four greatest sizes, then rx, mini, jumbo, tx."""
    request = ctypes.create_string_buffer(struct.pack("=9I", command, *sizes), 36)
    ask = struct.pack("16sP8x", name.encode(), ctypes.addressof(request))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, _ETHTOOL, ask)
    return list(struct.unpack("=9I", request.raw))[1:]


@contextlib.contextmanager
def ring_sizes(bed: Bed, rx: int = 0, tx: int = 0) -> Iterator[tuple[int, int]]:
    """Both ends' rings at these sizes (0: the greatest); gives the greatest (rx, tx); put back afterwards."""
    with contextlib.ExitStack() as stack:
        most = (0, 0)
        for which, name in (("sender", bed.sender), ("receiver", bed.receiver)):
            with bed.enter(which):
                try:
                    before = _rings(name, _GET_RINGS)
                    most = (before[0], before[3])
                    wanted = [*before[:4], rx or before[0], *before[5:7], tx or before[3]]
                    _rings(name, _SET_RINGS, wanted)
                except OSError as error:
                    pytest.skip(f"{name} has no ring sizes to set: {error.strerror}")
            stack.callback(_rings, name, _SET_RINGS, before)
        settle(bed)
        yield most
