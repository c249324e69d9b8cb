"""cores/fix: the session, by the numbers of the FIX session layer test cases (FIX Trading Community, 2020),
as far as an initiator meets them; the peer is simplefix by hand."""

from __future__ import annotations

import pytest

from xdpstack._ffi import lib
from xdpstack.fix import FixCore, format_time
from xdpstack.tests.fix_peer import ME, NOW, PEER, SECOND, FixPeer, message, read, resum

ORDER = b"35=D\x0111=C-1\x0155=EUR/USD\x0154=1\x0138=100\x01"


def ended(events):
    """Kind and reason of the last event."""
    return events[-1].kind, events[-1].reason


# ---- 1B: connect and send Logon ----


def test_1b_the_first_message_is_a_logon_and_its_answer_opens():
    peer = FixPeer(heartbeat_s=20, username="u", password="p", sender_sub_id="desk", target_sub_id="gate")
    (logon,) = peer.said()
    assert [logon[tag] for tag in (8, 35, 49, 56, 34, 98, 108)] == ["FIX.4.4", "A", ME, PEER, "1", "0", "20"]
    assert (logon[50], logon[57], logon[553], logon[554]) == ("desk", "gate", "u", "p")
    assert logon[52] == format_time(NOW)
    assert 141 not in logon
    (event,) = peer.give("A", (98, 0), (108, 20))
    assert (event.kind, event.seq, event.number) == ("logon", 1, 20)
    assert peer.core.state == "up"


@pytest.mark.parametrize(("version", "ver"), [("FIX.4.2", None), ("FIX.4.4", None), ("FIXT.1.1", "9")])
def test_1b_versions(version, ver):
    peer = FixPeer(version)
    (logon,) = peer.said()
    assert logon[8] == version
    assert logon.get(1137) == ver
    assert FixPeer.kinds(peer.give("A", (98, 0), (108, 30))) == ["logon"]


def test_1b_a_logon_that_is_ahead_opens_and_asks():
    peer = FixPeer()
    peer.said()
    logon, gap = peer.give("A", (98, 0), (108, 30), seq=5)
    assert (logon.kind, gap.kind, gap.seq, gap.number) == ("logon", "gap", 1, 4)
    (ask,) = peer.said()
    assert (ask[35], ask[34], ask[7], ask[16]) == ("2", "2", "1", "0")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([(98, 1), (108, 30)], "EncryptMethod"),
        ([(108, 30)], "EncryptMethod"),
        ([(98, 0)], "HeartBtInt"),
        ([(98, 0), (108, -1)], "HeartBtInt"),
        ([(98, 0), (108, "x")], "HeartBtInt"),
    ],
)
def test_1b_an_invalid_logon_ends_with_a_logout(fields, text):
    peer = FixPeer()
    peer.said()
    assert ended(peer.give("A", *fields)) == ("failed", "logon_bad")
    (logout,) = peer.said()
    assert logout[35] == "5"
    assert text in logout[58]
    assert peer.core.input(b"8", NOW) == lib.XDS_ESTATE


def test_1b_another_message_first_ends_with_a_logout():
    peer = FixPeer()
    peer.said()
    assert ended(peer.give("0")) == ("failed", "no_logon")
    assert [m[35] for m in peer.said()] == ["5"]
    assert peer.reasons() == {"no_logon": 1}


def test_1b_a_refused_logon_tells_the_peers_text():
    peer = FixPeer()
    peer.said()
    logout, failed = peer.give("5", (58, "unknown user"))
    assert (logout.kind, logout.get(58)) == ("logout", b"unknown user")
    assert (failed.kind, failed.reason) == ("failed", "refused")
    assert peer.said() == []


def test_1b_no_answer_to_a_logon():
    peer = FixPeer(logon_ns=3 * SECOND)
    assert peer.core.deadline() == NOW + 3 * SECOND
    (failed,) = peer.wait(4)
    assert (failed.kind, failed.reason) == ("failed", "logon_timeout")
    assert peer.core.deadline() == lib.XDS_NEVER


