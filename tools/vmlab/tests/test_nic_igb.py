"""Binding on a real driver: igb has channels, rings, coalescing, an RSS table and interrupts of its own."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import Any

import pytest

from tools.vmlab.tests.machine import run, up
from xdpstack.errors import SetupError
from xdpstack.nic import Binding, Flow, NicConfig, ethtool, pending, restore
from xdpstack.nic.irq import queue_irqs
from xdpstack.nic.surface import Host, Link

LINES = [Flow(dst="233.54.12.111", dport=26477), Flow(dst="233.54.13.111", dport=26477)]
EVERYTHING = NicConfig(
    nic_rx_ring=512,
    coalesce={"rx_usecs": 10},
    bypass_offloads=True,
    steer=True,
    irq_cpus=(1,),
    defer_hard_irqs=2,
    gro_flush_timeout=200_000,
    promiscuous=True,
)


def card() -> Link:
    link = Host().link("igb0")
    assert link is not None
    return link


def state() -> dict[str, Any]:
    """All that a binding may change, and what ethtool(8) says of it."""
    host, link = Host(), card()
    irqs = queue_irqs(host, link).values()
    return {
        "channels": ethtool.channels(host, "igb0")[0],
        "rings": ethtool.rings(host, "igb0")[0],
        "coalesce": ethtool.coalesce(host, "igb0"),
        "wanted": {name: one.wanted for name, one in ethtool.features(host, "igb0").items()},
        # How many places each queue has: igb lies its own table out in blocks, the kernel's default in turns.
        "table": sorted(Counter(ethtool.rss(host, "igb0").table).items()),
        "irqs": {irq: host.read(f"/proc/irq/{irq}/smp_affinity_list") for irq in irqs},
        "napis": [(n.defer_hard_irqs, n.gro_flush_timeout_ns) for n in host.napis(link.index) or []],
        "ethtool": [run("ethtool", word, "igb0") for word in ("-l", "-g", "-c", "-k")],
    }


def bind() -> Binding:
    binding = Binding("igb0", EVERYTHING)
    binding.settle(binding.prepare([1], LINES))
    return binding


def test_all_of_it_is_changed_and_put_back() -> None:
    up("igb0", "igb1")
    before = state()
    with bind() as binding:
        made = state()
        assert made["rings"]["rx"] == 512
        assert made["coalesce"]["rx_usecs"] == 10
        assert made["table"] == [(1, 128)]
        assert not made["wanted"]["rx-gro"]
        irqs = queue_irqs(Host(), card())
        assert set(irqs) == {0, 1}
        assert Host().read(f"/proc/irq/{irqs[1]}/smp_affinity_list") == "1"
        assert (2, 200_000) in made["napis"]
        assert "sends everything to queues 1" in " ".join(binding.notes)
    assert state() == before
    assert pending() == []


def test_after_kill_9_restore_puts_it_back() -> None:
    up("igb0", "igb1")
    before = state()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        bind()
        os.write(writing, b".")
        time.sleep(120)
        os._exit(0)
    assert os.read(reading, 1) == b"."
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert state() != before
    names = {entry.operation for entry in pending()}
    assert names >= {"rings", "coalesce", "feature", "indirection", "affinity", "napi"}
    undone, said = restore()
    assert said == []
    assert len(undone) >= 6
    assert state() == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (NicConfig(channels=9), "give igb0 9 queues: it has 1 to 8; channels = 8"),
        (NicConfig(nic_rx_ring=8192), "it has at most 4096 descriptors; nic_rx_ring = 4096"),
        (NicConfig(timestamps=True), r"Numerical result out of range \(driver igb\)"),
        (NicConfig(coalesce={"rx_frames": 4}), r"ethtool -C igb0 rx-frames 4: .* \(driver igb\)"),
    ],
)
def test_what_it_has_not_is_refused_and_nothing_stays(config: NicConfig, words: str) -> None:
    up("igb0", "igb1")
    before = state()
    with pytest.raises(SetupError, match=words):
        Binding("igb0", config).prepare()
    assert state() == before


def test_a_bond_and_a_vlan_device_name_what_to_use_instead() -> None:
    run("ip", "link", "add", "link", "igb1", "name", "tag7", "type", "vlan", "id", "7")
    run("ip", "link", "add", "bond9", "type", "bond")
    try:
        with pytest.raises(SetupError, match="a VLAN device has no queues of its own; open igb1, and match"):
            Binding("tag7", NicConfig())
        with pytest.raises(SetupError, match="a bond has no queues of its own; open its ports"):
            Binding("bond9", NicConfig())
    finally:
        run("ip", "link", "del", "tag7")
        run("ip", "link", "del", "bond9")
