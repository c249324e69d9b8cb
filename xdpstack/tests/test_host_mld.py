"""cores/host: groups of IPv6 that are listened to, as MLD tells the routers."""

from __future__ import annotations

import pytest

from xdpstack._ffi import lib
from xdpstack.tests.host6_driver import (
    ALL,
    GROUP,
    LOCAL,
    ME,
    ROUTER,
    Host6,
    S,
    frame6,
    mac_of,
    raw,
    solicited,
)
from xdpstack.tests.host_driver import MAC, SECOND

V2 = "ff02::16"
NODE = solicited(ME)


def host(own=(f"{ME}/64", f"{LOCAL}/64"), group=None, **settings):
    return Host6(addresses=own, group=group, flags=lib.XDS_HOST_REPORTS, **settings)


def quiet(h, until=600 * SECOND):
    """Every report up to then, as (ns, group, type or record type)."""
    seen = []
    while h.deadline <= until:
        now = max(h.deadline, 0)
        for frame in h.tick(now):
            if S.ICMPv6MLReport2 in frame:
                (record,) = frame[S.ICMPv6MLReport2].records
                seen.append((now, record.dst, record.rtype))
            elif S.ICMPv6MLReport in frame:
                seen.append((now, frame[S.ICMPv6MLReport].mladdr, "v1"))
            elif S.ICMPv6MLDone in frame:
                seen.append((now, frame[S.ICMPv6MLDone].mladdr, "done"))
    return seen


def query(group="::", wait=1000, dst=None, version=2, src=ROUTER, hlim=1, alert=True, **fields):
    dst = dst or (ALL if group == "::" else group)
    layer = S.ICMPv6MLQuery2 if version == 2 else S.ICMPv6MLQuery
    head = [S.IPv6ExtHdrHopByHop(options=[S.RouterAlert()])] if alert else []
    return frame6(*head, layer(mladdr=group, mrd=wait, **fields), src=src, dst=dst, hlim=hlim)


def test_a_join_is_reported_twice_as_scapy_would_write_it():
    h = host(group=GROUP)
    h.tick(0)
    h = host(own=(f"{LOCAL}/64",), group=GROUP)
    frames = h.tick(0)
    assert len(frames) == 2, "the group, and the solicited-node group of our address"
    (frame,) = (f for f in frames if f[S.ICMPv6MLReport2].records[0].dst == GROUP)
    want = S.Ether(src=MAC, dst=mac_of(V2)) / S.IPv6(src=LOCAL, dst=V2, hlim=1)
    want = want / S.IPv6ExtHdrHopByHop(options=[S.RouterAlert(), S.PadN()])
    want = want / S.ICMPv6MLReport2(records=[S.ICMPv6MLDMultAddrRec(rtype=4, dst=GROUP)])
    assert bytes(frame) == bytes(want)
    rest = quiet(h)
    assert sorted(group for _, group, _ in rest) == sorted([GROUP, solicited(LOCAL)])
    assert all(0 < at <= SECOND for at, _, _ in rest)
    assert h.stats.mld_reports == 4
    assert h.deadline == lib.XDS_NEVER


def test_without_a_link_local_address_reports_come_from_nobody():
    h = host(own=(f"{ME}/64",))
    assert {f[S.IPv6].src for f in h.tick(0)} == {"::"}


def test_leaving_is_reported_and_the_group_forgotten():
    h = host(group=GROUP)
    quiet(h)
    assert lib.xds_host_leave6(h.h, raw(GROUP)) == 0
    assert [(g, t) for _, g, t in quiet(h, 700 * SECOND)] == [(GROUP, 3)] * 2
    assert lib.xds_host_join6(h.h, raw(GROUP)) == 0
    assert lib.xds_host_leave6(h.h, raw(GROUP)) == 0
    assert [(g, t) for _, g, t in quiet(h, 800 * SECOND)] == [(GROUP, 3)] * 2, "the last change counts"


@pytest.mark.parametrize("group", [ALL, "ff01::5"])
def test_what_needs_no_report_has_none(group):
    h = host()
    quiet(h)
    assert lib.xds_host_join6(h.h, raw(group)) == 0
    assert quiet(h) == []
    assert h.reason(query()) == "mld"
    assert {g for _, g, _ in quiet(h)} == {NODE, solicited(LOCAL)} - {group}


@pytest.mark.parametrize("wait", [0, 1000, 10000, 0x8000, 0xFFFF])
def test_a_general_query_is_answered_for_each_group_within_its_time(wait):
    h = host(group=GROUP)
    quiet(h)
    assert h.reason(query(wait=wait), now=1000 * SECOND) == "mld"
    longest = wait if wait < 32768 else ((wait & 0xFFF) | 0x1000) << ((wait >> 12 & 7) + 3)
    seen = quiet(h, 10**9 * SECOND)
    assert sorted((g, t) for _, g, t in seen) == sorted((g, 2) for g in (GROUP, NODE, solicited(LOCAL)))
    assert all(0 <= at - 1000 * SECOND <= longest * 10**6 for at, _, _ in seen)
    assert h.stats.mld_queries == 1


