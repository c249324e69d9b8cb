"""AF_XDP over veth: one UMEM for several sockets, relaying, huge pages, whether busy polling is in force."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netns_tests.test_xsk_modes import EVERYTHING, Pair, collect, link, whole
from xdpstack._ffi import ffi, lib
from xdpstack.bpf import Filter
from xdpstack.clock import Clock
from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import Lab
from xdpstack.port import XskPort
from xdpstack.testing import make_frames


@pytest.fixture
def chain(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Callable[..., tuple[XskPort, ...]]]:
    """``chain(mtu=..., first={...}, second={...})``: a sender on v0, two ports t0 and t1 in the middle, a
    receiver on w0; the second port of the middle shares the first one's UMEM unless told otherwise.
    Further options are of both."""
    with contextlib.ExitStack() as stack:

        def make(
            mtu: int = 1500,
            first: dict[str, Any] | None = None,
            second: dict[str, Any] | None = None,
            far_mtu: int = 0,
            **both: Any,
        ) -> tuple[XskPort, ...]:
            left, middle, right = (lab.namespace(name) for name in ("left", "middle", "right"))
            lab.veth(left, "v0", None, middle, "t0", None, mtu=mtu)
            lab.veth(middle, "t1", None, right, "w0", None, mtu=far_mtu or mtu)
            filters = {}
            for space, name in ((left, "v0"), (middle, "t0"), (middle, "t1"), (right, "w0")):
                with space.enter():
                    filters[name] = stack.enter_context(Filter.load(name, rules=EVERYTHING))
            with left.enter():
                sender = stack.enter_context(XskPort("v0"))
            with right.enter():
                receiver = stack.enter_context(XskPort("w0"))
            with middle.enter():
                one = stack.enter_context(
                    XskPort("t0", **both, **({"lend": 8192} if first is None else first))
                )
                options = both | ({"share": one} if second is None else second)
                two = stack.enter_context(XskPort("t1", **options))
            for name, port in (("v0", sender), ("t0", one), ("t1", two), ("w0", receiver)):
                filters[name].set_socket("test", 0, port.fds()[0])
            return sender, one, two, receiver

        yield make


def relayed(sender: XskPort, source: XskPort, to: XskPort, receiver: XskPort, frames: list[bytes]) -> None:
    """Send by ``sender``, relay in the middle, and see each frame come out: whole, in order, once."""
    got: list[bytes] = []
    for at in range(0, len(frames), 50):
        part = frames[at : at + 50]
        assert sender.send(part) == len(part)
        done, end = 0, time.monotonic() + 60
        while done < len(part) and time.monotonic() < end:
            done += source.relay(to)
        got += [data for data, _ in collect(receiver, len(part))]
    assert got == frames


@pytest.mark.parametrize("shape", [{}, {"unaligned": True, "frame_size": 3000, "headroom": 64}])
def test_frames_cross_from_one_interface_to_another_without_a_copy(
    chain: Callable[..., tuple[XskPort, ...]], shape: dict[str, Any]
) -> None:
    sender, one, two, receiver = chain(first={"lend": 8192, **shape})
    relayed(sender, one, two, receiver, make_frames(9000))  # more than either has: they change places
    relayed(receiver, two, one, sender, make_frames(3000, seed=2))
    assert one.stats()["tx_copied"] == two.stats()["tx_copied"] == 0
    assert (one.stats()["tx_frames"], two.stats()["tx_frames"]) == (3000, 9000)
    for port in (one, two):
        whole(port, 4096, 2048)


def joined(one: XskPort, two: XskPort) -> Any:
    """The state of ``xds_traffic_forward`` over two ports, and what does a slice of it."""
    state, links, clock = ffi.new("struct xds_traffic_forward *"), ffi.new("struct xds_link *[2]"), Clock()
    for at, port in enumerate((one, two)):
        links[at] = port.handle
        state.to[at], state.source[at] = bytes([2, 0, 0, 0, 0, at]), bytes([2, 0, 0, 0, 1, at])

    def step() -> None:
        assert lib.xds_traffic_forward(state, links, clock.pointer, 2_000_000) == 0

    return state, step


@pytest.mark.parametrize("tx", ["socket", "live"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_forwarder_sends_frames_where_they_lie_with_new_macs(
    chain: Callable[..., tuple[XskPort, ...]], shared: bool, tx: str
) -> None:
    options: dict[str, Any] = {} if shared else {"first": {}, "second": {}}
    sender, one, two, receiver = chain(tx=tx, **options)
    assert lib.xds_xsk_shares(two.handle, one.handle) == lib.xds_xsk_shares(one.handle, two.handle) == shared
    state, step = joined(one, two)
    for frm, to, count, way in ((sender, receiver, 9000, 1), (receiver, sender, 3000, 0)):
        macs, frames = bytes(state.to[way]) + bytes(state.source[way]), make_frames(count, seed=way)
        for at in range(0, count, 50):
            assert frm.send(frames[at : at + 50]) == 50
            got, end = [], time.monotonic() + 60
            while len(got) < 50 and time.monotonic() < end:
                step()
                got += [data for data, _ in collect(to, 50 - len(got), patience=0.01)]
            assert got == [macs + data[12:] for data in frames[at : at + 50]]
    assert (list(state.forwarded), state.refused) == ([3000, 9000], 0)
    assert one.stats()["tx_copied"] == two.stats()["tx_copied"] == 0, "the forwarder's own copies are none"
    for port in (one, two):
        whole(port, 4096, 2048)


def test_what_the_far_interface_cannot_take_is_refused_and_the_rest_goes_on(
    chain: Callable[..., tuple[XskPort, ...]],
) -> None:
    sender, one, two, receiver = chain(first={"lend": 8192, "frame_size": 4096}, mtu=3000, far_mtu=1500)
    state, step = joined(one, two)
    frames = make_frames(300, longest=3014)
    fit = [data for data in frames if len(data) <= 1518]
    assert 100 < len(fit) < 280
    got: list[bytes] = []
    for at in range(0, 300, 50):
        assert sender.send(frames[at : at + 50]) == 50
        end = time.monotonic() + 60
        while state.forwarded[1] + state.refused < at + 50 and time.monotonic() < end:
            step()
        got += [data for data, _ in collect(receiver, state.forwarded[1] - len(got))]
    assert [data[12:] for data in got] == [data[12:] for data in fit]
    assert (state.forwarded[1], state.refused) == (len(fit), len(frames) - len(fit))
    for port in (one, two):
        whole(port, 4096, 2048)


def test_without_a_common_umem_frames_are_copied_and_counted(
    chain: Callable[..., tuple[XskPort, ...]],
) -> None:
    sender, one, two, receiver = chain(first={}, second={})
    relayed(sender, one, two, receiver, make_frames(500))
    assert two.stats()["tx_copied"] == 500
    for port in (one, two):
        whole(port, 4096, 2048)


def test_joined_frames_are_copied_and_counted(chain: Callable[..., tuple[XskPort, ...]]) -> None:
    sender, one, two, receiver = chain(mtu=9000)
    frames = make_frames(300, longest=9014)
    relayed(sender, one, two, receiver, frames)
    assert two.stats()["tx_copied"] == 300
    for port in (one, two):
        whole(port, 4096, port.tx_frames)


def test_a_port_gives_frames_back_by_the_queue_that_they_came_by(lab_pair: Pair) -> None:
    """Bounced: received and sent by one port, within its one UMEM."""
    with link(lab_pair, one_umem=True) as (sender, port, _):
        with lab_pair[0].enter():
            back = Filter.load("v0", force=True, rules=EVERYTHING)
        with back:
            back.set_socket("test", 0, sender.fds()[0])
            relayed(sender, port, port, sender, make_frames(5000))
        assert port.stats()["tx_copied"] == 0
        whole(port, 4096, 2048)


def test_one_umem_serves_several_queues(make_pair: Callable[..., Pair]) -> None:
    venue, trader = make_pair(queues=4)
    with contextlib.ExitStack() as stack:
        with trader.enter():
            steering = stack.enter_context(Filter.load("t0", rules=EVERYTHING))
            port = stack.enter_context(XskPort("t0", range(0, 3), tx_queue=3, one_umem=True, rx_frames=512))
            sizes = {len(port.umem(index)) for index in range(4)}
            port.release()
            assert sizes == {(3 * 512 + 2048) * 2048}, "all of them show the same memory"
        for queue, fd in port.fds().items():
            steering.set_socket("test", queue, fd)
        with venue.enter():
            stack.enter_context(Filter.load("v0"))
            senders = [stack.enter_context(XskPort("v0", queue)) for queue in range(3)]
        for round_ in range(10):
            frames = make_frames(240, seed=round_)
            for number, sender in enumerate(senders):
                assert sender.send(frames[number::3]) == 80
            got = collect(port, 240)
            assert sorted(data for data, _ in got) == sorted(frames)
            assert {frame.queue for _, frame in got} == {0, 1, 2}
        assert port.send(make_frames(500)) == 500, "and the sender"
        whole(port, 3 * 512, 2048)


def test_what_cannot_be_shared_is_refused_with_the_reason(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter(), XskPort("t0", lend=100) as port:
        for options, words in (
            ({"share": port}, "not that many chunks left"),
            ({"share": port, "lend": 5}, "only a port with one UMEM of its own"),
        ):
            with pytest.raises(ConfigError, match=words):
                XskPort("t0", **options)
        port.close()
        with pytest.raises(Exception, match="closed"):
            XskPort("t0", share=port)


def test_an_open_that_fails_gives_the_lent_chunks_back(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter(), XskPort("t0", lend=6144) as port:
        for _ in range(3):  # the queue is taken: the chunks would not be enough a second time
            with pytest.raises(SetupError, match="queue 0 of t0"):
                XskPort("t0", share=port, bind_wait_ms=0)


def test_a_frame_is_forwarded_once_and_only_while_it_is_leased(lab_pair: Pair) -> None:
    with link(lab_pair) as (sender, port, _):
        frames = ffi.new("struct xds_frame[]", 8)
        assert sender.send(make_frames(3)) == 3
        got, end = 0, time.monotonic() + 60
        while got < 3 and time.monotonic() < end:
            got += lib.xds_link_rx(port.handle, frames + got, 8 - got, 0)
        old = ffi.new("struct xds_frame *", frames[2])
        assert lib.xds_xsk_forward(port.handle, port.handle, frames, 2) == 2
        assert frames[0].data == ffi.NULL
        assert lib.xds_xsk_forward(port.handle, port.handle, frames, 1) == lib.XDS_ESTATE
        lib.xds_link_release(port.handle)
        assert lib.xds_xsk_forward(port.handle, port.handle, old, 1) == lib.XDS_ESTATE
        whole(port, 4096, 2048)


# ---- Huge pages ----------------------------------------------------------------------------------


@pytest.fixture
def huge_pages() -> Iterator[Callable[[int, int], int]]:
    """``huge_pages(mib, count)``: reserve such pages, as long as the test; returns how many there are."""
    before: dict[Path, str] = {}

    def reserve(mib: int, count: int) -> int:
        path = Path(f"/sys/kernel/mm/hugepages/hugepages-{mib << 10}kB/nr_hugepages")
        if not path.exists():
            return 0
        before.setdefault(path, path.read_text())
        with contextlib.suppress(OSError):
            path.write_text(str(count))
        return int(path.read_text())

    yield reserve
    for path, text in before.items():
        path.write_text(text)


def tx_places(port: XskPort) -> set[int]:
    """The addresses of all frames to be sent, none of which is under way."""
    frames = ffi.new("struct xds_frame[]", port.tx_frames)
    assert lib.xds_link_reserve(port.handle, frames, port.tx_frames) == port.tx_frames
    found = {frame.addr for frame in frames}
    for frame in frames:
        frame.len = 0
    assert lib.xds_link_commit(port.handle, frames, port.tx_frames) == 0
    return found


@pytest.mark.parametrize("mib", [2, 1024])
@pytest.mark.parametrize("unaligned", [False, True])
def test_the_umem_lies_in_huge_pages_where_there_are_any(
    lab_pair: Pair, huge_pages: Callable[[int, int], int], mib: int, unaligned: bool
) -> None:
    if not huge_pages(mib, 64 if mib == 2 else 2):
        pytest.skip(f"this machine gives no huge page of {mib} MiB")
    options = {"frame_size": 4001, "unaligned": True} if unaligned else {}
    with link(lab_pair, sender={"huge_pages": False}, huge_page_mib=mib, **options) as (sender, port, _):
        stats = port.stats()
        assert (stats["huge_pages"], stats["huge_page_fallbacks"], stats["page_bytes"]) == (1, 0, mib << 20)
        frames = make_frames(5000)
        for at in range(0, 5000, 500):
            assert sender.send(frames[at : at + 500]) == 500
            assert [data for data, _ in collect(port, 500)] == frames[at : at + 500]
        places = tx_places(port)
        for _ in range(25):
            assert port.send(make_frames(100)) == 100
        whole(port, 4096, 2048)
        assert tx_places(port) == places, "each completed where it had begun"


@pytest.mark.parametrize("huge", [False, True])
def test_a_process_that_holds_a_port_can_fork_and_its_child_has_no_copy_of_the_umem(
    lab_pair: Pair, huge_pages: Callable[[int, int], int], huge: bool
) -> None:
    if huge and not huge_pages(2, 64):
        pytest.skip("this machine gives no huge page of 2 MiB")
    with link(lab_pair, sender={"huge_pages": False}, huge_pages=huge) as (sender, port, _):
        if huge:  # no page more than what is used: a copy could not be made
            reserved = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
            spare = int((reserved / "free_hugepages").read_text())
            huge_pages(2, 64 - spare)
            assert int((reserved / "free_hugepages").read_text()) == 0
        address = f"{int(ffi.cast('uintptr_t', port._memory.pointer)):08x}-"
        assert address in Path("/proc/self/maps").read_text()
        child = os.fork()
        if not child:
            os._exit(address in Path("/proc/self/maps").read_text())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        frames = make_frames(500)
        assert sender.send(frames) == 500
        assert [data for data, _ in collect(port, 500)] == frames


def test_each_step_down_to_smaller_pages_is_counted(
    lab_pair: Pair, huge_pages: Callable[[int, int], int]
) -> None:
    _, trader = lab_pair
    huge_pages(1024, 0)
    with trader.enter():
        if huge_pages(2, 64):
            with XskPort("t0", huge_page_mib=1024) as port:
                assert port.stats()["huge_page_fallbacks"] == 1
                assert port.stats()["page_bytes"] == 2 << 20
        huge_pages(2, 0)
        with XskPort("t0", huge_page_mib=1024) as port:
            assert port.stats()["huge_page_fallbacks"] == 2
            assert port.stats()["page_bytes"] == os.sysconf("SC_PAGESIZE")
        with pytest.raises(ConfigError, match="2 or 1024"):
            XskPort("t0", huge_page_mib=16)


# ---- Busy polling --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_busy_polling_over_veth_is_not_in_force_and_says_so(lab_pair: Pair, mode: str) -> None:
    """Neither mode of a veth names its NAPI to the socket: the option is set, and nothing is polled."""
    with link(lab_pair, mode=mode, sender={}, busy_poll=20) as (sender, port, _):
        frames = make_frames(100)
        assert sender.send(frames) == 100
        assert [data for data, _ in collect(port, 100)] == frames, "what comes is not worse for it"
        assert port.stats()["busy_polled"] == 0
        assert "knows no NAPI" in port.busy_polling
        assert "busy polling not in force" in repr(port)


def test_busy_polling_is_off_unless_asked_for(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter(), XskPort("t0") as port:
        assert port.busy_polling == "off"
        assert "busy" not in repr(port)
