"""Steering rules: the grammar, the tables they are compiled into, and a plain model of what they mean.

A rule says which frames it is about and where they go::

    udp dst 233.54.12.111:26477 -> trader          a socket group, by its name
    vlan 100 udp src 10.0.0.0/8 dst 239.1.0.0/16:5000-5010 -> feed
    tcp src 192.0.2.7:443 dst [2001:db8::1]:40000  is refused: one family a rule
    arp target 10.0.0.2 -> stack
    ndp target fe80::2 -> stack
    icmp-error udp src 10.0.0.2:40000 -> stack     the packet inside the error; *we* sent it, so src is ours
    proto 103 -> drop
    any -> count

Rules are ordered; the first that matches and passes, drops or redirects ends, ``count`` only counts.
What no rule names goes to the kernel. The grammar (words are separated by blanks)::

    rule      = match "->" target
    target    = "pass" | "drop" | "count" | GROUP
    match     = [ vlan ] what { vlan | "src" end | "dst" end | "sender" ADDRESS | "target" ADDRESS }
    what      = "any" | "arp" | "ndp" | [ "icmp-error" ] ip
    ip        = family [ protocol ] | protocol | (after "icmp-error") nothing
    family    = "ip" | "ip4" | "ip6"
    protocol  = "udp" | "tcp" | "sctp" | "dccp" | "udplite" | "icmp" | "icmp6" | "igmp" | "gre" | "esp"
              | "ah" | "ospf" | "pim" | "vrrp" | "proto" NUMBER            (0..255)
    vlan      = "vlan" ( "none" | VID [ "." VID ] )          (outer tag, inner tag; default: any)
    end       = network [ ":" ports ] | ( "*" | "" ) ":" ports
    network   = IPv4 [ "/" BITS ] | IPv6 [ "/" BITS ] | "[" IPv6 [ "/" BITS ] "]"   (brackets before ports)
    ports     = PORT [ "-" PORT ]                            (udp, tcp, sctp, dccp and udplite only)
    GROUP     = letter { letter | digit | "_" | "-" }        (up to 31)

A rules file holds one rule a line; ``#`` starts a comment. A fragment matches only rules that name no
ports. ``arp`` takes ``sender`` and ``target``; ``ndp`` takes ``src`` (of the IPv6 packet) and ``target``.
"""

from __future__ import annotations

import bisect
import ipaddress
import random
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack import _ffi
from xdpstack._ffi import ffi, lib
from xdpstack.errors import CapacityError, ConfigError

__all__ = ["Decision", "Rule", "compile_tables", "decide", "load_rules", "parse_rule", "parse_rules"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PROTOCOLS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51,
    "icmp6": 58, "ospf": 89, "pim": 103, "vrrp": 112, "sctp": 132, "udplite": 136,
}  # fmt: skip
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
PORTED = frozenset({6, 17, 33, 132, 136})
ACTIONS = ("pass", "drop", "count")
GROUP = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")
UNTAGGED: int = lib.XDS_VLAN_NONE


