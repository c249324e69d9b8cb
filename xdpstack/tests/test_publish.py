"""An engine's tape and its command ring: what readers get, what commanders may ask, and what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xdpstack import config
from xdpstack._ffi import dtype, ffi, lib
from xdpstack.engine import Engine, EngineConfig
from xdpstack.errors import ConfigError, RemoteProtocolError, SetupError
from xdpstack.feed import FeedConfig
from xdpstack.flows import udp_frame
from xdpstack.port import PcapPort, PcapWriter, SockPort, Subscription
from xdpstack.publish import Commander, CommandsConfig, PublishConfig, Subscriber
from xdpstack.ring import Ring
from xdpstack.tape import Tape, make_tape
from xdpstack.tests.frames import plain_message, plain_packet
from xdpstack.tests.test_runner import CONFIG, GROUP, capture, wait

ALL = ["updates", "events", "messages", "state"]
HOME = "127.0.0.1"


def publish(folder: Path, **options: object) -> PublishConfig:
    return PublishConfig(tape=str(folder / "tape"), **options)


def commands(folder: Path) -> CommandsConfig:
    return CommandsConfig(ring=str(folder / "ring"))


def collect(reader: Subscriber) -> list[tuple]:
    """Until the engine has finished: kind, feed, a copy of the rows, messages, state of each record."""
    found = []
    while True:
        try:
            batch = reader.read()
        except EOFError:
            return found
        for news in batch:
            found.append(
                (
                    news.kind,
                    news.feed,
                    news.rows.copy(),
                    [data for _, data in news.messages()] if news.kind == "messages" else [],
                    news.state() if news.kind == "state" else {},
                )
            )
        reader.wait(0.05)


def played(tmp_path: Path, counts: list[int], size: int = 1 << 20, **options: object) -> list[tuple]:
    """What a reader gets of a capture with so many messages a packet."""
    made = publish(tmp_path, bytes=size, what=ALL, keep=True, **options)
    config = EngineConfig(max_messages=1 << 16)
    with PcapPort(capture(tmp_path / "in.pcap", counts)) as port, Engine(config) as engine:
        engine.add_link(port, promiscuous=True)
        engine.add_feed(CONFIG)
        engine.publish(made)
        runner = engine.start()
        wait(lambda: not runner.running)
        assert runner.stop() == 0
        engine.detach()
    with Subscriber.open(tmp_path / "tape", oldest=True) as reader:
        assert reader.feeds == ["plain"]
        return collect(reader)


def test_a_reader_of_the_tape_gets_updates_messages_and_state_as_the_engine_had_them(tmp_path):
    found = played(tmp_path, [3, 16, 1])
    updates = np.concatenate([rows for kind, _, rows, _, _ in found if kind == "updates"])
    assert updates["price"].tolist() == list(range(100, 120))
    assert {feed for kind, feed, *_ in found if kind == "updates"} == {"plain"}
    bytes_of = [data for kind, _, _, messages, _ in found if kind == "messages" for data in messages]
    assert len(bytes_of) == 20
    assert [int.from_bytes(data[4:12], "little") for data in bytes_of] == list(range(100, 120))
    states = [state for kind, *_, state in found if kind == "state"]
    assert states[-1]["packets"] == 3
    assert states[-1]["updates"] == states[-1]["messages"] == 20
    assert states[-1]["published"]["records"]["updates"] == sum(kind == "updates" for kind, *_ in found)


def tape_of(folder: Path, records: list[tuple[int, bytes]], feeds: int = 3) -> Tape:
    """A tape as an engine's, with records of these kinds."""
    tape = Tape.create(folder / "tape", 1 << 20)
    text = json.dumps({"publish": 3, "feeds": [f"feed{i}" for i in range(feeds)], "sessions": []}).encode()
    ffi.buffer(tape.pointer.text)[:] = text.ljust(lib.XDS_TAPE_TEXT, b"\0")
    for kind, data in records:
        tape.write(data, kind)
    return tape


def head(**fields: int) -> bytes:
    return bytes(ffi.buffer(ffi.new("struct xds_publish_head *", fields)))


