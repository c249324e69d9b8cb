"""The XDP program against the plain-Python model, frame by frame, by BPF_PROG_TEST_RUN: no NIC."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from xdpstack.bpf import Filter
from xdpstack.rules import decide, parse_rule
from xdpstack.tests.rules_cases import encounters, frames


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "dispatcher"])
def dry(request: pytest.FixtureRequest) -> Iterator[Filter]:
    with Filter.dry(dispatcher=request.param) as steering:
        yield steering


def check(dry: Filter, frame: bytes) -> None:
    ours, model = dry.test(frame), decide(dry.rules, frame)
    assert ours == model, f"frame {frame.hex()}\nrules {[str(r) for r in dry.rules]}"


SLOW = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@settings(max_examples=200, **SLOW)
@given(encounters())
def test_program_and_model_agree_on_random_rules_and_frames(dry, encounter):
    texts, some = encounter
    dry.replace_rules(texts)
    for frame in some:
        check(dry, frame)


@pytest.mark.parametrize("counting", [True, False])
@settings(max_examples=25, **SLOW)
@given(encounters(), st.integers(65, 200))
def test_they_agree_with_more_rules_than_one_word_holds(dry, counting, encounter, spread):
    """The same rules far apart, between rules that match nothing."""
    texts, some = encounter
    if not counting:
        texts = [text for text in texts if not text.endswith("count")]
    filler = [f"udp src 192.0.2.{i % 250} dst 198.51.100.0/24:{i} -> a" for i in range(spread)]
    for i, text in enumerate(texts):
        filler.insert((i * 37 + 11) % len(filler), text)
    dry.replace_rules(filler)
    for frame in some:
        check(dry, frame)


@pytest.mark.parametrize("spread", [0, 100])
@settings(max_examples=100, **SLOW)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["udp", "tcp", "ip"]),
            st.sampled_from(["", "src 10.0.0.1 ", "src 10.0.0.0/8 ", "vlan 5 "]),
            st.sampled_from(["239.0.0.1", "239.0.0.2", "239.0.0.0/8"]),
            st.sampled_from(["", ":7", ":8", ":7-8"]),
            st.sampled_from(["a", "b", "drop", "pass"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_flows_that_one_look_decides_are_decided_as_rule_by_rule(dry, spread, parts):
    """Few addresses and ports, so that rules cover one another; every frame of them, tagged or not."""
    texts = [f"udp dst 198.51.100.{i}:9 -> a" for i in range(spread)]
    for protocol, side, dst, port, action in parts:
        vlan = side if side.startswith("vlan") else ""
        src = "" if vlan else side
        texts.append(f"{vlan}{protocol} {src}dst {dst}{'' if protocol == 'ip' else port} -> {action}")
    dry.replace_rules(texts)
    for src, dst, dport in itertools.product(["10.0.0.1", "11.0.0.1"], ["239.0.0.1", "239.0.0.2"], [7, 8]):
        for layer in (UDP, TCP):
            packet = IP(src=src, dst=dst) / layer(sport=1, dport=dport)
            for link in (Ether(dst="01:00:5e:00:00:01"), Ether(dst="01:00:5e:00:00:01") / Dot1Q(vlan=5)):
                check(dry, bytes(link / packet))


@settings(max_examples=60, **SLOW)
@given(frames())
def test_a_frame_cut_at_any_byte_gets_a_reason(dry, frame):
    dry.replace_rules(
        ["icmp-error udp -> b", "udp dst *:53 -> a", "ndp target fe80::1 -> a", "arp -> drop", "any -> count"]
    )
    for length in range(14, len(frame), 3):
        check(dry, frame[:length])


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 1023, 1024])
def test_the_first_of_many_rules_wins_at_every_place(dry, count):
    """Each of the rules has a frame of its own; a last rule that all share comes never first."""
    texts = [
        f"udp src 10.{i // 256}.{i % 256}.0/24 dst 239.0.0.{i % 5}:{1000 + i} -> a" for i in range(count - 1)
    ]
    dry.replace_rules([*texts, "udp -> b"])
    rules = dry.rules
    for i in sorted({0, 1, 62, 63, 64, 65, 127, 500, 1000, count - 2} & set(range(count - 1))):
        ports = (7).to_bytes(2, "big") + (1000 + i).to_bytes(2, "big")
        ip = bytes.fromhex("4500002800010000401100000a") + bytes([i // 256, i % 256, 9, 239, 0, 0, i % 5])
        frame = bytes(12) + b"\x08\0" + ip + ports + bytes(16)
        assert dry.test(frame).rule == rules[i]
        check(dry, frame)
    frame = (
        bytes(12) + b"\x08\0" + bytes.fromhex("450000280001000040110000010203040506070800010001") + bytes(16)
    )
    assert dry.test(frame).rule == rules[-1]


def test_rules_and_model_share_the_words_for_ids(dry):
    ids = dry.replace_rules(["udp -> a", "tcp -> b"])
    again = dry.replace_rules(["tcp -> b", "arp -> drop", "udp -> a"])
    assert (again[2], again[0]) == (ids[0], ids[1])
    assert parse_rule("udp -> a").id == 0
