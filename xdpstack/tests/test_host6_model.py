"""cores/host over IPv6 against a model of it in Python, kept beside it through any order of what may happen:
datagrams and packets out, neighbours that answer, ask, move and stay silent, groups, time. Every frame that
leaves is compared with what scapy builds, and the deadline with the model's."""

from __future__ import annotations

import dataclasses

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xdpstack._ffi import lib
from xdpstack.tests.host6_driver import ALL, FAR, ME, ROUTER, Host6, S, frame6, mac_of, raw, solicited
from xdpstack.tests.host_driver import MAC, PEER, SECOND, raw_mac

LOCAL = "fe80::a"
NEAR = ["2001:db8::2", "fe80::b"]
WAYS = [*NEAR, FAR]
MACS = [PEER, "02:00:00:00:00:03"]
GROUPS = ["ff05::1234", "ff02::77"]
SLOTS, AGE, TRIES = 3, 60 * SECOND, 3


@dataclasses.dataclass
class Entry:
    """A neighbour: asked for while ``mac`` is empty; what waits for it in the order that it came."""

    mac: str = ""
    fixed: bool = False
    seen: int = 0
    due: int | None = None
    tries: int = 0
    held: list[bytes] = dataclasses.field(default_factory=list)


def source(dst: str) -> str:
    """RFC 6724: of the destination's scope."""
    return LOCAL if dst.startswith(("fe80", "ff02")) else ME


def framed(mac: str, dst: str, layer: object, src: str = "", hops: int = 64) -> bytes:
    return bytes(S.Ether(src=MAC, dst=mac) / S.IPv6(src=src or source(dst), dst=dst, hlim=hops) / layer)


def question(target: str, mac: str = "") -> bytes:
    """RFC 4861 7.2.2; 7.3.3: to who is known alone."""
    dst = target if mac else solicited(target)
    layer = S.ICMPv6ND_NS(tgt=target) / S.ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    return framed(mac or mac_of(dst), dst, layer, source(target), 255)


