"""channel.c and session.c: arbitration, gaps, restarts, against plain sets and a real capture."""

from __future__ import annotations

import gzip
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.tests.channel_model import Channel, check_truth, cme, iex, mold, plain

PLAIN, MOLD, IEX, CME = (
    lib.XDS_SESSION_PLAIN, lib.XDS_SESSION_MOLD64, lib.XDS_SESSION_IEXTP, lib.XDS_SESSION_CME,
)  # fmt: skip
CAPTURES = Path(__file__).resolve().parent.parent / "captures"
SERVER = {"request_max": 10, "retries": 3}


def packet(session: int, seq: int, units: int = 1, ns: int | None = None) -> bytes:
    """A packet whose messages say their own sequence number; sent at ns, by default as seq rises."""
    messages = [struct.pack("<Q", seq + i) for i in range(units)]
    ns = 1000 + seq if ns is None else ns
    if session == MOLD:
        return mold(seq, messages)
    if session == IEX:
        return iex(seq, messages, ns)
    return cme(seq, ns, messages[0]) if session == CME else plain(seq, messages[0])


@pytest.mark.parametrize("session", [PLAIN, MOLD, IEX, CME])
def test_two_lines_make_one_stream_in_order_and_the_first_copy_wins(session):
    c = Channel(session)
    for seq in range(5, 25):
        assert c.input(seq % 2, packet(session, seq)) == 1
        assert c.input(1 - seq % 2, packet(session, seq)) == 0
    check_truth(c, 5, 25, session in (MOLD, IEX))
    assert [c.line(i).won for i in (0, 1)] == [10, 10]
    assert [c.line(i).duplicate for i in (0, 1)] == [10, 10]
    assert c.events == [(lib.XDS_EVENT_JOINED, 5, 0)]
    assert c.line(0).lost == c.line(1).lost == 0


@pytest.mark.parametrize("session", [PLAIN, MOLD, IEX, CME])
def test_the_other_line_fills_a_gap_within_the_window(session):
    c = Channel(session)
    c.input(0, packet(session, 1))
    assert c.input(0, packet(session, 3), now=10) == 0
    assert c.deadline == 1010
    assert c.input(1, packet(session, 2), now=20) == 1
    check_truth(c, 1, 4, session in (MOLD, IEX))
    s = c.stats
    assert (s.gaps_found, s.gaps_filled, s.units_filled, s.gaps_open) == (1, 1, 1, 0)
    assert c.deadline == lib.XDS_NEVER
    assert not any(flags for *_, flags in c.blocks)
    assert c.line(0).lost == 1


@pytest.mark.parametrize("session", [PLAIN, MOLD, IEX, CME])
def test_without_a_server_a_gap_is_given_up_after_the_window_and_what_comes_then_is_late(session):
    c = Channel(session)
    c.input(0, packet(session, 1))
    c.input(0, packet(session, 4), now=10)
    c.tick(1009)
    assert len(c.blocks) == 1
    c.tick(1010)
    assert c.blocks[-1][0] == 4
    assert c.blocks[-1][4] == lib.XDS_BLOCK_AFTER_GAP | lib.XDS_BLOCK_STALE
    assert c.events[-1] == (lib.XDS_EVENT_GAP_LOST, 2, 2)
    assert c.input(1, packet(session, 2), now=1011) == 0
    assert c.line(1).late == 1
    c.input(0, packet(session, 5))
    assert c.blocks[-1][4] == lib.XDS_BLOCK_STALE


def test_a_gap_is_asked_for_with_back_off_only_for_what_is_missing_then_given_up():
    c = Channel(MOLD, **SERVER)
    c.input(0, packet(MOLD, 1))
    c.input(0, packet(MOLD, 8), now=0)
    assert c.requests(999) == []
    assert c.requests(1000) == [(b"SESSION001", 2, 6)]
    c.input(1, packet(MOLD, 4, 2), now=1100)
    assert c.requests(3000) == [(b"SESSION001", 2, 2), (b"SESSION001", 6, 2)]
    assert c.requests(6999) == []
    assert c.requests(7000) == [(b"SESSION001", 2, 2), (b"SESSION001", 6, 2)]
    c.tick(14999)
    assert c.stats.gaps_lost == 0
    c.tick(15000)
    assert [b[0] for b in c.blocks] == [1, 4, 8]
    check_truth_events = [e for e in c.events if e[0] == lib.XDS_EVENT_GAP_LOST]
    assert check_truth_events == [(lib.XDS_EVENT_GAP_LOST, 2, 2), (lib.XDS_EVENT_GAP_LOST, 6, 2)]


