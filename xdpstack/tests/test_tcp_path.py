"""cores/tcp: a path that takes less: told from outside (RFC 1191), or shown by timeouts (a black hole)."""

from __future__ import annotations

import pytest

from xdpstack._ffi import lib
from xdpstack.sim import SECOND, Sim, Wire
from xdpstack.tcp import TcpCore, address16
from xdpstack.tests.tcp_peer import IRS, ISS, ME, PEER, Peer

MINUTE = 60 * SECOND


def established(window=60000, mss=1460, stamps=False, **settings):
    p = Peer(no_stamps=0 if stamps else 1, **settings)
    assert p.take().flags == "S"
    options = [("MSS", mss), ("SAckOK", b""), ("NOP", None), ("NOP", None)]
    assert p.give("SA", IRS, ISS + 1, window=window, options=options) == 0
    assert p.take().flags == "A"
    return p


def taken(p):
    """(position, length) of every segment that goes now."""
    found = []
    while (s := p.take()) is not None:
        found.append(((s.seq - ISS - 1) & 0xFFFFFFFF, len(s.payload)))
    return found


def path(p, mss):
    lib.xds_tcp_path(p.core._tcp, mss)


def test_what_is_out_and_does_not_fit_goes_again_at_once_and_the_window_stays():
    p = established()
    p.core.write(b"x" * 5000)
    assert taken(p) == [(0, 1460), (1460, 1460), (2920, 1460), (4380, 620)]
    before = p.core.info().cwnd
    path(p, 1240)
    assert taken(p) == [(0, 1240), (1240, 220), (1460, 1240), (2700, 220), (2920, 1240), (4160, 220)]
    info = p.core.info()
    assert (info.mss, info.cwnd, info.lost) == (1240, before, 0)
    stats = p.core.stats()
    assert (stats.path_cuts, stats.timeouts, stats.fast_retransmits) == (1, 0, 0)
    p.core.write(b"y" * 3000)
    assert [n for _, n in taken(p)] == [1240, 1240, 520]
    p.give("A", IRS + 1, ISS + 1 + 8000)
    assert p.core.info().cwnd >= before, "no sign of congestion"


def test_bytes_come_once_and_in_order_whatever_the_path_did_meanwhile():
    p = established()
    text = bytes(range(256)) * 20
    p.core.write(text)
    got = {}
    sizes = [1000, 1460, 512, 1240, 600]
    for size in sizes:
        while (s := p.take()) is not None:
            at = (s.seq - ISS - 1) & 0xFFFFFFFF
            assert text[at : at + len(s.payload)] == bytes(s.payload)
            got[at] = len(s.payload)
        path(p, size)
    assert p.core.info().mss == 600


def test_what_fits_is_left_alone():
    p = established()
    p.core.write(b"x" * 500)
    assert taken(p) == [(0, 500)]
    path(p, 512)
    assert taken(p) == []
    assert p.core.stats().path_cuts == 0


def test_a_path_that_takes_more_again_does_no_more_than_was_agreed():
    p = established(mss=1300)
    for size, mss in ((1460, 1300), (1240, 1240), (9000, 1300), (512, 512), (0, 1300)):
        path(p, size)
        assert p.core.info().mss == mss


def test_a_path_known_before_the_handshake_counts_after_it_and_options_are_taken_off():
    p = Peer()
    path(p, 1240)
    assert p.take().options[0] == ("MSS", 1460), "what we can take hangs on no path"
    p.give("SA", IRS, ISS + 1, options=[("MSS", 1460), ("Timestamp", (5, 1000))])
    assert p.core.info().stamps
    assert p.core.info().mss == 1228


def test_what_was_sacked_is_not_sent_again():
    p = established()
    p.core.write(b"x" * 4380)
    assert len(taken(p)) == 3
    p.give(
        "A",
        IRS + 1,
        ISS + 1,
        options=[
            ("NOP", None),
            ("NOP", None),
            ("SAck", (ISS + 1 + 1460 & 0xFFFFFFFF, ISS + 1 + 2920 & 0xFFFFFFFF)),
        ],
    )
    taken(p)
    path(p, 1240)
    assert [at for at, _ in taken(p)] == [0, 1240, 2920, 4160]


# ---- black holes -----------------------------------------------------------------------------------------


