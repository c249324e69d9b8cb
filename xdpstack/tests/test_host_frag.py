"""cores/host: fragments put together, against a model that keeps every byte, with scapy as the sender."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import lib
from xdpstack.tests.host_driver import MAC, ME, PEER, SECOND, THEM, Host, raw_ip, raw_mac, scapy, verified

Ether, IP, UDP, ICMP, Raw, Dot1Q = (
    getattr(scapy, name) for name in ("Ether", "IP", "UDP", "ICMP", "Raw", "Dot1Q")
)
PROTOCOL = 99


def joining(fragments=4, **settings):
    h = Host(fragments=fragments, **settings)
    assert lib.xds_host_take(h.h, PROTOCOL) == 0
    return h


def piece(data, at, more, number=1, **fields):
    """``at`` in bytes."""
    flags = "MF" if more else 0
    ip = {"src": THEM, "dst": ME, "id": number, "proto": PROTOCOL, "flags": flags, "frag": at // 8} | fields
    return Ether(src=PEER, dst=MAC) / IP(**ip) / Raw(data)


def words(h):
    return {name: n for name, n in h.reasons().items() if name.startswith(("frag", "handed", "delivered"))}


@pytest.mark.parametrize("order", ["forward", "backward", "mixed"])
@pytest.mark.parametrize("size", [1473, 4000, 65507])
def test_datagrams_that_scapy_cut_come_whole(size, order):
    h = joining()
    for number in range(3):
        payload = random.Random(size + number).randbytes(size)
        whole = IP(src=THEM, dst=ME, id=number, tos=4) / UDP(sport=1, dport=2) / Raw(payload)
        pieces = scapy.fragment(whole, 1480)
        if order == "backward":
            pieces.reverse()
        elif order == "mixed":
            random.Random(number).shuffle(pieces)
        got = [h.input(Ether(src=PEER, dst=MAC) / Dot1Q(vlan=3) / p) for p in pieces]
        assert [code for code, _ in got[:-1]] == [0] * (len(pieces) - 1)
        assert got[-1][0] == 1
        assert (got[-1][1][0] == payload, got[-1][1][2:]) == (True, (1, raw_ip(ME), 2))
        lib.xds_host_release(h.h)
    assert h.stats.reassembled == 3
    assert h.deadline == lib.XDS_NEVER


def test_a_wrong_checksum_over_the_whole_is_refused_and_its_slab_is_free_again():
    h = joining(fragments=1)
    for number in range(3):
        whole = IP(src=THEM, dst=ME, id=number) / UDP(chksum=1) / Raw(b"x" * 100)
        codes = [h.input(Ether(src=PEER, dst=MAC) / p)[0] for p in scapy.fragment(whole, 48)]
        assert codes == [0, 0, lib.XDS_EMALFORMED]
    assert h.reasons()["udp_checksum"] == 3


class Model:
    """Every byte in a dict; the rules as they are said in words."""

    def __init__(self, bound):
        self.bound, self.open = bound, {}

    def take(self, data, at, more, number, tos):
        end = at + len(data)
        if not data or (more and len(data) % 8) or 20 + end > 65535:
            return "fragment_bad", None
        g = self.open.setdefault(number, {"bytes": {}, "total": None, "broken": False, "ecn": set()})
        if g["broken"]:
            return "fragment_broken", None
        have, total = g["bytes"], g["total"]
        behind = any(place >= end for place in have) and not more
        behind = behind or (total is not None and (end > total or (not more and end != total)))
        there = [position in have for position in range(at, end)]
        if end > self.bound:
            reason = "fragment_large"
        elif behind:
            reason = "fragment_overlap"
        elif all(there):
            return "fragment_copy", None
        elif any(there):
            reason = "fragment_overlap"
        else:
            g["ecn"].add(tos & 3)
            reason = "fragment_ecn" if 0 in g["ecn"] and len(g["ecn"]) > 1 else "fragment"
        if reason != "fragment":
            g["broken"] = True
            return reason, None
        have.update(zip(range(at, end), data, strict=True))
        if at == 0:
            g["tos"] = tos
        if not more:
            g["total"] = end
        if g["total"] != len(have):
            return reason, None
        del self.open[number]
        return "handed_over", (bytes(have[i] for i in sorted(have)), g["tos"] | (3 if 3 in g["ecn"] else 0))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),  # which datagram
            st.integers(0, 6),  # eights of bytes before it
            st.integers(0, 4),  # eights of bytes in it
            st.sampled_from([0, 0, 0, 1, 7]),  # and these
            st.booleans(),
            st.sampled_from([0x20, 0x20, 0x20, 0x22, 0x23]),
        ),
        max_size=30,
    )
)
def test_any_pieces_in_any_order_are_what_the_model_says(steps):
    h, model = joining(fragments=3, fragment_bytes=64), Model(64)
    for i, (number, at, eights, odd, more, tos) in enumerate(steps):
        data = bytes([i + 1]) * (8 * eights + odd)
        before = h.reasons()
        more = more or not at  # else it is no fragment
        code, got = h.input(piece(data, 8 * at, more, number, tos=tos))
        reason, want = model.take(data, 8 * at, more, number, tos)
        after = h.reasons()
        assert {k: n - before.get(k, 0) for k, n in after.items() if n != before.get(k, 0)} == {reason: 1}
        assert (got.data, got.tos) == want if want else got is None, (code, reason)
        lib.xds_host_release(h.h)


def test_a_datagram_of_too_many_pieces_apart_is_given_up():
    h = joining()
    codes = [h.input(piece(b"x" * 8, 16 * i, True))[0] for i in range(33)]
    assert codes == [0] * 32 + [lib.XDS_ECAPACITY]
    assert words(h) == {"fragment": 32, "fragment_large": 1}


def test_without_slabs_fragments_are_refused_and_with_too_few_the_oldest_goes():
    h = joining(fragments=0)
    assert h.input(piece(b"x" * 8, 0, True))[0] == lib.XDS_EMALFORMED
    assert h.reasons() == {"ip_fragment": 1}
    h = joining(fragments=2)
    for number in (1, 2, 3):
        assert h.input(piece(b"x" * 8, 0, True, number), now=number)[0] == 0
    assert h.input(piece(b"y", 8, False, 1), now=4)[0] == 0, "its first piece is gone: 2 went for it"
    assert h.input(piece(b"y", 8, False, 3), now=5)[1].data == b"x" * 8 + b"y"
    assert h.stats.fragments_evicted == 2


def test_what_was_handed_over_is_kept_until_it_is_released():
    h = joining(fragments=1)
    h.input(piece(b"x" * 8, 0, True))
    assert h.input(piece(b"y", 8, False))[0] == lib.XDS_INPUT_PACKET
    packet = lib.xds_host_packet(h.h)
    where = packet.data
    assert h.input(piece(b"z" * 8, 0, True, 2))[0] == lib.XDS_ECAPACITY
    assert h.reasons()["fragment_lent"] == 1
    assert bytes(where[0:9]) == b"x" * 8 + b"y"
    lib.xds_host_release(h.h)
    assert h.input(piece(b"z" * 8, 0, True, 2))[0] == 0


def test_time_that_is_over_is_told_to_the_sender_if_the_first_piece_came():
    h = joining()
    assert lib.xds_host_add_neighbour(h.h, raw_ip(THEM), raw_mac(PEER)) == 0
    first = piece(b"first!!!" * 4, 0, True, 1, options=[scapy.IPOption(b"\x01" * 4)])
    h.input(first, now=SECOND)
    h.input(piece(b"last", 64, False, 2), now=2 * SECOND)
    assert h.deadline == 31 * SECOND
    assert h.tick(31 * SECOND - 1) == []
    (told,) = h.tick(31 * SECOND)
    verified(told)
    assert (told.dst, told[IP].src, told[IP].dst, told[IP].tos) == (PEER, ME, THEM, 0xC0)
    assert (told[ICMP].type, told[ICMP].code) == (11, 1)
    assert bytes(told[ICMP].payload) == bytes(first[IP])
    assert h.tick(32 * SECOND) == [], "nothing to quote"
    assert h.stats.fragments_expired == 2
    assert h.deadline == lib.XDS_NEVER


def test_what_broke_stays_broken_until_its_time_is_over_and_nobody_is_told():
    h = joining()
    h.input(piece(b"x" * 16, 0, True), now=0)
    assert h.input(piece(b"y" * 16, 8, True), now=1)[0] == lib.XDS_EMALFORMED
    assert h.input(piece(b"z", 24, False), now=2)[0] == lib.XDS_EMALFORMED
    assert words(h) == {"fragment": 1, "fragment_overlap": 1, "fragment_broken": 1}
    assert h.tick(30 * SECOND) == []
    assert h.input(piece(b"x" * 16, 0, True), now=31 * SECOND)[0] == 0


def test_lengths_that_cannot_be_are_refused():
    h = joining()
    bad = [
        piece(b"x" * 9, 0, True),  # not of eights, and more to come
        piece(b"", 8, False),
        piece(b"x" * 24, 8 * 8189, False),  # past 65,535
    ]
    assert [h.input(frame)[0] for frame in bad] == [lib.XDS_EMALFORMED] * 3
    assert words(h) == {"fragment_bad": 3}
    assert Host(fragments=1).input(piece(b"x" * 8, 8, False))[0] == 0
