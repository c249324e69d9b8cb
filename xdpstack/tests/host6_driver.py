"""One host core that speaks IPv6, for its tests: frames in, frames out, scapy's eyes."""

from __future__ import annotations

import ipaddress
from typing import Any

from xdpstack._ffi import ffi, lib
from xdpstack.tests.host_driver import MAC, PEER, Host, raw_mac, scapy

NAMES = (
    "IPv6", "UDP", "TCP", "Raw", "Ether", "Dot1Q", "IPv6ExtHdrFragment", "IPv6ExtHdrHopByHop",
    "IPv6ExtHdrDestOpt", "IPv6ExtHdrRouting", "PadN", "Pad1", "HBHOptUnknown", "RouterAlert",
    "ICMPv6EchoRequest", "ICMPv6EchoReply", "ICMPv6DestUnreach", "ICMPv6PacketTooBig", "ICMPv6TimeExceeded",
    "ICMPv6ParamProblem", "ICMPv6ND_NS", "ICMPv6ND_NA", "ICMPv6ND_RA", "ICMPv6ND_RS", "ICMPv6ND_Redirect",
    "ICMPv6NDOptSrcLLAddr", "ICMPv6NDOptDstLLAddr", "ICMPv6NDOptPrefixInfo", "ICMPv6NDOptMTU",
    "ICMPv6MLQuery", "ICMPv6MLReport", "ICMPv6MLDone", "ICMPv6MLQuery2", "ICMPv6MLReport2",
    "ICMPv6MLDMultAddrRec",
)  # fmt: skip
S: Any = type("S", (), {name: getattr(scapy, name) for name in NAMES} | {"IP4": scapy.IP})
"""Scapy's layers by name."""

ME, THEM, FAR = "2001:db8::1", "2001:db8::2", "2001:db8:ffff::9"
LOCAL, ROUTER = "fe80::a", "fe80::fe"
GROUP = "ff05::1234"
ALL = "ff02::1"


def raw(text: str) -> bytes:
    """Sixteen bytes, IPv4 mapped."""
    address = ipaddress.ip_address(text)
    return bytes(10) + b"\xff\xff" + address.packed if address.version == 4 else address.packed


def solicited(text: str) -> str:
    return str(ipaddress.ip_address(bytes.fromhex("ff0200000000000000000001ff") + raw(text)[13:]))


def mac_of(group: str) -> str:
    return "33:33:" + raw(group)[12:].hex(":")


class Host6(Host):
    def __init__(self, addresses=(f"{ME}/64",), known=(), group=GROUP, **settings):
        super().__init__(addresses=(), joins=False, **settings)
        for address in addresses:
            ip, _, prefix = address.partition("/")
            assert lib.xds_host_add_address6(self.h, raw(ip), int(prefix)) == 0
        if group:
            assert lib.xds_host_join6(self.h, raw(group)) == 0
        for who in known:
            assert lib.xds_host_add_neighbour6(self.h, raw(who), raw_mac(PEER)) == 0

    def take(self, frame, now=0):
        """The code, and what was given: a datagram's fields, an error's, or a packet's."""
        code, packet = self.input(frame, now)
        if code == lib.XDS_INPUT_DATAGRAM:
            d = lib.xds_host_dgram6(self.h)
            assert d.rx_ns == 77
            return code, (
                bytes(ffi.buffer(d.data, d.len)), bytes(d.src), d.sport, bytes(d.dst), d.dport, d.tos, d.hops,
            )  # fmt: skip
        if code == lib.XDS_INPUT_ERROR:
            return code, lib.xds_host_error(self.h)
        return code, packet

    def reason(self, frame, now=0):
        """The one reason that this frame counts."""
        before = list(self.stats.reasons)
        self.take(frame, now)
        (at,) = (i for i, n in enumerate(self.stats.reasons) if n != before[i])
        return {v: k for k, v in REASON_VALUES.items()}[at]

    def udp6(self, payload, dst, sport=4000, dport=5000, now=0, room=2048):
        buffer = ffi.new("uint8_t[]", b"\xa5" * (room + 16))
        frame = ffi.new("struct xds_frame *", {"data": buffer, "len": room})
        code = lib.xds_host_udp6(self.h, frame, sport, raw(dst), dport, payload, len(payload), now)
        assert bytes(ffi.buffer(buffer + room, 16)) == b"\xa5" * 16, "the canary behind the room"
        return code, S.Ether(bytes(ffi.buffer(buffer, code))) if code > 0 else None

    def unreachable(self, frame, code=3, now=0):
        data = bytes(frame)
        keep = ffi.new("uint8_t[]", data or b"\0")
        return lib.xds_host_unreachable(
            self.h, ffi.new("struct xds_frame *", {"data": keep, "len": len(data)}), code, now
        )

    def event(self):
        out = ffi.new("struct xds_host_event *")
        return (out.kind, bytes(out.address), bytes(out.mac)) if lib.xds_host_event(self.h, out) else None


REASON_VALUES = {
    name.removeprefix("XDS_HOST_").lower(): value
    for value, name in ffi.typeof("enum xds_host_reason").elements.items()
}


def frame6(*layers, src=THEM, dst=ME, mac=None, hlim=64, **fields):
    """A frame from the peer; the layers stand behind its IPv6 header."""
    address = ipaddress.ip_address(dst)
    mac = mac or (mac_of(dst) if address.is_multicast else MAC)
    packet = S.Ether(src=PEER, dst=mac) / S.IPv6(src=src, dst=dst, hlim=hlim, **fields)
    for layer in layers:
        packet = packet / layer
    return packet
