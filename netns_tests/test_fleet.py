"""One engine a queue over a veth of several: nothing lost, nothing twice, on threads and in processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from netns_tests.queue_frames import frame, send_all, senders
from xdpstack import fleet
from xdpstack.config import PortConfig, Program
from xdpstack.engine import EngineConfig
from xdpstack.errors import ConfigError, SetupError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.nic import NicConfig, pending
from xdpstack.port import Subscription
from xdpstack.stats import segments
from xdpstack.tests.frames import plain_message, plain_packet

CHANNELS = 8
EACH = 250
GROUPS = [f"239.1.1.{number + 1}" for number in range(CHANNELS)]


def program(workers="threads", queues=None, name="", channels=CHANNELS, **more):
    lines = [(Subscription(address=group, port=5000),) for group in GROUPS[:channels]]
    feed = FeedConfig(schema="plain", channels=tuple(ChannelConfig(lines=line) for line in lines))
    return Program(
        ports=(PortConfig(port="xsk:t0", queues=queues),),
        feeds=(feed,),
        engine=EngineConfig(name=name),
        engines="queue",
        workers=workers,
        **more,
    )


def send_by_sockets():
    """Each channel from a socket of its own: the kernel spreads flows over its transmit queues by hash."""
    sockets = []
    for _ in range(CHANNELS):
        out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
        sockets.append(out)
    for seq in range(EACH):
        for number, out in enumerate(sockets):
            out.sendto(
                plain_packet(seq, plain_message("A", "B", number + 1, 100, 1 + seq)), (GROUPS[number], 5000)
            )
        if seq % 20 == 0:
            time.sleep(0.001)


def everything(engines, seconds=10.0):
    """(queue, instrument, seq) of every update, stepped, until all came or time is up."""
    got = []
    end = time.monotonic() + seconds
    for node, batch in engines.run(idle=lambda: time.monotonic() > end, spins=500):
        queue = node.ports[0].queues[0]
        got += [(queue, int(u["instrument"]), int(u["seq"])) for u in batch.updates]
        if len(got) >= CHANNELS * EACH:
            break
    return got


def wait_for_all(name, patience=20.0):
    """Until the engines of that name have counted everything that was sent: spinning threads that share
    busy cores take their time."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = [one.open().values() for one in segments() if one.name.startswith(f"{name}.q")]
        if sum(values["engine.packets"] for values in found) >= CHANNELS * EACH:
            return
        time.sleep(0.02)


@pytest.mark.parametrize("queues", [2, 4])
def test_what_the_kernel_spreads_comes_once_and_in_order(make_pair, queues):
    venue, trader = make_pair(queues=queues)
    with trader.enter(), fleet.open(program()) as engines:
        engines.build()
        assert engines.queues == list(range(queues))
        sender = venue.fork(send_by_sockets)
        got = everything(engines)
        assert sender.wait(20) == 0
        assert engines.missing() == []
    by_flow = {}
    for queue, instrument, seq in got:
        by_flow.setdefault(instrument, []).append((queue, seq))
    assert len(by_flow) == CHANNELS
    for flow in by_flow.values():
        assert [seq for _, seq in flow] == list(range(EACH))  # none lost, none twice, in order
        assert len({queue for queue, _ in flow}) == 1  # a flow keeps to its queue
    assert len({flow[0][0] for flow in by_flow.values()}) > 1, "the kernel put every flow on one queue"


