"""Random rules and frames that often meet: few addresses, few ports, every header the program knows."""

from __future__ import annotations

import ipaddress
import struct

from hypothesis import strategies as st

from xdpstack.rules import PORTED, UNTAGGED, Rule, read_frame

HOSTS4 = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "239.1.2.3", "255.255.255.255", "0.0.0.0"]
NETS4 = ["10.0.0.0/8", "10.0.0.0/24", "239.0.0.0/8", "0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/31"]
HOSTS6 = [
    "2001:db8::1",
    "2001:db8::2",
    "fe80::1",
    "ff02::1:ff00:1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]
NETS6 = ["2001:db8::/32", "fe80::/10", "::/0", "2001:db8::/127", "ff00::/8", "8000::/1"]
PORTS = [0, 1, 53, 5000, 5001, 65535]
VLANS = [0, 1, 100, 4095]
PROTOCOLS = [0, 1, 2, 6, 17, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 136, 255]


def _pack4(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def _pack6(text: str) -> bytes:
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
    kind = draw(st.sampled_from(["ip"] * 8 + ["icmp-error"] * 3 + ["arp", "ndp", "ndp", "any"]))
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
        protocol = draw(
            st.sampled_from(["udp", "udp", "tcp", "sctp", "proto 0", "proto 47", "icmp", "icmp6", ""])
        )
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
    protocol = draw(st.sampled_from([*PROTOCOLS, 17, 17, 6, 1, 1, 1]))
    options = bytes(4 * draw(st.sampled_from([0, 0, 0, 1, 10])))
    if protocol == 1 and depth == 0 and draw(st.booleans()):
        kind = draw(st.sampled_from([3, 4, 5, 11, 12]))
        payload = bytes([kind, 0]) + bytes(6) + draw(packet4(depth=1))
    else:
        payload = draw(transport(protocol))
    fragment = draw(st.sampled_from([0, 0, 0, 0, 0x4000, 0x2000, 0x2001, 0x0005]))
    head = 5 + len(options) // 4
    version = draw(st.sampled_from([4] * 60 + [5]))
    length = draw(st.sampled_from([head * 4 + len(payload)] * 40 + [0, 19]))
    first = draw(st.sampled_from([head] * 60 + [4, 15]))
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
    for kind in draw(
        st.lists(
            st.sampled_from([0, 43, 44, 51, 60, 135]),
            max_size=draw(st.sampled_from([0, 0, 1, 2, 8])) if depth == 0 else 2,
        )
    ):
        if kind == 44:
            offset = draw(st.sampled_from([0, 0, 0, 1, 8, 6]))
            payload = struct.pack("!BBHI", following, 0, offset, 7) + payload
        else:
            units = draw(st.sampled_from([0, 0, 1, 2]))
            size = (units + 2) * 4 if kind == 51 else (units + 1) * 8
            payload = bytes([following, units]) + bytes(size - 2) + payload
        following = kind
    version = draw(st.sampled_from([6] * 60 + [4]))
    src, dst = (_pack6(draw(st.sampled_from(HOSTS6))) for _ in range(2))
    return (
        struct.pack("!BBHHBB", version << 4, 0, 0, len(payload) & 0xFFFF, following, 64) + src + dst + payload
    )


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """One Ethernet frame of at least 14 bytes: whole, cut, or with one byte changed."""
    kind = draw(st.sampled_from(["ip4"] * 4 + ["ip6"] * 4 + ["arp", "other"]))
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
    what = draw(st.integers(0, 9))
    if what == 0:
        return frame[: draw(st.integers(14, len(frame)))]
    if what == 1:
        at = draw(st.integers(12, min(len(frame) - 1, 90)))
        return frame[:at] + bytes([draw(st.integers(0, 255))]) + frame[at + 1 :]
    return frame


# ---- Rules that meet frames ---------------------------------------------------------------------


@st.composite
def rule_about(draw: st.DrawFn, frame: bytes) -> str:
    """A rule that matches ``frame``, or would but for one field; any rule where it cannot be read."""
    things = read_frame(frame)
    if not things:
        return draw(rule_texts())
    thing = things[-1] if draw(st.integers(0, 2)) else things[0]
    if thing.layer == "other":
        return draw(rule_texts())
    layer = thing.layer
    fields: dict[str, object] = {}
    keep = st.sampled_from([True, True, True, False])
    if draw(st.integers(0, 3)) == 0:
        fields["vlan"] = thing.vlan
        if thing.vlan != UNTAGGED and thing.vlan2 != UNTAGGED and draw(st.booleans()):
            fields["vlan2"] = thing.vlan2
    if layer in ("arp", "ndp"):
        fields["family"] = thing.family
    if layer in ("ip", "inner") and draw(keep):
        fields["protocol"] = thing.protocol
        for side in ("sport", "dport"):
            port = getattr(thing, side)
            if port is None and thing.protocol in PORTED and draw(st.booleans()):
                fields[side] = (0, 65535)  # a fragment has ports of its own, which no rule may see
            if port is not None and draw(keep):
                wide = draw(st.sampled_from([0, 0, 0, 1, 5000]))
                fields[side] = (max(0, port - wide), min(65535, port + draw(st.sampled_from([0, wide]))))
    for side in ("src", "dst"):
        address = getattr(thing, side)
        if address is not None and draw(keep):
            bits = address.max_prefixlen
            length = draw(st.sampled_from([bits, bits, bits - 1, bits // 2, 1, 0]))
            kind = ipaddress.IPv4Network if address.version == 4 else ipaddress.IPv6Network
            fields[side] = kind((address, length), strict=False)
            fields["family"] = address.version
    if fields.get("protocol") in (1, 58):
        fields["family"] = 4 if fields["protocol"] == 1 else 6
        if thing.family != fields["family"]:
            fields.pop("src", None), fields.pop("dst", None)
    target = draw(st.sampled_from(["a", "b", "pass", "drop", "count", "count"]))
    action = target if target in ("pass", "drop", "count") else "redirect"
    group = target if action == "redirect" else None
    return str(Rule(layer=layer, action=action, group=group, **fields))


@st.composite
def encounters(draw: st.DrawFn, count: int = 10) -> tuple[list[str], list[bytes]]:
    """Frames, and rules of which many are about these frames."""
    some = draw(st.lists(frames(), min_size=1, max_size=count))
    texts = [draw(rule_about(frame)) for frame in some if draw(st.integers(0, 3))]
    texts += draw(st.lists(rule_texts(), max_size=count // 2))
    return draw(st.permutations(texts or ["any -> count"])), some
