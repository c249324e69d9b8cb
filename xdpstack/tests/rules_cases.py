"""Random rules and frames that often meet: few addresses, few ports, every header the program knows."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

HOSTS4 = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "239.1.2.3", "255.255.255.255", "0.0.0.0"]
NETS4 = ["10.0.0.0/8", "10.0.0.0/24", "239.0.0.0/8", "0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/31"]
HOSTS6 = ["2001:db8::1", "2001:db8::2", "fe80::1", "ff02::1:ff00:1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
NETS6 = ["2001:db8::/32", "fe80::/10", "::/0", "2001:db8::/127", "ff00::/8", "8000::/1"]
PORTS = [0, 1, 53, 5000, 5001, 65535]
VLANS = [0, 1, 100, 4095]
PROTOCOLS = [0, 1, 2, 6, 17, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 136, 255]


def _pack4(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def _pack6(text: str) -> bytes:
    import ipaddress

    return ipaddress.IPv6Address(text).packed


# ---- Rules --------------------------------------------------------------------------------------


@st.composite
def ports(draw: st.DrawFn) -> str:
    low, high = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
    return str(low) if draw(st.booleans()) or low == high else f"{low}-{high}"


@st.composite
def rule_texts(draw: st.DrawFn) -> str:
    """The text of one rule."""
    words: list[str] = []
    if draw(st.integers(0, 3)) == 0:
        outer = draw(st.sampled_from(["none", *map(str, VLANS)]))
        inner = f".{draw(st.sampled_from(VLANS))}" if outer != "none" and draw(st.booleans()) else ""
        words += ["vlan", outer + inner]
    kind = draw(st.sampled_from(["any", "arp", "ndp", "icmp-error", "ip", "ip", "ip", "ip"]))
    family = draw(st.sampled_from([4, 6]))
    hosts, nets = (HOSTS4, NETS4) if family == 4 else (HOSTS6, NETS6)
    network = st.sampled_from(hosts + nets)
    if kind in ("any", "arp", "ndp"):
        words.append(kind)
        first = {"arp": "sender", "ndp": "src"}.get(kind)
        if kind == "arp":
            network = st.sampled_from(HOSTS4 + NETS4)
        elif kind == "ndp":
            network = st.sampled_from(HOSTS6 + NETS6)
        if first and draw(st.booleans()):
            words += [first, draw(network)]
        if first and draw(st.booleans()):
            words += ["target", draw(network)]
    else:
        if kind == "icmp-error":
            words.append("icmp-error")
        protocol = draw(st.sampled_from(["udp", "udp", "tcp", "sctp", "proto 0", "proto 47", "icmp", "icmp6", ""]))
        if protocol in ("icmp", "icmp6"):
            family = 4 if protocol == "icmp" else 6
            network = st.sampled_from((HOSTS4 + NETS4) if family == 4 else (HOSTS6 + NETS6))
        if not protocol and kind == "ip":
            protocol = draw(st.sampled_from(["ip", f"ip{family}"]))
        words += protocol.split()
        ported = protocol in ("udp", "tcp", "sctp")
        for side in ("src", "dst"):
            net = draw(network) if draw(st.booleans()) else "*"
            port = draw(ports()) if ported and draw(st.booleans()) else ""
            if net == "*" and not port:
                continue
            if ":" in net and port:
                net = f"[{net}]"
            words += [side, f"{net}:{port}" if port else net]
    target = draw(st.sampled_from(["a", "b", "pass", "drop", "count", "count"]))
    return " ".join([*words, "->", target])


# ---- Frames -------------------------------------------------------------------------------------


@st.composite
def transport(draw: st.DrawFn, protocol: int) -> bytes:
    if protocol in (1, 58):
        body = bytes(draw(st.sampled_from([[t, 0] for t in (0, 1, 2, 3, 4, 5, 8, 11, 12, 128, 135, 136)])))
        return body + bytes(6) + draw(st.sampled_from([_pack6(h) for h in HOSTS6])) + bytes(8)
    return struct.pack("!HH", draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))) + bytes(16)


@st.composite
def packet4(draw: st.DrawFn, depth: int = 0) -> bytes:
    protocol = draw(st.sampled_from(PROTOCOLS + [17, 17, 6, 1, 1, 1]))
    options = bytes(4 * draw(st.sampled_from([0, 0, 0, 1, 10])))
    if protocol == 1 and depth == 0 and draw(st.booleans()):
        kind = draw(st.sampled_from([3, 4, 5, 11, 12]))
        payload = bytes([kind, 0]) + bytes(6) + draw(packet4(depth=1))
    else:
        payload = draw(transport(protocol))
    fragment = draw(st.sampled_from([0, 0, 0, 0, 0x4000, 0x2000, 0x2001, 0x0005]))
    head = 5 + len(options) // 4
    version = draw(st.sampled_from([4] * 12 + [5]))
    length = draw(st.sampled_from([head * 4 + len(payload)] * 6 + [0, 19]))
    first = draw(st.sampled_from([head] * 12 + [4, 15]))
    src, dst = (_pack4(draw(st.sampled_from(HOSTS4))) for _ in range(2))
    front = struct.pack("!BBHHHBBH", version << 4 | first, 0, length, 1, fragment, 64, protocol, 0)
    return front + src + dst + options + payload


@st.composite
def packet6(draw: st.DrawFn, depth: int = 0) -> bytes:
    protocol = draw(st.sampled_from([17, 17, 6, 58, 58, 58, 47, 59, 132]))
    if protocol == 58 and depth == 0 and draw(st.booleans()):
        payload = bytes([draw(st.integers(1, 4)), 0]) + bytes(6) + draw(packet6(depth=1))
    else:
        payload = draw(transport(protocol))
    following = protocol
    for kind in draw(st.lists(st.sampled_from([0, 43, 44, 51, 60, 135]), max_size=8 if depth == 0 else 2)):
        if kind == 44:
            offset = draw(st.sampled_from([0, 0, 0, 1, 8, 6]))
            payload = struct.pack("!BBHI", following, 0, offset, 7) + payload
        else:
            units = draw(st.sampled_from([0, 0, 1, 2]))
            size = (units + 2) * 4 if kind == 51 else (units + 1) * 8
            payload = bytes([following, units]) + bytes(size - 2) + payload
        following = kind
    version = draw(st.sampled_from([6] * 12 + [4]))
    src, dst = (_pack6(draw(st.sampled_from(HOSTS6))) for _ in range(2))
    return struct.pack("!BBHHBB", version << 4, 0, 0, len(payload) & 0xFFFF, following, 64) + src + dst + payload


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """One Ethernet frame of at least 14 bytes: whole, cut, or with one byte changed."""
    kind = draw(st.sampled_from(["ip4", "ip4", "ip6", "arp", "other"]))
    if kind == "arp":
        odd = draw(st.booleans()) and draw(st.booleans())
        front = struct.pack("!HHBBH", 1, 0x0800, 6, 4 if not odd else 16, 1)
        sender, target = (_pack4(draw(st.sampled_from(HOSTS4))) for _ in range(2))
        ethertype, payload = 0x0806, front + bytes(6) + sender + bytes(6) + target
    elif kind == "other":
        ethertype, payload = draw(st.sampled_from([0x88CC, 0x8100, 0x0000])), bytes(46)
    elif kind == "ip4":
        ethertype, payload = 0x0800, draw(packet4())
    else:
        ethertype, payload = 0x86DD, draw(packet6())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3]))):
        vlan = draw(st.sampled_from(VLANS)) | draw(st.sampled_from([0, 0xE000]))
        payload = struct.pack("!HH", vlan, ethertype) + payload
        ethertype = draw(st.sampled_from([0x8100, 0x88A8]))
    frame = b"\x02\0\0\0\0\1\x02\0\0\0\0\2" + ethertype.to_bytes(2, "big") + payload
    what = draw(st.integers(0, 5))
    if what == 0:
        return frame[: draw(st.integers(14, len(frame)))]
    if what == 1:
        at = draw(st.integers(12, min(len(frame) - 1, 90)))
        return frame[:at] + bytes([draw(st.integers(0, 255))]) + frame[at + 1 :]
    return frame
