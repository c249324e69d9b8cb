"""Our filter and somebody else's program on one interface, in libxdp's dispatcher."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.vmlab.tests import neighbour
from tools.vmlab.tests.machine import until
from xdpstack import bpf, config, dispatcher, pins
from xdpstack import node as nodes
from xdpstack._ffi import lib
from xdpstack.bpf import Filter
from xdpstack.cli import main
from xdpstack.errors import SetupError
from xdpstack.lab import Lab, Namespace, pair
from xdpstack.port import XskPort

LIBXDP = Path("/sys/fs/bpf/xdp")
FEED, REST = 5000, 6000
RULES = [f"udp dst *:{FEED} -> feed"]
HERE = "10.77.0.2"


@pytest.fixture
def joined() -> Iterator[tuple[Namespace, Namespace]]:
    """``(venue, trader)`` as of netns_tests; at the end nothing is on t0 and nobody's pins are left."""
    with Lab(f"d{os.getpid()}") as lab:
        venue, trader = pair(lab)
        yield venue, trader
        with trader.enter():
            assert bpf.attached("t0") is None
    assert left() == []


def left() -> list[str]:
    """Pins of ours and of dispatchers."""
    return sorted(str(path) for path in [*LIBXDP.glob("dispatch-*"), *pins.BPFFS.glob("xdpstack/*")])


def index() -> int:
    return socket.if_nametoindex("t0")


def send(venue: Namespace, port: int, count: int = 1) -> None:
    with venue.socket() as sender:
        for _ in range(count):
            sender.sendto(b"tick", (HERE, port))


def take(port: XskPort, count: int) -> list[tuple[int, bytes]]:
    got: list[tuple[int, bytes]] = []

    def came() -> bool:
        got.extend((frame.rx_ns, bytes(frame.data)) for frame in port.receive(64, now=77))
        return len(got) >= count

    until(came)
    port.release()
    return got


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``xdpstack`` in this process, which spares the emulation the start of another: code, output, errors."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(words))
        return code, *capsys.readouterr()

    return call


def names() -> list[tuple[str, int]]:
    return [(one.name, one.priority) for one in dispatcher.chained("t0")]


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_both_see_the_frames_and_ours_reach_the_socket(joined, first):
    venue, trader = joined
    with trader.enter():
        number = neighbour.join(index()) if first == "theirs" else 0
        with Filter.load("t0", rules=RULES, dispatcher=True) as ours, XskPort("t0", tx_frames=0) as port:
            number = number or neighbour.join(index())
            assert names() == [("neighbour", 50), ("xds_rx_chain", 60)]
            ours.set_socket("feed", 0, port.fds()[0])
            send(venue, FEED, 5)
            send(venue, REST, 3)
            frames = take(port, 5)
            assert [data[-4:] for _, data in frames] == [b"tick"] * 5
            assert {stamp for stamp, _ in frames} == {77}, "no stamp came along: the reader's time"
            until(lambda: ours.counters().reasons["unmatched"].packets >= 3)
            reasons = ours.counters().reasons
            assert reasons["redirected_bare"].packets == 5
            assert reasons["redirected"].packets == 0
            assert neighbour.seen(number) >= 8
        assert names() == [("neighbour", 50)], "only ours is gone"
        before = neighbour.seen(number)
        send(venue, FEED, 4)
        until(lambda: neighbour.seen(number) >= before + 4)
        neighbour.leave(index(), number)


def test_priority_decides_who_sees_what(joined):
    venue, trader = joined
    with trader.enter():
        number = neighbour.join(index())
        with (
            Filter.load("t0", rules=RULES, dispatcher=True, priority=10) as ours,
            XskPort("t0", tx_frames=0) as port,
        ):
            assert names() == [("xds_rx_chain", 10), ("neighbour", 50)]
            ours.set_socket("feed", 0, port.fds()[0])
            before = neighbour.seen(number)
            send(venue, FEED, 5)
            take(port, 5)
            send(venue, REST, 2)
            until(lambda: neighbour.seen(number) >= before + 2)
            assert neighbour.seen(number) - before < 5, "what ours took went no further"
        neighbour.leave(index(), number)


