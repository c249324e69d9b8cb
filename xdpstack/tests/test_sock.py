"""Kernel sockets on the loopback interface: the flow conformance, bounds and counters."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from xdpstack._ffi import ffi, lib
from xdpstack.clock import tai_ns
from xdpstack.errors import ConfigError, LocalProtocolError, SetupError
from xdpstack.port import SockPort, Subscription
from xdpstack.testing import check_flow


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
            s.bind(("::1", 0))
    except OSError:
        return False
    return True


HAS_IPV6 = has_ipv6()


@contextlib.contextmanager
def flow(**options: object) -> Iterator[tuple[SockPort, SockPort, tuple[str, int]]]:
    with SockPort(["127.0.0.1:0"]) as sender, SockPort(["127.0.0.1:0"], **options) as receiver:
        yield sender, receiver, ("127.0.0.1", receiver.local_port())


def test_kernel_sockets_are_a_flow() -> None:
    check_flow(flow)


@pytest.mark.skipif(not HAS_IPV6, reason="this host has no ::1")
def test_kernel_sockets_of_ipv6_are_a_flow() -> None:
    @contextlib.contextmanager
    def flow6() -> Iterator[tuple[SockPort, SockPort, tuple[str, int]]]:
        with SockPort(["[::1]:0"]) as sender, SockPort(["[::1]:0"]) as receiver:
            yield sender, receiver, ("::1", receiver.local_port())

    check_flow(flow6)


@pytest.mark.skipif(not HAS_IPV6, reason="this host has no ::1")
def test_sockets_of_both_families_share_a_port() -> None:
    """Each knows its own datagrams, and any address tells where they were sent to."""
    with SockPort(["0.0.0.0:0"]) as four:
        number = four.local_port()
        with SockPort([f"[::]:{number}"]) as six, SockPort(["[::1]:0", "127.0.0.1:0"]) as sender:
            sender.send(b"six", ("::1", number), 0)
            sender.send(b"four", ("127.0.0.9", number), 1)
            for port, data, to, index in ((six, b"six", "::1", 0), (four, b"four", "127.0.0.9", 1)):
                (got,) = port.receive(8)
                assert (bytes(got.data), got.dst) == (data, (to, number))
                assert got.src == (sender.subscriptions[index].address, sender.local_port(index))


@pytest.mark.parametrize(
    ("text", "address", "source", "written"),
    [
        ("239.1.1.1:5000@10.0.0.1%eth0", "239.1.1.1", "10.0.0.1", ""),
        ("[ff15::1]:5000", "ff15::1", "", ""),
        ("[FF15:0::1]:5000@2001:DB8::9%eth0", "ff15::1", "2001:db8::9", "[ff15::1]:5000@[2001:db8::9]%eth0"),
        ("[ff35::8000:1]:5000@[fd00::1]", "ff35::8000:1", "fd00::1", ""),
    ],
)
def test_a_subscription_is_read_as_it_is_written(text: str, address: str, source: str, written: str) -> None:
    one = Subscription.parse(text)
    assert (one.address, one.port, one.source) == (address, 5000, source)
    assert str(one) == (written or text)
    assert Subscription.parse(str(one)) == one


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ff15::1:5000", r"is not ADDRESS:PORT.*\[ADDRESS\]:PORT"),
        ("[ff15::1]", "is not ADDRESS:PORT"),
        ("[10.0.0.1]:5", None),
        ("[ff15::g]:5", "is not ADDRESS:PORT"),
        ("[ff15:::1]:5", "not an address"),
        ("[::ffff:10.0.0.1]:5", "write IPv4 as"),
        ("[ff15::1]:5@10.0.0.1", "two families"),
        ("[fd00::1]:5@fd00::2", "no multicast group"),
    ],
)
def test_what_is_no_subscription_is_named(text: str, words: str | None) -> None:
    if words is None:
        assert Subscription.parse(text).address == "10.0.0.1"
        return
    with pytest.raises(ConfigError, match=words):
        Subscription.parse(text)


def test_many_sockets_of_one_port_are_a_flow_each() -> None:
    with SockPort([f"127.0.0.{n}:0" for n in range(1, 40)]) as receiver, SockPort(["127.0.0.1:0"]) as sender:
        for index in range(39):
            sender.send(b"%d" % index, (f"127.0.0.{index + 1}", receiver.local_port(index)))
        got = receiver.receive(64)
        assert sorted((one.dst[0], int(bytes(one.data))) for one in got) == sorted(
            (f"127.0.0.{n + 1}", n) for n in range(39)
        )


def test_a_wildcard_address_tells_where_a_datagram_was_sent_to() -> None:
    with SockPort(["0.0.0.0:0"]) as receiver, SockPort(["127.0.0.1:0"]) as sender:
        sender.send(b"x", ("127.0.0.9", receiver.local_port()))
        assert receiver.receive(1)[0].dst == ("127.0.0.9", receiver.local_port())


def test_what_is_longer_than_a_slot_is_counted_not_delivered() -> None:
    with flow(slot_bytes=64) as (sender, receiver, to):
        for size in (64, 65, 1000, 10):
            sender.send(b"x" * size, to)
        assert [len(one.data) for one in receiver.receive(8)] == [64, 10]
        assert receiver.stats()["rx_truncated"] == 2


def test_a_lease_is_bounded_by_its_slots() -> None:
    with flow(slots=4) as (sender, receiver, to):
        for number in range(6):
            sender.send(b"%d" % number, to)
        assert [bytes(one.data) for one in receiver.receive(64)] == [b"0", b"1", b"2", b"3"]
        assert [bytes(one.data) for one in receiver.receive(64)] == [b"4", b"5"]


def test_what_the_kernel_dropped_is_counted() -> None:
    with flow(rcvbuf=4096) as (sender, receiver, to):
        for _ in range(500):
            sender.send(b"x" * 1000, to)
        came = sum(1 for _ in iter(lambda: len(receiver.receive(64)), 0))
        assert came
        sender.send(b"y", to)  # the count of drops comes with the next datagram
        receiver.receive(64)
        stats = receiver.stats()
        assert stats["rx_dropped"] > 0
        assert stats["rx_datagrams"] + stats["rx_dropped"] == 501


def test_the_receive_buffer_is_what_was_asked_for() -> None:
    with SockPort(["127.0.0.1:0"]) as port:
        if port.rcvbuf < 16 << 20:
            pytest.skip(f"no CAP_NET_ADMIN: the kernel grants {port.rcvbuf} bytes (net.core.rmem_max)")
        assert port.rcvbuf == 16 << 20


def test_poll_wakes_for_a_datagram() -> None:
    import select

    with flow() as (sender, receiver, to):
        assert select.select([receiver], [], [], 0)[0] == []
        sender.send(b"x", to)
        assert select.select([receiver], [], [], 1)[0] == [receiver]


def test_bursts_of_the_c_interface_hold_until_release() -> None:
    with flow(slots=16) as (sender, receiver, to):
        for number in range(8):
            sender.send(b"%d" % number, to)
        out = ffi.new("struct xds_dgram[]", 16)
        for at in range(8):
            assert lib.xds_sock_rx(receiver.handle, out + at, 1, time.time_ns()) == 1
        assert [bytes(ffi.buffer(out[i].data, out[i].len)) for i in range(8)] == [b"%d" % i for i in range(8)]
        lib.xds_sock_release(receiver.handle)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("192.0.2.1:5", "not of this host"),
        ("239.1.1.1:5%nosuch0", "no such interface"),
        ("10.0.0.1", "is not"),
    ],
)
def test_what_cannot_be_opened_is_named(where: str, words: str) -> None:
    with pytest.raises((SetupError, ConfigError), match=words):
        SockPort([where])


def test_a_port_that_somebody_holds_alone_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(SetupError, match="another socket has the port"):
            SockPort([f"127.0.0.1:{other.getsockname()[1]}"])


def test_none_and_too_many_subscriptions_are_refused() -> None:
    for count in (0, 65):
        with pytest.raises(ConfigError, match="takes 1 to 64"):
            SockPort(["127.0.0.1:0"] * count)


def test_a_closed_port_says_so() -> None:
    port = SockPort(["127.0.0.1:0"])
    port.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        port.receive(1)
    assert port.stats()["rx_datagrams"] == 0


def test_an_unreachable_destination_is_an_error_and_counted() -> None:
    with SockPort(["127.0.0.1:0"]) as port:
        with pytest.raises(OSError, match="send"):
            port.send(b"x" * 70_000, ("127.0.0.1", 9))
        assert port.stats()["tx_refused"] == 1


def test_sockets_of_one_port_are_merged_in_the_order_of_the_kernels_stamps() -> None:
    count = 700
    with (
        SockPort(["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"]) as receiver,
        SockPort(["127.0.0.1:0"]) as sender,
    ):
        for number in range(count):
            line = number % 7 % 3
            sender.send(b"%d" % number, (f"127.0.0.{line + 1}", receiver.local_port(line)))
        got: list[int] = []
        while burst := receiver.receive(33):
            got += [int(bytes(one.data)) for one in burst]
        assert got == list(range(count))


def test_merged_sockets_with_few_slots_lose_nothing() -> None:
    with SockPort(["127.0.0.1:0", "127.0.0.2:0"], slots=3) as receiver, SockPort(["127.0.0.1:0"]) as sender:
        for number in range(50):
            line = number % 2
            sender.send(b"%d" % number, (f"127.0.0.{line + 1}", receiver.local_port(line)))
        got: list[int] = []
        while burst := receiver.receive(64):
            assert len(burst) <= 6
            got += [int(bytes(one.data)) for one in burst]
        assert got == list(range(50))


@pytest.mark.parametrize(
    "here", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not HAS_IPV6, reason="no ::1"))]
)
def test_what_is_sent_is_stamped_by_its_number(here: str) -> None:
    """Each socket counts for itself; a stamp is taken after the call began and before it is read."""
    where = f"[{here}]:0" if ":" in here else f"{here}:0"
    with SockPort([where]) as receiver, SockPort([where, where], tx_stamps=True) as sender:
        to, spans = (here, receiver.local_port()), {}
        for index, number in ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1)):
            before = tai_ns()
            sender.send(b"x", to, index)
            spans[index, number] = before
        got, end = {}, time.monotonic() + 60
        while len(got) < len(spans) and time.monotonic() < end:
            for one in sender.sent():
                assert (one.socket, one.number) not in got
                got[one.socket, one.number] = one
        assert set(got) == set(spans)
        for place, one in got.items():
            assert spans[place] <= one.ns <= tai_ns()
            assert one.stamp == "kernel"
        assert sender.sent() == []
        assert sender.receive(8) == [], "stamps are no datagrams"
        assert sender.stats()["tx_nic_refused"] == 0


def test_nothing_that_is_sent_is_stamped_unless_it_was_asked_for() -> None:
    with SockPort(["127.0.0.1:0"]) as receiver, SockPort(["127.0.0.1:0"]) as sender:
        sender.send(b"x", ("127.0.0.1", receiver.local_port()))
        assert sender.sent() == []