# ---- Rules --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. ``None`` matches everything; ``str(rule)`` is its canonical text."""

    layer: str  # "any", "ip", "arp", "ndp" or "inner" (the packet inside an ICMP error)
    action: str  # "redirect", "pass", "drop" or "count"
    group: str | None = None  # of redirect
    family: int | None = None  # 4 or 6
    protocol: int | None = None
    vlan: int | None = None  # outer VID; UNTAGGED: no tag
    vlan2: int | None = None  # inner VID
    src: Network | None = None  # ARP: sender
    dst: Network | None = None  # ARP and NDP: target
    sport: tuple[int, int] | None = None  # inclusive
    dport: tuple[int, int] | None = None
    id: int = 0  # stable while the rule lives; 0: not loaded yet

    def __str__(self) -> str:
        words = []
        if self.vlan is not None:
            inner = f".{self.vlan2}" if self.vlan2 is not None else ""
            words += ["vlan", "none" if self.vlan == UNTAGGED else f"{self.vlan}{inner}"]
        if self.layer in ("any", "arp", "ndp"):
            words.append(self.layer)
        else:
            words += self._ip_words()
        first, second = ("sender", "target") if self.layer == "arp" else ("src", "dst")
        if self.layer == "ndp":
            second = "target"
        if self.src is not None or self.sport is not None:
            words += [first, _end_text(self.src, self.sport)]
        if self.dst is not None or self.dport is not None:
            words += [second, _end_text(self.dst, self.dport)]
        return " ".join([*words, "->", self.group or self.action])

    def covers(self, other: Rule) -> bool:
        """Whether every frame that ``other`` matches is matched by this rule; targets do not count."""
        if self.layer not in ("any", other.layer):
            return False
        for mine, its in (
            (self.family, other.family),
            (self.protocol, other.protocol),
            (self.vlan, other.vlan),
            (self.vlan2, other.vlan2),
        ):
            if mine is not None and mine != its:
                return False
        for net, of in ((self.src, other.src), (self.dst, other.dst)):
            if net is not None and not (of is not None and _within(of, net)):
                return False
        return all(
            ports is None or (of is not None and ports[0] <= of[0] and of[1] <= ports[1])
            for ports, of in ((self.sport, other.sport), (self.dport, other.dport))
        )

    def _ip_words(self) -> list[str]:
        words = ["icmp-error"] if self.layer == "inner" else []
        implied = {1: 4, 58: 6}.get(-1 if self.protocol is None else self.protocol)
        if any(end is not None for end in (self.src, self.dst)):
            implied = self.family
        if self.family is not None and self.family != implied:
            words.append(f"ip{self.family}")
        elif self.protocol is None and self.layer == "ip":
            words.append("ip")
        if self.protocol is not None:
            words.append(PROTOCOL_NAMES.get(self.protocol, f"proto {self.protocol}"))
        return words


def _within(inner: Network, outer: Network) -> bool:
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and inner.network_address in outer
    )


def _end_text(network: Network | None, ports: tuple[int, int] | None) -> str:
    text = "*"
    if network is not None:
        text = str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
    if ports is None:
        return text
    if network is not None and network.version == 6:
        text = f"[{text}]"
    return f"{text}:{ports[0]}" + (f"-{ports[1]}" if ports[1] != ports[0] else "")