def test_the_command_line_joins_shows_and_takes_out_only_ours(joined, cli):
    _, trader = joined
    with trader.enter():
        number = neighbour.join(index())
        code, _, err = cli("load", "t0")
        assert code == 1
        assert "xdpstack load t0 --dispatcher joins it" in err
        assert cli("load", "t0", "--dispatcher", "--mode", "generic")[0] == 1
        assert names() == [("neighbour", 50)]
        code, out, err = cli("load", "t0", "--dispatcher", "--priority", "70")
        assert (code, err) == (0, "")
        assert (
            out == "t0: filter loaded in native mode with 0 rules, in the dispatcher with 1 other program\n"
        )
        _, out, _ = cli("status", "t0")
        assert "xdp_dispatcher" in out
        assert f"    50 program {number} (neighbour), goes on after pass\n" in out
        assert "(xds_rx_chain), goes on after pass, loaded by xdpstack; frames are stamped at delivery" in out
        assert cli("rules", "add", "t0", RULES[0])[0] == 0
        shown = json.loads(cli("status", "t0", "--json")[1])["interfaces"][0]
        assert [one["ours"] for one in shown["dispatcher"]] == [False, True]
        assert shown["ours"] is True
        assert [one["rule"] for one in shown["rules"]] == RULES
        assert cli("load", "t0", "--dispatcher")[2].endswith("; xdpstack unload t0\n")
        code, out, _ = cli("unload", "t0")
        assert (code, out) == (0, f"t0: filter unloaded; program {number} (neighbour, priority 50) stays\n")
        assert names() == [("neighbour", 50)]
        neighbour.leave(index(), number)


def held(trader: Namespace) -> tuple[object, int]:
    """A process with a filter in the dispatcher that ends with it."""
    ready, tell = os.pipe()

    def hold() -> None:
        steering = Filter.load("t0", rules=RULES, dispatcher=True)
        with XskPort("t0", tx_frames=0) as port:
            steering.set_socket("feed", 0, port.fds()[0])
            os.write(tell, b"!")
            signal.pause()

    child = trader.fork(hold)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    os.close(tell)
    return child, child.pid


@pytest.mark.parametrize("mend", ["unload", "load", "restore"])
def test_a_killed_owner_leaves_what_is_said_and_anyone_takes_it_out(joined, cli, mend):
    venue, trader = joined
    child, pid = held(trader)
    with trader.enter(), trader.socket() as receiver:
        receiver.bind((HERE, FEED))
        receiver.settimeout(20)
        number = neighbour.join(index())
        with pytest.raises(SetupError, match=f"ends with process {pid}"):
            Filter.load("t0", dispatcher=True)
        code, _, err = cli("unload", "t0")
        assert (code, f"ends with process {pid}" in err) == (1, True)
        child.kill()
        child.wait(20)
        assert names() == [("neighbour", 50), ("xds_rx_chain", 60)], "libxdp's pins keep it"
        send(venue, FEED)
        assert receiver.recv(10) == b"tick", "its frames go to the kernel"
        assert f"left by dead process {pid}" in cli("status", "t0")[1]
        if mend == "unload":
            code, out, _ = cli("unload", "t0")
            assert (code, out) == (0, f"t0: the filter that dead process {pid} left is taken out\n")
        elif mend == "load":
            with Filter.load("t0", dispatcher=True):
                assert names() == [("neighbour", 50), ("xds_rx_chain", 60)]
        else:
            assert cli("doctor", "--restore")[0] == 0
        assert names() == [("neighbour", 50)]
        neighbour.leave(index(), number)


def test_force_takes_it_from_a_process_that_runs_and_whose_end_takes_nothing_back(joined):
    _, trader = joined
    child, _ = held(trader)
    with trader.enter():
        with Filter.load("t0", rules=RULES, dispatcher=True, force=True) as ours:
            assert len(ours.replaced) == 1
            (one,) = dispatcher.chained("t0")
            assert one.prog_id == ours.info()["prog_id"]
            child.kill()
            child.wait(20)
            assert not dispatcher.clean_up("t0", ours.pin_dir)
            assert [one.prog_id for one in dispatcher.chained("t0")] == [ours.info()["prog_id"]]
        assert names() == []


def test_in_generic_mode_it_is_joined_in_that_mode_alone(joined):
    venue, trader = joined
    with trader.enter():
        with (
            Filter.load("t0", "generic", rules=RULES, dispatcher=True) as ours,
            XskPort("t0", tx_frames=0) as port,
        ):
            assert ours.mode == "generic"
            assert bpf.attached("t0").mode == "generic"
            ours.set_socket("feed", 0, port.fds()[0])
            send(venue, FEED, 5)
            assert [data[-4:] for _, data in take(port, 5)] == [b"tick"] * 5
        assert names() == []
        number = neighbour.join(index(), mode=neighbour.GENERIC)
        with pytest.raises(SetupError, match="its dispatcher is in generic mode, not in native"):
            Filter.load("t0", "native", dispatcher=True)
        with Filter.load("t0", dispatcher=True) as ours:
            assert ours.mode == "generic"
            assert names() == [("neighbour", 50), ("xds_rx_chain", 60)]
        neighbour.leave(index(), number, mode=neighbour.GENERIC)


def test_when_all_places_are_taken_it_is_said_and_nothing_moves(joined):
    _, trader = joined
    with trader.enter():
        numbers = [neighbour.join(index(), priority=number) for number in range(lib.XDS_CHAIN_MAX)]
        with pytest.raises(SetupError, match=r"^t0: all 10 places of its dispatcher are taken"):
            Filter.load("t0", dispatcher=True)
        assert [one.prog_id for one in dispatcher.chained("t0")] == numbers
        bpf.detach_any("t0")


