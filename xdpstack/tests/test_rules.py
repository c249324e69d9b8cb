"""The grammar of rules, and the model of what they mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from xdpstack.errors import CapacityError, ConfigError
from xdpstack.rules import Rule, compile_tables, decide, load_rules, parse_rule, parse_rules
from xdpstack.tests.rules_cases import encounters, rule_texts


@given(rule_texts())
def test_the_text_of_a_rule_reads_back_as_the_same_rule(text):
    rule = parse_rule(text)
    assert parse_rule(str(rule)) == rule
    assert str(parse_rule(str(rule))) == str(rule)


@settings(max_examples=50, deadline=None)
@given(encounters())
def test_rules_made_from_frames_read_back_too(encounter):
    for text in encounter[0]:
        assert str(parse_rule(text)) == str(parse_rule(str(parse_rule(text))))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("udp dst 233.54.12.111:26477 -> trader", None),
        ("  udp   dst   233.54.12.111:26477->trader", "udp dst 233.54.12.111:26477 -> trader"),
        ("ip4 udp dst 10.0.0.1 -> a", "udp dst 10.0.0.1 -> a"),
        ("udp dst :5 vlan 7 -> a", "vlan 7 udp dst *:5 -> a"),
        ("tcp dst [2001:db8:0::1]:443 -> a", "tcp dst [2001:db8::1]:443 -> a"),
        ("ip dst 10.0.0.1/32 -> a", "ip dst 10.0.0.1 -> a"),
        ("proto 17 dst *:5-5 -> a", "udp dst *:5 -> a"),
        ("proto 200 -> drop", None),
        ("icmp-error -> pass", None),
        ("icmp-error udp src 10.0.0.2:40000 -> stack", None),
        ("icmp-error ip6 -> stack", None),
        ("vlan none any -> count", None),
        ("vlan 10.20 arp sender 10.0.0.1 target 10.0.0.2 -> stack", None),
        ("ndp src fe80::/10 target fe80::2 -> stack", None),
    ],
)
def test_rules_are_written_in_one_way(text, canonical):
    assert str(parse_rule(text)) == (canonical or text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("udp", "no '->'"),
        ("-> a", "'' is not a kind of frame"),
        ("udp ->", "'' is neither pass, drop, count nor the name of a socket group"),
        ("udp -> 9lives", "'9lives' is neither"),
        ("udp -> " + "x" * 32, "is neither"),
        ("quic -> a", "'quic' is not a kind of frame"),
        ("proto 256 -> a", "protocol '256' is not a number from 0 to 255"),
        ("proto -> a", "protocol '' is not a number"),
        ("udp dst -> a", "nothing after 'dst'"),
        ("udp to 10.0.0.1 -> a", "'to' is not a condition"),
        ("udp dst 10.0.0.1:65536 -> a", "port '65536' is not a number from 0 to 65535"),
        ("udp dst 10.0.0.1:9-5 -> a", "port range '9-5' runs backwards"),
        ("udp dst 10.0.0.1: -> a", "port '' is not a number"),
        ("udp dst 10.0.0.1/8 -> a", "has host bits set"),
        ("udp dst 10.0.0.1/33 -> a", "'10.0.0.1/33' is not an address or prefix"),
        ("udp dst * -> a", "'*' says nothing"),
        ("udp dst [::1:5 -> a", "unbalanced brackets"),
        ("udp dst [::1]5 -> a", "unbalanced brackets"),
        ("udp src 10.0.0.1 dst ::1 -> a", "IPv4 and IPv6 are mixed"),
        ("ip6 dst 10.0.0.1 -> a", "IPv4 and IPv6 are mixed"),
        ("icmp6 src 10.0.0.1 -> a", "IPv4 and IPv6 are mixed"),
        ("ndp target 10.0.0.1 -> a", "IPv4 and IPv6 are mixed"),
        ("icmp dst *:5 -> a", "ports need udp, tcp"),
        ("ip dst *:5 -> a", "ports need udp, tcp"),
        ("arp dst 10.0.0.1 -> a", "'dst' does not go with 'arp'"),
        ("any dst 10.0.0.1 -> a", "'dst' does not go with 'any'"),
        ("udp target 10.0.0.1 -> a", "'target' does not go with 'ip'"),
        ("udp dst *:5 dst *:6 -> a", "dport is given twice"),
        ("vlan 4096 udp -> a", "VLAN '4096' is not a number from 0 to 4095"),
        ("vlan 1.x udp -> a", "VLAN 'x' is not a number"),
        ("vlan 1 udp vlan 2 -> a", "vlan is given twice"),
        ("udp dst *:٣ -> a", "is not a number"),
    ],
)
def test_a_malformed_rule_is_refused_with_the_reason(text, why):
    with pytest.raises(ConfigError) as caught:
        parse_rule(text, "eth0.rules:7")
    assert str(caught.value).startswith("eth0.rules:7: ")
    assert why in str(caught.value)


def test_a_file_may_hold_comments_and_its_errors_name_file_and_line(tmp_path):
    path = tmp_path / "rules"
    path.write_text("# lines\n\nudp dst *:5000 -> feed   # A\narp -> pass\n")
    assert [str(rule) for rule in load_rules(path)] == ["udp dst *:5000 -> feed", "arp -> pass"]
    path.write_text("arp -> pass\n\nudp dst 10.0.0.1:x -> feed\n")
    with pytest.raises(ConfigError, match=f"{path}:3: port 'x'"):
        load_rules(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_rules(tmp_path / "nothing")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_rules(path)


def test_more_rules_than_fit_are_refused():
    assert len(parse_rules("arp -> pass\n" * 1024)) == 1024
    with pytest.raises(CapacityError, match="1025 rules, at most 1024"):
        parse_rules("arp -> pass\n" * 1025)


def test_a_flow_is_decided_in_one_look_where_its_rule_hangs_on_nothing_else():
    texts = [
        "udp dst 239.1.1.1:5000 -> a",  # in
        "udp src 10.0.0.1 dst 239.1.1.2:5000 -> a",  # hangs on the source
        "tcp src *:9 dst 10.0.0.0/8 -> drop",  # may come before the next one
        "tcp dst 10.0.0.2:80 -> a",  # out: the one above may match first
        "udp dst 239.1.1.3:5000-5001 -> a",  # a range
        "udp dst 239.1.1.0/24:6000 -> pass",  # comes before the next one, whatever the source
        "udp dst 239.1.1.4:6000 -> a",  # in, with the rule above
        "udp dst 239.1.1.1:5000 -> b",  # the first one has it
        "udp dst [ff02::1]:5000 -> a",
    ]
    rules = [replace(rule, id=i + 1) for i, rule in enumerate(parse_rules("\n".join(texts)))]
    tables = compile_tables(rules, {"a": 0, "b": 1})
    found = {
        (flow.dst, flow.dport, flow.protocol): flow.rule.id
        for bucket in tables.flow
        for flow in bucket
        if flow.protocol
    }
    assert found == {(0xEF010101, 5000, 17): 1, (0xEF010104, 6000, 17): 6}
    assert tables.flows == 2


def test_a_thousand_flows_are_looked_up_where_they_lie_and_the_rest_is_left_to_the_dimensions():
    rules = [
        replace(parse_rule(f"udp dst 239.{i // 250}.{i % 250}.9:{3000 + i} -> a"), id=i + 1)
        for i in range(1024)
    ]
    tables = compile_tables(rules, {"a": 0})
    for at, bucket in enumerate(tables.flow):
        for flow in bucket:
            if flow.protocol:
                product = (flow.dst << 24 ^ flow.dport << 8 ^ flow.protocol) * 0x9E3779B97F4A7C15
                assert at == (product % 2**64 >> 48) & tables.flow_mask
                assert flow.dport == 2999 + flow.rule.id
    assert 700 < tables.flows < 1024, "buckets of two, as full as chance makes them"


def test_the_worst_1024_rules_fit_the_tables():
    """Every rule cuts every dimension twice: no bound of the tables is reached."""
    rules = [
        Rule(
            layer="ip",
            action="redirect",
            group="a",
            family=family,
            protocol=17,
            vlan=i,
            vlan2=i + 1,
            src=net(i * 4 + 1),
            dst=net(i * 8 + 3),
            sport=(i * 3 + 1, i * 3 + 30000),
            dport=(i * 5 + 2, i * 5 + 40001),
            id=i + 1,
        )
        for i in range(1024)
        for family, net in [((4, _net4) if i % 2 else (6, _net6))]
    ]
    tables = compile_tables(rules, {"a": 0})
    assert (tables.rules, tables.words) == (1024, 16)
    with pytest.raises(CapacityError):
        compile_tables([*rules, rules[0]], {"a": 0})


def _net4(i: int):
    import ipaddress

    return ipaddress.IPv4Network((i << 8, 24 + i % 2), strict=False)


def _net6(i: int):
    import ipaddress

    return ipaddress.IPv6Network((i << 64, 120 + i % 9), strict=False)


ETHER = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")


@pytest.mark.parametrize(
    ("rules", "packet", "outcome"),
    [
        (["udp -> a"], ETHER / IP() / UDP(), "a"),
        (["udp -> a"], ETHER / IP() / TCP(), "unmatched"),
        (["udp dst 10.0.0.0/8 -> a", "udp -> b"], ETHER / IP(dst="11.0.0.1") / UDP(), "b"),
        (["tcp dst *:443 -> a"], ETHER / IPv6() / TCP(dport=443), "a"),
        (["udp dst *:53 -> a", "udp -> b"], ETHER / IP(frag=1) / UDP(dport=53), "b"),
        (["vlan 5 udp -> a"], ETHER / Dot1Q(vlan=5) / IP() / UDP(), "a"),
        (["arp target 10.0.0.1 -> a"], ETHER / ARP(pdst="10.0.0.1"), "a"),
        (["ndp target fe80::1 -> a"], ETHER / IPv6() / ICMPv6ND_NS(tgt="fe80::1"), "a"),
        (["icmp-error tcp dst *:80 -> a"], ETHER / IP() / ICMP(type=3) / IP() / TCP(dport=80), "a"),
        (["any -> drop"], ETHER / IP(ihl=4) / UDP(), "malformed"),
        (["any -> count", "udp -> drop"], ETHER / IP() / UDP(), "drop"),
    ],
    ids=str,
)
def test_the_model_reads_scapys_frames(rules, packet, outcome):
    found = decide([parse_rule(rule) for rule in rules], bytes(packet))
    assert (found.rule.group or found.action if found.rule else found.reason) == outcome
