"""tls: a client's session against Python's ssl as the server, over memory: handshakes, refusals, resumption,
keys, ends, and every cut of the stream."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.clock import tai_ns
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, SetupError
from xdpstack.tests.tls_peer import (
    NAME,
    Server,
    carry,
    data,
    make_certificates,
    meet,
    of,
    server_context,
    settings,
)  # fmt: skip
from xdpstack.tls import TlsContext, TlsSession, TlsSettings

DAY = 86_400_000_000_000
VERSIONS = ("1.2", "1.3")
BOTH = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def sums(context):
    s = context.stats()
    assert s["started"] == s["live"] + s["closed"] + s["aborted"] + sum(s["reasons"].values())
    return s


@BOTH
def test_both_sides_agree_on_what_was_negotiated_and_data_goes_both_ways(certs, version):
    with TlsContext(settings(certs, alpn=("fix", "http/1.1"))) as context:
        client, server, events = meet(context, server_context(certs, alpn=("http/1.1",), version=version))
        shaken = of(events, "handshake")
        name, _, bits = server.tls.cipher()
        assert (
            (shaken.version, shaken.alpn)
            == (version, "http/1.1")
            == (server.tls.version()[4:], server.tls.selected_alpn_protocol())
        )
        wanted = "TLS_AES_128_GCM_SHA256" if version == "1.3" else "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
        assert shaken.cipher == wanted
        assert bits == 128
        assert (
            name.replace("-", "_")
            .replace("AES128", "AES_128")
            .replace("ECDSA_", "ECDSA_WITH_")
            .removeprefix("TLS_")
            in wanted
        )
        assert shaken.group == "x25519"
        assert shaken.verified
        assert not shaken.resumed
        assert shaken.verify == 0
        assert client.send(b"order 66") == 8
        server.say(b"filled")
        server.say(b"x" * 100_000)
        events = carry(client, server)
        assert server.heard == b"order 66"
        assert data(events) == b"filled" + b"x" * 100_000
        assert max(len(e.data) for e in events) <= 16384
        stats = client.stats()
        assert (stats["plain_in"], stats["plain_out"]) == (100_006, 8)
        assert sums(context)["full"] == 1
        client.close()
        assert sums(context)["aborted"] == 1


@pytest.mark.parametrize(("order", "cipher"), [("aes", "AES_128_GCM"), ("chacha", "CHACHA20_POLY1305")])
@BOTH
def test_ciphers_are_offered_in_the_order_asked_for(certs, version, order, cipher):
    with TlsContext(settings(certs, ciphers=order)) as context:
        client, _, events = meet(context, server_context(certs, version=version))
        assert cipher in of(events, "handshake").cipher
        client.close()


def test_a_server_with_256_bits_alone_gets_them(certs):
    peer = server_context(certs, version="1.2")
    peer.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    with TlsContext(settings(certs)) as context:
        client, _, events = meet(context, peer)
        assert of(events, "handshake").cipher == "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
        client.close()


REFUSALS = [
    # certificate, name, days from now, reason, sentence, the alert that the server hears
    ("server", NAME, 60, "expired", "has expired", "CERTIFICATE_EXPIRED"),
    ("server", NAME, -3000, "not_yet", "is not valid yet", "BAD_CERTIFICATE"),
    ("alone", NAME, 0, "self_signed", "signed by itself", "UNKNOWN_CA"),
    ("stranger", NAME, 0, "unknown_ca", "not signed by an authority that is trusted", "UNKNOWN_CA"),
    ("elsewhere", NAME, 0, "wrong_name", f"is for other names than {NAME}", "BAD_CERTIFICATE"),
    ("elsewhere", "a.b.wild.test", 0, "wrong_name", "for other names than a.b.wild.test", "BAD_CERTIFICATE"),
    ("server", "127.0.0.2", 0, "wrong_name", "is for other names than 127.0.0.2", "BAD_CERTIFICATE"),
    ("server", "www.exchange.test", 0, "wrong_name", "is for other names", "BAD_CERTIFICATE"),
    ("weak", NAME, 0, "weak", "a key or digest that is too weak", "CERTIFICATE"),
]  # fmt: skip


@pytest.mark.parametrize(("certificate", "name", "days", "reason", "sentence", "alert"), REFUSALS)
@BOTH
def test_a_certificate_that_does_not_hold_is_refused_with_its_own_sentence(
    certs, version, certificate, name, days, reason, sentence, alert
):
    now = tai_ns() + days * DAY
    peer = server_context(certs, certificate, version=version, weak=certificate == "weak")
    with TlsContext(settings(certs, server_name=name)) as context:
        client, server, events = meet(context, peer, now=now)
        failed = of(events, "failed")
        assert failed.reason == reason
        assert sentence in failed.text
        assert failed.alert not in ("", "close_notify")
        assert failed.verify != 0
        assert not [e for e in events if e.kind == "handshake"]
        assert alert in str(server.error).upper().replace(" ", "_")
        assert client.over
        assert client.feed(b"\x17\x03\x03\0\1x") < 0
        with pytest.raises(LocalProtocolError):
            client.send(b"order")
        assert sums(context)["reasons"] == {reason: 1}
        client.close()


def test_the_longest_name_stands_whole_in_its_refusal(certs):
    name = ".".join(["x" * 62] * 4)
    with TlsContext(settings(certs, server_name=name)) as context:
        client, _, events = meet(context, server_context(certs))
        assert of(events, "failed").text == f"its certificate is for other names than {name}"
        client.close()


@pytest.mark.parametrize(
    ("certificate", "name"),
    [("server", "127.0.0.1"), ("elsewhere", "a.wild.test"), ("elsewhere", "10.9.9.9")],
)
def test_an_address_and_a_wildcard_are_verified_as_such(certs, certificate, name):
    with TlsContext(settings(certs, server_name=name)) as context:
        client, _, events = meet(context, server_context(certs, certificate))
        assert of(events, "handshake").verified
        client.close()


@BOTH
def test_without_verification_whoever_answers_is_taken_and_every_place_says_so(certs, version):
    with TlsContext(settings(certs, verify=False)) as context:
        assert "NOT VERIFIED" in repr(context)
        client, _, events = meet(context, server_context(certs, "stranger", version=version))
        shaken = of(events, "handshake")
        assert not shaken.verified
        assert shaken.verify != 0
        assert sums(context)["unverified"] == 1
        client.close()


@BOTH
def test_the_second_session_resumes_and_is_verified_still(certs, version):
    with TlsContext(settings(certs, alpn=("fix",))) as context:
        peer = server_context(certs, alpn=("fix",), version=version)
        for round_ in range(4):
            client, server, events = meet(context, peer)
            shaken = of(events, "handshake")
            assert shaken.resumed == server.tls.session_reused == (round_ > 0)
            assert shaken.verified
            assert shaken.alpn == "fix"
            client.close()  # cut off, without close_notify: the ticket is good still
        assert (sums(context)["full"], sums(context)["resumed"]) == (1, 3)
        context.forget()
        client, _, events = meet(context, peer)
        assert not of(events, "handshake").resumed
        client.close()


@BOTH
def test_no_ticket_outlives_the_certificate_that_vouched_for_it(certs, version):
    with TlsContext(settings(certs)) as context:
        peer = server_context(certs, version=version)
        client, _, _ = meet(context, peer)
        client.close()
        assert context.stats()["tickets_kept"] >= 1
        client, _, events = meet(context, peer, now=tai_ns() + 60 * DAY)
        assert of(events, "failed").reason == "expired"
        assert context.stats()["tickets_kept"] == 0
        client.close()


def test_tickets_are_bounded_and_none_are_kept_where_none_are_wanted(certs):
    peer = server_context(certs, version="1.3")
    peer.num_tickets = 7
    for wanted in (0, 1, 3):
        with TlsContext(settings(certs, tickets=wanted)) as context:
            client, _, events = meet(context, peer)
            assert [e.kind for e in events if e.kind == "ticket"]
            assert context.stats()["tickets"] == 7
            assert context.stats()["tickets_kept"] == wanted
            client.close()


@BOTH
def test_a_client_certificate_is_shown_and_its_lack_is_told_by_the_alert(certs, version):
    peer = server_context(certs, client_ca="ca", version=version)
    files = {"cert_file": str(certs / "client.pem"), "key_file": str(certs / "client.key")}
    with TlsContext(settings(certs, **files)) as context:
        client, server, events = meet(context, peer)
        assert of(events, "handshake").verified
        assert ("DNS", "trader.test") in server.tls.getpeercert()["subjectAltName"]
        client.close()
    with TlsContext(settings(certs)) as context:
        client, server, events = meet(context, peer)
        failed = of(events, "failed")
        assert failed.reason == "peer_alert"
        assert failed.alert == ("certificate_required" if version == "1.3" else "handshake_failure")
        assert failed.alert in failed.text
        client.close()


def test_versions_that_do_not_meet_are_told(certs):
    with TlsContext(settings(certs, version_max="1.2")) as context:
        client, _, events = meet(context, server_context(certs, version="1.3"))
        assert (of(events, "failed").reason, of(events, "failed").alert) == ("peer_alert", "protocol_version")
        client.close()
    with TlsContext(settings(certs, version_min="1.3")) as context:
        client, _, events = meet(context, server_context(certs, version="1.2"))
        assert (of(events, "failed").reason, of(events, "failed").alert) == ("peer_alert", "protocol_version")
        client.close()


@pytest.mark.parametrize("forced", VERSIONS)
def test_the_environment_forces_a_version(certs, forced):
    with TlsContext(settings(certs), environ={"XDPSTACK_TLS_VERSION": forced}) as context:
        client, _, events = meet(context, server_context(certs))
        assert of(events, "handshake").version == forced
        client.close()
    with pytest.raises(ConfigError, match=r"XDPSTACK_TLS_VERSION=1\.1: wanted 1\.2 or 1\.3"):
        TlsContext(settings(certs), environ={"XDPSTACK_TLS_VERSION": "1.1"})


@pytest.mark.parametrize("both", [False, True])
def test_our_keys_change_when_asked_and_data_goes_on(certs, both):
    with TlsContext(settings(certs)) as context:
        client, server, _ = meet(context, server_context(certs, version="1.3"))
        for n in range(1, 4):
            client.update(both=both)
            client.send(b"x" * 20000)
            events = carry(client, server)
            server.say(b"y" * 20000)
            events += carry(client, server)
            assert len(server.heard) == 20000 * n
            assert len(data(events)) == 20000
            assert len([e for e in events if e.kind == "key_update"]) == both
        stats = client.stats()
        assert (stats["key_updates_out"], stats["key_updates_in"]) == (3, 3 * both)
        client.close()


def test_our_keys_change_by_themselves_after_so_many_records_but_not_in_1_2(certs):
    for version, updates in (("1.3", True), ("1.2", False)):
        with TlsContext(settings(certs, update_records=10)) as context:
            client, server, _ = meet(context, server_context(certs, version=version))
            for _ in range(100):
                assert client.send(b"0123456789") == 10
                server.put(client.output())
            assert len(server.heard) == 1000
            assert (8 <= client.stats()["key_updates_out"] <= 10) == updates
            client.close()
    with TlsContext(settings(certs)) as context:
        client, _, _ = meet(context, server_context(certs, version="1.2"))
        with pytest.raises(LocalProtocolError):
            client.update()
        client.close()


@BOTH
def test_we_close_first_and_the_peer_answers(certs, version):
    with TlsContext(settings(certs)) as context:
        client, server, _ = meet(context, server_context(certs, version=version))
        client.send(b"last words")
        client.end_session()
        with pytest.raises(LocalProtocolError):
            client.send(b"more")
        with pytest.raises(LocalProtocolError):
            client.end_session()
        server.put(client.output())
        assert server.heard == b"last words"
        assert server.shut
        server.bye()
        events = client.input(server.take())
        assert of(events, "closed").clean
        assert client.over
        assert client.ended() == []
        client.close()
        assert (sums(context)["closed"], context.stats()["aborted"]) == (1, 0)


@BOTH
def test_the_peer_closes_first_and_is_answered(certs, version):
    with TlsContext(settings(certs)) as context:
        client, server, _ = meet(context, server_context(certs, version=version))
        server.say(b"that was all")
        server.bye()
        events = client.input(server.take())
        assert [e.kind for e in events] == ["data", "closed"]
        assert data(events) == b"that was all"
        assert events[-1].clean
        server.put(client.output())
        server.tls.unwrap()  # raises where our close_notify did not come
        assert client.ended() == []
        client.close()


@BOTH
def test_data_on_its_way_arrives_after_our_close(certs, version):
    with TlsContext(settings(certs)) as context:
        client, server, _ = meet(context, server_context(certs, version=version))
        server.say(b"on its way")
        client.end_session()
        events = client.input(server.take())
        server.put(client.output())
        server.bye()
        events += client.input(server.take())
        assert [e.kind for e in events] == ["data", "closed"]
        client.close()


@BOTH
def test_an_end_without_close_notify_is_told_as_truncation(certs, version):
    with TlsContext(settings(certs)) as context:
        client, server, _ = meet(context, server_context(certs, version=version))
        server.say(b"x" * 1000)
        wire = server.take()
        assert client.input(wire[:500]) == []
        (failed,) = client.ended()
        assert (failed.kind, failed.reason) == ("failed", "truncated")
        assert "without close_notify" in failed.text
        client.close()
        client = TlsSession(context)
        (failed,) = client.ended()
        assert "during the handshake" in failed.text
        client.close()
        assert sums(context)["reasons"] == {"truncated": 2}


def test_handshake_and_close_take_no_longer_than_allowed(certs):
    with TlsContext(settings(certs, handshake_timeout=3, close_timeout=1)) as context:
        now = tai_ns()
        client = TlsSession(context, now=now)
        assert client.deadline == now + 3_000_000_000
        assert client.tick(now=client.deadline - 1) == []
        (failed,) = client.tick(now=client.deadline)
        assert failed.reason == "timeout"
        client.close()

        client, _, _ = meet(context, server_context(certs), now=now)
        assert client.deadline == 0x7FFF_FFFF_FFFF_FFFF
        client.end_session(now=now)
        assert client.deadline == now + 1_000_000_000
        (closed,) = client.tick(now=client.deadline)
        assert (closed.kind, closed.clean) == ("closed", False)
        client.close()

        client = TlsSession(context, now=now)
        client.end_session(now=now)
        assert [e.kind for e in client.events()] == ["closed"]
        client.close()
        assert sums(context)["closed"] == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "malformed"),
        (b"\x16\x03\x03\xff\xff" + bytes(65535), "record_length"),
        (b"\x17\x03\x03\x00\x05hello", "unexpected"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "peer_alert"),
        (b"\x16\x03\x03\x00\x04\x0e\x00\x00\x00", "unexpected"),
        (b"\x16\x03\x03\x00\x08\x02\x00\x00\x04\x03\x03\x00\x00", "malformed"),
        (b"\x16\x03\x01\x00\x2a\x02\x00\x00\x26\x03\x01" + bytes(32) + b"\x00\xc0\x13\x00", "version"),
        (b"\x16\x03\x03\x00\x2a\x02\x00\x00\x26\x03\x03" + bytes(32) + b"\x00\x00\x35\x00", "malformed"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_named(certs, answer, reason):
    with TlsContext(settings(certs)) as context:
        for pieces in ([answer], [answer[i : i + 1] for i in range(len(answer))]):
            client = TlsSession(context)
            client.output()
            events = [event for piece in pieces for event in client.input(piece)]
            assert of(events, "failed").reason == reason, events
            assert of(events, "failed").text
            client.close()
        assert sums(context)["reasons"] == {reason: 2}


@BOTH
def test_a_damaged_record_ends_the_session_with_bad_record_mac(certs, version):
    with TlsContext(settings(certs)) as context:
        client, server, _ = meet(context, server_context(certs, version=version))
        server.say(b"x" * 100)
        wire = bytearray(server.take())
        wire[-1] ^= 1
        failed = of(client.input(bytes(wire)), "failed")
        assert (failed.reason, failed.alert) == ("record_bad", "bad_record_mac")
        server.put(client.output())
        assert "BAD_RECORD_MAC" in str(server.error).upper().replace(" ", "_")
        client.close()


@BOTH
def test_output_is_bounded_nothing_is_lost_and_send_waits_for_room(certs, version):
    with TlsContext(settings(certs, out_bytes=20480)) as context:
        client, server, _ = meet(context, server_context(certs, version=version))
        assert 16384 <= client.room < 20480
        told, left = b"", bytes(range(256)) * 1000
        stuck = 0
        while left:
            n = client.send(left)
            told, left = told + left[:n], left[n:]
            stuck += n == 0
            if n == 0:
                server.put(client.output(cap=1500))
        while out := client.output(cap=1):
            server.put(out)
        assert stuck > 10
        assert server.heard == told
        assert client.room >= 16384
        client.close()


def test_a_clients_flight_that_is_larger_than_output_goes_in_pieces(certs, tmp_path):
    chain = tmp_path / "long.pem"  # its own certificate and so many more that the flight exceeds out_bytes
    chain.write_text((certs / "client.pem").read_text() + (certs / "ca.pem").read_text() * 60)
    peer = server_context(certs, client_ca="ca")
    files = {"cert_file": str(chain), "key_file": str(certs / "client.key"), "out_bytes": 20480}
    with TlsContext(settings(certs, **files)) as context:
        client, server, events = meet(context, peer)
        assert of(events, "handshake").verified
        assert server.open
        assert client.stats()["cipher_out"] > 20480
        client.close()


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(version=st.sampled_from(VERSIONS), cuts=st.lists(st.integers(1, 3000), min_size=1, max_size=12),
       cap=st.integers(1, 4000), sizes=st.lists(st.integers(1, 20000), max_size=5))  # fmt: skip
def test_every_cut_of_the_stream_gives_the_same_events(certs, version, cuts, cap, sizes):
    with TlsContext(settings(certs, alpn=("fix",))) as context:
        client, server = TlsSession(context), Server(server_context(certs, alpn=("fix",), version=version))
        events, said, n = [], b"", 0

        def pieces(wire):
            nonlocal n
            while wire:
                size = cuts[n % len(cuts)]
                n += 1
                yield wire[:size]
                wire = wire[size:]

        def pump():
            while True:
                back = b""
                while out := client.output(cap):
                    server.put(out)
                for piece in pieces(back := server.take()):
                    events.extend(client.input(piece))
                if not back:
                    return

        pump()
        assert [e.kind for e in events if e.kind != "ticket"] == ["handshake"]
        for size in sizes:
            said += bytes([size % 251]) * size
            server.say(bytes([size % 251]) * size)
            client.send(b"ack")
            pump()
        server.bye()
        pump()
        assert data(events) == said
        assert server.heard == b"ack" * len(sizes)
        assert [e.kind for e in events if e.kind not in ("ticket", "data")] == ["handshake", "closed"]
        stats = client.stats()
        assert stats["plain_in"] == len(said)
        assert stats["cipher_in"] > len(said)
        client.close()
        assert sums(context)["closed"] == 1


def test_input_stops_behind_what_made_an_event_and_wants_it_taken(certs):
    with TlsContext(settings(certs)) as context:
        client, server, _ = meet(context, server_context(certs))
        before = client.stats()["records_in"]
        server.say(b"one")
        one = server.take()
        server.say(b"two")
        both = one + server.take()
        assert client.feed(both) == len(one)
        assert client.feed(both[len(one) :]) < 0  # b"one" lies there still
        assert data(client.events()) == b"one"
        assert client.feed(both[len(one) :]) == len(both) - len(one)
        assert data(client.events()) == b"two"
        assert client.stats()["records_in"] == before + 2
        client.close()


def test_records_count_when_they_are_whole(certs):
    with TlsContext(settings(certs)) as context:
        client, server, _ = meet(context, server_context(certs))
        before = client.stats()["records_in"]
        server.say(b"x" * 20_000)  # two records
        seen = []
        for byte in server.take():
            client.input(bytes([byte]))
            stats = client.stats()
            seen.append((stats["records_in"] - before, stats["part_in"]))
        first, second = 5 + 16384 + 17, 5 + 20_000 - 16384 + 17
        assert seen == [(0, 1)] * (first - 1) + [(1, 0)] + [(1, 1)] * (second - 1) + [(2, 0)]
        client.close()


def test_what_is_sent_at_once_has_a_bound_of_the_context(certs):
    with TlsContext(settings(certs, out_bytes=20480)) as context:
        client, _, _ = meet(context, server_context(certs))
        assert client.room == lib.xds_tls_most(context.pointer) >= 16384
        assert client.send(b"x" * 20_000) == client.stats()["plain_out"] == lib.xds_tls_most(context.pointer)
        client.close()


REFUSED_SETTINGS = [
    ({"server_name": ""}, "server_name: this key is needed, to verify the server by"),
    ({"server_name": "x" * 256}, "server_name: wanted at most 255 bytes"),
    ({"server_name": "ä" * 128}, "server_name: wanted at most 255 bytes"),
    ({"server_name": "a\0b"}, "server_name: wanted a string"),
    ({"version_min": "1.1"}, r"version_min: wanted '1\.2' or '1\.3', not '1\.1'"),
    (
        {"version_min": "1.3", "version_max": "1.2"},
        r"version_min: wanted '1\.2' at most, which is version_max",
    ),
    ({"ciphers": "rc4"}, "ciphers: wanted 'auto' or 'aes' or 'chacha', not 'rc4'"),
    ({"verify": "no"}, "verify: wanted true or false"),
    ({"tickets": 9}, "tickets: wanted 0 to 8, not 9"),
    ({"tickets": -1}, "tickets: wanted a whole number"),
    ({"out_bytes": 20479}, "out_bytes: wanted 0, or 20480 to 1073741824, not 20479"),
    ({"out_bytes": (1 << 30) + 1}, "out_bytes: wanted 0, or 20480 to 1073741824"),
    ({"alpn": "fix"}, "alpn: wanted a list of names"),
    ({"alpn": [3]}, "alpn: wanted a list of names"),
    ({"alpn": ["x" * 33]}, "alpn: wanted a list of names of 1 to 32 characters"),
    ({"alpn": tuple("x" * 31 + str(i) for i in range(9))}, "alpn: wanted 256 characters at most"),
    ({"alpn": ("a,b",)}, "alpn: wanted a list of names"),
    ({"alpn": ("",)}, "alpn: wanted a list of names"),
    ({"handshake_timeout": 0.0}, "handshake_timeout: wanted more than 0 seconds"),
    ({"close_timeout": float("nan")}, "close_timeout: wanted seconds from 0 to 1e9, not nan"),
    ({"key_file": "some.key"}, "key_file: a key without cert_file"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED_SETTINGS)
def test_settings_that_cannot_be_are_one_sentence(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        settings(tmp_path, **changes)


REFUSED_BY_C = [
    ({"verify_off": 0}, "a server's name is needed to verify it by"),
    ({"server_name": b"x" * 256}, "a server's name that is too long"),
    ({"version_min": 0x0302}, "the versions of TLS are 1.2 and 1.3"),
    ({"version_min": 0x0304, "version_max": 0x0303}, "the least is not above the most"),
    ({"ciphers": 3}, "an order of ciphers that is not known"),
    ({"tickets": 9}, "more tickets than a context keeps"),
    ({"out_bytes": 20479}, "out_bytes holds less than one record"),
    ({"out_bytes": (1 << 30) + 1}, "or more than 1 GiB"),
    ({"alpn": b"x" * 33}, "alpn is names of 1 to 32 characters"),
    ({"alpn": b",".join(b"x" * 31 for _ in range(9))}, "256 in all"),
    ({"handshake_ns": -1}, "a time that is negative"),
    ({"key_file": b"some.key"}, "a key without a certificate: some.key"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED_BY_C)
def test_the_core_refuses_by_itself_what_cannot_be(changes, says):
    texts = {key: ffi.new("char[]", value) for key, value in changes.items() if isinstance(value, bytes)}
    config = ffi.new("struct xds_tls_config *", {"verify_off": 1, **changes, **texts})
    mem = ffi.new("uint64_t[]", lib.xds_tls_context_size() // 8 + 1)
    context = ffi.cast("struct xds_tls_context *", mem)
    assert lib.xds_tls_context_init(mem, config) == lib.XDS_ECONFIG
    assert says in ffi.string(lib.xds_tls_context_error(context)).decode()
    lib.xds_tls_context_close(context)


def test_files_that_are_not_what_they_should_be_are_named(certs, tmp_path):
    nothing = str(tmp_path / "nothing.pem")
    with pytest.raises(SetupError, match=r"trust store .*nothing\.pem: No such file") as error:
        TlsContext(settings(certs, ca_file=nothing))
    assert error.value.errno == 2
    with pytest.raises(SetupError, match=r"client certificate .*nothing\.pem: No such file"):
        TlsContext(settings(certs, cert_file=nothing))
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate\n")
    with pytest.raises(ConfigError, match=r"trust store .*junk\.pem"):
        TlsContext(settings(certs, ca_file=str(junk)))
    with pytest.raises(ConfigError, match=r"client certificate .*junk\.pem"):
        TlsContext(settings(certs, cert_file=str(junk)))
    with pytest.raises(ConfigError, match=r"private key .*client\.pem"):  # no key in it
        TlsContext(settings(certs, cert_file=str(certs / "client.pem")))
    with pytest.raises(ConfigError, match=r"server\.key"):
        TlsContext(settings(certs, cert_file=str(certs / "client.pem"), key_file=str(certs / "server.key")))
    locked = tmp_path / "locked.key"
    lock = [
        "openssl",
        "ec",
        "-in",
        certs / "client.key",
        "-aes128",
        "-passout",
        "pass:secret",
        "-out",
        locked,
    ]
    subprocess.run(lock, check=True, capture_output=True)
    with pytest.raises(ConfigError, match=r"private key .*locked\.key"):  # and asks nobody for its passphrase
        TlsContext(settings(certs, cert_file=str(certs / "client.pem"), key_file=str(locked)))


def test_the_systems_roots_are_trusted_where_no_file_is_named(certs):
    if not os.path.exists("/etc/ssl/certs/ca-certificates.crt"):
        pytest.skip("no ca-certificates on this host")
    with TlsContext(TlsSettings(server_name=NAME)) as context:
        client, _, events = meet(context, server_context(certs))
        assert of(events, "failed").reason == "unknown_ca"  # a test's authority is not among them
        client.close()


def test_nothing_of_openssl_is_loaded_before_the_first_context(certs):
    script = """
import sys
from xdpstack._ffi import ffi, lib
maps = lambda: "libssl" in open("/proc/self/maps").read()
assert "ssl" not in sys.modules and not maps()
config = ffi.new("struct xds_tls_config *", {"verify_off": 1})
mem = ffi.new("uint64_t[]", lib.xds_tls_context_size() // 8 + 1)
assert lib.xds_tls_context_init(mem, config) == 0
assert maps()
lib.xds_tls_context_close(ffi.cast("struct xds_tls_context *", mem))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_capacity_that_is_reached_is_told_and_not_lost(certs):
    with TlsContext(settings(certs, out_bytes=20480)) as context:
        client, server, _ = meet(context, server_context(certs))
        while client.send(b"x" * 4096):
            pass
        assert client.room == 0
        with pytest.raises(CapacityError):
            client.update()
        with pytest.raises(CapacityError):
            client.end_session()
        carry(client, server)
        client.end_session()
        server.put(client.output())
        assert server.shut
        client.close()


def test_ssl_here_is_the_library_that_we_load():
    assert ssl.OPENSSL_VERSION_INFO[0] == 3