class _Parser:
    """One rule's words, taken from left to right."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text.strip(), where
        self.fields: dict[str, Any] = {}

    def fail(self, why: str) -> ConfigError:
        return ConfigError(f"{self.where}: {why} in rule {self.text!r}")

    def number(self, word: str, limit: int, what: str) -> int:
        if not word.isascii() or not word.isdigit() or int(word) > limit:
            raise self.fail(f"{what} {word!r} is not a number from 0 to {limit}")
        return int(word)

    def set(self, key: str, value: object) -> None:
        if key in self.fields:
            raise self.fail(f"{key} is given twice")
        self.fields[key] = value

    def parse(self) -> Rule:
        match, arrow, target = self.text.partition("->")
        if not arrow:
            raise self.fail("no '->'")
        self.words = match.split()
        self.target(target.strip())
        self.optional_vlan()
        self.what()
        while self.words:
            self.condition(self.words.pop(0))
        self.check_families()
        self.check_ports()
        return Rule(**self.fields)

    def target(self, word: str) -> None:
        if word in ACTIONS:
            self.set("action", word)
        elif GROUP.fullmatch(word):
            self.set("action", "redirect")
            self.set("group", word)
        else:
            raise self.fail(f"{word!r} is neither pass, drop, count nor the name of a socket group")

    def optional_vlan(self) -> None:
        if self.words[:1] == ["vlan"]:
            self.condition(self.words.pop(0))

    def what(self) -> None:
        word = self.words.pop(0) if self.words else ""
        if word in ("any", "arp", "ndp"):
            self.set("layer", word)
            if word != "any":
                self.set("family", 4 if word == "arp" else 6)
            return
        self.set("layer", "inner" if word == "icmp-error" else "ip")
        if word == "icmp-error":
            word = self.words[0] if self.words else ""
            if word not in ("ip", "ip4", "ip6", "proto", *PROTOCOLS):
                return
            self.words.pop(0)
        if word in ("ip", "ip4", "ip6"):
            if word != "ip":
                self.set("family", int(word[2]))
            if self.words[:1] != ["proto"] and (not self.words or self.words[0] not in PROTOCOLS):
                return
            word = self.words.pop(0)
        if word == "proto":
            self.set("protocol", self.number(self.words.pop(0) if self.words else "", 255, "protocol"))
        elif word in PROTOCOLS:
            self.set("protocol", PROTOCOLS[word])
        else:
            raise self.fail(
                f"{word!r} is not a kind of frame (any, ip, ip4, ip6, udp, tcp, arp, ndp, icmp-error, ...)"
            )

    def condition(self, word: str) -> None:
        if word not in ("vlan", "src", "dst", "sender", "target"):
            raise self.fail(f"{word!r} is not a condition (vlan, src, dst, sender, target)")
        if not self.words:
            raise self.fail(f"nothing after {word!r}")
        value = self.words.pop(0)
        if word == "vlan":
            self.vlan(value)
            return
        layer = self.fields["layer"]
        allowed = {"any": (), "arp": ("sender", "target"), "ndp": ("src", "target")}.get(
            layer, ("src", "dst")
        )
        if word not in allowed:
            raise self.fail(f"{word!r} does not go with {layer!r}")
        self.end("src" if word in ("src", "sender") else "dst", value)

    def vlan(self, value: str) -> None:
        if value == "none":
            self.set("vlan", UNTAGGED)
            return
        outer, dot, inner = value.partition(".")
        self.set("vlan", self.number(outer, 4095, "VLAN"))
        if dot:
            self.set("vlan2", self.number(inner, 4095, "VLAN"))

    def end(self, side: str, value: str) -> None:
        if value.startswith("["):
            network, bracket, rest = value[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise self.fail(f"unbalanced brackets in {value!r}")
            ports = rest[1:] if rest else None
        elif value.count(":") > 1:
            network, ports = value, None
        else:
            network, colon, after = value.partition(":")
            ports = after if colon else None
        if network not in ("", "*"):
            self.set(side, self.network(network))
        elif ports is None:
            raise self.fail(f"{value!r} says nothing")
        if ports is not None:
            self.set("sport" if side == "src" else "dport", self.ports(ports))

    def network(self, text: str) -> Network:
        try:
            return ipaddress.ip_network(text)
        except ValueError as error:
            raise self.fail(f"{text!r} is not an address or prefix ({error})") from None

    def ports(self, text: str) -> tuple[int, int]:
        first, dash, last = text.partition("-")
        low = self.number(first, 65535, "port")
        high = self.number(last, 65535, "port") if dash else low
        if high < low:
            raise self.fail(f"port range {text!r} runs backwards")
        return low, high

    def check_families(self) -> None:
        families = {
            net.version for net in (self.fields.get("src"), self.fields.get("dst")) if net is not None
        }
        if "family" in self.fields:
            families.add(self.fields["family"])
        if (protocol := self.fields.get("protocol")) in (1, 58):
            families.add(4 if protocol == 1 else 6)
        if len(families) > 1:
            raise self.fail("IPv4 and IPv6 are mixed")
        if families:
            self.fields["family"] = families.pop()

    def check_ports(self) -> None:
        if ("sport" in self.fields or "dport" in self.fields) and self.fields.get("protocol") not in PORTED:
            raise self.fail("ports need udp, tcp, sctp, dccp or udplite")


def parse_rule(text: str, where: str = "rule") -> Rule:
    """The rule that ``text`` says. Raises ConfigError, which begins with ``where``."""
    return _Parser(text, where).parse()


def parse_rules(text: str, where: str = "rules") -> list[Rule]:
    """The rules of a file's text, in order; errors name ``where`` and the line."""
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if line:
            rules.append(parse_rule(line, f"{where}:{number}"))
    if len(rules) > lib.XDS_RULES_MAX:
        raise CapacityError(f"{where}: {len(rules)} rules, at most {lib.XDS_RULES_MAX} fit")
    return rules


