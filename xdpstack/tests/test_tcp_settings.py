"""Keepalive (RFC 9293 3.8.4), the user timeout (3.8.3, RFC 5482), and what may change while it is open."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack.errors import ConfigError
from xdpstack.sim import MILLISECOND, NEVER, SECOND, Sim, Wire
from xdpstack.tcp import BOUNDS, SET, TcpCore
from xdpstack.tests.stack_driver import B, End, Two
from xdpstack.tests.tcp_peer import IRS, ISS, ME, PEER, Peer

HOUR = 3600 * SECOND
KEEP = {"keepalive": 1, "keep_idle_ns": 10 * SECOND, "keep_interval_ns": 2 * SECOND, "keep_count": 3}


def uto(word):
    return [(28, word.to_bytes(2, "big"))]


def told(segment):
    """The word of our user timeout option, None: there is none."""
    raw = dict(segment.options).get(28, dict(segment.options).get("UTO"))
    return int.from_bytes(raw, "big") if isinstance(raw, bytes) else raw


# -- keepalive


@pytest.mark.rfc("9293", "MUST-25", "MUST-28", "MUST-24")
def test_an_idle_peer_is_left_alone_unless_it_was_asked_for_and_then_for_two_hours():
    peer = Peer().established()
    assert peer.core.deadline() == NEVER
    peer.core.set("keepalive", 1, peer.now)
    assert peer.core.deadline() == peer.now + 2 * HOUR
    peer.core.set("keepalive", 0, peer.now)
    assert peer.core.deadline() == NEVER
    assert peer.take() is None


@pytest.mark.rfc("9293", "MAY-5", "SHLD-12", "MUST-27")
@pytest.mark.parametrize("written", [b"", b"abc"])
def test_the_probe_is_empty_and_of_a_number_that_the_peer_has(written):
    peer = Peer(**KEEP).established()
    if written:
        peer.core.write(written)
        peer.take()
        peer.give("A", IRS + 1, ISS + 1 + len(written))
    peer.later()
    assert peer.now == SECOND + 10 * SECOND
    probe = peer.take()
    assert (str(probe.flags), probe.seq, len(probe.payload)) == ("A", (ISS + len(written)) % 2**32, 0)
    assert probe.ack == IRS + 1
    assert peer.take() is None
    assert peer.core.stats().keepalives == 1


@pytest.mark.rfc("9293", "MUST-26")
def test_whatever_comes_puts_the_probe_off_and_so_does_what_is_out():
    peer = Peer(**KEEP).established()
    peer.now += 9 * SECOND
    peer.give("A", IRS + 1, ISS + 1, b"x")
    peer.take()
    peer.later()  # it finds out that something came
    assert peer.take() is None
    assert peer.core.deadline() == peer.now + 9 * SECOND
    peer.core.write(b"out")
    peer.take()
    for _ in range(6):
        peer.later()
        assert all(len(s.payload) for s in iter(peer.take, None))
    assert peer.core.stats().keepalives == 0


@pytest.mark.rfc("9293", "MUST-29")
def test_a_lost_answer_is_no_end_but_none_to_all_probes_is():
    peer = Peer(**KEEP).established()
    for _ in range(4):  # the third is answered each time
        for _ in range(3):
            peer.later()
            assert peer.take() is not None
        peer.give("A", IRS + 1, ISS + 1)
        peer.later()
        assert peer.take() is None
        assert peer.core.state == "established"
    begin = peer.core.deadline()
    for _ in range(3):
        peer.later()
        assert peer.take() is not None
    peer.later()
    assert peer.now == begin + 3 * 2 * SECOND
    assert peer.core.events() == ["timeout"]
    assert peer.take().flags == "RA"
    assert peer.core.deadline() == NEVER


@pytest.mark.parametrize("passive", [False, True])
def test_two_ends_that_ask_each_other_stay_together(passive):
    ends = (
        TcpCore((ME, 1), (PEER, 2), iss=1, **KEEP),
        TcpCore((PEER, 2), None if passive else (ME, 1), iss=9, **KEEP),
    )
    sim = Sim(ends, (ME, PEER), (Wire(), Wire()), seed=1)
    sim.run(until=lambda: sim.now > HOUR)
    assert [end.state for end in ends] == ["established"] * 2
    assert sum(end.stats().keepalives for end in ends) > 300
    assert sum(end.stats().challenges_held for end in ends) == 0


def test_no_keepalive_before_it_is_open_nor_in_time_wait():
    peer = Peer(**KEEP, msl_ns=HOUR)
    peer.take()
    assert peer.core.deadline() == peer.now + SECOND
    peer.give("SA", IRS, ISS + 1)
    peer.take()
    peer.core.close()
    peer.take()
    peer.give("FA", IRS + 1, ISS + 2)
    peer.take()
    assert peer.core.state == "time_wait"
    peer.later()
    assert peer.take() is None
    assert peer.core.deadline() > HOUR


# -- the user timeout


@pytest.mark.rfc("9293", "SHLD-9", "SHLD-10")
def test_the_user_hears_of_the_third_retransmission_once_a_stall():
    peer = Peer(give_up_ns=1_000_000 * SECOND).established()
    for _ in range(2):
        peer.core.write(b"abc")
        peer.take()
        for n in range(1, 6):
            peer.later()
            assert peer.take() is not None
            assert peer.core.events() == (["stalled"] if n == 3 else [])
        peer.give("A", IRS + 1, ISS + 1 + peer.core.stats().sent_bytes)
    for _ in range(30):  # whoever takes no events loses no others
        peer.core.write(b"abc")
        while peer.take():
            pass
        for _ in range(4):
            peer.later()
            peer.take()
        peer.give("A", IRS + 1, ISS + 1 + peer.core.stats().sent_bytes)
    peer.give("R", IRS + 1)
    assert peer.core.events() == ["stalled", "stalled", "reset"]


@pytest.mark.rfc("9293", "MUST-21")
def test_the_user_timeout_changes_while_it_is_open():
    peer = Peer().established()
    peer.core.write(b"abc")
    peer.take()
    peer.core.set("give_up_ns", 3 * SECOND, peer.now)
    start = peer.now
    while peer.core.state == "established":
        peer.later()
        peer.take()
    assert peer.core.events()[-1] == "timeout"
    assert 3 * SECOND <= peer.now - start < 9 * SECOND


@pytest.mark.rfc("5482", "2", "3")
def test_the_option_tells_and_the_longer_wish_counts_within_bounds():
    for ours, theirs, agreed in (
        (0, 300, 300),
        (0, 10, 180),
        (0, 0x8000 | 10, 600),
        (0, 0xFFFF, 3600),
        (0, 0, 180),
    ):
        peer = Peer(user_timeout=1, give_up_ns=ours)
        assert told(peer.take()) == 180
        peer.give("SA", IRS, ISS + 1, options=[("MSS", 1000), *uto(theirs)])
        first = peer.take()
        assert told(first) == 180  # our own wish
        assert peer.core.info().give_up_ns == agreed * SECOND
        peer.core.write(b"x" * 3000)
        assert [len(s.payload) for s in iter(peer.take, None)] == [1000] * 3
        peer.give("A", IRS + 1, ISS + 3001, options=uto(1000))
        assert peer.core.info().give_up_ns == 1000 * SECOND  # its latest


@pytest.mark.rfc("5482", "3.1")
def test_who_has_set_it_is_not_changed_and_without_the_switch_nothing_is_said_or_heard():
    fixed = Peer(user_timeout=1, give_up_ns=5000 * 60 * SECOND)
    assert told(fixed.take()) == 0x8000 | 5000
    fixed.give("SA", IRS, ISS + 1, options=uto(300))
    assert fixed.core.info().give_up_ns == 5000 * 60 * SECOND
    silent = Peer()
    assert told(silent.take()) is None
    silent.give("SA", IRS, ISS + 1, options=uto(300))
    assert told(silent.take()) is None
    assert silent.core.info().give_up_ns == 180 * SECOND
    fixed.take()
    fixed.core.set("give_up_ns", 200 * SECOND, fixed.now)
    assert told(fixed.take()) == 200
    assert fixed.take() is None


def test_full_segments_leave_room_for_the_option():
    peer = Peer(user_timeout=1)
    peer.take()
    peer.give("SA", IRS, ISS + 1, options=[("MSS", 1000)])
    peer.core.write(b"x" * 2000)
    sent = list(iter(peer.take, None))
    assert [(len(s.payload), told(s)) for s in sent] == [(996, 180), (1000, None), (4, None)]


# -- orphans


@pytest.mark.rfc("9293", "MUST-37")
@pytest.mark.parametrize("answers", [True, False])
def test_who_was_left_with_a_closed_window_is_waited_for_as_long_as_the_user_would_have(answers):
    two = Two(a={"give_up_ns": 100 * SECOND})
    mine, theirs = two.pair()
    written = two.a.stack.write(mine, b"x" * 65_536)
    two.later(1)
    written += two.a.stack.write(mine, b"x" * 65_536)
    two.later(600)  # its user is there: it waits
    assert two.state(two.a, mine) == "established"
    two.a.stack.close(mine, two.now)
    begin = two.now
    if not answers:
        two.b.stack.close(theirs, two.now)
    two.run(lambda: two.a.check()["connections"] == 0)
    assert two.a.check()["orphans_timed_out"] == answers
    if answers:
        assert 100 * SECOND <= two.now - begin < 300 * SECOND
        two.later(1)
        assert "reset" in two.b.seen[theirs]


# -- settings


def test_each_setting_that_cannot_be_is_one_sentence():
    end = End()
    number = end.stack.connect((B, 80), 0)
    for name, (least, most) in BOUNDS.items():
        for value in (-1, most + 1, *([least - 1] if least > 1 else [])):
            with pytest.raises(ConfigError, match=rf"TCP setting {name}: {value:,} is not from .* to .*"):
                end.stack.connect((B, 80), 0, **{name: value})
        end.stack.connect((B, 81), 0, local=("", 1000 + list(BOUNDS).index(name)), **{name: most})
        if name in SET:
            with pytest.raises(ConfigError, match=f"TCP setting {name}"):
                end.stack.set(number, name, -1, 0)
            end.stack.set(number, name, most, 0)
            end.stack.set(number, name, 0, 0)
    with pytest.raises(ConfigError, match="nagle: 'yes' is no whole number"):
        end.stack.connect((B, 80), 0, nagle="yes")
    with pytest.raises(ConfigError, match="mss: only a new connection takes it"):
        end.stack.set(number, "mss", 900, 0)
    with pytest.raises(ConfigError, match="speed: there is none of that name"):
        end.stack.set(number, "speed", 1, 0)
    with pytest.raises(ValueError, match="state"):
        end.stack.set(12345, "nagle", 1, 0)
    assert set(SET) <= set(BOUNDS)


def test_small_segments_need_no_more_memory_than_their_place_has():
    two = Two(a={"connections": 4, "mss": 1460}, b={"connections": 4})
    pairs = [two.pair(mss=mss) for mss in (64, 1460, 64)]
    for i, (mine, _) in enumerate(pairs):
        two.a.stack.write(mine, bytes([i]) * 40_000)
    two.later(20)
    for i, (_, theirs) in enumerate(pairs):
        assert two.b.stack.read(theirs) == bytes([i]) * 40_000


VALUES = {
    "nagle": 1,
    "delayed_ack_ns": 40 * MILLISECOND,
    "give_up_ns": 300 * SECOND,
    "keepalive": 1,
    "keep_idle_ns": 50 * MILLISECOND,
    "keep_interval_ns": 20 * MILLISECOND,
    "keep_count": 100,
}
STEPS = st.tuples(st.sampled_from(sorted(VALUES)), st.booleans(), st.booleans(), st.integers(0, 9000))


@settings(deadline=None)
@given(st.integers(0, 1000), st.lists(STEPS, max_size=40))
def test_settings_that_change_in_the_middle_lose_no_byte(seed, steps):
    one, other = (TcpCore((ME, 1), (PEER, 2), iss=1, user_timeout=1), TcpCore((PEER, 2), None, iss=9))
    wire = Wire(loss=0.02, latency=5 * MILLISECOND)
    sim = Sim((one, other), (ME, PEER), (wire, wire), seed)
    text, got, at = bytes(i % 251 for i in range(20_000)), bytearray(), 0

    def some_time():
        until = sim.now + 20 * MILLISECOND
        sim.run(until=lambda: sim.now > until)
        got.extend(other.read())

    sim.run(until=lambda: other.state == "established")
    for name, mine, on, size in steps:
        (one if mine else other).set(name, VALUES[name] if on else 0, sim.now)
        at += one.write(text[at : at + size])
        some_time()
    for _ in range(2000):
        at += one.write(text[at:]) if at < len(text) else 0
        some_time()
        if len(got) == len(text):
            break
    assert bytes(got) == text
