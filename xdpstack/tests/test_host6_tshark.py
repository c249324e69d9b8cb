"""cores/host over IPv6: what it says of itself (NDP, MLD, ICMPv6) as tshark reads it: no fault."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from xdpstack._ffi import lib
from xdpstack.port import PcapWriter
from xdpstack.tests.host6_driver import (
    ALL,
    FAR,
    GROUP,
    LOCAL,
    ME,
    ROUTER,
    THEM,
    Host6,
    S,
    frame6,
    raw,
    solicited,
)
from xdpstack.tests.host_driver import MAC, PEER, SECOND

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
EVERYTHING = lib.XDS_HOST_REPORTS | lib.XDS_HOST_ROUTERS | lib.XDS_HOST_UNREACHABLE
V2, OTHERS = "ff02::16", "ff02::2"


class Seen:
    """Frames of a host, then one look at all of them."""

    def __init__(self, folder: Path) -> None:
        self.path, self.frames = folder / "said.pcap", []

    def add(self, frames: list[Any]) -> None:
        self.frames += [bytes(frame) for frame in frames]

    def run(self, host: Host6, until: int) -> None:
        """Everything that leaves by then."""
        while host.deadline <= until:
            self.add(host.tick(max(host.deadline, 0)))

    def read(self) -> list[dict[str, Any]]:
        """A frame's layers as tshark has them. It finds nothing wrong, and every checksum right."""
        with PcapWriter(self.path) as writer:
            for number, frame in enumerate(self.frames):
                writer.write(1 + number, frame)
        command = ["tshark", "-r", str(self.path), "-T", "json", "--no-duplicate-keys"]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        packets = [one["_source"]["layers"] for one in json.loads(run.stdout)]
        assert len(packets) == len(self.frames)
        for layers in packets:
            assert "_ws.malformed" not in layers
            assert "_ws.expert" not in json.dumps(layers), layers
            assert layers["icmpv6"]["icmpv6.checksum.status"] == "1", "good"
        return packets


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(tmp_path)


def ends(layers: dict[str, Any]) -> tuple[str, str, str, int]:
    ip = layers["ipv6"]
    return layers["eth"]["eth.dst"], ip["ipv6.src"], ip["ipv6.dst"], int(ip["ipv6.hlim"])


def inside(layers: Any, key: str) -> list[Any]:
    """Every value of a key, however deep."""
    if isinstance(layers, list):
        return [value for one in layers for value in inside(one, key)]
    if not isinstance(layers, dict):
        return []
    found = [value for name, value in layers.items() if name == key]
    return found + [value for one in layers.values() for value in inside(one, key)]


def mac_of(address: str) -> str:
    return "33:33:" + raw(address)[12:].hex(":")


def test_an_own_address_is_probed_for_and_announced(seen: Seen) -> None:
    host = Host6(addresses=(f"{ME}/64",), group=None)
    assert lib.xds_host_claim6(host.h, raw(ME), SECOND, 0) == 0
    seen.run(host, 60 * SECOND)
    probe, *announced = seen.read()
    assert ends(probe) == (mac_of(solicited(ME)), "::", solicited(ME), 255)
    assert probe["icmpv6"]["icmpv6.type"] == "135"
    assert probe["icmpv6"]["icmpv6.nd.ns.target_address"] == ME
    assert inside(probe, "icmpv6.opt.type") == []
    assert len(announced) == 2
    for one in announced:
        assert ends(one) == (mac_of(ALL), ME, ALL, 255)
        assert one["icmpv6"]["icmpv6.type"] == "136"
        assert one["icmpv6"]["icmpv6.nd.na.target_address"] == ME
        assert inside(one, "icmpv6.nd.na.flag.s") == ["0"] or inside(one, "icmpv6.nd.na.flag.s") == [False]
        assert inside(one, "icmpv6.opt.target_linkaddr") == [MAC]


def test_a_neighbour_is_asked_for_and_answered(seen: Seen) -> None:
    host = Host6(group=None)
    assert host.udp6(b"waits", THEM)[0] == 0
    seen.add(host.output())
    question = S.ICMPv6ND_NS(tgt=ME) / S.ICMPv6NDOptSrcLLAddr(lladdr=PEER)
    host.take(frame6(question, dst=solicited(ME), hlim=255))
    left = host.output()
    (datagram,) = (frame for frame in left if S.UDP in frame)
    assert datagram.dst == PEER, "the question told who asks"
    seen.add([frame for frame in left if S.UDP not in frame])
    asked, answered = seen.read()
    assert ends(asked) == (mac_of(solicited(THEM)), ME, solicited(THEM), 255)
    assert asked["icmpv6"]["icmpv6.nd.ns.target_address"] == THEM
    assert inside(asked, "icmpv6.opt.src_linkaddr") == [MAC]
    assert ends(answered) == (PEER, ME, THEM, 255)
    assert answered["icmpv6"]["icmpv6.nd.na.target_address"] == ME
    assert inside(answered, "icmpv6.opt.target_linkaddr") == [MAC]


