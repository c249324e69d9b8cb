"""A lab's namespaces and links on the real kernel."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import Lab, host, pair


def test_a_datagram_crosses_the_pair_and_its_checksum_is_whole_on_the_wire(lab_pair):
    venue, trader = lab_pair
    with (
        trader.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as tap,
        trader.socket() as receiver,
    ):
        tap.bind(("t0", 0x0800))
        receiver.bind(("10.77.0.2", 5000))
        with venue.socket() as sender:
            sender.sendto(b"hello", ("10.77.0.2", 5000))
        receiver.settimeout(60)
        tap.settimeout(60)
        assert receiver.recv(100) == b"hello"
        frame = tap.recv(2000)
    udp = frame[34:]
    pseudo = frame[26:34] + bytes([0, 17]) + len(udp).to_bytes(2, "big")
    data = pseudo + udp + b"\0" * (len(udp) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


def test_offloads_are_off_unless_asked_for(make_pair):
    venue, trader = make_pair()
    assert not any(venue.offloads("v0").values())
    assert not any(trader.offloads("t0").values())
    venue, _ = make_pair(offloads=True)
    assert venue.offloads("v0")["tx-checksum-ip-generic"]
    assert venue.set_offloads("v0", False)
    assert not any(venue.offloads("v0").values())


def test_queues_mtu_and_addresses_are_as_asked(make_pair):
    _, trader = make_pair(queues=2, mtu=9000)
    link = trader.link("t0")
    assert link.get_attr("IFLA_MTU") == 9000
    assert link.get_attr("IFLA_NUM_RX_QUEUES") == 2
    assert link.get_attr("IFLA_NUM_TX_QUEUES") == 2
    described = trader.lab.links[1]
    assert described["address"] == "10.77.0.2/24"
    assert described["mac"] == link.get_attr("IFLA_ADDRESS")


def test_multicast_reaches_a_member_of_the_group(lab_pair):
    venue, trader = lab_pair
    with trader.socket() as member, venue.socket() as sender:
        member.bind(("224.0.31.11", 14320))
        request = socket.inet_aton("224.0.31.11") + socket.inet_aton("10.77.0.2")
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        member.settimeout(60)
        sender.sendto(b"tick", ("224.0.31.11", 14320))
        assert member.recv(100) == b"tick"


def test_nothing_but_our_own_frames_is_on_the_wire(lab_pair):
    venue, trader = lab_pair
    with trader.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as tap:
        tap.bind(("t0", 0x0003))
        tap.settimeout(0.3)
        with pytest.raises(TimeoutError):
            tap.recv(2000)
        with venue.socket() as sender:
            sender.sendto(b"x", ("10.77.0.2", 9))
        assert tap.recv(2000)[23] == socket.IPPROTO_UDP, "no neighbour resolution went before it"


def test_entering_is_for_one_thread_and_ends_with_the_block(lab):
    namespace = lab.namespace("a")
    outside = os.readlink("/proc/thread-self/ns/net")
    with namespace.enter():
        inside = os.readlink("/proc/thread-self/ns/net")
        assert os.readlink("/proc/self/ns/net") == inside
        assert inside == f"net:[{namespace.inode}]"
    assert os.readlink("/proc/thread-self/ns/net") == outside
    with pytest.raises(RuntimeError, match="boom"), namespace.enter():
        raise RuntimeError("boom")
    assert os.readlink("/proc/thread-self/ns/net") == outside


def test_bpffs_is_seen_from_inside(lab):
    namespace = lab.namespace("a")
    outside = os.stat("/sys/fs/bpf")
    with namespace.enter():
        inside = os.stat("/sys/fs/bpf")
    assert (inside.st_dev, inside.st_ino) == (outside.st_dev, outside.st_ino)
    assert namespace.run(["stat", "-c", "%i", "/sys/fs/bpf"]).stdout.strip() == str(outside.st_ino)


def test_a_program_and_a_forked_function_run_inside(lab_pair):
    venue, _ = lab_pair
    assert "10.77.0.1/24" in venue.run(["ip", "-o", "addr", "show", "v0"]).stdout
    reader, writer = os.pipe()
    child = venue.fork(lambda: os.write(writer, os.readlink("/proc/self/ns/net").encode()) and 7)
    assert child.wait(60) == 7
    assert os.read(reader, 100).decode() == f"net:[{venue.inode}]"
    os.close(reader)
    os.close(writer)


def test_a_forked_function_that_raises_ends_with_one_and_a_traceback(lab, capfd):
    def fail():
        raise ValueError("as told")

    assert lab.namespace("a").fork(fail).wait(60) == 1
    assert "ValueError: as told" in capfd.readouterr().err


def test_children_end_with_the_lab_even_when_they_ignore_sigterm():
    with Lab(f"t{os.getpid()}-stubborn", grace=0.2) as lab:
        namespace = lab.namespace("a")

        def stubborn():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)

        child = namespace.fork(stubborn)
        shell = namespace.popen(["sh", "-c", "sleep 61 & exec sleep 62"])
        time.sleep(0.2)
        members = host.processes_in([{"inode": namespace.inode, "cookie": namespace.cookie}], "")
        assert len(members) == 3
    assert child.returncode == -signal.SIGKILL
    assert shell.returncode is not None
    assert [host.start_time(pid) for pid in members] == [None] * 3


def test_a_name_that_is_taken_is_refused_and_the_first_lab_keeps_standing(lab):
    namespace = lab.namespace("a")
    with pytest.raises(SetupError, match=f"process {os.getpid()} holds it"):
        Lab(lab.name).start()
    assert lab.state_path.exists()
    assert namespace.sysctl("net.ipv4.conf.all.rp_filter") == "0"


@pytest.mark.parametrize("name", ["", "a/b", "../x", "x" * 64, "-x"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(ConfigError):
        Lab(name)


def test_a_link_that_cannot_be_made_says_why(lab):
    a, b = lab.namespace("a"), lab.namespace("b")
    with pytest.raises(SetupError, match="make veth"):
        lab.veth(a, "x" * 20, None, b, "t0", None)


def test_twenty_labs_leave_no_descriptors():
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        with Lab(f"t{os.getpid()}-fd{number}") as lab:
            pair(lab)
    assert len(os.listdir("/proc/self/fd")) == before
