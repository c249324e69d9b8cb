"""Segments declared in TOML, and the command that makes, lists, follows and removes them."""

import grp
import json
import os
import pwd
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

from xdpstack import shm
from xdpstack.cli import main
from xdpstack.errors import ConfigError, SetupError
from xdpstack.ring import Ring
from xdpstack.tape import Tape, TapeInfo, TapeReader


@pytest.fixture
def declared(tmp_path):
    """A file that declares a tape of updates, a tape of pairs and a ring, all in the test's folder."""
    file = tmp_path / "segments.toml"
    file.write_text(f"""
[segments.updates]
path = "{tmp_path}/updates"
dtype = "update"
bytes = 65536
mode = "0640"

[segments.pairs]
path = "{tmp_path}/pairs"
dtype = [["price", "<i8"], ["qty", "<u4", [2]]]
bytes = 65536

[segments.orders]
kind = "ring"
path = "{tmp_path}/orders"
bytes = 4096
mode = "0660"
""")
    return file


def said(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_init_makes_what_is_declared_and_finds_it_the_second_time(declared, tmp_path, capsys):
    for made in (True, False):
        (answer,) = said(capsys, "shm", "init", declared)
        assert [(s["path"], s["made"]) for s in answer["segments"]] == [
            (f"{tmp_path}/{name}", made) for name in ("updates", "pairs", "orders")
        ]
    assert stat.S_IMODE((tmp_path / "updates").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "orders").stat().st_mode) == 0o660
    assert TapeInfo.read(tmp_path / "pairs").dtype == np.dtype([("price", "<i8"), ("qty", "<u4", (2,))])
    with Ring.open(tmp_path / "orders", "writer") as ring:
        assert ring.write(1, b"an order")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_segments_belong_to_whom_the_file_names(declared, tmp_path, capsys):
    """And a second `init` leaves them so."""
    text = declared.read_text().replace("mode =", 'owner = "nobody"\ngroup = "daemon"\nmode =')
    declared.write_text(text)
    for _ in range(2):
        said(capsys, "shm", "init", declared)
        found = {name: (tmp_path / name).stat() for name in ("updates", "pairs", "orders")}
        theirs = (pwd.getpwnam("nobody").pw_uid, grp.getgrnam("daemon").gr_gid)
        assert [(one.st_uid, one.st_gid) == theirs for one in found.values()] == [True, False, True]
        assert stat.S_IMODE(found["orders"].st_mode) == 0o660


def test_a_rings_reader_is_behind_by_what_it_has_not_read(declared, tmp_path, capsys):
    main(["shm", "init", str(declared)])
    capsys.readouterr()
    path = tmp_path / "orders"
    with Ring.open(path, "writer") as writer, Ring.open(path, "reader") as reader:
        for behind in (1, 2, 3):
            assert writer.write(1, b"an order")
            (there,) = shm.look(path)["readers"]
            assert there["lag_records"] == behind
        assert len(reader.read()) == 3
        reader.release()
        (there,) = shm.look(path)["readers"]
        assert (there["lag"], there["lag_records"]) == (0, 0)


def test_list_shows_who_writes_who_reads_and_how_far_behind(declared, tmp_path, capsys):
    main(["shm", "init", str(declared)])
    capsys.readouterr()
    with Tape.open(tmp_path / "pairs") as tape, tape.reader("slow"):
        tape.write_many(np.zeros(10, TapeInfo.read(tmp_path / "pairs").dtype))
        (answer,) = said(capsys, "shm", "list", tmp_path)
        kinds = {os.path.basename(s["path"]): s for s in answer["segments"]}
        assert {name: s["kind"] for name, s in kinds.items()} == {
            "updates": "tape", "pairs": "tape", "orders": "ring",
        }  # fmt: skip
        pairs = kinds["pairs"]
        assert (pairs["state"], pairs["writer"], pairs["written"]) == ("alive", os.getpid(), 10)
        assert pairs["readers"] == [
            {"name": "slow", "pid": os.getpid(), "lag": 320, "lag_records": 10, "lost": 0, "laps": 0}
        ]
        assert kinds["updates"]["state"] == "idle"
        assert main(["shm", "list", str(tmp_path)]) == 0
        assert f"reader {os.getpid()} slow: 10 records (320 bytes) behind" in capsys.readouterr().out


