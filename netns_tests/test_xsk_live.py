"""AF_XDP over veth, the second way to send: bursts as live XDP frames. Content, order and ownership of all
that leaves; what goes by the socket instead, and why; who may; nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyroute2.ethtool.ioctl import IoctlEthtool

from netns_tests import test_opener
from netns_tests.test_opener import as_nobody, line
from netns_tests.test_xsk_modes import (
    EVERYTHING,
    MTUS,
    OPTIONS,
    RELAXED,
    Pair,
    carry,
    collect,
    refusal,
    set_mtu,
    whole,
    window_of,
)
from xdpstack import node as nodes
from xdpstack._ffi import ffi, lib
from xdpstack.bpf import Filter
from xdpstack.doctor.system import BPF_PROG_GET_FD_BY_ID, _bpf
from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import Lab, Namespace, pair
from xdpstack.port import XskPort
from xdpstack.port.parts import adopt, part
from xdpstack.testing import make_frames

folder, loaded, opener = test_opener.folder, test_opener.loaded, test_opener.opener  # fixtures

LEAST, MOST, LONGEST = 24, 128, 3456
"""Frames of a burst that goes so; frames of one run; bytes of a frame (``bpf/xds_send.h``)."""
PAUSE = 1024
"""Bursts by the socket after the kernel took none."""


@contextlib.contextmanager
def far_end(ends: Pair, mode: str = "native", **options: Any) -> Iterator[XskPort]:
    """A receiver on t0. With a generic program there GRO is on, so that veth takes XDP frames."""
    with ends[1].enter():
        if mode == "generic":
            nic = IoctlEthtool("t0")
            features = nic.get_features()
            features["rx-gro"] = True
            nic.set_features(features)
        with Filter.load("t0", mode=mode, rules=EVERYTHING) as steering, XskPort("t0", **options) as port:
            for queue, fd in port.fds().items():
                steering.set_socket("test", queue, fd)
            yield port


@contextlib.contextmanager
def near_end(ends: Pair, **options: Any) -> Iterator[XskPort]:
    with ends[0].enter(), XskPort("v0", **({"tx": "live"} | options)) as port:
        yield port


def commit(port: XskPort, frames: list[bytes]) -> None:
    """All of them, and no flush."""
    slots = ffi.new("struct xds_frame[]", len(frames))
    assert lib.xds_link_reserve(port.handle, slots, len(frames)) == len(frames)
    for slot, frame in zip(slots, frames, strict=True):
        ffi.memmove(slot.data, frame, len(frame))
        slot.len = len(frame)
    assert lib.xds_link_commit(port.handle, slots, len(frames)) == len(frames)


def burst(port: XskPort, frames: list[bytes]) -> None:
    """All of them in one burst; they have left when this returns."""
    commit(port, frames)
    end = time.monotonic() + 60
    while port.flush() and time.monotonic() < end:
        pass


def of_length(length: int, number: int) -> bytes:
    body = random.Random(number).randbytes(8) + number.to_bytes(4)
    return (b"\xff" * 6 + b"\x02\0\0\0\0\1\x88\xb5" + body * (length // 12 + 1))[:length]


def carried(sender: XskPort, port: XskPort, frames: list[bytes], size: int) -> None:
    """In bursts of that size: whole, in order, each once."""
    for at in range(0, len(frames), size):
        now = frames[at : at + size]
        burst(sender, now)
        got = [data for data, _ in collect(port, len(now), patience=60)]
        assert got == now, f"{len(got)} of {len(now)} from {at} on, bytes {[len(one) for one in got[:40]]}"


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_every_length_arrives_whole_and_in_order(make_pair: Callable[..., Pair], mode: str) -> None:
    """From 60 bytes to what the MTU allows, past the longest that goes as an XDP frame."""
    ends = make_pair(mtu=3600)
    with far_end(ends, mode) as port, near_end(ends) as sender:
        lengths = [*range(60, 3615)]
        random.Random(3).shuffle(lengths)
        frames = [of_length(length, number) for number, length in enumerate(lengths)]
        carried(sender, port, frames, 100)
        stats = sender.stats()
        assert 0 < stats["tx_live"] < len(frames)
        assert stats["tx_live_refused"] == 0, "the port knows what is too long"
        short = [frame for frame in frames if len(frame) <= LONGEST]
        carried(sender, port, short, 100)
        assert sender.stats()["tx_live"] - stats["tx_live"] >= len(short) - LEAST, "but the last few"
        assert sender.stats()["tx_live_refused"] == 0
        whole(sender, 4096, 2048)
        whole(port, 4096, 2048)


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_bursts_of_every_size_arrive_in_order(make_pair: Callable[..., Pair], mtu: int) -> None:
    """With an MTU of 9,000 a frame may take several chunks; those go by the socket, and the order holds."""
    ends = make_pair(mtu=mtu)
    with far_end(ends) as port, near_end(ends) as sender:
        number = 0
        for size in [*range(1, 2 * MOST + 40, 3), 2 * MOST + 23, 2 * MOST + 24]:
            lengths = [(60, 1514, 700, mtu + 14)[n % 4 if size % 5 == 0 else n % 3] for n in range(size)]
            frames = [of_length(length, number + n) for n, length in enumerate(lengths)]
            number += size
            before = sender.stats()
            carried(sender, port, frames, size)
            after = sender.stats()
            runs, live = after["tx_live_runs"] - before["tx_live_runs"], after["tx_live"] - before["tx_live"]
            if size < LEAST:
                assert (runs, live) == (0, 0), "a short burst is cheaper by the socket"
            elif max(lengths) <= 1514:
                rest = size % MOST
                assert live == size - (rest if 0 < rest < LEAST else 0)
                assert runs == -(-live // MOST)
        assert sender.stats()["tx_live_refused"] == 0
        assert sender.stats()["tx_frames"] == sender.stats()["tx_completed"] == number
        whole(sender, 4096, sender.tx_frames)


def test_a_run_is_shorter_where_frames_are_longer(make_pair: Callable[..., Pair]) -> None:
    """128 frames of 3,000 bytes are more than the mapped memory has room for."""
    ends = make_pair(mtu=3000)
    with far_end(ends) as port, near_end(ends) as sender:
        carried(sender, port, [of_length(3000, n) for n in range(128)], 128)
        assert sender.stats()["tx_live_runs"] == 2
        assert sender.stats()["tx_live"] == 128


def test_the_longest_frame_that_the_port_takes_goes_as_an_xdp_frame(lab_pair: Pair) -> None:
    """One tag more than the MTU: the kernel drops a longer one, and those behind it too."""
    with far_end(lab_pair) as port, near_end(lab_pair) as sender:
        carried(sender, port, [of_length(1518, n) for n in range(64)], 64)
        assert sender.stats()["tx_live"] == 64
        with pytest.raises(ValueError, match="this port takes 1 to 1518"):
            sender.send([of_length(1519, 64)])
        whole(sender, 4096, 2048)


def test_what_the_far_end_refuses_is_counted_by_its_name(lab_pair: Pair) -> None:
    """Its MTU is smaller: veth drops a longer frame, and those behind it in the sixteen, and says so."""
    with far_end(lab_pair) as port, near_end(lab_pair) as sender:
        set_mtu(lab_pair[1], "t0", 1000)
        carried(sender, port, make_frames(60, longest=1000), 60)
        assert sender.stats()["tx_far_end_refused"] == 0
        burst(sender, [of_length(1514, n) for n in range(60)])
        stats = sender.stats()
        assert (stats["tx_live"], stats["tx_live_refused"]) == (120, 0)
        assert stats["tx_far_end_refused"] == 60
        assert port.receive(1) == []
    assert sender.stats()["tx_far_end_refused"] == 60, "after close, too"


def test_what_is_committed_is_held_until_flush_and_counted(lab_pair: Pair) -> None:
    with far_end(lab_pair) as port, near_end(lab_pair) as sender:
        frames = make_frames(50)
        commit(sender, frames)
        assert sender.census()["tx_queued"] == 50
        assert sender.stats()["tx_completed"] == 0
        time.sleep(0.02)
        assert port.receive(1) == []
        assert sender.flush() == 0
        assert [data for data, _ in collect(port, 50, patience=60)] == frames
        assert sender.census()["tx_free"] == 2048
        assert repr(sender) == "<XskPort xsk:v0:0 copy, sends live frames>"


def test_the_ring_goes_round_many_times(lab_pair: Pair) -> None:
    """Bursts both ways, of all sizes, over a ring that they do not divide."""
    with far_end(lab_pair) as port, near_end(lab_pair, tx_ring=256) as sender:
        chance, number = random.Random(5), 0
        for _ in range(600):
            size = chance.choice((1, 5, 23, 24, 25, 60, 97, 128, 200, 256))
            carried(sender, port, [of_length(60, number + n) for n in range(size)], size)
            number += size
        stats = sender.stats()
        assert stats["tx_frames"] == stats["tx_completed"] == number
        assert 0 < stats["tx_live"] < number
        whole(sender, 4096, 256)


def test_a_far_end_that_takes_no_xdp_frames_is_refused_by_name_and_auto_takes_the_socket(
    lab_pair: Pair,
) -> None:
    words = r"no ndo-xmit.*ethtool -K PEER gro on"
    with lab_pair[0].enter():
        before = os.listdir("/proc/self/fd")
        with pytest.raises(SetupError, match=words):
            XskPort("v0", tx="live")
        assert os.listdir("/proc/self/fd") == before
        with XskPort("v0", tx="auto") as port:
            assert port.sends_by == "socket"
            assert "no ndo-xmit" in port.sends_why
            assert port.send(make_frames(60)) == 60
            assert (port.stats()["tx_live"], port.stats()["tx_completed"]) == (0, 60)
        with XskPort("v0") as port:
            assert (port.sends_by, port.sends_why) == ("socket", "tx='socket'")
    with far_end(lab_pair), near_end(lab_pair, tx="auto") as port:
        assert port.sends_by == "live"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tx": "both"}, r"tx 'both': one of socket, live, auto"),
        ({"tx": "live", "tx_frames": 0}, "tx='live' does not go with a port that only receives"),
        ({"tx": "live", "tx_metadata": True}, "tx='live' does not go with tx_metadata"),
        ({"tx": "live", "raw": True}, "tx='live' does not go with raw"),
    ],
)
def test_what_it_does_not_go_with_is_named(lab_pair: Pair, options: dict[str, Any], words: str) -> None:
    with far_end(lab_pair), lab_pair[0].enter():
        before = os.listdir("/proc/self/fd")
        with pytest.raises(ConfigError, match=words):
            XskPort("v0", **options)
        assert os.listdir("/proc/self/fd") == before


def test_a_far_end_that_loses_its_program_gets_all_by_the_socket_and_live_frames_again_later(
    lab_pair: Pair,
) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        port = first.enter_context(far_end(lab_pair))
        sender = stack.enter_context(near_end(lab_pair))
        carried(sender, port, make_frames(60), 60)
        assert sender.stats()["tx_live"] == 60
        first.close()
        burst(sender, make_frames(60, seed=2))
        stats = sender.stats()
        assert (stats["tx_live"], stats["tx_live_refused"], stats["tx_completed"]) == (60, 60, 120)
        burst(sender, make_frames(60, seed=3))
        assert sender.stats()["tx_live_runs"] == stats["tx_live_runs"], "it is not tried each time"
        port = stack.enter_context(far_end(lab_pair))
        for _ in range(PAUSE):
            carried(sender, port, make_frames(LEAST), LEAST)
        carried(sender, port, make_frames(60, seed=4), 60)
        assert sender.stats()["tx_live"] >= 120
        whole(sender, 4096, 2048)


@pytest.mark.parametrize("tx", ["socket", "live"])
def test_what_an_interface_that_is_down_cannot_send_leaves_in_order_when_it_is_up(
    lab_pair: Pair, tx: str
) -> None:
    with far_end(lab_pair) as port, near_end(lab_pair, tx=tx) as sender:
        frames = make_frames(150)
        burst(sender, frames[:50])
        set_state(lab_pair[0], "down")
        commit(sender, frames[50:100])
        with pytest.raises(OSError, match=os.strerror(errno.ENETDOWN)):
            sender.flush()
        assert sender.census()["tx_queued"] == 50, "they are kept"
        set_state(lab_pair[0], "up")
        burst(sender, frames[100:])
        assert [data for data, _ in collect(port, 150, patience=60)] == frames
        whole(sender, 4096, 2048)


def set_state(space: Namespace, state: str) -> None:
    with space.netlink() as route:
        route.link("set", index=route.link_lookup(ifname="v0")[0], state=state)


def test_an_interface_that_is_deleted_is_an_error_and_no_frame_is_lost_from_the_count(
    lab_pair: Pair,
) -> None:
    with near_end(lab_pair, tx="auto") as unused:
        assert unused.sends_by == "socket"
    with contextlib.ExitStack() as stack:
        stack.enter_context(far_end(lab_pair))
        sender = stack.enter_context(near_end(lab_pair))
        with lab_pair[0].netlink() as route:
            route.link("del", index=route.link_lookup(ifname="v0")[0])
        commit(sender, make_frames(50))
        with pytest.raises(OSError, match="v0"):
            sender.flush()
        census = sender.census()
        assert sum(n for name, n in census.items() if name.startswith("tx")) == 2048


def test_auto_keeps_to_the_socket_where_there_are_several_queues(make_pair: Callable[..., Pair]) -> None:
    """XDP frames leave by the queue of the core; whoever names one relies on it. Asked for, they go so."""
    ends = make_pair(queues=2)
    with far_end(ends) as port, contextlib.ExitStack() as stack:
        sender = stack.enter_context(near_end(ends, tx="auto", tx_queue=0))
        assert (sender.sends_by, sender.sends_why) == (
            "socket",
            "v0 has 2 queues, and XDP frames leave by that of the core",
        )
        carried(sender, port, make_frames(60), 60)
        assert sender.stats()["tx_live"] == 0
        sender.close()
        port.close()
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(far_end(ends, queues=range(2)))
        sender = stack.enter_context(near_end(ends))
        carried(sender, port, make_frames(60), 60)
        assert sender.stats()["tx_live"] == 60


@pytest.mark.parametrize("tx", ["live", "auto"])
def test_a_node_sends_so_by_its_port_and_says_it(lab_pair: Pair, tmp_path: Path, tx: str) -> None:
    program = tmp_path / "live.toml"
    program.write_text(f'[ports.main]\nport = "xsk:v0:0"\ntx = "{tx}"\nmode = "copy"\n')
    with lab_pair[0].enter():
        if tx == "live":
            with pytest.raises(SetupError, match="no ndo-xmit"), nodes.open(program) as node:
                node.build()
        else:
            with nodes.open(program) as node:
                node.build()
                (note,) = [note for note in node.notes if note.startswith("main sends by")]
                assert note.startswith("main sends by the socket: send by live XDP frames on v0: ")
    with far_end(lab_pair), lab_pair[0].enter(), nodes.open(program) as node:
        node.build()
        assert "main sends by live XDP frames: the interface takes XDP frames" in node.notes


# ---- Any configuration -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wires() -> Iterator[dict[int, Pair]]:
    with contextlib.ExitStack() as stack:
        yield {
            mtu: pair(stack.enter_context(Lab(f"live{os.getpid()}-{mtu}")), mtu=mtu)
            for mtu in (1500, 3000, 9000)
        }


@settings(max_examples=12, **RELAXED)
@given(options=OPTIONS, mtu=MTUS, seed=st.integers(0, 1 << 30))
def test_a_valid_configuration_sends_so_and_each_chunk_keeps_one_owner(
    wires: dict[int, Pair], options: dict[str, Any], mtu: int, seed: int
) -> None:
    options = options | {"tx_queue": 0}
    assume(not refusal(options, mtu) and window_of(options | {"in_a_row": False}, mtu) > 0)
    chance = random.Random(seed)
    patterns = [(one, len(one)) for one in make_frames(16, longest=mtu + 14, seed=seed)]
    with far_end(wires[mtu], **options) as port, near_end(wires[mtu], **options) as sender:
        carry(sender, port, patterns, window_of(options | {"in_a_row": False}, mtu), chance)
        short = [(one, length) for one, length in patterns if length <= 1514]
        window = window_of(options | {"in_a_row": False}, 1500)
        carry(sender, port, short, window, chance)
        stats = sender.stats()
        assert stats["tx_live_refused"] == 0
        if min(window, sender.tx_frames) >= 64:
            assert stats["tx_live"] > 0
        assert stats["tx_frames"] == stats["tx_completed"] >= 6_000
        whole(port, options["rx_frames"], port.tx_frames)
        whole(sender, options["rx_frames"], sender.tx_frames)


# ---- who may, and what is left -----------------------------------------------------------------


def test_a_port_goes_to_another_process_with_what_it_sends_by(lab_pair: Pair) -> None:
    """Fifty times, with a burst before and after each; what was committed and not flushed goes along."""
    with far_end(lab_pair) as port, lab_pair[0].enter():
        before = len(os.listdir("/proc/self/fd"))
        sender = XskPort("v0", tx="live", shared=True)
        for number in range(50):
            frames = make_frames(90, seed=number)
            burst(sender, frames[:30])
            commit(sender, frames[30:60])
            parts = part(sender)
            assert json.loads(json.dumps(dict(parts.settings)))["live"] is True
            assert len(parts.fds) == 1 + 2 + 2
            assert len(parts.sockets) == 2
            sender = adopt(parts)
            assert (sender.sends_by, sender.sends_why) == ("live", "it was opened so")
            burst(sender, frames[60:])
            assert [data for data, _ in collect(port, 90, patience=60)] == frames
            assert sender.stats()["tx_live"] == 30
            whole(sender, 4096, 2048)
        sender.close()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("damage", ["fewer", "not said", "strange"])
def test_parts_without_what_they_send_by_are_refused_and_closed(lab_pair: Pair, damage: str) -> None:
    with far_end(lab_pair), lab_pair[0].enter():
        before = len(os.listdir("/proc/self/fd"))
        parts = part(XskPort("v0", tx="live", shared=True))
        settings = dict(parts.settings)
        if damage == "fewer":
            os.close(parts.fds.pop())
        elif damage == "not said":
            del settings["live"]
        else:
            os.close(parts.fds.pop())
            parts.fds.append(os.open("/dev/null", os.O_RDWR))
        parts.settings = settings
        with pytest.raises(
            SetupError, match=r"take a port over: .*(descriptors|No such device|not permitted)"
        ):
            adopt(parts)
        assert len(os.listdir("/proc/self/fd")) == before


SMALL = (
    "SMALL = dict(rx_ring=64, rx_frames=64, tx_ring=64, tx_frames=64, frame_size=2048, huge_pages=False)\n"
)


def test_a_worker_without_a_capability_sends_so_by_the_opener(
    loaded: Pair,
    folder: Path,
    opener: Any,
) -> None:
    """The opener loads the program; running it needs no capability."""
    venue, trader = loaded
    code = SMALL + (
        "lease = Lease.open(PATH, 't0', range(0, 1), tx='live', **SMALL)\n"
        "port = lease.port\n"
        "print(port.sends_by, flush=True)\n"
        "sys.stdin.readline()\n"
        "frames = [b'\\xff' * 6 + b'\\2' * 6 + b'\\x88\\xb5' + bytes([n]) * 46 for n in range(64)]\n"
        "assert port.send(frames) == 64\n"
        "print(port.stats()['tx_live'], port.stats()['tx_live_refused'], flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with venue.enter(), Filter.load("v0", rules=EVERYTHING) as steering, XskPort("v0", range(2)) as port:
        for queue, fd in port.fds().items():  # they come on the one of the core that sends
            steering.set_socket("test", queue, fd)
        running = as_nobody(trader, code, opener.socket)
        try:
            assert line(running) == "live\n"
            running.stdin.write("\n")
            running.stdin.flush()
            assert line(running) == "64 0\n"
            assert [data[14] for data, _ in collect(port, 64, patience=60)] == list(range(64))
            running.stdin.write("\n")
            running.stdin.flush()
            assert running.wait(60) == 0
        finally:
            running.kill()
            running.communicate(timeout=60)


def test_an_opener_that_cannot_says_why(loaded: Pair, folder: Path, opener: Any) -> None:
    code = SMALL + (
        "try:\n"
        "    Lease.open(PATH, 't0', range(0, 1), tx='live', **SMALL)\n"
        "except SetupError as error:\n"
        "    print(error, flush=True)\n"
    )
    running = as_nobody(loaded[1], code, opener.socket)
    assert "no ndo-xmit" in line(running)
    running.communicate(timeout=60)


def program_of(pid: int, fd: int) -> int:
    words = dict(one.split(":\t") for one in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines())
    return int(words["prog_id"])


def test_a_killed_process_leaves_no_program(lab_pair: Pair) -> None:
    code = (
        "import os, sys\n"
        "from xdpstack.port import XskPort\n"
        "port = XskPort('v0', tx='live')\n"
        "assert port.send([b'\\xff' * 60] * 64) == 64 and port.stats()['tx_live'] == 64\n"
        "where = {n: os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')}\n"
        "print(*(n for n, path in where.items() if 'bpf-prog' in path), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with far_end(lab_pair):
        for _ in range(5):
            running = lab_pair[0].popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            found = line(running).split()
            assert len(found) == 1, "the one that is run; that of the clones lives in its maps"
            number = program_of(running.pid, int(found[0]))
            assert exists(number)
            running.send_signal(signal.SIGKILL)
            running.communicate(timeout=60)
            end = time.monotonic() + 60
            while exists(number) and time.monotonic() < end:
                time.sleep(0.02)
            assert not exists(number)


def exists(number: int) -> bool:
    code, _ = _bpf(BPF_PROG_GET_FD_BY_ID, struct.pack("III", number, 0, 0))
    if code >= 0:
        os.close(code)
    return code >= 0
