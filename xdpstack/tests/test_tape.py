"""The tape against a list, byte by byte, against threads (with the race detector), and against kill -9."""

import asyncio
import faulthandler
import grp
import itertools
import os
import pwd
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from xdpstack._ffi import dtype, ffi, lib
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, RemoteProtocolError, SetupError
from xdpstack.tape import Tape, TapeInfo, TapeReader, behind, make_tape
from xdpstack.tests.huge import on_hugetlbfs

ROOT = Path(__file__).resolve().parents[2]
PAGE = os.sysconf("SC_PAGESIZE")
GOLDEN = Path(__file__).with_name("tape_golden.txt")
KILLS = int(os.environ.get("XDS_TAPE_KILLS", "40"))


class Model(RuleBasedStateMachine):
    """A tape of a page, three readers, and a list of all that was ever committed."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "tape"
        self.tape = Tape.create(self.path, PAGE)
        self.all = []
        self.readers = [self.tape.reader(str(i)) for i in range(3)]
        self.at = [0, 0, 0]

    def content(self, length):
        return (np.arange(length) * 7 + len(self.all)).astype(np.uint8).tobytes()

    @rule(
        length=st.one_of(st.integers(0, 64), st.integers(0, PAGE // 4 - 16)), kind=st.integers(0, 2**32 - 1)
    )
    def write(self, length, kind):
        data = self.content(length)
        self.tape.write(data, kind)
        self.all.append((kind, data))

    @rule(count=st.integers(1, 40))
    def write_many(self, count):
        rows = np.arange(len(self.all), len(self.all) + count, dtype=np.int64)
        self.tape.write_many(rows, 5)
        self.all += [(5, row.tobytes()) for row in rows]

    @rule(length=st.integers(0, 600), part=st.floats(0, 1))
    def claim_and_commit_less(self, length, part):
        room = self.tape.claim(length)
        with pytest.raises(LocalProtocolError):
            self.tape.claim(1)
        room[:] = 255  # nothing of it may be taken for the next record
        data = self.content(int(length * part))
        room[: len(data)] = np.frombuffer(data, np.uint8)
        self.tape.commit(9, len(data))
        self.all.append((9, data))

    @rule(length=st.integers(0, 600))
    def claim_and_give_up(self, length):
        self.tape.claim(length)[:] = 255
        self.tape.abort()

    @rule(length=st.integers(0, 600))
    def the_writer_dies_while_it_fills_a_record(self, length):
        self.tape.claim(length)[:] = 255
        self.reopen()

    @rule(stores=st.integers(0, 2), count=st.integers(1, 10))
    def the_writer_dies_between_two_stores_of_a_commit(self, stores, count):
        head, names = self.tape.pointer, ["last", "tail", "written"]
        before = {name: getattr(head, name) for name in names[stores:]}
        self.write_many(count)
        for name, value in before.items():
            setattr(head, name, value)
        self.reopen()

    def reopen(self):
        self.tape.pointer.writer_pid = 0
        self.tape.closed = True
        os.close(self.tape._fd)
        self.tape = Tape.open(self.path)

    @rule(which=st.integers(0, 2))
    def read(self, which):
        reader = self.readers[which]
        lapped = reader.pointer.front - reader._reader.cursor > PAGE
        batch = reader.read()
        assert (batch.lost > 0) <= lapped
        if lapped and not len(batch):
            return  # it goes on at the newest end: what it lost is told with the next record
        first = self.at[which] + batch.lost
        want = self.all[first:]
        got = [(r.kind, r.data.tobytes()) for r in batch]
        assert got == want
        assert [r.number for r in batch] == list(range(first + 1, len(self.all) + 1))
        self.at[which] = len(self.all)

    @rule(which=st.integers(0, 2), oldest=st.booleans())
    def attach_again(self, which, oldest):
        self.readers[which].close()
        self.readers[which] = reader = self.tape.reader("again", oldest=oldest)
        if oldest:
            self.at[which] = reader._reader.next - 1
            assert 0 <= self.at[which] <= len(self.all)
        else:
            self.at[which] = len(self.all)
            assert reader._reader.next == len(self.all) + 1

    @invariant()
    def counts(self):
        head = self.tape.pointer
        assert self.tape.written == len(self.all)
        assert self.tape.pointer.tail < 8 or self.stamp_at_the_tail() == 0
        assert lib.xds_tape_check(head, lib.XDS_TAPE_HEADER + PAGE) == 0
        assert [r["name"] for r in TapeInfo.read(self.path).readers].count("") == 0

    def stamp_at_the_tail(self):
        at = lib.XDS_TAPE_HEADER + self.tape.pointer.tail % PAGE
        return int.from_bytes(os.pread(self.tape._fd, 8, at), "little")

    def teardown(self):
        for reader in self.readers:
            reader.close()
        self.tape.close(unlink=True)
        self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# -- the layout -----------------------------------------------------------------------------------------


def golden_tape(path):
    """A small tape whose every byte is known: times and processes are set to fixed values."""
    with Tape.create(path, PAGE, dtype=[("price", "<i8"), ("qty", "<u4", (2,))]) as tape:
        rows = np.zeros(70, tape.reader().dtype)
        rows["price"], rows["qty"] = np.arange(70) * 1000, np.arange(140).reshape(70, 2)
        tape.write(rows[:1].tobytes(), 7)
        tape.write_many(rows, 0xABCD)
        tape.write_many(rows, 0xABCD)
        head, slot = tape.pointer, tape.pointer.slots[0]
        head.created_ns, head.writer_start = 1_700_000_037_000_000_000, 4242
        reader = tape.reader("golden")
        slot.start = 4243
        reader._slot = None  # it keeps the slot
        tape.finish()
    head.writer_pid, slot.pid = 1001, 1002
    return path.read_bytes()


def as_lines(data):
    rows = ((at, data[at : at + 16]) for at in range(0, len(data), 16))
    return [f"{at:05x} {row.hex(' ', 8)}" for at, row in rows if any(row)]


@pytest.mark.skipif(PAGE != 4096 or sys.byteorder != "little", reason="the golden tape has pages of 4 KiB")
def test_the_layout_is_the_golden_file_byte_by_byte(tmp_path):
    got, want = as_lines(golden_tape(tmp_path / "t")), GOLDEN.read_text().splitlines()
    wrong = next((pair for pair in zip(got, want, strict=False) if pair[0] != pair[1]), None)
    assert wrong is None
    assert len(got) == len(want)


def test_a_reader_written_from_the_page_alone_reads_the_golden_file():
    data = bytearray(8192)
    for line in GOLDEN.read_text().splitlines():
        at, _, row = line.partition(" ")
        data[int(at, 16) : int(at, 16) + 16] = bytes.fromhex(row)
    magic, version, endian, header, slots, size, part = struct.unpack_from("<8sIIIIQQ", data, 0)
    assert (magic, version, endian, header, slots) == (b"XDSTAPE1", 1, 0x01020304, 4096, 16)
    assert header + size == len(data)
    tail, last, written = struct.unpack_from("<QQQ", data, 128)
    (front,) = struct.unpack_from("<Q", data, 256)
    assert front % part == 0
    text = data[1024:2048].rstrip(b"\0")
    assert text == b'[["price", "<i8"], ["qty", "<u4", [2]]]'
    marks = struct.unpack_from("<64Q", data, 512)
    cursor, numbers = min(m for m in marks if front - size < m < tail), []
    while cursor < tail:
        record = bytes(data[header + (cursor + i) % size] for i in range(32))  # in the second lap
        stamp, length, kind, price, one, two = struct.unpack("<QIIqII", record)
        numbers.append(stamp)
        assert (length, kind) == (16, 0xABCD)
        row = (stamp - 2) % 70
        assert (price, one, two) == (row * 1000, 2 * row, 2 * row + 1)
        at, cursor = cursor, cursor + 32
    assert numbers == list(range(numbers[0], 142))
    assert (at, numbers[-1]) == (last, written)
    assert not any(data[header + (tail + i) % size] for i in range(8))
    pid, start, at, number = struct.unpack_from("<I4xQQQ", data, 2048)
    assert (pid, start, at, number) == (1002, 4243, tail, written + 1)


def test_what_is_written_often_has_cache_lines_of_its_own():
    offsets = [ffi.offsetof("struct xds_tape", n) for n in ("tail", "front", "sleep", "marks", "slots")]
    assert all(at % 128 == 0 for at in offsets)
    assert all(b - a >= 128 for a, b in itertools.pairwise(offsets))
    assert ffi.sizeof("struct xds_tape_slot") == 128


def test_the_second_mapping_is_the_same_memory():
    tape = Tape(PAGE)
    both = np.frombuffer(ffi.buffer(tape._writer.data, 2 * PAGE), np.uint8)
    both[:PAGE] = np.arange(PAGE) % 251
    assert np.array_equal(both[:PAGE], both[PAGE:])


# -- promises -------------------------------------------------------------------------------------------


def test_a_lapped_reader_is_told_how_many_it_lost_and_the_others_lose_nothing():
    tape = Tape(1 << 16, dtype="<i8")
    slow, quick = tape.reader("slow"), tape.reader("quick")
    got = []
    for start in range(0, 100_000, 500):
        tape.write_many(np.arange(start, start + 500))
        got.append(quick.read().array().copy())
    assert np.array_equal(np.concatenate(got), np.arange(100_000))
    assert (quick.lost, quick.laps) == (0, 0)
    batch = slow.read()
    rest = batch.array()
    assert batch.lost == slow.lost == 100_000 - len(rest)
    assert slow.laps == 1
    assert len(rest) > (1 << 16) // 24 // 2  # it went back as far as is safe
    assert np.array_equal(rest, np.arange(100_000 - len(rest), 100_000))


def test_a_batch_is_one_view_without_a_copy():
    form = dtype("struct xds_update")
    tape = Tape(dtype=form)
    reader = tape.reader()
    rows = np.zeros(64, form)
    rows["price"] = np.arange(64)
    tape.write_many(rows)
    updates = reader.read().array()
    assert updates["price"].tolist() == list(range(64))
    assert np.shares_memory(updates, reader._room)


def test_rows_are_what_a_read_gives_as_an_array():
    tape = Tape(1 << 14, dtype="<i8")
    reader = tape.reader()
    assert reader.rows().tolist() == []
    tape.write_many(np.arange(100))
    rows = reader.rows()
    assert rows.tolist() == list(range(100))
    assert np.shares_memory(rows, reader._room)
    tape.write_many(np.arange(5000))
    assert reader.rows().tolist() == list(range(reader.lost, 5000))  # lapped: the rest of it
    assert reader.lost == reader.read().lost > 0
    tape.finish()
    with pytest.raises(EOFError):
        reader.rows()
    reader.close()
    for read in (reader.rows, reader.read):
        with pytest.raises(LocalProtocolError, match="is closed"):
            read()


def test_who_asks_for_rows_that_a_tape_has_not_loses_no_record():
    tape = Tape(PAGE)
    reader = tape.reader()
    tape.write(b"1234")
    with pytest.raises(LocalProtocolError, match="no dtype"):
        reader.rows()
    assert [bytes(record.data) for record in reader.read()] == [b"1234"]


def test_rows_of_one_count_are_one_view_of_what_was_read_last():
    tape = Tape(1 << 16, dtype="<i8")
    reader = tape.reader()
    for first in (0, 1000, 2000):
        for count in (64, 3, 64):
            tape.write_many(np.arange(first, first + count))
            rows = reader.rows()
            assert rows.tolist() == list(range(first, first + count))
        tape.write_many(np.arange(first, first + 3))
        assert reader.read().array().tolist() == rows[:3].tolist() == [first, first + 1, first + 2]
    assert len(reader.rows()) == 0


def test_a_record_of_another_length_than_the_tape_declares_is_not_believed():
    tape = Tape(PAGE, dtype="<i8")
    reader = tape.reader()
    tape.write(b"12345678")
    ffi.buffer(tape._writer.data + 8, 4)[:] = struct.pack("<I", 4)
    with pytest.raises(RemoteProtocolError):
        reader.rows()


def test_records_that_differ_are_no_array():
    tape = Tape(PAGE)
    reader = tape.reader()
    tape.write(b"12345678")
    tape.write(b"1234")
    batch = reader.read()
    with pytest.raises(LocalProtocolError, match="several lengths"):
        batch.array("<i8")
    with pytest.raises(LocalProtocolError, match="name one"):
        batch.array()
    tape.write(b"1234")
    with pytest.raises(LocalProtocolError, match="4 bytes"):
        reader.read().array("<i8")
    assert len(reader.read().array("<i8")) == 0


def test_a_record_is_at_most_a_quarter_and_of_the_declared_length():
    tape = Tape(PAGE)
    tape.write(b"x" * (PAGE // 4 - 16))
    with pytest.raises(CapacityError, match="a quarter"):
        tape.write(b"x" * (PAGE // 4 - 15))
    with pytest.raises(CapacityError):
        tape.write_many(np.zeros(2, f"V{PAGE // 4}"))
    fixed = Tape(PAGE, dtype="<i8")
    for data in (b"1234", b"123456789"):
        with pytest.raises(CapacityError, match="records of 8 bytes"):
            fixed.write(data)
    with pytest.raises(CapacityError):
        fixed.claim(9)
    with pytest.raises(LocalProtocolError):
        fixed.commit(0, 8)
    fixed.claim(8)
    fixed.abort()
    fixed.claim(8)[:] = 1
    fixed.commit()
    assert fixed.written == 1


def test_the_end_comes_after_the_last_record():
    tape = Tape(PAGE)
    reader = tape.reader()
    tape.write(b"last", 3)
    tape.finish()
    assert [(r.kind, r.data.tobytes()) for r in reader.read()] == [(3, b"last")]
    assert reader.wait(0)
    with pytest.raises(EOFError):
        reader.read()


def test_a_length_that_a_broken_writer_left_is_not_believed():
    for where, value in ((8, 0xFFFFFFFF), (0, 99)):  # its length, its number
        tape = Tape(PAGE)
        reader = tape.reader()
        tape.write(b"abcdefgh")
        ffi.buffer(tape._writer.data + where, 4)[:] = struct.pack("<I", value)
        with pytest.raises(RemoteProtocolError):
            reader.read()


def test_a_writer_refuses_offsets_that_contradict_each_other(tmp_path):
    Tape.create(tmp_path / "t", PAGE).close()
    with Tape.open(tmp_path / "t") as tape:
        tape.pointer.tail = 8 * PAGE
        tape.pointer.front = 8 * PAGE + 64
        tape.pointer.last = 8
    with pytest.raises(SetupError, match="contradict"):
        Tape.open(tmp_path / "t")


def test_files_that_are_no_tapes_are_refused_in_one_sentence(tmp_path):
    odd = tmp_path / "odd"
    for text, why in ((None, "No such file"), (b"x" * 100, "too short"), (b"x" * 2 * PAGE, "foreign")):
        if text:
            odd.write_bytes(text)
        for look in (Tape.open, TapeReader.open, TapeInfo.read):
            with pytest.raises(SetupError, match=why):
                look(odd)
    for bytes_ in (0, 100, 3 * PAGE):
        with pytest.raises(ConfigError, match="power of two"):
            make_tape(odd, bytes_)
        with pytest.raises(ConfigError, match="power of two"):
            Tape(bytes_)
    with pytest.raises(ConfigError, match="a quarter"):
        make_tape(tmp_path / "wide", PAGE, dtype="V2000")
    make_tape(tmp_path / "t", PAGE)
    with pytest.raises(SetupError, match="File exists"):
        make_tape(tmp_path / "t", PAGE)
    for field, value in (("version", 2), ("endian", 0x04030201), ("part", 0)):
        with Tape.open(tmp_path / "t") as tape:
            old = getattr(tape.pointer, field)
            setattr(tape.pointer, field, value)
            with pytest.raises(SetupError, match="not a tape"):
                TapeReader.open(tmp_path / "t")
            setattr(tape.pointer, field, old)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd", "t"]


def test_mode_and_owner_are_set_before_the_file_has_its_name(tmp_path):
    make_tape(tmp_path / "t", PAGE, mode=0o640)
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o640
    with pytest.raises(SetupError, match="no such user"):
        make_tape(tmp_path / "u", PAGE, owner="nobody-of-that-name")
    assert not (tmp_path / "u").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_tape_belongs_to_whom_it_is_given(tmp_path):
    make_tape(tmp_path / "t", PAGE, mode=0o640, owner="nobody", group="daemon")
    found = (tmp_path / "t").stat()
    assert (found.st_uid, found.st_gid) == (pwd.getpwnam("nobody").pw_uid, grp.getgrnam("daemon").gr_gid)
    assert stat.S_IMODE(found.st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_who_may_not_write_the_file_reads_it_unseen(tmp_path):
    tmp_path.chmod(0o755)
    path = Path(tempfile.mkdtemp(dir="/dev/shm")) / "tape"
    path.parent.chmod(0o755)
    try:
        with Tape.create(path, PAGE, mode=0o644) as tape:
            tape.write(b"seen", 1)
            pid = os.fork()
            if not pid:
                faulthandler.disable()
                signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # not a sanitizer's
                os.setuid(65534)
                reader = TapeReader.open(path, oldest=True)
                good = reader.read().array("S4").tolist() == [b"seen"] and not reader.wait(0.002)
                try:
                    reader.pointer.slots[0].pid = 1  # a write: this process ends by SIGSEGV
                finally:
                    os._exit(0 if good else 1)
            _, status = os.waitpid(pid, 0)
            assert os.WTERMSIG(status) == signal.SIGSEGV
            assert TapeInfo.read(path).readers == []
            assert tape.written == 1
    finally:
        shutil.rmtree(path.parent)


HUGE = """
import sys
import numpy as np
from pathlib import Path
from xdpstack.tape import Tape
path = Path(sys.argv[1]) / "tape"
tape = Tape.create(path, 2 << 20, huge=True)
with tape.reader() as reader:
    for i in range(100):
        tape.write_many(np.arange(1000) + i)
        assert np.array_equal(reader.read().array("<i8"), np.arange(1000) + i)
