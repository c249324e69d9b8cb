"""The venue on the wire: what a plain kernel socket receives is the play, packet by packet."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

import pytest

from xdpstack.errors import SetupError
from xdpstack.lab import feeds, mold
from xdpstack.lab.faults import Faults
from xdpstack.lab.truth import Verifier, parse
from xdpstack.lab.venue import Play, Player

SO_RCVBUFFORCE = 33


@contextlib.contextmanager
def members(trader, play):
    """One joined kernel socket a line."""
    with contextlib.ExitStack() as stack:
        out = []
        for _, _, group, port, _ in play.destinations:
            opened = stack.enter_context(trader.socket())
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
            opened.bind((group, port))
            request = socket.inet_aton(group) + socket.inet_aton("10.77.0.2")
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
            opened.setblocking(False)
            out.append(opened)
        yield out


def record(sockets, player, quiet=0.3):
    """Everything that comes, by line, until the player is done and nothing comes any more."""
    out, last = [[] for _ in sockets], time.monotonic()
    where = {opened.fileno(): at for at, opened in enumerate(sockets)}
    while time.monotonic() - last < quiet or player.report is None:
        ready, _, _ = select.select(sockets, [], [], 0.05)
        for opened in ready:
            with contextlib.suppress(BlockingIOError):
                for _ in range(256):
                    out[where[opened.fileno()]].append(opened.recv(2048))
            last = time.monotonic()
        if not ready:
            player.progress()
    return out


def arbitrate(truth, lines):
    """A slow, obvious receiver: keep all units of all lines, deliver them in order, report the rest."""
    verifier = Verifier(truth)
    for number, epoch in enumerate(truth.epochs):
        if number:
            verifier.restart(epoch.session)
        have = {}
        for line in lines:
            for payload in line:
                session, sequence, count, body = parse(truth.session, payload)
                if session == epoch.session and count:
                    have[sequence] = (count, body)
        following = epoch.first
        for sequence in sorted(have):
            if sequence > following:
                verifier.gap(following, sequence - following)
            verifier.block(sequence, have[sequence][1])
            following = sequence + have[sequence][0]
    return verifier.report()


def test_a_kernel_socket_receives_the_play_exactly(lab_pair):
    venue, trader = lab_pair
    day = mold.pack([(n * 10**6, bytes([n % 251]) * 30) for n in range(20_000)], b"XDPSTACK02", seed=3)
    how = Faults(loss=0.02, duplicate=0.01, reorder=0.01)
    play = Play([feeds.cme(3), feeds.iex(3.5, lines=1), feeds.itch(3, day)], faults=how)
    with members(trader, play) as sockets, Player(venue, play, source="10.77.0.1", patience=30) as player:
        got = record(sockets, player)
        report = player.wait(120)
    assert report["complete"]
    assert report["refused"] == 0
    for number, (name, line, *_) in enumerate(play.destinations):
        expected = [payload for at, payload in zip(play.lines, play.payloads, strict=True) if at == number]
        assert got[number] == expected, f"{name} line {line}"
        told = next(one for one in play.truths[name].lines if one.name == line)
        said = report["lines"][number]
        assert (said["packets"], said["bytes"]) == (told.sent, told.bytes)
    cme = arbitrate(play.truths["cme-mdp3"], [got[0], got[1]])
    assert cme.ok, cme.faults
    assert cme.delivered == 5000
    itch = arbitrate(play.truths["itch50"], [got[3], got[4]])
    assert itch.ok, itch.faults
    assert itch.open == sum(hole.count for hole in play.truths["itch50"].holes)


def test_the_player_sends_sixty_thousand_packets_a_second(lab_pair):
    venue, trader = lab_pair
    play = Play([feeds.iex(0.5)], rate_max=1_000_000)
    with members(trader, play), Player(venue, play, source="10.77.0.1", patience=30) as player:
        report = player.wait(120)
    rate = report["sent"] / report["cpu_seconds"]
    print(f"{rate:.0f} packets a second of one core")
    assert report["complete"]
    assert rate > 60_000


def test_rate_max_is_kept_and_lateness_is_said(lab_pair):
    venue, _ = lab_pair
    play = Play([feeds.cme(0.1)], rate_max=20_000)
    with Player(venue, play, source="10.77.0.1", patience=30) as player:
        report = player.wait(120)
    assert report["complete"]
    assert report["seconds"] > 10_000 / 20_000
    assert report["late_ns"]["max"] > 3 * 10**8


def test_a_player_that_is_closed_ends_at_once_and_can_play_again(lab_pair):
    venue, _ = lab_pair
    play = Play([feeds.cme(20)])
    with Player(venue, play, source="10.77.0.1", patience=30) as player:
        deadline = time.monotonic() + 60
        while (word := player.progress()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 0 <= word["sent"] < word["total"] == 10_000
        pid = player._child.pid
        player.start()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert player._child.poll() is None


def test_an_address_that_is_not_ours_is_said(lab_pair):
    venue, _ = lab_pair
    with pytest.raises(SetupError, match=r"play from 192\.0\.2\.1"):
        Player(venue, Play([feeds.cme(1)]), source="192.0.2.1").start()


def test_the_request_server_answers_over_udp_and_counts(lab_pair):
    venue, trader = lab_pair
    play = Play([feeds.itch(1)])
    truth = play.truths["itch50"]
    epoch = truth.epochs[0]
    server = mold.RequestServer(venue, "10.77.0.1", 0, play.answerer("itch50"))
    with server, trader.socket() as client:
        client.settimeout(60)
        client.connect(("10.77.0.1", server.port))
        served = [hole for hole in truth.holes if hole.served]
        for hole in served:
            first = hole.first
            while first < hole.first + hole.count:
                client.send(mold.HEADER.pack(epoch.session, first, hole.first + hole.count - first))
                session, sequence, count, body = parse("mold64", client.recv(2048))
                assert (session, sequence) == (epoch.session, first)
                assert body == epoch.slice(first, count)
                first += count
        refused = next(hole for hole in truth.holes if not hole.served)
        client.send(mold.HEADER.pack(epoch.session, refused.first, refused.count))
        client.send(b"garbage")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(2048)
        counts = server.counters()
    assert counts["answered"] >= len(served)
    assert (counts["refused"], counts["malformed"]) == (1, 1)
    assert counts["requests"] == counts["answered"] + 2


def test_a_second_server_on_the_address_is_refused(lab_pair):
    venue, _ = lab_pair
    answerer = Play([feeds.itch(1)]).answerer("itch50")
    with (
        mold.RequestServer(venue, "10.77.0.1", 18_000, answerer),
        pytest.raises(SetupError, match=r"10\.77\.0\.1:18000"),
    ):
        mold.RequestServer(venue, "10.77.0.1", 18_000, answerer).start()
