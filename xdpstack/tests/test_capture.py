"""``xdpstack capture``: what needs no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xdpstack.cli import main
from xdpstack.port import PcapPort, PcapWriter
from xdpstack.testing import make_frames

CAPTURES = Path(__file__).parents[1] / "captures"
CME = CAPTURES / "cme-mdp3-v9-nine-channels-natural-gaps.pcap"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["capture", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_read_sums_a_capture_up(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--read", CME, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["packets"], found["bytes"], found["format"], found["truncated"]) == (100, 49_970, "pcap", 0)
    assert found["first_ns"] == 1_536_760_535_676_700_000
    assert found["destinations"][0] == {"to": "224.0.28.146:15360", "packets": 9, "bytes": 1582}
    assert sum(one["packets"] for one in found["destinations"]) <= 100
    code, out, _ = run(capsys, "--read", CME)
    assert "224.0.28.146:15360" in out


def test_read_counts_a_record_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--read", CAPTURES / "iex-deep10-2017-04-25.pcap.gz", "--json")
    assert (code, json.loads(out)["packets"], json.loads(out)["truncated"]) == (0, 121_314, 1)


def test_read_names_damage_and_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(CME.read_bytes()[:2000] + b"\xff" * 5000)
    code, out, _ = run(capsys, "--read", path, "--json")
    assert code == 1
    assert "does not allow" in json.loads(out)["damaged"]


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng", ".pcapng.zst", ".pcap.gz"])
def test_a_capture_can_be_converted(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    code, out, _ = run(capsys, f"pcap:{CME}", "-w", path, "--json")
    said = json.loads(out)
    assert (code, said["frames"], said["ended_by"]) == (0, 100, "end of file")
    assert said["file_bytes"] == path.stat().st_size
    with PcapPort(CME) as first, PcapPort(path) as second:
        assert [(bytes(f.data), f.rx_ns) for f in first.receive(200)] == [
            (bytes(f.data), f.rx_ns) for f in second.receive(200)
        ]


def test_count_ends_a_capture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, f"pcap:{CME}", "-w", tmp_path / "a.pcapng", "--count", 70, "--json")
    assert (code, json.loads(out)["frames"], json.loads(out)["ended_by"]) == (0, 70, "count")


def test_snaplen_cuts_and_counts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    code, out, _ = run(capsys, f"pcap:{CME}", "-w", path, "--snaplen", 60, "--json")
    assert (code, json.loads(out)["cut"]) == (0, 100)
    assert json.loads(run(capsys, "--read", path, "--json")[1])["cut"] == 100


def test_several_interfaces_need_pcapng(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with PcapWriter(tmp_path / "two.pcapng") as writer:
        for number, name in enumerate(("left", "right")):
            writer.add_interface(name)
            writer.write(number, make_frames(1)[0], interface=number)
    assert run(capsys, f"pcap:{tmp_path}/two.pcapng", "-w", tmp_path / "one.pcap")[0] == 2
    code, _, _ = run(capsys, f"pcap:{tmp_path}/two.pcapng", "-w", tmp_path / "same.pcapng")
    assert code == 0
    with PcapPort(tmp_path / "same.pcapng") as port:
        assert [i["name"] for i in port.info()["interfaces"]] == ["left", "right"]
        assert [frame.queue for frame in port.receive(8)] == [0, 1]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((), 2, "needs PORT"),
        (("xsk:lo:0",), 2, "needs PORT"),
        (("xsk:lo:0", "-w", "a.pcap"), 2, "--rules"),
        (("pipe", "-w", "a.pcap"), 2, "pipe"),
        (("nonsense", "-w", "a.pcap"), 2, "nonsense"),
        (("pcap:x.pcap", "-w", "a.pcap", "--rules", "any"), 2, "no --rules"),
        (("xsk:lo:0", "-w", "a.pcap", "--rules", "any -> other"), 2, "no other target"),
        (("xsk:nosuch0:0", "-w", "a.pcap", "--rules", "any"), 1, "no such interface"),
        (("pcap:/nonexistent", "-w", "a.pcap"), 1, "No such file"),
        (("--read", "/nonexistent"), 1, "No such file"),
        (("--read", "x", "-w", "y.pcap"), 2, "neither"),
        ((f"pcap:{CME}", "-w", "a.txt"), 2, "name it"),
        ((f"pcap:{CME}", "-w", "a.pcap", "--count", "-1"), 2, "is not"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: tuple[str, ...],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out, err = run(capsys, *words)
    assert (got, out) == (code, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.stat().st_size], (
        "no file of a capture that never began"
    )
