"""A running program on a card: busy polling, a takeover, an engine a queue, what a VLAN rule needs."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.vmlab.tests.machine import ZERO_COPY, Patience, mouth, run, until, up, write
from tools.vmlab.tests.test_doctor import checks
from xdpstack import cli, fleet
from xdpstack.bpf import Filter
from xdpstack.config import PortConfig, Program
from xdpstack.errors import SetupError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.netdev import capabilities
from xdpstack.nic import NicConfig, pending
from xdpstack.nic.surface import Host
from xdpstack.port import Subscription, XskPort
from xdpstack.stats import segments
from xdpstack.tests.frames import plain_message, plain_packet

CHANNELS, EACH = 20, 10


def plain(seq: int, symbol: int = 1) -> bytes:
    return plain_packet(seq, plain_message("A", "B", symbol, 100, 1 + seq))


@contextlib.contextmanager
def venue() -> Iterator[socket.socket]:
    """A socket that sends multicast by igb0."""
    run("ip", "addr", "replace", "10.9.0.1/24", "dev", "igb0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.9.0.1"))
        out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"igb0")
        yield out


def index(link: str) -> int:
    return socket.if_nametoindex(link)


def test_busy_polling_is_in_force_where_interrupts_are_put_off() -> None:
    """By the kernel (deferral) and by the card (10 ms between two of them, its most): with the card's own
    3 µs two thirds of the frames came by interrupts here, and the port said so. The emulated card interrupts
    though the kernel defers: where a turn of this loop takes a host longer than 10 ms, all may come so."""
    up("igb0", "igb1")
    run("ethtool", "-C", "igb1", "rx-usecs", 10_000)
    with Filter.load("igb1", mode="native", rules="udp dst 10.9.0.2:9000 -> test") as steering:
        write("/sys/class/net/igb1/napi_defer_hard_irqs", 1000)
        write("/sys/class/net/igb1/gro_flush_timeout", 2_000_000_000)
        try:
            for _ in range(5):
                word = polled_for(steering)
                if word == "in force":
                    return
            pytest.skip(f"this host is too slow for it: {word}")
        finally:
            write("/sys/class/net/igb1/gro_flush_timeout", 0)
            write("/sys/class/net/igb1/napi_defer_hard_irqs", 0)
            run("ethtool", "-C", "igb1", "rx-usecs", 3)


def polled_for(steering: Filter) -> str:
    """Take 300 frames by a port that polls; its word on that, which its counters bear out."""
    with XskPort("igb1", range(2), busy_poll=50, **ZERO_COPY) as port, mouth() as sender:
        for queue, fd in port.fds().items():
            steering.set_socket("test", queue, fd)
        up("igb0", "igb1")
        assert port.busy_polling == "not known yet: 0 frames received"
        patience, got = Patience(), 0
        while got < 300 and patience:
            sender.send(bytes(40))
            got += len(port.receive(64))
        port.release()
        assert got >= 300
        word, polled = port.busy_polling, port.stats()["busy_polled"]
        print(f"{polled} of {got} frames were polled")
        if word == "in force":
            assert 2 * polled >= got
        else:
            assert re.match(rf"not in force: {polled} of {got} frames were polled", word)
            assert 2 * polled < got
        return word


def test_what_the_card_cannot_do_with_a_sent_frame_is_refused_by_its_word() -> None:
    """The 82576 tells of no launch time; the sentence names what there is."""
    up("igb0")
    has = capabilities(index("igb0")).xsk
    assert has is not None
    assert "tx-launch-time-fifo" not in has
    with Filter.load("igb0", mode="native"), XskPort("igb0", tx_metadata=True, **ZERO_COPY) as port:
        assert port.tx_features == has
        with pytest.raises(
            SetupError, match=f"tx-launch-time-fifo.*there is {', '.join(sorted(has)) or 'none'}"
        ):
            port.send_one(bytes(64), launch_ns=1)


def start(folder: Path, name: str, *words: str, meanwhile: Callable[[], object] = bool) -> int:
    """``xdpstack run`` in a child of this process, where Python runs already; returns once it is running.
    ``meanwhile``: called when the child is there, and before that."""
    child = os.fork()
    if child == 0:
        code = 70
        with contextlib.suppress(BaseException):
            for number, what in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / f"{name}.{what}", os.O_CREAT | os.O_WRONLY, 0o600), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
            code = cli.main(["run", str(folder / "c.toml"), "--json", *words])
            sys.stdout.flush()
        os._exit(code)
    meanwhile()
    until(lambda: (folder / f"{name}.err").exists() and (folder / f"{name}.err").read_text())
    assert (folder / f"{name}.err").read_text().startswith("running")
    return child


def ended(folder: Path, name: str, child: int) -> Any:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, (folder / f"{name}.err").read_text()
    return json.loads((folder / f"{name}.out").read_text())


def packets(process: int) -> int:
    """What the engine of a process has received, by its counters."""
    return sum(one.open().values().get("engine.packets", 0) for one in segments() if one.pid == process)


def test_a_run_takes_over_both_queues_in_zero_copy_and_no_packet_is_lost(tmp_path: Path) -> None:
    up("igb0", "igb1")
    (tmp_path / "c.toml").write_text(
        '[ports.main]\nport = "xsk:igb1"\nmode = "zerocopy"\nrequire = true\npromiscuous = true\n'
        "bind_wait_ms = 120000\n"
        "[feeds.plain]\n[[feeds.plain.channels]]\n"
        f'lines = ["239.1.1.1:5000"]\n[handover]\nsocket = "{tmp_path}/run.sock"\n[engine]\nname = "took"\n'
    )
    running = {"first": start(tmp_path, "first")}
    up("igb1")
    with venue() as out:
        enough, sent = threading.Event(), 0

        def keep_sending() -> None:
            nonlocal sent
            while not enough.wait(0.01):
                sent += out.sendto(plain(sent), ("239.1.1.1", 5000)) > 0

        sender = threading.Thread(target=keep_sending, daemon=True)
        running["second"] = start(tmp_path, "second", "--takeover", meanwhile=sender.start)
        results = [ended(tmp_path, "first", running["first"])]
        until(lambda: packets(running["second"]) >= 50)
        enough.set()
        sender.join()
    until(lambda: results[0]["packets"] + packets(running["second"]) >= sent)
    os.kill(running["second"], signal.SIGINT)
    results.append(ended(tmp_path, "second", running["second"]))
    assert all(result["packets"] for result in results), "each had some of them"
    assert sum(result["packets"] for result in results) == sent
    assert [result["gaps"]["found"] for result in results] == [0, 0]
    assert pending() == []


def test_an_engine_a_queue_takes_what_the_card_spreads() -> None:
    up("igb0", "igb1")
    # RSS takes one bit of Toeplitz's sum, which is linear, under a key new with each boot: groups that
    # differ in three bits all take one queue on one boot in eight, those with a bit each on 1 in a million.
    groups = [str(ipaddress.IPv4Address("239.128.0.0") + (1 << number)) for number in range(CHANNELS)]
    lines = [(Subscription(address=group, port=5000),) for group in groups]
    feed = FeedConfig(schema="plain", channels=tuple(ChannelConfig(lines=line) for line in lines))
    port = PortConfig(port="xsk:igb1", options=dict(ZERO_COPY), nic=NicConfig(promiscuous=True))
    by_flow: dict[int, list[tuple[int, int]]] = {}
    with fleet.open(Program(ports=(port,), feeds=(feed,), engines="queue")) as engines, venue() as out:
        engines.build()
        assert engines.queues == [0, 1]
        assert [node.ports[0].granted for node in engines.nodes] == ["zerocopy", "zerocopy"]
        up("igb0", "igb1")
        for seq in range(EACH):
            for number, group in enumerate(groups):
                out.sendto(plain(seq, number + 1), (group, 5000))
        patience, got = Patience(), 0
        for node, batch in engines.run(idle=lambda: not patience, spins=50):
            for update in batch.updates:
                seen = by_flow.setdefault(int(update["instrument"]), [])
                seen.append((node.ports[0].queues[0], int(update["seq"])))
                got += 1
            if got >= CHANNELS * EACH:
                break
        assert engines.missing() == []
    assert pending() == []
    assert len(by_flow) == CHANNELS
    for flow in by_flow.values():
        assert [seq for _, seq in flow] == list(range(EACH)), "none lost, none twice, in order"
        assert len({queue for queue, _ in flow}) == 1, "a flow keeps to its queue"
    assert {flow[0][0] for flow in by_flow.values()} == {0, 1}, "the card spread them"


def test_a_tagged_frame_needs_its_vlan_device_or_promiscuous_mode_and_the_doctor_says_so() -> None:
    up("igb0", "igb1")
    assert (
        "a rule with a VLAN tag needs its VLAN device"
        in checks("igb1", "--check", "offloads")["offloads"]["found"]
    )
    run("ip", "link", "add", "link", "igb0", "name", "igb0.7", "type", "vlan", "id", 7)
    run("ethtool", "-K", "igb1", "rxvlan", "off")
    try:
        up("igb0", "igb0.7")
        with (
            Filter.load("igb1", mode="native", rules="vlan 7 udp dst 10.9.0.2:9000 -> drop") as steering,
            mouth("igb0.7") as sender,
        ):
            up("igb0", "igb0.7", "igb1")

            def counted() -> int:
                return sum(count.packets for count in steering.counters().rules.values())

            for _ in range(20):
                sender.send(bytes(40))
            time.sleep(2)
            assert counted() == 0, "the card's VLAN filter kept them"
            with contextlib.closing(Host().join(index("igb1"), "promiscuous")):
                until(lambda: (sender.send(bytes(40)), counted())[1] > 0)
            run("ip", "link", "add", "link", "igb1", "name", "igb1.7", "type", "vlan", "id", 7)
            before = counted()
            until(lambda: (sender.send(bytes(40)), counted())[1] > before + 20)
    finally:
        run("ip", "link", "del", "igb0.7")
        run("ip", "link", "del", "igb1.7", check=False)
        run("ethtool", "-K", "igb1", "rxvlan", "on")
