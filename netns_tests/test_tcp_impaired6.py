"""TCP over IPv6 with damage in between: as ``test_tcp_impaired.py``, which says how much of it and when."""

from __future__ import annotations

import pytest

from netns_tests.test_tcp_impaired import DAMAGE, LONG, damage_of, texts_over
from netns_tests.test_tcp_linux6 import KERNEL, SHARED, listener, own
from xdpstack import node as nodes
from xdpstack.lab.faults import Faults
from xdpstack.lab.forwarder import impaired_pair

FEW = ["loss of 5 %", "reordering of 10 %"]
pytestmark = pytest.mark.timeout(1200 if LONG else 300)


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
