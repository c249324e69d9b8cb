"""Connections over kernel sockets: settings that are the kernel's options. What all streams do is checked by
testing_streams.py, in netns_tests/test_streams.py."""

from __future__ import annotations

import socket

import pytest

from xdpstack.engine import Engine, EngineConfig
from xdpstack.sock_streams import SockStreams


@pytest.mark.parametrize(
    ("address", "level", "option"),
    [
        ("127.0.0.1", socket.IPPROTO_IP, socket.IP_TOS),
        ("::1", socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    ],
)
def test_the_dscp_is_the_packets_in_either_family(address: str, level: int, option: int) -> None:
    with Engine(EngineConfig()) as engine, SockStreams(engine) as streams:
        listener = streams.listen(0, address=address)
        one = streams.connect(address, listener.address[1], timeout=60.0, dscp=46)
        assert one._socket.getsockopt(level, option) == 46 << 2
        one.set(dscp=8)
        assert one._socket.getsockopt(level, option) == 8 << 2
