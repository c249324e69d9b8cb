"""Steering by a real driver: frames come to the queues that table, rules or contexts name, and no others."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

import pytest

from tools.vmlab.tests.machine import ZERO_COPY, Patience, up
from tools.vmlab.tests.test_igb_life import venue
from xdpstack.bpf import Filter
from xdpstack.nic import Binding, Flow, NicConfig, ethtool, pending
from xdpstack.nic.surface import Host
from xdpstack.port import XskPort

# A bit each: RSS is linear, and whatever its key these do not all take one queue (one boot in a million).
GROUPS = [str(ipaddress.IPv4Address("239.128.0.0") + (1 << number)) for number in range(20)]
FLOWS = [Flow(dst=group, dport=5000) for group in GROUPS]


def queues_of(port: XskPort, out: socket.socket) -> list[int]:
    """The queue by which the datagram of each group comes."""
    for number, group in enumerate(GROUPS):
        out.sendto(number.to_bytes(20, "big"), (group, 5000))
    queues: dict[int, int] = {}
    patience = Patience()
    while len(queues) < len(GROUPS) and patience:
        queues |= {frame.data[-1]: frame.queue for frame in port.receive(64)}
    port.release()
    assert sorted(queues) == list(range(len(GROUPS)))
    return [queues[number] for number in sorted(queues)]


def lacks(means: str) -> str:
    """Why the card cannot steer by that means; empty when it can."""
    feature = ethtool.features(Host(), "igb1").get("rx-ntuple-filter")
    if means != "table" and not (feature and (feature.can_change or feature.active)):
        return "no ntuple rules (its driver has them from the 82580 on), and contexts are chosen by rules"
    if means == "context":
        try:
            ethtool.remove_context(Host(), "igb1", ethtool.new_context(Host(), "igb1", (0, 1)))
        except OSError as error:
            return f"no RSS contexts: {error.strerror}"
    return ""


@pytest.mark.parametrize("means", ["table", "rules", "context"])
def test_frames_come_to_the_queues_that_the_card_was_told(means: str) -> None:
    up("igb0", "igb1")
    if why := lacks(means):
        pytest.skip(f"the emulated 82576 has {why}")
    config = NicConfig(steer=True, spread=means == "context")
    with (
        Filter.load("igb1", mode="native", rules="udp dst *:5000 -> test") as steering,
        XskPort("igb1", range(2), **ZERO_COPY) as port,
        contextlib.closing(Host().join(socket.if_nametoindex("igb1"), "promiscuous")),
        venue() as out,
    ):
        for queue, fd in port.fds().items():
            steering.set_socket("test", queue, fd)
        up("igb0", "igb1")
        assert set(queues_of(port, out)) == {0, 1}, "the card spreads them"
        for queue in (1, 0):
            with Binding("igb1", config) as binding:
                binding.settle(binding.prepare([queue], FLOWS))
                up("igb0", "igb1")
                assert set(queues_of(port, out)) == {queue}
                by_table = f"its RSS table sends everything to queues {queue}" in " ".join(binding.notes)
                assert by_table == (means == "table")
        assert set(queues_of(port, out)) == {0, 1}, "and does so again"
    assert pending() == []
