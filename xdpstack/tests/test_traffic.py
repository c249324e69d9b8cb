"""Generated traffic over pipes: templates, the pace by counts, the counter at the other end."""

from __future__ import annotations

import itertools
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.cli import main
from xdpstack.clock import tai_ns
from xdpstack.errors import ConfigError
from xdpstack.port import PcapWriter, pipe
from xdpstack.stats import Histogram
from xdpstack.traffic import Receiver, Sender, Template

CAPTURES = Path(__file__).parents[1] / "captures"
CME = CAPTURES / "cme-mdp3-v9-nine-channels-natural-gaps.pcap"
UDP: dict[str, Any] = {
    "src": "10.77.0.1:5000",
    "dst": "10.77.0.2:9000",
    "smac": "02:00:00:00:00:01",
    "dmac": "02:00:00:00:00:02",
}


UDP6: dict[str, Any] = UDP | {"src": "[fd00::1]:5000", "dst": "[fd00::2]:9000"}


def word(number: int, end: bool = False) -> int:
    return lib.XDS_TRAFFIC_MARK | number | (lib.XDS_TRAFFIC_END if end else 0)


def numbered(number: int, end: bool = False) -> bytes:
    frame = Template.udp(**UDP).frames[0]
    return frame[:42] + struct.pack("<QQ", word(number, end), 0) + frame[58:]


def counted(frames: list[bytes]) -> dict[str, Any]:
    """What the counter says of these frames."""
    left, right = pipe(slots=max(1, len(frames)))
    with left, right:
        assert left.send(frames) == len(frames)
        receiver = Receiver(right, want=sum(b"DX" in f[46:50] for f in frames), seconds=0.2)
        return receiver.run()


@pytest.mark.parametrize("vlan", ["", "100", "100.7"])
@pytest.mark.parametrize("size", [70, 1514])
def test_a_template_is_what_scapy_reads(vlan: str, size: int) -> None:
    from scapy.all import IP, Dot1AD, Dot1Q, Ether
    from scapy.all import UDP as UdpLayer

    made = Template.udp(**UDP, vlan=vlan, size=size)
    (frame,), (at,) = made.frames, made.at
    packet = Ether(frame)
    assert len(frame) == size
    assert (packet.src, packet.dst) == (UDP["smac"], UDP["dmac"])
    tags = [packet[layer].vlan for layer in (Dot1AD, Dot1Q) if layer in packet]
    assert tags == [int(v) for v in vlan.split(".") if v]
    assert (packet[IP].src, packet[IP].dst) == ("10.77.0.1", "10.77.0.2")
    assert (packet[UdpLayer].sport, packet[UdpLayer].dport, packet[UdpLayer].chksum) == (5000, 9000, 0)
    given = packet[IP].chksum
    del packet[IP].chksum
    assert Ether(bytes(packet))[IP].chksum == given
    assert bytes(packet[UdpLayer].payload) == frame[at:]


@pytest.mark.parametrize("vlan", ["", "100"])
@pytest.mark.parametrize("size", [0, 83, 1514])
def test_an_ipv6_template_is_what_scapy_reads_with_its_checksum(vlan: str, size: int) -> None:
    from scapy.all import UDP as UdpLayer
    from scapy.all import Ether, IPv6

    made = Template.udp(**UDP6, vlan=vlan, size=size)
    (frame,), (at,) = made.frames, made.at
    packet = Ether(frame)
    assert len(frame) == (size or 78 + (4 if vlan else 0))
    assert (packet[IPv6].src, packet[IPv6].dst, packet[IPv6].hlim) == ("fd00::1", "fd00::2", 64)
    assert (packet[UdpLayer].sport, packet[UdpLayer].dport) == (5000, 9000)
    assert (packet[IPv6].plen, packet[UdpLayer].len) == (len(packet[UdpLayer]),) * 2
    assert bytes(packet[UdpLayer].payload) == frame[at:]
    given = packet[UdpLayer].chksum
    del packet[UdpLayer].chksum
    assert Ether(bytes(packet))[UdpLayer].chksum == given != 0


