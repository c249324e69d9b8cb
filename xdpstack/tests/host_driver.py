"""One host core for its tests: frames in, frames out, scapy's eyes."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from xdpstack._ffi import ffi, lib, names

scapy = pytest.importorskip("scapy.all", reason="scapy is the second opinion of this file")
Ether, ARP, IP, UDP, ICMP, Dot1Q, Dot1AD, Raw = (
    getattr(scapy, name) for name in ("Ether", "ARP", "IP", "UDP", "ICMP", "Dot1Q", "Dot1AD", "Raw")
)

MAC, PEER = "02:00:00:00:00:01", "02:00:00:00:00:02"
ME, THEM, GROUP, FAR, GATEWAY = "10.0.0.1", "10.0.0.2", "233.54.12.111", "192.0.2.9", "10.0.0.254"
REASON = names("xds_host_reason", "XDS_HOST_")
SECOND = 1_000_000_000


def raw_ip(text: str) -> int:
    return int.from_bytes(bytes(int(part) for part in text.split(".")), "little")


def raw_mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def mapped(text: str) -> bytes:
    return bytes(10) + b"\xff\xff" + bytes(int(part) for part in text.split("."))


class Packet(NamedTuple):
    protocol: int
    src: bytes
    dst: bytes
    tos: int
    ttl: int
    data: bytes


class Host:
    def __init__(self, addresses=(f"{ME}/24",), joins=True, **settings):
        self.cfg = ffi.new("struct xds_host_config *")
        for name, value in ({"gateway": raw_ip(GATEWAY)} | settings).items():
            setattr(self.cfg, name, value)
        ffi.memmove(self.cfg.mac, raw_mac(MAC), 6)
        self.mem = ffi.new("char[]", lib.xds_host_size(self.cfg))
        self.h = ffi.cast("struct xds_host *", self.mem)
        assert lib.xds_host_init(self.mem, self.cfg) == 0
        for address in addresses:
            ip, _, prefix = address.partition("/")
            assert lib.xds_host_add_address(self.h, raw_ip(ip), int(prefix)) == 0
        assert not joins or lib.xds_host_join(self.h, raw_ip(GROUP)) == 0

    def input(self, frame, now=0):
        """The code, and (payload, source, sport, destination, dport) where a datagram came of it."""
        data = bytes(frame)
        keep = ffi.new("uint8_t[]", data) if data else ffi.new("uint8_t[1]")
        self.kept = keep  # what was given lies in it
        f = ffi.new("struct xds_frame *", {"data": keep, "len": len(data), "rx_ns": 77})
        out = ffi.new("struct xds_dgram *")
        code = lib.xds_host_input(self.h, f, out, now)
        s = self.stats
        assert s.received == sum(s.reasons)
        if code == lib.XDS_INPUT_PACKET:
            p = lib.xds_host_packet(self.h)
            assert p.rx_ns == 77
            ends = (bytes(p.src), bytes(p.dst))
            return code, Packet(p.protocol, *ends, p.tos, p.ttl, bytes(ffi.buffer(p.data, p.len)))
        if code != 1:
            return code, None
        assert out.rx_ns == 77
        return 1, (bytes(ffi.buffer(out.data, out.len)), out.src, out.sport, out.dst, out.dport)

    def udp(self, payload, dst, sport=4000, dport=5000, now=0, room=2048):
        buffer = ffi.new("uint8_t[]", b"\xa5" * (room + 16))
        frame = ffi.new("struct xds_frame *", {"data": buffer, "len": room})
        code = lib.xds_host_udp(self.h, frame, sport, raw_ip(dst), dport, payload, len(payload), now)
        assert bytes(ffi.buffer(buffer + room, 16)) == b"\xa5" * 16, "the canary behind the room"
        return code, Ether(bytes(ffi.buffer(buffer, code))) if code > 0 else None

    def ip(self, payload, dst, protocol=6, now=0, room=2048, copied=True, **head):
        """``(code, frame or None, source chosen)`` by ip(), or by reserve and commit."""
        head = {
            "src": bytes(16),
            "dst": mapped(dst) if isinstance(dst, str) else dst,
            "protocol": protocol,
        } | head
        head = ffi.new("struct xds_ip_head *", {"checksum_at": lib.XDS_NO_CHECKSUM} | head)
        buffer = ffi.new("uint8_t[]", b"\xa5" * (room + 16))
        frame = ffi.new("struct xds_frame *", {"data": buffer, "len": room})
        if copied:
            code = lib.xds_host_ip(self.h, frame, head, payload, len(payload), now)
        else:
            place = ffi.new("uint8_t **")
            code = lib.xds_host_ip_reserve(self.h, frame, head, place, now)
            if code > 0:
                ffi.memmove(place[0], payload, min(code, len(payload)))
                code = lib.xds_host_ip_commit(self.h, frame, head, len(payload))
        assert bytes(ffi.buffer(buffer + room, 16)) == b"\xa5" * 16, "the canary behind the room"
        source = bytes(head.src)
        return code, Ether(bytes(ffi.buffer(buffer, code))) if code > 0 else None, source

    def output(self, now=0):
        frames, buffer = [], ffi.new("uint8_t[2048]")
        while lib.xds_host_pending(self.h):
            frame = ffi.new("struct xds_frame *", {"data": buffer, "len": 2048})
            n = lib.xds_host_output(self.h, frame, now)
            assert n == frame.len >= 60 or n == frame.len
            frames.append(Ether(bytes(ffi.buffer(buffer, n))))
        return frames

    def tick(self, now):
        lib.xds_host_tick(self.h, now)
        return self.output(now)

    @property
    def deadline(self):
        return lib.xds_host_deadline(self.h)

    @property
    def stats(self):
        out = ffi.new("struct xds_host_stats *")
        lib.xds_host_stats(self.h, out)
        return out

    def reasons(self):
        return {REASON[i]: n for i, n in enumerate(self.stats.reasons) if n}


def udp_frame(payload=b"payload", dst=GROUP, mac=None, **fields):
    mac = mac or ("01:00:5e:36:0c:6f" if dst == GROUP else MAC)
    return (
        Ether(src=PEER, dst=mac) / IP(src=THEM, dst=dst, **fields) / UDP(sport=1, dport=26477) / Raw(payload)
    )


def verified(frame):
    """The frame as scapy builds it anew, its lengths and checksums left out, must be the same bytes."""
    again = Ether(bytes(frame))
    for layer in (IP, UDP, ICMP):
        if layer in again:
            for field in ("len", "chksum"):
                if field in again[layer].fields:
                    del again[layer].fields[field]
    assert bytes(again) == bytes(frame)
    return frame
