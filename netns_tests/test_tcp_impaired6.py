"""TCP over IPv6 with damage in between: the tests of ``test_tcp_impaired.py``, which says how much of it and
when, over links with addresses of IPv6 alone."""

from __future__ import annotations

import pytest

from netns_tests.test_tcp_impaired import (
    DAMAGE,
    LONG,
    Net,
    damage_of,
    net,
    test_a_flood_of_syns_neither_stops_what_is_established_nor_whom_we_should_accept,
    test_a_kernels_reader_that_stops_is_asked_until_it_reads_again,
    test_a_peer_that_is_cut_off_for_a_while_gets_and_sends_its_text_whole,
    test_a_peer_that_is_killed_in_the_middle_resets,
    test_we_are_killed_in_the_middle_and_the_peer_is_told_and_the_port_serves_again,
    test_we_stop_reading_and_the_kernel_waits_until_we_read_again,
    texts_of_size,
    texts_over,
)
from netns_tests.test_tcp_linux6 import KERNEL, OWN, SHARED, listener, own
from xdpstack import node as nodes
from xdpstack.lab.faults import Faults
from xdpstack.lab.forwarder import impaired_pair

__all__ = [
    "net",
    "test_a_flood_of_syns_neither_stops_what_is_established_nor_whom_we_should_accept",
    "test_a_kernels_reader_that_stops_is_asked_until_it_reads_again",
    "test_a_peer_that_is_cut_off_for_a_while_gets_and_sends_its_text_whole",
    "test_a_peer_that_is_killed_in_the_middle_resets",
    "test_we_are_killed_in_the_middle_and_the_peer_is_told_and_the_port_serves_again",
    "test_we_stop_reading_and_the_kernel_waits_until_we_read_again",
]

FEW = ["loss of 5 %", "reordering of 10 %"]
pytestmark = pytest.mark.timeout(1200 if LONG else 300)


@pytest.fixture
def make_net(make_lab):
    """As that of ``test_tcp_impaired.py``. The kernel's address outlives its link's outage, as IPv4's do."""

    def make(**more) -> Net:
        lab = make_lab(ipv6=True)
        kernel, us = lab.namespace("venue"), lab.namespace("trader")
        lab.veth(kernel, "v0", None, us, "t0", None, **more)
        kernel.sysctl("net.ipv6.conf.v0.keep_addr_on_down", 1)
        own(kernel, "v0", KERNEL)
        own(us, "t0", SHARED)
        return Net(kernel, us, KERNEL, SHARED, OWN, 64)

    return make


@pytest.fixture
def damaged6(make_lab, request):
    """(the kernel's namespace, ours, the forwarder); the ends know each other's link address."""
    lab = make_lab(ipv6=True)
    kernel, us = lab.namespace("kernel"), lab.namespace("us")
    how = [Faults(seed=seed, **DAMAGE[request.param]) for seed in (1, 2)]
    ends = (kernel, "v0", "10.77.0.1/24", us, "t0", "10.77.0.2/24")
    left, right, forwarder = impaired_pair(lab, *ends, forward=how[0], backward=how[1])
    own(kernel, "v0", KERNEL)
    own(us, "t0", SHARED)
    kernel.neighbour("v0", SHARED, right.mac)
    us.neighbour("t0", KERNEL, left.mac)
    return kernel, us, forwarder


@pytest.mark.parametrize("opener", ["us", "kernel"] if LONG else ["us"])
@pytest.mark.parametrize("damaged6", DAMAGE if LONG else FEW, indirect=True)
def test_texts_pass_damage_whole_over_ipv6(damaged6, opener):
    kernel, us, forwarder = damaged6
    with us.enter(), nodes.open("xsk:t0") as node:
        where = {"address": SHARED}
        info = texts_over(node, kernel, opener, listener, (KERNEL, SHARED), where)
    damage_of(forwarder)
    assert info["mss"] == 1428, "it was IPv6"


@pytest.mark.parametrize("opener", ["us", "kernel"])
@pytest.mark.parametrize(
    ("mtu", "way"), [(1280, "own"), (1280, "shared"), (1500, "own"), (9000, "own"), (9000, "shared")]
)
def test_texts_pass_links_of_every_size_whole(make_net, mtu, way, opener):
    texts_of_size(make_net(mtu=mtu), mtu - 72, way, opener)
