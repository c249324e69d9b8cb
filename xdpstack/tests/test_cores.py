"""`make cores`: the pure layers alone, and a C program that drives them with its own clock and wire."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

from xdpstack._ffi import ffi, lib

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MAKEFLAGS")}
SYSTEM = re.compile(r"\b(socket|bind|sendto|recvfrom|ioctl|open64|malloc|calloc|getrandom)\b")


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, env=PLAIN, **more).stdout


@pytest.fixture(scope="module")
def cores(tmp_path_factory):
    if not (ROOT / "Makefile").exists():
        pytest.skip("a tree without its Makefile")
    build = tmp_path_factory.mktemp("cores")
    run("make", "-j2", "cores", f"BUILD={build}", "OPT=-O1", cwd=ROOT)
    return build / "cores"


def test_the_example_talks_over_a_wire_that_loses_every_third_frame(cores, tmp_path):
    example = ROOT / "tools/examples/tcp_pair.c"
    assert len(example.read_text().splitlines()) <= 100
    said = set()
    for compiler in filter(shutil.which, ("gcc", "clang")):
        program = tmp_path / compiler
        warn = ("-Wall", "-Wextra", "-Werror", "-std=c11")
        run(compiler, *warn, f"-I{cores}/include", example, cores / "libxds_cores.a", "-o", program)
        said.add(run(program))
    (line,) = said  # the same, whoever compiled it: nothing hangs on a clock or on chance
    assert re.fullmatch(r"\d+ frames sent, \d+ lost, \d+ ms: ORDER 66 AT 101\.25\n", line)


def test_cores_and_stack_ask_nothing_of_the_system(cores):
    listing = run("nm", "-A", "--undefined-only", cores / "libxds_cores.a")
    for line in listing.splitlines():
        _, member, symbol = line.split(":", 2)
        if re.match(r"(host|tcp|stack|facade|world)", member):
            assert not SYSTEM.search(symbol), line


@pytest.mark.parametrize("example", ["sock_pair", "sock_echo"])
def test_the_examples_of_sockets_are_a_hundred_lines_each_and_echo(cores, tmp_path, example):
    source = ROOT / f"tools/examples/{example}.c"
    assert len(source.read_text().splitlines()) <= 100
    for compiler in filter(shutil.which, ("gcc", "clang")):
        program = tmp_path / compiler
        warn = ("-Wall", "-Wextra", "-Werror", "-std=gnu11")
        run(compiler, *warn, f"-I{cores}/include", source, cores / "libxds_cores.a", "-o", program)
        if example == "sock_pair":  # the other one is behind a TAP device: test_facade_linux.py
            said = run(program)
            assert said == "connect: Operation now in progress; 18 bytes came back: order 66 at 101.25\n"


def world(**changes):
    cfg = ffi.new("struct xds_world_config *")
    cfg.host.mac, cfg.stack.secret, cfg.address = b"\2\0\0\0\0\1", b"k" * 16, bytes([10, 0, 0, 1])
    for name, value in changes.items():
        *path, last = name.split("__")
        setattr(reduce(getattr, path, cfg), last, value)
    return cfg


def test_a_world_is_one_block_that_holds_the_sockets_of_its_stack():
    """The size was computed before there was a stack: a guard behind the block stays as it is."""
    for connections, sockets in ((0, 0), (1, 1), (3, 64), (1000, 10)):
        cfg = world(stack__connections=connections, socks__sockets=sockets, socks__datagram=1)
        size = lib.xds_world_size(cfg)
        assert size % 64 == 0
        block = np.full(size + 128, 0xA5, np.uint8)
        at = -block.ctypes.data % 64
        n = lib.xds_world_init(ffi.cast("void *", block.ctypes.data + at), cfg)
        made = [lib.xds_socket(n, socket.AF_INET, socket.SOCK_STREAM, 0) for _ in range(sockets or 64)]
        assert made == list(range(sockets or 64))
        assert lib.xds_socket(n, socket.AF_INET, socket.SOCK_STREAM, 0) < 0
        assert (block[at + size :] == 0xA5).all()
        assert lib.xds_host_add_route(lib.xds_socks_host(n), 0, 0, 0x0200000A, 0, 0) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"prefix": 33},
        {"stack__secret": bytes(16)},
        {"stack__send_bytes": 1000},
        {"socks__sockets": 1 << 20},
        {"host__vlan": 4095},
        {"address": bytes([224, 0, 0, 1])},
    ],
)
def test_a_world_that_cannot_be_is_none(changes):
    cfg = world(**changes)
    size = lib.xds_world_size(cfg)
    block = np.zeros((size or 64) + 64, np.uint8)
    at = block.ctypes.data + -block.ctypes.data % 64
    assert lib.xds_world_init(ffi.cast("void *", at), cfg) == ffi.NULL
