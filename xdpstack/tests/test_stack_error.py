"""stack: ICMP errors about segments: whom they reach, which are forged, what they end, what they tell."""

from __future__ import annotations

import pytest

from xdpstack._ffi import lib
from xdpstack.sim import MILLISECOND, SECOND, Wire
from xdpstack.tests.host_driver import mapped, scapy
from xdpstack.tests.stack_driver import MACS, A, B, End, Two, words

Ether, IP, TCP, ICMP, UDP, Raw = (
    getattr(scapy, name) for name in ("Ether", "IP", "TCP", "ICMP", "UDP", "Raw")
)
ROUTER = "203.0.113.1"


def error(packet, kind=3, code=3, quoted=28, **fields):
    """The frame in which a router tells A about a packet of A's."""
    return bytes(
        Ether(src=MACS[B], dst=MACS[A]) / IP(src=ROUTER, dst=A) / ICMP(type=kind, code=code, **fields)
        / Raw(bytes(packet)[:quoted])
    )  # fmt: skip


def alone(**settings):
    end = End(A, **settings)
    end.host.add_neighbour(B, MACS[B])
    return end


def sent(end, now):
    """The packets that leave now."""
    found = []
    while frame := end.output(now):
        found.append(Ether(frame)[IP])
    return found


def connecting(**settings):
    end = alone(**settings)
    number = end.stack.connect((B, 80), SECOND)
    (syn,) = sent(end, SECOND)
    return end, number, syn


HARD = {2: "refused", 3: "refused"} | dict.fromkeys((6, 7, 8, 9, 10, 13, 14, 15), "unreachable")


@pytest.mark.rfc("9293", "MUST-54", "SHLD-26")
@pytest.mark.parametrize("code", range(16))
def test_before_it_is_open_what_cannot_get_better_ends_it(code):
    end, number, syn = connecting()
    end.input(error(syn, code=code), "", "", 2 * SECOND)
    end.look()
    assert end.seen.get(number, set()) == ({HARD[code]} if code in HARD else set())
    assert end.stack.info(number)["state"] == ("closed" if code in HARD else "syn_sent")
    assert sent(end, 2 * SECOND) == [], "nobody is told of an end by a reset"
    assert end.check()["errors"] == 1
    if code != 4:
        assert ROUTER in end.stack.trouble(number)


@pytest.mark.rfc("9293", "MUST-55", "MUST-56")
@pytest.mark.parametrize(("kind", "code"), [(11, 0), (11, 1), (12, 0), (5, 1), (4, 0)])
def test_other_errors_end_nothing(kind, code):
    end, number, syn = connecting()
    end.input(error(syn, kind, code), "", "", 2 * SECOND)
    assert end.stack.info(number)["state"] == "syn_sent"
    told = {11: "time exceeded", 12: "parameter problem"}.get(kind)
    assert end.stack.info(number)["trouble"] == (f"{ROUTER} said: {told}" if told else "")


@pytest.mark.parametrize("off", [-1, 1, 1000, -70000, 1 << 31])
def test_a_sequence_number_that_is_not_in_flight_is_forged(off):
    end, number, syn = connecting()
    syn[TCP].seq = (syn[TCP].seq + off) & 0xFFFFFFFF
    end.input(error(syn), "", "", 2 * SECOND)
    end.look()
    assert end.stack.info(number)["state"] == "syn_sent"
    assert end.seen == {}
    stats = end.check()
    assert (stats["errors"], stats["errors_forged"]) == (0, 1)


@pytest.mark.parametrize("change", [{"sport": 9}, {"dport": 81}])
def test_an_error_about_another_flow_reaches_nobody(change):
    end, number, syn = connecting()
    for name, value in change.items():
        setattr(syn[TCP], name, value)
    end.input(error(syn), "", "", 2 * SECOND)
    assert end.stack.info(number)["state"] == "syn_sent"
    assert end.check()["errors_stray"] == 1
    end.input(error(IP(src=A, dst=B) / UDP(sport=syn[TCP].sport, dport=80) / b"x"), "", "", 2 * SECOND)
    assert end.check()["errors_stray"] == 1, "that was no TCP"


@pytest.mark.rfc("9293", "SHLD-25")
def test_once_it_is_open_nothing_ends_it_and_a_timeout_tells_what_was_heard():
    two = Two(a={"give_up_ns": 20 * SECOND})
    mine, _ = two.pair()
    two.sim._ways[0].wire = Wire(loss=1.0)
    two.a.stack.write(mine, b"hello")
    two.later(0.1)
    last = Ether(next(s for _, end, s in reversed(two.sim.segments) if end == 0))[IP]
    for code in range(16):
        if code != 4:
            two.a.input(error(last, code=code), "", "", two.now)
    assert two.state(two.a, mine) == "established"
    assert two.a.stack.info(mine)["trouble"].startswith(f"{ROUTER} said: unreachable, code 15")
    two.a.input(error(last, code=1), "", "", two.now)
    two.run(lambda: "timeout" in two.a.seen[mine])
    assert two.a.stack.trouble(mine) == f"{ROUTER} said: host unreachable"


