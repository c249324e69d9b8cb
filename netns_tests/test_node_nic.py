"""A node and its NIC: queues by list, settings made and put back, frames on queues without a socket named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from netns_tests.queue_frames import frame, send_all, senders
from xdpstack import node as nodes
from xdpstack.bpf import Filter
from xdpstack.engine import EngineConfig
from xdpstack.errors import ConfigError, SetupError
from xdpstack.nic import ethtool, pending
from xdpstack.nic.journal import Journal
from xdpstack.nic.surface import Host
from xdpstack.replay import summary
from xdpstack.stats import segments

GROUP, PORT = "239.1.1.1", 5000
LINE = f"{GROUP}:{PORT}"


def features(namespace):
    with namespace.enter():
        found = ethtool.features(Host(), "t0")
        return ethtool.channels(Host(), "t0")[0], {name: one.wanted for name, one in found.items()}


def two_from(venue):
    """Have the other end send by two queues: a veth takes a program only with as many to receive."""
    venue.run(["ethtool", "-L", "v0", "rx", "2", "tx", "2"])


def take(node, count, patience=5.0):
    """Updates until there are ``count``, or nothing came for long."""
    end = time.monotonic() + patience
    got = []
    for batch in node.run(idle=lambda: time.monotonic() > end, spins=1000):
        got.append(batch.updates.copy())
        if sum(map(len, got)) >= count:
            break
    return np.concatenate(got) if got else np.zeros(0)


def test_a_list_of_queues_is_opened_and_frames_of_the_others_are_named(make_pair):
    venue, trader = make_pair(queues=4)
    with trader.enter(), nodes.open("xsk:t0", queues=[1, 3], engine=EngineConfig(name="named")) as node:
        node.feed("plain", groups=[LINE])
        node.build()
        assert [port.queues for port in node.ports] == [range(1, 2), range(3, 4)]
        with senders(venue, 4) as out:
            for seq in range(40):
                send_all(out[seq % 4], [frame(GROUP, PORT, seq)])
            updates = take(node, 20)
        assert updates["seq"].tolist() == [seq for seq in range(40) if seq % 4 in (1, 3)]
        end = time.monotonic() + 60
        while sum(one.packets for one in node.missing()) < 20 and time.monotonic() < end:
            time.sleep(0.01)
        assert [(one.interface, one.group, one.queue, one.packets) for one in node.missing()] == [
            ("t0", "main", 0, 10),
            ("t0", "main", 2, 10),
        ]
        told = summary(node)["missing"]
        assert told[0]["text"].startswith(
            "t0: 10 frames for main came by queue 0, which has no socket, and went to the kernel; "
            'queues = "0,1,3" opens it; steer = true has the NIC send the flow to queue 1, 3'
        )
        (found,) = [one for one in segments() if one.name == "named"]
        assert found.open().values()["filter.main.no_socket.t0.2"] == 10


def test_what_a_port_asks_of_its_nic_holds_while_it_is_open(make_pair):
    venue, trader = make_pair(queues=4, offloads=True)
    two_from(venue)
    before = features(trader)
    with (
        trader.enter(),
        nodes.open("xsk:t0", queues="all", channels=2, bypass_offloads=True, promiscuous=True) as node,
    ):
        node.feed("plain", groups=[LINE])
        node.build()
        channels, wanted = features(trader)
        assert (channels["rx"], wanted["rx-gro"], wanted["tx-checksum-ip-generic"]) == (2, False, False)
        assert node.ports[0].queues == range(2)
        assert node.filters[0].mode == "native"
        assert trader.link("t0").get_attr("IFLA_PROMISCUITY") == 1
    assert features(trader) == before
    assert trader.link("t0").get_attr("IFLA_PROMISCUITY") == 0


def test_a_feed_that_a_veth_cannot_steer_is_said_and_nothing_stays(make_pair):
    _venue, trader = make_pair(queues=2, offloads=True)
    before = features(trader)
    with (
        trader.enter(),
        pytest.raises(SetupError, match="neither flow rules nor an RSS table"),
        nodes.open("xsk:t0:1", steer=True, bypass_offloads=True) as node,
    ):
        bring_up(node)
    assert features(trader) == before


def bring_up(node):
    node.feed("plain", groups=[LINE])
    node.build()


@pytest.mark.parametrize(
    ("interface", "words"), [("lo", "loopback has no queues"), ("nope0", "no interface nope0")]
)
def test_an_interface_without_queues_names_what_to_use(lab_pair, interface, words):
    _venue, trader = lab_pair
    with trader.enter(), pytest.raises(SetupError, match=words), nodes.open(f"xsk:{interface}") as node:
        bring_up(node)


def test_queues_are_said_once(lab_pair):
    with pytest.raises(ConfigError, match="queues: xsk:t0:1 names its queues already"):
        nodes.open("xsk:t0:1", queues=[2])


def run(trader, path, *words):
    command = [sys.executable, "-m", "xdpstack", "run", str(path), *words]
    running = trader.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = running.stderr.readline()
    if not said.startswith("running"):
        running.kill()
        raise AssertionError(said + running.stderr.read())
    return running


def test_run_killed_leaves_what_its_next_start_undoes(make_pair, tmp_path):
    venue, trader = make_pair(queues=4, offloads=True)
    two_from(venue)
    before = features(trader)
    path = tmp_path / "c.toml"
    path.write_text(
        '[ports.main]\nport = "xsk:t0"\nqueues = "all"\nchannels = 2\nbypass_offloads = true\n'
        '[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n'
    )
    running = run(trader, path)
    held = features(trader)
    running.kill()
    running.communicate()
    assert features(trader) == held != before
    with trader.enter():
        assert {entry.operation for entry in pending()} == {"channels", "feature"}
    running = run(trader, path, "--set", "channels=3", "--json")
    assert features(trader)[0]["rx"] == 3
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    assert "missing" not in json.loads(out)
    assert features(trader) == before
    with trader.enter():
        assert pending() == []


def test_the_settings_of_a_nic_are_made_again_on_a_device_that_is_made_anew(make_lab):
    """Deleted and made again under a node that runs: its channels, offloads and promiscuous mode are made and
    journalled anew, and the new device is as it was made when the node has ended."""
    lab = make_lab()
    venue, trader = lab.namespace("venue"), lab.namespace("trader")

    def join():
        lab.veth(venue, "v0", "10.77.0.1/24", trader, "t0", "10.77.0.2/24", queues=4, offloads=True)
        two_from(venue)

    join()
    made = features(trader)
    asked = {"queues": "all", "channels": 2, "bypass_offloads": True, "promiscuous": True}
    with trader.enter(), nodes.open("xsk:t0", **asked) as node:
        node.feed("plain", groups=[LINE])
        node.start()
        held, old = features(trader), trader.link("t0")["index"]
        assert held[0]["rx"] == 2
        journal = Journal(Host().cookie())
        noted = [(entry.operation, entry.before) for entry in journal.entries()]
        with trader.netlink() as route:
            route.link("del", index=old)
        join()
        wait_for_events(node, "recovered")
        assert features(trader) == held
        assert trader.link("t0").get_attr("IFLA_PROMISCUITY") == 1
        assert [(entry.operation, entry.before) for entry in journal.entries()] == noted
        assert {entry.index for entry in journal.entries()} == {trader.link("t0")["index"]} != {old}
        with senders(venue, 2) as out:
            for seq in range(40):
                send_all(out[seq % 2], [frame(GROUP, PORT, seq)])
        end = time.monotonic() + 60
        while node.stats()["engine"]["packets"] < 40 and time.monotonic() < end:
            time.sleep(0.01)
        assert node.stats()["engine"]["packets"] == 40
        assert pending() == []
    assert features(trader) == made
    assert trader.link("t0").get_attr("IFLA_PROMISCUITY") == 0
    assert journal.entries() == []


def test_a_device_that_came_from_another_namespace_has_its_settings_and_is_put_back(make_pair):
    venue, trader = make_pair(queues=4, offloads=True)
    two_from(venue)
    made = features(trader)
    with trader.enter(), nodes.open("xsk:t0", queues="all", channels=2, promiscuous=True) as node:
        node.feed("plain", groups=[LINE])
        node.start()
        held = features(trader)
        move(trader, venue)
        wait_for_events(node, "moved")
        move(venue, trader)
        with trader.netlink() as route:
            route.link("set", index=route.link_lookup(ifname="t0")[0], state="up")
        wait_for_events(node, "recovered")
        assert features(trader) == held
        assert trader.link("t0").get_attr("IFLA_PROMISCUITY") == 1
    assert features(trader) == made
    assert trader.link("t0").get_attr("IFLA_PROMISCUITY") == 0


def test_a_new_device_that_cannot_have_the_settings_ends_the_node_with_the_reason(make_lab):
    lab = make_lab()
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    lab.veth(venue, "v0", "10.77.0.1/24", trader, "t0", "10.77.0.2/24", queues=2)
    with trader.enter(), nodes.open("xsk:t0", queues="all", link_wait=1.0, channels=2) as node:
        node.feed("plain", groups=[LINE])
        node.start()
        with trader.netlink() as route:
            route.link("del", index=trader.link("t0")["index"])
        lab.veth(venue, "v0", "10.77.0.1/24", trader, "t0", "10.77.0.2/24", queues=1)
        with pytest.raises(SetupError, match="give t0 2 queues: it has 1 to 1"):
            wait_for_events(node, "never")


def move(here, there):
    with here.netlink() as route:
        route.link("set", index=route.link_lookup(ifname="t0")[0], net_ns_fd=there.fd)


def wait_for_events(node, kind, patience=15.0):
    end, seen = time.monotonic() + patience, []
    while kind not in seen:
        assert time.monotonic() < end, seen
        seen += [event.kind for event in node.link_events()]
        time.sleep(0.02)


def test_run_says_which_queue_has_no_socket_at_its_end(make_pair, tmp_path):
    venue, trader = make_pair(queues=2)
    path = tmp_path / "c.toml"
    path.write_text(
        '[ports.main]\nport = "xsk:t0:0"\n'
        '[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n'
    )
    running = run(trader, path)
    with senders(venue, 2) as out:
        send_all(out[1], [frame(GROUP, PORT, seq) for seq in range(7)])
        time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    out_text, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    assert "t0: 7 frames for main came by queue 1, which has no socket" in out_text


def test_feed_listen_takes_the_same_keys_and_refuses_wrong_ones(make_pair):
    _venue, trader = make_pair(queues=2)
    base = [sys.executable, "-m", "xdpstack", "feed", "listen", "--feed", "plain", "--groups", LINE, "--json"]
    ok = trader.run(
        [*base, "--port", "xsk:t0", "--queues", "1", "--seconds", "0.2", "--set", "promiscuous=true"]
    )
    assert json.loads(ok.stdout)["packets"] == 0
    for words, said in (
        (["--set", "nonsense=1"], "nonsense: unknown key (known: port, "),
        (["--set", "channels"], "--set channels: wanted KEY=VALUE"),
        (["--set", "channels=none"], "channels: wanted a whole number from 0 to 4096, not 'none'"),
        (["--queues", "3-1"], 'queues: wanted "all", a range like "0-3", or a list'),
        (["--queues", "5"], "open queue 5 of t0: it has 2 receive queues"),
    ):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            trader.run([*base, "--port", "xsk:t0", *words])
        assert said in failed.value.stderr
        assert failed.value.stderr.count("\n") == 1


def test_status_names_the_queue_and_the_mend(make_pair):
    venue, trader = make_pair(queues=2)
    with trader.enter(), Filter.load("t0", rules=[f"udp dst {LINE} -> feed"], pin=True):
        pass
    try:
        with senders(venue, 2) as out:
            send_all(out[1], [frame(GROUP, PORT, 0)])
            time.sleep(0.2)
        told = trader.run([sys.executable, "-m", "xdpstack", "status", "t0"]).stdout
        assert (
            "t0: 1 frames for feed came by queue 1, which has no socket, and went to the kernel; "
            "open it (xsk:t0 opens all)" in told
        )
    finally:
        with trader.enter():
            Filter.open_pinned("t0").unload()
