"""The proof of quietness, on threads that are quiet and on threads that are not."""

import os
import shutil
import subprocess

import pytest

from xdpstack.errors import SetupError
from xdpstack.testing_quiet import _parse, assert_quiet, counted_allocations, system_calls

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    setbuf(stdout, 0);
    write(1, "ready\n", 6);
    for (volatile unsigned long i = 0;; i++) {
        if (i % 1000)
            continue;
        if (!strcmp(argv[1], "allocates"))
            free(malloc(100 + i % 7));
        if (!strcmp(argv[1], "calls"))
            getppid();
        if (!strcmp(argv[1], "kicks"))
            sendto(-1, 0, 0, 0, 0, 0);
    }
}
"""


@pytest.fixture
def start(tmp_path):
    """Start the program in one of its ways; it ends with the test."""
    source, program, running = tmp_path / "loop.c", tmp_path / "loop", []
    source.write_text(PROGRAM)
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(["gcc", "-O1", "-fno-builtin", "-w", "-o", program, source], check=True, env=plain)

    def begin(way, env=plain):
        process = subprocess.Popen([program, way], stdout=subprocess.PIPE, env=env)
        running.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield begin
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="there is no strace: apt install strace"
)


@needs_strace
def test_a_loop_without_system_calls_is_quiet(start):
    assert assert_quiet(start("spins"), 0.3, allowed=()) == {}


@needs_strace
def test_a_loop_that_only_kicks_is_quiet(start):
    assert assert_quiet(start("kicks"), 0.3)["sendto"] > 0


@needs_strace
def test_a_loop_with_another_system_call_is_not(start):
    with pytest.raises(AssertionError, match="getppid"):
        assert_quiet(start("calls"), 0.3)


@needs_strace
def test_a_thread_that_is_not_there_is_said_so():
    with pytest.raises(SetupError, match="attach strace"):
        system_calls(2**22 - 7, 0.1)


def test_allocations_are_counted_from_outside(start):
    with counted_allocations() as counted:
        loud, quiet = start("allocates", counted.env), start("spins", counted.env)
        counted.assert_quiet(quiet, 0.2)
        with pytest.raises(AssertionError, match="called the allocator"):
            counted.assert_quiet(loud, 0.2)


def test_the_table_of_strace_is_read_with_and_without_errors():
    table = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000012           1        10         3 sendto
 40.00    0.000008           0         5           poll
------ ----------- ----------- --------- --------- ----------------
100.00    0.000020           1        15         3 total
"""
    assert _parse(table) == {"sendto": 10, "poll": 5}
