"""Interfaces that lose their carrier, go down, are renamed, resized, moved away, deleted and made anew, while
a feed runs over them: what is told, what is brought back, what ends the run."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

import pytest

from netns_tests.programs import started, written
from xdpstack import node as nodes
from xdpstack.bpf import Filter, attached
from xdpstack.engine import EngineConfig
from xdpstack.errors import SetupError
from xdpstack.lab import Lab, Namespace
from xdpstack.lab.snapshot import Snapshot
from xdpstack.links import LinkWatch, links
from xdpstack.tests.frames import plain_message, plain_packet

GROUP = ("239.1.1.1", 5000)
LINE = "239.1.1.1:5000"
TRANSPORTS = ("xsk:t0", "sock:t0")
WAYS = ("stepped", "free-running")


def stream(size: int = 1) -> None:
    """A packet a millisecond, numbered, for as long as the process lives, whatever the interface does."""
    out, seq = None, 0
    while True:
        seq += 1
        messages = [plain_message("A", "B", k, 100, 1) for k in range(size)]
        try:
            if out is None:
                out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
            out.sendto(plain_packet(seq, *messages), GROUP)
        except OSError:  # no interface, no carrier, too large: a socket of its own for the next one
            if out is not None:
                out.close()
            out = None
        time.sleep(0.001)


def change(namespace: Namespace, name: str, **how) -> None:
    with namespace.netlink() as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], **how)


def delete(namespace: Namespace, name: str) -> None:
    with namespace.netlink() as route:
        route.link("del", index=route.link_lookup(ifname=name)[0])


def join_again(lab: Lab, venue: Namespace, trader: Namespace) -> None:
    lab.veth(venue, "v0", "10.77.0.1/24", trader, "t0", "10.77.0.2/24")


class Run:
    """A node that runs in one of two ways; what it gave and what its interfaces did."""

    def __init__(self, node: nodes.Node, way: str) -> None:
        self.node, self.seqs, self.events = node, [], []
        node.feed("plain", groups=[LINE], window=0.01)
        self.runner = node.start() if way == "free-running" else node.build()

    def pump(self, done, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, (self.kinds, self.node.stats()["links"], self.seqs[-3:])
            if self.runner is not None:
                for published in self.runner.take():
                    self.seqs += published.updates["seq"].tolist()
                time.sleep(0.002)
            else:
                end = time.monotonic() + 0.03
                for batch in self.node.run(spins=100, idle=lambda: time.monotonic() > end):  # noqa: B023
                    self.seqs += batch.updates["seq"].tolist()
                    if time.monotonic() > end:
                        break
            self.events += self.node.link_events()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def until(self, *kinds: str) -> None:
        """Until these kinds of events came last, in this order."""
        self.pump(lambda: tuple(self.kinds[-len(kinds) :]) == kinds)

    def flows(self) -> None:
        """Packets that are sent now arrive."""
        self.pump(lambda: bool(self.seqs))
        mark = self.seqs[-1]
        self.pump(lambda: self.seqs[-1] > mark + 100)

    @property
    def text(self) -> str:
        return str(self.events[-1])


def left_behind(before: Snapshot, trader: Namespace) -> dict[str, list[str]]:
    """What this test left: links of the namespace, pins under its cookie, shared memory under our number."""

    def others(item: str) -> bool:
        ours = (f"/{trader.cookie}-", f"/xdpstack-{os.getpid()}-")
        return not (any(mark in item for mark in ours) or item[:1] in "tv")

    with trader.enter():
        assert attached("t0") is None
        return before.wait_restored(but=others)


@pytest.fixture(params=[(port, way) for port in TRANSPORTS for way in WAYS], ids="-".join)
def run(request, lab_pair):
    """(lab, venue, trader, a run under traffic) over both transports, in both ways."""
    venue, trader = lab_pair
    port, way = request.param
    with trader.enter():
        before = Snapshot.take()
        venue.fork(stream)
        with nodes.open(port, engine=EngineConfig(name="links"), link_wait=10.0) as node:
            running = Run(node, way)
            running.flows()
            yield venue.lab, venue, trader, running
    assert left_behind(before, trader) == {}


def test_carrier_that_is_lost_is_told_and_the_feed_goes_on_when_it_is_back(run):
    _, venue, _, running = run
    change(venue, "v0", state="down")
    running.until("no_carrier")
    assert running.text == "t0: carrier lost"
    assert running.node.stats()["links"]["t0"]["state"] == "no_carrier"
    change(venue, "v0", state="up")
    running.until("no_carrier", "up")
    running.flows()
    assert running.kinds == ["no_carrier", "up"]  # nothing had to be opened again


def test_an_interface_that_is_set_down_and_up_goes_on(run):
    _, _, trader, running = run
    change(trader, "t0", state="down")
    running.until("down")
    change(trader, "t0", state="up")
    running.until("up")
    running.flows()
    assert set(running.kinds) <= {"down", "no_carrier", "up"}


def test_a_renamed_interface_is_named_and_goes_on(run):
    _, _, trader, running = run
    change(trader, "t0", ifname="t9")
    running.until("renamed")
    assert running.text == "t0: renamed from t0 to t9"
    running.flows()
    assert running.node.stats()["links"]["t0"]["name"] == "t9"
    assert running.node.stats()["links"]["t0"]["state"] == "up"
    change(trader, "t9", ifname="t0")
    running.until("renamed", "renamed")


def test_an_interface_that_is_made_anew_is_opened_again(run):
    lab, venue, trader, running = run
    for _ in range(2):
        delete(trader, "t0")
        running.until("down", "deleted")
        join_again(lab, venue, trader)
        running.pump(lambda: running.kinds[-1] == "recovered")
        running.flows()
    links = running.node.stats()["links"]["t0"]
    assert links["state"] == "up"
    assert (links["events"]["deleted"], links["events"]["created"], links["events"]["recovered"]) == (2, 2, 2)
    assert "failed" not in links["events"]


def test_an_interface_that_was_in_another_namespace_is_opened_again(run):
    _, venue, trader, running = run
    change(trader, "t0", net_ns_fd=venue.fd)
    running.until("down", "moved")
    assert running.text == "t0: moved to another network namespace"
    with venue.enter():
        assert attached("t0") is None  # what was ours has not gone along
    change(venue, "t0", net_ns_fd=trader.fd)
    running.until("created")
    with trader.netlink() as route:
        route.addr("add", index=route.link_lookup(ifname="t0")[0], address="10.77.0.2", prefixlen=24)
    change(trader, "t0", state="up")
    running.pump(lambda: running.kinds[-1] == "recovered")
    running.flows()


@pytest.mark.parametrize(("mtu", "messages"), [(3000, 100), (9000, 300)])
def test_a_larger_mtu_gets_larger_frames_without_a_new_attach(lab_pair, mtu, messages):
    venue, trader = lab_pair
    with trader.enter(), nodes.open("xsk:t0") as node:
        running = Run(node, "free-running")
        first = attached("t0").link_id
        change(venue, "v0", mtu=mtu)
        change(trader, "t0", mtu=mtu)
        running.until("mtu", "recovered")
        assert f"MTU changed from 1500 to {mtu}, above the 1770 that a frame" in str(running.events[-2])
        venue.fork(stream, size=messages)
        running.flows()
        assert attached("t0").link_id == first
        assert node.stats()["links"]["t0"]["mtu_max"] >= mtu


def test_an_mtu_above_every_frame_is_named_and_shorter_packets_still_come(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), nodes.open("xsk:t0", jumbo=False) as node:
        running = Run(node, "free-running")
        change(venue, "v0", mtu=9000)
        change(trader, "t0", mtu=9000)
        running.until("mtu")
        assert running.text == (
            "t0: MTU changed from 1500 to 9000, above the 1770 that a frame of the port holds: "
            "longer packets are dropped"
        )
        venue.fork(stream)
        running.flows()


def test_a_pinned_filter_is_attached_and_pinned_again_with_its_rules_and_counters(lab_pair):
    venue, trader = lab_pair
    with trader.enter():
        before = Snapshot.take()
        with Filter.load("t0", rules=["udp dst *:7777 -> drop"], pin=True):
            pass
        venue.fork(stream)
        with nodes.open("xsk:t0") as node:
            running = Run(node, "free-running")
            running.flows()
            delete(trader, "t0")
            running.until("down", "deleted")
            counted = node.filters[0].counters().reasons["redirected"].packets
            join_again(venue.lab, venue, trader)
            running.pump(lambda: running.kinds[-1] == "recovered")
            running.flows()
            with Filter.open_pinned("t0") as left:
                assert [str(rule) for rule in left.rules] == [
                    f"udp dst {LINE} -> main",
                    "udp dst *:7777 -> drop",
                ]
                assert left.counters().reasons["redirected"].packets > counted > 0
        Filter.open_pinned("t0").unload()
    assert left_behind(before, trader) == {}


def test_somebody_elses_program_on_the_new_interface_ends_the_run_and_is_named(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), nodes.open("xsk:t0", link_wait=10.0) as node:
        running = Run(node, "free-running")
        delete(trader, "t0")
        running.until("down", "deleted")
        join_again(venue.lab, venue, trader)
        with Filter.load("t0"), pytest.raises(SetupError, match=r"program \d+ \(xds_rx, native mode, "):
            running.until("never")
        assert not node.running or node.stop() == 0


@pytest.mark.parametrize("port", TRANSPORTS)
@pytest.mark.parametrize(
    ("away", "words"),
    [
        ("deleted", "t0 was deleted and did not come back within 0.3 s"),
        ("moved", "t0 was moved to another network namespace and did not come back within 0.3 s"),
    ],
)
def test_an_interface_that_stays_away_ends_run_with_one_sentence(lab_pair, tmp_path, port, away, words):
    venue, trader = lab_pair
    running = started(trader, written(tmp_path, port, options="link_wait = 0.3"))
    if away == "deleted":
        delete(trader, "t0")
    else:
        change(trader, "t0", net_ns_fd=venue.fd)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 1
    assert said.splitlines()[-1].startswith(f"xdpstack: {words}; bring it back")
    if away == "moved":
        with venue.enter():
            assert attached("t0") is None


def status(trader: Namespace, *words: str) -> str:
    return trader.run([sys.executable, "-m", "xdpstack", "status", *words]).stdout


def test_status_and_stats_show_what_an_engine_sees(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), nodes.open("xsk:t0", engine=EngineConfig(name="seen")) as node:
        running = Run(node, "free-running")
        assert "engine seen (pid" in status(trader, "t0")
        change(venue, "v0", state="down")
        running.until("no_carrier")
        (shown,) = json.loads(status(trader, "t0", "--json"))["interfaces"]
        assert (shown["state"], shown["mtu"]) == ("no_carrier", 1500)
        assert shown["engines"][0] | {"pid": 0} == {
            "engine": "seen",
            "pid": 0,
            "interface": "t0",
            "state": "no_carrier",
            "mtu": 1500,
            "mtu_max": 1770,
            "events": {"no_carrier": 1},
        }
        change(trader, "t0", ifname="t9")
        running.until("renamed")
        text = status(trader, "t9")
        assert "no carrier, MTU 1500" in text
        assert "called t0 at its start; so far: no_carrier 1, renamed 1" in text
        stats = trader.run([sys.executable, "-m", "xdpstack", "stats", "seen"]).stdout
        assert "link.t0.no_carrier" in stats
        assert "link.t0.up" not in stats
        delete(trader, "t9")
        running.until("deleted")
        assert "t0: no XDP program\n  deleted\n  engine seen" in status(trader)


def test_status_shows_the_link_of_an_interface_that_nobody_watches(lab_pair):
    _, trader = lab_pair
    assert status(trader, "t0") == "t0: no XDP program\n  up, MTU 1500\n"
    change(trader, "t0", state="down")
    assert status(trader, "t0") == "t0: no XDP program\n  down, MTU 1500\n"


def test_a_watch_that_was_not_read_for_long_asks_again_and_misses_no_end(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), LinkWatch(["t0", "later0"], buffer=4096) as watch:
        for mtu in range(1400, 1480):
            change(trader, "t0", mtu=mtu)
        change(venue, "v0", state="down")
        events = watch.read()
        assert watch.overruns >= 1
        assert watch.state("t0") == "no_carrier"
        assert watch.link("t0").mtu == 1479
        assert {event.kind for event in events} == {"mtu", "no_carrier"}
        assert watch.state("later0") == "deleted"
        assert watch.read() == []
        for mtu in range(1400, 1480):
            change(trader, "t0", mtu=mtu)
        delete(trader, "t0")
        watch.read()
        assert watch.state("t0") == "deleted"


def test_links_lists_what_ip_link_lists(lab_pair):
    _, trader = lab_pair
    shown = {one["ifname"]: one for one in json.loads(trader.run(["ip", "-j", "link"]).stdout)}
    with trader.enter():
        found = links()
    assert {name: (one["ifindex"], one["mtu"]) for name, one in shown.items()} == {
        name: (link.index, link.mtu) for name, link in found.items()
    }
    assert found["t0"].state == "up"


def test_looking_costs_nothing_on_the_packet_path_and_little_beside_it(lab_pair):
    """Between two batches of a busy loop: one comparison; a look itself is one empty read."""
    _, trader = lab_pair
    with trader.enter(), nodes.open("xsk:t0") as node:
        node.feed("plain", groups=[LINE])
        node.build()
        node._look()
        rounds = 2000
        begin = time.perf_counter()
        for _ in range(rounds):
            node._look()
        each = (time.perf_counter() - begin) / rounds
        assert each < 100e-6, f"{each * 1e6:.1f} us a look, 50 a second"


def test_a_run_is_still_ended_by_sigint_while_its_interface_is_away(lab_pair, tmp_path):
    _, trader = lab_pair
    running = started(trader, written(tmp_path), "--json")
    delete(trader, "t0")
    assert running.stderr.readline() == "xdpstack: t0: set down\n"
    assert running.stderr.readline() == "xdpstack: t0: deleted\n"
    running.send_signal(signal.SIGINT)
    out, said = running.communicate(timeout=20)
    assert running.returncode == 0, said
    assert json.loads(out)["links"]["t0"]["state"] == "deleted"
