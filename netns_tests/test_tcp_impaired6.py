"""TCP over IPv6 with damage in between: as ``test_tcp_impaired.py``, which says how much of it and when."""

from __future__ import annotations

import socket

import pytest

from netns_tests.test_tcp_impaired import BYTES, DAMAGE, LONG, stands
from netns_tests.test_tcp_linux import PATIENCE, accept_and, exchange, ours, settle
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
        node.streams(send_bytes=1 << 20, receive_bytes=1 << 20)
        if opener == "us":
            with listener(kernel) as server:
                child = kernel.fork(accept_and, exchange, server, 1, 2, BYTES)
                connection = node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE)
        else:

            def call() -> None:
                with socket.create_connection((SHARED, 7000), timeout=PATIENCE) as sock:
                    exchange(sock, 1, 2, BYTES)

            with node.listen(7000, address=SHARED) as waiting:
                child = kernel.fork(call)
                connection = waiting.accept(PATIENCE)
        connection.timeout = PATIENCE
        ours(connection, 2, 1, BYTES)
        connection.drain()
        info = connection.info()
        connection.close()
        settle(node)
        assert child.wait(PATIENCE) == 0
        stands(node)
    assert info["received_bytes"] == info["sent_bytes"] == BYTES
    forwarder.close()
    ways = forwarder.counters().values()
    for name, asked in (
        ("lost", forwarder.forward.loss or forwarder.forward.burst),
        ("held", forwarder.forward.reorder),
        ("duplicated", forwarder.forward.duplicate),
        ("corrupted", forwarder.forward.corrupt),
    ):
        assert sum(way[name] for way in ways) > 0 or not asked, name
    assert info["mss"] == 1428, "it was IPv6"