def test_a_partial_answer_is_asked_on_and_flagged_as_recovered():
    c = Channel(MOLD, **SERVER)
    c.input(0, packet(MOLD, 1))
    c.input(0, packet(MOLD, 30), now=0)
    assert c.requests(1000) == [(b"SESSION001", 2, 10)]
    assert c.input(2, packet(MOLD, 2, 4), now=1100) == 1
    assert c.blocks[-1][4] == lib.XDS_BLOCK_RECOVERED
    assert c.requests(1101) == []  # more of the same answer may be on its way
    assert c.requests(2100) == [(b"SESSION001", 6, 10)]
    assert c.input(2, packet(MOLD, 6, 10), now=2200) == 1
    assert c.requests(2200) == [(b"SESSION001", 16, 10)]  # the whole answer came: at once
    c.input(2, packet(MOLD, 16, 14), now=2300)
    assert [b[0] for b in c.blocks][-1] == 30
    check_truth(c, 1, 31, True)
    c.input(2, packet(MOLD, 16, 14), now=2300)
    assert c.stats.retransmitted_useless == 1
    assert c.stats.retransmitted_packets == 4


def test_partially_overlapping_packets_skip_what_was_delivered():
    c = Channel(MOLD)
    c.input(0, packet(MOLD, 1, 5))
    c.input(1, packet(MOLD, 3, 6))
    assert c.blocks[-1][:2] == (6, 3)
    assert c.blocks[-1][2] == mold(6, [struct.pack("<Q", s) for s in (6, 7, 8)])[20:]
    c.input(0, packet(MOLD, 11, 4))
    c.input(0, packet(MOLD, 10, 6))  # holds the slot before it whole
    c.input(1, packet(MOLD, 9, 1))
    check_truth(c, 1, 16, True)
    assert c.line(0).duplicate == 1


def test_heartbeats_and_the_end_of_a_session_show_a_missing_tail():
    c = Channel(MOLD, **SERVER)
    c.input(0, packet(MOLD, 1))
    c.input(0, mold(4, []), now=5)
    assert (lib.XDS_EVENT_GAP_FOUND, 2, 2) in c.events
    assert c.requests(1005) == [(b"SESSION001", 2, 2)]
    c.input(2, packet(MOLD, 2, 2), now=1006)
    c.input(0, mold(4, [], count=0xFFFF), now=1007)
    c.input(1, mold(4, [], count=0xFFFF), now=1007)
    assert c.stats.ended == 1
    assert c.events[-1] == (lib.XDS_EVENT_END, 4, 0)
    assert c.line(0).heartbeat == 2


def test_a_full_window_without_a_server_gives_up_the_oldest_gap():
    c = Channel(CME, window_packets=4)
    c.input(0, packet(CME, 1))
    for seq in range(3, 13):
        c.input(0, packet(CME, seq))
    check_truth(c, 1, 13, False)
    assert c.stats.units_lost == 1


def test_a_full_window_with_a_server_drops_and_asks_later():
    c = Channel(MOLD, window_packets=2, **SERVER)
    c.input(0, packet(MOLD, 1))
    for seq in (3, 4, 5, 6):
        c.input(0, packet(MOLD, seq), now=1)
    assert c.line(0).no_room == 2
    assert [r[1:] for r in c.requests(1)] == [(2, 1), (5, 2)]
    c.input(2, packet(MOLD, 2), now=2)
    c.input(2, packet(MOLD, 5, 2), now=3)
    check_truth(c, 1, 7, True)