def test_a_logon_with_reset_begins_at_one_again():
    peer = FixPeer(reset=1, next_out=77, next_in=99)
    (logon,) = peer.said()
    assert (logon[34], logon[141]) == ("1", "Y")
    assert FixPeer.kinds(peer.give("A", (98, 0), (108, 30), (141, "Y"))) == ["logon"]
    assert (peer.core.info()["next_out"], peer.core.info()["next_in"]) == (2, 2)


@pytest.mark.parametrize(("settings", "seq"), [({"next_out": 5}, 1), ({}, 2), ({"reset": 1}, 3)])
def test_a_reset_that_cannot_be(settings, seq):
    peer = FixPeer(**settings)
    peer.said()
    assert ended(peer.give("A", (98, 0), (108, 30), (141, "Y"), seq=seq)) == ("failed", "logon_bad")


def test_a_venue_that_always_resets_is_taken_where_our_logon_was_the_first():
    peer = FixPeer(next_in=9)
    peer.said()
    assert FixPeer.kinds(peer.give("A", (98, 0), (108, 30), (141, "Y"))) == ["logon"]
    assert peer.core.info()["next_in"] == 2


def test_numbers_are_configuration():
    peer = FixPeer(next_out=41, next_in=17)
    peer.seq = 17
    assert peer.said()[0][34] == "41"
    assert FixPeer.kinds(peer.give("A", (98, 0), (108, 30))) == ["logon"]
    info = peer.core.info()
    assert (info["next_out"], info["next_in"]) == (42, 18)


# ---- 2: the standard header ----


def test_2a_a_message_in_order_is_delivered():
    peer = FixPeer().up()
    (event,) = peer.give("8", (37, "O-1"), (97, "Y"))
    assert (event.kind, event.msg_type, event.seq, event.poss_resend) == ("message", "8", 2, True)
    assert event.get(37) == b"O-1"
    assert (event.fields[0], event.fields[-1][0]) == ((8, b"FIX.4.4"), 10)
    assert peer.reasons() == {}


def test_2b_a_message_ahead_is_dropped_and_asked_for_once():
    peer = FixPeer().up()
    raws = [peer.make("8", (37, f"O-{i}")) for i in range(2, 8)]
    assert FixPeer.kinds(peer.bytes(raws[2])) == ["gap"]
    assert FixPeer.kinds(peer.bytes(b"".join(raws[3:]))) == []
    (ask,) = peer.said()
    assert (ask[35], ask[7], ask[16]) == ("2", "2", "0")
    again = [peer.make("8", (37, f"O-{i}"), seq=i, dup=True, orig=format_time(NOW)) for i in range(2, 8)]
    events = peer.bytes(b"".join(again))
    assert [e.get(37) for e in events if e.kind == "message"] == [b"O-%d" % i for i in range(2, 8)]
    assert (events[-1].kind, events[-1].seq) == ("filled", 8)
    assert peer.reasons() == {"ahead": 4}
    assert peer.said() == []


def test_2b_what_was_sent_behind_the_answer_is_asked_for_as_well():
    """The peer answered the request, and a message came between that its answer did not hold."""
    peer = FixPeer().up()
    peer.bytes(peer.make("8", seq=4))
    peer.said()
    peer.bytes(peer.make("8", seq=2, dup=True, orig=format_time(NOW)))
    peer.bytes(peer.make("8", seq=5))  # live, in the middle of the answer: dropped
    for seq in (3, 4):
        peer.bytes(peer.make("8", seq=seq, dup=True, orig=format_time(NOW)))
    assert peer.said() == []
    peer.bytes(peer.make("8", seq=6))
    (ask,) = peer.said()
    assert (ask[7], ask[16]) == ("5", "0")


def test_2b_requests_in_parts():
    peer = FixPeer(resend_max=8).up()
    peer.bytes(peer.make("8", seq=25))
    assert [(m[7], m[16]) for m in peer.said()] == [("2", "9")]
    for first, said in ((2, [("10", "17")]), (10, [("18", "0")]), (18, [])):
        for seq in range(first, first + 8):
            peer.bytes(peer.make("8", seq=seq, dup=True, orig=format_time(NOW)))
        assert [(m[7], m[16]) for m in peer.said()] == said
    assert peer.core.info()["gap_top"] == 0


