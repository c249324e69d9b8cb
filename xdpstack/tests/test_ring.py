"""The ring against a list, against two threads (with the race detector), and between processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xdpstack._ffi import ffi, lib
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, RemoteProtocolError, SetupError
from xdpstack.ring import Ring

ROOT = Path(__file__).resolve().parents[2]
PAGE = os.sysconf("SC_PAGESIZE")


def space(length):
    return (8 + length + 7) // 8 * 8


class Model(RuleBasedStateMachine):
    """A ring of one page against a list of records and a count of free bytes."""

    def __init__(self):
        super().__init__()
        self.ring = Ring(PAGE)
        self.waiting, self.leased = [], []
        self.number = self.refused = 0
        self.claim = None

    def free(self):
        return PAGE - sum(space(len(data)) for _, data in self.waiting + self.leased)

    def content(self, length):
        self.number += 1
        return (np.arange(length) + self.number).astype(np.uint8).tobytes()

    @precondition(lambda self: self.claim is None)
    @rule(length=st.one_of(st.integers(0, 64), st.integers(0, PAGE - 8)))
    def write(self, length):
        data, fits = self.content(length), space(length) <= self.free()
        assert self.ring.write(self.number, data) is fits
        if fits:
            self.waiting.append((self.number, data))
        else:
            self.refused += 1

    @precondition(lambda self: self.claim is None)
    @rule(length=st.integers(1, 2000))
    def start(self, length):
        room = self.ring.claim(length)
        assert (room is not None) is (space(length) <= self.free())
        if room is None:
            self.refused += 1
        else:
            self.claim = room

    @precondition(lambda self: self.claim is not None)
    @rule(part=st.floats(0, 1), keep=st.booleans())
    def end(self, part, keep):
        if keep:
            data = self.content(int(len(self.claim) * part))
            self.claim[: len(data)] = np.frombuffer(data, np.uint8)
            self.ring.commit(self.number, len(data))
            self.waiting.append((self.number, data))
        else:
            self.ring.abort()
        self.claim = None

    @precondition(lambda self: self.claim is not None)
    @rule()
    def a_second_claim_is_refused(self):
        with pytest.raises(LocalProtocolError):
            self.ring.claim(1)

    @rule(cap=st.integers(1, 5))
    def read(self, cap):
        got = self.ring.read(cap)
        want, self.waiting = self.waiting[:cap], self.waiting[cap:]
        assert [(r.kind, r.data.tobytes()) for r in got] == want
        self.leased += want
        self.views = got

    @rule()
    def release(self):
        self.ring.release()
        self.leased = []

    @invariant()
    def counts(self):
        assert self.ring.used == PAGE - self.free()
        assert self.ring.stats["refused"] == self.refused
        assert lib.xds_ring_check(self.ring.pointer, lib.XDS_RING_HEADER + PAGE) == 0

    @invariant()
    def leased_records_keep_their_bytes(self):
        views = getattr(self, "views", [])
        if self.leased and views:
            assert views[-1].data.tobytes() == self.leased[-1][1]


TestModel = Model.TestCase


def test_the_second_mapping_is_the_same_memory():
    ring = Ring(PAGE)
    ring._bytes[PAGE] = 77  # the first data byte, behind the header
    assert ring._bytes[2 * PAGE] == 77
    ring._bytes[3 * PAGE - 1] = 78
    assert ring._bytes[2 * PAGE - 1] == 78


def test_offsets_lie_on_cache_lines_of_their_own():
    tail, head = ffi.offsetof("struct xds_ring", "tail"), ffi.offsetof("struct xds_ring", "head")
    assert tail % 128 == 0
    assert head % 128 == 0
    assert head - tail >= 128


def test_a_record_as_large_as_the_ring_fits_and_a_larger_one_never_does():
    ring = Ring(PAGE)
    ring.write(0, b"x" * 100)
    with ring.batch() as records:
        assert len(records) == 1
    assert ring.write(1, b"y" * (PAGE - 8))  # crosses the end of the data
    assert not ring.write(2, b"")
    with ring.batch() as records:
        assert records[0].data.tobytes() == b"y" * (PAGE - 8)
    with pytest.raises(CapacityError):
        ring.write(3, b"z" * (PAGE - 7))


def test_the_default_is_eight_mebibytes():
    assert Ring().size == 8 << 20


@pytest.mark.parametrize("size", [0, 100, PAGE - 1, 3 * PAGE])
def test_a_size_that_is_no_power_of_two_of_pages_is_refused(size, tmp_path):
    with pytest.raises(ConfigError):
        Ring(size)
    with pytest.raises(ConfigError):
        Ring.create(tmp_path / "r", size)
    assert list(tmp_path.iterdir()) == []


def test_committing_more_than_was_claimed_is_refused():
    ring = Ring(PAGE)
    with pytest.raises(LocalProtocolError):
        ring.commit(1, 0)
    ring.claim(10)
    with pytest.raises(LocalProtocolError):
        ring.commit(1, 100)
    ring.commit(1)
    assert len(ring.read()[0].data) == 10


def test_the_end_comes_after_the_last_record():
    ring = Ring(PAGE)
    ring.write(1, b"last")
    ring.finish()
    assert [r.data.tobytes() for r in ring.read()] == [b"last"]
    with pytest.raises(EOFError):
        ring.read()


def test_a_length_that_a_broken_writer_left_is_not_believed():
    ring = Ring(PAGE)
    ring.write(1, b"abc")
    ring._bytes[PAGE : PAGE + 4] = 255
    with pytest.raises(RemoteProtocolError):
        ring.read()
    ring = Ring(PAGE)
    ring.pointer.tail = 10 * PAGE
    with pytest.raises(RemoteProtocolError):
        ring.read()
    assert lib.xds_ring_check(ring.pointer, lib.XDS_RING_HEADER + PAGE) == lib.XDS_EMALFORMED


GOLDEN = """
000 58 44 53 52 49 4e 47 31 03 00 00 00 00 10 00 00
010 00 10 00 00 00 00 00 00 01 00 00 00 e9 03 00 00
020 ea 03 00 00 04 03 02 01 92 10 00 00 00 00 00 00
030 93 10 00 00 00 00 00 00 00 00 00 00 00 00 00 00
080 28 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
090 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00
0a0 01 00 00 00 00 00 00 00 28 00 00 00 00 00 00 00
0b0 02 00 00 00 00 00 00 00 10 00 00 00 00 00 00 00
0c0 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
100 10 00 00 00 00 00 00 00 28 00 00 00 00 00 00 00
110 10 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00
400 5b 5b 22 70 22 2c 20 22 3c 69 38 22 5d 5d 00 00
1000 08 00 00 00 07 00 00 00 61 62 63 64 65 66 67 68
1010 09 00 00 00 cd ab 00 00 69 6a 6b 6c 6d 6e 6f 70
1020 71 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
"""


@pytest.mark.skipif(PAGE != 4096 or sys.byteorder != "little", reason="the golden ring has pages of 4 KiB")
def test_the_layout_is_the_golden_one_byte_by_byte(tmp_path):
    with Ring.create(tmp_path / "r", PAGE, dtype=[("p", "<i8")]) as ring:
        ring.write(7, b"abcdefgh")
        ring.write(0xABCD, b"ijklmnopq")
        assert not ring.write(1, bytes(PAGE - 8))
        ring.attach_reader()
        ring.read(1)
        ring.release()
        ring.finish()
        head = ring.pointer
        head.writer_start, head.reader_start = 4242, 4243
        head.writer_pid, head.reader_pid = 1001, 1002
        data = (tmp_path / "r").read_bytes()
    rows = ((at, data[at : at + 16]) for at in range(0, len(data), 16))
    assert [f"{at:03x} {row.hex(' ')}" for at, row in rows if any(row)] == GOLDEN.split("\n")[1:-1]


def test_a_ring_says_what_its_records_are_and_has_its_mode_before_its_name(tmp_path):
    with Ring.create(tmp_path / "r", PAGE, dtype=[("p", "<i8"), ("q", "<u4", (2,))], mode=0o640):
        assert (tmp_path / "r").stat().st_mode & 0o777 == 0o640
        with Ring.open(tmp_path / "r") as reader:
            assert reader.dtype == np.dtype([("p", "<i8"), ("q", "<u4", (2,))])
    assert Ring(PAGE).dtype is None
    with pytest.raises(ConfigError, match="a ring keeps 1023"):
        Ring.create(tmp_path / "s", PAGE, dtype=[(f"name{i}", "<i8") for i in range(100)])
    with pytest.raises(SetupError, match="no such user"):
        Ring.create(tmp_path / "s", PAGE, owner="nobody-of-that-name")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize(("field", "value"), [("version", 1), ("endian", 0x04030201)])
def test_a_ring_of_another_version_or_byte_order_is_refused(tmp_path, field, value):
    with Ring.create(tmp_path / "r", PAGE) as ring:
        setattr(ring.pointer, field, value)
        with pytest.raises(SetupError, match="version and byte order"):
            Ring.open(tmp_path / "r")


def test_views_stay_valid_memory_after_close():
    ring = Ring(PAGE)
    ring.write(1, b"kept")
    view = ring.read()[0].data
    ring.close()
    ring.close()
    del ring
    assert view.tobytes() == b"kept"


def test_structured_arrays_are_views_of_a_record():
    from xdpstack._ffi import dtype

    form = dtype("struct xds_update")
    ring = Ring(1 << 16)
    room = ring.claim(10 * form.itemsize).view(form)
    room["price"] = np.arange(10)
    ring.commit(7)
    updates = ring.read()[0].data.view(form)
    assert updates["price"].tolist() == list(range(10))
    assert np.shares_memory(updates, ring._bytes)


# -- two threads ----------------------------------------------------------------------------------


PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def stress(tmp_path, *flags):
    """Compile the two threads. `make asan` preloads its library, which neither gcc nor TSan bears."""
    program = tmp_path / "stress"
    sources = [ROOT / "xdpstack/tests/ring_stress.c", ROOT / "cffi_build/ground/ring.c"]
    include = ["-I", ROOT / "cffi_build", "-I", ROOT / "cffi_build/xds"]
    subprocess.run(
        ["gcc", "-std=gnu11", "-O2", "-g", *flags, *include, *sources, "-o", program, "-lpthread"],
        check=True,
        env=PLAIN,
    )
    return program


def test_two_threads_hand_over_every_record_whole_and_in_order(tmp_path):
    done = subprocess.run(
        [stress(tmp_path), "300000", "65536"], env=PLAIN, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("ok 300000"), done.stdout + done.stderr


def test_the_race_detector_finds_nothing_between_the_two_threads(tmp_path):
    program = stress(tmp_path, "-fsanitize=thread")
    done = subprocess.run(
        ["setarch", "-R", program, "20000", "4096"], env=PLAIN, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ok 20000")


# -- two processes --------------------------------------------------------------------------------

READER = """
import sys, time
from xdpstack.ring import Ring
ring = Ring.open(sys.argv[1])
want, stop = int(sys.argv[2]), int(sys.argv[3])
try:
    while want < stop:
        for record in ring.read(7):
            assert int.from_bytes(record.data.tobytes()[:8], "little") == want == record.kind, want
            want += 1
        ring.release()