def test_a_packet_larger_than_a_slot_is_refused_ahead_but_delivered_in_order():
    c = Channel(MOLD, slot_bytes=32)
    c.input(0, mold(1, [b"x" * 100]))
    assert len(c.blocks) == 1
    assert c.input(0, mold(3, [b"x" * 100])) == lib.XDS_ECAPACITY
    assert c.line(0).no_room == 1


@pytest.mark.parametrize("session", [PLAIN, MOLD, IEX, CME])
def test_a_wild_sequence_does_not_end_the_stream_but_a_confirmed_one_is_followed(session):
    c = Channel(session)
    c.input(0, packet(session, 1))
    assert c.input(0, packet(session, 5_000_000, ns=1001)) == lib.XDS_EFOREIGN
    assert c.input(0, packet(session, 2)) == 1
    assert c.input(1, packet(session, 9_000_000, ns=1002)) == lib.XDS_EFOREIGN
    c.input(0, packet(session, 100_000))
    c.input(0, packet(session, 100_001))
    c.tick(10_000)
    assert [b[0] for b in c.blocks] == [1, 2, 100_001]
    assert c.stats.units_lost == 99_998


def test_iex_restarts_once_and_old_packets_of_the_slow_line_are_late():
    c = Channel(IEX)
    for seq in range(100, 110):
        c.input(0, packet(IEX, seq))
    for seq in range(100, 105):
        c.input(1, packet(IEX, seq))
    c.input(0, packet(IEX, 2, ns=5002))
    for seq in range(105, 112):  # 110 and 111 only the slow line carried: too late now
        c.input(1, packet(IEX, seq))
    c.input(1, packet(IEX, 1, ns=5001))
    c.input(1, packet(IEX, 2, ns=5002))
    c.input(1, packet(IEX, 3, ns=5003))
    assert c.stats.restarts == 1
    assert [b[0] for b in c.blocks] == [*range(100, 110), 1, 2, 3]
    assert c.blocks[10][4] == lib.XDS_BLOCK_RESTART
    assert c.line(1).late == 7
    assert (lib.XDS_EVENT_RESTART, 2, 110) in c.events
    assert c.line(1).lost == 0
    assert c.line(0).lost == 1


def test_a_fall_with_an_older_or_equal_send_time_is_no_restart():
    c = Channel(IEX)
    for seq in range(1, 50):
        c.input(0, packet(IEX, seq))
    assert c.input(1, packet(IEX, 1, ns=1049)) == 0
    assert c.input(1, packet(IEX, 1, ns=900)) == 0
    assert c.stats.restarts == 0
    assert c.line(1).duplicate == 2


def test_a_restart_releases_what_waited_in_the_old_window():
    c = Channel(IEX)
    c.input(0, packet(IEX, 100))
    c.input(0, packet(IEX, 102))
    c.input(0, packet(IEX, 1, ns=9000))
    assert [b[0] for b in c.blocks] == [100, 102, 1]
    assert [b[4] for b in c.blocks[1:]] == [
        lib.XDS_BLOCK_AFTER_GAP | lib.XDS_BLOCK_STALE,
        lib.XDS_BLOCK_RESTART,
    ]


def test_cme_begins_again_at_one():
    c = Channel(CME)
    for line in (0, 1):
        for seq in range(5, 10):
            c.input(line, packet(CME, seq))
    for line in (0, 1):
        for seq in (1, 2):
            c.input(line, packet(CME, seq, ns=90_000 + seq))
    assert [b[0] for b in c.blocks] == [5, 6, 7, 8, 9, 1, 2]
    assert c.stats.restarts == 1


def test_plain_begins_again_at_zero_and_each_line_follows_by_itself():
    c = Channel(PLAIN)
    for seq in range(30):
        c.input(0, packet(PLAIN, seq), now=seq)
        c.input(1, packet(PLAIN, seq), now=seq)
    c.input(0, packet(PLAIN, 0), now=100)
    c.input(1, packet(PLAIN, 30), now=101)
    c.input(1, packet(PLAIN, 0), now=102)
    c.input(1, packet(PLAIN, 1), now=103)
    assert [b[0] for b in c.blocks] == [*range(30), 0, 1]
    assert c.stats.restarts == 1
    assert c.line(1).late == 1