def test_2b_a_request_that_brings_nothing_is_repeated_and_then_ends_the_session():
    peer = FixPeer(resend_ns=2 * SECOND, resend_tries=2).up()
    peer.bytes(peer.make("8", seq=4))
    events = peer.wait(7)
    assert (events[-1].kind, events[-1].reason) == ("failed", "unanswered")
    assert [m[35] for m in peer.said()] == ["2", "2", "2", "5"]


def test_2c_a_low_number_ends_the_session():
    peer = FixPeer().up()
    assert ended(peer.give("8", seq=1)) == ("failed", "seq_low")
    (logout,) = peer.said()
    assert (logout[35], logout[58]) == ("5", "MsgSeqNum too low")
    assert peer.reasons() == {"seq_low": 1}


def test_2d_3c_a_garbled_message_is_passed_over_and_comes_again():
    peer = FixPeer().up()
    raw = peer.make("8", (37, "O-2"))
    assert peer.bytes(raw[:20] + raw[30:]) == []
    (gap,) = peer.give("8", (37, "O-3"))
    assert (gap.kind, gap.seq, gap.number) == ("gap", 2, 2)
    assert peer.reasons() == {"length": 1, "ahead": 1}


def test_2e_a_possible_duplicate_that_had_come_is_dropped():
    peer = FixPeer().up()
    peer.give("8")
    assert peer.give("8", seq=2, dup=True, orig=format_time(NOW - SECOND)) == []
    assert peer.reasons() == {"duplicate": 1}


def test_2e_a_possible_duplicate_that_had_not_come_is_delivered():
    peer = FixPeer().up()
    (event,) = peer.give("8", dup=True, orig=format_time(NOW - SECOND))
    assert (event.kind, event.poss_dup) == ("message", True)


@pytest.mark.parametrize("seq", [1, 2])
def test_2f_a_duplicate_from_before_it_was_first_sent(seq):
    peer = FixPeer().up()
    events = peer.give("8", seq=seq, dup=True, orig=format_time(NOW + SECOND))
    assert ended(events) == ("failed", "orig_time")
    reject, logout = peer.said()
    assert (reject[35], reject[45], reject[372], reject[373]) == ("3", str(seq), "8", "10")
    assert logout[35] == "5"


def test_2g_a_duplicate_without_orig_sending_time_is_rejected():
    peer = FixPeer().up()
    (event,) = peer.give("8", dup=True)
    assert (event.kind, event.reason, event.number, event.tag) == ("rejected", "required", 1, 122)
    (reject,) = peer.said()
    assert (reject[45], reject[371], reject[373]) == ("2", "122", "1")
    assert FixPeer.kinds(peer.give("8")) == ["message"]


def test_2i_another_begin_string_ends_the_session():
    peer = FixPeer().up()
    peer.version = "FIX.4.2"
    assert ended(peer.give("8")) == ("failed", "version")
    assert [m[35] for m in peer.said()] == ["5"]


@pytest.mark.parametrize(("names", "tag"), [({"frm": "OTHER"}, "49"), ({"to": "OTHER"}, "56")])
def test_2k_another_comp_id_ends_the_session(names, tag):
    peer = FixPeer().up()
    assert ended(peer.give("8", **names)) == ("failed", "comp_id")
    reject, logout = peer.said()
    assert (reject[35], reject[371], reject[373], logout[35]) == ("3", tag, "9", "5")


@pytest.mark.parametrize("names", [{"frm": "OTHER"}, {"to": "OTHER"}])
def test_2k_in_a_logon_as_well(names):
    peer = FixPeer()
    peer.said()
    assert ended(peer.give("A", (98, 0), (108, 30), **names)) == ("failed", "comp_id")
    assert [m[35] for m in peer.said()] == ["5"]


def test_2m_a_wrong_body_length_is_garbled():
    peer = FixPeer().up()
    raw = peer.make("8", (58, "x" * 20))
    length = int(raw.split(b"\x01")[1][2:])
    for off in (-1, 1, 5, -9):
        changed = resum(raw.replace(b"\x019=%d\x01" % length, b"\x019=%d\x01" % (length + off)))
        assert peer.bytes(changed + b"\x01" * 8) == []
    assert FixPeer.kinds(peer.bytes(raw)) == ["message"]
    assert peer.reasons() == {"length": 4}


