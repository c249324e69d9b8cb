"""A ring's two sides as processes: kill -9 at any point, a reader in C++, asyncio, huge pages."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import struct
import subprocess
import time

import numpy as np
import pytest

from xdpstack import shm, waking
from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError, SetupError
from xdpstack.ring import Ring
from xdpstack.tape import Tape
from xdpstack.tests import test_tape
from xdpstack.tests.huge import on_hugetlbfs
from xdpstack.tests.test_ring import GOLDEN, PAGE, PLAIN, ROOT
from xdpstack.tests.test_tape import child, kill, until

KILLS = int(os.environ.get("XDS_RING_KILLS", "40"))


def content(number):
    return struct.pack("<Q", number * 0x9E3779B97F4A7C15 % 2**64) * (number % 29 + 1)


def put(ring, number):
    """One record, made from its number alone, by either way; False when there is no room."""
    data = content(number)
    if number % 2:
        return ring.write(number, data)
    room = ring.claim(29 * 8)
    if room is None:
        return False
    room[: len(data)] = np.frombuffer(data, np.uint8)
    ring.commit(number, len(data))
    return True


def write_for_ever(path):
    with Ring.open(path, "writer") as ring:
        while True:
            if not put(ring, ring.stats["written"] + 1):
                time.sleep(0.0001)


def read_for_ever(path):
    """Ends with 1 (see ``child``) when a record is not what it must be."""
    with Ring.open(path) as ring:
        last = 0
        while True:
            for record in ring.read(7):
                assert last in (0, record.kind - 1)
                assert record.data.tobytes() == content(record.kind)
                last = record.kind
            if last % 3:
                ring.release()
            ring.wait(0.001)


# -- kills ----------------------------------------------------------------------------------------------


def test_a_writer_that_is_killed_at_any_point_leaves_nothing_torn_and_the_next_goes_on(tmp_path):
    """XDS_RING_KILLS=1000 in `make soak`."""
    path, dice, seen = tmp_path / "ring", random.Random(5), 0
    Ring.create(path, PAGE).close()
    with Ring.open(path) as reader:

        def read_on():
            nonlocal seen
            records = reader.read()
            for record in records:
                seen += 1
                assert record.kind == seen
                assert record.data.tobytes() == content(seen)
            reader.release()
            return len(records)

        for _ in range(KILLS):
            before = seen
            pid = child(write_for_ever, path)
            try:
                until(lambda before=before: read_on() and seen > before, 60.0)
                end = time.monotonic() + dice.random() * 0.01
                while time.monotonic() < end:
                    read_on()
            finally:
                kill(pid)
            assert not reader.writer_alive
            while read_on():
                pass
        with Ring.open(path, "writer") as writer:
            assert writer.stats["written"] == seen
            assert put(writer, seen + 1)
        assert [record.kind for record in reader.read()] == [seen + 1]


def test_a_reader_that_is_killed_at_any_point_loses_nothing_and_stops_nobody(tmp_path):
    path, dice, number, oldest = tmp_path / "ring", random.Random(6), 0, 1
    with Ring.create(path, PAGE) as writer:

        def write_on():
            nonlocal number
            if put(writer, number + 1):
                number += 1
            return number

        for _ in range(KILLS):
            before = writer.pointer.head
            pid = child(read_for_ever, path)
            try:
                until(lambda before=before: write_on() and writer.pointer.head > before, 60.0)
                end = time.monotonic() + dice.random() * 0.01
                while time.monotonic() < end:
                    write_on()
            finally:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status), "the reader found a record that it should not have"
            assert not writer.reader_alive
            write_on()
            with Ring.open(path) as reader:  # what it had not given back comes again
                kinds = [record.kind for record in reader.read()]
                assert kinds == list(range(kinds[0], kinds[0] + len(kinds)))
                assert oldest <= kinds[0] <= number
                oldest = kinds[0]
        with Ring.open(path) as reader:
            rest = []
            while records := reader.read():
                rest += [record.kind for record in records]
                reader.release()
            assert rest == list(range(oldest, number + 1))


@pytest.mark.parametrize("stores", range(4))
def test_a_commit_that_was_cut_between_two_stores_is_whole_or_never_was(tmp_path, stores):
    """The stores of a commit: number and tail of a note, tail, written. Undo all but so many of the first."""
    path = tmp_path / "ring"
    with Ring.create(path, PAGE) as writer, Ring.open(path) as reader:
        for number in range(1, 8):
            assert put(writer, number)
        head, note = writer.pointer, writer.pointer.noted[0]
        before = (note.number, note.tail, head.tail, head.written)
        assert put(writer, 8)
        if stores < 1:
            note.number = before[0]
        if stores < 2:
            note.tail = before[1]
        if stores < 3:
            head.tail = before[2]
        head.written = before[3]
        writer.attach_writer()
        count = 8 if stores == 3 else 7
        assert writer.stats["written"] == count
        assert put(writer, count + 1)
        assert [record.kind for record in reader.read()] == list(range(1, count + 2))


# -- other readers --------------------------------------------------------------------------------------


def cpp_reader(folder):
    compiler = ["g++"] if shutil.which("g++") else ["clang", "-x", "c++"]
    source = ROOT / "xdpstack/tests/ring_reader.cc"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "cffi_build/xds"]
    subprocess.run([*compiler, *flags, source, "-o", folder / "reader"], check=True, env=PLAIN)
    return folder / "reader"


def put_words(side, number):
    """A record that a reader in C++ prints, into a ring or onto a tape."""
    data = f"record {number}".encode()
    if isinstance(side, Tape):
        side.write(data, number)
    else:
        assert side.write(number, data)


def writer_of(path):
    return Tape.open(path) if path.name == "tape" else Ring.open(path, "writer")


def write_and_wait(path):
    with writer_of(path) as side:
        for number in range(1, 51):
            put_words(side, number)
        while True:
            time.sleep(1.0)


@pytest.mark.parametrize("kind", ["ring", "tape"])
def test_a_cpp_program_is_told_that_its_writer_died_and_goes_on_with_the_next(tmp_path, kind):
    path = tmp_path / kind
    (Ring if kind == "ring" else Tape).create(path, 1 << 16).close()
    program = cpp_reader(tmp_path) if kind == "ring" else test_tape.cpp_reader(tmp_path)
    wanted = [f"{n} {n} record {n}\n" if kind == "tape" else f"{n} record {n}\n" for n in range(52)]
    writer, reader = child(write_and_wait, path), None
    try:
        until(lambda: shm.look(path)["state"] == "alive", 60.0)
        reader = subprocess.Popen([program, path, "follow"], stdout=subprocess.PIPE, text=True, env=PLAIN)
        assert [reader.stdout.readline() for _ in range(51)] == ["ready\n", *wanted[1:51]]
        kill(writer)
        writer = 0
        assert reader.stdout.readline() == "gone\n"
        with writer_of(path) as side:
            assert reader.stdout.readline() == "back\n"
            put_words(side, 51)
            side.finish()
            assert reader.stdout.read() == wanted[51]
        assert reader.wait(60) == 0
    finally:
        if writer:
            kill(writer)
        if reader:
            reader.kill()
            reader.wait()
            reader.stdout.close()


def test_a_cpp_program_reads_with_nothing_but_the_headers(tmp_path):
    cpp_reader(tmp_path)
    with Ring.create(tmp_path / "r", 1 << 16) as ring:
        assert ring.write(1, b"before")
        program = subprocess.Popen(
            [tmp_path / "reader", tmp_path / "r"], stdout=subprocess.PIPE, text=True, env=PLAIN
        )
        try:
            assert program.stdout.readline() == "ready\n"
            assert ring.reader_alive
            with pytest.raises(SetupError, match=f"process {program.pid} is its reader"):
                Ring.open(tmp_path / "r")
            second = subprocess.run(
                [tmp_path / "reader", tmp_path / "r"], capture_output=True, text=True, timeout=60, env=PLAIN
            )
            assert second.stderr == "open: -16\n"  # EBUSY
            for number in range(2, 200):
                assert ring.write(number, f"record {number}".encode())
            ring.finish()
            out = program.stdout.read()  # not communicate(): what readline() read ahead would be lost
            program.wait(60)
        finally:
            program.kill()
            program.wait()
        assert program.returncode == 0
        assert out.splitlines() == ["1 before", *(f"{n} record {n}" for n in range(2, 200))]
        assert not ring.reader_alive
        for length in (100, 2 * PAGE):
            (tmp_path / "odd").write_bytes(b"x" * length)
            odd = subprocess.run(
                [tmp_path / "reader", tmp_path / "odd"], capture_output=True, text=True, timeout=60, env=PLAIN
            )
            assert odd.stderr == f"open: {lib.XDS_EFOREIGN}\n"


def test_a_reader_written_from_the_page_alone_reads_the_golden_ring():
    data = bytearray(2 * PAGE)
    for line in GOLDEN.split("\n")[1:-1]:
        at, _, row = line.partition(" ")
        data[int(at, 16) : int(at, 16) + 16] = bytes.fromhex(row)
    magic, version, header, size, closed = struct.unpack_from("<8sIIQI", data, 0)
    assert (magic, version, header, size, closed) == (b"XDSRING1", 3, 4096, 4096, 1)
    assert struct.unpack_from("<IIIQQ", data, 28) == (1001, 1002, 0x01020304, 4242, 4243)
    tail, _, claimed, written, refused = struct.unpack_from("<5Q", data, 128)
    head, _, cursor, read = struct.unpack_from("<4Q", data, 256)
    assert (claimed, written, refused, cursor, read) == (0, 2, 1, head, 1)
    assert struct.unpack_from("<QQ", data, 168 + 16 * (written % 2)) == (tail, written)
    assert data[1024:2048].rstrip(b"\0") == b'[["p", "<i8"]]'
    found = []
    while head < tail:
        length, kind = struct.unpack_from("<II", data, header + head % size)
        found.append((kind, bytes(data[header + (head + 8 + i) % size] for i in range(length))))
        head += (8 + length + 7) // 8 * 8
    assert found == [(0xABCD, b"ijklmnopq")]


# -- waiting --------------------------------------------------------------------------------------------


def test_a_sleeping_reader_is_woken_by_the_next_record():
    ring = Ring(PAGE)
    assert not ring.wait(0.01)
    assert ring.pointer.sleep == 1
    assert ring.write(1, b"x")
    assert ring.pointer.sleep == 0  # the writer saw it and woke it
    assert ring.wait(0)
    ring.read()
    assert not ring.wait(0)
    ring.finish()
    assert ring.wait(0)


@pytest.mark.parametrize("busy", [False, True])
def test_asyncio_gets_every_record_asleep_or_busy(tmp_path, busy):
    async def main():
        with Ring.create(tmp_path / "r", PAGE) as ring:
            reader, got = Ring.open(tmp_path / "r"), []

            async def collect():
                async for records in reader.batches(busy=busy):
                    got.extend((record.kind, record.data.tobytes()) for record in records)

            task = asyncio.ensure_future(collect())
            for number in range(1, 500):
                while not put(ring, number):
                    await asyncio.sleep(0.0005)
                if number % 100 == 0:
                    await asyncio.sleep(0.005)
            ring.finish()
            await asyncio.wait_for(task, 60)
            reader.close()
            return got

    assert asyncio.run(main()) == [(number, content(number)) for number in range(1, 500)]


def test_asyncio_tells_that_the_writer_died_and_that_there_is_another(tmp_path):
    path, heard, kinds = tmp_path / "r", [], []
    Ring.create(path, PAGE).close()
    first = child(write_for_ever, path)

    async def follow():
        with Ring.open(path) as reader:
            until(lambda: reader.writer_alive)
            kill(first)
            async for records in reader.batches(on_writer=heard.append):
                kinds.extend(record.kind for record in records)

    async def main():
        task = asyncio.ensure_future(follow())
        end = time.monotonic() + 60
        while heard != [False] and time.monotonic() < end:
            await asyncio.sleep(0.01)
        with Ring.open(path, "writer") as writer:
            while heard != [False, True] and time.monotonic() < end:
                await asyncio.sleep(0.01)
            assert put(writer, writer.stats["written"] + 1)
            writer.finish()
            await asyncio.wait_for(task, 60)

    asyncio.run(main())
    assert heard == [False, True]
    assert kinds == list(range(1, len(kinds) + 1))


def test_whether_the_writer_lives_is_asked_every_two_slices():
    """So a dead one is told of within a tenth of a second, whether records came before or not."""
    said, naps = [], []

    def take():
        if len(said) >= 5:
            raise EOFError
        return []

    def wait(seconds):
        time.sleep(seconds)
        naps.append(seconds)

    def alive():
        said.append(len(naps))
        return True

    async def main():
        async for _ in waking.follow(take, wait, alive):
            pass

    asyncio.run(asyncio.wait_for(main(), 60))
    assert max(naps) <= 0.05
    assert max(np.diff([0, *said])) <= 2


# -- huge pages -----------------------------------------------------------------------------------------

HUGE = """
import sys
from pathlib import Path
from xdpstack.ring import Ring
from xdpstack.tape import Tape
from xdpstack.tests import test_tape
path = Path(sys.argv[1]) / "ring"
ring = Ring.create(path, 2 << 20, huge=True)
with Ring.open(path) as reader:
    for i in range(100):
        assert ring.write(i, bytes([i]) * 100_000)
        assert [(r.kind, r.data.tobytes()) for r in reader.read()] == [(i, bytes([i]) * 100_000)]
        reader.release()
    print(reader.pages, "|", ring.pages, "|", ring.pointer.header_bytes)