except EOFError:
    pass
print(want, flush=True)
"""


def reader(path, first, stop):
    return subprocess.Popen(
        [sys.executable, "-c", READER, path, str(first), str(stop)], stdout=subprocess.PIPE, text=True
    )


def feed(ring, first, count):
    for i in range(first, first + count):
        while not ring.write(i, i.to_bytes(8, "little") * (i % 40 + 1)):
            time.sleep(0.0001)


def test_a_reader_in_another_process_restarts_without_disturbing_the_writer(tmp_path):
    path = tmp_path / "ring"
    with Ring.create(path, PAGE) as ring:
        assert ring.writer_alive
        assert not ring.reader_alive
        one = reader(path, 0, 500)
        feed(ring, 0, 500)
        at = int(one.communicate(timeout=60)[0])
        assert at >= 500
        feed(ring, 500, 5)  # nobody reads
        two = reader(path, at, 10**9)
        feed(ring, 505, 500)
        ring.finish()
        assert int(two.communicate(timeout=60)[0]) == 1005
        assert not ring.reader_alive
        ring.close(unlink=True)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_reader_is_noticed_and_what_it_had_not_released_comes_again(tmp_path):
    path = tmp_path / "ring"
    with Ring.create(path, PAGE) as ring:
        ring.write(1, b"again")
        code = "import os, sys; from xdpstack.ring import Ring; Ring.open(sys.argv[1]).read(); os._exit(0)"
        subprocess.run([sys.executable, "-c", code, path], check=True)
        assert not ring.reader_alive
        with Ring.open(path) as again:
            assert ring.reader_alive
            assert [r.data.tobytes() for r in again.read()] == [b"again"]


def test_a_side_that_a_live_process_has_is_refused(tmp_path):
    path = tmp_path / "ring"
    code = (
        "import sys; from xdpstack.ring import Ring; r = Ring.create(sys.argv[1]); print(flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        owner.stdout.readline()
        with pytest.raises(SetupError, match=str(owner.pid)):
            Ring.open(path, "writer")
        with Ring.open(path, "watcher") as watcher:
            assert watcher.writer_alive
    finally:
        owner.communicate("\n")
    with Ring.open(path, "writer") as ring:  # it is dead now
        assert ring.write(1, b"x")


def test_files_that_are_no_rings_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(SetupError, match="No such file"):
        Ring.open(tmp_path / "missing")
    odd = tmp_path / "odd"
    odd.write_bytes(b"x" * 5000)
    with pytest.raises(SetupError, match="too short"):
        Ring.open(odd)
    odd.write_bytes(b"x" * (2 * PAGE))
    with pytest.raises(SetupError, match="foreign"):
        Ring.open(odd)
    with pytest.raises(ConfigError):
        Ring.create(tmp_path / "r", PAGE) and Ring.open(tmp_path / "r", "both")
    with pytest.raises(SetupError):
        Ring.create(tmp_path / "r", PAGE)  # there is one


def test_rows_are_all_that_wait_in_place_and_end_at_another_length(tmp_path: Path) -> None:
    with Ring.create(
        tmp_path / "ring", 4096, dtype="<i8,<u4"
    ) as ring:  # 12 bytes, and 8 of head: 24 with padding
        assert len(ring.rows()) == 0
        done = 0
        for count in (1, 100, 64, 150, 3):  # round the ring more than once
            rows = np.zeros(count, ring.dtype)
            rows["f0"] = np.arange(done, done + count)
            for one in rows:
                assert ring.write(7, one.tobytes())
            found = ring.rows()
            assert found["f0"].tolist() == list(range(done, done + count))
            assert np.shares_memory(found, ring._bytes)
            assert len(ring.rows()) == 0, "given once"
            assert ring.used > 0, "until they are released"
            ring.release()
            assert ring.used == 0
            done += count
        assert ring.write(7, bytes(12))
        assert ring.write(9, b"1234")
        assert len(ring.rows()) == 1
        with pytest.raises(LocalProtocolError, match="has not 12 bytes"):
            ring.rows()
        assert ring.stats["read"] == done + 1
        assert [(record.kind, bytes(record.data)) for record in ring.read()] == [(9, b"1234")]
        ring.release()
        assert ring.stats["read"] == ring.stats["written"] == done + 2
        ring.finish()
        with pytest.raises(EOFError):
            ring.rows()
    with pytest.raises(LocalProtocolError, match="no dtype"):
        Ring(4096).rows()


def test_rows_of_a_broken_ring_are_refused(tmp_path: Path) -> None:
    with Ring.create(tmp_path / "ring", 4096, dtype="<i8") as ring:
        assert ring.write(0, bytes(8))
        ring._bytes[4096:4100] = np.frombuffer((1 << 20).to_bytes(4, "little"), np.uint8)
        with pytest.raises(RemoteProtocolError):
            ring.rows()
