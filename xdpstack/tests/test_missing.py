"""Frames on a queue without a socket: the sentence names it, how many, and the mend."""

from __future__ import annotations

import os

from xdpstack.bpf import Count, Counters
from xdpstack.cli import main
from xdpstack.missing import missing
from xdpstack.stats import Segment

COUNTERS = Counters({}, {}, {("main", 2): Count(1200, 72_000), ("b", 0): Count(1, 60)})


def test_with_a_port_the_mend_is_a_key_and_an_ethtool_command():
    other, mine = missing("eth0", COUNTERS, {1, 3})
    assert (mine.group, mine.queue, mine.packets, mine.bytes) == ("main", 2, 1200, 72_000)
    assert str(mine) == (
        "eth0: 1,200 frames for main came by queue 2, which has no socket, and went to the kernel; "
        'queues = "1,2,3" opens it; steer = true has the NIC send the flow to queue 1, 3, as does: '
        "ethtool -N eth0 flow-type udp4 dst-ip GROUP dst-port PORT action 1"
    )
    assert other.queue == 0


def test_without_one_it_is_to_open_the_queue():
    first, _ = missing("eth0", COUNTERS)
    assert first.mend == "open it (xsk:eth0 opens all), or take the rule away (xdpstack rules del)"


def test_nothing_is_said_where_nothing_is_missing():
    assert missing("eth0", Counters({}, {}, {}), {1}) == []


def test_stats_names_the_queue_under_its_counter(capsys):
    with Segment(f"missing-{os.getpid()}") as segment:
        segment.counter("filter.main.no_socket.eth0.2", "packets")[0] = 7
        segment.counter("filter.main.no_socket.eth0.3", "packets")
        assert main(["stats", segment.name]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1].split() == ["filter.main.no_socket.eth0.2", "7", "packets"]
    assert lines[2].startswith('queue 2 of eth0 has no socket: queues = "all" opens it')
    assert lines[3] == ""  # the zero behind it is not shown; then the system's clock
