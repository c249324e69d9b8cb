"""The lab's capture reader, against scapy and cut at every byte."""

from __future__ import annotations

import gzip
import struct

import pytest

from xdpstack.errors import SetupError
from xdpstack.lab.capture import read_datagrams
from xdpstack.lab.feeds import CAPTURES

scapy = pytest.importorskip("scapy.all", reason="scapy is the second opinion here")


def test_the_cme_capture_has_both_lines_in_order():
    found = read_datagrams(CAPTURES / "cme-mdp3-v8-line-a-and-b.pcapng")
    assert (len(found.datagrams), found.other, found.truncated) == (10_000, 0, False)
    assert {one.destination for one in found.datagrams} == {("224.0.31.11", 14320), ("224.0.32.11", 15320)}


def test_the_iex_capture_is_whole_but_for_its_last_record():
    found = read_datagrams(CAPTURES / "iex-deep10-2017-04-25.pcap.gz")
    assert (len(found.datagrams), found.other, found.truncated) == (121_314, 0, True)


@pytest.mark.parametrize(
    "name", ["cme-mdp3-v8-line-a-and-b.pcapng", "cme-mdp3-v9-nine-channels-natural-gaps.pcap"]
)
def test_scapy_reads_the_same(name):
    with scapy.PcapReader(str(CAPTURES / name)) as reader:
        theirs = [
            (int(packet.time * 10**9), bytes(packet[scapy.UDP].payload)[: packet[scapy.UDP].len - 8])
            for packet in reader.read_all(300)
            if scapy.UDP in packet
        ]
    ours = read_datagrams(CAPTURES / name).datagrams[: len(theirs)]
    assert [one.payload for one in ours] == [payload for _, payload in theirs]
    assert all(abs(one.ns - ns) <= 1000 for one, (ns, _) in zip(ours, theirs, strict=True))


def pcap(*frames, order="<", magic=0xA1B23C4D):
    out = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 65535, 1)
    for number, frame in enumerate(frames):
        out += struct.pack(order + "IIII", 7, number, len(frame), len(frame)) + frame
    return out


def test_every_form_of_pcap_and_vlan_tags_are_read(tmp_path):
    base = scapy.IP(src="10.0.0.1", dst="224.1.1.1") / scapy.UDP(sport=5, dport=6) / b"hello"
    ether = scapy.Ether(dst="01:00:5e:01:01:01", src="02:00:00:00:00:01")
    frames = [
        bytes(ether / base),
        bytes(ether / scapy.Dot1Q(vlan=7) / base),
        bytes(ether / scapy.Dot1AD(vlan=7) / scapy.Dot1Q(vlan=9) / base),
        bytes(ether / scapy.IPv6() / scapy.UDP()),
        bytes(ether / scapy.ARP()),
    ]
    for order in "<>":
        for magic, unit in [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)]:
            path = tmp_path / "x.pcap"
            path.write_bytes(gzip.compress(pcap(*frames, order=order, magic=magic)))
            found = read_datagrams(path)
            assert [one.payload for one in found.datagrams] == [b"hello"] * 3
            assert [one.ns for one in found.datagrams] == [7 * 10**9 + n * unit for n in range(3)]
            assert found.datagrams[0].source == ("10.0.0.1", 5)
            assert found.other == 2


def test_a_file_cut_at_any_byte_gives_what_is_whole(tmp_path):
    frame = bytes(scapy.Ether() / scapy.IP() / scapy.UDP() / b"x")
    whole = pcap(frame, frame)
    path = tmp_path / "cut.pcap"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size < 24:
            with pytest.raises(SetupError):
                read_datagrams(path)
            continue
        found = read_datagrams(path)
        records = max(0, size - 24) // (16 + len(frame))
        assert len(found.datagrams) == records
        assert found.truncated == (size != 24 + records * (16 + len(frame)))


def test_what_is_no_capture_is_said(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"not a capture at all")
    with pytest.raises(SetupError, match="neither pcap nor pcapng"):
        read_datagrams(path)
