"""What this kernel tells of a veth, whose features are known from its driver (drivers/net/veth.c)."""

from __future__ import annotations

import pytest

from xdpstack import netdev
from xdpstack.errors import SetupError
from xdpstack.port import XskPort


def need(answer, what):
    if answer is None:
        pytest.skip(f"this kernel does not tell {what}: Linux {netdev.SINCE[what]} does")
    return answer


def test_a_veth_tells_the_features_of_its_driver(make_pair):
    _venue, trader = make_pair(queues=2)
    with trader.enter():
        found = netdev.capabilities(trader.link("t0")["index"])
    assert need(found.xdp, "xdp") >= {"basic", "redirect", "rx-sg"}
    assert "zero-copy" not in found.xdp
    assert "hw-offload" not in found.xdp
    assert found.zc_max_segs == 0
    assert need(found.rx_metadata, "rx_metadata") >= {"timestamp", "hash"}
    assert found.xsk is None or "tx-checksum" not in found.xsk


def test_ndo_xmit_comes_with_gro_at_the_receiving_end(lab_pair):
    venue, trader = lab_pair  # its offloads are off
    with trader.enter():
        before = need(netdev.capabilities(trader.link("t0")["index"]).xdp, "xdp")
    venue.set_offloads("v0", True)  # frames that are redirected to t0 leave by v0's NAPI
    with trader.enter():
        after = netdev.capabilities(trader.link("t0")["index"]).xdp
    assert after - before == {"ndo-xmit", "ndo-xmit-sg"}
    assert not before - after


def test_queues_are_listed_while_the_link_is_up(make_pair):
    _venue, trader = make_pair(queues=3)
    index = trader.link("t0")["index"]
    with trader.enter():
        found = need(netdev.queues(index), "queues")
    assert [(queue.kind, queue.id) for queue in found] == [
        (kind, number) for kind in ("rx", "tx") for number in range(3)
    ]
    trader.run(["ip", "link", "set", "dev", "t0", "down"])
    with trader.enter():
        assert netdev.queues(index) == []
        assert netdev.napis(index) == []


def test_a_queue_with_an_af_xdp_socket_is_known(make_pair):
    _venue, trader = make_pair(queues=2)
    index = trader.link("t0")["index"]
    with trader.enter(), XskPort("t0", 1, mode="copy"):
        found = {queue.id: queue.has_xsk for queue in need(netdev.queues(index), "queues")}
    if found[1] is None:
        pytest.skip("this kernel does not tell which queue has a socket: Linux 6.15 does")
    assert found == {0: False, 1: True}


def test_napi_deferral_is_set_for_one_queue_alone(make_pair):
    _venue, trader = make_pair(queues=2)
    index = trader.link("t0")["index"]
    trader.set_offloads("t0", True)  # a veth has NAPI instances while it merges or has a program
    with trader.enter():
        first, second = need(netdev.napis(index), "napis")
        if first.defer_hard_irqs is None:
            pytest.skip("this kernel has no deferral by NAPI: Linux 6.13 has")
        netdev.set_napi(second.id, defer_hard_irqs=3, gro_flush_timeout_ns=20_000)
        assert netdev.napis(index)[0] == first
        changed = netdev.napis(index)[1]
        assert (changed.defer_hard_irqs, changed.gro_flush_timeout_ns) == (3, 20_000)
        netdev.set_napi(second.id, defer_hard_irqs=second.defer_hard_irqs)
        changed = netdev.napis(index)[1]
        assert (changed.defer_hard_irqs, changed.gro_flush_timeout_ns) == (0, 20_000)
        with pytest.raises(SetupError, match="set NAPI instance 1: No such file"):
            netdev.set_napi(1, defer_hard_irqs=3)


def test_a_device_that_is_not_there_is_an_error_and_not_unknown(lab_pair):
    _venue, trader = lab_pair
    with trader.enter():
        for ask in (netdev.capabilities, netdev.queues, netdev.napis):
            with pytest.raises(SetupError, match="No such device"):
                ask(4_000_000)
