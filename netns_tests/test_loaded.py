"""What a filter that the kernel has decides and counts, on an interface and on none."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from netns_tests.test_filter_live import send, wait_until
from xdpstack.bpf import Filter
from xdpstack.errors import ConfigError, SetupError
from xdpstack.loaded import REASONS, Count, Loaded


def udp(port: int, payload: bytes = b"") -> bytes:
    return bytes(Ether() / IP(dst="10.0.0.1") / UDP(dport=port) / payload)


def test_on_no_interface_it_decides_and_counts_each_frame_once():
    with Loaded.dry(["udp dst *:1 -> drop", "udp dst *:2 -> feed", "udp -> count"]) as dry:
        told = [(found.action, found.reason) for found in map(dry.test, map(udp, (1, 2, 3)))]
        assert told == [("drop", "dropped"), ("redirect", "redirected"), ("pass", "unmatched")]
        frames = [udp(1), udp(2, b"longer"), udp(2), udp(3), bytes(13)]
        counted = dry.test_all(frames)
        drop, feed, count = dry.rules
        assert counted.rules == {
            drop.id: Count(1, len(frames[0])),
            feed.id: Count(2, len(frames[1]) + len(frames[2])),
            count.id: Count(1, len(frames[3])),
        }
        assert set(counted.reasons) == set(REASONS.values())
        found = {word: count.packets for word, count in counted.reasons.items() if count.packets}
        assert found == {"dropped": 1, "redirected": 2, "unmatched": 1, "malformed": 1}
        with pytest.raises(ConfigError, match="13 bytes is no Ethernet frame"):
            dry.run(bytes(13))
        with pytest.raises(ConfigError, match=r"queue -1 is not in 0\.\."):
            dry.set_socket("feed", -1, None)
    with pytest.raises(SetupError, match="the filter is closed"):
        dry.rules  # noqa: B018
    dry.close()


def test_the_groups_of_its_rules_keep_their_numbers():
    with Loaded.dry(["udp dst *:1 -> one", "udp dst *:2 -> two"]) as dry:
        before = dry.groups
        dry.replace_rules(["udp dst *:2 -> two", "udp dst *:3 -> three"])
        assert dry.groups["two"] == before["two"]
        assert len(set(dry.groups.values())) == len(dry.groups)


def test_ids_and_counters_stay_with_a_rule_through_replacement(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", rules=["udp dst *:5000 -> drop"]) as steering:
        (number,) = (rule.id for rule in steering.rules)
        send(venue, 5000)
        wait_until(lambda: steering.counters().rules[number].packets == 1)
        ids = steering.replace_rules(["udp dst *:7 -> drop", "udp dst *:5000 -> drop"])
        assert ids[1] == number
        assert steering.counters().rules[number].packets == 1
        assert steering.counters().rules[ids[0]].packets == 0
        steering.delete_rule(number)
        added = steering.add_rule("udp dst *:5000 -> drop")
        assert added not in (number, ids[0])
        with pytest.raises(ConfigError, match="no rule has the id"):
            steering.delete_rule(number)