def test_one_look_gives_each_feed_its_updates_in_one_array_and_the_rest_by_record(tmp_path):
    dice, form = random.Random(3), dtype("struct xds_update")
    wanted: dict[int, list[int]] = {0: [], 1: [], 2: []}
    records, others, price = [], [], 0
    for turn in range(200):
        feed, count = dice.randrange(3), dice.randrange(5)
        rows = np.zeros(count, form)
        rows["price"] = np.arange(price, price + count)
        wanted[feed] += rows["price"].tolist()
        price += count
        records.append(
            (1, head(feed=feed, count=count, turn=turn, now=turn, open_gaps=turn % 3) + rows.tobytes())
        )
        if turn % 10 == 0:
            answer = ffi.new("struct xds_publish_answer *", {"number": turn})
            records.append((5, head(count=1, now=turn) + bytes(ffi.buffer(answer))))
            others.append(turn)
    with tape_of(tmp_path, records) as tape, Subscriber.open(tmp_path / "tape", oldest=True) as reader:
        batch = reader.gather()
        assert {i: batch.of(f"feed{i}")["price"].tolist() for i in range(3)} == wanted
        assert len(batch) == price
        assert [news.answer() for news in batch.news] == [(turn, "") for turn in others]
        assert (batch.now, batch.open_gaps, batch.lost) == (199, 199 % 3, 0)
        with pytest.raises(ConfigError, match="none of feed0, feed1, feed2"):
            batch.of("feed9")
        assert len(reader.gather()) == 0
        tape.write(records[0][1], 1)
        assert np.shares_memory(reader.gather().of("feed0"), reader._updates)
        tape.finish()
        with pytest.raises(EOFError):
            reader.gather()


@pytest.mark.parametrize(
    "record",
    [(1, head(count=1)), (1, head(feed=16)), (1, head(count=1 << 31) + bytes(64)), (1, b"x" * 63), (5, b"")],
)
def test_a_look_at_a_record_that_contradicts_itself_is_refused(tmp_path, record):
    good = (1, head(count=1) + bytes(64))
    with (
        tape_of(tmp_path, [good, record]),
        Subscriber.open(tmp_path / "tape", oldest=True) as reader,
        pytest.raises(RemoteProtocolError, match="contradicts itself"),
    ):
        reader.gather()


def test_a_gap_comes_as_an_event(tmp_path):
    with PcapWriter(tmp_path / "in.pcap") as writer:
        writer.add_interface("test")
        for number in (0, 1, 5):
            packet = plain_packet(number, plain_message("A", "B", 1, 100, 10))
            writer.write(10**18 + number * 1000, udp_frame(packet, GROUP))
    with PcapPort(tmp_path / "in.pcap") as port, Engine() as engine:
        engine.add_link(port, promiscuous=True)
        engine.add_feed(CONFIG)
        engine.publish(publish(tmp_path, keep=True))
        runner = engine.start()
        wait(lambda: not runner.running)
        engine.detach()
    with Subscriber.open(tmp_path / "tape", oldest=True) as reader:
        events = [rows for kind, _, rows, *_ in collect(reader) if kind == "events"]
    found = np.concatenate(events)
    gaps = found[found["kind"] == lib.XDS_EVENT_GAP_FOUND]
    assert [(gap["first"], gap["count"]) for gap in gaps] == [(2, 3)]


