"""The other end of one connection, segment by segment, by hand: scapy builds its segments and reads ours."""

from __future__ import annotations

import pytest

from xdpstack.sim import NEVER, SECOND
from xdpstack.tcp import REASONS, TcpCore, address16

scapy = pytest.importorskip("scapy.all", reason="scapy is the second opinion of this file")
IP, IPv6, TCP, Raw = (getattr(scapy, name) for name in ("IP", "IPv6", "TCP", "Raw"))

FAMILIES = {"v4": ("10.0.0.1", "10.0.0.2"), "v6": ("fd00::1", "fd00::2")}
ME, PEER = FAMILIES["v4"]
ISS, IRS = 0xFFFFFF00, 0x7FFFFFF0  # both wrap soon


def reasons(core):
    stats = core.stats()
    assert stats.received == sum(stats.reasons)
    return {REASONS[i]: n for i, n in enumerate(stats.reasons) if n}


class Peer:
    """The other end, by hand: scapy builds its segments and reads ours."""

    def __init__(self, addresses=(ME, PEER), passive=False, **settings):
        self.me, self.them = addresses
        self.now = SECOND
        remote = None if passive else (self.them, 80)
        self.core = TcpCore((self.me, 4000), remote, iss=ISS, **settings)

    def packet(self, flags, seq, ack=0, data=b"", window=60000, options=(), sport=80, dport=4000):
        ip = IPv6 if ":" in self.me else IP
        segment = TCP(sport=sport, dport=dport, flags=flags, seq=seq & 0xFFFFFFFF, ack=ack & 0xFFFFFFFF,
                      window=window, options=list(options))  # fmt: skip
        whole = ip(bytes(ip(src=self.them, dst=self.me) / segment / Raw(data)))
        return bytes(whole[TCP])

    def give(self, *args, **kwargs):
        data = self.packet(*args, **kwargs)
        return self.core.input(data, address16(self.them), address16(self.me), self.now)

    def take(self):
        """Our next segment as scapy reads it, its checksum verified; None where there is none."""
        data = self.core.output(self.now)
        if not data:
            return None
        ip = IPv6 if ":" in self.me else IP
        read = TCP(data)
        want = read.chksum
        copy = TCP(data)
        del copy.chksum
        assert ip(bytes(ip(src=self.me, dst=self.them) / copy))[TCP].chksum == want
        return read

    def later(self):
        """To the next deadline."""
        due = self.core.deadline()
        assert due != NEVER
        self.now = max(self.now, due)
        self.core.tick(self.now)

    def established(self, options=(), **kwargs):
        syn = self.take()
        assert syn.flags == "S"
        assert syn.seq == ISS
        assert self.give("SA", IRS, ISS + 1, options=[("MSS", 1000), *options], **kwargs) == 0
        ack = self.take()
        assert ack.flags == "A"
        assert ack.ack == IRS + 1
        assert self.core.state == "established"
        assert self.core.events() == ["open"]
        return self
