"""What a driver is asked about received frames: which words there are, who has them, which filter asks."""

from __future__ import annotations

import subprocess

import pytest

from xdpstack import asks, config
from xdpstack.bpf import Filter
from xdpstack.cli.capture import capture
from xdpstack.errors import ConfigError, SetupError
from xdpstack.netdev import Capabilities
from xdpstack.node import Node


def test_the_words_are_bits_of_their_own_and_their_order_and_number_do_not_count(monkeypatch):
    assert sorted(asks.METADATA) == ["hash", "timestamp", "vlan-tag"]
    every = Capabilities(rx_metadata=frozenset(asks.METADATA))
    monkeypatch.setattr(asks, "capabilities", lambda index: every)
    single = [asks.asked("t0", 1, "auto", True, [word]) for word in asks.METADATA]
    assert len({bit for bits in single for bit in range(32) if bits >> bit & 1}) == 3
    assert asks.asked("t0", 1, "native", True, [*asks.METADATA, "hash"]) == sum(single)
    assert asks.asked("t0", 1, "generic", False, []) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metadata": ["hash", "colour"]}, "metadata 'colour' is none of timestamp, hash, vlan-tag"),
        ({"metadata": ["hash"], "mode": "generic"}, "in generic mode nobody asks it"),
        ({"metadata": ["hash"], "stamp": False}, "leave stamp on"),
    ],
)
def test_metadata_that_cannot_be_is_refused(lab_pair, options, said):
    _, trader = lab_pair
    with trader.enter(), pytest.raises(ConfigError, match=said):
        Filter.load("t0", **options)


def test_a_driver_is_asked_for_nothing_that_the_kernel_does_not_tell_of_it(lab_pair, monkeypatch):
    """No program is loaded: a bound one may hang this kernel, and `lo` tells of nothing."""
    _, trader = lab_pair
    monkeypatch.setattr(Filter, "_load", None)
    tells_nothing = "ask its driver for vlan-tag: driver of no name tells nothing of received frames; leave"
    with trader.enter():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with pytest.raises(SetupError, match=tells_nothing):
            Filter.load("lo", metadata=["vlan-tag"])
        monkeypatch.setattr(asks, "capabilities", lambda index: Capabilities(rx_metadata=frozenset({"hash"})))
        with pytest.raises(SetupError, match="for timestamp: driver veth tells hash of"):
            Filter.load("t0", metadata=["hash", "timestamp"])
        monkeypatch.setattr(asks, "capabilities", lambda index: Capabilities())
        with pytest.raises(SetupError, match="this kernel does not tell what driver veth has"):
            Filter.load("t0", metadata=["hash"])


def test_a_filter_that_asks_nothing_tells_so_and_is_not_taken_for_one_that_does(lab_pair, tmp_path):
    _, trader = lab_pair
    file = tmp_path / "stamped.toml"
    file.write_text('[ports.main]\nport = "xsk:t0:0"\nmetadata = ["timestamp"]\n')
    with trader.enter(), Filter.load("t0", pin=True) as steering:
        try:
            assert steering.info()["metadata"] == []
            with Filter.open_pinned("t0") as again:
                assert again.info()["metadata"] == []
            words = r"^t0: ask its driver for timestamp: the filter there asks for nothing; xdpstack unload"
            with pytest.raises(SetupError, match=words), Node(config.load(file)) as node:
                node.build()
            with pytest.raises(SetupError, match="driver for hash: the filter there asks for nothing"):
                capture("xsk:t0:0", tmp_path / "x.pcapng", rules=["udp"], metadata=["hash"], count=1)
        finally:
            steering.unload()