def test_routers_are_asked_for(seen: Seen) -> None:
    host = Host6(addresses=(f"{LOCAL}/64",), group=None, flags=lib.XDS_HOST_ROUTERS)
    seen.run(host, 60 * SECOND)
    packets = seen.read()
    assert len(packets) == 3
    for one in packets:
        assert ends(one) == (mac_of(OTHERS), LOCAL, OTHERS, 255)
        assert one["icmpv6"]["icmpv6.type"] == "133"
        assert inside(one, "icmpv6.opt.src_linkaddr") == [MAC]


def records(layers: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(record type, group, number of sources) of a report of version 2."""
    return list(
        zip(
            inside(layers, "icmpv6.mldr.mar.record_type"),
            inside(layers, "icmpv6.mldr.mar.multicast_address"),
            inside(layers, "icmpv6.mldr.mar.nb_sources"),
            strict=True,
        )
    )


def test_groups_are_reported_when_they_are_joined_asked_for_and_left(seen: Seen) -> None:
    host = Host6(addresses=(f"{LOCAL}/64",), group=GROUP, flags=lib.XDS_HOST_REPORTS)
    seen.run(host, 60 * SECOND)
    joined = len(seen.frames)
    head = S.IPv6ExtHdrHopByHop(options=[S.RouterAlert()])
    query = frame6(head, S.ICMPv6MLQuery2(mladdr="::", mrd=1000), src=ROUTER, dst=ALL, hlim=1)
    host.take(query, 60 * SECOND)
    seen.run(host, 120 * SECOND)
    asked = len(seen.frames)
    assert lib.xds_host_leave6(host.h, raw(GROUP)) == 0
    seen.run(host, 180 * SECOND)
    packets = seen.read()
    for one in packets:
        assert ends(one) == (mac_of(V2), LOCAL, V2, 1)
        assert one["icmpv6"]["icmpv6.type"] == "143"
        assert inside(one, "ipv6.opt.router_alert") == ["0"], "MLD's"
    said = [record for one in packets for record in records(one)]
    mine = solicited(LOCAL)
    assert sorted(said[:joined]) == sorted([("4", GROUP, "0"), ("4", mine, "0")] * 2)
    assert sorted(said[joined:asked]) == sorted([("2", GROUP, "0"), ("2", mine, "0")])
    assert said[asked:] == [("3", GROUP, "0")] * 2


def test_an_older_querier_gets_older_reports(seen: Seen) -> None:
    host = Host6(addresses=(f"{LOCAL}/64",), group=GROUP, flags=lib.XDS_HOST_REPORTS)
    Seen.run(Seen(seen.path.parent), host, 60 * SECOND)
    head = S.IPv6ExtHdrHopByHop(options=[S.RouterAlert()])
    query = frame6(head, S.ICMPv6MLQuery(mladdr="::", mrd=1000), src=ROUTER, dst=ALL, hlim=1)
    host.take(query, 60 * SECOND)
    seen.run(host, 70 * SECOND)
    assert lib.xds_host_leave6(host.h, raw(GROUP)) == 0
    seen.run(host, 90 * SECOND)
    said = [
        (one["icmpv6"]["icmpv6.type"], one["icmpv6"]["icmpv6.mld.multicast_address"], ends(one)[2])
        for one in seen.read()
    ]
    mine = solicited(LOCAL)
    assert sorted(said[:2]) == sorted([("131", GROUP, GROUP), ("131", mine, mine)])
    assert said[2:] == [("132", GROUP, OTHERS)] * 2


def test_errors_and_echoes(seen: Seen) -> None:
    host = Host6(known=(THEM,), flags=EVERYTHING)
    Seen.run(Seen(seen.path.parent), host, 60 * SECOND)
    now = 60 * SECOND
    host.take(frame6(S.ICMPv6EchoRequest(id=7, seq=3, data=b"odd bytes")), now)
    nobody = frame6(S.UDP(sport=1, dport=2), S.Raw(b"x"))
    host.take(nobody, now)
    assert host.unreachable(nobody, 3, now) == 1
    host.take(frame6(S.Raw(b"x" * 9), nh=200), now)
    seen.add(host.output(now))
    said = [(one["icmpv6"]["icmpv6.type"], one["icmpv6"]["icmpv6.code"]) for one in seen.read()]
    assert said == [("129", "0"), ("1", "4"), ("4", "1")]
    assert FAR not in json.dumps(seen.read())
