"""AF_XDP over veth: the link conformance, several queues, drains, ownership, refusals."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from xdpstack._ffi import ffi, lib
from xdpstack.bpf import Filter
from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import Namespace
from xdpstack.netdev import Capabilities
from xdpstack.nic.surface import Host
from xdpstack.port import Frame, Membership, SockPort, XskPort, open_link, xsk
from xdpstack.testing import LinkFlow, check_flow, check_link, make_frames

Pair = tuple[Namespace, Namespace]
EVERYTHING = "any -> test"
TO_TRADER = "udp dst 10.77.0.2:9000 -> test"


def give(steering: Filter, port: XskPort, group: str = "test") -> None:
    for queue, fd in port.fds().items():
        steering.set_socket(group, queue, fd)


@contextlib.contextmanager
def trader_port(
    trader: Namespace, rules: str = TO_TRADER, **options: object
) -> Iterator[tuple[XskPort, Filter]]:
    with trader.enter(), Filter.load("t0", rules=rules) as steering, XskPort("t0", **options) as port:
        give(steering, port)
        yield port, steering


def collect(port: XskPort, count: int, patience: float = 5.0) -> list[tuple[bytes, Frame]]:
    got: list[tuple[bytes, Frame]] = []
    end = time.monotonic() + patience
    while len(got) < count and time.monotonic() < end:
        got += [(bytes(frame.data), frame) for frame in port.receive(64)]
    return got


def whole(census: dict[str, int], rx: int, tx: int) -> bool:
    """Every frame has one owner."""
    by = {side: sum(n for name, n in census.items() if name.startswith(side)) for side in ("rx", "tx")}
    return by == {"rx": rx, "tx": tx}


def test_af_xdp_over_veth_is_a_link(lab_pair: Pair) -> None:
    venue, trader = lab_pair

    @contextlib.contextmanager
    def pair() -> Iterator[tuple[XskPort, XskPort]]:
        with contextlib.ExitStack() as stack:
            with venue.enter():
                stack.enter_context(Filter.load("v0"))  # veth takes XDP frames only where a program is
                sender = stack.enter_context(XskPort("v0"))
            receiver, _ = stack.enter_context(trader_port(trader, EVERYTHING))
            yield sender, receiver

    check_link(pair)


@contextlib.contextmanager
def flow_end(
    kind: str, namespace: Namespace, interface: str, own: str, listen: tuple[str, int], peer: tuple[str, str]
) -> Iterator[SockPort | LinkFlow]:
    """One end of a flow: a kernel socket, or an AF_XDP port under a host core. ``peer``: address, MAC."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(namespace.enter())
        if kind == "sock":
            yield stack.enter_context(SockPort([f"{listen[0]}:{listen[1]}"], interface=interface))
            return
        steering = stack.enter_context(
            Filter.load(interface, rules=f"udp dst {listen[0]}:{listen[1]} -> test")
        )
        port = XskPort(interface)
        give(steering, port)
        mac = namespace.link(interface).get_attr("IFLA_ADDRESS")
        yield stack.enter_context(LinkFlow(port, own, listen, mac=mac, neighbours=dict([peer])))


@pytest.mark.parametrize("to", [("239.1.2.3", 7000), ("10.77.0.2", 7000)], ids=["group", "unicast"])
@pytest.mark.parametrize("receives", ["xsk", "sock"])
@pytest.mark.parametrize("sends", ["xsk", "sock"])
def test_datagrams_over_veth_are_a_flow(
    lab_pair: Pair, sends: str, receives: str, to: tuple[str, int]
) -> None:
    """Kernel sockets and AF_XDP with the host core: one test for all, and for one against the other."""
    venue, trader = lab_pair
    macs = [ns.link(name).get_attr("IFLA_ADDRESS") for ns, name in ((venue, "v0"), (trader, "t0"))]

    @contextlib.contextmanager
    def flow() -> Iterator[tuple[SockPort | LinkFlow, SockPort | LinkFlow, tuple[str, int]]]:
        ours, theirs = ("10.77.0.1", macs[0]), ("10.77.0.2", macs[1])
        with (
            flow_end(sends, venue, "v0", "10.77.0.1", ("10.77.0.1", 4000), theirs) as sender,
            flow_end(receives, trader, "t0", "10.77.0.2", to, ours) as receiver,
        ):
            yield sender, receiver, to

    check_flow(flow)


