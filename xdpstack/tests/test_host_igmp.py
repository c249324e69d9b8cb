"""cores/host: groups reported by IGMPv3, and by versions 2 and 1 where these are asked for (RFC 3376)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import lib
from xdpstack.tests.host6_driver import Host6, S, raw
from xdpstack.tests.host_driver import MAC, ME, PEER, SECOND, Host, raw_ip, scapy

Ether, IP, Raw = scapy.Ether, scapy.IP, scapy.Raw
igmp = pytest.importorskip("scapy.contrib.igmp", reason="scapy is the second opinion of this file")
igmpv3 = pytest.importorskip("scapy.contrib.igmpv3")

ROUTER, G, H = "10.0.0.254", "239.1.2.3", "233.54.12.111"
NEVER = lib.XDS_NEVER
RECORDS = {1: "is_in", 2: "is_ex", 3: "to_in", 4: "to_ex", 5: "allow", 6: "block"}


def host(**config):
    h = Host(flags=lib.XDS_HOST_REPORTS, **config)
    assert lib.xds_host_leave(h.h, raw_ip(H)) == 0  # the driver's own
    run(h, 60 * SECOND)
    return h


def join(h, group=G, *sources):
    if not sources:
        return lib.xds_host_join(h.h, raw_ip(group))
    return [lib.xds_host_join_source(h.h, raw_ip(group), raw_ip(s)) for s in sources][-1]


def leave(h, group=G):
    return lib.xds_host_leave(h.h, raw_ip(group))


def read(frame):
    """(word, group, sources) of the one record of a report, everything round it checked."""
    assert frame.src == MAC
    ip = frame[IP]
    assert (ip.ttl, ip.tos, ip.proto, ip.ihl, ip.src) == (1, 0xC0, 2, 6, ME)
    assert bytes(ip.options[0]) == b"\x94\x04\0\0", "router alert"
    assert scapy.checksum(bytes(ip)[:24]) == 0
    message = bytes(ip)[24 : ip.len]
    assert scapy.checksum(message) == 0
    last = bytes(int(part) for part in ip.dst.split("."))
    assert frame.dst == f"01:00:5e:{last[1] & 0x7F:02x}:{last[2]:02x}:{last[3]:02x}"
    if message[0] != 0x22:
        old = igmp.IGMP(message)
        assert ip.dst == ("224.0.0.2" if old.type == 0x17 else old.gaddr)
        return {0x12: "v1", 0x16: "v2", 0x17: "v2_leave"}[old.type], old.gaddr, ()
    assert ip.dst == "224.0.0.22"
    assert message[:2] + message[4:8] == b"\x22\0\0\0\0\x01", "one record"
    record = igmpv3.IGMPv3gr(message[8:])
    assert (record.auxdlen, record.numsrc) == (0, len(record.srcaddrs))
    return RECORDS[record.rtype], record.maddr, tuple(record.srcaddrs)


def run(h, end):
    """(ns, what was reported) up to ``end``."""
    found = []
    while h.deadline <= end:
        now = max(h.deadline, 0)
        found += [(now, read(frame)) for frame in h.tick(now)]
        assert h.deadline > now
    return found


def query(group="0.0.0.0", code=100, sources=(), version=3, dst=None, qrv=2, ttl=1):
    dst = dst or (group if group != "0.0.0.0" else "224.0.0.1")
    if version == 3:
        message = struct.pack("!BBH4sBBH", 0x11, code, 0, scapy.inet_aton(group), qrv, 125, len(sources))
        message += b"".join(scapy.inet_aton(source) for source in sources)
    else:
        message = b"\x11" + bytes([0 if version == 1 else code]) + b"\0\0" + scapy.inet_aton(group)
    sum_ = scapy.checksum(message)
    message = message[:2] + sum_.to_bytes(2, "big") + message[4:]
    options = [scapy.IPOption_Router_Alert()]
    return (
        Ether(src=PEER, dst="01:00:5e:00:00:01")
        / IP(src=ROUTER, dst=dst, ttl=ttl, proto=2, options=options)
        / Raw(message)
    )


@pytest.mark.parametrize("sources", [(), ("192.0.2.1",), ("192.0.2.1", "192.0.2.2")])
@pytest.mark.parametrize("seed", range(2))
def test_a_join_and_a_leave_are_said_twice(sources, seed):
    h = host(seed=seed)
    assert join(h, G, *sources) == 0
    reports = run(h, 99 * SECOND)
    assert [what for _, what in reports] == [("allow" if sources else "to_ex", G, sources)] * 2
    assert (reports[0][0], 0 < reports[1][0] - reports[0][0] <= SECOND) == (0, True)
    assert leave(h) == 0
    assert [what for _, what in run(h, 99 * SECOND)] == [("block" if sources else "to_in", G, sources)] * 2
    assert h.deadline == NEVER
    assert leave(h) == lib.XDS_ESTATE


def test_a_querier_says_how_often():
    h = host()
    assert h.input(query(qrv=5)) == (0, None)
    join(h)
    assert len(run(h, 99 * SECOND)) == 5
    h.input(query(qrv=0), now=100 * SECOND)  # not said: as before
    run(h, 199 * SECOND)
    leave(h)
    assert len(run(h, 299 * SECOND)) == 5


@pytest.mark.parametrize(
    ("code", "longest"), [(1, 0.1), (100, 10), (127, 12.7), (0x80, 12.8), (0xFF, 3174.4)]
)
def test_a_general_query_is_answered_for_each_group_within_its_time(code, longest):
    waits = set()
    for seed in range(8):
        h = host(seed=seed)
        join(h, G)
        join(h, "239.1.2.4", "192.0.2.1", "192.0.2.2")
        run(h, 99 * SECOND)
        assert h.input(query(code=code), now=100 * SECOND) == (0, None)
        answers = run(h, 10_000 * SECOND)
        assert sorted(what for _, what in answers) == [
            ("is_ex", G, ()),
            ("is_in", "239.1.2.4", ("192.0.2.1", "192.0.2.2")),
        ]
        assert all(100 * SECOND <= at < (100 + longest) * SECOND for at, _ in answers)
        waits |= {at for at, _ in answers}
    assert len(waits) > 8, "not all at once"


def test_a_query_of_a_group_is_answered_for_that_and_one_of_sources_for_those_that_are_wanted():
    h = host()
    join(h, G, "192.0.2.1", "192.0.2.2", "192.0.2.3")
    join(h, "239.1.2.4")
    run(h, 99 * SECOND)
    h.input(query("239.1.2.4"), now=100 * SECOND)
    assert [what for _, what in run(h, 199 * SECOND)] == [("is_ex", "239.1.2.4", ())]
    h.input(query(G, sources=["192.0.2.2", "192.0.2.9"]), now=200 * SECOND)
    assert [what for _, what in run(h, 299 * SECOND)] == [("is_in", G, ("192.0.2.2",))]
    h.input(query(G, sources=["192.0.2.9"]), now=300 * SECOND)
    assert run(h, 399 * SECOND) == [], "nothing of that is wanted"
    h.input(query("239.1.2.4", sources=["192.0.2.9"]), now=400 * SECOND)
    assert [what for _, what in run(h, 499 * SECOND)] == [("is_ex", "239.1.2.4", ())]
    h.input(query(G, sources=["192.0.2.1"]), now=500 * SECOND)
    h.input(query(G, sources=["192.0.2.3"]), now=500 * SECOND)
    assert [what for _, what in run(h, 599 * SECOND)] == [("is_in", G, ("192.0.2.1", "192.0.2.3"))]
    h.input(query("239.9.9.9", dst=ME), now=600 * SECOND)
    assert run(h, 699 * SECOND) == []


@pytest.mark.parametrize(
    ("version", "words"), [(2, ["v2", "v2", "v2", "v2_leave", "v2_leave"]), (1, ["v1", "v1", "v1"])]
)
def test_an_older_querier_is_answered_in_its_own_words_until_it_is_gone(version, words):
    h = host()
    h.input(query(version=version))
    join(h)
    said = [what[0] for _, what in run(h, 50 * SECOND)]
    h.input(query(version=version), now=60 * SECOND)
    said += [what[0] for _, what in run(h, 90 * SECOND)]
    leave(h)
    said += [what[0] for _, what in run(h, 199 * SECOND)]
    assert said == words
    join(h)
    lib.xds_host_tick(h.h, 321 * SECOND)  # 260 s after the last of its queries
    assert read(h.output()[0])[0] == "to_ex"


def test_in_version_2_who_hears_another_report_is_quiet():
    h = host()
    join(h)
    h.input(query(version=2))
    run(h, 40 * SECOND)
    h.input(query(version=2), now=50 * SECOND)
    report = bytes(igmp.IGMP(type=0x16, gaddr=G))[:2] + b"\0\0" + scapy.inet_aton(G)
    report = report[:2] + scapy.checksum(report).to_bytes(2, "big") + report[4:]
    other = Ether(src=PEER, dst="01:00:5e:01:02:03") / IP(src="10.0.0.3", dst=G, ttl=1, proto=2) / Raw(report)
    assert h.input(other, now=50 * SECOND) == (0, None)
    assert run(h, 99 * SECOND) == []


@pytest.mark.parametrize(
    "frame",
    [
        query(dst=G),  # a general query goes to everybody
        query(G, dst=H),
        query("10.0.0.1", dst="224.0.0.1"),
        query(ttl=2),
        Ether(src=PEER, dst=MAC) / IP(src=ROUTER, dst=ME, ttl=1, proto=2) / Raw(b"\x11\0\0\0\0\0\0"),
        Ether(src=PEER, dst=MAC) / IP(src=ROUTER, dst=ME, ttl=1, proto=2) / Raw(b"\x11\x64\0\0\0\0\0\0"),
    ],
    ids=["general to a group", "to another group", "of no group", "from afar", "short", "checksum"],
)
def test_what_is_no_query_is_counted(frame):
    h = host()
    join(h, G)
    join(h, H)
    run(h, 99 * SECOND)
    before = h.reasons().get("igmp_bad", 0)
    assert h.input(frame, now=100 * SECOND)[0] == lib.XDS_EMALFORMED
    assert h.reasons()["igmp_bad"] == before + 1
    assert run(h, 999 * SECOND) == []


def test_a_query_cut_anywhere_surprises_nobody():
    whole = bytes(query(G, sources=["192.0.2.1", "192.0.2.2"]))
    for length in range(len(whole)):
        h = host()
        join(h)
        assert h.input(whole[:length])[0] < 0, length


def test_what_cannot_be_joined():
    h = host(groups=2)
    assert join(h, "10.0.0.1") == join(h, "10.0.0.1", "192.0.2.1") == lib.XDS_ECONFIG
    assert join(h, G, "0.0.0.0") == join(h, G, "239.1.1.1") == lib.XDS_ECONFIG
    assert join(h, G, *[f"192.0.2.{n}" for n in range(1, 9)]) == 0
    assert join(h, G, "192.0.2.1") == 0
    assert join(h, G, "192.0.2.9") == lib.XDS_ECAPACITY
    assert join(h, H) == 0
    assert join(h, H, "192.0.2.1") == lib.XDS_ESTATE
    assert join(h, "239.9.9.9") == join(h, "239.9.9.9", "192.0.2.1") == lib.XDS_ECAPACITY
    assert join(h, G) == 0, "from anybody from now on"
    run(h, 99 * SECOND)
    assert leave(h) == 0
    assert {what for _, what in run(h, 199 * SECOND)} == {("to_in", G, ())}


def test_without_the_flag_nothing_is_said_and_queries_are_another_protocol():
    h = Host()
    join(h)
    assert h.deadline == NEVER
    assert h.input(query(G))[0] == lib.XDS_EFOREIGN
    assert leave(h) == 0
    assert h.output() == []


def test_reports_that_find_no_slot_are_said_later():
    h = host(slots=1)
    for n in range(4):
        join(h, f"239.0.0.{n + 1}")
    said = [what for _, what in run(h, 99 * SECOND)]
    assert sorted(said) == sorted([("to_ex", f"239.0.0.{n + 1}", ()) for n in range(4)] * 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["join", "source", "leave", "query", "time"]),
            st.integers(0, 3),
            st.integers(1, 3),
        ),
        max_size=40,
    ),
    st.integers(0, 2**32),
)
def test_whatever_is_joined_and_left_the_last_reports_say_what_is_wanted(steps, seed):
    """What a router makes of the reports is, once all is said, what is wanted."""
    h = host(seed=seed, groups=4)
    wanted: dict[str, set[str] | None] = {}  # None: from anybody
    router: dict[str, set[str] | None] = {}
    now = 100 * SECOND

    def hear(end):
        for _, (word, group, sources) in run(h, end):
            if word in ("to_ex", "is_ex"):
                router[group] = None
            elif word == "to_in":
                router[group] = set()
            elif word == "allow":
                there = router.get(group, set())
                router[group] = None if there is None else there | set(sources)
            elif word == "block":
                there = router.get(group, set())
                router[group] = None if there is None else there - set(sources)

    for word, which, source in steps:
        group = f"239.0.0.{which + 1}"
        if word == "join":
            assert join(h, group) == 0
            wanted[group] = None
        elif word == "source":
            code = join(h, group, f"192.0.2.{source}")
            if group in wanted and wanted[group] is None:
                assert code == lib.XDS_ESTATE
            else:
                assert code == 0
                wanted.setdefault(group, set()).add(f"192.0.2.{source}")
        elif word == "leave":
            assert leave(h, group) == (0 if group in wanted else lib.XDS_ESTATE)
            wanted.pop(group, None)
        elif word == "query":
            assert h.input(query(), now=now) == (0, None)
        else:
            now += source * SECOND
        hear(now)
    hear(now + 60 * SECOND)
    assert h.deadline == NEVER
    assert {group: found for group, found in router.items() if found != set()} == wanted


def leave_source(h, source, group=G):
    return lib.xds_host_leave_source(h.h, raw_ip(group), raw_ip(source))


def changes(h, end):
    """Each report of changes up to ``end``: its records, [(word, sources)]."""
    found = []
    while h.deadline <= end:
        for frame in h.tick(max(h.deadline, 0)):
            message = bytes(frame[IP])[24 : frame[IP].len]
            assert scapy.checksum(message) == 0
            records, at = [], 8
            for _ in range(int.from_bytes(message[6:8], "big")):
                count = int.from_bytes(message[at + 2 : at + 4], "big")
                record = igmpv3.IGMPv3gr(message[at : at + 8 + 4 * count])
                assert record.maddr == G
                records.append((RECORDS[record.rtype], sorted(record.srcaddrs)))
                at += 8 + 4 * count
            assert at == len(message)
            found.append(records)
    return found


def test_sources_are_blocked_one_by_one():
    """RFC 3376 5.1: the change, twice."""
    a, b, c = "10.0.0.7", "10.0.0.8", "10.0.0.9"
    h = host()
    join(h, G, a, b)
    assert changes(h, 100 * SECOND) == [[("allow", [a, b])]] * 2
    assert join(h, G, c) == 0
    assert leave_source(h, a) == 0
    assert changes(h, 200 * SECOND) == [[("allow", [b, c]), ("block", [a])]] * 2
    assert leave_source(h, a) == lib.XDS_ESTATE
    assert leave_source(h, b) == 0
    assert join(h, G, b) == 0, "and back before it was said"
    assert changes(h, 300 * SECOND) == [[("allow", [b, c])]] * 2
    assert leave_source(h, b) == 0
    changes(h, 400 * SECOND)
    assert leave_source(h, c) == 0
    assert changes(h, 500 * SECOND) == [[("block", [c])]] * 2, "the last one's end is the group's"
    assert leave(h) == lib.XDS_ESTATE
    assert h.deadline == NEVER


def test_from_anybody_to_a_list_is_a_change_of_mode():
    h = host()
    assert join(h) == 0
    run(h, 100 * SECOND)
    assert leave(h) == 0
    assert join(h, G, "10.0.0.7") == 0
    assert changes(h, 200 * SECOND) == [[("to_in", ["10.0.0.7"])]] * 2
    assert join(h) == 0
    assert changes(h, 300 * SECOND) == [[("to_ex", [])]] * 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("jlJLw"), st.integers(1, 9)), max_size=30),
    st.sampled_from(["v4", "v6"]),
)
def test_a_router_that_heard_every_report_knows_what_is_wanted(steps, family):
    """A router's side of RFC 3376 6.4 and 3810 7.4, kept by the reports alone, agrees with a model of the
    calls once all was said."""
    four = family == "v4"
    h = host() if four else six_host()
    group = raw_ip(G) if four else raw(GROUP6)
    call = {
        name: getattr(lib, f"xds_host_{name}{'' if four else '6'}")
        for name in ("join", "leave", "join_source", "leave_source")
    }
    of = (lambda n: f"10.0.0.{n}") if four else (lambda n: f"fd00::{n}")
    raw_of = (lambda n: raw_ip(of(n))) if four else (lambda n: raw(of(n)))
    wanted: set[str] | None = set()  # None: anybody
    router: set[str] | None = set()
    now = 100 * SECOND
    for step, n in [*steps, ("w", 0)]:
        if step == "J":
            assert call["join"](h.h, group) == 0
            wanted = None
        elif step == "L":
            assert call["leave"](h.h, group) == (0 if wanted is None or wanted else lib.XDS_ESTATE)
            wanted = set()
        elif step == "j":
            full = wanted is not None and len(wanted) == 8 and of(n) not in wanted
            code = call["join_source"](h.h, group, raw_of(n))
            assert code == (lib.XDS_ESTATE if wanted is None else lib.XDS_ECAPACITY if full else 0)
            if code == 0:
                wanted.add(of(n))
        elif step == "l":
            code = call["leave_source"](h.h, group, raw_of(n))
            assert code == (0 if wanted and of(n) in wanted else lib.XDS_ESTATE)
            if code == 0:
                wanted.discard(of(n))
        else:
            now += 100 * SECOND
            for records in changes(h, now) if four else changes6(h, now):
                for word, sources in records:
                    router = heard(router, word, set(sources))
            assert router == wanted


def heard(router, word, sources):
    """What a router has of a group, after a record about it."""
    if word in ("to_ex", "is_ex"):
        return None
    if word in ("to_in", "is_in"):
        return sources
    if router is None:  # it asks, and keeps it from anybody until nobody answers
        return None
    return router | sources if word == "allow" else router - sources


GROUP6 = "ff05::1234"


def six_host():
    h = Host6(addresses=("fe80::a/64",), group=None, flags=lib.XDS_HOST_REPORTS)
    while h.deadline <= 60 * SECOND:
        h.tick(max(h.deadline, 0))
    return h


def changes6(h, end):
    found = []
    while h.deadline <= end:
        for frame in h.tick(max(h.deadline, 0)):
            one, records = frame[S.ICMPv6MLReport2].records[0], []
            while S.ICMPv6MLDMultAddrRec in one:
                records.append((RECORDS[one.rtype], one.sources))
                one = one.payload
            found.append(records)
    return found