def load_rules(path: str | Path) -> list[Rule]:
    """Read a rules file. Raises ConfigError with file and line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: {reason}") from None
    return parse_rules(text, str(path))


# ---- Tables -------------------------------------------------------------------------------------
# A set of rules is a Python integer, bit i for the i-th rule. A dimension is a list of half-open
# ranges of values with the set that each allows.


class _Classes:
    """Distinct sets of rules and their numbers; class 0 is every rule, for dimensions not in use."""

    def __init__(self, count: int) -> None:
        self.sets = [(1 << count) - 1]
        self.numbers: dict[int, int] = {}

    def number(self, bits: int) -> int:
        if bits not in self.numbers:
            if len(self.sets) >= lib.XDS_CLASSES_MAX:
                raise CapacityError(f"rules: more than {lib.XDS_CLASSES_MAX} distinct classes")
            self.numbers[bits] = len(self.sets)
            self.sets.append(bits)
        return self.numbers[bits]


def _ranges(spans: Iterable[tuple[int, int, int]], base: int) -> tuple[list[int], list[int]]:
    """Starts and sets of the ranges that overlapping ``(first, last, bit)`` cut the line into."""
    toggles: dict[int, list[int]] = {0: []}
    for first, last, bit in spans:
        toggles.setdefault(first, []).append(bit)
        toggles.setdefault(last + 1, []).append(bit)
    starts, sets, current = [], [], base
    for start in sorted(toggles):
        for bit in toggles[start]:
            current ^= 1 << bit
        starts.append(start)
        sets.append(current)
    return starts, sets


def _fill_ports(
    table: np.ndarray[Any, Any], classes: _Classes, ports: Sequence[tuple[int, int] | None]
) -> bool:
    base = sum(1 << i for i, span in enumerate(ports) if span is None)
    starts, sets = _ranges(((*span, i) for i, span in enumerate(ports) if span is not None), base)
    for start, end, bits in zip(starts, [*starts[1:], 65536], sets, strict=True):
        table[start : min(end, 65536)] = classes.number(bits) if start < 65536 else 0
    table[lib.XDS_PORT_NONE] = classes.number(base)
    return any(span is not None for span in ports)


def _fill_values(table: np.ndarray[Any, Any], classes: _Classes, values: Sequence[int | None]) -> bool:
    base = sum(1 << i for i, value in enumerate(values) if value is None)
    table[:] = classes.number(base)
    for wanted in {value for value in values if value is not None}:
        bits = sum(1 << i for i, value in enumerate(values) if value == wanted)
        table[wanted] = classes.number(base | bits)
    return any(value is not None for value in values)


def _fill_kinds(table: np.ndarray[Any, Any], classes: _Classes, rules: Sequence[Rule]) -> None:
    sets = [0] * lib.XDS_KINDS
    every: dict[int, int] = {}  # start of a block of 256 protocols -> the rules that name none
    for i, rule in enumerate(rules):
        bit = 1 << i
        if rule.layer == "arp":
            sets[lib.XDS_KIND_ARP] |= bit
        elif rule.layer == "ndp":
            sets[lib.XDS_KIND_NDP] |= bit
        else:
            inner = rule.layer == "inner"
            blocks = []
            if rule.family != 6:
                blocks.append(lib.XDS_KIND_INNER4 if inner else lib.XDS_KIND_IP4)
            if rule.family != 4:
                blocks.append(lib.XDS_KIND_INNER6 if inner else lib.XDS_KIND_IP6)
            if rule.layer == "any":
                sets[lib.XDS_KIND_ARP] |= bit
                sets[lib.XDS_KIND_OTHER] |= bit
            for block in blocks:
                if rule.protocol is None:
                    every[block] = every.get(block, 0) | bit
                else:
                    sets[block + rule.protocol] |= bit
    for block, bits in every.items():
        for protocol in range(256):
            sets[block + protocol] |= bits
    table[:] = [classes.number(bits) for bits in sets]


def _place_hosts(hosts: Sequence[int], wide: bool) -> tuple[int, int, list[int]]:
    """A multiplier, a mask and each host's bucket, such that no bucket overflows."""
    chance = random.Random(len(hosts))
    keys = np.array(
        [(h >> 64) ^ _swap_halves(h & (1 << 64) - 1) if wide else h for h in hosts], dtype=np.uint64
    )
    buckets = 1
    while buckets * 2 < len(hosts):
        buckets *= 2
    while buckets <= lib.XDS_BUCKETS_MAX:
        for _ in range(32):
            multiplier = chance.getrandbits(64) | 1
            with np.errstate(over="ignore"):
                at = ((keys * np.uint64(multiplier)) >> np.uint64(40)) & np.uint64(buckets - 1)
            if np.bincount(at.astype(np.int64)).max() <= lib.XDS_BUCKET_SLOTS:
                return multiplier, buckets - 1, [int(bucket) for bucket in at]
        buckets *= 2
    raise CapacityError(f"rules: {len(hosts)} host addresses do not fit {lib.XDS_BUCKETS_MAX} buckets")