def test_what_is_longer_than_a_record_comes_in_several(tmp_path):
    found = played(tmp_path, [40] * 64, state_every=0.0)
    updates = [rows for kind, _, rows, _, _ in found if kind == "updates"]
    assert max(map(len, updates)) == ((1 << 20) // 8 - 64) // 64
    assert np.concatenate(updates)["price"].tolist() == list(range(100, 100 + 40 * 64))
    several = [messages for kind, _, _, messages, _ in found if kind == "messages"]
    assert len(several) == 2
    prices = [int.from_bytes(data[4:12], "little") for messages in several for data in messages]
    assert prices == list(range(100, 100 + 40 * 64))


class Live:
    """A free-running engine on loopback that publishes and obeys, and a reader of its tape."""

    def __init__(self, folder: Path, feeds: tuple[FeedConfig, ...] = (), home: str = f"{HOME}:0") -> None:
        self.port, self.engine = SockPort([home]), Engine()
        self.engine.add_sock(self.port)
        for feed in feeds:
            self.engine.add_feed(feed)
        self.engine.publish(publish(folder, what=["updates"]), commands(folder))
        self.runner = self.engine.start(nap_us=200)
        self.reader = Subscriber.open(folder / "tape", "test", oldest=True)
        self.answers: dict[int, str] = {}
        self.kinds: list[str] = []

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.engine.close()
        self.port.close()

    def answer(self, number: int) -> str:
        """The answer to a command; waits for it."""

        def came() -> bool:
            for news in self.reader.read():
                self.kinds.append(news.kind)
                if news.kind == "answer":
                    self.answers.update([news.answer()])
            return number in self.answers

        wait(came, 60.0)
        return self.answers[number]


def test_a_command_sends_subscribes_cancels_and_shuts_down(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far, Live(tmp_path) as live:
        far.bind((HOME, 0))
        far.settimeout(60)
        with Commander(tmp_path / "ring", live.reader.feeds) as commander:
            to = Subscription(address=HOME, port=far.getsockname()[1])
            assert live.answer(commander.send(b"by command", to, sport=live.port.local_port(0))) == ""
            assert far.recv(100) == b"by command"
            assert "state" not in live.kinds
            assert live.answer(commander.subscribe(["state"])) == ""
            wait(lambda: live.answer(2) == "" and "state" in live.kinds, 60.0)
            assert live.answer(commander.cancel(["state", "updates"])) == ""
            assert live.runner.running
            assert live.answer(commander.shut_down()) == ""
            wait(lambda: not live.runner.running, 60.0)
        stats = live.engine.publication.stats()
        assert stats["commands"] == stats["answers"]["none"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_a_command_sends_over_ipv6_too_and_so_does_the_engines_own_ring(tmp_path):
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as far,
        Live(tmp_path, home="[::1]:0") as live,
        Commander(tmp_path / "ring", live.reader.feeds) as commander,
    ):
        far.bind(("::1", 0))
        far.settimeout(60)
        here = live.port.local_port(0)
        to = Subscription(address="::1", port=far.getsockname()[1])
        assert live.answer(commander.send(b"by command", to, sport=here)) == ""
        assert far.recv(100) == b"by command"
        assert live.answer(commander.send(b"", to, sport=here)) == ""
        data, source = far.recvfrom(100)
        assert (data, source[:2]) == (b"", ("::1", here))
        live.runner.send(b"by the runner", to, sport=here)
        assert far.recv(100) == b"by the runner"
        assert live.answer(commander.send(b"x", to, sport=here ^ 1)) == "port"


def raw(**fields: int) -> bytes:
    head = ffi.new("struct xds_command *", fields)
    return bytes(ffi.buffer(head))


BAD = {
    "kind": raw(kind=77, number=1),
    "short": raw(kind=lib.XDS_COMMAND_SEND, len=10, number=1) + b"123",
    "port": raw(kind=lib.XDS_COMMAND_SEND, port=9, number=1),
    "long": raw(kind=lib.XDS_COMMAND_SEND, len=65508, number=1) + bytes(65508),
    "short6": raw(kind=lib.XDS_COMMAND_SEND6, len=15, number=1) + bytes(15),
    "port6": raw(kind=lib.XDS_COMMAND_SEND6, len=16, port=9, number=1) + bytes(16),
    "long6": raw(kind=lib.XDS_COMMAND_SEND6, len=65524, number=1) + bytes(65524),
    "feed": raw(kind=lib.XDS_COMMAND_SUBSCRIBE, feeds=1 << 3, number=1),
    "nothing": raw(kind=lib.XDS_COMMAND_CANCEL, number=1),
}


@pytest.mark.parametrize("which", sorted(BAD))
def test_a_bad_command_is_refused_by_name_and_counted_and_the_engine_goes_on(tmp_path, which):
    reason = which.rstrip("6")
    with Live(tmp_path) as live, Ring.open(tmp_path / "ring", "writer") as ring:
        assert ring.write(0, BAD[which])
        assert live.answer(1) == reason
        assert ring.write(0, raw(kind=lib.XDS_COMMAND_SUBSCRIBE, what=1 << lib.XDS_PUBLISH_EVENTS, number=2))
        assert live.answer(2) == ""
        stats = live.engine.publication.stats()
        assert (stats["commands"], stats["answers"][reason], stats["answers"]["none"]) == (2, 1, 1)


def test_commands_of_noise_are_all_answered(tmp_path):
    dice = random.Random(5)
    with Live(tmp_path) as live, Ring.open(tmp_path / "ring", "writer") as ring:
        for _ in range(500):
            noise = bytearray(dice.randbytes(dice.choice((0, 3, 31, 32, 33, 100))))
            if len(noise) >= 4:
                noise[:4] = dice.choice((0, 1, 3, 4, 5, 9, 1 << 31)).to_bytes(
                    4, "little"
                )  # no shut-down by luck
            wait(lambda noise=bytes(noise): ring.write(0, noise), 60.0)
        assert ring.write(0, raw(kind=99, number=1 << 60))
        assert live.answer(1 << 60) == "kind"
        stats = live.engine.publication.stats()
        assert stats["commands"] == sum(stats["answers"].values()) == 501
        assert live.runner.running


@pytest.mark.parametrize("field", ["bytes", "tail"])
def test_a_ring_whose_header_was_broken_is_left_alone_and_said_to_be(tmp_path, field):
    with Live(tmp_path) as live, Ring.open(tmp_path / "ring", "writer") as ring:
        setattr(ring.pointer, field, 1 << 50)
        assert live.answer(0) == "broken"
        assert live.runner.running


READ = """
import sys
from xdpstack.publish import Subscriber
with Subscriber.open(sys.argv[1], sys.argv[2]) as engine:
    print("ready", flush=True)
    seen = 0
    while True:
        for news in engine.read():
            if news.kind == "answer":
                print(news.answer()[0], flush=True)
        engine.wait(0.01)
"""


def test_a_reader_that_is_killed_and_started_again_disturbs_nobody(tmp_path):
    def start(name: str) -> subprocess.Popen[str]:
        made = subprocess.Popen(
            [sys.executable, "-c", READ, str(tmp_path / "tape"), name], stdout=subprocess.PIPE, text=True
        )
        assert made.stdout.readline() == "ready\n"
        return made

    with Live(tmp_path) as live, Commander(tmp_path / "ring") as commander:
        processes = [start("one"), start("two")]
        try:
            assert live.answer(commander.subscribe(["events"])) == ""
            assert [p.stdout.readline() for p in processes] == ["1\n", "1\n"]
            processes[1].send_signal(signal.SIGKILL)
            processes[1].communicate()
            assert live.answer(commander.subscribe(["events"])) == ""
            assert processes[0].stdout.readline() == "2\n"
            processes[1] = start("two")
            assert live.answer(commander.subscribe(["events"])) == ""
            assert [p.stdout.readline() for p in processes] == ["3\n", "3\n"]
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def test_an_engine_that_died_is_followed_by_the_next_which_drops_what_was_asked_of_the_dead(tmp_path):
    ready = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            live = Live(tmp_path)
            os.write(ready[1], b"r")
            live.runner.stop()  # so that what is asked from now on waits
            os.write(ready[1], b"r")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(ready[0], 1) + os.read(ready[0], 1) == b"rr"
    with Subscriber.open(tmp_path / "tape", "follows") as follower:
        with Commander(tmp_path / "ring") as commander:
            commander.shut_down()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not follower.engine_alive
        with Live(tmp_path) as live, Commander(tmp_path / "ring") as commander:
            assert follower.engine_alive
            assert live.answer(commander.subscribe(["events"])) == ""
            assert live.runner.running
            wait(lambda: any(news.kind == "answer" for news in follower.read()), 60.0)


def test_a_second_engine_and_a_tape_of_another_kind_are_refused(tmp_path):
    with Live(tmp_path), Engine() as other:
        other.publish(publish(tmp_path))
        with pytest.raises(SetupError, match="is its writer"):
            other.start()
    make_tape(tmp_path / "tape", 1 << 16, dtype="<i8")
    with Engine() as other:
        other.publish(publish(tmp_path))
        with pytest.raises(SetupError, match="a length of their own"):
            other.start()
    make_tape(tmp_path / "other", 1 << 16)
    with pytest.raises(SetupError, match="no engine publishes"):
        Subscriber.open(tmp_path / "other")


def test_a_program_says_in_toml_what_it_publishes(tmp_path):
    head = '[ports.main]\nport = "pcap:x.pcap"\n'
    file = tmp_path / "p.toml"
    file.write_text(head + '[publish]\ntape = "itch"\nwhat = ["updates"]\n[commands]\nring = "/tmp/r"\n')
    program = config.load(file)
    assert program.publish.path == Path("/dev/shm/itch.tape")
    assert program.commands.path == Path("/tmp/r")
    for table, why in (
        ("[publish]\nbytes = 65536\n", r':3: publish: wanted tape = "NAME"'),
        ('[publish]\ntape = "x"\nbytes = 100\n', ":5: publish.bytes: wanted a power of two"),
        ('[publish]\ntape = "x"\nwhat = ["update"]\n', ":5: publish.what: 'update' is none of updates"),
        ('[publish]\ntape = "x"\nwhat = "all"\n', ":5: publish.what: wanted a list of updates"),
        ('[publish]\ntape = "x"\nmode = "9"\n', ":5: publish.mode: wanted a mode"),
        ('[commands]\nring = "x"\n', ":3: commands: answers come by the tape"),
        ('[publish]\ntape = "x"\n[handover]\nsocket = "y"\n', "not with a handover"),
    ):
        file.write_text(head + table)
        with pytest.raises(ConfigError, match=why.replace("[", r"\[")):
            config.load(file)


def test_the_formats_are_as_documented():
    assert ffi.sizeof("struct xds_publish_head") == 64
    assert [
        ffi.offsetof("struct xds_publish_head", n)
        for n in ("turn", "feed", "count", "table", "stages", "n_stages")
    ] == [24, 32, 36, 44, 48, 52]
    assert ffi.sizeof("struct xds_stages") == 64
    assert [
        ffi.offsetof("struct xds_stages", n) for n in ("callback", "first", "first_message", "count")
    ] == [40, 48, 52, 56]
    assert ffi.sizeof("struct xds_command") == 32
    assert [ffi.offsetof("struct xds_command", n) for n in ("dst", "port", "feeds", "what", "number")] == [
        8, 16, 18, 20, 24
    ]  # fmt: skip
    assert dtype("struct xds_publish_message").itemsize == 32
    assert ffi.sizeof("struct xds_publish_answer") == 24