def test_the_stamp_of_the_xdp_hook_arrives(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with trader_port(trader) as (port, _), venue.socket() as sender:
        before = time.clock_gettime_ns(time.CLOCK_TAI)
        sender.sendto(b"x", ("10.77.0.2", 9000))
        after = time.clock_gettime_ns(time.CLOCK_TAI)
        time.sleep(0.05)
        (_, frame), *_ = collect(port, 1)
        assert before <= frame.rx_ns <= after + 10_000_000, "stamped when it came, not when it was read"


def test_without_a_stamp_the_time_of_the_call_is_used_and_no_old_stamp(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with trader.enter(), XskPort("t0", rx_ring=16, rx_frames=16, tx_frames=0) as port:  # noqa: SIM117
        with venue.socket() as sender:
            for stamp, expected in ((True, 40), (False, 40)):  # every frame is used more than once
                with Filter.load("t0", rules=TO_TRADER, stamp=stamp) as steering:
                    give(steering, port)
                    got: list[int] = []
                    for _ in range(expected):
                        sender.sendto(b"x", ("10.77.0.2", 9000))
                        end = time.monotonic() + 60
                        while time.monotonic() < end and not (frames := port.receive(4, now=77)):
                            pass
                        got += [frame.rx_ns for frame in frames]
                    assert len(got) == expected
                    assert {stamp_ns == 77 for stamp_ns in got} == {not stamp}


def test_several_queues_are_one_link(make_pair: Callable[..., Pair]) -> None:
    venue, trader = make_pair(queues=4)
    with contextlib.ExitStack() as stack:
        with trader.enter():
            steering = stack.enter_context(Filter.load("t0", rules=TO_TRADER))
            port = stack.enter_context(open_link("xsk:t0:0-3"))
            assert isinstance(port, XskPort)
            give(steering, port)
            assert list(port.fds()) == [0, 1, 2, 3]
        with venue.enter():
            stack.enter_context(Filter.load("v0"))
            senders = [stack.enter_context(XskPort("v0", queue)) for queue in range(4)]
        frames = [udp_frame(number, "10.77.0.2", 9000) for number in range(200)]
        for number, sender in enumerate(senders):
            assert sender.send(frames[number::4]) == 50
        got = collect(port, 200)
        assert sorted(data for data, _ in got) == sorted(frames)
        queues = {frame.queue for _, frame in got}
        assert queues == {0, 1, 2, 3}, "the queue of each frame is named"
        for queue in queues:  # one line's order holds
            line = [data for data, frame in got if frame.queue == queue]
            assert line in [frames[number::4] for number in range(4)]
        for number, sender in enumerate(senders):  # one that is never empty does not keep the others waiting
            assert sender.send(frames[number::4]) == 50
        end = time.monotonic() + 60
        while port.census()["rx_waiting"] < 200 and time.monotonic() < end:
            time.sleep(0.001)
        turns = [[frame.queue for frame in port.receive(20)] for _ in range(10)]
        assert [len(turn) for turn in turns] == [20] * 10
        assert {turn[0] for turn in turns[:4]} == {0, 1, 2, 3}
        port.release()
        assert whole(port.census(), 4 * 4096, 2048)


def test_several_queues_are_joined_when_somebody_will_sleep(make_pair: Callable[..., Pair]) -> None:
    """An epoll is woken at each packet of its queues: one that only spins has none."""
    venue, trader = make_pair(queues=2)
    with contextlib.ExitStack() as stack:
        port, _ = stack.enter_context(trader_port(trader, queues=range(0, 2)))
        with venue.enter():
            stack.enter_context(Filter.load("v0"))
            senders = [stack.enter_context(XskPort("v0", queue)) for queue in range(2)]
        assert senders[0].send([udp_frame(0, "10.77.0.2", 9000)]) == 1
        assert len(collect(port, 1)) == 1
        before = epolls()
        assert senders[1].send([udp_frame(1, "10.77.0.2", 9000)]) == 1  # it waits before anybody asks
        fd = port.fileno()
        assert epolls() - before == {fd}
        assert port.fileno() == fd, "one for all who ask"
        for number in (1, 0, 1):
            assert select.select([fd], [], [], 10)[0] == [fd]
            assert len(collect(port, 1)) == 1
            port.release()
            assert select.select([fd], [], [], 0)[0] == []
            assert senders[number].send([udp_frame(number, "10.77.0.2", 9000)]) == 1
        port.close()
        assert epolls() == before


def test_queues_that_cannot_be_joined_say_why(make_pair: Callable[..., Pair]) -> None:
    _, trader = make_pair(queues=2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with trader_port(trader, queues=range(0, 2)) as (port, _):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(
                SetupError, match=r"join the queues of .* to poll on them: Too many open files"
            ):
                port.fileno()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert select.select([port.fileno()], [], [], 0)[0] == []


def epolls() -> set[int]:
    """This process's epoll descriptors."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                found.add(int(name))
    return found


@pytest.mark.parametrize(
    ("queues", "tx_queue"), [(0, None), (1, 1), (range(0, 2), 1), (0, 1), (range(0, 2), 2)]
)
def test_what_is_sent_leaves_by_the_queue_that_was_chosen(
    make_pair: Callable[..., Pair], queues: int | range, tx_queue: int | None
) -> None:
    venue, trader = make_pair(queues=3)
    frames = [udp_frame(number, "10.77.0.2", 9000) for number in range(5000)]
    with contextlib.ExitStack() as stack:
        receiver, _ = stack.enter_context(trader_port(trader, queues=range(0, 3)))
        with venue.enter():
            steering = stack.enter_context(Filter.load("v0", rules="udp dst 10.77.0.1:9000 -> test"))
            sender = stack.enter_context(XskPort("v0", queues, tx_queue=tx_queue, tx_ring=1024))
        give(steering, sender)
        got: list[tuple[bytes, Frame]] = []
        for at in range(0, len(frames), 500):
            assert sender.send(frames[at : at + 500]) == 500
            got += collect(receiver, 500)
        assert [data for data, _ in got] == frames, "one queue keeps the order"
        assert {frame.queue for _, frame in got} == {tx_queue or 0}
        answers = [udp_frame(number, "10.77.0.1", 9000) for number in range(300)]
        assert receiver.send(answers) == 300  # by the other end's queue 0
        back = collect(sender, 300) if sender.queues[0] == 0 else []
        assert [data for data, _ in back] == (answers if sender.queues[0] == 0 else [])
        assert whole(sender.census(), 4096 * len(sender.queues), 1024)
        assert sender.census()["tx_free"] == 1024


def test_a_send_queue_that_is_not_there_is_named(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter(), pytest.raises(SetupError, match="open queue 1 of t0: it has 1 receive queue"):
        XskPort("t0", tx_queue=1)
    with trader.enter(), pytest.raises(ConfigError, match="tx_queue -1"):
        XskPort("t0", tx_queue=-1)


def test_a_queue_without_a_socket_is_named_by_the_filter(make_pair: Callable[..., Pair]) -> None:
    venue, trader = make_pair(queues=2)
    with contextlib.ExitStack() as stack:
        port, steering = stack.enter_context(trader_port(trader, queues=1))
        with venue.enter():
            stack.enter_context(Filter.load("v0"))
            sender = stack.enter_context(XskPort("v0", 0))
        sender.send([udp_frame(1, "10.77.0.2", 9000)])
        end = time.monotonic() + 60
        while not (missed := steering.counters().no_socket) and time.monotonic() < end:
            time.sleep(0.01)
        assert [(key, count.packets) for key, count in missed.items()] == [(("test", 0), 1)]
        assert port.receive(8) == []


def udp_frame(number: int, to: str, port: int, size: int = 60) -> bytes:
    """A frame with an IPv4 header checksum and no UDP checksum."""
    payload = number.to_bytes(4, "big").ljust(size - 42, b".")
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), number & 0xFFFF, 0, 64, 17, 0,
        socket.inet_aton("10.77.0.1"), socket.inet_aton(to),
    )  # fmt: skip
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    ip = ip[:10] + struct.pack("!H", total) + ip[12:]
    udp = struct.pack("!HHHH", 5000, port, 8 + len(payload), 0)
    return b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x08\0" + ip + udp + payload


NEW = xsk._kernel() >= xsk.needs()["tx_budget"]
"""Whether this kernel lets us choose how much a kick takes."""


@pytest.mark.parametrize("budget", [0, 32, 1024])
def test_one_flush_drains_a_large_batch_and_loses_nothing(lab_pair: Pair, budget: int) -> None:
    """Copy mode takes its budget a kick and answers EAGAIN; the TX ring must be empty after one flush."""
    venue, trader = lab_pair
    with contextlib.ExitStack() as stack:
        with venue.enter():
            stack.enter_context(Filter.load("v0"))
            sender = stack.enter_context(XskPort("v0", tx_budget=budget))
        port, _ = stack.enter_context(trader_port(trader, EVERYTHING))
        frames = ffi.new("struct xds_frame[]", 2048)
        sent = make_frames(2048, longest=200)
        for _ in range(3):
            assert lib.xds_link_reserve(sender.handle, frames, 2048) == 2048
            for number, data in enumerate(sent):
                ffi.memmove(frames[number].data, data, len(data))
                frames[number].len = len(data)
            assert lib.xds_link_commit(sender.handle, frames, 2048) == 2048
            sender.flush()
            assert sender.census()["tx_queued"] == 0
            assert [data for data, _ in collect(port, 2048)] == sent
        stats = sender.stats()
        assert stats["tx_frames"] == 3 * 2048
        assert sender.tx_budget == stats["tx_budget"] == ((budget or 2048) if NEW else 32)
        assert stats["tx_kicks"] == 3 * 2048 // sender.tx_budget, "one kick a budget"
        assert (stats["tx_kicks_again"] > 0) == (sender.tx_budget < 2048), "the kernel did say again"
        assert sender.flush() == 0, "all completed"
        assert stats["tx_completed"] + sender.census()["tx_flying"] >= 3 * 2048
        assert whole(sender.census(), 4096, 2048)
        assert whole(port.census(), 4096, 2048)


def _burst(count: int) -> int:
    """A burst over v0 in one flush; returns the kicks, which are what the port's budget makes of it."""
    with XskPort("v0") as sender:
        frames = ffi.new("struct xds_frame[]", count)
        assert lib.xds_link_reserve(sender.handle, frames, count) == count
        for number, data in enumerate(make_frames(count, longest=100)):
            ffi.memmove(frames[number].data, data, len(data))
            frames[number].len = len(data)
        assert lib.xds_link_commit(sender.handle, frames, count) == count
        sender.flush()
        assert sender.census()["tx_queued"] == 0
        stats = sender.stats()
        assert stats["tx_kicks"] == -(-count // sender.tx_budget)
        assert stats["tx_budget"] == sender.tx_budget
        return stats["tx_kicks"]


@pytest.mark.skipif(not NEW, reason="a budget that can be set needs Linux 6.17")
@pytest.mark.parametrize("count", [33, 200, 2048])
def test_a_burst_is_one_system_call(lab_pair: Pair, count: int) -> None:
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", rules="any -> drop"), venue.enter():
        assert _burst(count) == 1


def _without_the_option() -> None:
    """From here on this process meets a kernel before 6.17: setsockopt(XDP_MAX_TX_SKB_BUDGET) is unknown."""
    number = {"x86_64": 54, "aarch64": 208}[os.uname().machine]
    load, equals, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    program = b"".join(
        struct.pack("=HBBI", *one)
        for one in (
            (load, 0, 0, 0),  # struct seccomp_data: the call's number
            (equals, 0, 5, number),
            (load, 0, 0, 24),  # the second argument: SOL_XDP
            (equals, 0, 3, 283),
            (load, 0, 0, 32),
            (equals, 0, 1, 9),
            (answer, 0, 0, 0x00050000 | errno.ENOPROTOOPT),
            (answer, 0, 0, 0x7FFF0000),
        )
    )
    held = ctypes.create_string_buffer(program)
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(held)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, head, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="knows these two by number")
def test_where_the_kernel_knows_no_budget_a_burst_takes_more_kicks_and_the_port_says_so(
    lab_pair: Pair,
) -> None:
    venue, trader = lab_pair

    def old() -> None:
        _without_the_option()
        with XskPort("v0", tx_budget=512) as port:
            assert port.tx_budget == port.stats()["tx_budget"] == 32
        with XskPort("v0", tx_ring=16) as port:
            assert port.tx_budget == 16, "as much as there is goes at once"
        assert _burst(200) == 7

    with trader.enter(), Filter.load("t0", rules="any -> drop"):
        child = venue.fork(old)
        assert child.wait(20) == 0


@pytest.mark.parametrize(("budget", "ring"), [(31, 2048), (2049, 2048), (1, 64), (17, 16)])
def test_a_budget_that_no_ring_has_is_refused(lab_pair: Pair, budget: int, ring: int) -> None:
    with (
        lab_pair[0].enter(),
        pytest.raises(ConfigError, match="tx_budget is 32 descriptors to tx_ring"),
    ):
        XskPort("v0", tx_budget=budget, tx_ring=ring)


def test_a_small_socket_buffer_says_enobufs_and_still_loses_nothing(lab_pair: Pair) -> None:
    """The far end takes frames on a thread, so they are on their way when the next one is to be sent."""
    venue, trader = lab_pair
    with contextlib.ExitStack() as stack:
        with venue.enter():
            stack.enter_context(Filter.load("v0"))
            sender = stack.enter_context(XskPort("v0"))
            raw = socket.socket(44, socket.SOCK_RAW, 0, fileno=os.dup(sender.sockets()[-1]))
            stack.callback(raw.close)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        port, _ = stack.enter_context(trader_port(trader, EVERYTHING))
        with trader.enter():
            Host().write("/sys/class/net/t0/threaded", "1")
        frames = make_frames(500, longest=1400)
        got = []
        for at in range(0, 500, 50):
            assert sender.send(frames[at : at + 50]) == 50
            end = time.monotonic() + 60
            while sender.flush() and time.monotonic() < end:
                got += [data for data, _ in collect(port, 1, 0.01)]
            got += [data for data, _ in collect(port, at + 50 - len(got))]
        assert got == frames
        assert sender.tx_budget > 50 or not NEW, "so that the budget is no reason"
        assert sender.stats()["tx_kicks_again"] > 0
        assert whole(sender.census(), 4096, 2048)


def test_an_empty_flush_makes_no_system_call(lab_pair: Pair) -> None:
    venue, _ = lab_pair
    with venue.enter(), XskPort("v0") as port:
        for _ in range(100):
            assert port.flush() == 0
        assert port.stats()["tx_kicks"] == 0
        for _ in range(100):
            port.receive(64)
        assert port.stats()["rx_wakeups"] == 0, "copy mode asks for no wake-up"


def test_a_full_receive_ring_is_counted_and_recovers(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with trader_port(trader, rx_ring=64, rx_frames=64) as (port, _), venue.socket() as sender:
        for _ in range(500):
            sender.sendto(b"x", ("10.77.0.2", 9000))
        time.sleep(0.1)
        assert len(collect(port, 500, 0.5)) == 64
        stats = port.stats()
        lost = stats["rx_dropped"] + stats["rx_ring_full"]
        assert 64 + lost == 500, "received = delivered + the named reasons"
        assert stats["rx_fill_empty"] > 0, "and why: the fill ring was empty"
        sender.sendto(b"again", ("10.77.0.2", 9000))
        assert len(collect(port, 1)) == 1
        assert whole(port.census(), 64, 2048)


def test_a_long_run_in_odd_bursts_keeps_every_frame(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with trader_port(trader, rx_ring=256, rx_frames=256) as (port, _), venue.socket() as sender:
        seen, sizes = 0, itertools.cycle([1, 3, 64, 7, 100])
        for number in range(3000):
            sender.sendto(number.to_bytes(4, "big"), ("10.77.0.2", 9000))
            if number % 50 == 49:
                while frames := port.receive(next(sizes)):
                    for frame in frames:
                        assert int.from_bytes(frame.data[42:46], "big") == seen
                        seen += 1
                port.release()
                assert whole(port.census(), 256, 2048)
        assert seen == 3000


def test_the_granted_mode_is_read_back_and_require_refuses(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter():
        with XskPort("t0") as port:
            assert port.granted == "copy", "veth has no zero-copy"
            assert "copy" in repr(port)
        with XskPort("t0", mode="copy", require=True) as port:
            assert port.granted == "copy"
        with XskPort("t0", mode="zerocopy") as port:
            assert port.granted == "copy", "a wish is not a requirement"
        with pytest.raises(SetupError, match=r"zerocopy was required and driver veth grants copy"):
            XskPort("t0", mode="zerocopy", require=True)


@pytest.mark.parametrize("mtu", [1000, 1500])
def test_chunks_in_which_a_driver_of_whole_kib_would_cut_frames_are_not_for_zero_copy(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, mtu: int
) -> None:
    """veth in igb's place: what is refused here, igb grants, and then cuts."""
    monkeypatch.setattr(xsk, "_KIBIBYTE_DRIVERS", {"veth"})
    _, trader = make_pair(mtu=mtu)
    with trader.enter():
        with XskPort("t0") as port:
            assert port._config.frame_size == 4096
        with XskPort("t0", frame_size=2048) as port:
            assert port.granted == "copy"
            assert port._config.mode == (2 if mtu == 1500 else 0)
        cut = "driver veth would cut frames of its MTU after 1024 bytes"
        with pytest.raises(SetupError, match=cut if mtu == 1500 else "zero") as refused:
            XskPort("t0", mode="zerocopy", require=True, frame_size=2048)
        assert (cut in str(refused.value)) == (mtu == 1500)


@pytest.mark.parametrize(("most", "enough"), [(2, False), (3, True), (0, True), (None, True)])
def test_frames_of_more_buffers_than_the_driver_gives_one_are_not_for_zero_copy(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, most: int | None, enough: bool
) -> None:
    """9,022 bytes in chunks that hold 3,840 take three; 0 is no zero-copy, None a kernel that does not tell:
    both are for the kernel to answer."""
    monkeypatch.setattr(xsk, "capabilities", lambda index: Capabilities(zc_max_segs=most))
    _, trader = make_pair(mtu=9000)
    with trader.enter():
        for asked, mode in enumerate(("auto", "zerocopy", "copy")):
            with XskPort("t0", mode=mode) as port:
                assert port.jumbo
                assert port._config.mode == (asked if enough else 2)
        few = "takes 3 buffers, and driver veth has 2; ip link set t0 mtu 7658, larger chunks, or mode='copy'"
        with pytest.raises(SetupError, match="grants copy|not supported" if enough else few):
            XskPort("t0", mode="zerocopy", require=True)
    _, narrow = make_pair(mtu=7658)
    with narrow.enter(), XskPort("t0", mode="zerocopy") as port:
        assert port._config.mode == 1, "the sentence's MTU is one that fits"


def test_busy_polling_is_switched_on_and_receives(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with trader_port(trader, busy_poll=20) as (port, _), venue.socket() as sender:
        raw = socket.socket(44, socket.SOCK_RAW, 0, fileno=os.dup(port.fds()[0]))
        assert raw.getsockopt(socket.SOL_SOCKET, 69) == 1, "SO_PREFER_BUSY_POLL"
        assert raw.getsockopt(socket.SOL_SOCKET, 46) == 20, "SO_BUSY_POLL"
        raw.close()
        sender.sendto(b"x", ("10.77.0.2", 9000))
        assert len(collect(port, 1)) == 1
        port.receive(1)
        assert port.stats()["rx_wakeups"] > 0


def test_a_busy_queue_is_waited_for_and_then_named(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter():
        first = XskPort("t0")
        with pytest.raises(SetupError, match=r"queue 0 of t0: another socket holds the queue"):
            XskPort("t0", bind_wait_ms=50)
        child = trader.fork(hold_and_let_go, first)
        first.close()  # now only the child has it
        with XskPort("t0", bind_wait_ms=5000) as second:
            assert second.bind_retries > 0
        assert child.wait(60) == 0


def hold_and_let_go(port: XskPort) -> None:
    """In a child: the inherited socket keeps the queue busy for a while."""
    time.sleep(0.3)
    assert port is not None


def test_huge_pages_fall_back_and_are_counted(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter():
        with XskPort("t0") as port:
            stats = port.stats()
            assert stats["huge_pages"] + stats["huge_page_fallbacks"] == 1
        with XskPort("t0", huge_pages=False) as port:
            stats = port.stats()
            assert stats["huge_pages"] == stats["huge_page_fallbacks"] == 0


def test_an_interface_that_is_down_is_named(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter():
        with trader.netlink() as route:
            route.link("set", index=route.link_lookup(ifname="t0")[0], state="down")
        with pytest.raises(SetupError, match=r"t0: the interface is down; ip link set t0 up"):
            XskPort("t0")


def test_an_mtu_that_no_frame_holds_is_named(make_pair: Callable[..., Pair]) -> None:
    _, trader = make_pair(mtu=9000)
    with trader.enter(), pytest.raises(SetupError, match=r"its MTU of 9000 is above the 3818 bytes"):
        XskPort("t0", jumbo=False)


def test_a_queue_out_of_range_is_named(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter(), pytest.raises(SetupError, match=r"queue 1 of t0: it has 1 receive queue"):
        XskPort("t0", 1)


def test_without_capabilities_the_sentence_names_them(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter():
        assert trader.fork(open_without_capabilities).wait(10) == 0


def open_without_capabilities() -> None:
    os.setuid(65534)
    with pytest.raises(SetupError, match="CAP_NET_RAW"):
        XskPort("t0")


def test_a_group_is_joined_as_long_as_the_membership_lives(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with trader_port(trader, "udp dst 239.9.9.9 -> test") as (port, _), venue.socket() as sender:
        for source in (None, "10.77.0.1"):
            with Membership("t0", "239.9.9.9", source) as membership:
                joined = trader.run(["ip", "maddr", "show", "dev", "t0"]).stdout
                assert "239.9.9.9" in joined
                sender.sendto(b"x", ("239.9.9.9", 9000))
                assert len(collect(port, 1)) == 1, "XDP takes the packet"
            assert "left" in repr(membership)
            left = trader.run(["ip", "maddr", "show", "dev", "t0"]).stdout
            assert "239.9.9.9" not in left


def test_source_specific_joins_take_only_that_sender(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with contextlib.ExitStack() as stack:
        with trader.enter():
            right = stack.enter_context(SockPort(["232.1.1.1:7000@10.77.0.1"], interface="t0"))
            wrong = stack.enter_context(SockPort(["232.1.1.1:7001@10.77.0.9"], interface="t0"))
        with venue.enter():
            sender = stack.enter_context(SockPort(["10.77.0.1:0"], interface="v0"))
        for port in (7000, 7001):
            sender.send(b"x", ("232.1.1.1", port))
        end = time.monotonic() + 60
        while not (got := right.receive(8)) and time.monotonic() < end:
            pass
        assert [one.dst for one in got] == [("232.1.1.1", 7000)]
        assert wrong.receive(8) == []


def test_after_close_nothing_is_left_and_the_queue_is_free(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter():
        for _ in range(5):
            port = XskPort("t0")
            fd = port.fileno()
            port.close()
            port.close()
            with pytest.raises(OSError, match="Bad file"):
                socket.socket(fileno=fd)