def test_each_engine_takes_what_comes_by_its_queue(make_pair):
    venue, trader = make_pair(queues=4)
    with trader.enter(), fleet.open(program(queues=(1, 2), name="fl")) as engines:
        engines.build()
        with senders(venue, 4) as out:
            for seq in range(EACH):
                for number in range(CHANNELS):
                    send_all(out[1 + number % 2], [frame(GROUPS[number], 5000, seq, number + 1)])
            send_all(out[3], [frame(GROUPS[0], 5000, EACH)] * 5)
            got = everything(engines)
        assert sorted(got) == sorted(
            (1 + number % 2, number + 1, seq) for number in range(CHANNELS) for seq in range(EACH)
        )
        end = time.monotonic() + 60
        while not engines.missing() and time.monotonic() < end:
            time.sleep(0.01)
        assert [(one.queue, one.packets) for one in engines.missing()] == [(3, 5)]
        told = engines.summary()
        assert told["packets"] == CHANNELS * EACH
        assert [(e["engine"], e["queue"], e["packets"]) for e in told["engines"]] == [
            ("fl.q1", 1, CHANNELS * EACH // 2),
            ("fl.q2", 2, CHANNELS * EACH // 2),
        ]
        found = {one.name: one.open().values() for one in segments() if one.name.startswith("fl")}
        assert set(found) == {"fl", "fl.q1", "fl.q2"}  # stats name each
        assert found["fl"]["filter.main.no_socket.t0.3"] == 5


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_free_running_engines_lose_and_double_nothing(make_pair, workers):
    venue, trader = make_pair(queues=4)
    with trader.enter():
        with fleet.open(program(workers, name="free", cpus=(0, 1))) as engines:
            engines.start()
            assert engines.running
            pids = {one.pid for one in segments() if one.name.startswith("free.q")}
            assert len(pids) == (4 if workers == "processes" else 1)
            assert venue.fork(send_by_sockets).wait(20) == 0
            wait_for_all("free")
            assert engines.stop() == []
            told = engines.summary()
        assert told["packets"] == CHANNELS * EACH
        assert sum(part["messages_total"] for part in told["engines"]) == CHANNELS * EACH
        assert sum(part["gaps"]["found"] for part in told["engines"]) == 0
        duplicates = [line["duplicate"] for part in told["engines"] for line in part["lines"]]
        assert sum(duplicates) == 0
        assert [part["cpu"] for part in told["engines"]] == [0, 1, 0, 1]
        assert [one.name for one in segments() if one.name.startswith("free")] == []
        assert not attached(trader)
        assert [worker.running for worker in engines.workers] == [False] * len(engines.workers)
        assert pending() == []


def attached(trader):
    """A program is on the interface."""
    xdp = trader.link("t0").get_attr("IFLA_XDP")
    return bool(xdp is not None and xdp.get_attr("IFLA_XDP_ATTACHED"))


def write(tmp_path, workers):
    path = tmp_path / "c.toml"
    channels = "".join(f'[[feeds.plain.channels]]\nlines = ["{group}:5000"]\n' for group in GROUPS)
    path.write_text(
        f'[engine]\nname = "run"\nengines = "queue"\nworkers = "{workers}"\ncpus = [0, 1]\n'
        f'[ports.main]\nport = "xsk:t0"\nqueues = "all"\npromiscuous = true\n[feeds.plain]\n{channels}'
    )
    return path


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_run_of_one_file_says_what_each_engine_did(make_pair, tmp_path, workers):
    venue, trader = make_pair(queues=2)
    command = [sys.executable, "-m", "xdpstack", "run", str(write(tmp_path, workers)), "--json"]
    running = trader.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = running.stderr.readline()
    assert said.startswith("running: <Fleet xsk:t0: queues 0, 1"), said
    assert venue.fork(send_by_sockets).wait(20) == 0
    wait_for_all("run")
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    told = json.loads(out)
    assert told["packets"] == CHANNELS * EACH
    assert [part["queue"] for part in told["engines"]] == [0, 1]


def test_workers_end_with_their_parent_and_leave_nothing(make_pair, tmp_path):
    _venue, trader = make_pair(queues=2)
    running = trader.popen(
        [sys.executable, "-m", "xdpstack", "run", str(write(tmp_path, "processes"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr.readline().startswith("running")
    listed = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
    children = [int(pid) for pid in listed.split()]
    assert len(children) == 2
    running.kill()
    running.communicate()
    end = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in children) and time.monotonic() < end:
        time.sleep(0.02)
    assert [pid for pid in children if os.path.exists(f"/proc/{pid}")] == []
    assert not attached(trader)


def test_a_worker_that_dies_is_named(make_pair):
    _venue, trader = make_pair(queues=2)
    with trader.enter(), fleet.open(program("processes")) as engines:
        engines.start()
        victim = engines.workers[1]
        os.kill(victim.pid, signal.SIGKILL)
        end = time.monotonic() + 60
        while engines.running and time.monotonic() < end:
            time.sleep(0.01)
        assert not engines.running
        (sentence,) = engines.stop()
        assert sentence == f"the engine of queue 1 (process {victim.pid}) ended: killed by signal 9"


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_queue_that_is_taken_is_said_and_the_others_end(make_pair, workers):
    from xdpstack.port import XskPort

    _venue, trader = make_pair(queues=2)
    with trader.enter(), XskPort("t0", 1):
        wanted = program(workers)
        quick = PortConfig(port="xsk:t0", options={"bind_wait_ms": 50})
        with (
            pytest.raises(SetupError, match="another socket holds the queue"),
            fleet.open(
                Program(ports=(quick,), feeds=wanted.feeds, engines="queue", workers=workers)
            ) as engines,
        ):
            engines.start()
        assert engines.nodes == [] or not engines.running


def test_a_channel_of_two_lines_needs_a_nic_that_keeps_them_together(make_pair):
    _venue, trader = make_pair(queues=2)
    lines = tuple(Subscription(address=group, port=5000) for group in GROUPS[:2])
    feed = FeedConfig(schema="plain", channels=(ChannelConfig(lines=lines),))
    with trader.enter():
        for nic, words in (
            (NicConfig(), "channel 0 of plain has 2 lines, whose packets may come by different queues"),
            (NicConfig(steer=True), "steer = true on a NIC with flow rules keeps them together"),
        ):
            two = Program(ports=(PortConfig(port="xsk:t0", nic=nic),), feeds=(feed,), engines="queue")
            with pytest.raises(ConfigError, match=words), fleet.open(two) as engines:
                engines.build()
        one = Program(ports=(PortConfig(port="xsk:t0:1"),), feeds=(feed,), engines="queue")
        with fleet.open(one) as engines:  # with one queue there is nothing to be kept together
            engines.build()
            assert engines.queues == [1]


def test_each_engine_records_for_itself(make_pair, tmp_path):
    from xdpstack.replay import replay

    venue, trader = make_pair(queues=2)
    path = tmp_path / "day.pcapng.zst"
    with trader.enter(), fleet.open(program(name="rec", record=str(path))) as engines:
        engines.start()
        assert venue.fork(send_by_sockets).wait(20) == 0
        wait_for_all("rec")
        assert engines.stop() == []
        told = engines.summary()["engines"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["day.q0.pcapng.zst", "day.q1.pcapng.zst"]
    for part in told:
        again = replay(tmp_path / f"day.q{part['queue']}.pcapng.zst")
        assert (again["packets"], again["messages"]) == (part["packets"], part["messages"])
    assert np.sum([part["packets"] for part in told]) == CHANNELS * EACH
