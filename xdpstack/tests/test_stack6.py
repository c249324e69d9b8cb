"""stack: TCP over IPv6: from the first question for a neighbour to the end, errors, sizes, cookies."""

from __future__ import annotations

import errno
import random

import pytest

from xdpstack.errors import ConfigError
from xdpstack.sim import MILLISECOND, SECOND, Wire
from xdpstack.tests.host6_driver import S, raw
from xdpstack.tests.stack_driver import A6, B6, MACS, A, B, End, Two
from xdpstack.tests.test_stack import User, at_rest, closed

ENDS = (A6, B6)
ROUTER = "2001:db8:ffff::1"


def alone(**settings):
    end = End(A6, **settings)
    end.host.add_neighbour(B6, MACS[B6])
    return end


def sent(end, now):
    """The packets that leave now."""
    found = []
    while frame := end.output(now):
        found.append(S.Ether(frame)[S.IPv6])
    return found


def segment(flags, seq=100, ack=0, data=b"", port=80, **fields):
    tcp = S.TCP(sport=9, dport=port, flags=flags, seq=seq, ack=ack, **fields)
    return bytes(S.Ether(src=MACS[B6], dst=MACS[A6]) / S.IPv6(src=B6, dst=A6) / tcp / S.Raw(data))


def test_a_connection_from_the_first_question_for_its_neighbour_to_its_end():
    two = Two(known=False, ends=ENDS)
    mine, theirs = two.pair()
    assert two.a.host.stats()["ndp_learned"] >= 1
    two.a.stack.write(mine, b"hello")
    two.run(lambda: "readable" in two.b.seen[theirs])
    assert two.b.stack.read(theirs) == b"hello"
    local, remote = two.b.stack.ends(theirs)
    assert local == (B6, 80)
    assert (remote, local) == two.a.stack.ends(mine)
    closed(two, mine, theirs)
    at_rest(two)


@pytest.mark.parametrize("number", range(6))
def test_many_connections_over_a_bad_wire_carry_their_own_bytes(number):
    chance = random.Random(number)
    wire = Wire(loss=0.02, reorder=0.05, duplicate=0.02, jitter=MILLISECOND, latency=2 * MILLISECOND)
    two = Two(wire, number, a={"connections": 8, "msl_ns": SECOND}, b={"connections": 8}, ends=ENDS)
    listener = two.b.stack.listen(80)
    texts = [(chance.randbytes(chance.randrange(100_000)), chance.randbytes(5000)) for _ in range(4)]
    users = [User(two.a, two.a.stack.connect((B6, 80), two.now), text) for text, _ in texts]
    answers = {two.a.stack.ends(u.number)[0]: answer for u, (_, answer) in zip(users, texts, strict=True)}
    others = []

    def act():
        while taken := two.b.stack.accept(listener):
            two.b.seen.setdefault(taken, set()).add("open")
            others.append(User(two.b, taken, answers[two.b.stack.ends(taken)[1]]))
        for user in users + others:
            user.act(two.now)

    two.act = act
    two.run()
    assert len(others) == len(users)
    assert all(bytes(u.got) == answer for u, (_, answer) in zip(users, texts, strict=True))
    assert sorted(len(u.got) for u in others) == sorted(len(text) for text, _ in texts)
    two.b.stack.unlisten(listener)
    at_rest(two)


@pytest.mark.rfc("9293", "MUST-12")
def test_nobody_listens_refused_and_the_reset_is_as_scapy_builds_it():
    two = Two(ends=ENDS)
    mine = two.a.stack.connect((B6, 81), two.now)
    two.run()
    assert two.a.seen[mine] == {"refused"}
    end = alone()
    end.stack.frame(segment("PA", ack=77, data=b"abc"), 0)
    frame = S.Ether(end.stack.output(0))
    assert (str(frame[S.TCP].flags), frame[S.TCP].seq) == ("R", 77)
    del frame[S.TCP].chksum, frame[S.IPv6].plen
    again = bytes(frame)
    end.stack.frame(segment("PA", ack=77, data=b"abc"), 0)
    assert end.stack.output(0) == again


