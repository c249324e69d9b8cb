"""One engine a queue, whose filter stands in libxdp's dispatcher."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from netns_tests import test_fleet_links
from netns_tests.test_fleet_links import program
from netns_tests.test_links import delete
from tools.vmlab.tests import neighbour
from tools.vmlab.tests.test_dispatcher import index, left, names
from xdpstack import bpf, fleet
from xdpstack.config import PortConfig
from xdpstack.lab import Lab, Namespace

PATIENCE = 200.0
LONG = pytest.mark.skipif(
    os.environ.get("XDPSTACK_VM_LONG") != "1", reason="a minute each: with XDPSTACK_VM_LONG=1"
)
OURS, THEIRS = ("xds_rx_chain", 60), ("neighbour", 50)


def sweep_theirs() -> None:
    """Pins of the neighbour's whose interface, or its number, is gone: libxdp keeps them for good."""
    for path in left():
        assert "xdpstack" not in path
        for pin in os.listdir(path):
            os.unlink(f"{path}/{pin}")
        os.rmdir(path)


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
