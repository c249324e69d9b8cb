"""The XDP program on frames that scapy builds: one promise of the grammar a test, no NIC."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from xdpstack.bpf import Filter
from xdpstack.errors import ConfigError
from xdpstack.rules import decide

ETHER = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
FEED = IP(src="10.0.0.1", dst="233.54.12.111") / UDP(sport=4000, dport=26477) / b"tick"
OURS6 = IPv6(src="2001:db8::2", dst="2001:db8::1")
FEED6 = UDP(sport=4000, dport=26477) / b"tick"


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "dispatcher"])
def dry(request: pytest.FixtureRequest) -> Iterator[Filter]:
    """The program of either kind; their verdicts are the same."""
    with Filter.dry(dispatcher=request.param) as steering:
        yield steering


def outcome(dry: Filter, rules: list[str], packet: Packet) -> str:
    """Where the frame goes by the program, once the model says the same."""
    dry.replace_rules(rules)
    frame = bytes(packet)
    found = dry.test(frame)
    assert found == decide(dry.rules, frame)
    return (found.rule.group or found.action) if found.rule else found.reason


RULE = "udp dst 233.54.12.111:26477 -> trader"


@pytest.mark.parametrize(
    ("rule", "packet"),
    [
        (RULE, ETHER / FEED),
        (RULE, ETHER / Dot1Q(vlan=7) / FEED),
        (RULE, ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=8) / FEED),
        ("vlan 7 " + RULE, ETHER / Dot1Q(vlan=7, prio=6) / FEED),
        ("vlan 7.8 " + RULE, ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=8) / FEED),
        ("vlan none " + RULE, ETHER / FEED),
        (
            RULE,
            ETHER / IP(src="10.0.0.1", dst="233.54.12.111", options=[IPOption_Router_Alert()]) / FEED[UDP],
        ),
        ("udp src 10.0.0.0/8 dst 233.54.0.0/16:26000-27000 -> trader", ETHER / FEED),
        ("udp src 10.0.0.1:4000 -> trader", ETHER / FEED),
        ("tcp dst *:443 -> trader", ETHER / IP() / TCP(dport=443)),
        ("udp dst [2001:db8::/64]:26477 -> trader", ETHER / OURS6 / FEED6),
        ("ip6 udp -> trader", ETHER / OURS6 / FEED6),
        ("proto 89 dst 224.0.0.5 -> trader", ETHER / IP(dst="224.0.0.5", proto=89) / b"ospf"),
        ("arp target 10.0.0.2 -> trader", ETHER / ARP(psrc="10.0.0.1", pdst="10.0.0.2")),
        ("arp sender 10.0.0.1 -> trader", ETHER / Dot1Q(vlan=3) / ARP(psrc="10.0.0.1", pdst="10.0.0.2")),
        ("ndp target 2001:db8::9 -> trader", ETHER / OURS6 / ICMPv6ND_NS(tgt="2001:db8::9")),
        (
            "ndp src 2001:db8::2 target 2001:db8::8/125 -> trader",
            ETHER / OURS6 / ICMPv6ND_NA(tgt="2001:db8::9"),
        ),
        ("any -> trader", Ether(type=0x88CC) / b"lldp"),
        ("ip -> trader", ETHER / OURS6 / FEED6),
        ("sctp dst *:9 -> trader", ETHER / IP(proto=132) / (b"\0\1\0\x09" + bytes(8))),
    ],
    ids=lambda value: value if isinstance(value, str) else value.summary(),
)
def test_a_rule_meets_the_frames_it_names(dry, rule, packet):
    assert outcome(dry, [rule], packet) == "trader"


@pytest.mark.parametrize(
    ("rule", "packet"),
    [
        (RULE, ETHER / IP(dst="233.54.12.112") / FEED[UDP]),
        (RULE, ETHER / IP(dst="233.54.12.111") / TCP(dport=26477)),
        (RULE, ETHER / IP(dst="233.54.12.111") / UDP(dport=26476)),
        ("vlan 7 " + RULE, ETHER / FEED),
        ("vlan 8 " + RULE, ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=8) / FEED),
        ("vlan none " + RULE, ETHER / Dot1Q(vlan=0) / FEED),
        (RULE, ETHER / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / FEED),
        ("ip4 udp -> trader", ETHER / OURS6 / FEED6),
        ("arp -> trader", ETHER / FEED),
        ("ndp -> trader", ETHER / OURS6 / ICMPv6DestUnreach()),
        ("ip dst 10.0.0.2 -> trader", ETHER / ARP(pdst="10.0.0.2")),
        ("icmp-error -> trader", ETHER / IP() / ICMP(type=8)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.summary(),
)
def test_a_rule_leaves_the_frames_that_it_does_not_name(dry, rule, packet):
    assert outcome(dry, [rule], packet) == "unmatched"


def test_the_first_rule_that_ends_wins_and_count_goes_on(dry):
    dry.replace_rules(
        ["any -> count", "udp -> count", "udp dst *:26477 -> drop", "udp -> trader", "any -> count"]
    )
    found = dry.test(bytes(ETHER / FEED))
    assert found.action == "drop"
    assert [str(rule) for rule in found.counted] == [
        "any -> count",
        "udp -> count",
        "udp dst *:26477 -> drop",
    ]


@pytest.mark.parametrize("flags", ["MF", "offset", "both"])
def test_a_fragment_matches_only_rules_without_ports(dry, flags):
    ip = IP(src="10.0.0.1", dst="233.54.12.111", flags="MF" if flags != "offset" else 0)
    ip.frag = 0 if flags == "MF" else 3
    packet = ETHER / ip / UDP(sport=4000, dport=26477) / b"tick"
    rules = [RULE, "udp src *:0-65535 -> b", "udp dst 233.54.12.111 -> whole"]
    assert outcome(dry, rules, packet) == "whole"
    assert outcome(dry, rules[:2], packet) == "unmatched"


def test_ipv6_extension_headers_are_walked_up_to_the_bound(dry):
    rule = ["udp dst *:26477 -> trader"]
    options = [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrRouting(addresses=["::1"]),
        IPv6ExtHdrDestOpt(),
    ]
    packet: Packet = OURS6
    for option in options:
        packet = packet / option
    assert outcome(dry, rule, ETHER / packet / FEED6) == "trader"
    packet = packet / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
    assert outcome(dry, rule, ETHER / packet / FEED6) == "trader"
    packet = packet / IPv6ExtHdrDestOpt()
    assert outcome(dry, rule, ETHER / packet / FEED6) == "extensions"


@pytest.mark.parametrize("icv", [0, 4, 12])
def test_an_authentication_header_is_stepped_over_by_its_own_unit(dry, icv):
    packet = ETHER / OURS6 / AH(nh=17, payloadlen=1 + icv // 4, spi=1, seq=1, icv=bytes(icv)) / FEED6
    assert outcome(dry, ["udp dst *:26477 -> trader"], packet) == "trader"


def test_an_ipv6_fragment_has_no_ports_but_an_atomic_one_has(dry):
    rules = [RULE.replace("233.54.12.111", "[2001:db8::1]"), "ip6 udp -> whole"]
    assert outcome(dry, rules, ETHER / OURS6 / IPv6ExtHdrFragment(m=1) / FEED6) == "whole"
    assert outcome(dry, rules, ETHER / OURS6 / IPv6ExtHdrFragment(offset=5, nh=17) / FEED6) == "whole"
    assert outcome(dry, rules, ETHER / OURS6 / IPv6ExtHdrFragment() / FEED6) == "trader"


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_an_icmp_error_is_steered_by_the_flow_inside_it(dry, kind):
    ours = IP(src="10.0.0.2", dst="10.9.9.9") / UDP(sport=40000, dport=443)
    packet = ETHER / IP(src="10.0.0.254", dst="10.0.0.2") / ICMP(type=kind) / ours
    rules = ["icmp-error udp src 10.0.0.2:40000 dst 10.9.9.9:443 -> stack"]
    assert outcome(dry, rules, packet) == "stack"
    assert outcome(dry, ["icmp-error udp src 10.0.0.2:40001 -> stack"], packet) == "unmatched"
    assert outcome(dry, ["udp src 10.0.0.2:40000 -> stack"], packet) == "unmatched"
    assert outcome(dry, ["icmp -> outer", *rules], packet) == "outer"
    assert outcome(dry, [*rules, "icmp -> outer"], packet) == "stack"
    assert outcome(dry, ["icmp-error -> stack"], packet) == "stack"


@pytest.mark.parametrize("error", [ICMPv6DestUnreach(), ICMPv6PacketTooBig(mtu=1280)])
def test_an_icmp6_error_too(dry, error):
    ours = IPv6(src="2001:db8::1", dst="2001:db8::99") / TCP(sport=40000, dport=443)
    packet = ETHER / OURS6 / error / ours
    assert outcome(dry, ["vlan none icmp-error tcp src [2001:db8::1]:40000 -> stack"], packet) == "stack"
    assert outcome(dry, ["icmp-error tcp dst [2001:db8::1]:40000 -> stack"], packet) == "unmatched"


def test_an_icmp_error_with_too_little_inside_is_still_an_icmp_packet(dry):
    ours = bytes(IP(src="10.0.0.2", dst="10.9.9.9") / UDP(sport=40000, dport=443))[:22]
    packet = ETHER / IP() / ICMP(type=3) / ours
    assert outcome(dry, ["icmp-error udp src 10.0.0.2 -> stack", "icmp -> outer"], packet) == "outer"


def test_frames_cut_at_every_byte_are_passed_and_named(dry):
    for packet in (
        ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=8) / FEED,
        ETHER / OURS6 / IPv6ExtHdrHopByHop() / FEED6,
        ETHER / ARP(pdst="10.0.0.2"),
        ETHER / OURS6 / ICMPv6ND_NS(tgt="2001:db8::9"),
        ETHER / IP() / ICMP(type=3) / FEED,
    ):
        dry.replace_rules(["icmp-error -> b", "ndp target 2001:db8::9 -> a", "arp -> a", "udp -> a"])
        frame = bytes(packet)
        for length in range(14, len(frame) + 1):
            found = dry.test(frame[:length])
            assert found == decide(dry.rules, frame[:length])
            if found.rule is None:
                assert found.reason in ("malformed", "unmatched")
        assert dry.test(frame).rule is not None


def test_a_jumbo_frame_in_several_buffers_is_counted_whole(dry):
    dry.replace_rules([RULE])
    before = dry.counters()
    frame = bytes(ETHER / IP(dst="233.54.12.111") / UDP(dport=26477) / bytes(8950))
    dry.run(frame)
    (rule,) = dry.rules
    assert dry.counters().rules[rule.id].bytes == len(frame)
    assert dry.counters().reasons["no_socket"].bytes - before.reasons["no_socket"].bytes == len(frame)


def test_every_frame_counts_exactly_one_reason_and_its_rule(dry):
    (number,) = dry.replace_rules(["udp -> drop"])
    before = dry.counters()
    frame = bytes(ETHER / FEED)
    dry.run(frame, repeat=100)
    after = dry.counters()
    assert after.rules[number].packets == 100
    assert after.rules[number].bytes == 100 * len(frame)
    moved = {k: after.reasons[k].packets - before.reasons[k].packets for k in after.reasons}
    assert {k: n for k, n in moved.items() if n} == {"dropped": 100}


def test_a_frame_too_short_for_ethernet_is_refused(dry):
    with pytest.raises(ConfigError, match="13 bytes"):
        dry.test(bytes(13))


def test_a_filter_without_rules_passes_everything(dry):
    dry.replace_rules([])
    assert dry.test(bytes(ETHER / FEED)).reason == "unmatched"
