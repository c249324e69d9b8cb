"""The node on a real kernel: plain feed over veth, stepped and free-running, hooked, recorded, put back."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from xdpstack import node as nodes
from xdpstack.bpf import Filter
from xdpstack.config import PortConfig, Program
from xdpstack.engine import EngineConfig
from xdpstack.errors import ConfigError, SetupError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.lab import Namespace
from xdpstack.lab.snapshot import Snapshot
from xdpstack.port import Subscription
from xdpstack.replay import replay, summary
from xdpstack.tests.frames import plain_message, plain_packet

GROUP = ("239.1.1.1", 5000)
LINE = "239.1.1.1:5000"
PACKETS = 2000
TRANSPORTS = ("xsk:t0", "sock:t0")


def send(skip: tuple[int, ...] = (), count: int = PACKETS) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
        for seq in range(count):
            if seq not in skip:
                out.sendto(
                    plain_packet(seq, *(plain_message("A", "B", k, 100 + seq % 7, 1 + k) for k in range(4))),
                    GROUP,
                )
            if seq % 50 == 0:
                time.sleep(0.001)


def collect(node: nodes.Node, venue: Namespace, **how) -> list[np.ndarray]:
    """Send everything, take it stepped until the sender has ended and nothing more comes."""
    node.build()
    child = venue.fork(send, **how)
    quiet = []

    def idle() -> bool:
        if child.poll() is not None:
            quiet.append(time.monotonic())
        return bool(quiet) and quiet[-1] - quiet[0] > 0.2

    taken = [batch.updates.copy() for batch in node.run(idle=idle)]
    assert child.wait(60) == 0
    return taken


@pytest.mark.parametrize("port", TRANSPORTS)
def test_every_update_arrives_once_in_order_with_its_stamp(lab_pair, port):
    venue, trader = lab_pair
    with trader.enter(), nodes.open(port) as node:
        feed = node.feed("plain", groups=[LINE])
        updates = np.concatenate(collect(node, venue))
        assert updates["seq"].tolist() == [seq for seq in range(PACKETS) for _ in range(4)]
        assert (np.diff(updates["rx_ns"]) >= 0).all()
        assert abs(int(updates["rx_ns"][-1]) - time.clock_gettime_ns(time.CLOCK_TAI)) < 10_000_000_000
        assert feed.book["#3"].levels("bid")["qty"].tolist()[:1] == [4]
        ages = feed.ages["decoded"].summary()
        assert ages.count == PACKETS
        assert 0 < ages.p50 < 1_000_000_000


@pytest.mark.parametrize("port", TRANSPORTS)
def test_a_free_running_engine_publishes_the_same(lab_pair, port):
    venue, trader = lab_pair
    with trader.enter(), nodes.open(port) as node:
        node.feed("plain", groups=[LINE])
        runner = node.start()
        child = venue.fork(send)
        assert child.wait(20) == 0
        time.sleep(0.2)
        seqs = [int(seq) for published in runner.take() for seq in published.updates["seq"]]
        assert node.stop() == 0
        assert seqs == [seq for seq in range(PACKETS) for _ in range(4)]


@pytest.mark.parametrize("port", TRANSPORTS)
def test_a_recording_replays_to_the_same_books_events_and_counters(lab_pair, port, tmp_path):
    venue, trader = lab_pair
    path = tmp_path / "r.pcapng.zst"
    with trader.enter(), nodes.open(port, record=str(path)) as node:
        node.feed("plain", groups=[LINE], window=0.01)
        events = []
        node.build()
        child = venue.fork(send, skip=(100, 101, 700))
        end = time.monotonic() + 20
        for batch in node.run(idle=lambda: child.poll() is not None and batch_quiet(), spins=1000):
            events += [(e.kind, e.first, e.count, e.ns) for e in batch.events]
            assert time.monotonic() < end
        live = summary(node)
    again = replay(path)
    assert [(e["kind"], e["first"], e["count"], e["ns"]) for e in again["events"]] == events
    assert [kind for kind, *_ in events].count("gap_lost") == 2
    for key in ("books", "messages", "lines", "gaps", "packets", "stale"):
        assert again[key] == live[key], key


_QUIET: list[float] = []


def batch_quiet() -> bool:
    _QUIET.append(time.monotonic())
    if len(_QUIET) > 1 and _QUIET[-1] - _QUIET[0] > 0.3:
        _QUIET.clear()
        return True
    return False


def test_a_hook_sends_in_the_same_turn_by_af_xdp(lab_pair):
    from xdpstack.strategies.lift import ORDER

    venue, trader = lab_pair
    with venue.socket() as exchange:
        exchange.bind(("10.77.0.1", 9000))
        exchange.settimeout(60)
        with trader.enter(), nodes.open("xsk:t0") as node:
            node.feed("plain", groups=[LINE])
            node.build()
            node.engine.hosts[0].add_neighbour("10.77.0.1", venue.link("v0").get_attr("IFLA_ADDRESS"))
            node.engine.set_hook(_level_hook())
            child = venue.fork(send, count=1)
            deadline = time.monotonic() + 60
            for _ in node.run(idle=lambda: time.monotonic() > deadline, spins=1000):
                if node.stats()["engine"]["sent"]:
                    break
            assert child.wait(60) == 0
        data, source = exchange.recvfrom(2048)
    order = np.frombuffer(data, ORDER)[0]
    assert (int(order["instrument"]), int(order["price"]), int(order["qty"])) == (1, 100, 2)
    assert source == ("10.77.0.2", 9001)


def _level_hook():
    from xdpstack import hooks
    from xdpstack._ffi import lib
    from xdpstack.feed import ip_to_int

    level, dst = lib.XDS_LEVEL, ip_to_int("10.77.0.1")

    @hooks.hook(np.zeros(3, np.int64))
    def strategy(state, updates, outbox, now):
        for i in range(len(updates)):
            u = updates[i]
            if u.kind == level and u.instrument == 1:
                state[0] = u.instrument
                state[1] = u.price
                state[2] = u.qty
                hooks.send(outbox, state.view(np.uint8), dst, 9000, 9001, 0)
        return 0

    return strategy


def test_an_engine_echoes_udp_by_af_xdp(lab_pair):
    from xdpstack._ffi import ffi, lib

    venue, trader = lab_pair
    with trader.enter(), nodes.open("xsk:t0") as node:
        node.build()
        node.filters[0].add_rule("udp dst 10.77.0.2:7 -> main")
        node.engine.add_udp("10.77.0.2", 7, lib.xds_udp_echo_handler(), ffi.NULL)
        node.engine.hosts[0].add_neighbour("10.77.0.1", venue.link("v0").get_attr("IFLA_ADDRESS"))
        runner = node.start()
        with venue.socket() as client:
            client.settimeout(60)
            for size in (1, 18, 19, 700, 1472):
                client.sendto(bytes(range(256)) * 6 if size > 1500 else b"x" * size, ("10.77.0.2", 7))
                data, source = client.recvfrom(2048)
                assert (data, source) == (b"x" * size, ("10.77.0.2", 7))
        assert runner.running


def test_two_interfaces_carry_the_two_lines_of_one_feed(make_lab):
    lab = make_lab()
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    lab.veth(venue, "v0", "10.77.0.1/24", trader, "t0", "10.77.0.2/24")
    lab.veth(venue, "v1", "10.78.0.1/24", trader, "t1", "10.78.0.2/24")
    lines = tuple(Subscription(address=address, port=5000) for address in ("239.1.1.1", "239.1.1.2"))
    program = Program(
        ports=(PortConfig(port="xsk:t0", name="a"), PortConfig(port="xsk:t1", name="b")),
        feeds=(FeedConfig(schema="plain", channels=(ChannelConfig(lines=lines, window=0.5),)),),
        engine=EngineConfig(name="two"),
    )

    def both() -> None:
        for source, address, skip in (("10.77.0.1", "239.1.1.1", 5), ("10.78.0.1", "239.1.1.2", 9)):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
                for seq in range(20):
                    if seq != skip:
                        out.sendto(
                            plain_packet(seq, plain_message("A", "B", 1, 100, seq + 1)), (address, 5000)
                        )

    with trader.enter(), nodes.open(program) as node:
        node.build()
        assert venue.fork(both).wait(60) == 0
        deadline = time.monotonic() + 0.5
        updates = [b.updates.copy() for b in node.run(idle=lambda: time.monotonic() > deadline, spins=1000)]
        assert np.concatenate(updates)["seq"].tolist() == list(range(20))
        lines_seen = node.stats()["feeds"]["plain"]["channels"][0]["lines"]
        assert [line["lost"] for line in lines_seen[:2]] == [1, 1]


def test_nothing_is_left_behind(lab_pair):
    venue, trader = lab_pair
    with trader.enter():
        before = Snapshot.take()
        with nodes.open("xsk:t0", engine=EngineConfig(name="gone")) as node:
            node.feed("plain", groups=[LINE])
            collect(node, venue, count=10)
        assert before.wait_restored() == {}


@pytest.mark.parametrize(
    ("port", "error", "words"),
    [
        ("xsk:nope0", SetupError, "no interface nope0"),
        ("sock:nope0", SetupError, "nope0"),
        ("xsk:t0:9", SetupError, "queue 9"),
        ("pcap:/nowhere/x.pcap", SetupError, "No such file"),
        ("tap:t0", ConfigError, "tap:t0"),
    ],
)
def test_a_bad_port_is_one_clear_sentence(lab_pair, port, error, words):
    _, trader = lab_pair
    with trader.enter(), pytest.raises(error, match=words), nodes.open(port) as node:
        bring_up(node)


def bring_up(node: nodes.Node) -> None:
    node.feed("plain", groups=[LINE])
    node.build()


def started(trader: Namespace, *words: str) -> subprocess.Popen[str]:
    """A command of ours in the trader's namespace, once it says that it listens."""
    command = [sys.executable, "-m", "xdpstack", *words]
    running = trader.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = running.stderr.readline()
    assert said.startswith(("listening", "running")), said + running.stderr.read()
    return running