def _swap_halves(low: int) -> int:
    return (low >> 32) | (low & 0xFFFFFFFF) << 32


def _fill_addresses(
    table: Any, classes: _Classes, networks: Sequence[Network | None], version: int
) -> tuple[bool, dict[int, int]]:
    """Hosts into the hash, prefixes into ranges. Returns whether a rule names one, and hosts' classes."""
    wide, bits = version == 6, 128 if version == 6 else 32
    base = sum(1 << i for i, net in enumerate(networks) if net is None)
    spans: list[tuple[int, int, int]] = []
    hosts: dict[int, int] = {}  # address -> its rules
    for i, net in enumerate(networks):
        if net is None or net.version != version:
            continue
        first = int(net.network_address)
        if net.prefixlen == bits:
            hosts[first] = hosts.get(first, 0) | 1 << i
        else:
            spans.append((first, int(net.broadcast_address), i))
    starts, sets = _ranges(spans, base)
    if starts[-1] >> bits:  # a prefix that reaches the last address ends behind it
        del starts[-1], sets[-1]
    numbers = [classes.number(found) for found in sets]
    found_hosts: dict[int, int] = {}
    count = len(starts)
    table["top"] = 1 << ((count - 1).bit_length() - 1) if count > 1 else 0
    if wide:
        table["start_high"][:] = table["start_low"][:] = (1 << 64) - 1
        table["start_high"][:count] = [start >> 64 for start in starts]
        table["start_low"][:count] = [start & ((1 << 64) - 1) for start in starts]
    else:
        table["start"][:] = (1 << 32) - 1
        table["start"][:count] = starts
    table["class_id"][:] = numbers[-1]
    table["class_id"][:count] = numbers
    if hosts:
        addresses = sorted(hosts)
        multiplier, mask, places = _place_hosts(addresses, wide)
        table["multiplier"], table["mask"], table["hosts"] = multiplier, mask, len(hosts)
        taken = [0] * (mask + 1)
        for host, place in zip(addresses, places, strict=True):
            bucket, slot = table["buckets"][place], taken[place]
            taken[place] += 1
            covering = sets[bisect.bisect_right(starts, host) - 1]
            found_hosts[host] = bucket["class_id"][slot] = classes.number(covering | hosts[host])
            if wide:
                bucket["high"][slot], bucket["low"][slot] = host >> 64, host & ((1 << 64) - 1)
            else:
                bucket["address"][slot] = host
    return any(net is not None for net in networks), found_hosts


