"""A device-bound filter whose device goes away while it is loaded: the kernel must live."""

from __future__ import annotations

import subprocess

from xdpstack.bpf import METADATA, Filter


def ip(*words: str) -> None:
    subprocess.run(["ip", "link", *words], check=True, timeout=600)


def test_a_device_goes_away_under_its_bound_filter() -> None:
    for _ in range(3):  # a stale pointer may be harmless once
        ip("add", "b0", "type", "veth", "peer", "name", "b1")
        ip("set", "b0", "up")
        ip("set", "b1", "up")
        with Filter.load("b0", "native", ["udp -> drop"], metadata=list(METADATA)) as steering:
            assert steering.info()["device_bound"] == 1
            ip("del", "b0")
    ip("add", "b0", "type", "veth", "peer", "name", "b1")
    ip("del", "b0")