ring.close(unlink=True)
assert not path.exists()
"""


def test_huge_pages_are_used_where_the_path_has_them(tmp_path):
    assert on_hugetlbfs(tmp_path, HUGE) == "2 MiB | 2 MiB | 2097152\n"


def test_a_private_ring_takes_huge_pages_where_enough_are_free_and_says_why_not():
    with Ring(2 << 20, huge=True) as ring:
        assert ring.write(1, b"x" * 1_500_000)
        assert [len(record.data) for record in ring.read()] == [1_500_000]
        if ring.pages != "2 MiB":
            assert "no huge pages: Cannot allocate memory" in ring.pages


def test_huge_pages_where_there_are_none_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(SetupError, match="no hugetlbfs of 2 MiB"):
        Ring.create(tmp_path / "r", 2 << 20, huge=True)
    with pytest.raises(ConfigError, match="2097152 at least"):
        Ring.create(tmp_path / "r", PAGE, huge=True)
    with pytest.raises(ConfigError, match="2097152 at least"):
        Ring(PAGE, huge=True)
    assert list(tmp_path.iterdir()) == []


def test_what_either_side_writes_has_cache_lines_of_its_own():
    offsets = [ffi.offsetof("struct xds_ring", name) for name in ("tail", "head", "sleep")]
    assert offsets == [128, 256, 384]
    assert ffi.sizeof("struct xds_ring") == 512