def test_plain_goes_on_over_the_wrap_of_its_32_bits():
    c = Channel(PLAIN)
    for seq in range(2**32 - 3, 2**32 + 3):
        assert c.input(0, packet(PLAIN, seq)) == 1
    check_truth(c, 2**32 - 3, 2**32 + 3, False)


def test_another_mold_session_begins_a_new_stream_once():
    c = Channel(MOLD)
    c.input(0, packet(MOLD, 7))
    for line in (0, 1):
        c.input(line, mold(1, [b"a"], b"SESSION002"))
    assert c.input(1, packet(MOLD, 8)) == lib.XDS_EFOREIGN
    assert c.stats.sessions == 1
    assert c.blocks[-1][0] == 1
    assert c.input(0, mold(70, [b"a"], b"SESSION003")) == lib.XDS_EFOREIGN
    assert c.input(0, mold(71, [b"a"], b"SESSION003")) == 1
    assert c.stats.sessions == 2


def test_a_fixed_mold_session_refuses_others():
    c = Channel(MOLD, session_name=b"SESSION001")
    assert c.input(0, mold(1, [b"a"], b"SESSION002")) == lib.XDS_EFOREIGN
    assert c.input(0, packet(MOLD, 5)) == 1
    assert c.input(0, mold(1, [b"a"], b"SESSION002")) == lib.XDS_EFOREIGN
    assert c.line(0).foreign == 2


def test_what_lies_before_the_first_packet_is_a_gap_when_asked_to_start_there():
    c = Channel(MOLD, start=lib.XDS_START_FIRST, first_seq=1)
    c.input(0, packet(MOLD, 4))
    assert (lib.XDS_EVENT_GAP_FOUND, 1, 3) in c.events
    c.input(1, packet(MOLD, 1, 3))
    check_truth(c, 1, 5, True)


@pytest.mark.parametrize("session", [PLAIN, MOLD, IEX, CME])
def test_packets_cut_at_every_byte_are_counted_and_never_delivered_twice(session):
    whole = packet(session, 1, 3)
    header = {PLAIN: 8, MOLD: 20, IEX: 40, CME: 12}[session]
    for cut in range(len(whole)):
        c = Channel(session)
        code = c.input(0, whole[:cut])
        if cut < header or session in (MOLD, IEX):
            assert code == lib.XDS_ETRUNC
            assert c.line(0).truncated == 1
        else:
            assert code == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"lines": 0},
        {"lines": 9},
        {"window_packets": 3},
        {"slot_bytes": 0},
        {"request_max": 5},
        {"framing": 9},
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(bad):
    with pytest.raises(ValueError, match="refused"):
        Channel(CME, **bad)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([PLAIN, MOLD, IEX, CME]),
    st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=80)), max_size=40),
)
def test_garbage_is_counted_and_never_breaks_the_books(session, packets):
    c = Channel(session, **(SERVER if session == MOLD else {}))
    for now, (line, data) in enumerate(packets):
        c.input(line, data, now=now * 300)
        c.tick(now * 300)
        c.requests(now * 300)
    c.finish(10**9)
    assert c.stats.gaps_open == 0


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([PLAIN, MOLD, IEX, CME]), st.integers(0, 2**32), st.booleans())
def test_any_loss_and_reordering_gives_the_truth_or_a_reported_gap(session, seed, server):
    rng = random.Random(seed)
    server = server and session == MOLD
    lines = rng.randint(1, 3)
    c = Channel(
        session,
        lines=lines,
        window_packets=rng.choice([8, 32] if session == PLAIN else [2, 8, 32]),
        **(SERVER if server else {}),
    )
    first = seq = rng.choice([0, 1, 777]) if session == PLAIN else rng.choice([1, 777])
    per_message = session in (MOLD, IEX)
    sent, arrivals = [], []
    for t in range(60):
        units = rng.randint(1, 5) if per_message else 1
        sent.append((seq, units))
        for line in range(lines):
            if t == 0 or rng.random() > 0.25:  # everybody hears the first and the last
                for _ in range(2 if rng.random() < 0.1 else 1):
                    arrivals.append(
                        (t * 100 + (rng.randint(0, 600) if t and rng.random() < 0.3 else 0), line, seq, units)
                    )
        seq += units
    end = seq
    arrivals.append((60 * 100 + 700, 0, *sent[-1]))
    arrivals.sort(key=lambda a: a[0])
    carried = [set() for _ in range(lines)]
    for now, line, s, n in arrivals:
        while c.deadline <= now:
            when = c.deadline
            for _, a, count in c.requests(when):
                assert count <= 10
                if rng.random() < 0.6:
                    take = rng.randint(1, count)
                    c.input(lines, packet(MOLD, a, take), now=when)
            c.tick(when)
        carried[line].update(range(s, s + n))
        c.input(line, packet(session, s, n), now=now)
    for _ in range(10_000):
        if c.deadline == lib.XDS_NEVER:
            break
        when = c.deadline
        for _, a, count in c.requests(when):
            if rng.random() < 0.6:
                c.input(lines, packet(MOLD, a, rng.randint(1, count)), now=when)
        c.tick(when)
    c.finish(10**9)
    check_truth(c, first, end, per_message)
    for seq_, count, data, *_ in c.blocks:  # the bytes are those of the units they claim
        if session == MOLD:
            assert data == mold(seq_, [struct.pack("<Q", seq_ + i) for i in range(count)])[20:]
    for line in range(lines):
        assert c.line(line).buffered == 0
        truth = end - first - len(carried[line])  # exact while no more holes are open than are remembered
        assert c.line(line).lost == truth or (c.line(line).lost > truth and truth > 10)


