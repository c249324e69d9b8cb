"""What a driver tells of a received frame: veth answers all three questions, to a program bound to it."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.vmlab.tests.machine import PATIENCE, Patience, mouth, run, until, up
from xdpstack import cli, config
from xdpstack import node as nodes
from xdpstack._ffi import lib
from xdpstack.bpf import METADATA, Filter, attached
from xdpstack.cli.capture import capture
from xdpstack.errors import SetupError
from xdpstack.netdev import capabilities
from xdpstack.port import Hints, PcapPort, XskPort

RULE = "udp dst 10.9.0.2:9000 -> test"


@pytest.fixture(params=[1500, 9000])
def pair(request: pytest.FixtureRequest) -> Iterator[int]:
    """v0 to v1, and v0.7, whose tag stays beside the frame; its MTU. The tag has priority 3."""
    run("ip", "link", "add", "v0", "mtu", request.param, "type", "veth", "peer", "name", "v1")
    run("ip", "link", "set", "v1", "mtu", request.param)
    run("ip", "link", "add", "link", "v0", "name", "v0.7", "type", "vlan", "id", 7, "egress", "0:3")
    up("v0", "v1", "v0.7")
    yield request.param
    run("ip", "link", "del", "v0")


@contextlib.contextmanager
def port_behind(steering: Filter) -> Iterator[XskPort]:
    with XskPort("v1") as port:
        steering.set_socket("test", 0, port.fds()[0])
        yield port


def told(port: XskPort, data: bytes, link: str = "v0", count: int = 1) -> list[Hints | None]:
    """Send a datagram so often by one socket, and take what is known of its frames."""
    found: list[Hints | None] = []
    with mouth(link) as sender:
        for _ in range(count):
            sender.send(data)
        patience = Patience()
        while len(found) < count and patience:
            for frame in port.receive(64):
                assert bytes(frame.data[-len(data) :]) == data
                assert not frame.flags & lib.XDS_FRAME_HW_STAMP, "veth has no clock: it is the hook's"
                assert 0 <= time.clock_gettime_ns(time.CLOCK_TAI) - frame.rx_ns < 3600e9
                found.append(frame.hints)
        port.release()
    run("ip", "addr", "flush", "dev", link)
    assert len(found) == count
    return found


def test_hash_and_tag_come_with_the_frame_and_only_what_was_asked(pair: int) -> None:
    index = int(Path("/sys/class/net/v1/ifindex").read_text())
    assert capabilities(index).rx_metadata == set(METADATA)
    data = bytes(pair - 28)  # at 9,000 in several buffers, which the port joins
    with Filter.load("v1", rules=RULE, metadata=list(METADATA)) as steering, port_behind(steering) as port:
        assert steering.mode == "native"
        first, *same = told(port, data, count=3)
        assert first is not None
        assert first.hash
        assert first.hash_type, "veth says over which layers"
        assert first.vlan is None
        assert same == [first, first], "a flow has one hash"
        (other,) = told(port, data)
        assert other is not None
        assert other.hash != first.hash, "another flow has another"
        (tagged,) = told(port, data, "v0.7")
        assert tagged is not None
        assert tagged.vlan == (0x8100, 3 << 13 | 7)
    with Filter.load("v1", rules=RULE, metadata=["vlan-tag"]) as steering, port_behind(steering) as port:
        assert told(port, data) == [None]
        assert told(port, data, "v0.7") == [Hints(None, 0, (0x8100, 3 << 13 | 7))]
    with Filter.load("v1", rules=RULE, device_bound=True) as steering, port_behind(steering) as port:
        assert told(port, data, "v0.7") == [None]


@contextlib.contextmanager
def sending(link: str) -> Iterator[None]:
    """Datagrams leave by ``link`` all the while."""
    done = threading.Event()
    with mouth(link) as sender:

        def keep_sending() -> None:
            while not done.wait(0.05):
                sender.send(bytes(40))

        thread = threading.Thread(target=keep_sending)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("pair", [1500], indirect=True)
def test_load_and_capture_ask_for_it_too(pair: int, tmp_path: Path) -> None:
    file = tmp_path / "told.pcapng"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["load", "v1", "--metadata", "hash,vlan-tag", "--json"]) == 0
    loaded = json.loads(out.getvalue())
    assert (loaded["device_bound"], loaded["metadata"]) == (1, ["hash", "vlan-tag"])
    with Filter.open_pinned("v1") as steering:
        assert steering.info()["metadata"] == ["hash", "vlan-tag"], "the program tells it"
    with contextlib.redirect_stdout(out):
        assert cli.main(["status", "v1"]) == 0
    assert "\n  asks the driver for hash, vlan-tag of each frame\n" in out.getvalue()
    with pytest.raises(SetupError, match="the filter there asks for hash, vlan-tag; xdpstack unload"):
        capture("xsk:v1", file, rules=["udp"], metadata=["timestamp"], count=1)
    there = attached("v1")
    assert there is not None
    assert there.name == "xds_rx_meta"
    with sending("v0.7"):
        result = capture("xsk:v1", file, rules=["udp dst 10.9.0.2:9000"], count=3, seconds=PATIENCE)
    assert result["frames"] == 3
    with contextlib.redirect_stdout(out):
        assert cli.main(["unload", "v1"]) == 0
    assert file.read_bytes().count(b"VLAN tag 0x8100 6007") == 3
    assert file.read_bytes().count(b"hash 0x") == 3
    with PcapPort(file) as port:
        assert len(port.receive(8)) == 3


@pytest.mark.parametrize("pair", [1500], indirect=True)
def test_a_capture_asks_the_driver_itself_where_no_filter_is(pair: int, tmp_path: Path) -> None:
    file = tmp_path / "told.pcapng"
    with sending("v0.7"):
        words = ["capture", "xsk:v1", "-w", str(file), "--rules", "udp dst 10.9.0.2:9000", "--count", "3"]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert cli.main([*words, "--seconds", str(PATIENCE), "--metadata", "vlan-tag", "--json"]) == 0
    assert json.loads(out.getvalue())["frames"] == 3
    assert file.read_bytes().count(b"VLAN tag 0x8100 6007") == 3
    assert file.read_bytes().count(b"hash 0x") == 0
    assert attached("v1") is None


@pytest.mark.parametrize("pair", [1500], indirect=True)
def test_a_port_in_toml_asks_for_stamps(pair: int, tmp_path: Path) -> None:
    file = tmp_path / "stamped.toml"
    file.write_text(
        '[ports.main]\nport = "xsk:v1:0"\nmetadata = ["timestamp"]\n'
        '[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["10.9.0.2:9000"]\n'
    )
    with nodes.Node(config.load(file)) as node:
        node.build()
        there = attached("v1")
        assert there is not None
        assert there.name == "xds_rx_meta"
        with sending("v0"):
            until(lambda: node.stats()["filters"]["main"]["reasons"]["redirected"]["packets"] >= 3)
    assert attached("v1") is None


def test_a_card_that_tells_nothing_is_refused_in_a_sentence() -> None:
    up("igb0")
    index = int(Path("/sys/class/net/igb0/ifindex").read_text())
    has = capabilities(index).rx_metadata
    assert has is not None
    assert "hash" not in has
    with pytest.raises(SetupError, match=r"^igb0: ask its driver for hash: driver igb tells .* of received"):
        Filter.load("igb0", metadata=["hash"])
    assert attached("igb0") is None