def test_tail_prints_records_by_their_fields(declared, tmp_path, capsys):
    main(["shm", "init", str(declared)])
    capsys.readouterr()
    with Tape.open(tmp_path / "pairs") as tape:
        rows = np.zeros(5, TapeInfo.read(tmp_path / "pairs").dtype)
        rows["price"], rows["qty"] = np.arange(5) - 2, np.arange(10).reshape(5, 2)
        tape.write_many(rows, 9)
        got = said(capsys, "shm", "tail", tmp_path / "pairs", "--oldest", "-n", "3")
        assert got == [
            {"number": i + 1, "kind": 9, "data": {"price": i - 2, "qty": [2 * i, 2 * i + 1]}}
            for i in range(3)
        ]
        assert said(capsys, "shm", "tail", tmp_path / "pairs", "--seconds", "0.01") == []
        tape.finish()
        assert len(said(capsys, "shm", "tail", tmp_path / "pairs", "--oldest")) == 5


def test_tail_prints_hex_and_what_was_lost_where_there_is_no_dtype(tmp_path, capsys):
    with Tape.create(tmp_path / "t", 4096) as tape:
        tape.write(b"\x01\x02", 4)
        tape.finish()
    assert main(["shm", "tail", str(tmp_path / "t"), "--oldest"]) == 0
    assert capsys.readouterr().out == "1 kind 4 0102\n"


def test_rm_waits_for_nobody_but_takes_nothing_from_a_live_process(declared, tmp_path, capsys):
    main(["shm", "init", str(declared)])
    writer = subprocess.Popen(
        [sys.executable, "-c",
         "import sys; from xdpstack.tape import Tape; t = Tape.open(sys.argv[1]); print(flush=True); input()",
         tmp_path / "pairs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        writer.stdout.readline()
        assert main(["shm", "rm", str(tmp_path / "pairs")]) == 1
        assert f"process {writer.pid} has it" in capsys.readouterr().err
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    with TapeReader.open(tmp_path / "pairs") as reader:
        with pytest.raises(SetupError, match="has it"):
            shm.remove(tmp_path / "pairs")
        shm.remove(tmp_path / "pairs", force=True)
        with pytest.raises(EOFError):  # it sees the end
            reader.read()
    (answer,) = said(capsys, "shm", "rm", declared)
    assert answer == {"removed": [f"{tmp_path}/updates", f"{tmp_path}/orders"]}
    assert [p.name for p in tmp_path.iterdir()] == ["segments.toml"]


def test_what_is_there_and_differs_is_refused_and_what_was_made_goes_again(declared, tmp_path):
    segments = shm.load(declared)
    Ring.create(tmp_path / "orders", 8192).close()
    with pytest.raises(SetupError, match="bytes 8192, not 4096"):
        shm.initialise(segments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["orders", "segments.toml"]
    (tmp_path / "orders").unlink()
    Tape.create(tmp_path / "pairs", 65536, dtype="<i8").close()
    with pytest.raises(SetupError, match="another dtype"):
        shm.initialise(segments)
    (tmp_path / "pairs").write_text("somebody's")
    with pytest.raises(SetupError, match="neither a tape nor a ring"):
        shm.initialise(segments)
    assert (tmp_path / "pairs").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"1: segments: there is no \[segments.NAME\]"),
        ("[segments]\na = 1", "2: segments.a: wanted a table"),
        ("[segments.a]\nkind = 'pipe'", "2: segments.a.kind: wanted tape or ring"),
        ("[segments.a]\n\nbytes = 5000", "3: segments.a.bytes: wanted a power of two"),
        ("[segments.a]\nmode = '0999'", "2: segments.a.mode: wanted a mode"),
        ("[segments.a]\nmode = 640", "2: segments.a.mode: wanted a string"),
        ("[segments.a]\ndtype = 'float99'", "2: segments.a.dtype: no dtype"),
        ("[segments.a]\ndtype = [['a']]", "2: segments.a.dtype: no dtype"),
        ("[segments.a]\nsize = 1", "2: segments.a.size: unknown key"),
        ("[segments.'../a']\n", "a name is a file's name"),
    ],
)
def test_a_mistake_is_one_sentence_with_file_line_and_key(tmp_path, text, says):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        shm.load(tmp_path / "s.toml")


def test_a_name_is_found_in_dev_shm_and_a_ring_cannot_be_followed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shm, "ROOT", tmp_path)
    Tape.create(tmp_path / "prices.tape", 4096).close()
    Ring.create(tmp_path / "orders.ring", 4096).close()
    assert shm.locate("prices") == tmp_path / "prices.tape"
    assert main(["shm", "tail", "orders"]) == 1
    assert "a ring has one reader" in capsys.readouterr().err
    assert main(["shm", "tail", "nothing"]) == 1
    assert "there is none" in capsys.readouterr().err