class Model(RuleBasedStateMachine):
    """The host, and beside it what RFC 4861 says that it knows, what waits, and what must have left."""

    @initialize(routed=st.booleans())
    def begin(self, routed: bool) -> None:
        self.host = Host6(addresses=(f"{ME}/64", f"{LOCAL}/64"), group=None, slots=SLOTS)
        self.known: dict[str, Entry] = {}
        self.table: list[str] = []  # where each lies: timers are looked at in that order; "": free
        self.groups: set[str] = set()
        self.now, self.number, self.received, self.asked, self.lost = SECOND, 0, 0, 0, 0
        self.wanted: list[bytes] = []
        if routed:
            assert lib.xds_host_add_route6(self.host.h, bytes(16), 0, raw(ROUTER), bytes(16), 0) == 0
        self.gateway = ROUTER if routed else ""

    # -- the model

    def free(self) -> int:
        """Slots: what is ready to leave leaves after each step, what waits stays."""
        held = sum(len(entry.held) for entry in self.known.values())
        return SLOTS - held - self.ready

    def entry(self, ip: str) -> Entry:
        if ip not in self.known:
            self.known[ip] = Entry()
            at = self.table.index("") if "" in self.table else len(self.table)
            self.table[at : at + 1] = [ip]
        return self.known[ip]

    def ask(self, ip: str) -> None:
        entry = self.known[ip]
        entry.due, entry.tries = self.now + SECOND, entry.tries + 1
        if self.free() > 0:  # else it counts as one that nobody answers
            self.wanted.append(question(ip, entry.mac))
            self.ready += 1
            self.asked += 1

    def use(self, ip: str) -> str:
        """The MAC to send to; empty: it was asked for."""
        entry = self.known.get(ip)
        if entry is None:
            self.entry(ip)
            self.ask(ip)
        elif entry.mac and not entry.fixed and self.now - entry.seen > AGE and entry.due is None:
            self.ask(ip)
        return self.known[ip].mac

    def learn(self, ip: str, mac: str, fresh: bool) -> None:
        """Its link-layer address; what waited for it goes."""
        entry = self.entry(ip)
        entry.mac = mac
        entry.seen = self.now if fresh else self.now - AGE - 1
        entry.due, entry.tries = None, 0
        self.release(entry)

    def release(self, entry: Entry) -> None:
        self.wanted += [raw_mac(entry.mac) + frame[6:] for frame in entry.held]
        entry.held.clear()

    def hop(self, dst: str) -> str:
        return dst if dst in NEAR else self.gateway

    # -- what may happen

    def input(self, frame: object) -> tuple[int, object]:
        self.received += 1
        return self.host.take(frame, self.now)

    def settle(self) -> None:
        """What has left is what had to, whichever of it was first."""
        left = [bytes(frame) for frame in self.host.output(self.now)]
        assert sorted(left) == sorted(self.wanted)
        self.wanted.clear()
        self.ready = 0

    ready = 0

    @rule(dst=st.sampled_from(WAYS), size=st.integers(0, 60), sport=st.integers(1, 3))
    def datagram(self, dst: str, size: int, sport: int) -> None:
        self.number += 1
        data = self.number.to_bytes(4, "big") + bytes(size)
        want = framed("00:00:00:00:00:00", dst, S.UDP(sport=sport, dport=9) / S.Raw(data))
        code, frame = self.host.udp6(data, dst, sport, 9, self.now)
        hop = self.hop(dst)
        if not hop:
            assert code == lib.XDS_EFOREIGN
        elif mac := self.use(hop):
            assert code == len(want)
            assert bytes(frame) == raw_mac(mac) + want[6:]
        elif self.free() > 0:
            assert code == 0
            self.known[hop].held.append(want)
        else:
            assert code == lib.XDS_ECAPACITY
        self.settle()

    @rule(dst=st.sampled_from(WAYS), copied=st.booleans(), tos=st.sampled_from([0, 0xB8]))
    def packet(self, dst: str, copied: bool, tos: int) -> None:
        """Of another protocol, copied or written where it leaves from."""
        self.number += 1
        data = self.number.to_bytes(4, "big") * 5
        code, frame, src = self.host.ip(data, raw(dst), 6, self.now, copied=copied, tos=tos)
        want = bytes(
            S.Ether(src=MAC, dst="00:00:00:00:00:00")
            / S.IPv6(src=source(dst), dst=dst, hlim=64, nh=6, tc=tos)
            / S.Raw(data)
        )
        hop = self.hop(dst)
        if not hop:
            assert code == lib.XDS_EFOREIGN
        elif mac := self.use(hop):
            assert (code, src) == (len(want), raw(source(dst)))
            assert bytes(frame) == raw_mac(mac) + want[6:]
        elif not copied:
            assert code == 0, "nothing is kept: try again"
        elif self.free() > 0:
            assert code == 0
            self.known[hop].held.append(want)
        else:
            assert code == lib.XDS_ECAPACITY
        self.settle()

    def to_a_group(self, group: str, size: int) -> None:
        """No neighbour is asked for; of this link alone."""
        _, frame = self.host.udp6(bytes(size), group, 4000, 9, self.now)
        layer = S.UDP(sport=4000, dport=9) / S.Raw(bytes(size)) if size else S.UDP(sport=4000, dport=9)
        assert bytes(frame) == framed(mac_of(group), group, layer, hops=1)
        self.settle()

    @rule(whom=st.sampled_from(NEAR), mac=st.sampled_from(MACS))
    def found(self, whom: str, mac: str) -> None:
        """Asked for, and answered at once."""
        self.datagram(whom, 1, 1)
        self.advertisement(whom, mac, True, True)

    @rule(
        whom=st.sampled_from([*NEAR, *NEAR, ROUTER]),
        mac=st.sampled_from([*MACS, ""]),
        solicited_=st.booleans(),
        override=st.booleans(),
    )
    def advertisement(self, whom: str, mac: str, solicited_: bool, override: bool) -> None:
        """RFC 4861 7.2.5."""
        layer = S.ICMPv6ND_NA(tgt=whom, R=0, S=solicited_, O=override)
        layer = layer / S.ICMPv6NDOptDstLLAddr(lladdr=mac) if mac else layer
        assert self.input(frame6(layer, src=whom, dst=source(whom), hlim=255))[0] == 0
        entry = self.known.get(whom)
        if entry is None or entry.fixed or not (entry.mac or mac):
            pass
        elif entry.mac and mac and mac != entry.mac and not override:
            entry.seen = min(entry.seen, self.now - AGE - 1)
        elif not entry.mac or solicited_ or (mac and mac != entry.mac):
            self.learn(whom, mac or entry.mac, solicited_)
        self.settle()

    @rule(
        asker=st.sampled_from(NEAR),
        whom=st.sampled_from([ME, LOCAL, NEAR[0]]),
        mac=st.sampled_from([*MACS, ""]),
        alone=st.booleans(),
    )
    def solicitation(self, asker: str, whom: str, mac: str, alone: bool) -> None:
        """RFC 4861 7.2.3 and 7.2.4."""
        layer = S.ICMPv6ND_NS(tgt=whom)
        layer = layer / S.ICMPv6NDOptSrcLLAddr(lladdr=mac) if mac else layer
        mine = whom in (ME, LOCAL)
        dst = whom if mine and alone else solicited(ME)
        if mine and not alone:
            dst = solicited(whom)
        code = self.input(frame6(layer, src=asker, dst=dst, hlim=255))[0]
        entry = self.known.get(asker)
        if mine and mac and (entry is None or (not entry.fixed and entry.mac != mac)):
            self.learn(asker, mac, False)
            self.ready += len(self.wanted)
        assert code == (0 if not mine or self.free() > 0 else lib.XDS_ECAPACITY)
        if code == 0 and mine:
            answer = S.ICMPv6ND_NA(tgt=whom, R=0, S=1, O=1) / S.ICMPv6NDOptDstLLAddr(lladdr=MAC)
            self.wanted.append(framed(mac or PEER, asker, answer, whom, 255))
        self.settle()

    @rule(whom=st.sampled_from([ME, LOCAL]), right=st.booleans())
    def probe_for_our_address(self, whom: str, right: bool) -> None:
        """Who has no address yet is answered by a word to all (RFC 4862 5.4.3)."""
        dst = solicited(whom) if right else whom
        code = self.input(frame6(S.ICMPv6ND_NS(tgt=whom), src="::", dst=dst, hlim=255))[0]
        if not right:
            assert code == lib.XDS_EMALFORMED
        elif self.free() > 0:
            assert code == 0
            answer = S.ICMPv6ND_NA(tgt=whom, R=0, S=0, O=1) / S.ICMPv6NDOptDstLLAddr(lladdr=MAC)
            self.wanted.append(framed(mac_of(ALL), ALL, answer, whom, 255))
        else:
            assert code == lib.XDS_ECAPACITY
        self.settle()

    def ping(self, src: str, data: bytes) -> None:
        dst = source(src)
        asked = S.ICMPv6EchoRequest(id=7, seq=self.number, data=data)
        code = self.input(frame6(asked, src=src, dst=dst))[0]
        if self.free() > 0:
            assert code == 0
            reply = S.ICMPv6EchoReply(id=7, seq=self.number, data=data)
            self.wanted.append(framed(PEER, src, reply, dst))
        else:
            assert code == lib.XDS_ECAPACITY
        self.settle()

    def datagram_in(self, dst: str, data: bytes) -> None:
        code, found = self.input(frame6(S.UDP(sport=5, dport=6), S.Raw(data), src=NEAR[0], dst=dst))
        if dst in self.groups or dst in (ME, LOCAL, ALL, solicited(ME)):
            assert code == lib.XDS_INPUT_DATAGRAM
            assert found == (data, raw(NEAR[0]), 5, raw(dst), 6, 0, 64)
        else:
            assert code == lib.XDS_EFOREIGN
        self.settle()

    @rule(
        what=st.sampled_from(["to a group", "ping", "in", "join", "leave", "noise"]),
        group=st.sampled_from(GROUPS),
        src=st.sampled_from(NEAR),
        dst=st.sampled_from([ME, LOCAL, NEAR[0], ALL, solicited(ME), *GROUPS]),
        data=st.binary(max_size=20),
    )
    def whatever_asks_for_no_neighbour(self, what: str, group: str, src: str, dst: str, data: bytes) -> None:
        if what == "to a group":
            self.to_a_group(group, len(data))
        elif what == "ping":
            self.ping(src, data)
        elif what == "in":
            self.datagram_in(dst, data)
        elif what == "noise":
            self.noise(data, sum(data))
        else:
            (self.join if what == "join" else self.leave)(group)

    def join(self, group: str) -> None:
        assert lib.xds_host_join6(self.host.h, raw(group)) == 0
        self.groups.add(group)
        self.settle()

    def leave(self, group: str) -> None:
        assert lib.xds_host_leave6(self.host.h, raw(group)) == (0 if group in self.groups else lib.XDS_ESTATE)
        self.groups.discard(group)
        self.settle()

    @rule(who=st.sampled_from([*NEAR, ROUTER]), mac=st.sampled_from(MACS))
    def fix(self, who: str, mac: str) -> None:
        assert lib.xds_host_add_neighbour6(self.host.h, raw(who), raw_mac(mac)) == 0
        entry = self.entry(who)
        entry.mac, entry.fixed, entry.due = mac, True, None
        self.release(entry)
        self.settle()

    @rule(after=st.sampled_from([0, 1, SECOND // 2, SECOND, 2 * SECOND, AGE, AGE + 1]))
    def wait(self, after: int) -> None:
        """Whatever is due, at any time after: three questions, then who never answers is given up."""
        self.now += after
        lib.xds_host_tick(self.host.h, self.now)
        for at, ip in enumerate(self.table):
            entry = self.known.get(ip)
            if entry is None or entry.due is None or entry.due > self.now:
                continue
            if entry.tries < TRIES:
                self.ask(ip)
            else:
                self.lost += len(entry.held)
                del self.known[ip]
                self.table[at] = ""
        self.settle()

    @precondition(lambda self: any(entry.due is not None for entry in self.known.values()))
    @rule()
    def wait_until_something_is_due(self) -> None:
        self.wait(max(0, self.host.deadline - self.now))

    def noise(self, garbage: bytes, at: int) -> None:
        """What is no frame changes nothing but the counters: damage that the checksum shows."""
        frame = bytearray(bytes(frame6(S.UDP(sport=5, dport=6), S.Raw(garbage), src=NEAR[0], dst=ME)))
        frame[54 + at % (len(frame) - 54)] ^= 1 << at % 8
        code, _ = self.input(bytes(frame))
        assert code in (lib.XDS_EMALFORMED, lib.XDS_ETRUNC)
        self.settle()

    # -- at all times

    @invariant()
    def stands(self) -> None:
        if not hasattr(self, "host"):
            return
        stats = self.host.stats
        assert stats.received == sum(stats.reasons) == self.received
        assert (stats.ndp_asked, stats.held_lost) == (self.asked, self.lost)
        dues = [entry.due for entry in self.known.values() if entry.due is not None]
        assert self.host.deadline == min(dues, default=lib.XDS_NEVER)


Model.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no fault
)
TestModel = Model.TestCase