def test_a_port_of_a_program_stands_in_it_with_others(joined, cli, tmp_path):
    venue, trader = joined
    (tmp_path / "shared.toml").write_text(
        f'[ports.main]\nport = "xsk:t0:0"\ndispatcher = true\npriority = 40\n'
        f'[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["{HERE}:{FEED}"]\n'
    )
    with trader.enter():
        number = neighbour.join(index())
        with nodes.Node(config.load(tmp_path / "shared.toml")) as node:
            node.build()
            assert names() == [("xds_rx_chain", 40), ("neighbour", 50)]
            send(venue, FEED, 3)
            until(lambda: node.stats()["filters"]["main"]["reasons"]["redirected_bare"]["packets"] >= 3)
        assert names() == [("neighbour", 50)]
        code, _, err = cli("run", str(tmp_path / "shared.toml"), "--seconds", "1", "--json")
        assert code == 0, err
        assert names() == [("neighbour", 50)]
        neighbour.leave(index(), number)


def test_a_kill_while_it_loads_is_cleaned_up_by_the_next(joined):
    _, trader = joined
    with trader.enter():
        for delay in (0.5, 1.5, 2.5, 3.5):
            child = trader.fork(lambda: Filter.load("t0", dispatcher=True, pin=True).close())
            time.sleep(delay)
            child.kill()
            child.wait(20)
        with Filter.load("t0", dispatcher=True, force=True):
            assert names() == [("xds_rx_chain", 60)]


def test_pins_of_an_interface_that_is_gone_are_swept(joined):
    _, trader = joined
    with trader.netlink() as route:
        route.link("add", ifname="x0", kind="veth", peer={"ifname": "x1"})
        route.link("set", ifname="x0", state="up")
    with trader.enter():
        Filter.load("x0", dispatcher=True, pin=True).close()
        gone = left()
        assert len(gone) == 2
        with trader.netlink() as route:
            route.link("del", ifname="x0")
        assert left() == gone, "nobody has looked yet"
        with Filter.load("t0", dispatcher=True):
            assert len(left()) == 2
            assert not set(left()) & set(gone)


def test_a_lab_takes_its_dispatchers_along(joined):
    with Lab(f"e{os.getpid()}") as lab:
        _, other = pair(lab)
        with other.enter():
            Filter.load("t0", dispatcher=True, pin=True).close()
            assert len(left()) == 2
    assert left() == []


def test_an_interface_made_anew_gets_the_same_filter(joined):
    _, trader = joined
    with trader.enter(), Filter.load("t0", rules=RULES, dispatcher=True, priority=33) as ours:
        (rule,) = ours.rules
        with trader.netlink() as route:
            route.link("del", ifname="t0")
            route.link("add", ifname="t0", kind="veth", peer={"ifname": "t1"})
            for name in ("t0", "t1"):
                route.link("set", ifname=name, state="up")
        assert ours.reattach("t0")
        assert not ours.reattach("t0")
        assert names() == [("xds_rx_chain", 33)]
        assert ours.rules == [rule]
        assert len(left()) == 2


def test_a_filter_that_was_handed_over_ends_with_its_new_process(joined):
    _, trader = joined
    ready, tell = os.pipe()
    again, told = os.pipe()
    with trader.enter():
        giver = Filter.load("t0", rules=RULES, dispatcher=True)
        directory = giver.pin_dir

        def taker() -> None:
            with Filter.adopt("t0", giver.fds(), giver.mode, directory) as ours:
                os.write(tell, b"!")
                os.read(again, 1)
                assert [str(rule) for rule in ours.rules] == RULES

        child = trader.fork(taker)
        assert os.read(ready, 1) == b"!"
        giver.hand_to(child.pid)
        giver.close()
        assert names() == [("xds_rx_chain", 60)], "it is the other's now"
        os.write(told, b"!")
        assert child.wait(60) == 0
        assert names() == []
    for fd in (ready, tell, again, told):
        os.close(fd)


def test_a_program_without_a_dispatcher_is_named_and_stays(joined):
    _, trader = joined
    with trader.enter(), Filter.load("t0") as alone:
        with pytest.raises(SetupError, match=r"\(xds_rx, native mode.* attached already"):
            Filter.load("t0", dispatcher=True)
        assert bpf.attached("t0").prog_id == alone.info()["prog_id"]


def test_the_doctor_says_that_it_can_and_who_is_in_it(joined, cli):
    _, trader = joined
    with trader.enter():
        with Filter.load("t0", dispatcher=True):
            number = neighbour.join(index())
            _, out, _ = cli("doctor", "t0", "--json", "--check", "dispatcher", "--check", "xdp-program")
            found = {one["name"]: one for one in json.loads(out)["checks"]}
            assert found["dispatcher"]["state"] == found["xdp-program"]["state"] == "ok"
            assert f"neighbour (id {number}, priority 50), xds_rx_chain" in found["xdp-program"]["found"]
        neighbour.leave(index(), number)
