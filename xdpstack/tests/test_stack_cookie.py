"""SYN cookies (RFC 4987 3.6): a full backlog keeps nobody out, and nothing is remembered of who only asks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack.errors import ConfigError
from xdpstack.sim import MILLISECOND, SECOND
from xdpstack.tests.stack_driver import MACS, A, B, End, Two, never
from xdpstack.tests.tcp_peer import scapy

Ether, IP, TCP, Raw = (getattr(scapy, name) for name in ("Ether", "IP", "TCP", "Raw"))
NOP = ("NOP", None)
MINUTE = 64 * SECOND
ALL = [("MSS", 1300), NOP, ("WScale", 7), ("SAckOK", b""), ("Timestamp", (500, 0))]


class Flooded(End):
    """10.0.0.1, whose listener on port 80 has no room for another half-open one; we are 10.0.0.2, by hand."""

    def __init__(self, half_open=2, backlog=2, listen=None, **settings):
        super().__init__(A, connections=8, **settings)
        self.host.add_neighbour(B, MACS[B])
        self.now = 1000 * SECOND
        self.listener = self.stack.listen(80, backlog=backlog, **(listen or {}))
        for port in range(half_open):
            self.give("S", 1, sport=100 + port)
        self.take()

    def give(self, flags, seq, ack=0, data=b"", options=(), sport=9, window=1000):
        tcp = TCP(sport=sport, dport=80, flags=flags, seq=seq % 2**32, ack=ack % 2**32, window=window)
        tcp.options = list(options)
        whole = Ether(src=MACS[B], dst=MACS[A]) / IP(src=B, dst=A) / tcp / Raw(data)
        return self.stack.frame(bytes(whole), self.now)

    def take(self):
        """Every segment that it sends now, checksums verified."""
        found = []
        while frame := self.stack.output(self.now):
            again = Ether(frame)
            del again[TCP].chksum, again[IP].chksum, again[IP].len
            assert bytes(again) == frame
            found.append(Ether(frame)[TCP])
        return found

    def cookie(self, options=(), **how):
        """Ask, and what was answered."""
        self.give("S", 77, options=options, **how)
        (answer,) = self.take()
        assert (str(answer.flags), answer.ack) == ("SA", 78)
        return answer

    def accepted(self):
        number = self.stack.accept(self.listener)
        return self.stack.info(number) if number else None


def stamp(value, echo):
    return [NOP, NOP, ("Timestamp", (value, echo))]


@pytest.mark.rfc("4987", "3.6")
def test_a_syn_past_the_backlog_is_answered_and_its_ack_makes_a_connection():
    end = Flooded()
    before = end.check()["connections"]
    answer = end.cookie(ALL)
    assert end.check()["connections"] == before == 2
    assert end.check()["reasons"] == {"cookie": 1}
    options = dict(answer.options)
    assert options["MSS"] == 1460
    assert options["Timestamp"][1] == 500
    end.now += 5 * MILLISECOND
    end.give("A", 78, answer.seq + 1, b"hello", stamp(501, options["Timestamp"][0]), window=100)
    (ack,) = end.take()
    assert (str(ack.flags), ack.ack) == ("A", 83)
    assert end.check()["cookies_taken"] == 1
    info = end.accepted()
    assert (info["state"], info["mss"], info["sack"], info["stamps"]) == ("established", 1288, 1, 1)
    assert info["send_window"] == 100 << 7
    assert info["srtt_ns"] == 0  # the echo was no stamp of ours


@pytest.mark.rfc("4987", "3.6")
@pytest.mark.parametrize(
    ("named", "kept"),
    [(None, 536), (40, 64), (64, 64), (535, 64), (536, 536), (1299, 1220), (1460, 1460), (9000, 1460)],
)
def test_without_stamps_only_the_size_is_kept(named, kept):
    end = Flooded()
    options = [("WScale", 7), ("SAckOK", b"")] + ([("MSS", named)] if named else [])
    answer = end.cookie(options)
    assert [name for name, _ in answer.options] == ["MSS"]
    end.give("A", 78, answer.seq + 1, window=100)
    info = end.accepted()
    assert (info["mss"], info["sack"], info["stamps"], info["send_window"]) == (kept, 0, 0, 100)


def test_data_flows_both_ways_over_such_a_connection():
    end = Flooded(receive_bytes=1 << 20)
    answer = end.cookie(ALL)
    assert dict(answer.options)["WScale"] == 5
    echo = dict(answer.options)["Timestamp"][0]
    end.give("A", 78, answer.seq + 1, options=stamp(501, echo))
    number = end.stack.accept(end.listener)
    end.stack.write(number, b"x" * 3000)
    sent = end.take()
    assert [len(s.payload) for s in sent] == [1288, 1288, 424]
    stamps = [dict(s.options)["Timestamp"][0] for s in sent]
    assert all((later - echo) % 2**32 < 2**31 for later in stamps)  # none is older than the cookie's
    end.give("A", 78, answer.seq + 3001, b"y" * 500, options=stamp(502, stamps[0]))
    assert end.stack.read(number) == b"y" * 500
    assert end.stack.info(number)["outstanding"] == 0


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 63), st.booleans(), st.integers(0, 14))
def test_the_stamp_of_a_cookie_is_never_ahead_of_the_clock(ticks, shift_ticks, sack, shift):
    end = Flooded()
    end.now = max(end.now, (ticks + shift_ticks) * MILLISECOND)
    options = [("WScale", shift), *([("SAckOK", b"")] if sack else []), ("Timestamp", (1, 0))]
    told = dict(end.cookie(options).options)["Timestamp"][0]
    plain = Flooded(half_open=0)  # the same secret and ends: what it would have said
    plain.now = end.now
    clock = dict(plain.cookie(options).options)["Timestamp"][0]
    assert (clock - told) % 2**32 < 128
    assert told & 63 == shift | (16 if sack else 0)


def answered_by_reset(end, seq, ack):
    end.give("A", seq, ack)
    (reset,) = end.take()
    assert (str(reset.flags), reset.seq) == ("R", ack % 2**32)
    assert end.accepted() is None


def test_what_is_no_cookie_is_reset():
    end = Flooded()
    answer = end.cookie()
    for seq, ack in ((78, answer.seq - 1), (78, answer.seq + 1 + 8), (79, answer.seq + 1), (78, 5), (5, 78)):
        answered_by_reset(end, seq, ack)
    assert end.check()["cookies_bad"] == 5
    end.give("A", 78, answer.seq + 1, sport=10)  # of other ends
    assert str(end.take()[0].flags) == "R"
    for flags in ("SA", "RA", ""):
        end.give(flags, 78, answer.seq + 1)
        end.take()
    assert end.check()["cookies_taken"] == 0
    other = Flooded(secret=b"z" * 16)
    other.cookie()
    answered_by_reset(other, 78, answer.seq + 1)


@pytest.mark.parametrize(("minutes", "good"), [(0.1, True), (0.9, True), (2.1, False), (300, False)])
def test_cookies_grow_old(minutes, good):
    end = Flooded()
    end.now = 1000 * MINUTE
    answer = end.cookie()
    end.now += int(minutes * MINUTE)
    end.give("A", 78, answer.seq + 1)
    assert (end.accepted() is not None) == good


def test_an_ack_is_looked_at_only_where_cookies_were_sent():
    end = Flooded(half_open=0)
    answered_by_reset(end, 78, 5)
    assert end.check()["cookies_bad"] == 0
    end = Flooded(cookies=False)
    end.give("S", 77)
    assert end.take() == []
    assert end.check()["reasons"] == {"backlog": 1}
    answered_by_reset(end, 78, 5)
    assert end.check()["cookies_sent"] == end.check()["cookies_bad"] == 0


def test_who_finds_the_queue_full_is_taken_with_what_it_writes_later():
    end = Flooded(half_open=1, backlog=1)
    answers = {port: end.cookie(sport=port) for port in (9, 10)}
    for port, answer in answers.items():
        end.give("A", 78, answer.seq + 1, sport=port)
    assert end.check()["reasons"] == {"cookie": 2, "backlog": 1}
    end.give("S", 1, sport=11)  # as many wait as may: no cookie either
    assert end.take() == []
    assert end.check()["reasons"]["backlog"] == 2
    assert end.accepted() is not None
    end.give("A", 78, answers[10].seq + 1, b"again", sport=10)
    assert end.accepted()["unread"] == 5


def test_every_place_taken_is_no_reason_to_drop_a_syn():
    end = Flooded(half_open=8, backlog=100)
    answer = end.cookie()
    end.give("A", 78, answer.seq + 1)
    assert end.check()["reasons"] == {"cookie": 1, "full": 1}
    end.give("R", 2, sport=100)  # one place comes free
    end.take()
    end.give("A", 78, answer.seq + 1)
    assert end.accepted() is not None


def test_cookies_that_wait_are_bounded():
    end = Flooded()
    for port in range(1000, 1100):
        end.give("S", 1, sport=port)
    stats = end.check()
    assert stats["cookies_lost"] == 100 - 32
    assert stats["reasons"] == {"cookie": 100}
    assert len(end.take()) == 32
    assert end.check()["cookies_sent"] == 32


def test_who_is_not_accepted_is_let_go_with_the_listener():
    end = Flooded()
    answer = end.cookie()
    end.give("A", 78, answer.seq + 1)
    end.stack.unlisten(end.listener)
    assert sorted(str(s.flags) for s in end.take()) == ["RA"] * 3
    assert end.check()["connections"] == 0
    assert never(end)


@pytest.mark.rfc("4987", "3.6")
def test_a_flood_disturbs_neither_who_is_there_nor_who_comes():
    """Three thousand SYNs in a third of a second, from one who never answers, while one connection carries
    data and others are opened, used and closed."""
    two = Two(a={"connections": 16}, b={"connections": 32, "msl_ns": MILLISECOND})
    mine, theirs = two.pair()
    two.b.host.add_neighbour("10.0.0.77", MACS[A])
    listener = two.b.stack.listen(80, backlog=4)
    chance = random.Random(1)
    text, got, written, opened, done = chance.randbytes(250_000), bytearray(), 0, [], 0
    for _ in range(300):
        for _ in range(10):
            tcp = TCP(
                sport=chance.randrange(65536), dport=80, flags="S", seq=chance.randrange(2**32), options=ALL
            )
            whole = Ether(src=MACS[A], dst=MACS[B]) / IP(src="10.0.0.77", dst=B) / tcp
            two.b.stack.frame(bytes(whole), two.now)
        written += two.a.stack.write(mine, text[written : written + 1000]) if written < len(text) else 0
        if len(opened) < 3:
            opened.append(two.a.stack.connect((B, 80), two.now))
            two.a.stack.write(opened[-1], b"let me in")
        two.later(0.001)
        got += two.b.stack.read(theirs)
        while taken := two.b.stack.accept(listener):
            two.later(0.01)
            assert two.b.stack.read(taken) == b"let me in"
            two.b.stack.close(taken, two.now)
        for one in [n for n in opened if "fin" in two.a.seen.get(n, ())]:
            two.a.stack.close(one, two.now)
            opened.remove(one)
            done += 1
    two.later(1)
    got += two.b.stack.read(theirs, 65536)
    stats = two.b.check()
    assert bytes(got) == text[:written]
    assert written == len(text)
    assert done > 20
    assert stats["cookies_taken"] > 20
    assert stats["cookies_sent"] > 1000
    assert stats["connections_max"] <= 4 + 4 + 8
    assert stats["reasons"].keys() <= {"cookie", "backlog", "no_connection"}
    assert two.a.stack.info(mine)["timeouts"] == 0


@pytest.mark.rfc("9293", "SHLD-4")
@pytest.mark.rfc("6191", "2")
@pytest.mark.parametrize(("newer", "opens"), [(1, True), (0, False), (-1, False)])
def test_a_newer_stamp_opens_a_connection_in_time_wait_anew(newer, opens):
    end = Flooded(half_open=0)
    end.give("S", 77, options=ALL)
    (answer,) = end.take()
    end.give("A", 78, answer.seq + 1, options=stamp(600, 1))
    end.stack.close(end.stack.accept(end.listener), end.now)
    end.take()
    end.give("FA", 78, answer.seq + 2, options=stamp(600, 1))
    end.take()
    assert end.check()["time_waits"] == 1
    again = [("MSS", 1300), ("Timestamp", (600 + newer, 0))]
    end.give("S", 50, options=again)  # a number that the old one had behind it
    assert [str(s.flags) for s in end.take()] == ["SA" if opens else "A"]


def test_whom_a_listener_accepts_has_its_settings():
    end = Flooded(half_open=0, listen={"mss": 700, "no_sack": 1, "keepalive": 1, "keep_idle_ns": SECOND})
    end.give("S", 77, options=ALL)
    (answer,) = end.take()
    assert dict(answer.options)["MSS"] == 700
    assert "SAckOK" not in dict(answer.options)
    end.give("A", 78, answer.seq + 1, options=stamp(501, 1))
    assert end.accepted()["mss"] == 688
    assert end.deadline() == end.now + SECOND
    with pytest.raises(ConfigError, match="TCP setting mss: 10 is not from 64"):
        end.stack.listen(81, mss=10)
