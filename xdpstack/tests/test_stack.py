"""stack/: two stacks over a wire of frames in virtual time; scapy for what no stack of ours would send."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from pathlib import Path

import pytest

from xdpstack._ffi import lib
from xdpstack.engine import Host
from xdpstack.errors import CapacityError, ConfigError
from xdpstack.memory import Arena
from xdpstack.sim import MILLISECOND, SECOND, Wire
from xdpstack.stack import Stack
from xdpstack.tests.stack_driver import MACS, A, B, End, Two, never

scapy = pytest.importorskip("scapy.all", reason="scapy is the second opinion of this file")
ARP, Ether, IP, TCP, Raw = (getattr(scapy, name) for name in ("ARP", "Ether", "IP", "TCP", "Raw"))
ROOT = Path(__file__).resolve().parents[2]
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def at_rest(two):
    """Nothing is left: no connection, no timer, nobody steered anywhere."""
    for end in (two.a, two.b):
        stats = end.check()
        assert stats["connections"] == stats["time_waits"] == 0
        assert never(end)


def closed(two, mine, theirs):
    two.a.stack.close(mine, two.now)
    two.run(lambda: "fin" in two.b.seen.get(theirs, ()))
    two.b.stack.close(theirs, two.now)
    two.run()


def test_siphash_is_the_papers(tmp_path):
    source = tmp_path / "sip.c"
    source.write_text(
        '#include <stdio.h>\n#include "ground/siphash_inl.h"\nint main(void) { uint8_t k[16], d[64];\n'
        "for (int i = 0; i < 64; i++) { d[i] = (uint8_t)i; if (i < 16) k[i] = (uint8_t)i; }\n"
        "for (unsigned n = 0; n < 64; n++)\n"
        'printf("%016llx\\n", (unsigned long long)xdsi_siphash(k, d, n)); }\n'
    )
    program = tmp_path / "sip"
    subprocess.run(
        ["gcc", "-fsanitize=undefined", f"-I{ROOT}/cffi_build", source, "-o", program], check=True, env=PLAIN
    )
    words = subprocess.run([program], check=True, capture_output=True, text=True, env=PLAIN).stdout.split()
    assert words[0] == "726fdb47dd0e0e31"  # the reference's test vectors
    assert words[8] == "93f5f5799a932462"
    assert words[15] == "a129ca6149be45e5"


def test_a_connection_from_the_first_question_for_its_neighbour_to_its_end():
    two = Two(known=False)
    mine, theirs = two.pair()
    assert two.a.host.stats()["arp_learned"] == 1
    two.a.stack.write(mine, b"hello")
    two.run(lambda: "readable" in two.b.seen[theirs])
    assert two.b.stack.read(theirs) == b"hello"
    local, remote = two.b.stack.ends(theirs)
    assert local == (B, 80)
    assert (remote, local) == two.a.stack.ends(mine)
    closed(two, mine, theirs)
    assert two.a.seen[mine] == {"open"}  # whoever lets go is told no more
    assert two.b.seen[theirs] == {"open", "readable", "fin"}
    at_rest(two)


class User:
    """Writes a text as room allows, reads what comes, closes when both have said all."""

    def __init__(self, end, number, text):
        self.end, self.number, self.text = end, number, text
        self.written, self.got, self.shut, self.done = 0, bytearray(), False, False

    def act(self, now):
        stack = self.end.stack
        if self.done or "open" not in self.end.seen.get(self.number, ()):
            return
        while piece := stack.read(self.number):
            self.got += piece
        if self.written < len(self.text):
            self.written += stack.write(self.number, self.text[self.written :])
        elif not self.shut:
            stack.shutdown(self.number)
            self.shut = True
        elif "closed" in self.end.seen[self.number]:
            stack.close(self.number, now)
            self.done = True


@pytest.mark.parametrize("number", range(12))
def test_many_connections_over_a_bad_wire_carry_their_own_bytes(number):
    chance = random.Random(number)
    wire = Wire(loss=0.02, reorder=0.05, duplicate=0.02, jitter=MILLISECOND, latency=2 * MILLISECOND)
    two = Two(wire, number, a={"connections": 8, "msl_ns": SECOND}, b={"connections": 8}, known=number % 2)
    listener = two.b.stack.listen(80)
    texts = [(chance.randbytes(chance.randrange(200_000)), chance.randbytes(5000)) for _ in range(6)]
    users = [User(two.a, two.a.stack.connect((B, 80), two.now), text) for text, _ in texts]
    by_ends = {
        two.a.stack.ends(user.number)[0]: answer for user, (_, answer) in zip(users, texts, strict=True)
    }
    others = []

    def act():
        while taken := two.b.stack.accept(listener):
            two.b.seen.setdefault(taken, set()).add("open")
            others.append(User(two.b, taken, by_ends[two.b.stack.ends(taken)[1]]))
        for user in users + others:
            user.act(two.now)

    two.act = act
    two.run()
    assert len(others) == len(users)
    told = sorted(bytes(user.got) for user in others)
    assert told == sorted(text for text, _ in texts)
    assert sorted(bytes(user.got) for user in users) == sorted(answer for _, answer in texts)
    two.b.stack.unlisten(listener)
    at_rest(two)
    assert two.a.check()["connections_max"] == 6


@pytest.mark.rfc("9293", "MUST-12")
def test_nobody_listens_refused():
    two = Two()
    mine = two.a.stack.connect((B, 81), two.now)
    two.run()
    assert two.a.seen[mine] == {"refused"}
    two.a.stack.close(mine, two.now)
    assert two.b.check()["reasons"] == {"no_connection": 1}
    assert two.b.check()["resets"] == 1
    at_rest(two)


def test_a_neighbour_that_never_answers_is_told_before_any_timer():
    two = Two(Wire(loss=1.0), known=False)
    mine = two.a.stack.connect((B, 80), two.now)
    begin = two.now
    two.run(lambda: mine in two.a.seen)
    assert two.a.seen[mine] == {"unreachable"}
    assert two.now - begin == 3 * SECOND
    two.a.stack.close(mine, two.now)
    at_rest(two)


@pytest.mark.rfc("9293", "MUST-46")
@pytest.mark.parametrize("remote", ["192.0.2.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", A, "fd00::1"])
def test_where_no_way_leads_nothing_begins(remote):
    end = End()
    with pytest.raises(OSError) as caught:
        end.stack.connect((remote, 80), 0)
    assert caught.value.errno == errno.ENETUNREACH
    assert end.check()["refused"] == 1


def test_bad_words_are_refused_by_name():
    end = End()
    with pytest.raises(ConfigError, match="port of 0"):
        end.stack.connect((B, 0), 0)
    with pytest.raises(ConfigError, match="own address"):
        end.stack.connect((B, 80), 0, local=("10.0.0.77", 0))
    with pytest.raises(ConfigError, match="congestion"):
        end.stack.connect((B, 80), 0, congestion="hope")
    with pytest.raises(ConfigError, match="rto"):
        end.stack.connect((B, 80), 0, rto=1)
    with pytest.raises(ConfigError, match="rto_min_ns: -1 is not from 0 to 60,000,000,000"):
        end.stack.connect((B, 80), 0, rto_min_ns=-1)
    with pytest.raises(ConfigError, match="power of two"):
        Stack(end.arena, end.host, send_bytes=1000)
    with pytest.raises(ConfigError, match=r"131,072"):
        Stack(end.arena, end.host, connections=131_073)
    with pytest.raises(ConfigError, match="own address"):
        end.stack.listen(80, address="10.0.0.77")
    with pytest.raises(ConfigError, match="own address"):
        Stack(Arena(), Host(end.arena), secret=b"x" * 16).connect((B, 80), 0)
    with pytest.raises(ValueError, match="closed"):
        end.stack.info(12345)
    with pytest.raises(ValueError, match="state"):
        end.stack.write(12345, b"x")


@pytest.mark.rfc("9293", "MUST-43", "MUST-44")
def test_ends_are_used_once_and_ports_are_not_foreseen():
    end = End(connections=500, ports=(50_000, 50_099), send_bytes=256, receive_bytes=256)
    first = [end.stack.ends(end.stack.connect((B, 80), 0))[0][1] for _ in range(100)]
    assert sorted(first) == list(range(50_000, 50_100))
    with pytest.raises(CapacityError, match="local port"):
        end.stack.connect((B, 80), 0)
    other = [end.stack.ends(end.stack.connect((B, 81), 0))[0][1] for _ in range(10)]
    assert other != first[:10]
    again = End(secret=b"q" * 16, ports=(50_000, 50_099))
    assert again.stack.ends(again.stack.connect((B, 80), 0))[0][1] != first[0]
    number = end.stack.connect((B, 82), 0, local=("", 1234))
    assert end.stack.ends(number)[0] == (A, 1234)
    with pytest.raises(OSError, match="in use") as caught:
        end.stack.connect((B, 82), 0, local=("", 1234))
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.rfc("9293", "MUST-8", "MUST-9", "SHLD-1")
def test_first_numbers_hang_on_the_secret_and_the_ends_and_go_on_with_time():
    def syn(secret, port, now):
        end = End(secret=secret)
        end.host.add_neighbour(B, MACS[B])
        end.stack.connect((B, port), now, local=("", 4000))
        return Ether(end.stack.output(now))[TCP].seq

    base = syn(b"k" * 16, 80, 0)
    assert syn(b"k" * 16, 80, 4 * MILLISECOND) == (base + 1000) % 2**32
    assert len({base, syn(b"l" * 16, 80, 0), syn(b"k" * 16, 81, 0)}) == 3


def test_every_place_taken_is_told():
    end = End(connections=3)
    numbers = [end.stack.connect((B, 80), 0) for _ in range(3)]
    with pytest.raises(CapacityError, match="in use"):
        end.stack.connect((B, 80), 0)
    end.stack.close(numbers[1], 0)
    again = end.stack.connect((B, 80), 0)
    assert again not in numbers
    with pytest.raises(ValueError, match="closed"):
        end.stack.info(numbers[1])
    assert end.stack.info(again)["state"] == "syn_sent"


def across(one, two, now):
    """Frames both ways until neither stack has one."""
    moved = True
    while moved:
        moved = False
        for sender, taker in ((one, two), (two, one)):
            while frame := sender.stack.output(now):
                taker.stack.frame(frame, now)
                moved = True


def test_a_hundred_thousand_at_once_carry_their_own_bytes_and_are_a_bound():
    """One stack holds them all; the other end is a thousand at a time, and then forgotten without a word."""
    count, many, now = 100_000, 1000, SECOND
    small = {"send_bytes": 256, "receive_bytes": 256}
    one, mine = End(A, connections=count, **small), []
    one.host.add_neighbour(B, MACS[B])
    for port in range(80, 80 + count // many):
        other = End(B, connections=many, **small)
        other.host.add_neighbour(A, MACS[A])
        door = other.stack.listen(port, backlog=many)
        called = [one.stack.connect((B, port), now) for _ in range(many)]
        across(one, other, now)
        at = {one.stack.ends(number)[0]: number for number in called}
        assert len(at) == many
        while theirs := other.stack.accept(door):
            number = at[other.stack.ends(theirs)[1]]
            assert other.stack.write(theirs, b"to %d" % number)
        across(one, other, now)
        for number in called:
            assert one.stack.read(number) == b"to %d" % number
        assert other.check()["accepted"] == many
        mine += called
    assert len(set(mine)) == count
    with pytest.raises(CapacityError, match="in use"):
        one.stack.connect((B, 80), now)
    stats = one.check()
    assert stats["connections"] == stats["connections_max"] == count
    assert stats["refused"] == 1
    for number in mine:
        one.stack.abort(number)
        one.stack.close(number, now)
    across(one, other, now)
    assert one.check()["connections"] == 0
    for _ in range(count):  # a deadline may be early, never late
        if never(one):
            break
        one.tick(one.deadline())
    assert never(one)


def test_a_backlog_is_a_bound_and_whom_nobody_accepts_is_reset():
    two = Two(a={"connections": 16}, b={"connections": 16, "cookies": False})
    listener = two.b.stack.listen(80, backlog=3)
    mine = [two.a.stack.connect((B, 80), two.now) for _ in range(5)]
    two.later(0.5)
    assert sum("open" in two.a.seen.get(number, ()) for number in mine) == 3
    assert two.b.check()["reasons"]["backlog"] >= 2
    assert two.b.stack.accept(listener)
    two.later(10)  # its SYN comes again
    assert sum("open" in two.a.seen.get(number, ()) for number in mine) == 4
    two.b.stack.unlisten(listener)
    two.later(1)
    assert sum("reset" in two.a.seen.get(number, ()) for number in mine) == 3


@pytest.mark.rfc("9293", "SHLD-3", "MAY-1")
def test_who_leaves_bytes_unread_resets():
    two = Two()
    mine, theirs = two.pair()
    two.a.stack.write(mine, b"never read")
    two.run(lambda: "readable" in two.b.seen[theirs])
    two.b.stack.close(theirs, two.now)
    two.run()
    assert "reset" in two.a.seen[mine]
    two.a.stack.close(mine, two.now)
    at_rest(two)


def test_what_comes_for_who_has_closed_resets():
    two = Two()
    mine, theirs = two.pair()
    two.b.stack.close(theirs, two.now)
    two.run(lambda: "fin" in two.a.seen[mine])
    two.a.stack.write(mine, b"too late")
    two.run(lambda: "reset" in two.a.seen[mine])
    two.a.stack.close(mine, two.now)
    two.run()
    at_rest(two)


def test_a_peer_that_never_closes_is_waited_for_a_minute_at_most():
    two = Two()
    mine, theirs = two.pair()
    two.a.stack.close(mine, two.now)
    two.later(1)
    assert two.a.check()["connections"] == 1
    two.later(62)
    assert two.a.check()["connections"] == 0
    assert two.a.check()["orphans_ended"] == 1
    two.b.stack.write(theirs, b"anybody there?")
    two.run(lambda: "reset" in two.b.seen[theirs])
    two.b.stack.close(theirs, two.now)
    at_rest(two)


def test_half_close_reads_on():
    two = Two()
    mine, theirs = two.pair()
    two.a.stack.shutdown(mine)
    two.run(lambda: "fin" in two.b.seen[theirs])
    two.b.stack.write(theirs, b"x" * 100_000)
    two.run(lambda: two.a.stack.info(mine)["unread"] >= 65_536)
    got = len(two.a.stack.read(mine))
    two.b.stack.write(theirs, b"y")
    two.later(1)
    got += len(two.a.stack.read(mine))
    assert got == 65_536 + 1
    with pytest.raises(ValueError, match="state"):
        two.a.stack.write(mine, b"no more")


@pytest.mark.rfc("9293", "MAY-8")
def test_a_reader_that_stops_holds_the_writer_and_is_told_when_room_comes():
    two = Two()
    mine, theirs = two.pair()
    text = random.Random(5).randbytes(300_000)
    done = two.a.stack.write(mine, text)
    two.later(2)
    done += two.a.stack.write(mine, text[done:])
    two.later(60)
    assert 131_000 < done <= 131_072  # both buffers
    two.a.seen[mine].discard("writable")
    assert two.a.stack.write(mine, text[done:]) == 0
    got = bytearray()
    while len(got) < len(text):
        got += two.b.stack.read(theirs)
        two.later(30)
        if "writable" in two.a.seen[mine] and done < len(text):
            two.a.seen[mine].discard("writable")
            done += two.a.stack.write(mine, text[done:])
    assert bytes(got) == text


@pytest.mark.rfc("9293", "MUST-13")
def test_time_wait_gives_way_when_every_place_is_taken():
    two = Two(a={"connections": 4})
    for _ in range(9):
        closed_one = two.pair()
        two.a.stack.close(closed_one[0], two.now)
        two.run(lambda n=closed_one[1]: "fin" in two.b.seen[n])
        two.b.stack.close(closed_one[1], two.now)
        two.later(0.1)
    stats = two.a.check()
    assert stats["time_waits"] == 4
    assert stats["evicted"] == 5


@pytest.mark.rfc("9293", "MAY-2")
def test_a_syn_behind_a_connection_in_time_wait_opens_a_new_one():
    two = Two()
    listener = two.b.stack.listen(80)
    for round_ in range(2):
        mine = two.a.stack.connect((B, 80), two.now, local=("", 4000))
        two.run(lambda n=mine: "open" in two.a.seen.get(n, ()))
        two.later(0.1)
        theirs = two.b.stack.accept(listener)
        two.b.stack.close(theirs, two.now)  # who closes first waits
        two.run(lambda n=mine: "fin" in two.a.seen[n])
        two.a.stack.close(mine, two.now)
        two.later(0.1)
        assert two.b.check()["time_waits"] == 1
        assert two.b.check()["reopened"] == round_
        assert two.a.check()["connections"] == 0


def test_thousands_one_after_another_leave_nothing():
    two = Two(a={"connections": 2, "msl_ns": 1}, b={"connections": 2})
    for _ in range(2000):
        mine, theirs = two.pair()
        two.a.stack.close(mine, two.now)
        two.run(lambda n=theirs: "fin" in two.b.seen[n])
        two.b.stack.close(theirs, two.now)
        two.run()
        two.a.seen.clear()
        two.b.seen.clear()
    assert two.a.check()["opened"] == two.b.check()["accepted"] == 2000
    at_rest(two)


def frame(flags, seq=100, ack=0, data=b"", **fields):
    tcp = TCP(sport=9, dport=80, flags=flags, seq=seq, ack=ack, **fields)
    return bytes(Ether(src=MACS[B], dst=MACS[A]) / IP(src=B, dst=A) / tcp / Raw(data))


@pytest.mark.rfc("9293", "MUST-2")
@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (frame("S"), ("RA", 0, 101)),
        (frame("A", ack=77), ("R", 77, 0)),
        (frame("PA", ack=77, data=b"abc"), ("R", 77, 0)),
        (frame("F", data=b"abc"), ("RA", 0, 104)),
        (frame("SA", ack=5), ("R", 5, 0)),
        (frame("R"), None),
        (frame("RA", ack=5), None),
    ],
)
def test_what_belongs_to_nobody_is_reset_as_rfc_9293_says(given, answer):
    end = End()
    end.host.add_neighbour(B, MACS[B])
    assert end.stack.frame(given, 0) == 0
    out = end.stack.output(0)
    assert not end.stack.output(0)
    if answer is None:
        assert not out
        assert end.check()["reasons"] == {"stray_reset": 1}
        return
    reset = Ether(out)[TCP]
    assert (str(reset.flags), reset.seq, reset.ack) == answer
    assert (reset.sport, reset.dport) == (80, 9)
    again = Ether(out)
    del again[TCP].chksum, again[IP].chksum, again[IP].len
    assert bytes(again) == out


def test_resets_that_wait_are_bounded():
    end = End()  # nobody asks for frames in between
    for seq in range(100):
        end.stack.frame(frame("S", seq=seq), 0)
    stats = end.check()
    assert stats["reasons"] == {"no_connection": 100}
    assert stats["resets_lost"] == 100 - 32


@pytest.mark.parametrize("cut", [0, 1, 12, 13, 19])
def test_what_ends_inside_its_header_is_counted(cut):
    end = End()
    whole = Ether(frame("S"))
    packet = IP(src=B, dst=A, proto=6) / Raw(bytes(whole[TCP])[:cut])
    end.stack.frame(bytes(Ether(src=MACS[B], dst=MACS[A]) / packet), 0)
    assert not end.stack.output(0)
    end.check()


def test_a_listener_answers_only_a_plain_syn_and_on_its_address():
    end = End()
    end.host.add_neighbour(B, MACS[B])
    listener = end.stack.listen(80, address=A)
    with pytest.raises(OSError, match="in use"):
        end.stack.listen(80)
    for flags in ("SF", "SR", "SA", "", "F"):
        end.stack.frame(frame(flags), 0)
    assert end.check()["connections"] == 0
    end.stack.frame(frame("S"), 0)
    assert end.check()["connections"] == 1
    end.stack.frame(frame("R", seq=101), 0)  # its peer takes it back
    while end.stack.output(0):
        pass
    assert end.check()["connections"] == 0
    assert end.stack.accept(listener) == 0
    end.stack.unlisten(listener)
    with pytest.raises(ValueError, match="state"):
        end.stack.accept(listener)


def test_frames_are_the_callers_and_room_is_never_left():
    end = End()
    end.host.add_neighbour(B, MACS[B])
    end.stack.connect((B, 80), 0)
    assert end.stack.output(0, 60) == b""  # too small for a segment: lost, and counted
    assert end.check()["send_lost"] == 1
    assert end.deadline() == SECOND
    end.tick(SECOND)
    assert Ether(end.stack.output(SECOND))[TCP].flags == "S"
    assert lib.xds_stack_pending(end.stack.core) == 0  # it need not be asked to know
    assert end.stack.output(SECOND) == b""
    assert lib.xds_stack_pending(end.stack.core) == 0


def test_a_connection_that_has_sent_before_follows_its_neighbour_to_another_mac():
    two = Two()
    mine, _ = two.pair()
    two.a.stack.write(mine, b"here")
    first = Ether(two.a.stack.output(two.now))
    assert first.dst == MACS[B]
    moved = "02:00:00:00:00:77"
    two.a.host.add_neighbour(B, moved)
    two.a.stack.write(mine, b"there")
    second = Ether(two.a.stack.output(two.now))
    assert (second.dst, second[TCP].seq) == (moved, first[TCP].seq + 4)
    fresh = Ether(bytes(second))
    del fresh[IP].chksum, fresh[IP].len, fresh[TCP].chksum
    assert bytes(Ether(bytes(fresh))) == bytes(second)  # scapy's own sums and length


@pytest.mark.rfc("9293", "MUST-20")
@pytest.mark.parametrize("opens", [False, True], ids=["open", "opening"])
def test_after_three_retransmissions_the_neighbour_is_asked_for_anew(opens):
    """Its place was taken by another, who never said so: frames to the old MAC reach nobody."""
    two, moved = Two(known=False), "02:00:00:00:00:99"
    mine, theirs = two.pair()
    asked = two.a.host.stats()["arp_asked"]
    sent, frames = two.b.input, []

    def only_to_the_new(frame, *rest):
        frames.append(frame)
        if frame[:6] == bytes.fromhex(moved.replace(":", "")):
            return sent(bytes.fromhex(MACS[B].replace(":", "")) + frame[6:], *rest)
        if frame[12:14] == b"\x08\x06":
            answer = ARP(op=2, hwsrc=moved, psrc=B, hwdst=MACS[A], pdst=A)
            two.a.input(bytes(Ether(src=moved, dst=MACS[A]) / answer), *rest)
        return 0

    two.b.input = only_to_the_new
    if opens:
        listener = two.b.stack.listen(81)
        mine = two.a.stack.connect((B, 81), two.now)
        two.run(lambda: "acceptable" in two.b.seen.get(listener, ()))
        theirs = two.b.stack.accept(listener)
    two.a.stack.write(mine, b"still there?")
    two.run(lambda: "readable" in two.b.seen.get(theirs, ()))
    assert two.b.stack.read(theirs) == b"still there?"
    arp = [number for number, frame in enumerate(frames) if frame[12:14] == b"\x08\x06"]
    assert arp == [3 + (not opens)], "at the third timeout: behind the first, two more, and a tail probe"
    assert two.a.host.stats()["doubted"] == 1
    assert two.a.host.stats()["arp_asked"] == asked + 1


@pytest.mark.rfc("9293", "MUST-20")
def test_a_neighbour_that_somebody_fixed_is_not_doubted():
    two = Two()
    mine, _ = two.pair()
    two.b.input = lambda *frame: 0
    two.a.stack.write(mine, b"anybody?")
    two.later(60)
    assert "stalled" in two.a.seen[mine]
    assert two.a.host.stats()["arp_asked"] == two.a.host.stats()["doubted"] == 0


@pytest.mark.parametrize("size", [1, 2, 3, 4, 63, 64, 65, 1447, 1448])
def test_a_usual_segment_has_the_lengths_and_sums_that_scapy_gives_it(size):
    two = Two()
    mine, theirs = two.pair()
    data = bytes(range(256)) * 6
    for _ in range(3):  # the first along the long way, the others by the path that is known
        two.a.stack.write(mine, data[:size])
        frame = two.a.stack.output(two.now)
        fresh = Ether(frame)
        assert bytes(fresh[TCP].payload) == data[:size]
        del fresh[IP].chksum, fresh[IP].len, fresh[TCP].chksum
        assert bytes(Ether(bytes(fresh))) == frame
        two.b.stack.frame(frame, two.now)
        answer = two.b.stack.output(two.now)
        fresh = Ether(answer)
        assert (fresh[TCP].flags, fresh[TCP].ack) == ("A", Ether(frame)[TCP].seq + size)
        del fresh[IP].chksum, fresh[IP].len, fresh[TCP].chksum
        assert bytes(Ether(bytes(fresh))) == answer
        two.a.stack.frame(answer, two.now)
        assert two.b.stack.read(theirs) == data[:size]


def run_warmed(warm, options):
    """What is on the wire while two talk over a bad one; ``warm``: each end runs its path in between."""
    wire = Wire(loss=0.03, reorder=0.05, duplicate=0.02, jitter=MILLISECOND, latency=2 * MILLISECOND)
    two = Two(wire, 5, a=options, b=options)
    mine, theirs = two.pair()
    texts, got = (b"x" * 30_000, b"y" * 20_000), [bytearray(), bytearray()]
    ends, at = ((two.a, mine), (two.b, theirs)), [0, 0]
    ran = 0

    def act():
        nonlocal ran
        for i, (end, number) in enumerate(ends):
            at[i] += end.stack.write(number, texts[i][at[i] : at[i] + 3000])
            got[i] += end.stack.read(number)
            before = end.stack.info(number), end.check(), end.host.stats()
            if warm:
                ran += end.stack.warm(number, 1 + 37 * i + at[i] % 2000, two.now) > 0
            assert (end.stack.info(number), end.check(), end.host.stats()) == before

    two.act = act
    two.run(lambda: [len(text) for text in got] == [20_000, 30_000])
    return two.sim.segments, ran


@pytest.mark.parametrize("options", [{}, {"user_timeout": 1, "ecn": 1, "delayed_ack_ns": 20 * MILLISECOND}])
def test_a_warm_send_leaves_no_trace(options):
    cold, _ = run_warmed(False, options)
    warmed, ran = run_warmed(True, options)
    assert ran > 20
    assert len(cold) == len(warmed)
    assert (
        next((i for i, pair in enumerate(zip(cold, warmed, strict=True)) if pair[0] != pair[1]), None) is None
    )


def test_there_is_nothing_to_warm_before_it_is_open_nor_after():
    end = End()
    number = end.stack.connect((B, 80), 0)
    assert end.stack.warm(number, 64, 0) == 0
    two = Two()
    mine, _ = two.pair()
    two.a.stack.write(mine, b"x")
    two.later(1)
    assert two.a.stack.warm(mine, 64, two.now) == 14 + 20 + 32 + 64
    assert two.a.stack.warm(mine, 100_000, two.now) <= 1514
    two.a.stack.close(mine, two.now)
    with pytest.raises(ValueError, match="state"):
        two.a.stack.warm(mine, 64, two.now)