@pytest.mark.parametrize("off", [-121, 121])
def test_2o_a_sending_time_far_from_ours_ends_the_session(off):
    peer = FixPeer().up()
    assert ended(peer.give("8", sending=format_time(NOW + off * SECOND))) == ("failed", "sending_time")
    reject, logout = peer.said()
    assert (reject[371], reject[373], logout[35]) == ("52", "10", "5")


@pytest.mark.parametrize(
    ("settings", "off"), [({}, 119), ({"no_time_check": 1}, 9999), ({"sending_time_ns": 10**12}, -999)]
)
def test_2n_how_far_is_configuration(settings, off):
    peer = FixPeer(**settings).up()
    assert FixPeer.kinds(peer.give("8", sending=format_time(NOW + off * SECOND))) == ["message"]


@pytest.mark.parametrize(("sending", "why"), [(None, 1), ("yesterday", 6)])
def test_a_sending_time_that_is_missing_or_none_is_rejected(sending, why):
    peer = FixPeer().up()
    (event,) = peer.give("8", sending=sending)
    assert (event.kind, event.number, event.tag) == ("rejected", why, 52)
    assert FixPeer.kinds(peer.give("8")) == ["message"]


def test_2r_types_are_not_judged_without_a_dictionary():
    peer = FixPeer().up()
    (event,) = peer.give("ZZ")
    assert (event.kind, event.msg_type) == ("message", "ZZ")


def test_2t_the_first_three_fields_in_another_order_are_garbled():
    peer = FixPeer().up()
    raw = peer.make("8", seq=2)
    body = raw.split(b"\x01", 2)[2].rsplit(b"10=", 1)[0].replace(b"35=8\x01", b"") + b"35=8\x01"
    assert peer.bytes(resum(b"8=FIX.4.4\x019=%d\x01%s10=000\x01" % (len(body), body))) == []
    assert peer.reasons() == {"begin": 1}
    assert FixPeer.kinds(peer.give("8", seq=2)) == ["message"]


@pytest.mark.parametrize("number", ["", "x", "0", "-3", "99999999999999999999"])
def test_no_number_ends_the_session(number):
    peer = FixPeer().up()
    head = [(35, "8"), (49, PEER), (56, ME), (52, format_time(NOW))]
    raw = message(*head[:3], *([(34, number)] if number else []), head[3])
    assert ended(peer.bytes(raw)) == ("failed", "no_seq")
    assert [m[35] for m in peer.said()] == ["5"]


# ---- 3: the trailer ----


def test_3a_3b_a_wrong_checksum_is_garbled():
    peer = FixPeer().up()
    raw = peer.make("8", seq=2)
    wrong = raw[:-4] + b"%03d\x01" % ((int(raw[-4:-1]) + 1) % 256)
    assert peer.bytes(wrong) == []
    assert peer.reasons() == {"checksum": 1}
    assert FixPeer.kinds(peer.bytes(raw)) == ["message"]


# ---- 4, 5, 6: heartbeats and test requests ----


def test_4a_a_heartbeat_goes_where_nothing_else_did():
    peer = FixPeer().up()
    peer.wait(29)
    assert peer.said() == []
    peer.give("0")
    peer.wait(1)
    (beat,) = peer.said()
    assert (beat[35], 112 in beat) == ("0", False)
    peer.wait(20)
    assert peer.core.send(ORDER, peer.now) == 0
    assert [m[35] for m in peer.said()] == ["D"]
    peer.give("0")
    peer.wait(29)
    assert peer.said() == []


def test_4b_a_test_request_is_answered_with_its_words():
    peer = FixPeer().up()
    (event,) = peer.give("1", (112, "are you there?"))
    assert (event.kind, event.get(112)) == ("test_request", b"are you there?")
    (beat,) = peer.said()
    assert (beat[35], beat[112]) == ("0", "are you there?")


def test_5_a_heartbeat_is_told():
    peer = FixPeer().up()
    (event,) = peer.give("0")
    assert (event.kind, event.number) == ("heartbeat", 0)