def folded(data: bytes) -> int:
    """What a right checksum makes 0xffff."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=16, max_size=40).filter(lambda data: len(data) % 2 == 0))
def test_numbered_frames_over_ipv6_have_the_checksum_of_what_is_in_them(payload: bytes) -> None:
    from scapy.all import UDP as UdpLayer
    from scapy.all import Ether, IPv6, Raw

    shape = Ether() / IPv6(src="fd00::1", dst="fd00::2") / UdpLayer(sport=1, dport=2) / Raw(payload)
    left, right = pipe(slots=256)
    with left, right:
        Sender(left, Template.of([bytes(shape)]), count=100, seconds=60).run()
        frames = [bytes(f.data) for f in right.receive(200)]
    assert len(frames) == 100 + lib.XDS_TRAFFIC_ENDS
    assert len({frame[60:62] for frame in frames}) > 1
    assert all(frame[60:62] != b"\0\0" for frame in frames)
    pseudo = struct.pack("!II", 8 + len(payload), 17)
    assert {folded(frame[22:54] + pseudo + frame[54:]) for frame in frames} == {0xFFFF}
    assert {frame[62 + 16 :] for frame in frames} == {payload[16:]}


def test_a_group_gives_its_own_link_address() -> None:
    made = Template.udp(src="[fe80::1]:1", dst="[ff15::8:102:304]:7", smac="02:00:00:00:00:01")
    assert made.frames[0][:6] == bytes.fromhex("333301020304")
    made = Template.udp(src="10.0.0.1:1", dst="239.129.2.3:7", smac="02:00:00:00:00:01")
    assert made.frames[0][:6] == bytes.fromhex("01005e010203")


def test_a_scapy_expression_gives_its_packets_numbered_where_they_are_udp() -> None:
    made = Template.scapy('Ether()/IP(dst=["10.0.0.1","10.0.0.2"])/UDP(dport=9)/Raw(b"x"*40)')
    assert [frame[30:34] for frame in made.frames] == [b"\x0a\0\0\1", b"\x0a\0\0\2"]
    assert made.at == (42, 42)
    assert all(frame[40:42] == b"\0\0" for frame in made.frames)
    assert Template.scapy("Ether()/ARP()").at == (0,)


def test_a_capture_goes_out_unchanged_or_numbered() -> None:
    plain, marked = Template.capture(CME), Template.capture(CME, number=True)
    assert len(plain.frames) == len(marked.frames) == 100
    assert not any(plain.at)
    assert marked.at.count(0) == 1, "one record is no whole UDP datagram"
    left, right = pipe()
    with left, right:
        Sender(left, plain, count=100, seconds=5).run()
        assert [bytes(f.data) for f in right.receive(200)] == list(plain.frames)
        sent = Sender(left, marked, count=150, seconds=5).run()
        found = Receiver(right, seconds=5).run()
        assert (sent.sent, sent.numbered, found["numbered"]) == (150, 149, 149)
        assert (found["received"], found["lost"], found["foreign"]) == (149, 0, 1)


@given(
    rate=st.integers(1, 10**9),
    count=st.integers(1, 1 << 32),
    duration=st.integers(1, 3600 * 10**9),
    elapsed=st.integers(0, 4000 * 10**9),
)
def test_what_is_due_is_every_frame_whose_time_has_come(
    rate: int, count: int, duration: int, elapsed: int
) -> None:
    run = ffi.new("struct xds_traffic_send *")
    run.rate, run.count, run.duration_ns = rate, count, duration
    due = lib.xds_traffic_due(run, elapsed)
    at = [n * 10**9 for n in (due - 1, due)]  # of the last due frame and the next one, times rate
    assert 0 < due <= count
    assert at[0] <= elapsed * rate
    assert at[0] < duration * rate
    assert due == count or at[1] > elapsed * rate or at[1] >= duration * rate


@pytest.mark.parametrize(("rate", "seconds"), [(1000, 0.3), (50_000, 0.25), (200_000, 0.2), (7, 0.3)])
def test_a_run_sends_rate_times_seconds_frames_exactly(rate: int, seconds: float) -> None:
    left, right = pipe(slots=1 << 17)
    with left, right:
        for _ in range(100):
            sent = Sender(left, Template.udp(**UDP), rate=rate, count=10**6, seconds=seconds).run()
            if sent.seconds < seconds + lib.XDS_TRAFFIC_GRACE_NS / 1e9:
                break  # else somebody had the core for longer than a late sender may be late
            Receiver(right, seconds=5).run()
        expected = -(-int(rate * seconds * 1000) // 1000)
        assert (sent.sent, sent.ended_by, sent.announced) == (expected, "seconds", 3)
        found = Receiver(right, seconds=5).run()
        assert (found["numbered"], found["received"], found["lost"]) == (expected, expected, 0)
        assert (found["reordered"], found["doubled"], found["stale"], found["foreign"]) == (0, 0, 0, 0)
        assert found["bytes_received"] == sent.bytes == 60 * expected


def test_a_count_ends_a_run_and_frames_go_round_in_turn() -> None:
    frames = Template.of([numbered(0)[:40] + bytes([n]) * 2 + numbered(0)[42:] for n in range(3)])
    left, right = pipe(slots=1 << 12)
    with left, right:
        sent = Sender(left, frames, count=1000, seconds=5, batch=7).run()
        assert (sent.sent, sent.ended_by) == (1000, "count")
        numbers = [int.from_bytes(f.data[42:48], "little") for f in right.receive(1000)]
        assert numbers == list(range(1000))


def test_a_full_link_bounds_a_run_by_seconds() -> None:
    left, right = pipe(slots=16)
    with left, right:
        sent = Sender(left, Template.udp(**UDP), count=1000, seconds=0.1).run()
        assert (sent.sent, sent.ended_by, sent.announced) == (16, "seconds", 0)


def test_a_frame_larger_than_the_link_is_refused_and_nothing_leaks() -> None:
    left, right = pipe(slots=16, slot_bytes=512)
    with left, right:
        with pytest.raises(ValueError, match="600 bytes is larger than <PipePort left> takes"):
            Sender(left, Template.udp(**UDP, size=600), count=5).run()
        assert left.send([numbered(0)] * 16) == 16


def test_the_counter_tells_lost_reordered_doubled_and_foreign_apart() -> None:
    order = [0, 1, 3, 2, 2, 5, 7, 7, 7, 6, 9]
    frames = [numbered(n) for n in order] + [numbered(11, end=True), b"\xff" * 12 + b"\x08\x06" + bytes(46)]
    found = counted(frames)
    distinct = set(order)
    assert found["numbered"] == 11
    assert found["received"] == len(order)
    assert found["lost"] == 11 - len(distinct)
    assert found["doubled"] == len(order) - len(distinct)
    assert found["reordered"] == 2
    assert found["foreign"] <= 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=120))
def test_the_counter_agrees_with_a_set(order: list[int]) -> None:
    found, seen, doubled, reordered = counted([numbered(n) for n in order]), set[int](), 0, 0
    for n in order:
        doubled += n in seen
        reordered += n not in seen and n < max(seen, default=-1)
        seen.add(n)
    assert found["numbered"] is None
    assert found["lost"] is None, "nobody said what was sent"
    assert (found["received"], found["doubled"], found["reordered"]) == (len(order), doubled, reordered)


def test_what_is_beyond_the_window_is_called_stale() -> None:
    window = lib.XDS_TRAFFIC_WINDOW
    far = 3 * window
    found = counted([numbered(n) for n in (0, far, 0, far, far - window + 1, far - window)])
    assert (found["stale"], found["doubled"], found["reordered"]) == (2, 1, 1)


def test_vlan_and_ipv6_frames_are_looked_into() -> None:
    from scapy.all import UDP as UdpLayer
    from scapy.all import Dot1Q, Ether, IPv6, Raw

    body = Raw(struct.pack("<QQ", word(0), 0))
    tagged = bytes(Ether(numbered(0))[0].copy())
    tagged = tagged[:12] + b"\x81\x00\x00\x07" + tagged[12:]
    six = bytes(Ether() / Dot1Q(vlan=5) / IPv6() / UdpLayer() / body)
    assert counted([tagged, six])["received"] == 2


def test_two_links_are_joined_with_new_macs_both_ways() -> None:
    from xdpstack.clock import Clock

    (a, left), (right, b) = pipe(slots=256), pipe(slots=256, slot_bytes=512)
    state, links = ffi.new("struct xds_traffic_forward *"), ffi.new("struct xds_link *[2]")
    for at, port in enumerate((left, right)):
        links[at] = port.handle
        state.to[at], state.source[at] = bytes([2, 0, 0, 0, 0, at]), bytes([2, 0, 0, 0, 1, at])
    ages = Histogram()
    state.ages = ages.pointer
    there, back = [numbered(n) for n in range(100)], [numbered(n) for n in range(100, 130)]
    long = numbered(7).ljust(600, b"\0")
    assert a.send([*there, long]) == 101
    assert b.send(back) == 30
    assert lib.xds_traffic_forward(state, links, Clock().pointer, 5_000_000) == 0
    macs = [bytes(state.to[at]) + bytes(state.source[at]) for at in (0, 1)]
    assert [bytes(f.data) for f in b.receive(200)] == [macs[1] + one[12:] for one in there]
    assert [bytes(f.data) for f in a.receive(200)] == [macs[0] + one[12:] for one in back]
    assert (list(state.forwarded), state.refused) == ([30, 100], 1)
    assert len(ages) == 100, "of what left by link 1"
    for port in (a, left, right, b):
        port.close()


def test_a_capture_can_be_counted(tmp_path: Path) -> None:
    with PcapWriter(tmp_path / "a.pcap") as writer:
        for stamp, n in enumerate([*range(50), *range(20, 30)]):
            writer.write(1 + stamp, numbered(n))
    assert main(["traffic", "receive", f"pcap:{tmp_path}/a.pcap", "--json"]) == 0


def test_receive_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PcapWriter(tmp_path / "a.pcap") as writer:
        for stamp, n in enumerate([0, 1, 2, 2]):
            writer.write(1 + stamp, numbered(n))
    assert main(["traffic", "receive", f"pcap:{tmp_path}/a.pcap", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["received"], said["doubled"], said["numbered"], said["lost"]) == (4, 1, None, None)
    assert main(["traffic", "receive", f"pcap:{tmp_path}/a.pcap"]) == 0
    assert "lost             unknown" in capsys.readouterr().out


BAD = [
    ("send xsk:lo", 2, "one of --dst, --scapy and --capture"),
    ("send xsk:lo --dst 10.0.0.2:9 --capture x", 2, "one of --dst, --scapy and --capture"),
    ("send pcap:x --dst 10.0.0.2:9", 2, "is not xsk:INTERFACE"),
    ("send xsk:lo:0-1 --dst 10.0.0.2:9", 2, "is not xsk:INTERFACE"),
    ("send xsk:lo --dst 10.0.0.2", 2, "is not ADDRESS:PORT"),
    ("send xsk:lo --dst 10.0.0.2:70000", 2, "a port is from 1"),
    ("send xsk:nosuch0 --dst 10.0.0.2:9", 1, "no interface nosuch0"),
    ("send xsk:lo --dst [fd00::zz]:9", 2, "is not ADDRESS:PORT"),
    ("send xsk:lo --dst fd00::2:9", 2, "is not ADDRESS:PORT"),
    ("send xsk:lo --dst [fe80::2%lo]:9", 2, "the interface is named by the port"),
    ("send xsk:lo --dst [ff15::2]:9 --src 10.0.0.1:9", 2, "both IPv4, or both IPv6"),
    ("send xsk:lo --dst [ff15::2]:9 --src [fd00::1]:9 --size 77", 2, "size 77: this frame takes 78 to"),
    ("send xsk:lo --dst [fd00::99]:9 --src [fd00::1]:9", 2, "no link address is known for fd00::99"),
    ("send xsk:lo --dst 10.99.0.2:9", 2, "no link address is known for 10.99.0.2"),
    ("send xsk:lo --dst 239.0.0.2:9 --size 57", 2, "size 57: this frame takes 60 to"),
    ("send xsk:lo --dst 239.0.0.2:9 --vlan 7.x", 2, "vlan '7.x': an id"),
    ("send xsk:lo --dst 239.0.0.2:9 --smac 02:zz", 2, "'02:zz' is not a MAC address"),
    ("send xsk:lo --dst 239.0.0.2:9 --count 0 --live", 2, "count 0: from 1"),
    ("send xsk:lo --dst 239.0.0.2:9 --rate 500 --live", 2, "live frames go at 100000"),
    ("send xsk:lo --dst 239.0.0.2:9 --rate 1.5 --live", 2, "a whole number"),
    ("send xsk:lo --dst 239.0.0.2:9 --batch 0 --live", 2, "batch 0: from 1 to 256"),
    ("send xsk:lo --dst 239.0.0.2:9 --seconds 0", 2, "above 0"),
    ("send xsk:lo --dst 239.0.0.2:9 --number", 2, "--number is for --capture"),
    ("send xsk:lo --scapy nonsense", 2, "name 'nonsense' is not defined"),
    ("send xsk:lo --scapy 1+1", 2, "gives no Ether packet"),
    ("send xsk:lo --scapy IP()", 2, "gives no Ether packet"),
    ("send xsk:lo --capture nosuch.pcap", 1, "No such file"),
    ("receive xsk:lo", 2, "needs --dst"),
    ("receive sock:lo", 2, "needs --dst"),
    ("receive pipe", 2, "neither xsk:INTERFACE"),
    ("receive pcap:nosuch.pcap", 1, "No such file"),
]


@pytest.mark.parametrize(("words", "code", "sentence"), BAD, ids=itertools.count())
def test_what_is_wrong_is_one_sentence(
    words: str, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["traffic", *words.split()]) == code
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_capture_without_frames_is_named(tmp_path: Path) -> None:
    with PcapWriter(tmp_path / "a.pcapng") as writer:
        writer.add_interface("empty")
    with pytest.raises(ConfigError, match=r"a.pcapng: no frames to send"):
        Template.capture(tmp_path / "a.pcapng")


def test_a_sender_that_was_held_up_stamps_when_its_frames_were_due() -> None:
    """Else the frames that a stall held back would look as if they had been quick."""
    left, right = pipe(slots=1 << 12)
    with left, right:
        sender = Sender(left, Template.udp(**UDP), rate=10_000, count=2000, seconds=60)
        sender.step()
        held = 0.4
        time.sleep(held)
        sender.run()
        stamps = [int.from_bytes(f.data[50:58], "little") for f in right.receive(2000)]
        assert len(stamps) == 2000
        gaps = {b - a for a, b in itertools.pairwise(stamps)}
        assert gaps <= {99_999, 100_000, 100_001}, "an even pace, whatever happened"
        late = sender.late.summary()
        assert late.count == 2000
        assert late.max >= held * 1e9 - 60e6


def test_flat_out_a_frame_is_stamped_when_it_is_sent() -> None:
    left, right = pipe(slots=64)
    with left, right:
        before = tai_ns()
        sender = Sender(left, Template.udp(**UDP), count=20, seconds=5)
        sender.run()
        stamps = [int.from_bytes(f.data[50:58], "little") for f in right.receive(20)]
        assert all(before - 20_000 <= stamp <= tai_ns() + 20_000 for stamp in stamps)
        assert len(sender.late) == 0
