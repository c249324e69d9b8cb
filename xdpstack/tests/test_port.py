"""Ports by name: every way to say it wrong gives one sentence."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

from xdpstack.errors import ConfigError, SetupError
from xdpstack.port import Membership, PcapPort, Spec, Subscription, XskPort, open_link, parse_spec, pipe
from xdpstack.port import base as port_base
from xdpstack.port import xsk as port_xsk

CAPTURE = Path(__file__).parents[1] / "captures" / "cme-mdp3-v9-nine-channels-natural-gaps.pcap"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("xsk:eth0:0-3", Spec(kind="xsk", interface="eth0", queues=range(0, 4))),
        ("xsk:eth1:3", Spec(kind="xsk", interface="eth1", queues=range(3, 4))),
        ("xsk:enp1s0f0np0", Spec(kind="xsk", interface="enp1s0f0np0")),
        ("pcap:a/b:c.pcap", Spec(kind="pcap", path="a/b:c.pcap")),
        ("pipe", Spec(kind="pipe")),
    ],
)
def test_a_name_is_taken_apart(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    "text",
    ["", "xsk", "xsk:", "xsk::0", "xsk:eth0:", "xsk:eth0:a", "xsk:eth0:0-", "xsk:eth0:3-1", "xsk:eth0:-1",
     "pcap:", "pipe:", "sock:1.2.3.4:5", "xsk:a-name-that-is-too-long:0", "xsk:a b:0", " pipe"],
)  # fmt: skip
def test_a_name_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="port"):
        parse_spec(text)


def test_an_unknown_interface_is_named_with_a_remedy() -> None:
    with pytest.raises(SetupError, match=r"no such interface.*ip link"):
        open_link("xsk:nosuch0:0")


def test_a_queue_out_of_range_is_named_with_a_remedy() -> None:
    with pytest.raises(SetupError, match=r"queue 7 of lo: it has 1 receive queue.*ethtool -L lo combined 8"):
        open_link("xsk:lo:7")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "fast"}, "mode"),
        ({"rx_ring": 1000}, "powers of two"),
        ({"rx_frames": 0}, "powers of two"),
        ({"frame_size": 1024}, "frame_size"),
        ({"frame_size": 3000}, "unaligned"),
        ({"frame_size": 5000, "unaligned": True}, "frame_size"),
        ({"headroom": 4000}, "headroom"),
        ({"slabs": -1}, "slabs"),
        ({"tx_ring": 64, "tx_frames": 65}, "tx_frames"),
        ({"queues": range(0, 0)}, "queues"),
        ({"queues": range(0, 4, 2)}, "queues"),
        ({"queues": -1}, "queues"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        XskPort("lo", **options)


def test_a_refused_open_says_what_to_do() -> None:
    """The sentences of a refused open, by the step and errno that C reports."""
    import errno

    from xdpstack._ffi import ffi, lib

    port = XskPort.__new__(XskPort)
    port.interface, port.queues, port._closed = "eth0", range(1), True
    port._report = ffi.new(
        "struct xds_xsk_report *", {"step": lib.XDS_XSK_STEP_UMEM, "mtu": 9000, "mtu_max": 3818}
    )
    said = {
        number: str(port._refused(-number, "zerocopy", "veth"))
        for number in (
            errno.EPERM,
            errno.EAFNOSUPPORT,
            errno.ENOBUFS,
            errno.EBUSY,
            errno.EMSGSIZE,
            errno.EOPNOTSUPP,
        )
    }
    assert "CAP_NET_RAW" in said[errno.EPERM]
    assert "CONFIG_XDP_SOCKETS" in said[errno.EAFNOSUPPORT]
    assert "ulimit -l" in said[errno.ENOBUFS]
    assert "another socket" in said[errno.EBUSY]
    assert "MTU of 9000 is above the 3818" in said[errno.EMSGSIZE]
    assert "zerocopy was required and driver veth grants copy" in said[errno.EOPNOTSUPP]


def test_a_feature_that_this_kernel_lacks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_xsk, "_kernel", lambda: (6, 1))
    port_xsk.require_features("eth0", unaligned=True, busy_poll=True, shared=True, jumbo=False)
    for name, words in (
        ("jumbo", r"with jumbo: that needs Linux 6\.6 and this is 6\.1"),
        ("tx_metadata", "6.8"),
    ):
        with pytest.raises(SetupError, match=words):
            port_xsk.require_features("eth0", **{name: True})


def test_the_table_of_least_kernels_is_the_one_in_the_chapter() -> None:
    chapter = (Path(__file__).parents[2] / "cffi_build" / "ports" / "README.md").read_text()
    for name, (major, minor) in port_xsk.needs().items():
        assert f"| `{name}` | {major}.{minor} |" in chapter


@pytest.mark.parametrize(
    ("frames", "polled", "napis", "words"),
    [
        (0, 0, [5], "not known yet: 0 frames"),
        (1000, 0, [0], "knows no NAPI"),
        (1000, 1000, [5, 0], "knows no NAPI"),
        (1000, 20, [5], "20 of 1000 frames were polled.*napi_defer_hard_irqs.*net/eth0"),
        (1000, 990, [5, 6], "^in force$"),
    ],
)
def test_busy_polling_is_judged_by_who_brought_the_frames(
    frames: int, polled: int, napis: list[int], words: str
) -> None:
    assert re.search(words, port_xsk.busy_verdict("eth0", frames, polled, napis))


def test_memory_without_huge_pages_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = mmap.mmap, []

    def without_huge_pages(fd: int, size: int, flags: int) -> mmap.mmap:
        tried.append(flags & port_base._MAP_HUGETLB)
        if flags & port_base._MAP_HUGETLB:
            raise OSError(12, "Cannot allocate memory")
        return real(fd, size, flags=flags)

    monkeypatch.setattr(port_base.mmap, "mmap", without_huge_pages)
    memory = port_base.Memory(5000, huge=True)
    assert (memory.huge, memory.fallbacks, memory.size) == (False, 1, 8192)
    assert len(tried) == 2
    memory.close()


def test_views_end_with_their_burst_and_bytes_stay() -> None:
    with PcapPort(CAPTURE) as port:
        first = port.receive(1)[0]
        kept = bytes(first.data)
        port.receive(1)
        with pytest.raises(ValueError, match="released"):
            bytes(first.data)
        assert len(kept) > 14


def test_receive_takes_as_many_as_asked() -> None:
    with open_link(f"pcap:{CAPTURE}") as port:
        assert [len(port.receive(n)) for n in (1, 70, 200)] == [1, 70, 29]


def test_sending_too_much_is_refused_and_nothing_is_lost() -> None:
    left, right = pipe(8, 128)
    with left, right:
        for data in (b"", b"x" * 129):
            with pytest.raises(ValueError, match="1 to 128"):
                left.send([b"y" * 60, data])
        assert right.receive(8) == []
        assert left.send([b"z" * 60] * 8) == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [("1.2.3.4", "is not"), ("1.2.3:5", "IPv4"), ("1.2.3.4:70000", "0 .. 65535"),
     ("10.0.0.1:5@10.0.0.2", "no multicast")],
)  # fmt: skip
def test_a_subscription_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Subscription.parse(text)


def test_a_subscription_reads_what_it_writes() -> None:
    for text in ("233.54.12.111:26477", "232.1.1.1:5@10.0.0.9", "232.1.1.1:5@10.0.0.9%eth0", "10.0.0.1:0"):
        assert str(Subscription.parse(text)) == text


def test_membership_of_what_is_no_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="no multicast group"):
        Membership("lo", "10.0.0.1")
    with pytest.raises(SetupError, match="no such interface"):
        Membership("nosuch0", "239.1.1.1")
