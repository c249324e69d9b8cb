"""What other processes see of an engine's ports."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from xdpstack import stats
from xdpstack._ffi import lib
from xdpstack.engine import Engine, EngineConfig
from xdpstack.flows import udp_frame
from xdpstack.port import SockPort, Subscription, pipe
from xdpstack.visible import port_name
from xdpstack.watch import look


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Segments lie here."""
    monkeypatch.setitem(stats.Segment.__init__.__kwdefaults__, "root", tmp_path)
    return tmp_path


def test_a_port_is_called_as_in_toml() -> None:
    def named(**port: object) -> str:
        return port_name(SimpleNamespace(**port))

    assert named(kind="xsk", interface="eth0", queues=range(3, 4)) == "xsk:eth0:3"
    assert named(kind="xsk", interface="eth0.7", queues=range(0, 4)) == "xsk:eth0.7:0-3"
    assert named(kind="sock", interface="eth0") == "sock:eth0"
    assert named(kind="pcap", path=Path("/tmp/a day.pcapng")) == "pcap:a_day.pcapng"
    assert named(kind="pipe") == "pipe"


def test_frames_of_a_port_and_reasons_of_its_host_are_seen_from_outside(root: Path) -> None:
    venue, trader = pipe(64, 2048)
    other = SockPort([Subscription(address="127.0.0.1", port=0)], interface="lo")
    with venue, trader, other, Engine(EngineConfig(name="seen")) as engine:
        engine.add_link(trader, promiscuous=True)
        engine.add_sock(other)
        good = udp_frame(b"hello", ("239.1.1.1", 5000))
        venue.send([good, good[:20], good])
        engine.turn()
        lib.xds_engine_reflect(engine.core)
        assert look(root).engines["seen"].values["port.pipe.rx_frames"] == 0, "not by the turn"
        engine.show_ports()
        values = look(root).engines["seen"].values
        assert values["port.pipe.rx_frames"] == 3
        assert values["port.sock:lo.rx_datagrams"] == 0
        assert values["host.pipe.received"] == 3
        assert values["host.pipe.reasons.delivered"] == 2
        assert sum(v for k, v in values.items() if k.startswith("host.pipe.reasons.")) == 3
        engine.detach()
        engine.show_ports()
    assert list(root.glob("*.stat")) == []


def test_two_ports_of_one_name_have_entries_of_their_own(root: Path) -> None:
    first, second = pipe(64, 2048)
    with first, second, Engine(EngineConfig(name="twins")) as engine:
        engine.add_link(first, promiscuous=True)
        engine.add_link(second, promiscuous=True)
        engine.show_ports()
        values = look(root).engines["twins"].values
        assert {"port.pipe.rx_frames", "port.pipe#1.rx_frames"} <= set(values)
        engine.detach()


def test_without_a_name_nothing_is_shown(root: Path) -> None:
    first, second = pipe(64, 2048)
    with first, second, Engine() as engine:
        engine.add_link(first, promiscuous=True)
        engine.show_ports()
        engine.detach()
    assert list(root.iterdir()) == []
