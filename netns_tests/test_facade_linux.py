"""Linux as the peer of ``tools/examples/sock_echo.c``: sockets of ``xds_sock.h`` behind a TAP device."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS, THEIRS = "10.9.0.2", "10.9.0.1"
PATIENCE = 60.0

pytestmark = pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="/dev/net/tun is not there")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    archive = ROOT / "build/native/libxds.a"
    if not archive.exists():
        pytest.skip("the core was not built here: make build")
    program = tmp_path_factory.mktemp("echo") / "sock_echo"
    command = ["gcc", "-O1", "-Icffi_build", "tools/examples/sock_echo.c", archive, "-o", program]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return program


@pytest.fixture
def peer(lab, program):
    """A namespace with the kernel's side, while the program runs."""
    space = lab.namespace("kernel")
    running = space.popen([str(program), "tap0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "ready\n"
    with space.netlink() as route:
        index = route.link_lookup(ifname="tap0")[0]
        route.addr("add", index=index, address=THEIRS, prefixlen=24)
        route.link("set", index=index, state="up")
    yield space
    running.stdin.close()
    assert running.wait(PATIENCE) == 0


def opened(space):
    one = space.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.settimeout(PATIENCE)
    one.connect((OURS, 7000))
    return one


def test_linux_has_everything_back_and_in_order(peer):
    data = os.urandom(1 << 20)
    with opened(peer) as one:
        sender = threading.Thread(target=lambda: (one.sendall(data), one.shutdown(socket.SHUT_WR)))
        sender.start()
        seen, count = hashlib.sha256(), 0
        while piece := one.recv(65536):
            seen.update(piece)
            count += len(piece)
        sender.join()
    assert count == len(data)
    assert seen.digest() == hashlib.sha256(data).digest()


def test_several_at_once_and_datagrams_beside_them(peer):
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(opened(peer)) for _ in range(6)]
        udp = stack.enter_context(peer.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.settimeout(PATIENCE)
        udp.connect((OURS, 7000))
        for turn in range(20):
            udp.send(b"datagram %d" % turn)
            for i, one in enumerate(many):
                one.sendall(b"%d of %d" % (turn, i))
            assert udp.recv(100) == b"datagram %d" % turn
            for i, one in enumerate(many):
                want = b"%d of %d" % (turn, i)
                assert one.recv(100) == want


def test_ports_where_nobody_is_refuse(peer):
    one = peer.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.settimeout(PATIENCE)
    with one, pytest.raises(ConnectionRefusedError):
        one.connect((OURS, 7001))
    two = peer.socket(socket.AF_INET, socket.SOCK_DGRAM)
    two.settimeout(PATIENCE)
    two.connect((OURS, 7001))
    with two:
        two.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            two.recv(100)


def test_connections_come_and_go_in_more_than_there_are_places(peer):
    for _ in range(60):  # 16 sockets, 16 connections
        with opened(peer) as one:
            one.sendall(b"hello")
            assert one.recv(100) == b"hello"
            one.shutdown(socket.SHUT_WR)
            assert one.recv(100) == b""