def test_a_neighbour_that_never_answers_is_told_before_any_timer():
    two = Two(Wire(loss=1.0), known=False, ends=ENDS)
    mine = two.a.stack.connect((B6, 80), two.now)
    begin = two.now
    two.run(lambda: mine in two.a.seen)
    assert two.a.seen[mine] == {"unreachable"}
    assert two.now - begin == 3 * SECOND


@pytest.mark.parametrize("remote", ["2001:db9::1", "ff02::1", "::", A6, B])
def test_where_no_way_leads_nothing_begins(remote):
    end = End(A6)
    with pytest.raises((OSError, ConfigError)) as caught:
        end.stack.connect((remote, 80), 0)
    if remote != B:  # no address of that family
        assert caught.value.errno == errno.ENETUNREACH
    with pytest.raises(ConfigError):
        end.stack.connect((B6, 80), 0, local=("2001:db8::77", 0))
    with pytest.raises(ConfigError):
        end.stack.listen(80, address="2001:db8::77")


def test_one_listener_takes_both_families_and_one_on_an_address_its_own():
    end = alone(host={"addresses": [f"{A6}/64", f"{A}/24"]})
    end.host.add_neighbour(B, MACS[B])
    any_one = end.stack.listen(80)
    with pytest.raises(OSError, match="in use"):
        end.stack.listen(80, address=A6)
    only = end.stack.listen(81, address=A6)
    ip4 = S.Ether(src=MACS[B], dst=MACS[A]) / S.IP4(src=B, dst=A)
    for frame in (segment("S"), bytes(ip4 / S.TCP(sport=9, dport=80, flags="S"))):
        end.stack.frame(frame, 0)
        assert S.Ether(end.stack.output(0))[S.TCP].flags == "SA"
    end.stack.frame(bytes(ip4 / S.TCP(sport=9, dport=81, flags="S")), 0)
    assert S.Ether(end.stack.output(0))[S.TCP].flags == "RA"
    end.stack.frame(segment("S", port=81), 0)
    assert S.Ether(end.stack.output(0))[S.TCP].flags == "SA"
    end.stack.unlisten(any_one)
    end.stack.unlisten(only)


# ---- sizes ---------------------------------------------------------------------------------------


def mss_of(packet):
    return dict(packet[S.TCP].options)["MSS"]


@pytest.mark.parametrize(("mtu", "mss"), [(0, 1440), (1500, 1440), (1280, 1220), (9000, 8940)])
def test_a_segment_is_as_large_as_the_link_and_both_headers_leave_it(mtu, mss):
    end = alone(host={"mtu": mtu})
    end.stack.connect((B6, 80), 0)
    (syn,) = sent(end, 0)
    assert mss_of(syn) == mss
    end.stack.listen(80)
    end.stack.frame(segment("S", options=[("MSS", 9999)]), 0)
    (both,) = sent(end, 0)
    assert mss_of(both) == mss


@pytest.mark.rfc("9293", "MUST-15")
def test_who_names_no_size_is_sent_1220_bytes_at_most():
    end = alone()
    listener = end.stack.listen(80)
    end.stack.frame(segment("S"), 0)
    (answer,) = sent(end, 0)
    end.stack.frame(segment("A", seq=101, ack=answer[S.TCP].seq + 1), 0)
    number = end.stack.accept(listener)
    end.stack.write(number, b"x" * 4000)
    assert [len(p[S.TCP].payload) for p in sent(end, 0)] == [1220, 1220, 1220, 340]


def test_frames_are_never_larger_than_the_links():
    two = Two(ends=ENDS)
    mine, theirs = two.pair()
    seen = []
    before = two.b.stack.frame
    two.b.stack.frame = lambda frame, now: seen.append(len(frame)) or before(frame, now)
    two.a.stack.write(mine, b"x" * 20_000)
    two.run(lambda: sum(map(len, [two.b.stack.read(theirs)])) == 0 and len(seen) > 14)
    assert max(seen) == 14 + 1500
    assert two.a.stack.info(mine)["mss"] == 1428


# ---- errors --------------------------------------------------------------------------------------


def error(packet, kind, quoted=1232):
    head = S.Ether(src=MACS[B6], dst=MACS[A6]) / S.IPv6(src=ROUTER, dst=A6)
    return bytes(head / kind / S.Raw(bytes(packet)[:quoted]))