class Text:
    """One end sends so many bytes to the other over a wire; ``sizes`` are the payloads that were sent."""

    def __init__(self, wire, count=200_000, back=None, **settings):
        self.count = count
        a = TcpCore((ME, 4000), (PEER, 80), iss=ISS, send_bytes=65536, **settings)
        b = TcpCore((PEER, 80), None, iss=IRS)
        self.a, self.b, self.sent, self.got = a, b, 0, 0
        self.sim = Sim((a, b), (ME, PEER), (wire, back or Wire()), 1, self.act)

    def act(self, end):
        if end == 0 and self.a.state == "established" and self.sent < self.count:
            self.sent += self.a.write(bytes(min(16384, self.count - self.sent)))
        elif end == 1:
            self.got += len(self.b.read())

    def run(self):
        self.sim.run(lambda: self.got == self.count)
        assert self.got == self.count
        return self.a.stats()


@pytest.mark.parametrize(("mtu", "mss"), [(1300, 1240), (1259, 512), (600, 512)])
@pytest.mark.parametrize("settings", [{}, {"no_sack": 1}, {"congestion": "none"}, {"no_stamps": 1}])
def test_a_hole_is_found_believed_and_gone_round(mtu, mss, settings):
    t = Text(Wire(mtu=mtu), **settings)
    stats = t.run()
    assert stats.black_holes == 1
    found = t.a.info().mss + (0 if settings.get("no_stamps") else 12)
    assert mss <= found <= mtu - 20, "the step that passed, or what else was seen to pass"
    assert t.sim.now < 60 * SECOND
    late = [len(s) for _, end, s in t.sim.segments[-100:] if end == 0]
    assert max(late) <= mtu, "nothing too large once it is known"


@pytest.mark.parametrize("no_stamps", [0, 1])
def test_a_hole_is_found_though_small_segments_pass_all_the_while(no_stamps):
    """Each that a SACK names has the large one sent again, which puts the timeout off, but not for ever."""
    settings = {"congestion": "none", "no_stamps": no_stamps, "send_bytes": 1 << 20}
    a = TcpCore((ME, 4000), (PEER, 80), iss=ISS, **settings)
    b = TcpCore((PEER, 80), None, iss=IRS, receive_bytes=1 << 20)
    sim = Sim((a, b), (ME, PEER), (Wire(mtu=1300), Wire()), 1)
    sim.run(lambda: a.state == "established")
    a.write(bytes(1448))
    while a.info().outstanding or sim.now < 2 * SECOND:
        a.write(bytes(100))
        sim.turn(0)
        later = sim.now + SECOND // 50
        while min(sim.arrival(), a.deadline(), b.deadline()) <= later:
            sim.step()
        sim.now = later
        assert sim.now < 60 * SECOND, "its window would be full after three minutes"
    assert a.stats().hole_steps >= 1


def test_a_jumbo_link_steps_down_by_what_is_common():
    t = Text(Wire(mtu=1500), mss=8960)
    t.b = None
    t = Text(Wire(mtu=1480), mss=1460)
    stats = t.run()
    assert (stats.black_holes, stats.hole_steps) == (0, 0), "everything passes"


def test_an_outage_is_no_hole():
    """Everything is lost for a while, small ones too: afterwards the large ones pass, and are used."""
    t = Text(Wire(), count=400_000)
    way, ends = t.sim._ways[0], []

    def watch(end):
        if t.got > 30_000 and not ends:
            ends.append(t.sim.now + 3 * SECOND)
        way.wire = Wire(loss=1.0) if ends and t.sim.now < ends[0] else Wire()
        t.act(end)

    t.sim._watch = watch
    stats = t.run()
    assert stats.hole_steps >= 1
    assert stats.black_holes == 0
    assert t.a.info().mss == 1448


def test_after_ten_minutes_a_larger_one_is_tried_again():
    t = Text(Wire(mtu=1300))
    assert t.run().black_holes == 1
    t.sim._ways[0].wire = Wire()
    t.sim.now += 11 * MINUTE
    t.count += 100_000
    t.run()
    assert t.a.info().mss == 1448
    assert t.a.stats().black_holes == 1


def test_short_segments_that_time_out_are_no_hole():
    p = established()
    p.core.write(b"x" * 500)
    for _ in range(6):
        assert [n for _, n in taken(p)] == [500]
        p.later()
    assert (p.core.stats().hole_steps, p.core.info().mss) == (0, 1460)


def test_the_sender_itself_needs_three_timeouts_in_a_row():
    p = established(no_sack=1)
    p.core.write(b"x" * 1460)
    seen = []
    for _ in range(6):
        seen += [n for _, n in taken(p)][:1]
        p.later()
    assert seen == [1460, 1460, 1460, 1240, 512, 512]


def test_addresses_are_as_everywhere():
    assert len(address16(ME)) == 16
