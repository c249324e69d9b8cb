"""What other processes see of TCP over kernel sockets: sums that only grow, states, how a connection does."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

from xdpstack._ffi import ffi, lib
from xdpstack.engine import Engine, EngineConfig
from xdpstack.sock_figures import COUNTED, PASS
from xdpstack.sock_streams import SockStreams
from xdpstack.stats import ROOT, Reader
from xdpstack.streams import Connection
from xdpstack.tests.test_runner import wait

HOME = "127.0.0.1"
SECONDS = 60.0


class Seen:
    """An engine's segment, looked at from outside while its connections turn."""

    def __init__(self, streams: SockStreams, name: str) -> None:
        self.streams, self.reader = streams, Reader(ROOT / f"xdpstack-{os.getpid()}-{name}.stat")

    @property
    def values(self) -> dict[str, int]:
        return self.reader.values()

    def until(self, name: str, value: int) -> None:
        wait(lambda: self.streams.turn() < 0 or self.values[name] == value, SECONDS)


@contextlib.contextmanager
def seen(pairs: int, **config: int) -> Iterator[tuple[Seen, list[tuple[Connection, Connection]]]]:
    name = f"figures-{os.getpid()}"
    with Engine(EngineConfig(name=name, **config)) as engine, SockStreams(engine) as streams:  # type: ignore[arg-type]
        listener = streams.listen(0, address=HOME)
        made = []
        for _ in range(pairs):
            near = streams.connect(HOME, listener.address[1], timeout=SECONDS)
            far = listener.accept(SECONDS)
            near.timeout = far.timeout = SECONDS
            made.append((near, far))
        yield Seen(streams, name), made


def test_sums_and_states_are_those_of_all_connections_and_only_grow() -> None:
    pairs = PASS + 1  # two ends each, so a pass takes several looks
    with seen(pairs, stage_connections=4) as (outside, made):
        assert outside.reader.units()["tcp.sock.sent_bytes"] == "bytes"
        assert "tcp.sock.states.established" in outside.reader.gauges()
        outside.until("tcp.sock.states.established", 2 * pairs)
        for number, (near, far) in enumerate(made):
            near.write(b"x" * (100 + number))
            assert far.read(1 << 12)
        total = sum(100 + number for number in range(pairs))
        outside.until("tcp.sock.sent_bytes", total)
        outside.until("tcp.sock.received_bytes", total)
        before = outside.values
        assert (before["stack.sock.opened"], before["stack.sock.accepted"]) == (pairs, pairs)
        assert before["stack.sock.connections"] == 2 * pairs
        made[0][0].close()
        made[1][1].abort()
        outside.until("tcp.sock.states.established", 2 * pairs - 4)
        after = outside.values
        assert (after["tcp.sock.sent_bytes"], after["tcp.sock.received_bytes"]) == (total, total)
        for field in COUNTED:
            assert after[f"tcp.sock.{field}"] >= before[f"tcp.sock.{field}"], field
        assert after["tcp.sock.states.close_wait"] == 1, "whose peer closed in order"


def test_a_sum_never_shrinks_whenever_connections_end() -> None:
    with seen(PASS + 2) as (outside, made):
        near = [one for one, _ in made]
        for one, other in made:
            one.write(b"12345678")
            other.read(8)
        outside.until("tcp.sock.sent_bytes", 8 * len(made))
        figures, last = outside.streams._figures, 0
        assert figures is not None
        for step in range(4 * len(near)):  # passes and ends in each other's way
            figures.look([one for one in near if not one.closed])
            if step % 3 == 1 and not all(one.closed for one in near):
                next(one for one in near if not one.closed).close()
            assert outside.values["tcp.sock.sent_bytes"] >= last
            last = outside.values["tcp.sock.sent_bytes"]
        assert all(one.closed for one in near)
        assert last == 8 * len(made)


def test_how_a_connection_does_is_seen_while_it_is_there() -> None:
    with seen(1) as (outside, ((near, far),)):
        place = next(
            number for number in range(8) if outside.values[f"conn.{number}.local_port"] == near.local[1]
        )
        near.write(b"y" * 5000)
        far.read(5000)
        near.drain()  # type: ignore[attr-defined]
        outside.until(f"conn.{place}.state", lib.XDS_TCP_ESTABLISHED)
        words = (
            "cwnd",
            "srtt_ns",
            "rtt_min_ns",
            "in_flight",
            "lost",
            "retransmits",
            "outstanding",
            "delivery_rate",
        )

        def same() -> bool:
            near.streams.turn()
            info, values = near.info(), outside.values
            return all(values[f"conn.{place}.{word}"] == info[word] for word in words)

        wait(same, SECONDS)
        info = near.info()
        assert info["cwnd"] > 0
        assert info["srtt_ns"] > 0
        assert info["delivery_rate"] > 0
        assert outside.reader.units()[f"conn.{place}.cwnd"] == "bytes"
        near.close()
        assert {outside.values[f"conn.{place}.{word}"] for word in ("state", *words)} == {0}


def test_two_with_the_same_interface_are_told_apart_and_nobody_sees_an_engine_without_a_name() -> None:
    name = f"figures-{os.getpid()}"
    with Engine(EngineConfig(name=name)) as engine, SockStreams(engine), SockStreams(engine):
        values = Reader(ROOT / f"xdpstack-{os.getpid()}-{name}.stat").values()
        assert {"tcp.sock.sent", "tcp.sock#1.sent"} <= values.keys()
    with Engine(EngineConfig()) as engine, SockStreams(engine) as streams:
        assert streams._figures is None


def test_ss_says_the_same_of_a_connection() -> None:
    if shutil.which("ss") is None:
        pytest.skip("ss is not installed (apt-get install iproute2)")
    with seen(1) as (_, ((near, far),)):
        near.write(b"z" * 3000)
        far.read(3000)
        near.drain()  # type: ignore[attr-defined]
        ask = ["ss", "-tinH", f"sport = :{near.local[1]}", "and", f"dport = :{near.remote[1]}"]
        for _ in range(100):
            info = near.info()
            said = subprocess.run(ask, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
            if near.info() == info:
                break  # nothing came in between
        told = dict(re.findall(r"\b(cwnd|mss|bytes_sent|segs_out|segs_in|minrtt):([\d.]+)", said))
        rtt = re.search(r"\brtt:([\d.]+)/([\d.]+)", said)
        assert rtt, said
        assert info["mss"] == int(told["mss"])
        assert info["cwnd"] == int(told["cwnd"]) * int(told["mss"])
        assert info["sent_bytes"] == int(told["bytes_sent"]) == 3000
        assert (info["sent"], info["received"]) == (int(told["segs_out"]), int(told["segs_in"]))
        assert info["srtt_ns"] == round(float(rtt[1]) * 1e6)
        assert info["rttvar_ns"] == round(float(rtt[2]) * 1e6)
        assert info["rtt_min_ns"] == round(float(told["minrtt"]) * 1e6)
        assert said.startswith("ESTAB") == (info["state"] == "established")


def test_a_socket_that_is_none_says_so_and_a_listener_tells_its_state() -> None:
    told = ffi.new("struct xds_sock_tcp *")
    assert lib.xds_sock_tcp(-1, told) == -9, "EBADF"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        assert lib.xds_sock_tcp(other.fileno(), told) < 0
    with socket.socket() as one:
        one.bind((HOME, 0))
        one.listen()
        assert lib.xds_sock_tcp(one.fileno(), told) == 0
        assert told.info.state == lib.XDS_TCP_LISTEN
        assert (told.info.unread, told.info.outstanding) == (0, 0)