def test_6_silence_is_asked_about_and_then_ends_the_session():
    peer = FixPeer().up()
    assert FixPeer.kinds(peer.wait(36)) == ["tested"]
    assert [m[35] for m in peer.said()] == ["0", "1"]
    (failed,) = peer.wait(36)
    assert (failed.kind, failed.reason) == ("failed", "silent")


def test_6_any_message_ends_the_silence():
    peer = FixPeer().up()
    assert FixPeer.kinds(peer.wait(36)) == ["tested"]
    peer.give("8")
    assert peer.wait(35) == []
    assert FixPeer.kinds(peer.wait(1)) == ["tested"]


def test_a_round_trip_is_measured_by_a_test_request():
    peer = FixPeer().up()
    assert peer.core.test_request(peer.now) == 0
    (test,) = peer.said()
    peer.now += 1234
    assert peer.give("0", (112, "elsewhere"))[0].number == 0
    assert peer.give("0", (112, test[112]))[0].number == 1234
    assert peer.core.info()["rtt_ns"] == 1234
    assert peer.give("0", (112, test[112]))[0].number == 0


def test_an_interval_of_nought_means_no_heartbeats():
    peer = FixPeer()
    peer.said()
    peer.give("A", (98, 0), (108, 0))
    assert peer.core.deadline() == lib.XDS_NEVER


# ---- 7: rejects ----


def test_7_a_reject_is_told_and_uses_its_number():
    peer = FixPeer().up()
    peer.core.send(ORDER, peer.now)
    (event,) = peer.give("3", (45, 2), (371, 55), (372, "D"), (373, 5), (58, "no such symbol"))
    assert (event.kind, event.number, event.get(58)) == ("reject", 2, b"no such symbol")
    assert FixPeer.kinds(peer.give("8")) == ["message"]


# ---- 8: resend requests ----


def sent_three(**settings):
    peer = FixPeer(**settings).up()
    for number in (1, 2):
        assert peer.core.send(b"35=D\x0111=C-%d\x01" % number, peer.now) == 0
    peer.give("1", (112, "x"))  # number 4 is a Heartbeat
    peer.now += SECOND
    assert peer.core.send(b"35=D\x0111=C-3\x01", peer.now) == 0
    assert [m[34] for m in peer.said()] == ["2", "3", "4", "5"]
    peer.now += SECOND
    return peer


def test_8_application_messages_are_resent_and_the_sessions_own_filled_over():
    peer = sent_three()
    (event,) = peer.give("2", (7, 1), (16, 0))
    assert (event.kind, event.seq, event.number) == ("resend", 1, 5)
    said = peer.said()
    assert [(m[35], m[34], m[43]) for m in said] == [
        ("4", "1", "Y"), ("D", "2", "Y"), ("D", "3", "Y"), ("4", "4", "Y"), ("D", "5", "Y"),
    ]  # fmt: skip
    assert [(m[123], m[36]) for m in said if m[35] == "4"] == [("Y", "2"), ("Y", "5")]
    assert [(m[11], m[122], m[52]) for m in said if m[35] == "D"] == [
        ("C-1", format_time(NOW), format_time(peer.now)),
        ("C-2", format_time(NOW), format_time(peer.now)),
        ("C-3", format_time(NOW + SECOND), format_time(peer.now)),
    ]
    assert peer.core.send(ORDER, peer.now) == 0
    assert peer.said()[0][34] == "6"


@pytest.mark.parametrize(
    ("first", "end", "numbers"), [(3, 3, ["3"]), (2, 4, ["2", "3", "4"]), (4, 99, ["4", "5"])]
)
def test_8_a_range_is_answered_as_far_as_it_goes(first, end, numbers):
    peer = sent_three()
    peer.give("2", (7, first), (16, end))
    assert [m[34] for m in peer.said()] == numbers


def test_8_what_the_store_no_longer_holds_is_filled_over():
    peer = sent_three(store_messages=2)
    peer.give("2", (7, 1), (16, 0))
    assert [(m[35], m[34], m.get(36)) for m in peer.said()] == [
        ("4", "1", "3"), ("D", "3", None), ("4", "4", "5"), ("D", "5", None),
    ]  # fmt: skip
    assert peer.core.stats()["forgotten"] == 1


