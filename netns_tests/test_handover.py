"""A queue goes from process to process under load: every sequence number arrives, once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netns_tests.programs import started, written
from xdpstack.bpf import Filter
from xdpstack.errors import LocalProtocolError, SetupError
from xdpstack.handover import Offer, Takeover
from xdpstack.lab.snapshot import Snapshot, other_labs
from xdpstack.opener import wire
from xdpstack.port import XskPort
from xdpstack.port.parts import Parts, adopt, part
from xdpstack.steering import filter_words
from xdpstack.tests.frames import plain_message, plain_packet

SO_RCVBUFFORCE = 33
GROUP = ("239.1.1.1", 5000)
RULE = "udp dst 239.1.1.1:5000 -> main"
TAKE = {"ask": "take over", "ports": [["main", "xsk:t0:0"]]}
HANDOVERS = int(os.environ.get("XDS_HANDOVERS", "50"))
SENT_BY_EACH = 100
RUNS = int(os.environ.get("XDS_RUNS", "3"))


def load(stop: socket.socket, packet=lambda seq: seq.to_bytes(8, "big"), burst: int = 16) -> None:
    """Some 900 bursts a second, packets numbered from 0, until told to end; says how many there were."""
    stop.setblocking(False)
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
        while True:
            for _ in range(burst):
                out.sendto(packet(sent), GROUP)
                sent += 1
            time.sleep(0.001)
            try:
                stop.recv(1)
                break
            except BlockingIOError:
                continue
    stop.setblocking(True)
    stop.sendall(sent.to_bytes(8, "big"))


def numbered(number: int) -> bytes:
    return b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + number.to_bytes(8, "big") + b"\0" * 40


def hold(number: int, before: socket.socket, after: socket.socket, into: Path, seconds: float) -> None:
    """One process of the chain: take the port, receive and send for a while, give it on."""
    message, fds = wire.receive(before)
    port = adopt(Parts(message, fds))
    seen: list[int] = []
    sent, end = 0, time.monotonic() + seconds
    while time.monotonic() < end or sent < SENT_BY_EACH:
        seen += [int.from_bytes(f.data[42:50], "big") for f in port.receive(256)]
        if sent < SENT_BY_EACH:
            sent += port.send([numbered(number * SENT_BY_EACH + sent)])
    into.write_text(json.dumps(seen))
    parts = part(port)
    wire.send(after, dict(parts.settings), parts.fds)
    parts.close()


@pytest.mark.parametrize("need_wakeup", [True, False])
def test_every_number_arrives_once_over_fifty_handovers(lab_pair, tmp_path, need_wakeup):
    venue, trader = lab_pair
    count = HANDOVERS if need_wakeup else HANDOVERS // 5
    with trader.enter(), Filter.load("t0", rules=[RULE]) as steer:
        port = XskPort("t0", need_wakeup=need_wakeup, shared=True)
        steer.set_socket("main", 0, port.fds()[0])
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count + 1)]
        ours, theirs = socket.socketpair()
        with venue.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire_end:
            wire_end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            wire_end.bind(("v0", 0x88B5))
            sender = venue.fork(load, theirs)
            parts = part(port)
            wire.send(pairs[0][0], dict(parts.settings), parts.fds)
            parts.close()
            children = []
            for i in range(count):  # the next one waits for the port before it is there
                into = tmp_path / f"{i}"
                children.append(trader.fork(hold, i, pairs[i][1], pairs[i + 1][0], into, 0.03))
                if len(children) > 2:
                    assert children.pop(0).wait(30) == 0
            for child in children:
                assert child.wait(30) == 0
            message, fds = wire.receive(pairs[-1][1])
            last = adopt(Parts(message, fds))
            ours.sendall(b"x")
            sent = int.from_bytes(ours.recv(8), "big")
            assert sender.wait(10) == 0
            seen = [n for i in range(count) for n in json.loads((tmp_path / f"{i}").read_text())]
            end = time.monotonic() + 60
            while len(seen) < sent and time.monotonic() < end:
                seen += [int.from_bytes(f.data[42:50], "big") for f in last.receive(256)]
            stats = last.stats()
            assert seen == list(range(sent)), (len(seen), sent, stats)
            assert sent > 15 * count
            census = last.census()
            assert census["tx_free"] == last.tx_frames
            assert sum(census[key] for key in ("rx_leased", "rx_waiting", "rx_filled", "rx_kernel")) == 4096
            assert (stats["rx_dropped"], stats["rx_ring_full"], stats["rx_invalid"], stats["tx_invalid"]) == (
                0,
            ) * 4
            heard = []
            wire_end.setblocking(False)
            while True:
                try:
                    heard.append(int.from_bytes(wire_end.recv(2048)[14:22], "big"))
                except BlockingIOError:
                    break
            assert heard == list(range(count * SENT_BY_EACH)), "what each of them sent, once"
        last.close()
        for pair in (*pairs, (ours, theirs)):
            pair[0].close()
            pair[1].close()


def test_what_finds_no_room_in_the_ring_meanwhile_is_counted_and_nothing_else_is_lost(lab_pair, tmp_path):
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", rules=[RULE]) as steer:
        port = XskPort("t0", rx_ring=64, shared=True)
        steer.set_socket("main", 0, port.fds()[0])
        ours, theirs = socket.socketpair()
        sender = venue.fork(load, theirs)
        seen: list[int] = []
        for _ in range(10):
            parts = part(port)
            time.sleep(0.03)  # the ring overflows
            port = adopt(parts)
            for _ in range(20):
                seen += [int.from_bytes(f.data[42:50], "big") for f in port.receive(64)]
        ours.sendall(b"x")
        sent = int.from_bytes(ours.recv(8), "big")
        assert sender.wait(10) == 0
        while frames := port.receive(64):
            seen += [int.from_bytes(f.data[42:50], "big") for f in frames]
        stats = port.stats()
        port.close()
    assert seen == sorted(set(seen))
    assert stats["rx_ring_full"] > 0
    assert len(seen) + stats["rx_ring_full"] + stats["rx_dropped"] == sent


def test_a_port_that_is_not_shared_or_in_use_does_not_part(lab_pair):
    _, trader = lab_pair
    with trader.enter():
        with XskPort("t0") as port, pytest.raises(LocalProtocolError, match="not shared"):
            part(port)
        with XskPort("t0", shared=True) as port:
            port.hold()
            with pytest.raises(LocalProtocolError, match="in use by an engine"):
                part(port)
            port.let_go()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("layout", 1, "another version of xdpstack"),
        ("config", {}, "damaged"),
        ("parted", {"tx_free": 9}, "damaged"),
        ("interface", None, "damaged"),
        ("fds", "fewer", "descriptors"),
        ("frames", 1 << 19, "a memory of"),
    ],
)
def test_damaged_parts_are_refused_and_their_descriptors_closed(lab_pair, key, value, words):
    _, trader = lab_pair
    with trader.enter():
        before = len(os.listdir("/proc/self/fd"))
        parts = part(XskPort("t0", shared=True, rx_frames=512, tx_frames=64))
        settings = json.loads(json.dumps(dict(parts.settings)))
        if key == "fds":
            os.close(parts.fds.pop())
        elif key == "frames":
            settings["config"]["rx_frames"] = value
        elif value is None:
            del settings[key]
        else:
            settings[key] = value
        with pytest.raises(SetupError, match=words):
            adopt(Parts(settings, parts.fds))
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_list_of_free_frames_that_contradicts_itself_is_refused(lab_pair):
    _, trader = lab_pair
    with trader.enter():
        before = len(os.listdir("/proc/self/fd"))
        parts = part(XskPort("t0", shared=True, rx_frames=512, tx_frames=64))
        settings = json.loads(json.dumps(dict(parts.settings)))
        settings["parted"]["tx_free"] = 65
        with pytest.raises(SetupError, match="take"):
            adopt(Parts(settings, parts.fds))
        assert len(os.listdir("/proc/self/fd")) == before


# ---- xdpstack run --takeover --------------------------------------------------------------------------


def config(folder: Path, options: str = "") -> Path:
    return written(folder, "xsk:t0:0", options=options, more=f'[handover]\nsocket = "{folder}/run.sock"')


def plain(seq: int) -> bytes:
    return plain_packet(seq, plain_message("A", "B", 1, 100, 1))


def ended(running: subprocess.Popen[str]) -> dict:
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    return json.loads(out)


@pytest.mark.parametrize("pinned", [False, True])
def test_run_takes_over_from_run_without_losing_a_packet(lab_pair, tmp_path, pinned):
    venue, trader = lab_pair
    path = config(tmp_path)
    with trader.enter():
        before = Snapshot.take()
        if pinned:
            Filter.load("t0", rules=["arp -> pass"], pin=True).close()
    ours, theirs = socket.socketpair()
    running = started(trader, path, "--json")
    sender = venue.fork(load, theirs, plain)
    time.sleep(0.2)
    results = []
    for _ in range(RUNS):
        following = started(trader, path, "--json", "--takeover")
        results.append(ended(running))
        running = following
        time.sleep(0.1)
    ours.sendall(b"x")
    sent = int.from_bytes(ours.recv(8), "big")
    assert sender.wait(10) == 0
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    results.append(ended(running))
    assert all(result["packets"] for result in results)
    assert [result["gaps"]["found"] for result in results] == [0] * len(results)
    assert not any(line["duplicate"] for result in results for line in result["lines"])
    assert sum(result["packets"] for result in results) == sent
    with trader.enter():
        if pinned:
            with Filter.open_pinned("t0") as left:
                assert [str(rule) for rule in left.rules] == ["arp -> pass"]
                left.unload()
        assert before.wait_restored(but=other_labs) == {}
    assert not (tmp_path / "run.sock").exists()


def test_a_takeover_without_a_running_process_is_one_sentence(lab_pair, tmp_path):
    _, trader = lab_pair
    command = [sys.executable, "-m", "xdpstack", "run", str(config(tmp_path)), "--takeover"]
    done = trader.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, err = done.communicate(timeout=20)
    assert done.returncode == 1
    assert "the running process" in err
    assert err.count("\n") == 1


def test_a_second_run_without_takeover_is_refused_and_the_first_goes_on(lab_pair, tmp_path):
    venue, trader = lab_pair
    path = config(tmp_path)
    running = started(trader, path, "--json")
    second = trader.popen([sys.executable, "-m", "xdpstack", "run", str(path)], stderr=subprocess.DEVNULL)
    assert second.wait(20) == 1
    ours, theirs = socket.socketpair()
    sender = venue.fork(load, theirs, plain)
    time.sleep(0.1)
    ours.sendall(b"x")
    sent = int.from_bytes(ours.recv(8), "big")
    assert sender.wait(10) == 0
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    assert ended(running)["packets"] == sent


@pytest.mark.parametrize("dies", ["before it asks", "after it was given the ports"])
def test_a_taker_that_dies_before_it_has_the_ports_leaves_the_old_one_running(lab_pair, tmp_path, dies):
    venue, trader = lab_pair
    path = config(tmp_path)
    running = started(trader, path, "--json")
    ours, theirs = socket.socketpair()
    sender = venue.fork(load, theirs, plain)
    for _ in range(3):
        connection = wire.connect(str(tmp_path / "run.sock"), 5.0, "it")
        if dies != "before it asks":
            wire.send(connection, {"ask": "take over", "ports": [["main", "xsk:t0:0"]]})
            for _ in range(2):
                _, fds = wire.receive(connection)
                wire.close_all(fds)
        connection.close()
        time.sleep(0.05)
    ours.sendall(b"x")
    sent = int.from_bytes(ours.recv(8), "big")
    assert sender.wait(10) == 0
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    result = ended(running)
    assert (result["packets"], result["gaps"]["found"]) == (sent, 0)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"ask": "take over", "ports": [["main", "xsk:t0:1"]]}, "its ports are others"),
        ({"ask": "a question"}, "asked to be taken over"),
        (
            {**TAKE, "filters": {"main": {"priority": 60, "metadata": ["timestamp"]}}},
            'port main keeps its filter, which has metadata = [], not ["timestamp"]; end it, then run',
        ),
        ({**TAKE, "filters": {"main": {"dispatcher": True}}}, "which has dispatcher = false, not true"),
    ],
)
def test_an_offer_refuses_what_is_no_takeover_of_its_ports(tmp_path, message, words):
    path = str(tmp_path / "s")
    with Offer(path, [("main", "xsk:t0:0")], {"main": filter_words({})}) as offer:
        with wire.connect(path, 5.0, "it") as connection:
            wire.send(connection, message)
            assert offer.wait(1.0) is None
            answer, _ = wire.receive(connection)
            assert words in answer["refused"]
        with pytest.raises(SetupError, match="another process does"):
            Offer(path, [])
        Takeover(path)
    assert not Path(path).exists()


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"filters": None},
        {"filters": {"other": {"priority": 1}}},
        {"filters": {"main": 3}},
        {"filters": {"main": {"metadata": [], "more": 1}}},
    ],
)
def test_an_offer_holds_against_nobody_what_was_not_asked_of_its_filters(tmp_path, filters):
    path = str(tmp_path / "s")
    with (
        Offer(path, [("main", "xsk:t0:0")], {"main": filter_words({})}) as offer,
        wire.connect(path, 5.0, "it") as connection,
    ):
        wire.send(connection, {**TAKE, **filters})
        taken = offer.wait(5.0)
        assert taken is not None
        taken.close()


def test_a_takeover_that_wants_another_filter_is_refused_and_the_first_goes_on(lab_pair, tmp_path):
    venue, trader = lab_pair
    running = started(trader, config(tmp_path), "--json")
    wants = config(tmp_path, 'metadata = ["timestamp"]')
    command = [sys.executable, "-m", "xdpstack", "run", str(wants), "--takeover"]
    second = trader.popen(command, stderr=subprocess.PIPE, text=True)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 1
    assert said == (
        f"xdpstack: take over at {tmp_path}/run.sock: port main keeps its filter, which has metadata = [], "
        'not ["timestamp"]; end it, then run\n'
    )
    ours, theirs = socket.socketpair()
    sender = venue.fork(load, theirs, plain)
    ours.sendall(b"x")
    sent = int.from_bytes(ours.recv(8), "big")
    assert sender.wait(20) == 0
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    assert ended(running)["packets"] == sent > 0