def test_a_query_for_a_group_is_answered_for_that_group():
    h = host(group=GROUP)
    quiet(h)
    assert h.reason(query(GROUP)) == "mld"
    assert [(g, t) for _, g, t in quiet(h)] == [(GROUP, 2)]
    assert h.reason(query(GROUP, dst=LOCAL)) == "mld", "sent to us alone"
    assert len(quiet(h)) == 1
    assert h.reason(query("ff05::77", dst=LOCAL)) == "mld"
    assert quiet(h) == []


def test_an_older_querier_hears_the_older_version():
    h = host(group=GROUP)
    quiet(h)
    assert h.reason(query(version=1, wait=500)) == "mld"
    seen = quiet(h, 100 * SECOND)
    assert sorted(g for _, g, t in seen if t == "v1") == sorted([GROUP, NODE, solicited(LOCAL)])
    assert lib.xds_host_leave6(h.h, raw(GROUP)) == 0
    frames = h.tick(101 * SECOND)
    assert [(f[S.IPv6].dst, f[S.ICMPv6MLDone].mladdr) for f in frames] == [("ff02::2", GROUP)]
    assert lib.xds_host_join6(h.h, raw(GROUP)) == 0
    assert h.tick(300 * SECOND)[0][S.ICMPv6MLReport2].records[0].rtype == 4, "the newer one, in time"


def test_what_another_has_reported_to_an_older_querier_is_not_said_again():
    h = host(group=GROUP)
    quiet(h)
    h.take(query(GROUP, version=1, wait=5000))
    alert = S.IPv6ExtHdrHopByHop(options=[S.RouterAlert()])
    other = frame6(alert, S.ICMPv6MLReport(mladdr=GROUP), src="fe80::7", dst=GROUP, hlim=1)
    assert h.reason(other) == "mld"
    assert quiet(h) == []


@pytest.mark.parametrize(
    "frame",
    [
        query(hlim=2),
        query(alert=False),
        query(src="2001:db8::9"),
        query(src="::"),
        query(GROUP, dst=ALL),
        query("2001:db8::9", dst=LOCAL),
        query(sources=["2001:db8::5"], sources_number=2),
    ],
)
def test_queries_that_break_the_rules_are_refused(frame):
    h = host(group=GROUP)
    quiet(h)
    assert h.reason(frame) == "mld_bad"
    assert quiet(h) == []


def test_robustness_is_the_queriers():
    h = host()
    quiet(h)
    h.take(query(QRV=5))
    quiet(h)
    lib.xds_host_join6(h.h, raw(GROUP))
    assert len(quiet(h)) == 5


def test_without_the_flag_nothing_is_said_or_heard():
    h = Host6()
    assert h.deadline == lib.XDS_NEVER
    assert h.reason(query()) == "icmp_other"


def test_reports_wait_for_a_slot_and_groups_have_a_bound():
    h = host(slots=1, groups=2)
    for n in (1, 2):
        assert lib.xds_host_join6(h.h, raw(f"ff05::{n}")) == 0
    assert lib.xds_host_join6(h.h, raw("ff05::9")) == lib.XDS_ECAPACITY
    seen = quiet(h, 30 * SECOND)
    assert sorted(g for _, g, _ in seen) == sorted(
        [f"ff05::{n}" for n in (1, 2)] * 2 + [NODE, solicited(LOCAL)] * 2
    )


SOURCES = [f"2001:db8:5::{n}" for n in range(1, 10)]


def wants(h, source, group=GROUP, leave=False):
    call = lib.xds_host_leave_source6 if leave else lib.xds_host_join_source6
    return call(h.h, raw(group), raw(source))


def said(h, until):
    """Each report's records up to then: [(type, sources)]."""
    found = []
    while h.deadline <= until:
        for frame in h.tick(max(h.deadline, 0)):
            (first,) = frame[S.ICMPv6MLReport2].records  # scapy has the second as what the first carries
            records = [one for one in (first, first.payload) if S.ICMPv6MLDMultAddrRec in one]
            assert frame[S.ICMPv6MLReport2].records_number == len(records)
            assert {record.dst for record in records} == {GROUP}
            assert bytes(S.Ether(bytes(frame))) == bytes(frame)
            found.append([(record.rtype, sorted(record.sources)) for record in records])
    return found


def listening(*sources):
    """A host that listens to these; what it has said of it is past."""
    h = host(own=(f"{LOCAL}/64",))
    quiet(h)
    for source in sources:
        assert wants(h, source) == 0
    assert said(h, 700 * SECOND) == ([[(5, sorted(sources))]] * 2 if sources else [])
    return h