@pytest.mark.parametrize(
    ("fields", "tag", "why"),
    [([(16, 0)], 7, 1), ([(7, 1)], 16, 1), ([(7, 0), (16, 0)], 7, 5), ([(7, 9), (16, 0)], 7, 5),
     ([(7, 3), (16, 2)], 16, 5), ([(7, "x"), (16, 0)], 7, 6), ([(7, 1), (16, -1)], 16, 5)],
)  # fmt: skip
def test_8_a_request_that_cannot_be_is_rejected(fields, tag, why):
    peer = sent_three()
    (event,) = peer.give("2", *fields)
    assert (event.kind, event.tag, event.number) == ("rejected", tag, why)
    (reject,) = peer.said()
    assert (reject[371], reject[373]) == (str(tag), str(why))


def test_8_an_answer_longer_than_the_output_goes_piece_by_piece_and_nothing_newer_before():
    peer = FixPeer(message_max=1024, output_bytes=4096, store_bytes=100_000).up()
    for number in range(40):
        while peer.core.send(b"35=D\x0158=%s\x0111=%d\x01" % (b"x" * 400, number), peer.now):
            peer.said()
    peer.said()
    peer.give("2", (7, 2), (16, 0))
    assert peer.core.send(ORDER, peer.now) == lib.XDS_ECAPACITY
    raw = b""
    while piece := peer.core.output(peer.now, 333):
        raw += piece
    assert [m[11] for m in read(raw)] == [str(n) for n in range(40)]
    assert peer.core.send(ORDER, peer.now) == 0


# ---- 10, 11: sequence resets ----


def test_10a_a_gap_fill_ahead_is_a_gap():
    peer = FixPeer().up()
    assert FixPeer.kinds(peer.give("4", (123, "Y"), (36, 9), seq=5)) == ["gap"]


def test_10b_a_gap_fill_in_order_leads_on():
    peer = FixPeer().up()
    (event,) = peer.give("4", (123, "Y"), (36, 9))
    assert (event.kind, event.seq, event.number) == ("reset", 2, 9)
    assert FixPeer.kinds(peer.give("8", seq=9)) == ["message"]


def test_10c_a_gap_fill_of_what_had_come_is_dropped():
    peer = FixPeer().up()
    assert peer.give("4", (123, "Y"), (36, 9), seq=1, dup=True) == []
    assert peer.reasons() == {"duplicate": 1}


def test_10d_a_low_gap_fill_that_is_no_duplicate_ends_the_session():
    peer = FixPeer().up()
    assert ended(peer.give("4", (123, "Y"), (36, 9), seq=1)) == ("failed", "seq_low")


@pytest.mark.parametrize("next_seq", [2, 1])
def test_10e_a_gap_fill_that_leads_back_is_rejected(next_seq):
    peer = FixPeer().up()
    (event,) = peer.give("4", (123, "Y"), (36, next_seq))
    assert (event.kind, event.number, event.tag) == ("rejected", 5, 36)
    assert FixPeer.kinds(peer.give("8")) == ["message"]


@pytest.mark.parametrize(("seq", "new"), [(2, 20), (1, 20), (77, 20), (2, 2)])
def test_11a_11b_a_reset_counts_whatever_its_number(seq, new):
    peer = FixPeer().up()
    (event,) = peer.give("4", (36, new), seq=seq)
    assert (event.kind, event.number) == ("reset", new)
    assert FixPeer.kinds(peer.give("8", seq=new)) == ["message"]


def test_11c_a_reset_that_leads_back_is_rejected_and_changes_nothing():
    peer = FixPeer().up()
    (event,) = peer.give("4", (36, 1), seq=2)
    assert (event.kind, event.number, event.tag) == ("rejected", 5, 36)
    assert peer.core.info()["next_in"] == 2
    assert FixPeer.kinds(peer.give("8", seq=2)) == ["message"]


def test_a_reset_past_a_gap_fills_it():
    peer = FixPeer().up()
    peer.give("8", seq=6)
    assert FixPeer.kinds(peer.give("4", (36, 7), seq=2)) == ["reset", "filled"]