def connecting():
    end = alone()
    number = end.stack.connect((B6, 80), SECOND)
    (syn,) = sent(end, SECOND)
    return end, number, syn


HARD = {1: "unreachable", 4: "refused", 5: "unreachable", 6: "unreachable"}


@pytest.mark.rfc("9293", "MUST-54")
@pytest.mark.parametrize("code", range(8))
def test_before_it_is_open_what_cannot_get_better_ends_it(code):
    end, number, syn = connecting()
    end.input(error(syn, S.ICMPv6DestUnreach(code=code)), "", "", 2 * SECOND)
    end.look()
    assert end.seen.get(number, set()) == ({HARD[code]} if code in HARD else set())
    assert sent(end, 2 * SECOND) == []
    assert end.check()["errors"] == 1
    assert end.stack.trouble(number).startswith(f"{ROUTER} said: ")


def test_a_protocol_that_nobody_knows_there_is_a_refusal():
    end, number, syn = connecting()
    end.input(error(syn, S.ICMPv6ParamProblem(code=1, ptr=6)), "", "", SECOND)
    end.look()
    assert end.seen[number] == {"refused"}


def test_forged_errors_end_nothing():
    end, number, syn = connecting()
    other = syn.copy()
    other[S.TCP].seq ^= 0x10000
    end.input(error(other, S.ICMPv6DestUnreach(code=4)), "", "", SECOND)
    other = syn.copy()
    other[S.TCP].dport = 81
    end.input(error(other, S.ICMPv6DestUnreach(code=4)), "", "", SECOND)
    end.look()
    assert number not in end.seen
    assert (end.check()["errors_forged"], end.check()["errors_stray"]) == (1, 1)


def test_a_path_that_takes_less_is_learned_and_what_is_out_goes_again_smaller():
    end = alone()
    listener = end.stack.listen(80)
    end.stack.frame(segment("S", options=[("MSS", 1440)], window=60000), 0)
    (answer,) = sent(end, 0)
    end.stack.frame(segment("A", seq=101, ack=answer[S.TCP].seq + 1, window=60000), 0)
    number = end.stack.accept(listener)
    end.stack.write(number, bytes(range(256)) * 15)
    large = sent(end, 0)
    assert len(bytes(large[0])) == 1500
    end.input(error(large[0], S.ICMPv6PacketTooBig(mtu=1300)), "", "", MILLISECOND)
    again = sent(end, MILLISECOND)
    assert {len(bytes(p)) <= 1300 for p in again} == {True}
    assert b"".join(bytes(p[S.TCP].payload) for p in again)[:2880] == (bytes(range(256)) * 15)[:2880]
    for mtu in (1279, 68, 0):
        end.input(error(again[0], S.ICMPv6PacketTooBig(mtu=mtu)), "", "", MILLISECOND)
    end.stack.write(number, b"x" * 1240)
    assert end.stack.info(number)["mss"] == 1300 - 60


# ---- cookies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "mss"), [([("MSS", 1440)], 1440), ([], 1220), ([("MSS", 1300)], 1300)])
def test_a_full_backlog_answers_by_a_cookie_that_opens(options, mss):
    end = alone()
    listener = end.stack.listen(80, backlog=1)
    end.stack.frame(segment("S", seq=5, options=options), 0)
    sent(end, 0)
    tcp = S.TCP(sport=10, dport=80, flags="S", seq=7, options=options)
    head = S.Ether(src=MACS[B6], dst=MACS[A6]) / S.IPv6(src=B6, dst=A6)
    end.stack.frame(bytes(head / tcp), 0)
    (answer,) = sent(end, 0)
    assert (mss_of(answer), end.check()["cookies_sent"]) == (1440, 1)
    ack = S.TCP(sport=10, dport=80, flags="A", seq=8, ack=answer[S.TCP].seq + 1)
    end.stack.frame(bytes(head / ack), 0)
    number = end.stack.accept(listener)
    assert end.check()["cookies_taken"] == 1
    assert end.stack.ends(number) == ((A6, 80), (B6, 10))
    assert end.stack.info(number)["mss"] == mss
    assert raw(A6) != raw(B6)