def test_run_ends_by_sigint_and_prints_a_summary(lab_pair, tmp_path):
    venue, trader = lab_pair
    config = tmp_path / "c.toml"
    config.write_text(
        '[ports.main]\nport = "xsk:t0"\n[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n'
    )
    running = started(trader, "run", str(config), "--json")
    assert venue.fork(send).wait(20) == 0
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    assert json.loads(out)["messages"] == {"add": 4 * PACKETS}


def test_feed_listen_ends_by_itself_and_prints_json(lab_pair):
    venue, trader = lab_pair
    words = ("feed", "listen", "--port", "sock:t0", "--feed", "plain", "--groups", LINE)
    running = started(trader, *words, "--packets", "100", "--seconds", "20", "--json")
    assert venue.fork(send, count=200).wait(20) == 0
    out, err = running.communicate(timeout=40)
    assert running.returncode == 0, err
    assert json.loads(out)["packets"] >= 100


def test_listen_and_run_print_an_alert_a_second_at_most_where_turns_are_slow(lab_pair, tmp_path):
    venue, trader = lab_pair
    words = ("feed", "listen", "--port", "sock:t0", "--feed", "plain", "--groups", LINE, "--slow", "0.001")
    config = tmp_path / "slow.toml"
    config.write_text(
        '[engine]\nslow = 1e-9\n[ports.main]\nport = "sock:t0"\n'
        '[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n'
    )
    for command in ((*words, "--seconds", "3", "--json"), ("run", str(config), "--seconds", "3", "--json")):
        running = started(trader, *command)
        assert venue.fork(send, count=300).wait(20) == 0
        out, err = running.communicate(timeout=40)
        assert running.returncode == 0, err
        alerts = [line for line in err.splitlines() if line.startswith("xdpstack: slow turn ")]
        assert 1 <= len(alerts) <= 4, err
        assert re.search(r"slow turn [\d,]+: [\d,.]+ µs for [\d,]+ packets, [\d,]+ updates", alerts[0])
        result = json.loads(out)
        assert result["slow_turns"] >= len(alerts)
        assert (result["slow_limit_ns"], result["slow_worst_ns"] > 0) == (1, True)


