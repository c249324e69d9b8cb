"""A lease's side of the talk with its opener, where the opener speaks unasked."""

from __future__ import annotations

import socket

import pytest

from xdpstack.errors import SetupError
from xdpstack.opener import wire
from xdpstack.opener.client import Lease


def test_a_lease_that_moves_while_it_is_asked_keeps_its_last_counts():
    """The opener's word of the move comes where an answer is waited for."""
    ours, openers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with openers, ours:
        ours.settimeout(60)
        lease = Lease("opener.sock", ours, 3, "workers")
        wire.send(openers, {"rules": {"7": [5, 300]}, "no_socket": {}})
        before = lease.counters()
        assert before.rules[7].packets == 5
        wire.send(openers, {"moved": 3})
        assert lease.counters() == before
        assert lease.state == "moved"
        assert lease.counters() == before
        with pytest.raises(SetupError, match="the lease is moved"):
            lease.add_rules(["any -> workers"])
        lease.close()
