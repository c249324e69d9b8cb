"""Frames of datagrams, against scapy; payloads of whatever bytes; lines found by what they carry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from xdpstack.flows import FlowSeen, channels_of, scan, udp_frame, udp_payload
from xdpstack.port import Subscription

ADDRESS = st.ip_addresses(v=4).map(str)
PORT = st.integers(0, 65535)


@given(st.binary(max_size=1472), ADDRESS, PORT, ADDRESS, PORT)
def test_scapy_reads_the_frame_as_it_was_said(
    data: bytes, to: str, dport: int, source: str, sport: int
) -> None:
    frame = udp_frame(data, (to, dport), (source, sport))
    read = Ether(frame)
    assert (read[IP].src, read[IP].dst, read[UDP].sport, read[UDP].dport) == (source, to, sport, dport)
    assert (read[IP].len, read[UDP].len) == (28 + len(data), 8 + len(data))
    assert bytes(read[UDP].payload) == data
    checksum = read[IP].chksum
    del read[IP].chksum
    assert Ether(bytes(read))[IP].chksum == checksum
    assert udp_payload(frame) == (to, dport, data)


@given(st.binary(max_size=1452), st.ip_addresses(v=6).map(str), PORT, st.ip_addresses(v=6).map(str), PORT)
def test_scapy_reads_the_frame_of_ipv6_as_it_was_said(
    data: bytes, to: str, dport: int, source: str, sport: int
) -> None:
    frame = udp_frame(data, (to, dport), (source, sport))
    read = Ether(frame)
    assert (read[IPv6].src, read[IPv6].dst) == (in6(source), in6(to))
    assert (read[UDP].sport, read[UDP].dport, read[UDP].len) == (sport, dport, 8 + len(data))
    assert bytes(read[UDP].payload) == data
    checksum = read[UDP].chksum
    del read[UDP].chksum
    assert (Ether(bytes(read))[UDP].chksum or 0xFFFF) == checksum
    assert udp_payload(frame) == (to, dport, data)


def in6(text: str) -> str:
    """As scapy writes it."""
    return str(IPv6(dst=text).dst)


def test_a_group_of_ipv6_has_the_hardware_address_of_rfc_2464() -> None:
    assert udp_frame(b"", ("ff15::1:2:304", 1))[:6] == bytes.fromhex("333300020304")
    assert udp_frame(b"", ("fd00::1", 1))[0] & 1 == 0


def test_a_group_has_the_hardware_address_of_rfc_1112() -> None:
    assert udp_frame(b"", ("239.129.2.3", 1))[:6] == bytes.fromhex("01005e010203")
    assert udp_frame(b"", ("10.1.2.3", 1))[0] & 1 == 0


@pytest.mark.parametrize("tags", [[], [Dot1Q(vlan=5)], [Dot1AD(vlan=7), Dot1Q(vlan=5)]])
@pytest.mark.parametrize("options", [b"", b"\x01" * 8, b"\x01" * 40])
def test_tags_and_options_are_walked_over(tags: list[Dot1Q], options: bytes) -> None:
    packet = Ether()
    for tag in tags:
        packet /= tag
    packet /= IP(dst="239.1.1.1", options=options) / UDP(dport=5000) / Raw(b"what it carries")
    # Ethernet pads short frames: what lies behind the datagram is none of its payload.
    frame = bytes(packet) + bytes(9)
    assert udp_payload(frame) == ("239.1.1.1", 5000, b"what it carries")


@pytest.mark.parametrize(
    "packet",
    [Ether() / ARP(), Ether() / IP(proto=6) / Raw(bytes(40)), Ether(type=0x86DD) / Raw(bytes(60))],
)
def test_what_is_no_udp_is_none(packet: Ether) -> None:
    assert udp_payload(bytes(packet)) is None


@given(st.binary(max_size=120))
def test_any_bytes_are_a_payload_or_none(data: bytes) -> None:
    assert_total(data)


@given(
    st.binary(max_size=40), st.integers(0, 90), st.lists(st.tuples(st.integers(0, 89), st.integers(0, 255)))
)
def test_a_frame_cut_and_changed_anywhere_is_a_payload_or_none(
    data: bytes, size: int, changes: list[tuple[int, int]]
) -> None:
    frame = bytearray(udp_frame(data, ("239.1.1.1", 5000)))
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    assert_total(bytes(frame[:size]))
    assert udp_payload(memoryview(frame)[:size]) == udp_payload(bytes(frame[:size]))


def assert_total(data: bytes) -> None:
    found = udp_payload(data)
    if found is not None:
        address, port, payload = found
        assert Subscription.parse(f"{address}:{port}").port == port
        assert payload in data


def test_a_fragment_behind_the_first_is_no_datagram() -> None:
    frame = bytearray(udp_frame(b"x" * 30, ("239.1.1.1", 5000)))
    frame[20:22] = (185).to_bytes(2, "big")  # offset 1480: its first bytes are payload, no ports
    assert udp_payload(bytes(frame)) is None


def frames(*flows: tuple[str, list[bytes]]) -> list[bytes]:
    return [udp_frame(data, (address, 5000)) for address, payloads in flows for data in payloads]


def test_scan_counts_each_destination_in_order_of_appearance() -> None:
    found = scan([*frames(("239.1.1.2", [b"a", b"b"]), ("239.1.1.1", [b"a"])), b"noise"])
    assert [(str(flow.group), flow.packets) for flow in found] == [
        ("239.1.1.2:5000", 2),
        ("239.1.1.1:5000", 1),
    ]


def test_flows_that_share_more_than_half_are_lines_of_one_channel() -> None:
    many = [bytes([n]) for n in range(20)]
    found = scan(
        frames(
            ("239.1.1.1", many),
            ("239.1.1.2", many[:11] + [b"own"] * 3),
            ("239.1.1.3", [*many[:2], b"p", b"q"]),
        )
    )
    channels = [[str(line) for line in lines] for lines in channels_of(found)]
    assert channels == [["239.1.1.1:5000", "239.1.1.2:5000"], ["239.1.1.3:5000"]]


def test_flows_without_payload_are_channels_of_their_own() -> None:
    empty = [FlowSeen(Subscription(address=f"239.1.1.{n}", port=1)) for n in (1, 2)]
    assert len(list(channels_of(empty))) == 2
