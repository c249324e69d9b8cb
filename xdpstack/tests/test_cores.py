"""`make cores`: the pure layers alone, and a C program that drives them with its own clock and wire."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
        if re.match(r"(host|tcp|stack|facade)", member):
            assert not SYSTEM.search(symbol), line


def test_the_example_of_sockets_echoes_by_memory(cores, tmp_path):
    example = ROOT / "tools/examples/sock_echo.c"
    for compiler in filter(shutil.which, ("gcc", "clang")):
        program = tmp_path / compiler
        warn = ("-Wall", "-Wextra", "-Werror", "-std=gnu11")
        run(compiler, *warn, f"-I{cores}/include", example, cores / "libxds_cores.a", "-o", program)
        said = run(program)
        assert said == "connect: Operation now in progress; 18 bytes came back: order 66 at 101.25\n"