# ---- 12, 13: logout ----


def test_12_we_log_out_and_the_answer_closes():
    peer = FixPeer().up()
    assert peer.core.close(peer.now, "end of day") == 0
    (logout,) = peer.said()
    assert (logout[35], logout[58]) == ("5", "end of day")
    assert peer.core.send(ORDER, peer.now) == lib.XDS_ESTATE
    assert peer.core.close(peer.now) == lib.XDS_ESTATE
    assert FixPeer.kinds(peer.give("8")) == ["message"]  # what was on its way
    assert FixPeer.kinds(peer.give("5")) == ["logout", "closed"]
    assert peer.said() == []


def test_12_a_logout_that_is_not_answered():
    peer = FixPeer(logout_ns=2 * SECOND).up()
    peer.core.close(peer.now)
    (failed,) = peer.wait(3)
    assert (failed.kind, failed.reason) == ("failed", "logout_late")


def test_13b_the_peers_logout_is_answered():
    peer = FixPeer().up()
    logout, closed = peer.give("5", (58, "bye"))
    assert (logout.get(58), closed.kind) == (b"bye", "closed")
    assert [m[35] for m in peer.said()] == ["5"]
    assert peer.core.info()["next_in"] == 3


def test_a_peer_that_hangs_up():
    peer = FixPeer().up()
    peer.core.hang_up(peer.now)
    assert [(e.kind, e.reason) for e in peer.core.events()] == [("failed", "hung_up")]
    peer.core.hang_up(peer.now)
    assert peer.core.events() == []


# ---- 14: fields ----


@pytest.mark.parametrize(("field", "why", "tag"), [(b"55=", 4, 55), (b"x=1", 0, 0), (b"55", 0, 0)])
def test_14a_14d_a_field_without_form_is_rejected(field, why, tag):
    peer = FixPeer().up()
    raw = peer.make("8", (58, "@"))
    body = raw.replace(b"58=@", field).split(b"\x01", 2)[2].rsplit(b"10=", 1)[0]
    (event,) = peer.bytes(resum(b"8=FIX.4.4\x019=%d\x01%s10=000\x01" % (len(body), body)))
    assert (event.kind, event.reason, event.number, event.tag) == ("rejected", "field", why, tag)
    (reject,) = peer.said()
    assert (reject[373], reject.get(371)) == (str(why), str(tag) if tag else None)
    assert FixPeer.kinds(peer.give("8")) == ["message"]


def test_14b_the_sessions_own_messages_need_their_fields():
    peer = FixPeer().up()
    for kind, tag in (("1", 112), ("3", 45), ("4", 36), ("2", 7)):
        (event,) = peer.give(kind, *([(123, "Y")] if kind == "4" else []))
        assert (event.kind, event.number, event.tag) == ("rejected", 1, tag)
    assert len(peer.said()) == 4


def test_reasons_that_4_2_does_not_know_are_left_out():
    peer = FixPeer("FIX.4.2").up()
    peer.give("A", (98, 0), (108, 30))
    (reject,) = peer.said()
    assert 373 not in reject
    assert reject[58] == "Logon in a session"
    assert peer.reasons() == {"logon_again": 1}


# ---- 20: both ask ----


def test_20_a_request_that_is_ahead_is_answered_first():
    peer = sent_three()
    resend, gap = peer.give("2", (7, 2), (16, 0), seq=9)
    assert (resend.kind, gap.kind, gap.seq, gap.number) == ("resend", "gap", 3, 8)
    assert [m[35] for m in peer.said()] == ["D", "D", "4", "D", "2"]


def test_a_logon_in_a_session_with_reset_begins_at_one_again():
    peer = sent_three()
    (event,) = peer.give("A", (98, 0), (108, 30), (141, "Y"), seq=1)
    assert (event.kind, event.number) == ("reset", 2)
    (logon,) = peer.said()
    assert (logon[35], logon[34], logon[141]) == ("A", "1", "Y")
    assert FixPeer.kinds(peer.give("8", seq=2)) == ["message"]
    peer.seq = 3
    peer.give("2", (7, 1), (16, 0))
    assert [(m[35], m[34], m[36]) for m in peer.said()] == [("4", "1", "2")]