def test_a_filter_that_load_left_is_used_and_left_as_it_was(lab_pair):
    venue, trader = lab_pair
    with trader.enter():
        with Filter.load("t0", rules=["arp -> pass", "udp -> drop"], pin=True):
            pass
        try:
            with nodes.open("xsk:t0") as node:
                node.feed("plain", groups=[LINE])
                assert len(np.concatenate(collect(node, venue, count=50))) == 200
                assert str(node.filters[0].rules[0]) == f"udp dst {LINE} -> main"
            with Filter.open_pinned("t0") as left:
                assert len(left.rules) == 2
                assert left.counters().reasons["redirected"].packets == 50
        finally:
            Filter.open_pinned("t0").unload()


@pytest.mark.parametrize(("slow", "wanted"), [(1e-9, True), (0.0, False)])
def test_a_turn_that_took_too_long_is_counted(lab_pair, slow, wanted):
    venue, trader = lab_pair
    with trader.enter(), nodes.open("sock:t0", engine=EngineConfig(slow=slow)) as node:
        node.feed("plain", groups=[LINE])
        collect(node, venue, count=20)
        assert (summary(node)["slow_turns"] > 0) is wanted


def test_a_source_specific_line_takes_only_its_sender_over_af_xdp(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), nodes.open("xsk:t0") as node:
        node.feed("plain", groups=[f"{LINE}@10.77.0.1"])
        assert len(np.concatenate(collect(node, venue, count=20))) == 80
        assert "src 10.77.0.1" in str(node.filters[0].rules[0])
    with trader.enter(), nodes.open("xsk:t0") as node:
        node.feed("plain", groups=[f"{LINE}@10.77.0.99"])
        assert not collect(node, venue, count=20)
        assert node.stats()["engine"]["packets"] == 0


def test_jumbo_packets_of_the_plain_framing_arrive_whole_by_kernel_sockets(make_pair):
    venue, trader = make_pair(mtu=9000)
    each = (8972 - 8) // 28

    def jumbo() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
            for seq in range(10):
                out.sendto(plain_packet(seq, *(plain_message("A", "B", 1, k, 5) for k in range(each))), GROUP)

    with trader.enter(), nodes.open("sock:t0") as node:
        node.feed("plain", groups=[LINE])
        node.build()
        assert venue.fork(jumbo).wait(60) == 0
        deadline = time.monotonic() + 0.5
        updates = [b.updates.copy() for b in node.run(idle=lambda: time.monotonic() > deadline, spins=1000)]
        assert sum(map(len, updates)) == 10 * each
