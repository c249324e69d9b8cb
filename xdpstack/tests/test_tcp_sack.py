"""SACK and DSACK (RFC 2018, 2883): who sends blocks, what they say, and in which order."""

from __future__ import annotations

import pytest

from xdpstack.tests.tcp_peer import FAMILIES, IRS, ISS, Peer, reasons

NOP = ("NOP", None)
SACK_OK = ("SAckOK", b"")
STAMP = [NOP, NOP, ("Timestamp", (100, 0))]


def blocks(segment):
    """The blocks of a segment of ours, counted from the peer's first byte."""
    edges = dict(segment.options).get("SAck", ())
    bytes_from = [(edge - IRS - 1) & 0xFFFFFFFF for edge in edges]
    return list(zip(bytes_from[::2], bytes_from[1::2], strict=True))


def agreed(*options, **settings):
    peer = Peer(**settings).established([SACK_OK, *options])
    assert peer.core.info().sack == 1
    return peer


def hear(peer, start, end, **kwargs):
    """Our answer to the peer's bytes from start to end."""
    text = bytes(i % 251 for i in range(start, end))
    peer.give("A", IRS + 1 + start, ISS + 1, text, **kwargs)
    return peer.take()


@pytest.mark.rfc("2018", "2")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_syn_permits_sack_unless_it_is_switched_off(family):
    assert dict(Peer(FAMILIES[family]).take().options)["SAckOK"] == b""
    assert "SAckOK" not in dict(Peer(FAMILIES[family], no_sack=1).take().options)


@pytest.mark.rfc("2018", "2")
def test_a_listener_permits_it_only_to_whom_permitted_it():
    for options, no_sack in (((), 0), ([SACK_OK], 0), ([SACK_OK], 1)):
        peer = Peer(passive=True, no_sack=no_sack)
        peer.give("S", IRS, options=options)
        both = bool(options) and not no_sack
        assert ("SAckOK" in dict(peer.take().options)) == both
        assert peer.core.info().sack == both


@pytest.mark.rfc("2018", "3")
def test_no_block_goes_to_a_peer_that_did_not_permit_it():
    peer = Peer().established()
    assert blocks(hear(peer, 100, 200)) == []


@pytest.mark.rfc("2018", "4")
def test_the_piece_that_grew_last_is_named_first_and_the_rest_in_the_order_of_their_growth():
    peer = agreed()
    for start in (100, 300, 500, 700, 900):
        answer = hear(peer, start, start + 50)
    assert blocks(answer) == [(900, 950), (700, 750), (500, 550), (300, 350)]
    assert blocks(hear(peer, 150, 200)) == [(100, 200), (900, 950), (700, 750), (500, 550)]
    assert blocks(hear(peer, 0, 100)) == [(900, 950), (700, 750), (500, 550)]
    assert answer.dataofs == (20 + 4 + 32) // 4


@pytest.mark.rfc("2018", "4")
def test_a_piece_that_joins_two_is_named_once():
    peer = agreed()
    hear(peer, 100, 150)
    hear(peer, 200, 250)
    assert blocks(hear(peer, 150, 200)) == [(100, 250)]
    answer = hear(peer, 0, 100)
    assert blocks(answer) == []
    assert answer.ack == (IRS + 251) & 0xFFFFFFFF


@pytest.mark.rfc("2018", "3")
def test_beside_a_stamp_three_blocks_fit():
    peer = agreed(*STAMP)
    for start in (100, 300, 500, 700):
        answer = hear(peer, start, start + 50, options=STAMP)
    assert blocks(answer) == [(700, 750), (500, 550), (300, 350)]
    assert len(bytes(answer)) == 60


@pytest.mark.rfc("2018", "4")
def test_blocks_do_not_wait_behind_data_that_leaves_no_room_for_them():
    peer = agreed(delayed_ack_ns=1)
    peer.core.write(b"x" * 3000)
    first = hear(peer, 100, 200)
    assert (blocks(first), len(first.payload)) == ([(100, 200)], 0)
    assert [len(peer.take().payload) for _ in range(3)] == [1000] * 3
    peer.core.write(b"y" * 100)
    short = peer.take()
    assert (blocks(short), len(short.payload)) == ([(100, 200)], 100)


@pytest.mark.rfc("2018", "3")
def test_a_fin_behind_a_hole_is_in_its_block():
    peer = agreed()
    peer.give("FA", IRS + 11, ISS + 1, b"tail")
    assert blocks(peer.take()) == [(10, 15)]


@pytest.mark.rfc("2883", "4.1")
def test_a_segment_that_came_before_is_told_once():
    peer = agreed()
    assert blocks(hear(peer, 0, 100)) == []
    assert blocks(hear(peer, 0, 100)) == [(0, 100)]
    assert blocks(hear(peer, 100, 150)) == []
    stats = peer.core.stats()
    assert (stats.dsacks_sent, stats.duplicate_bytes) == (1, 100)


@pytest.mark.rfc("2883", "4.1.2")
def test_what_came_twice_behind_a_hole_is_followed_by_its_piece():
    peer = agreed()
    hear(peer, 100, 200)
    hear(peer, 300, 400)
    assert blocks(hear(peer, 100, 200)) == [(100, 200), (100, 200), (300, 400)]
    assert blocks(hear(peer, 350, 450)) == [(350, 400), (300, 450), (100, 200)]


@pytest.mark.rfc("2883", "4.2")
def test_a_part_that_came_twice_is_told_alone():
    peer = agreed()
    hear(peer, 0, 100)
    answer = hear(peer, 50, 150)
    assert answer.ack == (IRS + 151) & 0xFFFFFFFF
    assert blocks(answer) == [(50, 100)]


@pytest.mark.rfc("2883", "4.1")
def test_a_copy_whose_stamp_is_old_by_now_is_told_too():
    peer = agreed(*STAMP)
    hear(peer, 0, 100, options=STAMP)
    hear(peer, 100, 200, options=[NOP, NOP, ("Timestamp", (200, 0))])
    answer = hear(peer, 0, 100, options=STAMP)
    assert blocks(answer) == [(0, 100)]
    assert reasons(peer.core)["paws"] == 1


@pytest.mark.rfc("2883", "4")
def test_what_lies_further_back_than_a_window_is_not_told():
    peer = agreed()
    peer.give("A", IRS + 1 - (1 << 20), ISS + 1, b"old")
    assert blocks(peer.take()) == []


def test_a_hole_too_many_is_no_block():
    peer = agreed()
    for i in range(64):
        hear(peer, 2 + 2 * i, 3 + 2 * i)
    answer = hear(peer, 200, 201)
    assert blocks(answer) == [(128, 129), (126, 127), (124, 125), (122, 123)]
    assert reasons(peer.core)["disordered"] == 1
