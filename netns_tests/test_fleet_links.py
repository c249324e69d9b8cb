"""Interfaces under one engine a queue: what is told, what is opened again by every engine, with the NIC's
settings, on threads and in processes; and fleets of several ports."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from netns_tests.programs import started, written
from netns_tests.queue_frames import frame, send_all, senders
from netns_tests.test_links import change, delete, status
from netns_tests.test_node_nic import features, move
from xdpstack import fleet
from xdpstack.bpf import Filter, attached
from xdpstack.config import PortConfig, Program
from xdpstack.engine import EngineConfig
from xdpstack.errors import ConfigError, SetupError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.nic import NicConfig, pending
from xdpstack.port import Subscription
from xdpstack.stats import segments

GROUPS = ["239.1.1.1", "239.1.1.2"]
WAYS = ("threads", "processes")


def program(workers, *ports, **options):
    lines = [(Subscription(address=group, port=5000),) for group in GROUPS]
    feed = FeedConfig(schema="plain", channels=tuple(ChannelConfig(lines=line) for line in lines))
    options = {"link_wait": 10.0, **options}
    return Program(
        ports=ports or (PortConfig(port="xsk:t0", options=options),),
        feeds=(feed,),
        engine=EngineConfig(name="fl"),
        engines="queue",
        workers=workers,
    )


def join(lab, venue, trader, number=0, **more):
    pair = (f"v{number}", f"10.77.{number}.1/24", trader, f"t{number}", f"10.77.{number}.2/24")
    lab.veth(venue, *pair, **{"queues": 2, "offloads": True, **more})


class Run:
    """A fleet that runs free, and what was seen of it."""

    def __init__(self, engines, venue, patience=20.0):
        self.engines, self.venue, self.kinds, self.texts = engines, venue, [], []
        self.patience = patience
        self.seq = 0
        engines.start(nap_us=100)  # nothing here is about speed, and cores are few

    def look(self):
        for event in self.engines.link_events():
            self.kinds.append(event.kind)
            self.texts.append(str(event))

    def until(self, *kinds):
        end = time.monotonic() + self.patience
        while tuple(self.kinds[-len(kinds) :]) != kinds:
            assert time.monotonic() < end, self.texts
            self.look()
            time.sleep(0.01)

    @staticmethod
    def counted():
        """Packets of each engine, from its mapped counters."""
        found = {one.name: one.open().values() for one in segments() if one.name.startswith("fl.q")}
        return {name: int(values["engine.packets"]) for name, values in sorted(found.items())}

    def flows(self, interface="v0", each=20):
        """What is sent now comes to each engine by its queue, all of it."""
        before = self.counted()
        with senders(self.venue, 2, interface) as out:
            for number in (0, 1):
                for _ in range(each):
                    self.seq += 1
                    send_all(out[number], [frame(GROUPS[number], 5000, self.seq)])
        end = time.monotonic() + self.patience
        wanted = {name: count + each for name, count in before.items()}
        while (now := self.counted()) != wanted:
            assert time.monotonic() < end, (before, now, self.texts)
            time.sleep(0.01)
        assert len(wanted) == 2


@pytest.fixture(params=WAYS)
def running(request, make_lab):
    """(lab, venue, trader, a fleet that runs): two queues, settings on the NIC; nothing is left."""
    lab = make_lab()
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    join(lab, venue, trader)
    with trader.enter():
        nic = NicConfig(bypass_offloads=True, promiscuous=True)
        port = PortConfig(port="xsk:t0", nic=nic, options={"link_wait": 10.0})
        with fleet.open(program(request.param, port)) as engines:
            run = Run(engines, venue)
            run.flows()
            yield lab, venue, trader, run
            assert engines.stop() == []
            assert engines.summary()["links"]["t0"]["state"] == "up"
        assert attached("t0") is None
        assert pending() == []
        assert [one.name for one in segments() if one.name.startswith("fl")] == []


def promiscuity(trader):
    return trader.link("t0").get_attr("IFLA_PROMISCUITY")


def test_carrier_and_down_and_up_are_told_and_the_engines_go_on(running):
    _, venue, trader, run = running
    change(venue, "v0", state="down")
    run.until("no_carrier")
    assert run.engines.links()["t0"]["state"] == "no_carrier"
    (shown,) = json.loads(status(trader, "t0", "--json"))["interfaces"]
    (seen,) = shown["engines"]
    assert (seen["engine"], seen["state"], seen["events"]) == ("fl", "no_carrier", {"no_carrier": 1})
    assert seen["mtu_max"] == 1770
    change(venue, "v0", state="up")
    run.until("no_carrier", "up")
    change(trader, "t0", state="down")
    run.until("down")
    change(trader, "t0", state="up")
    run.until("up")
    run.flows()
    assert "recovered" not in run.kinds  # nothing had to be opened again


def test_a_renamed_interface_is_named_and_opened_by_its_new_name(running):
    lab, venue, trader, run = running
    change(trader, "t0", ifname="t9")
    run.until("renamed")
    assert run.texts[-1] == "t0: renamed from t0 to t9"
    run.flows()
    assert run.engines.links()["t0"]["name"] == "t9"
    change(trader, "t9", mtu=3000)
    run.until("mtu", "recovered")
    change(venue, "v0", mtu=3000)
    run.flows()
    assert lab
    change(trader, "t9", ifname="t0")
    run.until("renamed")


def test_a_larger_mtu_gets_larger_frames_in_every_engine(running):
    _, venue, trader, run = running
    first = attached("t0").link_id
    change(venue, "v0", mtu=3000)
    change(trader, "t0", mtu=3000)
    run.until("mtu", "recovered")
    assert run.texts[-1] == "t0: 2 engines opened their queues again, its filter had stayed"
    assert run.engines.links()["t0"]["mtu_max"] >= 3000
    assert attached("t0").link_id == first
    run.flows()


def test_an_interface_that_is_made_anew_is_opened_again_by_every_engine_with_its_settings(running):
    lab, venue, trader, run = running
    held = features(trader)
    for _ in range(2):
        delete(trader, "t0")
        run.until("down", "deleted")
        join(lab, venue, trader)
        run.until("recovered")
        assert run.texts[-1] == "t0: 2 engines opened their queues again, filter attached again (native)"
        assert features(trader) == held
        assert promiscuity(trader) == 1
        run.flows()
    assert run.engines.links()["t0"]["events"]["recovered"] == 2


def test_an_interface_that_was_in_another_namespace_is_opened_again(running):
    _, venue, trader, run = running
    move(trader, venue)
    run.until("down", "moved")
    with venue.enter():
        assert attached("t0") is None
    move(venue, trader)
    change(trader, "t0", state="up")
    run.until("recovered")
    run.flows()


@pytest.mark.parametrize("workers", WAYS)
def test_run_ends_with_one_sentence_where_the_interface_stays_away(make_pair, tmp_path, workers):
    _, trader = make_pair(queues=2)
    engine = f'engines = "queue"\nworkers = "{workers}"'
    process = started(trader, written(tmp_path, engine=engine, options="link_wait = 0.3"))
    delete(trader, "t0")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("xdpstack: t0 was deleted and did not come back within 0.3 s; bring it back")


@pytest.mark.parametrize("workers", WAYS)
def test_somebody_elses_program_on_the_new_interface_ends_the_fleet_and_is_named(make_lab, workers):
    lab = make_lab()
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    join(lab, venue, trader)
    with trader.enter(), fleet.open(program(workers)) as engines:
        run = Run(engines, venue)
        delete(trader, "t0")
        run.until("down", "deleted")
        join(lab, venue, trader)
        with Filter.load("t0"), pytest.raises(SetupError, match=r"program \d+ \(xds_rx, native mode, "):
            run.until("never")


def test_a_pinned_filter_is_taken_along_by_every_engine(make_lab):
    lab = make_lab()
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    join(lab, venue, trader)
    with trader.enter():
        Filter.load("t0", rules=["udp dst *:7777 -> drop"], pin=True).close()
        with fleet.open(program("processes")) as engines:
            run = Run(engines, venue)
            delete(trader, "t0")
            run.until("down", "deleted")
            join(lab, venue, trader)
            run.until("recovered")
            run.flows()
        with Filter.open_pinned("t0") as left:
            assert [str(rule) for rule in left.rules] == ["udp dst *:7777 -> drop"]
        Filter.open_pinned("t0").unload()


def test_stepped_engines_are_opened_again_between_two_rounds(make_lab):
    lab = make_lab()
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    join(lab, venue, trader)
    with trader.enter(), fleet.open(program("threads")) as engines:
        engines.build()
        delete(trader, "t0")
        end = time.monotonic() + 20
        kinds = []

        def idle():
            kinds.extend(event.kind for event in engines.link_events())
            return "recovered" in kinds or time.monotonic() > end

        join(lab, venue, trader)
        assert list(engines.run(idle=idle, spins=10)) == []
        assert kinds[-1] == "recovered", kinds
        with senders(venue, 2) as out:
            send_all(out[1], [frame(GROUPS[1], 5000, seq) for seq in range(5)])
            seqs = []
            for _, batch in engines.run(idle=lambda: time.monotonic() > end, spins=100):
                seqs += batch.updates["seq"].tolist()
                if len(seqs) >= 5:
                    break
        assert seqs == list(range(5))


# ---- several ports


def two_ports(make_lab, queues=(2, 2)):
    lab = make_lab()
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    for number, count in enumerate(queues):
        join(lab, venue, trader, number, queues=count)
    ports = [
        PortConfig(port=f"xsk:t{number}", name=f"p{number}", options={"link_wait": 10.0})
        for number in range(len(queues))
    ]
    return lab, venue, trader, ports


@pytest.mark.parametrize("workers", WAYS)
def test_each_engine_takes_the_same_queue_of_every_port_and_each_port_comes_back_alone(make_lab, workers):
    lab, venue, trader, ports = two_ports(make_lab)
    with trader.enter(), fleet.open(program(workers, *ports)) as engines:
        run = Run(engines, venue)
        run.flows("v0")
        run.flows("v1")
        delete(trader, "t1")
        run.until("down", "deleted")
        run.flows("v0")
        join(lab, venue, trader, 1)
        run.until("recovered")
        run.flows("v1")
        run.flows("v0")
        assert {name: one["state"] for name, one in engines.links().items()} == {"t0": "up", "t1": "up"}
        assert repr(engines) == f"<Fleet xsk:t0, xsk:t1: queues 0, 1, {workers}: plain>"
        with senders(venue, 2, "v1") as out:
            send_all(out[0], [frame("239.1.1.9", 5000, 1)])
        assert engines.stop() == []
        told = engines.summary()
        assert [part["packets"] for part in told["engines"]] == [100, 100]
    with trader.enter():
        assert attached("t0") is attached("t1") is None


def test_ports_of_different_numbers_of_queues_are_refused(make_lab):
    _, _, trader, ports = two_ports(make_lab, (2, 1))
    words = "port p0 has 2 queues, p1 has 1: an engine takes one of each; choose as many by queues or"
    uneven = program("threads", *ports)
    with trader.enter(), pytest.raises(ConfigError, match=words), fleet.open(uneven) as two:
        two.build()
    with trader.enter():
        assert attached("t0") is attached("t1") is None


# ---- slow turns


@pytest.mark.parametrize("workers", WAYS)
def test_run_prints_a_line_of_slow_turns_with_the_engine_that_had_it(make_pair, tmp_path, workers):
    venue, trader = make_pair(queues=2)
    engine = f'name = "slow"\nslow = 1e-9\nengines = "queue"\nworkers = "{workers}"'
    process = started(trader, written(tmp_path, engine=engine), "--json")
    with senders(venue, 2) as out:
        for seq in range(200):
            send_all(out[seq % 2], [frame(GROUPS[0], 5000, seq)])
            time.sleep(0.005)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    said = r"^xdpstack: slow\.q([01]): slow turn [\d,]+: [\d,.]+ µs for [\d,]+ packets, [\d,]+ updates"
    names = re.findall(said, err, flags=re.M)
    assert set(names) == {"0", "1"}, err
    assert json.loads(out)["slow_turns"] >= len(names) >= 2
