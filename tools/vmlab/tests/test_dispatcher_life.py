"""Programs whose filter stands in libxdp's dispatcher: interfaces that are renamed, moved away and made anew,
and one engine a queue."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from netns_tests import test_fleet_links, test_links
from netns_tests.test_fleet_links import program
from netns_tests.test_links import change, delete, stream
from tools.vmlab.tests import neighbour
from tools.vmlab.tests.test_dispatcher import index, joined, left, names
from xdpstack import bpf, fleet
from xdpstack import node as nodes
from xdpstack.config import PortConfig
from xdpstack.errors import SetupError
from xdpstack.lab import Lab, Namespace

__all__ = ["joined"]

PATIENCE = 200.0
LONG = pytest.mark.skipif(
    os.environ.get("XDPSTACK_VM_LONG") != "1", reason="a minute each: with XDPSTACK_VM_LONG=1"
)
OURS, THEIRS = ("xds_rx_chain", 60), ("neighbour", 50)


class Run(test_links.Run):
    """On a thread of its own, with the patience that the emulation takes."""

    def __init__(self, node: nodes.Node) -> None:
        super().__init__(node, "free-running")

    def pump(self, done: Callable[[], bool], seconds: float = PATIENCE) -> None:
        super().pump(done, PATIENCE)


def come_back(venue: Namespace, trader: Namespace) -> None:
    """t0, which was moved to the venue, is in the trader's namespace again, and up."""
    change(venue, "t0", net_ns_fd=trader.fd)
    with trader.netlink() as route:
        route.addr("add", index=route.link_lookup(ifname="t0")[0], address="10.77.0.2", prefixlen=24)
    change(trader, "t0", state="up")


def sweep_theirs() -> None:
    """Pins of the neighbour's whose interface, or its number, is gone: libxdp keeps them for good."""
    for path in left():
        assert "xdpstack" not in path
        for pin in os.listdir(path):
            os.unlink(f"{path}/{pin}")
        os.rmdir(path)


def test_a_renamed_interface_goes_on_and_at_the_end_the_other_program_stays(joined):
    venue, trader = joined
    with trader.enter():
        number = neighbour.join(index())
        with nodes.open("xsk:t0", dispatcher=True) as node:
            run = Run(node)
            venue.fork(stream)
            run.flows()
            change(trader, "t0", ifname="t9")
            run.until("renamed")
            run.flows()
            assert neighbour.seen(number) > 200
            change(trader, "t9", ifname="t0")
            run.until("renamed")
            assert names() == [THEIRS, OURS]
        assert names() == [THEIRS]
        neighbour.leave(index(), number)


def test_an_interface_that_was_elsewhere_is_joined_again_where_nobody_else_was_in_it(joined):
    venue, trader = joined
    with trader.enter():
        with nodes.open("xsk:t0", dispatcher=True, link_wait=PATIENCE) as node:
            run = Run(node)
            venue.fork(stream)
            run.flows()
            change(trader, "t0", net_ns_fd=venue.fd)
            run.until("moved")
            assert left() == [], "no pins are left of what is out of reach"
            come_back(venue, trader)
            run.until("recovered")
            run.flows()
            assert names() == [OURS]
        assert names() == []


def test_an_interface_that_was_elsewhere_with_others_in_its_dispatcher_ends_the_run(joined):
    """libxdp finds its programs by the number of the interface, which is another now."""
    venue, trader = joined
    with trader.enter():
        neighbour.join(index())
        with nodes.open("xsk:t0", dispatcher=True, link_wait=PATIENCE) as node:
            run = Run(node)
            change(trader, "t0", net_ns_fd=venue.fd)
            run.until("moved")
            come_back(venue, trader)
            with pytest.raises(
                SetupError, match=r"\(xdp_dispatcher, .*is attached already, and libxdp cannot read it"
            ):
                run.until("recovered")
        bpf.detach_any("t0")
    sweep_theirs()


@pytest.fixture
def queues() -> Iterator[tuple[Lab, Namespace, Namespace]]:
    """``(lab, venue, trader)`` with a pair of two queues; at the end nothing is pinned."""
    with Lab(f"q{os.getpid()}") as lab:
        venue, trader = lab.namespace("venue"), lab.namespace("trader")
        test_fleet_links.join(lab, venue, trader)
        yield lab, venue, trader
        with trader.enter():
            assert bpf.attached("t0") is None
    assert left() == []


@LONG
@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_fleet_stands_in_it_and_follows_an_interface_that_is_made_anew(queues, workers):
    lab, venue, trader = queues
    with trader.enter():
        number = neighbour.join(index())
        port = PortConfig(port="xsk:t0", options={"dispatcher": True, "link_wait": PATIENCE})
        with fleet.open(program(workers, port)) as engines:
            run = test_fleet_links.Run(engines, venue, patience=PATIENCE)
            run.flows()
            assert names() == [THEIRS, OURS]
            assert neighbour.seen(number) >= 40
            delete(trader, "t0")
            run.until("deleted")
            test_fleet_links.join(lab, venue, trader)
            run.until("recovered")
            run.flows()
            assert names() == [OURS]
            number = neighbour.join(index())
            run.flows()
            assert engines.stop() == []
        assert names() == [THEIRS]
        neighbour.leave(index(), number)
    sweep_theirs()