def test_what_was_heard_is_over_once_something_arrives():
    two = Two()
    mine, theirs = two.pair()
    two.sim._ways[0].wire = Wire(loss=1.0)
    two.a.stack.write(mine, b"hello")
    two.later(0.1)
    last = Ether(next(s for _, end, s in reversed(two.sim.segments) if end == 0))[IP]
    two.a.input(error(last, code=0), "", "", two.now)
    assert two.a.stack.trouble(mine) == f"{ROUTER} said: network unreachable"
    two.sim._ways[0].wire = Wire()
    two.later(5)
    assert two.b.stack.read(theirs) == b"hello"
    assert two.a.stack.trouble(mine) == ""
    two.a.stack.close(mine, two.now)
    with pytest.raises(ValueError):
        two.a.stack.trouble(mine)


class Router(Two):
    """Two, and a router between them that tells A of what does not fit."""

    def __init__(self, mtu, says=None, tells=True, **settings):
        super().__init__(**settings)
        self.mtu, self.says, self.told, self.tells = mtu, mtu if says is None else says, 0, tells
        straight = self.b.input

        def pass_on(frame, source, destination, now):
            packet = Ether(frame)
            if len(frame) - 14 <= self.mtu or packet.type != 0x800 or packet[IP].flags != "DF":
                return straight(frame, source, destination, now)
            if self.tells:
                self.told += 1
                self.a.input(error(packet[IP], 3, 4, nexthopmtu=self.says), "", "", now)
            return 0

        self.b.input = pass_on


def carry(two, count, connections=1, **how):
    """So many bytes from a to b on each connection, compared."""
    text = bytes(range(251)) * (count // 251 + 1)
    pairs = [two.pair(80 + n, **how) for n in range(connections)]
    sent, got = [0] * connections, [bytearray() for _ in pairs]

    def act():
        for n, (mine, theirs) in enumerate(pairs):
            if sent[n] < count:
                sent[n] += two.a.stack.write(mine, text[sent[n] : min(count, sent[n] + 16384)])
            got[n] += two.b.stack.read(theirs)

    two.act = act
    two.run(lambda: all(len(one) == count for one in got))
    assert all(bytes(one) == text[:count] for one in got)
    return [mine for mine, _ in pairs]


@pytest.mark.parametrize(
    ("mtu", "says", "found"), [(1280, None, 1280), (1006, 0, 1006), (576, None, 576), (400, None, 552)]
)
def test_a_router_with_a_smaller_link_is_gone_round_at_once(mtu, says, found):
    two = Router(mtu, says)
    (mine,) = carry(two, 300_000)
    info, host = two.a.stack.info(mine), two.a.host.stats()
    assert info["mss"] == found - 52
    assert (info["timeouts"], info["hole_steps"]) == (0, 0)
    assert two.now < 2 * SECOND, "nobody waited for a timer"
    assert host["path_learned"] == (2 if says == 0 else 1)
    assert two.told <= 30, "what was out as the first was told, no more"
    assert two.a.check()["errors"] == two.told


def test_a_router_that_says_nothing_is_a_hole():
    two = Router(1300, tells=False)
    (mine,) = carry(two, 100_000)
    info = two.a.stack.info(mine)
    assert info["black_holes"] == 1
    assert 1228 <= info["mss"] <= 1248


def test_others_on_the_same_path_learn_of_it_too():
    two = Router(1280)
    three = carry(two, 60_000, connections=3)
    assert [two.a.stack.info(n)["mss"] for n in three] == [1228] * 3
    assert [two.a.stack.info(n)["timeouts"] for n in three] == [0] * 3


def test_after_ten_minutes_the_path_may_have_grown():
    two = Router(1280)
    (mine,) = carry(two, 60_000)
    two.mtu = 1500
    two.sim.now += 11 * 60 * SECOND
    two.act = lambda: None
    two.a.stack.write(mine, b"x" * 20_000)
    two.later(1)
    assert two.a.stack.info(mine)["mss"] == 1448
    assert two.a.host.stats()["path_forgotten"] == 1


def test_a_forged_one_lowers_nothing():
    two = Two(wire=Wire(latency=20 * MILLISECOND))
    mine, _ = two.pair()
    two.a.stack.write(mine, b"x" * 5000)
    two.later(0.001)
    last = Ether(next(s for _, end, s in reversed(two.sim.segments) if end == 0))[IP]
    last[TCP].seq = (last[TCP].seq + 100_000) & 0xFFFFFFFF
    two.a.input(error(last, 3, 4, nexthopmtu=552), "", "", two.now)
    assert two.a.stack.info(mine)["mss"] == 1448
    assert lib.xds_host_path_mtu(two.a.host.core, mapped(B), two.now) == 1500
    assert two.a.check()["errors_forged"] == 1


def test_words_of_events_are_those_of_the_header():
    assert words(lib.XDS_STACK_REFUSED | lib.XDS_STACK_UNREACHABLE) == {"refused", "unreachable"}
