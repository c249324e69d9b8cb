"""Segments: what one process writes, another reads; dead owners are noticed; garbage is refused."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib, names
from xdpstack.errors import CapacityError, ConfigError, SetupError
from xdpstack.stats import Reader, Segment, process_start, segments, sweep


def child(code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=True
    )


def test_another_process_reads_what_this_one_writes(tmp_path):
    with Segment("eng", root=tmp_path) as segment:
        word = segment.counter("engine.turns", "turns")
        level = segment.counter("engine.gaps", "gaps", gauge=True)
        hist = segment.hist("feed.age")
        word[0], level[0] = 41, 7
        for value in range(1, 101):
            hist.record(value)
        segment.beat(123)
        code = (
            "import json, sys; from xdpstack.stats import *; print(json.dumps(Reader(sys.argv[1]).as_dict()))"
        )
        seen = json.loads(child(code, segment.path).stdout)
        assert seen["values"] == {"engine.turns": 41, "engine.gaps": 7}
        assert seen["units"] == {"engine.turns": "turns", "engine.gaps": "gaps", "feed.age": "ns"}
        assert (seen["name"], seen["pid"], seen["alive"], seen["beat_ns"]) == ("eng", os.getpid(), True, 123)
        assert seen["histograms"]["feed.age"]["p50"] == 50
        assert seen["histograms"]["feed.age"]["max"] == 100
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_values_and_entries_that_come_later(tmp_path):
    with Segment("eng", root=tmp_path) as segment:
        word = segment.counter("a", "count")
        reader = Reader(segment.path)
        assert reader.values() == {"a": 0}
        word[0] = 5
        segment.counter("b", "count")[0] = 6
        assert reader.values() == {"a": 5, "b": 6}
        assert reader.gauges() == set()
        assert "2 entries" in repr(reader)


def test_a_c_struct_becomes_entries_and_c_may_fill_it(tmp_path):
    with Segment("eng", root=tmp_path) as segment:
        words = {"reasons": names("xds_book_reason", "XDS_BOOK_")}
        block = segment.struct("book", "struct xds_books_stats", words=words, gauges={"orders", "levels"})
        block.updates, block.reasons[lib.XDS_BOOK_CROSSED], block.orders = 10, 3, 4
        reader = Reader(segment.path)
        values = reader.values()
        assert values["book.updates"] == 10
        assert values["book.reasons.crossed"] == 3
        assert "book.reasons.15" not in values  # only reasons that have a name
        assert reader.gauges() == {"book.orders", "book.levels"}


def test_a_struct_that_is_not_made_of_words_is_refused(tmp_path):
    with Segment("eng", root=tmp_path) as segment, pytest.raises(ConfigError, match="64-bit"):
        segment.struct("x", "struct xds_pool_stats")


def test_groups_start_on_cache_lines(tmp_path):
    with Segment("eng", root=tmp_path) as segment:
        words = [segment.counter(f"c{i}", "count") for i in range(5)]
        assert all(int(ffi.cast("uintptr_t", word)) % 64 == 0 for word in words)


def test_a_full_segment_says_so(tmp_path):
    with Segment("eng", root=tmp_path, entries=2, hists=0, groups=2) as segment:
        segment.counter("a", "count")
        segment.counter("b", "count")
        with pytest.raises(CapacityError):
            segment.counter("c", "count")
        with pytest.raises(CapacityError):
            segment.hist("h")
        with pytest.raises(CapacityError):
            segment.struct("d", "struct xds_link_stats")
        assert set(Reader(segment.path).values()) == {"a", "b"}


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 60])
def test_a_name_that_cannot_be_a_file_is_refused(tmp_path, name):
    with pytest.raises(ConfigError):
        Segment(name, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_counter_name_with_blanks_or_too_long_is_refused(tmp_path):
    with Segment("eng", root=tmp_path) as segment:
        for name in ["", "a b", "x" * 80, "a\x1b"]:
            with pytest.raises(CapacityError):
                segment.counter(name, "count")
        assert Reader(segment.path).values() == {}


def test_the_memory_outlives_the_file(tmp_path):
    segment = Segment("eng", root=tmp_path)
    hist = segment.hist("h")
    segment.close()
    segment.close()
    assert "closed" in repr(segment)
    del segment
    hist.record(5)
    assert len(hist) == 1


def test_a_dead_owner_is_noticed_and_swept(tmp_path):
    code = """
