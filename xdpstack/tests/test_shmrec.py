"""Tapes and rings recorded to disk and played back: every record, its kind and its words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from xdpstack import shmrec
from xdpstack.errors import SetupError
from xdpstack.ring import Ring
from xdpstack.tape import Tape, TapeReader


def rows(reader):
    found = []
    while True:
        try:
            found += [(one.number, one.kind, one.data.tobytes()) for one in reader.read()]
        except EOFError:
            return found


@pytest.mark.parametrize("suffix", ["pcapng", "pcapng.zst"])
def test_a_tape_is_recorded_and_played_back_record_by_record(tmp_path, suffix):
    with Tape.create(tmp_path / "a.tape", 1 << 16, dtype=[("price", "<i8"), ("qty", "<u4")]) as tape:
        data = np.zeros(500, [("price", "<i8"), ("qty", "<u4")])
        data["price"], data["qty"] = np.arange(500), np.arange(500) * 2
        tape.write_many(data[:300], 7)
        tape.write_many(data[300:], 8)
        with tape.reader(oldest=True) as reader:
            tape.finish()
            wanted = rows(reader)
        said = shmrec.record(tmp_path / "a.tape", tmp_path / f"a.{suffix}", oldest=True)
    assert said == {"records": 500, "lost": 0}
    assert shmrec.play(tmp_path / f"a.{suffix}", tmp_path / "b.tape", speed=0) == said
    with TapeReader.open(tmp_path / "b.tape", oldest=True) as reader:
        assert reader.dtype == data.dtype
        assert reader.size == 1 << 16
        assert rows(reader) == wanted


def test_a_ring_is_recorded_by_taking_its_records_and_played_into_one_that_is_full_at_times(tmp_path):
    wanted = [(i, bytes([i % 251]) * (i % 90)) for i in range(400)]
    with Ring.create(tmp_path / "a.ring", 1 << 16, dtype="<i8") as ring:
        for kind, data in wanted:
            assert ring.write(kind, data)
        ring.finish()
        said = shmrec.record(tmp_path / "a.ring", tmp_path / "a.pcapng")
        assert said == {"records": 400, "lost": 0}
        assert ring.used == 0
    Ring.create(tmp_path / "b.ring", 4096).close()
    playing = threading.Thread(
        target=shmrec.play, args=(tmp_path / "a.pcapng", tmp_path / "b.ring"), kwargs={"speed": 0}
    )
    found = []
    with Ring.open(tmp_path / "b.ring") as reader:
        playing.start()
        try:
            while True:
                found += [(one.kind, one.data.tobytes()) for one in reader.read()]
                reader.release()
                reader.wait(0.05)
        except EOFError:
            pass
        playing.join(60)
    assert found == wanted


def test_what_a_recorder_lost_is_said_in_the_file(tmp_path):
    with Tape.create(tmp_path / "a.tape", 1 << 16, dtype="<i8") as tape:
        reader = TapeReader.open(tmp_path / "a.tape", "slow")
        tape.write_many(np.arange(20_000))
        tape.finish()
        first = next(shmrec._of_tape(reader))[0]
        assert first[3] == first[0] - 1 > 0
        reader.close()
        assert (
            shmrec.record(tmp_path / "a.tape", tmp_path / "x.pcapng", oldest=True, most=10)["records"] == 10
        )


def test_it_ends_after_so_many_seconds_or_when_told(tmp_path):
    with Tape.create(tmp_path / "a.tape", 1 << 16):
        assert shmrec.record(tmp_path / "a.tape", tmp_path / "a.pcapng", seconds=0.1)["records"] == 0
        assert shmrec.record(tmp_path / "a.tape", tmp_path / "a.pcapng", stop=lambda: True)["records"] == 0


def test_a_file_that_is_no_such_recording_is_refused(tmp_path):
    from xdpstack.port import PcapWriter

    with PcapWriter(tmp_path / "x.pcapng") as writer:
        writer.add_interface("eth0")
        writer.write(1, b"frame")
    with pytest.raises(SetupError, match="no recording of a tape or a ring"):
        shmrec.play(tmp_path / "x.pcapng", tmp_path / "b.tape")
    assert not (tmp_path / "b.tape").exists()
    with pytest.raises(SetupError, match="No such file"):
        shmrec.record(tmp_path / "none", tmp_path / "y.pcapng")
    assert not (tmp_path / "y.pcapng").exists()


def test_the_commands_record_and_play(tmp_path):
    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "xdpstack", "shm", *map(str, words)],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    with Tape.create(tmp_path / "a.tape", 1 << 16, dtype="<i8") as tape:
        tape.write_many(np.arange(10))
        code, out, err = run(
            "record", tmp_path / "a.tape", tmp_path / "a.pcapng", "--oldest", "-n", 10, "--json"
        )
        assert code == 0, err
        assert json.loads(out) == {"records": 10, "lost": 0}
    code, out, err = run("play", tmp_path / "a.pcapng", tmp_path / "b.tape", "--speed", "0")
    assert (code, out) == (0, f"{tmp_path}/b.tape: 10 records, 0 were lost when it was recorded\n"), err
    assert run("play", tmp_path / "b.tape", tmp_path / "c.tape")[0] == 1


def test_stats_name_who_reads_a_tape_and_how_far_behind_it_is(tmp_path):
    name = f"xdpstack-{os.getpid()}-lag.tape"
    path = Path("/dev/shm") / name
    with Tape.create(path, 1 << 16, dtype="<i8") as tape:
        try:
            with tape.reader("slow core"):
                tape.write_many(np.arange(10))
                done = subprocess.run(
                    [sys.executable, "-m", "xdpstack", "stats", "--json"],
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                found = [s for s in json.loads(done.stdout)["segments"] if s["path"] == str(path)]
                assert [(r["name"], r["lag"]) for r in found[0]["readers"]] == [("slow core", 240)]
                done = subprocess.run(
                    [sys.executable, "-m", "xdpstack", "stats"], capture_output=True, text=True, timeout=120
                )
                assert (
                    f"{path}: 10 records; slow core ({os.getpid()}) 10 records (240 bytes) behind, 0 lost"
                    in done.stdout
                )
        finally:
            tape.close(unlink=True)