# ---- a second connection, sending ----


def test_numbers_and_store_outlive_a_connection():
    peer = sent_three()
    peer.core.hang_up(peer.now)
    peer.core.events()
    assert peer.core.send(ORDER, peer.now) == lib.XDS_ESTATE
    peer.core.open(peer.now)
    assert [(m[35], m[34]) for m in peer.said()] == [("A", "6")]
    assert FixPeer.kinds(peer.give("A", (98, 0), (108, 30))) == ["logon"]
    peer.give("2", (7, 5), (16, 0))
    assert [(m[35], m[34], m.get(11)) for m in peer.said()] == [("D", "5", "C-3"), ("4", "6", None)]


@pytest.mark.parametrize(
    "bad",
    [b"", b"35=D", b"35=\x0111=x\x01", b"11=x\x0135=D\x01", b"35=0\x01", b"35=A\x0198=0\x01",
     b"35=D\x0111=\x01",
     b"35=D\x0134=7\x01", b"35=D\x0149=X\x01", b"35=D\x0110=000\x01", b"35=D\x0111=x", b"35=D\x01x=1\x01",
     b"35=D\x0195=5\x01", b"35=D\x0195=5\x0196=abc\x01", b"35=" + b"D" * 40 + b"\x01"],
)  # fmt: skip
def test_what_is_no_message_to_send_is_refused(bad):
    peer = FixPeer().up()
    assert peer.core.send(bad, peer.now) == lib.XDS_EMALFORMED
    assert peer.said() == []
    assert peer.core.info()["next_out"] == 2


def test_a_message_longer_than_the_bound_is_refused():
    peer = FixPeer(message_max=1024).up()
    assert peer.core.send(b"35=D\x0158=" + b"x" * 600 + b"\x01", peer.now) == lib.XDS_ECAPACITY
    assert peer.core.send(b"35=D\x0195=2\x0196=\x01\x01\x01", peer.now) == 0
    assert peer.said()[0][95] == "2"


def test_before_the_logon_nothing_is_sent_and_closing_is_at_once():
    peer = FixPeer()
    assert peer.core.send(ORDER, NOW) == lib.XDS_ESTATE
    assert peer.core.test_request(NOW) == lib.XDS_ESTATE
    assert peer.core.close(NOW) == 0
    assert [e.kind for e in peer.core.events()] == ["closed"]


@pytest.mark.parametrize(
    "settings",
    [{"message_max": 1023}, {"message_max": 2**21}, {"output_bytes": 4096}, {"time_digits": 4},
     {"heartbeat_s": 90000}, {"store_messages": 2**21}, {"sender_sub_id": "a\x01b"}, {"leap_ns": 2**60},
     {"resend_ns": -1}, {"resend_max": 7}],
)  # fmt: skip
def test_settings_that_contradict_themselves(settings):
    with pytest.raises(ValueError, match="contradict"):
        FixCore(ME, PEER, **settings)
    with pytest.raises(ValueError, match="one of"):
        FixCore(ME, PEER, version="FIX.4.3")


def test_a_session_shows_where_it_stands():
    assert repr(FixPeer().up().core) == "<FixCore up, sends 2, expects 2>"


def test_events_have_the_text_that_the_peer_was_sent():
    peer = FixPeer().up()
    (rejected,) = peer.give("1")  # a TestRequest without TestReqID
    (reject,) = peer.said()
    assert (rejected.kind, reject[35], reject[58]) == ("rejected", "3", rejected.text)
    failed = peer.give("0", seq=1)[-1]
    (logout,) = peer.said()
    assert (failed.kind, logout[35], logout[58]) == ("failed", "5", failed.text)
    silent = FixPeer().wait(11)[-1]
    assert (silent.kind, silent.reason, silent.text) == ("failed", "logon_timeout", "")


@pytest.mark.parametrize("leap_ns", [0, 37 * SECOND, -SECOND])
def test_utc_is_the_time_less_what_it_is_ahead(leap_ns):
    (logon,) = FixPeer(leap_ns=leap_ns).said()
    assert logon[52] == format_time(NOW, leap_ns=leap_ns)