def test_sources_are_allowed_and_blocked_one_by_one():
    """RFC 3810 5.2.12: the change, twice."""
    a, b, c = SOURCES[:3]
    h = listening(a, b)
    assert wants(h, c) == 0
    assert wants(h, a, leave=True) == 0
    assert said(h, 800 * SECOND) == [[(5, [b, c]), (6, [a])]] * 2
    assert wants(h, a) == 0
    assert said(h, 900 * SECOND) == [[(5, [a, b, c])]] * 2
    for source in (a, b):
        assert wants(h, source, leave=True) == 0
    assert wants(h, b) == 0, "and back before it was said"
    assert said(h, 1000 * SECOND) == [[(5, [b, c]), (6, [a])]] * 2
    assert wants(h, a, leave=True) == lib.XDS_ESTATE
    assert wants(h, b, leave=True) == 0
    said(h, 1100 * SECOND)
    assert wants(h, c, leave=True) == 0
    assert said(h, 1200 * SECOND) == [[(6, [c])]] * 2, "the last one's end is the group's"
    assert lib.xds_host_leave6(h.h, raw(GROUP)) == lib.XDS_ESTATE
    assert h.deadline == lib.XDS_NEVER


def test_from_a_list_to_anybody_and_back_is_a_change_of_mode():
    a, b = SOURCES[:2]
    h = listening(a)
    assert lib.xds_host_join6(h.h, raw(GROUP)) == 0
    assert said(h, 800 * SECOND) == [[(4, [])]] * 2
    assert wants(h, b) == lib.XDS_ESTATE, "it is wanted from anybody"
    assert lib.xds_host_leave6(h.h, raw(GROUP)) == 0
    assert wants(h, b) == 0
    assert said(h, 900 * SECOND) == [[(3, [b])]] * 2
    assert wants(h, a) == 0
    assert said(h, 1000 * SECOND) == [[(5, [a, b])]] * 2, "from then on it is a list"


def test_a_query_is_answered_with_the_sources_that_it_asks_for():
    a, b, c = SOURCES[:3]
    h = listening(a, b)
    now = 800 * SECOND
    h.take(query(GROUP, sources=[b, c], sources_number=2), now)
    assert said(h, 900 * SECOND) == [[(1, [b])]]
    h.take(query(GROUP, sources=[c], sources_number=1), 900 * SECOND)
    assert said(h, 1000 * SECOND) == [], "none of ours"
    h.take(query(GROUP, sources=[a], sources_number=1), 1000 * SECOND)
    h.take(query(GROUP, sources=[b], sources_number=1), 1000 * SECOND)
    assert said(h, 1100 * SECOND) == [[(1, [a, b])]], "two questions, one answer"
    h.take(query(GROUP), 1200 * SECOND)
    assert said(h, 1300 * SECOND) == [[(1, [a, b])]]


def test_an_older_querier_knows_no_sources():
    h = listening(SOURCES[0])
    h.take(query(version=1), 800 * SECOND)
    assert (GROUP, "v1") in [(g, t) for _, g, t in quiet(h, 900 * SECOND)]
    assert wants(h, SOURCES[0], leave=True) == 0
    assert [(g, t) for _, g, t in quiet(h, 1000 * SECOND)] == [(GROUP, "done")] * 2


def test_sources_have_bounds_and_families():
    h = listening()
    for source in SOURCES[:8]:
        assert wants(h, source) == 0
    assert wants(h, SOURCES[8]) == lib.XDS_ECAPACITY
    assert wants(h, SOURCES[0]) == 0, "it is there already"
    for group, source in (
        (GROUP, "10.0.0.2"),
        ("239.1.1.1", ME),
        (GROUP, "ff02::1"),
        (GROUP, "::"),
        (ME, ME),
    ):
        assert wants(h, source, group) == lib.XDS_ECONFIG
    for source in SOURCES[:7]:
        assert wants(h, source, leave=True) == 0
    assert said(h, 800 * SECOND) == [[(5, [SOURCES[7]]), (6, sorted(SOURCES[:7]))]] * 2


def test_a_solicited_node_group_is_wanted_from_anybody_whatever_the_user_says():
    h = host(own=(f"{LOCAL}/64",))
    mine = solicited(LOCAL)
    quiet(h)
    assert wants(h, SOURCES[0], mine) == 0
    assert quiet(h, 700 * SECOND) == []
    h.take(query(), 800 * SECOND)
    assert [(g, t) for _, g, t in quiet(h, 900 * SECOND)] == [(mine, 2)]
    assert wants(h, SOURCES[0], mine, leave=True) == 0
    assert quiet(h, 1000 * SECOND) == []


def test_a_group_is_reported_by_a_host_without_an_address():
    """RFC 3810 5.2.13."""
    h = host(own=(), group=GROUP)
    assert [(f[S.IPv6].src, f[S.ICMPv6MLReport2].records[0].dst) for f in h.tick(0)] == [("::", GROUP)]
