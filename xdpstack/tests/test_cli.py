"""Every command: help exits 0, a usage mistake 2, a failure 1, each told in one sentence; ``--json`` gives
exactly one object. In this process where it can be, so that a traceback is a failing test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdpstack import bench, cli
from xdpstack.bench import registry
from xdpstack.cli import main

CAPTURES = Path(__file__).parents[1] / "captures"
V9 = CAPTURES / "cme-mdp3-v9-nine-channels-natural-gaps.pcap"
ITS_FEED = ["--feed", "cme-mdp3"]

COMMANDS = [
    [], ["bench"], ["capture"], ["demo"], ["doctor"], ["feed"], ["feed", "listen"], ["feed", "replay"],
    ["feed", "build"], ["lab"], ["lab", "up"], ["lab", "down"], ["lab", "exec"], ["lab", "status"],
    ["lab", "vm"], ["load"],
    ["unload"], ["status"], ["rules"], ["rules", "list"], ["rules", "add"], ["rules", "del"],
    ["rules", "test"], ["run"], ["stats"], ["top"], ["metrics"], ["trace"], ["opener"], ["drill"],
    ["shm"], ["shm", "init"], ["shm", "list"], ["shm", "tail"], ["shm", "rm"],
    ["shm", "record"], ["shm", "play"],
    ["traffic"], ["traffic", "receive"], ["traffic", "send"],
]  # fmt: skip


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def sentence(text: str) -> str:
    """Standard error holds one sentence of ours, and nothing else."""
    assert text.startswith("xdpstack: "), text
    assert text.count("\n") == 1, text
    assert "Errno" not in text
    return text.removeprefix("xdpstack: ").rstrip()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_exits_0(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: xdpstack " + " ".join(words))


def test_the_list_above_is_the_whole_tree() -> None:
    def walk(parser: object, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for action in parser._actions:  # type: ignore[attr-defined]
            if isinstance(action.choices, dict):
                for name, below in action.choices.items():
                    yield from walk(below, (*words, name))

    assert set(walk(cli.build_parser(), ())) == {tuple(words) for words in COMMANDS}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "the following arguments are required: COMMAND; see `xdpstack --help`"),
        (["fly"], "argument COMMAND: invalid choice: 'fly'"),
        (["feed"], "feed: the following arguments are required: VERB"),
        (["feed", "replay"], "feed replay: the following arguments are required: capture"),
        (["feed", "replay", V9], "is no recording of ours; name its --feed"),
        (["feed", "replay", V9, "--feed", "nyse"], "there is no decoder 'nyse'; known: cme-mdp3"),
        (["feed", "replay", V9, "--feed", "no.so"], "there is no decoder file"),
        (["feed", "replay", V9, *ITS_FEED, "--groups", "x"], "'x' is not ADDRESS:PORT"),
        (["feed", "replay", V9, *ITS_FEED, "--groups", "1.2.3.4:5,1.2.3.4:5"], "two lines listen to"),
        (["feed", "replay", V9, *ITS_FEED, "--groups", "1.2.3.4:99999"], "port 99999 is not in 0 .. 65535"),
        (["feed", "replay", V9, *ITS_FEED, "--out", "a.txt"], "wanted a name that ends in .parquet or .csv"),
        (["feed", "replay", V9, *ITS_FEED, "--speed", "-1"], "argument --speed: '-1' is not a speed"),
        (["feed", "replay", V9, *ITS_FEED, "--speed", "nan"], "argument --speed: 'nan' is not a speed"),
        (["feed", "replay", V9, *ITS_FEED, "--max-orders", "-5"], "argument --max-orders: -5 is not from 0"),
        (["feed", "replay", V9, *ITS_FEED, "--max-orders", "99999999999"], "is not from 0 to 4294967295"),
        (["feed", "listen", "--feed", "plain", "--port", "sock:lo"], "feed listen needs --groups"),
        (["feed", "listen", "--feed", "plain", "--port", "x", "--groups", "239.1.1.1:1"], "port 'x'"),
        (["feed", "listen", "--feed", "plain", "--port", "pipe", "--groups", "239.1.1.1:1"], "a pipe is"),
        (["feed", "listen", "--feed", "plain", "--port", "x", "--slow", "-1"], "'-1' is not a number of µs"),
        (["feed", "build", "no.toml"], "no.toml: No such file"),
        (["drill"], "drill: the following arguments are required: FILE"),
        (["run"], "run: the following arguments are required: config"),
        (["run", V9], "1: not TOML"),
        (["run", "x.toml", "--seconds", "soon"], "argument --seconds: 'soon' is not a number of seconds"),
        (["demo", "--seconds", "-1"], "argument --seconds: '-1' is not a number of seconds"),
        (["demo", "--seconds", "0"], "argument --seconds: 0 is not a number of seconds above 0"),
        (["demo", "--transport", "tcp"], "argument --transport: invalid choice: 'tcp'"),
        (["stats", "--interval", "0"], "argument --interval: 0 is not a number of seconds above 0"),
        (["stats", "a", "b"], "unrecognized arguments: b"),
        (["capture"], "capture needs PORT and -w FILE"),
        (["capture", f"pcap:{V9}", "-w", "x.pcap", "--snaplen", "0"], "snaplen 0 or buffer"),
        (["lab", "up", "a/b"], "lab name 'a/b'"),
        (["lab", "up", "--queues", "0"], "--queues 0: from 1 to 64"),
        (["lab", "up", "--mtu", "7"], "--mtu 7: from 68 to 65535 bytes"),
        (["lab", "down", "../x"], "lab name '../x'"),
        (["lab", "exec", "trader"], "lab exec: name a command"),
        (["bench", "speed"], "no bench 'speed'; there are rx"),
        (["rules", "test", "-", "00"], "rules test -: which rules? give --rules FILE"),
        (["rules", "test", "-", "zz"], "'zz' is neither a file nor a frame in hex"),
        (["rules", "del", "eth0", "first"], "rules del: argument id: invalid int value: 'first'"),
        (["load", "eth0", "--mode", "fast"], "load: argument --mode: invalid choice: 'fast'"),
        (["doctor", "nope0"], "there is no interface 'nope0'"),
    ],
)  # fmt: skip
def test_a_usage_mistake_is_one_sentence_and_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    words: list[object], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in sentence(said.err)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["feed", "replay", "no.pcap", *ITS_FEED], "open capture no.pcap: No such file"),
        (["feed", "replay", ".", *ITS_FEED], "open capture .: Is a directory"),
        (["feed", "replay", V9, *ITS_FEED, "--out", "no/a.csv"], "no/a.csv"),
        (["feed", "replay", V9, *ITS_FEED, "--out", "no/a.parquet"], "no/a.parquet"),
        (["feed", "listen", "--feed", "plain", "--port", "sock:nope0", "--groups", "239.1.1.1:1"], "nope0"),
        (
            ["feed", "listen", "--feed", "plain", "--port", f"pcap:{V9}", "--groups", "239.1.1.1:1",
             "--record", "no/x.pcapng"],
            "write capture no/x.pcapng: No such file",
        ),
        (["run", "no.toml"], "no.toml: No such file or directory"),
        (["run", "."], ".: Is a directory"),
        (["demo", "--out", "/proc/nope/x.json"], "/proc/nope: No such file or directory"),
        (["capture", "--read", "no.pcap"], "open capture no.pcap: No such file"),
        (["capture", f"pcap:{V9}", "-w", "no/x.pcap"], "write capture no/x.pcap: No such file"),
        (["lab", "down", "there-is-none"], "remove lab there-is-none: there is none"),
        (["lab", "exec", "--lab", "there-is-none", "trader", "true"], "enter lab there-is-none"),
        (["load", "nope0"], "nope0: no such interface"),
        (["unload", "nope0"], "nope0: no such interface"),
        (["status", "nope0"], "nope0: no such interface"),
        (["rules", "list", "nope0"], "nope0: no such interface"),
        (["rules", "add", "nope0", "any -> drop"], "nope0: no such interface"),
        (["rules", "del", "nope0", "1"], "nope0: no such interface"),
    ],
)  # fmt: skip
def test_a_failure_is_one_sentence_and_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    words: list[object], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([str(word) for word in words]) == 1
    said = capsys.readouterr().err
    if words[1] == "listen" and "listening" in said:
        said = said.partition("\n")[2]
    assert says in sentence(said)


def test_an_engine_that_is_not_there_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "nobody-of-that-name"]) == 1
    assert capsys.readouterr().out == "no engine is running called nobody-of-that-name\n"


PROGRAM = f"""\
[ports.main]
port = "pcap:{V9}"
[feeds.cme]
schema = "cme-mdp3"
[[feeds.cme.channels]]
lines = ["224.0.28.5:14314", "224.0.28.132:15314"]
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "it.toml"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["feed", "replay", V9, *ITS_FEED], {"packets", "messages", "lines", "gaps", "books", "events"}),
        (
            ["feed", "listen", "--port", f"pcap:{V9}", *ITS_FEED, "--groups", "224.0.28.5:14314"],
            {"packets", "messages", "lines"},
        ),
        (["feed", "build", "plain", "-o", "plain.so"], {"decoder"}),
        (["run", "it.toml"], {"packets", "messages", "lines", "gaps"}),
        (["run", "it.toml", "--check"], {"ok"}),
        (["stats"], {"engines", "dead"}),
        (["stats", "--sweep"], {"removed"}),
        (["capture", "--read", V9], {"packets", "destinations", "damaged"}),
        (["capture", f"pcap:{V9}", "-w", "x.pcapng"], {"frames", "ended_by"}),
        (["lab", "status"], {"labs"}),
        (["status"], {"interfaces"}),
    ],
)
def test_json_is_exactly_one_object(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    program: Path,
    words: list[object],
    keys: set[str],
) -> None:
    monkeypatch.chdir(program.parent)
    assert main([*map(str, words), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert keys <= set(json.loads(out))


def test_doctor_gives_one_object_whatever_it_finds(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (found["state"] == "fail")
    assert found["checks"]


def test_run_sums_up_what_the_thread_did(capsys: pytest.CaptureFixture[str], program: Path) -> None:
    assert main(["run", str(program), "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert (result["packets"], result["unrouted"]) == (100, 83)
    assert [(line["packets"], line["won"]) for line in result["lines"][:2]] == [(8, 7), (8, 1)]
    assert said.err.startswith("running: <Node pcap:")
    assert main(["run", str(program)]) == 0
    assert "packets 100" in capsys.readouterr().out


def test_run_says_why_its_thread_ended(capsys: pytest.CaptureFixture[str], program: Path) -> None:
    raw = bytearray(V9.read_bytes())
    at = 24
    for _ in range(60):  # the length of a record in the middle
        at += 16 + int.from_bytes(raw[at + 8 : at + 12], "little")
    raw[at + 8 : at + 12] = b"\xff\xff\xff\x7f"
    (program.parent / "bad.pcap").write_bytes(raw)
    program.write_text(PROGRAM.replace(str(V9), str(program.parent / "bad.pcap")))
    assert main(["run", str(program)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("packets 60,")
    assert said.err.endswith("it.toml: the engine's thread ended: malformed\n")


def test_listen_shows_the_busiest_instruments_of_a_feed_without_books(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import numpy as np

    from xdpstack import node as nodes
    from xdpstack.cli.feed import _print_top

    with nodes.open(f"pcap:{V9}") as node:
        feed = node.feed("cme-mdp3", groups=["224.0.28.5:14314"], books=False)
        for _ in node.run():
            pass
        counts = np.zeros(feed.config.max_instruments, np.int64)
        counts[feed.indices()[0]] = 7
        _print_top(feed, counts)
        assert capsys.readouterr().out == f"  {feed.symbol(feed.indices()[0])} 7 updates\n"


def test_bench_lists_every_bench_with_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["bench"] for row in rows] == list(bench.benches())
    assert all(row["about"] and row["target"] for row in rows)


@pytest.mark.parametrize("error", [registry.Skip("no peer here"), OSError("no port"), RuntimeError("lost")])
def test_a_bench_that_cannot_run_says_why_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run(context: registry.Context) -> list[bench.Row]:
        raise error

    one = registry.Bench(name="rx", about="it", run=run)
    monkeypatch.setattr(registry, "find", lambda names: [one])
    assert main(["bench", "rx", "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert str(error) in sentence(said.err)


def command(*words: object, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "xdpstack", *map(str, words)],
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


def test_a_reader_that_goes_away_is_no_failure() -> None:
    """``xdpstack … | head``: the pipe's reading end is closed before a byte was written."""
    reading, writing = os.pipe()
    os.close(reading)
    with command("feed", "replay", V9, *ITS_FEED, "--json", stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_a_full_disk_is_a_failure() -> None:
    with open("/dev/full", "wb") as full, command("stats", "--json", stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert sentence(err.decode()) == "No space left on device"
