"""Binding on a real kernel, for all that a veth has: channels, offloads, NAPI deferral, filters; and what is
left after kill -9, and taken back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest

from xdpstack.errors import SetupError
from xdpstack.nic import Binding, Flow, NicConfig, ethtool, operations, pending, restore
from xdpstack.nic.change import Changes
from xdpstack.nic.journal import Journal
from xdpstack.nic.surface import Host

EVERYTHING = NicConfig(
    channels=2,
    bypass_offloads=True,
    defer_hard_irqs=3,
    gro_flush_timeout=20_000,
    promiscuous=True,
    multicast_macs=("01:00:5e:36:0c:6f",),
)


@pytest.fixture
def pair(make_pair, tmp_path):
    """A veth of four queues with its offloads as the kernel has them, and the folder of its journal."""
    _venue, trader = make_pair(queues=4, offloads=True)
    trader.set_offloads("t0", True)  # GRO makes NAPI instances, as a program does
    return trader, tmp_path


def state(namespace):
    """All that a binding may change, as the kernel tells it."""
    with namespace.enter():
        surface = Host()
        link = surface.link("t0")
        features = ethtool.features(surface, "t0")
        told = namespace.link("t0")
        return {
            "channels": ethtool.channels(surface, "t0")[0],
            "wanted": {name: feature.wanted for name, feature in features.items()},
            "active": {name: feature.active for name, feature in features.items()},
            "napis": [(n.defer_hard_irqs, n.gro_flush_timeout_ns) for n in surface.napis(link.index)],
            "promiscuity": told.get_attr("IFLA_PROMISCUITY"),
            "device": operations.DeviceNapi().read(surface, link),
            "macs": macs(namespace),
        }


def macs(namespace):
    told = namespace.run(["ip", "maddress", "show", "dev", "t0"]).stdout
    return {line.split()[1] for line in told.splitlines() if line.split()[0] == "link"}


def binding(folder, config=EVERYTHING):
    surface = Host()
    return Binding("t0", config, surface=surface, journal=Journal(surface.cookie(), folder))


def test_all_that_a_veth_has_is_changed_and_put_back(pair):
    trader, folder = pair
    before = state(trader)
    assert before["wanted"]["rx-gro"]
    with trader.enter(), binding(folder, EVERYTHING) as bound:
        assert bound.prepare() == [0, 1]
        changed = state(trader)
        assert (changed["channels"]["rx"], changed["channels"]["tx"]) == (2, 2)
        off = ["rx-gro", "tx-checksum-ip-generic", "tx-scatter-gather", "tx-tcp-segmentation"]
        assert [name for name in off if changed["active"][name]] == []
        assert changed["promiscuity"] == before["promiscuity"] + 1
        assert "01:00:5e:36:0c:6f" in changed["macs"] - before["macs"]
    assert state(trader) == before
    assert list(folder.iterdir()) == []


def test_deferral_is_set_on_the_queues_that_poll(pair):
    trader, folder = pair
    before = state(trader)
    if before["napis"][0][0] is None:
        pytest.skip("this kernel has no deferral by NAPI: Linux 6.13 has")
    config = NicConfig(defer_hard_irqs=3, gro_flush_timeout=20_000)
    with trader.enter(), binding(folder, config) as bound:
        bound.settle(bound.prepare())
        assert state(trader)["napis"] == [(3, 20_000)] * 4
    assert state(trader) == before


def test_the_device_s_own_deferral_is_read_in_a_namespace_that_sys_does_not_show(pair):
    trader, _folder = pair
    assert state(trader)["device"] == [0, 0]
    with trader.enter():
        surface = Host()
        surface.write("/sys/class/net/t0/napi_defer_hard_irqs", "5")
        assert surface.read("/sys/class/net/t0/napi_defer_hard_irqs") == "5"
        assert "statistics" in surface.names("/sys/class/net/t0")
    if not os.path.exists("/sys/class/net/t0"):  # the host has none of that name, so it was the namespace's
        assert state(trader)["device"] == [5, 0]


def test_what_a_veth_has_not_is_refused_with_its_reason(pair):
    trader, folder = pair
    before = state(trader)
    for config, words in (
        (NicConfig(nic_rx_ring=512), "rings of t0: Operation not supported"),
        (NicConfig(coalesce={"rx_usecs": 0}), "coalesce of t0: Operation not supported"),
        (NicConfig(timestamps=True), "timestamps of t0: Operation not supported"),
        (NicConfig(channels=5), "it has 1 to 4; channels = 4"),
        (NicConfig(isolate=True), "all of them are the port's"),
    ):
        with trader.enter(), pytest.raises(SetupError, match=words):
            binding(folder, config).prepare()
    with trader.enter(), pytest.raises(SetupError, match="neither flow rules nor an RSS table"):
        binding(folder, NicConfig(steer=True)).prepare([1], [Flow(dst="233.54.12.111", dport=1)])
    assert state(trader) == before
    assert list(folder.iterdir()) == []


def test_ethtool_8_agrees_with_what_we_read(pair):
    trader, _folder = pair
    told = trader.run(["ethtool", "-k", "t0"]).stdout
    with trader.enter():
        found = ethtool.features(Host(), "t0")
        assert ethtool.driver(Host(), "t0") == "veth"
    lines = dict(line.strip().split(": ", 1) for line in told.splitlines()[1:] if ": " in line)
    same = {name: words for name, words in lines.items() if name in found}
    assert len(same) > 20
    for name, words in same.items():
        assert (words.split()[0] == "on", "[fixed]" not in words) == (
            found[name].active,
            found[name].can_change,
        )


def hold(folder, reached, config=EVERYTHING, pause=None):
    """In another process: bind, say so, and stay; with ``pause`` slow enough to be killed in the middle."""
    if pause:
        make = Changes.make

        def slow(self, operation):
            made = make(self, operation)
            time.sleep(pause)
            return made

        Changes.make = slow
    bound = binding(folder, config)
    os.write(reached, b"b")
    bound.settle(bound.prepare())
    os.write(reached, b"e")
    time.sleep(60)


def killed(namespace, folder, after, pause=None):
    """A process that was killed ``after`` seconds of binding (None: when it had bound everything)."""
    reading, writing = os.pipe()
    child = namespace.fork(hold, folder, writing, pause=pause)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"b"
        if after is None:
            assert os.read(reading, 1) == b"e"
        else:
            time.sleep(after)
        child.kill()
        child.wait(10)
    finally:
        os.close(reading)


def test_a_killed_process_leaves_what_the_next_start_undoes(pair):
    trader, folder = pair
    before = state(trader)
    killed(trader, folder, None)
    left = state(trader)
    assert left["channels"] != before["channels"]
    assert left["promiscuity"] == before["promiscuity"]  # the kernel takes that back itself
    assert left["macs"] == before["macs"]
    with trader.enter():
        journal = Journal(Host().cookie(), folder)
        assert {entry.operation for entry in pending(journal=journal)} >= {"channels", "feature"}
        undone, said = restore(journal=journal)
        assert said == []
        assert len(undone) > 2
    after = state(trader)
    after["napis"] = before["napis"] = [tuple(n) for n in after["napis"]]  # GRO went and came: new instances
    assert after == before
    assert list(folder.iterdir()) == []


def test_killed_at_any_moment_it_ends_as_it_began(pair):
    trader, folder = pair
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    before = state(trader)
    for _ in range(25):
        killed(trader, folder, chance.uniform(0, 0.1), pause=chance.choice([None, 0.01]))
        with trader.enter():
            assert restore(journal=Journal(Host().cookie(), folder))[1] == []
        assert state(trader) == before
        assert list(folder.iterdir()) == []


def test_two_processes_may_bind_one_interface_and_leave_in_any_order(pair):
    trader, folder = pair
    before = state(trader)
    reading, writing = os.pipe()
    first = trader.fork(hold, folder, writing, NicConfig(channels=2))
    assert os.read(reading, 2) in (b"be", b"b")
    with trader.enter():
        while len(Journal(Host().cookie(), folder).entries()) < 1 or state(trader)["channels"]["rx"] != 2:
            time.sleep(0.01)
        with binding(folder, NicConfig(channels=3)) as second:
            second.prepare()
            first.kill()
            first.wait(10)
            assert restore(journal=Journal(Host().cookie(), folder))[1] == []
            assert state(trader)["channels"]["rx"] == 3  # the living one keeps what he needs
    os.close(reading)
    os.close(writing)
    assert state(trader) == before
    assert list(folder.iterdir()) == []


def test_the_driver_and_interface_kinds_are_told_apart(lab):
    namespace = lab.namespace("kinds")
    with namespace.enter():
        with pytest.raises(SetupError, match="loopback has no queues; use a veth pair"):
            Binding("lo", NicConfig())
        for kind in ("dummy", "bridge"):
            made = subprocess.run(["ip", "link", "add", "k0", "type", kind], capture_output=True, text=True)
            if made.returncode:
                continue  # this kernel has none of that kind
            with pytest.raises(SetupError, match=f"bind queues of k0: a {kind} "):
                Binding("k0", NicConfig())
            subprocess.run(["ip", "link", "del", "k0"], check=True)


def test_the_journal_of_a_namespace_that_ended_goes_with_the_next_start_elsewhere(make_lab, tmp_path):
    """kill -9 of an owner in a namespace that then ends: nobody can restore there any more."""
    here, lab = make_lab().namespace("here"), make_lab()
    there = lab.namespace("there")
    lab.veth(there, "t0", "10.77.0.2/24", there, "v0", "10.77.0.1/24", queues=4)

    def change_and_die():
        binding(tmp_path, NicConfig(channels=2)).prepare()
        os.kill(os.getpid(), signal.SIGKILL)

    there.fork(change_and_die).wait(10)
    (left,) = tmp_path.iterdir()
    with here.enter():
        assert restore(journal=Journal(Host().cookie(), tmp_path)) == ([], [])
        assert list(tmp_path.iterdir()) == [left]  # its namespace is still there
        lab.close()
        assert restore(journal=Journal(Host().cookie(), tmp_path)) == ([], [])
    assert list(tmp_path.iterdir()) == []