import os, sys
from pathlib import Path
from xdpstack.stats import Segment
segment = Segment("gone", root=Path(sys.argv[1]))
segment.counter("a", "count")[0] = 9
print(os.getpid(), flush=True)
os._exit(0)
"""
    pid = int(child(code, tmp_path).stdout)
    with Segment("here", root=tmp_path) as segment:
        found = {f.name: f for f in segments(tmp_path)}
        assert (found["gone"].state, found["gone"].pid) == ("dead", pid)
        assert str(pid) in found["gone"].reason
        assert found["here"].state == "alive"
        assert found["gone"].open().values() == {"a": 9}  # still there to be read
        assert [p.name for p in sweep(tmp_path)] == [f"xdpstack-{pid}-gone.stat"]
        assert [f.name for f in segments(tmp_path)] == ["here"]
        assert segment.path.exists()


def test_what_dead_engines_of_one_name_left_is_removed_alone(tmp_path):
    """Those of a fleet of that name are its own, too; names are not patterns."""
    code = (
        "import sys; from pathlib import Path; from xdpstack.stats import Segment\n"
        "for name in ('a.b', 'a.b.q0', 'a.b.q12', 'a.b.qx', 'aab', 'a.b2'):\n"
        "    Segment(name, root=Path(sys.argv[1]))"
    )
    child(code, tmp_path)
    with Segment("a.b", root=tmp_path) as living:
        removed = {path.name.split("-", 2)[2].removesuffix(".stat") for path in sweep(tmp_path, name="a.b")}
        assert removed == {"a.b", "a.b.q0", "a.b.q12"}
        assert living.path.exists()
        assert {found.name for found in segments(tmp_path)} == {"a.b", "a.b.qx", "aab", "a.b2"}
        assert sweep(tmp_path, name="a.b") == []


def test_a_reused_pid_is_not_the_owner(tmp_path):
    with Segment("eng", root=tmp_path) as segment:
        segment.pointer.pid_start += 1
        assert not Reader(segment.path).alive
        assert segments(tmp_path)[0].state == "dead"


def test_a_zombie_is_dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    assert process_start(process.pid) is None
    process.wait()
    assert process_start(os.getpid()) is not None


def test_files_that_are_no_segments_are_named_and_left_alone(tmp_path):
    garbage = tmp_path / f"xdpstack-{os.getpid()}-odd.stat"
    garbage.write_bytes(b"not a segment" * 100)
    (tmp_path / f"xdpstack-{os.getpid()}-empty.stat").write_bytes(b"")
    (tmp_path / "other-1-x.stat").write_bytes(b"")
    assert {f.name: f.state for f in segments(tmp_path)} == {"odd": "unreadable", "empty": "unreadable"}
    assert sweep(tmp_path) == []
    assert garbage.exists()
    with pytest.raises(SetupError, match="foreign"):
        Reader(garbage)
    with pytest.raises(SetupError, match="No such file"):
        Reader(tmp_path / "missing")


@given(data=st.data())
def test_any_damage_to_a_segment_is_refused_or_harmless(tmp_path_factory, data):
    """xds_stat_check may accept damaged bytes only where reading them stays inside the segment."""
    root = tmp_path_factory.mktemp("seg")
    with Segment("eng", root=root, entries=4, hists=1, groups=3) as segment:
        segment.counter("a", "count")
        segment.hist("h")
        whole = bytearray(segment.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 192 + 3 * 128))
        whole[at] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))]
    memory = ffi.new("uint64_t[]", len(whole) // 8 + 1)
    ffi.memmove(memory, bytes(whole), len(whole))
    count = lib.xds_stat_check(memory, len(whole))
    if count < 0:
        assert count in (lib.XDS_ETRUNC, lib.XDS_EMALFORMED, lib.XDS_EFOREIGN)
        return
    path = root / "again.stat"
    path.write_bytes(whole)
    reader = Reader(path)
    assert len(reader.entries) == count
    reader.values()
    for hist in reader.histograms().values():
        hist.summary()
    path.unlink()


# -- the command -----------------------------------------------------------------------------------


def command(*args, timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "xdpstack", "stats", *args], capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture
def engine():
    with Segment(f"test-{os.getpid()}") as segment:
        segment.counter("engine.packets", "packets")[0] = 12345
        segment.counter("engine.never", "packets")
        segment.hist("feed.age").record(777)
        yield segment


def test_the_command_shows_a_running_engine(engine):
    done = command(engine.name)
    assert done.returncode == 0, done.stderr
    assert "12,345 packets" in done.stdout
    assert "777" in done.stdout
    assert "engine.never" not in done.stdout
    assert "engine.never" in command(engine.name, "--all").stdout


def test_the_table_has_every_figure_of_a_histogram(engine):
    histogram = engine.hist("feed.many")
    for ns in [*range(1000, 2000), 50_000, 60_000]:  # two above the fence of the quartiles
        histogram.record(ns)
    lines = command(engine.name).stdout.splitlines()
    head = next(line for line in lines if "p99.99" in line)
    row = next(line for line in lines if line.split()[:1] == ["feed.many"])
    words = "count p50 p90 p95 p99 p99.9 p99.99 max mean deviation outliers unit"
    assert head.split() == words.split()
    s = histogram.summary()
    wanted = [s.count, s.p50, s.p90, s.p95, s.p99, s.p999, s.p9999, s.max]
    wanted += [round(s.mean), round(s.deviation), s.outliers]
    assert [int(cell.replace(",", "")) for cell in row.split()[1:-1]] == wanted
    assert (wanted[0], wanted[6], wanted[-1]) == (1002, 60_000, 2)


def test_the_command_prints_one_object(engine):
    shown = json.loads(command(str(os.getpid()), "--json").stdout)
    assert [e["name"] for e in shown["engines"]] == [engine.name]
    assert shown["engines"][0]["values"]["engine.packets"] == 12345
    assert shown["engines"][0]["histograms"]["feed.age"]["count"] == 1
    assert shown["dead"] == []


def test_the_command_fails_for_an_engine_that_is_not_there():
    assert command("no-such-engine").returncode == 1
    assert command("--interval", "0").returncode == 2


def test_watching_shows_rates_until_interrupted(engine):
    args = [sys.executable, "-m", "xdpstack", "stats", engine.name, "--watch", "--interval", "0.2"]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "/s" in line:
                break
    finally:
        process.send_signal(2)
        process.wait(timeout=30)
        process.stdout.close()
    assert "0 /s" in lines[-1]