print(tape.pointer.header_bytes, reader.lost)
tape.close(unlink=True)
assert not path.exists()
"""


def test_huge_pages_are_used_where_the_path_has_them(tmp_path):
    with pytest.raises(ConfigError, match="2097152 at least"):
        make_tape(tmp_path / "t", PAGE, huge=True)
    assert on_hugetlbfs(tmp_path, HUGE).split() == [str(2 << 20), "0"]


# -- threads --------------------------------------------------------------------------------------------

PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def stress(tmp_path, *flags):
    program = tmp_path / "stress"
    sources = [ROOT / "xdpstack/tests/tape_stress.c", ROOT / "cffi_build/ground/tape.c"]
    include = ["-I", ROOT / "cffi_build", "-I", ROOT / "cffi_build/xds"]
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", *flags, *include, *sources, "-o", program]
    subprocess.run([*command, "-lpthread"], check=True, env=PLAIN)
    return program


@pytest.mark.parametrize("size", ["4096", "65536"])
def test_three_readers_see_only_whole_records_and_count_the_rest(tmp_path, size):
    done = subprocess.run(
        [stress(tmp_path), "100000", size], env=PLAIN, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.startswith("ok 100000"), done.stdout + done.stderr


def test_the_race_detector_finds_nothing_between_writer_and_readers(tmp_path):
    program = stress(tmp_path, "-fsanitize=thread", "-Wno-tsan")
    done = subprocess.run(
        ["setarch", "-R", program, "5000", "8192"], env=PLAIN, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ok 5000")


# -- processes ------------------------------------------------------------------------------------------


def content(number):
    return struct.pack("<Q", number * 0x9E3779B97F4A7C15 % 2**64) * (number % 29 + 1)


def write_for_ever(path):
    """What a child does until it is killed: records by all three ways, each made from its number alone."""
    with Tape.open(path) as tape:
        while True:
            number = tape.written + 1
            if number % 3 == 0:
                room = tape.claim(29 * 8)
                data = content(number)
                room[: len(data)] = np.frombuffer(data, np.uint8)
                tape.commit(number, len(data))
            else:
                tape.write(content(number), number)


def child(work, *args):
    pid = os.fork()
    if pid:
        return pid
    try:
        work(*args)
    finally:
        os._exit(1)  # nothing of pytest's in here


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.0005)


def test_a_writer_that_is_killed_at_any_point_leaves_nothing_torn_and_the_next_goes_on(tmp_path):
    """XDS_TAPE_KILLS=1000 in `make soak`."""
    path, seed = tmp_path / "tape", random.Random(5)
    make_tape(path, PAGE)
    seen = 0
    with TapeReader.open(path) as reader:

        def read_on():
            nonlocal seen
            batch = reader.read()
            seen += batch.lost
            for record in batch:
                seen += 1
                assert record.number == record.kind == seen
                assert record.data.tobytes() == content(seen)
            return len(batch)

        for _ in range(KILLS):
            before = seen
            pid = child(write_for_ever, path)
            try:
                until(lambda before=before: read_on() and seen > before)
                end = time.monotonic() + seed.random() * 0.01
                while time.monotonic() < end:
                    read_on()
            finally:
                kill(pid)
            assert not reader.writer_alive
            while read_on():
                pass
        with Tape.open(path) as tape:
            assert seen == tape.written
            tape.write(b"x")
        batch = reader.read()
        assert [r.number for r in batch] == [seen + 1]
        assert batch.lost == 0


def read_for_ever(path):
    reader = TapeReader.open(path, "victim")
    while True:
        reader.read()
        reader.wait(0.001)


def test_readers_that_are_killed_neither_stop_the_writer_nor_keep_their_slots(tmp_path):
    path = tmp_path / "tape"
    with Tape.create(path, PAGE) as tape, tape.reader("stays") as stays:
        seen = 0
        for turn in range(max(KILLS // 2, 20)):  # more than there are slots
            pid = child(read_for_ever, path)
            try:
                until(lambda: len(TapeInfo.read(path).readers) == 2)
                for _ in range(turn % 7):
                    tape.write(content(tape.written + 1), 1)
            finally:
                kill(pid)
            assert [r["name"] for r in TapeInfo.read(path).readers] == ["stays"]
            for record in stays.read():
                seen += 1
                assert (record.number, record.data.tobytes()) == (seen, content(seen))
        assert seen == tape.written


def test_sixteen_readers_are_seen_and_the_next_is_refused(tmp_path):
    with Tape.create(tmp_path / "t", PAGE) as tape:
        readers = [tape.reader(f"r{i}") for i in range(16)]
        tape.write(b"x" * 8)
        readers[3].read()
        lags = {r["name"]: r["lag"] for r in TapeInfo.read(tmp_path / "t").readers}
        assert lags == {f"r{i}": 0 if i == 3 else 24 for i in range(16)}
        with pytest.raises(SetupError, match="16 live readers"):
            tape.reader()
        readers[0].close()
        assert tape.reader("late").lag == 0


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    reads=st.sets(st.integers(0, 59)),
    fixed=st.booleans(),
)
def test_how_many_records_a_reader_is_behind_is_seen_from_both_sides(tmp_path_factory, sizes, reads, fixed):
    """Lapped or not: what was written and not read, lost ones too until the reader knows of them."""
    path = tmp_path_factory.mktemp("lag") / "t"
    form = np.dtype("u1,u8") if fixed else None
    with Tape.create(path, PAGE, dtype=form) as tape, tape.reader("r") as reader:
        seen = 0

        def agree(expected: int) -> None:
            (told,) = TapeInfo.read(path).readers
            assert told["lag_records"] == reader.lag_records == expected
            words = f"{expected:,} records ({reader.lag:,} bytes) behind"
            assert behind(told) == words

        for number, size in enumerate(sizes):
            tape.write(bytes(9 if fixed else size))
            agree(number + 1 - seen)
            if number in reads:
                reader.read()
                seen = number + 1
                agree(0)


def test_a_reader_that_was_lapped_and_does_not_know_where_it_is_says_so(tmp_path):
    with Tape.create(tmp_path / "t", PAGE) as tape, tape.reader() as reader:
        tape.write(b"x")
        reader._reader.next = 0
        assert reader.lag_records is None
        assert behind({"lag": reader.lag, "lag_records": reader.lag_records}) == "24 bytes behind"


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    make_tape(tmp_path / "t", PAGE)
    pid = child(write_for_ever, tmp_path / "t")
    try:
        until(lambda: TapeInfo.read(tmp_path / "t").state == "alive")
        with pytest.raises(SetupError, match=f"process {pid} is its writer"):
            Tape.open(tmp_path / "t")
    finally:
        kill(pid)
    assert TapeInfo.read(tmp_path / "t").state == "dead"
    Tape.open(tmp_path / "t").close(unlink=True)
    assert list(tmp_path.iterdir()) == []


def cpp_reader(folder):
    compiler = ["g++"] if shutil.which("g++") else ["clang", "-x", "c++"]
    source = ROOT / "xdpstack/tests/tape_reader.cc"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "cffi_build/xds"]
    subprocess.run([*compiler, *flags, source, "-o", folder / "reader"], check=True, env=PLAIN)
    return folder / "reader"


def test_a_cpp_program_reads_with_nothing_but_the_headers(tmp_path):
    cpp_reader(tmp_path)
    with Tape.create(tmp_path / "t", 1 << 16) as tape:
        tape.write(b"before", 1)
        program = subprocess.Popen(
            [tmp_path / "reader", tmp_path / "t"], stdout=subprocess.PIPE, text=True, env=PLAIN
        )
        try:
            assert program.stdout.readline() == "ready\n"
            assert [(r["name"], r["pid"]) for r in TapeInfo.read(tmp_path / "t").readers] == [
                ("c++", program.pid)
            ]
            for number in range(2, 200):
                tape.write(f"record {number}".encode(), number)
            tape.finish()
            out = program.stdout.read()  # not communicate(): what readline() read ahead would be lost
            program.wait(60)
        finally:
            program.kill()
            program.wait()
        assert program.returncode == 0
        lines = out.splitlines()
        assert lines[0] == "1 1 before"
        assert lines[-1] == "199 199 record 199"
        assert len(lines) == 199
        assert TapeInfo.read(tmp_path / "t").readers == []


# -- waiting --------------------------------------------------------------------------------------------


def test_a_sleeping_reader_is_woken_by_the_next_record():
    tape = Tape(PAGE)
    reader = tape.reader()
    assert not reader.wait(0.01)
    assert tape.pointer.sleep == 1
    tape.write(b"x")
    assert tape.pointer.sleep == 0  # the writer saw it and woke all
    assert reader.wait(0)


async def collect(reader, count, busy):
    got = []
    async for batch in reader.batches(busy=busy):
        got += [r.number for r in batch]
        if len(got) >= count:
            break
    return got


@pytest.mark.parametrize("busy", [False, True])
def test_asyncio_gets_every_batch_asleep_or_busy(tmp_path, busy):
    async def both():
        with Tape.create(tmp_path / "t", 1 << 16) as tape:
            readers = [tape.reader(str(i)) for i in range(3)]
            tasks = [asyncio.ensure_future(collect(r, 10**9, busy)) for r in readers]
            for i in range(50):
                tape.write(str(i).encode())
                await asyncio.sleep(0.001 * (i % 3))
            tape.finish()
            return await asyncio.wait_for(asyncio.gather(*tasks), 60)

    assert asyncio.run(both()) == [list(range(1, 51))] * 3


def test_asyncio_tells_that_the_writer_died_and_that_there_is_another(tmp_path):
    path, heard = tmp_path / "t", []
    make_tape(path, PAGE)
    first = child(write_for_ever, path)

    async def follow():
        reader = TapeReader.open(path, "follows")
        until(lambda: reader.writer_alive)
        kill(first)
        started = time.monotonic()
        async for batch in reader.batches(on_writer=heard.append):
            if heard:
                break
            if time.monotonic() - started > 30:
                break
            assert len(batch)
        return time.monotonic() - started

    async def main():
        task = asyncio.ensure_future(follow())
        end = time.monotonic() + 30
        while heard != [False] and time.monotonic() < end:
            await asyncio.sleep(0.01)
        tape = Tape.open(path)
        while heard != [False, True] and time.monotonic() < end:
            await asyncio.sleep(0.01)
        tape.write(b"again")
        await asyncio.wait_for(task, 30)
        tape.close()

    asyncio.run(main())
    assert heard == [False, True]
