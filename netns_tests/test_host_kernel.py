"""cores/host against Linux: the same addresses and routes, and Linux as the peer across a veth."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import random
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

import xdpstack
from xdpstack._ffi import ffi, lib
from xdpstack.lab import Lab, Namespace
from xdpstack.tests.host_driver import Host, mapped, raw_ip, raw_mac, scapy

Ether, ARP = scapy.Ether, scapy.ARP
OURS, KERNEL = "10.77.0.9", "10.77.0.1"
PATIENCE = 30.0


class Wired:
    """A host core on a packet socket: an address of its own, of which the kernel there knows nothing."""

    def __init__(self, namespace: Namespace, name: str, **settings) -> None:
        with namespace.enter():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind((name, 0))
        self.last = b""
        self.mac = namespace.link(name).get("address")
        self.host = Host(addresses=(f"{OURS}/24",), gateway=raw_ip(KERNEL), **settings)
        lib.xds_host_set_mac(self.host.h, raw_mac(self.mac))

    def run(
        self, done: Callable[[], bool], packet: Callable[[int, object], None] = lambda code, what: None
    ) -> None:
        """Frames in, answers out, until done() holds; each outcome to ``packet``."""
        until = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < until, f"nothing came of it: {self.host.reasons()}"
            now = time.time_ns()
            for frame in self.host.tick(now):
                self.socket.send(bytes(frame))
            if not select.select([self.socket], [], [], 0.02)[0]:
                continue
            data, (_, _, kind, *_) = self.socket.recvfrom(65536)
            self.last = data
            if kind != socket.PACKET_OUTGOING:
                packet(*self.host.input(data, now))


@pytest.fixture
def wired(make_lab) -> Iterator[Callable[..., tuple[Wired, Namespace]]]:
    with contextlib.ExitStack() as stack:

        def make(offloads: bool = False, **settings) -> tuple[Wired, Namespace]:
            lab: Lab = make_lab()
            peer, ours = lab.namespace("peer"), lab.namespace("ours")
            lab.veth(peer, "p0", f"{KERNEL}/24", ours, "o0", "10.99.0.1/24")
            if offloads:
                peer.set_offloads("p0", True)
            w = Wired(ours, "o0", **settings)
            stack.callback(w.socket.close)
            return w, peer

        yield make


OWN = ["10.0.0.1/24", "10.0.0.9/24", "10.1.0.1/16", "10.1.2.1/24"]
NETS = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/25", "192.0.2.0/24", "192.0.2.9/32", "192.0.2.8/29"]
TARGETS = ["10.0.0.2", "10.0.0.200", "10.1.2.3", "10.1.9.9", "10.9.9.9", "8.8.8.8"]
TARGETS += ["192.0.2.9", "192.0.2.10", "192.0.2.77"]
VIAS = ("10.0.0.254", "10.1.0.254", "10.1.2.254")


def kernels_way(route, dst: str) -> tuple[str, str] | None:
    try:
        (answer,) = route.route("get", dst=dst)
    except Exception as error:
        if getattr(error, "code", None) in (101, 113):  # ENETUNREACH, EHOSTUNREACH
            return None
        raise
    return answer.get("gateway") or dst, answer.get("prefsrc")


def our_way(h: Host, dst: str) -> tuple[str, str] | None:
    """A neighbour for every hop, each with a MAC that says who it is."""
    code, frame, source = h.ip(b"x", dst)
    if code == lib.XDS_EFOREIGN:
        return None
    assert code > 0, (dst, code)
    return str(ipaddress.IPv4Address(bytes.fromhex(frame.dst.replace(":", ""))[2:])), str(
        ipaddress.IPv4Address(source[12:])
    )


@pytest.mark.parametrize("seed", range(8))
def test_ways_and_sources_are_the_kernels(make_lab, seed):
    chance = random.Random(seed)
    own = chance.sample(OWN, chance.randint(1, len(OWN)))
    lab = make_lab()
    far, near = lab.namespace("far"), lab.namespace("near")
    lab.veth(far, "f0", None, near, "n0", None)
    h = Host(addresses=own, gateway=0, neighbours=64)
    nets = [ipaddress.IPv4Interface(o).network for o in own]
    vias = [
        via
        for via in ("10.0.0.254", "10.1.0.254", "10.1.2.254")
        if any(ipaddress.ip_address(via) in n for n in nets)
    ]
    with near.netlink() as route:
        index = route.link_lookup(ifname="n0")[0]
        for address in own:
            ip, _, prefix = address.partition("/")
            route.addr("add", index=index, address=ip, prefixlen=int(prefix))
        for _ in range(chance.randint(0, 8)):
            net, via, metric = chance.choice(NETS), chance.choice([None, *vias]), chance.randint(1, 3)
            source = chance.choice([None, *(o.split("/")[0] for o in own)])
            dst, _, bits = net.partition("/")
            code = lib.xds_host_add_route(
                h.h, raw_ip(dst), int(bits), raw_ip(via or "0.0.0.0"), raw_ip(source or "0.0.0.0"), metric
            )
            more = ({"gateway": via} if via else {"scope": 253}) | ({"prefsrc": source} if source else {})
            if code == lib.XDS_ESTATE:
                continue
            assert code == 0
            route.route("add", dst=net, oif=index, priority=metric, **more)
        seen = []
        for dst in TARGETS:
            want = kernels_way(route, dst)
            seen.append((dst, want))
            for hop in {dst, *vias} if want and want[0] == dst else vias:
                assert (
                    lib.xds_host_add_neighbour(
                        h.h, raw_ip(hop), b"\x02\x00" + ipaddress.ip_address(hop).packed
                    )
                    == 0
                )
            assert our_way(h, dst) == want, f"to {dst} with {own}"
    assert any(want for _, want in seen)


@pytest.mark.parametrize("offloads", [False, True])
def test_linux_connects_and_our_reset_refuses_it(wired, offloads):
    """Its SYN is handed over whole; what we send back is a segment that Linux believes."""
    w, peer = wired(offloads, flags=lib.XDS_HOST_PARTIAL_CHECKSUM if offloads else 0)
    assert lib.xds_host_take(w.host.h, 6) == 0
    client = peer.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.setblocking(False)
    with client:
        assert client.connect_ex((OURS, 4242)) == errno.EINPROGRESS

        def segment(code, packet):
            if code != lib.XDS_INPUT_PACKET:
                return
            assert (packet.protocol, packet.src, packet.dst) == (6, mapped(KERNEL), mapped(OURS))
            syn = scapy.TCP(packet.data)
            assert (syn.dport, syn.flags) == (4242, "S")
            reset = scapy.TCP(sport=4242, dport=syn.sport, flags="RA", ack=syn.seq + 1, chksum=0)
            sent, frame, _ = w.host.ip(bytes(reset), KERNEL, checksum_at=16)
            assert sent > 0, "who asked for our address is known"
            w.socket.send(bytes(frame))

        w.run(lambda: bool(select.select([], [client], [], 0)[1]), segment)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


@pytest.mark.parametrize("offloads", [False, True])
def test_datagrams_that_linux_cut_come_whole(wired, offloads):
    w, peer = wired(offloads, fragments=4, flags=lib.XDS_HOST_PARTIAL_CHECKSUM if offloads else 0)
    sizes, got = [1473, 5000, 20000, 65507], []
    loads = [random.Random(size).randbytes(size) for size in sizes]
    with peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        w.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for load in loads:
            sender.sendto(load, (OURS, 4242))
            before = len(got)
            w.run(lambda n=before: len(got) > n, lambda code, d: code == 1 and got.append(d[0]))
            lib.xds_host_release(w.host.h)
    assert [len(load) for load in got] == sizes
    assert all(a == b for a, b in zip(got, loads, strict=True))
    assert w.host.stats.reassembled == len(sizes)


def test_linux_believes_that_nobody_listens(wired):
    w, peer = wired()
    with peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((OURS, 4242))
        client.send(b"is anybody there?")
        client.setblocking(False)

        def tell(code, datagram):
            if code == 1:
                assert datagram[0] == b"is anybody there?"
                data = ffi.new("uint8_t[]", w.last)
                frame = ffi.new("struct xds_frame *", {"data": data, "len": len(w.last)})
                assert lib.xds_host_unreachable(w.host.h, frame, 3, time.time_ns()) == 1

        w.run(lambda: w.host.stats.icmp_told == 1 and not lib.xds_host_pending(w.host.h), tell)
        poll = select.poll()
        poll.register(client, select.POLLERR)
        assert poll.poll(PATIENCE * 1000)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


@pytest.mark.parametrize("taken", ["10.77.0.1", "10.77.0.77"], ids=["the peer's", "another of the peer's"])
def test_an_address_that_a_kernel_has_is_not_used(lab_pair, taken):
    kernel, ours = lab_pair
    if taken != "10.77.0.1":
        kernel.run(["ip", "address", "add", f"{taken}/24", "dev", "v0"])
    mac = dict(kernel.link("v0")["attrs"])["IFLA_ADDRESS"]
    with ours.enter(), xdpstack.open("xsk:t0", address=f"{taken}/24", probe_ms=500) as node:
        with pytest.raises(OSError, match=f"address {taken} is in use by {mac}") as caught:
            node.connect("10.77.0.2", 80)
        assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError, match="in use by"):
            node.listen(80)
        assert node.engine.hosts[0].claimed(taken) == ("taken", mac)


def test_a_kernel_that_probes_for_our_address_leaves_it_and_one_that_takes_it_is_answered(lab_pair):
    kernel, ours = lab_pair
    with ours.enter(), xdpstack.open("xsk:t0", address="10.77.0.9/24") as node:
        streams = node.streams()
        host = node.engine.hosts[0]
        assert host.claimed("10.77.0.9") == ("owned", "")
        assert host.stats()["arp_probed"] == 3
        announce = Ether(src="02:00:00:00:00:99", dst="ff:ff:ff:ff:ff:ff") / ARP(
            op=1, hwsrc="02:00:00:00:00:99", psrc="10.77.0.9", pdst="10.77.0.9"
        )
        with kernel.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as raw:
            raw.bind(("v0", 0x0806))
            raw.settimeout(0.05)
            for _ in range(3):
                raw.send(bytes(announce))
            streams.wait(lambda: host.stats()["arp_conflicts"] == 3, 60, "conflicts")
            probe = Ether(src="02:00:00:00:00:99", dst="ff:ff:ff:ff:ff:ff") / ARP(
                op=1, hwsrc="02:00:00:00:00:99", psrc="0.0.0.0", pdst="10.77.0.9"
            )
            raw.send(bytes(probe))
            streams.wait(lambda: host.stats()["arp_answered"] == 1, 60, "a probe")
        assert host.stats()["arp_defended"] >= 1
        assert host.claimed("10.77.0.9") == ("owned", "02:00:00:00:00:99")


def test_a_switch_of_the_kernel_learns_our_groups_and_forgets_them(lab):
    """The bridge snoops and asks: it has what is joined, with the sources, and no more after a leave."""
    switch, ours = lab.namespace("switch"), lab.namespace("ours")
    lab.veth(switch, "v0", None, ours, "t0", None)
    try:
        switch.run(["ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "1"])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel has no bridge that snoops: {error.stderr.strip()}")
    switch.run(["ip", "address", "add", f"{KERNEL}/24", "dev", "br0"])
    asks = ["mcast_igmp_version", "3", "mcast_query_response_interval", "20", "mcast_query_interval", "100"]
    asks += ["mcast_last_member_interval", "20", "mcast_startup_query_interval", "50", "mcast_querier", "1"]
    switch.run(["ip", "link", "set", "br0", "type", "bridge", *asks])
    switch.run(["ip", "link", "set", "v0", "master", "br0"])
    switch.run(["ip", "link", "set", "br0", "up"])
    wired = Wired(ours, "t0", flags=lib.XDS_HOST_REPORTS, seed=7)
    host = wired.host

    def table() -> str:
        return str(switch.run(["bridge", "-d", "mdb", "show", "dev", "br0"]).stdout)

    with wired.socket:
        assert lib.xds_host_leave(host.h, raw_ip("233.54.12.111")) == 0  # the driver's own
        assert lib.xds_host_join(host.h, raw_ip("239.1.2.3")) == 0
        assert lib.xds_host_join_source(host.h, raw_ip("239.1.2.4"), raw_ip("192.0.2.1")) == 0
        wired.run(lambda: "239.1.2.3" in table() and "src 192.0.2.1" in table())
        wired.run(lambda: host.stats.igmp_queries >= 2 and host.stats.igmp_reports >= 8)
        assert "239.1.2.3" in table(), "answers keep it there"
        assert lib.xds_host_leave(host.h, raw_ip("239.1.2.3")) == 0
        assert lib.xds_host_leave(host.h, raw_ip("239.1.2.4")) == 0
        wired.run(lambda: "239.1.2" not in table())
        assert host.reasons().get("igmp_bad", 0) == 0