def _flow_bucket(dst: int, dport: int, protocol: int) -> int:
    """``XDS_FLOW_HASH`` of xds_shared.h."""
    product = (dst << 24 ^ dport << 8 ^ protocol) * 0x9E3779B97F4A7C15
    return (product & (1 << 64) - 1) >> 48


def _fill_flows(fields: Any, classes: _Classes, rules: Sequence[Rule], hosts: Mapping[int, int]) -> None:
    """Flows whose address and port alone decide the rule: what the first look of the program finds.

    ``hosts`` gives the class of each single destination. A flow whose first rule asks for more (source,
    source port, VLAN) is left to the dimensions, and so is one that finds its bucket full.
    """
    free = [r.src is None and r.sport is None and r.vlan is None and r.vlan2 is None for r in rules]
    wanted: dict[tuple[int, int, int], int] = {}
    for rule in rules:
        host, span = rule.dst, rule.dport
        if rule.layer != "ip" or rule.protocol not in (6, 17) or host is None or host.version != 4:
            continue
        if host.prefixlen < 32 or span is None or span[0] != span[1]:
            continue
        flow = int(host.network_address), span[0], rule.protocol
        numbers = hosts[flow[0]], fields["dport"][flow[1]], fields["kind"][lib.XDS_KIND_IP4 + flow[2]]
        bits = classes.sets[numbers[0]] & classes.sets[numbers[1]] & classes.sets[numbers[2]]
        first = (bits & -bits).bit_length() - 1
        if free[first]:
            wanted[flow] = first
    buckets = 1
    while buckets < len(wanted) and buckets < lib.XDS_FLOW_BUCKETS:
        buckets *= 2
    taken = [0] * buckets
    for (dst, dport, protocol), first in wanted.items():
        at = _flow_bucket(dst, dport, protocol) & (buckets - 1)
        if taken[at] == lib.XDS_FLOW_SLOTS:
            continue
        fields["flow"][at, taken[at]] = (dst, dport, protocol, 0, fields["rule"][first], 0)
        taken[at] += 1
    fields["flow_mask"], fields["flows"] = buckets - 1, sum(taken)


_ACTION = {"pass": lib.XDS_ACTION_PASS, "drop": lib.XDS_ACTION_DROP, "count": lib.XDS_ACTION_COUNT,
           "redirect": lib.XDS_ACTION_REDIRECT}  # fmt: skip