def _iex_payloads():
    """UDP payloads of the capture by a walker of this test's own; its last record is cut short."""
    data = gzip.decompress((CAPTURES / "iex-deep10-2017-04-25.pcap.gz").read_bytes())
    at = 24
    while at + 16 <= len(data):
        _, _, size, _ = struct.unpack_from("<IIII", data, at)
        at += 16
        if at + size > len(data):
            yield data[at + 42 :]
            return
        yield data[at + 14 + (data[at + 14] & 15) * 4 + 8 : at + size]
        at += size


def test_the_iex_capture_has_eleven_restarts_no_gap_and_a_cut_last_packet():
    c = Channel(IEX, lines=1)
    messages, block = 0, ffi.new("struct xds_block *")
    for now, payload in enumerate(_iex_payloads()):
        code = lib.xds_channel_input(c.c, 0, payload, len(payload), now, now)
        messages += struct.unpack_from("<H", payload, 14)[0] if code >= 0 else 0
        if now % 100 == 0:
            c.drain()
            c.blocks.clear()
        else:
            while lib.xds_channel_next(c.c, block):
                pass
    c.drain()
    s = c.stats
    assert s.restarts == 11
    assert c.kinds()[lib.XDS_EVENT_RESTART] == 11
    assert s.gaps_found == 0
    assert s.messages == messages == 391_999
    assert (c.line(0).heartbeat, c.line(0).truncated, c.line(0).packets) == (7_937, 1, 121_315)


def _cme_packets(name):
    """(group, payload) of each datagram, by scapy's reader."""
    scapy = pytest.importorskip("scapy.utils")
    for frame, _ in scapy.RawPcapReader(str(CAPTURES / name)):
        if frame[12:14] == b"\x08\x00" and frame[23] == 17:
            yield frame[30:34], frame[14 + (frame[14] & 15) * 4 + 8 :]


def test_both_lines_of_the_cme_capture_are_one_stream_without_a_gap():
    c = Channel(CME, slot_bytes=2048)
    lines = {}
    for now, (group, payload) in enumerate(_cme_packets("cme-mdp3-v8-line-a-and-b.pcapng")):
        c.input(lines.setdefault(group, len(lines)), payload, now=now)
    assert len(lines) == 2
    check_truth(c, 17_347_815, 17_352_815, False)
    for line in (0, 1):
        assert (c.line(line).packets, c.line(line).lost) == (5_000, 0)
    assert c.line(0).won + c.line(1).won == 5_000
    assert c.stats.restarts == 0