def compile_tables(rules: Sequence[Rule], groups: Mapping[str, int], notes: bytes = b"") -> Any:
    """A new ``struct xds_tables`` (cffi) for rules that have ids, in order.

    ``groups`` gives each socket group's number. ``notes`` is kept beside the tables for user space.
    """
    if len(rules) > lib.XDS_RULES_MAX:
        raise CapacityError(f"{len(rules)} rules, at most {lib.XDS_RULES_MAX} fit")
    if len(notes) > lib.XDS_NOTES_LEN:
        raise CapacityError(
            f"the text of the rules takes {len(notes)} bytes, at most {lib.XDS_NOTES_LEN} fit"
        )
    tables = ffi.new("struct xds_tables *")
    fields = _ffi.view(tables, 1, "struct xds_tables")[0]
    classes = _Classes(len(rules))
    used = 1 << lib.XDS_DIM_KIND
    _fill_kinds(fields["kind"], classes, rules)
    used |= _fill_values(fields["vlan"], classes, [r.vlan for r in rules]) << lib.XDS_DIM_VLAN
    used |= _fill_values(fields["vlan2"], classes, [r.vlan2 for r in rules]) << lib.XDS_DIM_VLAN2
    used |= _fill_ports(fields["sport"], classes, [r.sport for r in rules]) << lib.XDS_DIM_SPORT
    used |= _fill_ports(fields["dport"], classes, [r.dport for r in rules]) << lib.XDS_DIM_DPORT
    hosts: dict[int, int] = {}  # of the last side, which is the destination
    for side, dim, slot in (("src", lib.XDS_DIM_SRC, 0), ("dst", lib.XDS_DIM_DST, 1)):
        networks = [getattr(rule, side) for rule in rules]
        named, hosts = _fill_addresses(fields[side + "4"], classes, networks, 4)
        used |= (named | _fill_addresses(fields[side + "6"], classes, networks, 6)[0]) << dim
        nowhere = sum(1 << i for i, net in enumerate(networks) if net is None)
        fields["no_address"][slot] = classes.number(nowhere)
    words = max(1, (len(rules) + 63) // 64)
    fields["used"], fields["words"], fields["rules"] = used, words, len(rules)
    if any(rule.layer in ("inner", "ndp") for rule in rules):
        fields["flags"] = lib.XDS_TABLES_INNER
    fields["counting_any"] = any(rule.action == "count" for rule in rules)
    for i, rule in enumerate(rules):
        group = groups[rule.group] if rule.group is not None else 0
        fields["rule"][i] = (rule.id, _ACTION[rule.action], group)
    _fill_flows(fields, classes, rules, hosts)
    blob = b"".join(bits.to_bytes(words * 8, "little") for bits in classes.sets)
    flat = np.frombuffer(blob, dtype=np.uint64)
    fields["word"][: len(flat)] = flat
    filled = (flat.reshape(-1, words) != 0) @ (np.uint32(1) << np.arange(words, dtype=np.uint32))
    fields["summary"][: len(classes.sets)] = filled
    fields["notes_len"] = len(notes)
    fields["notes"][: len(notes)] = np.frombuffer(notes, dtype=np.uint8)
    return tables


# ---- The model ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say about one frame."""

    action: str  # "redirect", "pass" or "drop"
    reason: str  # a word of enum xds_reason; "redirected" where a socket is there
    rule: Rule | None = None  # the rule that ended, None: no rule did
    counted: tuple[Rule, ...] = ()  # every rule that counted the frame, in order, the last one included


@dataclass(frozen=True, slots=True)
class _Facts:
    """One thing to match: the frame itself, the packet inside an ICMP error, or an NDP target."""

    layer: str
    vlan: int
    vlan2: int
    family: int | None = None
    protocol: int | None = None
    src: Address | None = None
    dst: Address | None = None
    sport: int | None = None
    dport: int | None = None


class _Refused(Exception):
    """The frame is malformed or has too many extension headers: no rule looks at it."""


def _need(data: bytes, length: int) -> None:
    if len(data) < length:
        raise _Refused("malformed")


def _with_ports(facts: _Facts, data: bytes) -> _Facts:
    if facts.protocol not in PORTED:
        return facts
    _need(data, 4)
    sport, dport = struct.unpack_from("!HH", data)
    return replace(facts, sport=sport, dport=dport)


def _read_ip4(data: bytes, base: _Facts) -> tuple[_Facts, bytes | None]:
    _need(data, 20)
    head = (data[0] & 15) * 4
    if data[0] >> 4 != 4 or head < 20 or int.from_bytes(data[2:4], "big") < head:
        raise _Refused("malformed")
    facts = replace(
        base, family=4, protocol=data[9],
        src=ipaddress.IPv4Address(data[12:16]), dst=ipaddress.IPv4Address(data[16:20]),
    )  # fmt: skip
    if int.from_bytes(data[6:8], "big") & 0x3FFF:
        return facts, None
    if facts.protocol != 1:
        return _with_ports(facts, data[head:]), None
    _need(data, head + 8)
    return facts, data[head + 8 :] if data[head] in (3, 4, 5, 11, 12) else None


def _read_ip6(data: bytes, base: _Facts) -> tuple[_Facts, bytes | None, _Facts | None]:
    _need(data, 40)
    if data[0] >> 4 != 6:
        raise _Refused("malformed")
    facts = replace(
        base, family=6, src=ipaddress.IPv6Address(data[8:24]), dst=ipaddress.IPv6Address(data[24:40])
    )
    following, rest, walked = data[6], data[40:], 0
    while following in (0, 43, 44, 51, 60, 135):
        if walked == lib.XDS_EXTENSIONS_MAX:
            raise _Refused("extensions")
        walked += 1
        _need(rest, 8)
        kind, following = following, rest[0]
        if kind == 44 and int.from_bytes(rest[2:4], "big") & 0xFFF9:
            return replace(facts, protocol=following), None, None
        length = 8 if kind == 44 else (rest[1] + 2) * 4 if kind == 51 else (rest[1] + 1) * 8
        if len(rest) < length:
            rest = b""
            continue  # what is behind it is missing: so much the header after it will say
        rest = rest[length:]
    facts = replace(facts, protocol=following)
    if following != 58:
        return _with_ports(facts, rest), None, None
    _need(rest, 8)
    target = None
    if rest[0] in (135, 136) and base.layer == "ip":
        _need(rest, 24)
        target = replace(base, layer="ndp", family=6, src=facts.src, dst=ipaddress.IPv6Address(rest[8:24]))
    return facts, rest[8:] if 1 <= rest[0] <= 4 else None, target


def read_frame(frame: bytes) -> list[_Facts]:
    """What a rule may match in this frame: its own headers, then what it carries. Empty: no sense in it."""
    try:
        return _read(frame)
    except _Refused:
        return []


def _read(frame: bytes) -> list[_Facts]:
    _need(frame, 14)
    ethertype, data, tags = int.from_bytes(frame[12:14], "big"), frame[14:], [UNTAGGED, UNTAGGED]
    for i in range(2):
        if ethertype not in (0x8100, 0x88A8):
            break
        _need(data, 4)
        tags[i] = int.from_bytes(data[:2], "big") & 4095
        ethertype, data = int.from_bytes(data[2:4], "big"), data[4:]
    base = _Facts("other", tags[0], tags[1])
    inside: bytes | None = None
    target: _Facts | None = None
    if ethertype == 0x0800:
        facts, inside = _read_ip4(data, replace(base, layer="ip"))
    elif ethertype == 0x86DD:
        facts, inside, target = _read_ip6(data, replace(base, layer="ip"))
    elif ethertype == 0x0806:
        _need(data, 28)
        if data[:6] != bytes.fromhex("000108000604"):
            return [base]
        sender, aim = ipaddress.IPv4Address(data[14:18]), ipaddress.IPv4Address(data[24:28])
        return [replace(base, layer="arp", family=4, src=sender, dst=aim)]
    else:
        return [base]
    found = [facts] + ([target] if target else [])
    if inside is not None:
        try:
            inner = replace(base, layer="inner")
            found.append(_read_ip4(inside, inner)[0] if facts.family == 4 else _read_ip6(inside, inner)[0])
        except _Refused:
            pass  # too little of the packet came back to say whose it was
    return found


def _matches(rule: Rule, facts: _Facts) -> bool:
    if rule.layer == "any":
        if facts.layer in ("inner", "ndp"):
            return False
    elif rule.layer != facts.layer:
        return False
    for name in ("family", "protocol", "vlan", "vlan2"):
        wanted = getattr(rule, name)
        if wanted is not None and wanted != getattr(facts, name):
            return False
    for network, address in ((rule.src, facts.src), (rule.dst, facts.dst)):
        if network is not None and (address is None or address not in network):
            return False
    for span, port in ((rule.sport, facts.sport), (rule.dport, facts.dport)):
        if span is not None and (port is None or not span[0] <= port <= span[1]):
            return False
    return True


def decide(rules: Sequence[Rule], frame: bytes) -> Decision:
    """What ``rules`` do with ``frame`` (from its Ethernet header on): one rule after the other."""
    try:
        things = _read(frame)
    except _Refused as refused:
        return Decision("pass", str(refused))
    counted: list[Rule] = []
    for rule in rules:
        if not any(_matches(rule, thing) for thing in things):
            continue
        counted.append(rule)
        if rule.action != "count":
            reason = {"redirect": "redirected", "pass": "passed", "drop": "dropped"}[rule.action]
            return Decision(rule.action, reason, rule, tuple(counted))
    return Decision("pass", "unmatched", None, tuple(counted))
