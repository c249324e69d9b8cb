"""``feed replay``: exact numbers of the real captures, an oracle of plain sets beside them, damage, pace."""

from __future__ import annotations

import json
import struct
import time
from collections import defaultdict
from pathlib import Path

import pytest

from xdpstack import replay as replays
from xdpstack.cli import main
from xdpstack.errors import ConfigError, SetupError, XdpstackError
from xdpstack.flows import udp_frame, udp_payload
from xdpstack.port import PcapPort, PcapWriter
from xdpstack.replay import replay
from xdpstack.tests.frames import plain_message, plain_packet
from xdpstack.tests.test_decode_captures import shared

CAPTURES = Path(__file__).parents[1] / "captures"
V8 = CAPTURES / "cme-mdp3-v8-line-a-and-b.pcapng"
V9 = CAPTURES / "cme-mdp3-v9-nine-channels-natural-gaps.pcap"
IEX = CAPTURES / "iex-deep10-2017-04-25.pcap.gz"
MS = 1_000_000


def plain(path: Path, groups: int = 1, packets: int = 20, step: int = MS) -> Path:
    """A capture of the plain framing: one level for each of two instruments a packet."""
    with PcapWriter(path) as writer:
        writer.add_interface("test")
        for seq in range(packets):
            data = plain_packet(seq, *(plain_message("A", "B", n, 100 + seq, 10) for n in (1, 2)))
            for group in range(groups):
                writer.write(10**18 + seq * step, udp_frame(data, (f"239.1.1.{group}", 5000)))
    return path


def test_the_two_lines_of_cme_are_one_stream_of_5299_messages() -> None:
    result = replay(V8, "cme-mdp3")
    assert (result["packets"], result["unrouted"], result["truncated"]) == (10_000, 0, 0)
    assert result["messages_total"] == 5_299 == 10_598 // 2
    assert result["messages"] == {
        "MDIncrementalRefreshBook32": 4_898,
        "MDIncrementalRefreshSessionStatistics35": 179,
        "SecurityStatus30": 99,
        "MDIncrementalRefreshTradeSummary42": 60,
        "MDIncrementalRefreshVolume37": 57,
        "AdminHeartbeat12": 6,
    }
    lines = {line["line"]: line for line in result["lines"]}
    assert {name: line["packets"] for name, line in lines.items()} == {
        "224.0.31.11:14320": 5_000,
        "224.0.32.11:15320": 5_000,
        "retransmission": 0,
    }
    assert sum(line["won"] for line in lines.values()) == 5_000
    assert sum(line["duplicate"] for line in lines.values()) == 5_000
    assert sum(line["lost"] for line in lines.values()) == 0
    assert result["gaps"]["found"] == result["gaps"]["open"] == result["restarts"] == 0
    assert (result["instruments"], result["stale"]) == (39, [])


def sequences(path: Path) -> dict[str, list[int]]:
    """By line, the packet sequences as they stand in the file: scapy and the engine have no part in it."""
    found: dict[str, list[int]] = defaultdict(list)
    with PcapPort(path) as capture:
        while frames := capture.receive(64):
            for frame in frames:
                if (one := udp_payload(frame.data)) is not None:
                    found[f"{one[0]}:{one[1]}"].append(struct.unpack("<I", one[2][:4])[0])
    return found


def test_what_one_line_of_nine_channels_lost_the_other_filled() -> None:
    result, carried = replay(V9, "cme-mdp3"), sequences(V9)
    assert (result["packets"], result["host"]) == (100, {"protocol": 1})  # one packet is not UDP
    assert len({line["channel"] for line in result["lines"]}) == 9
    holes = 0
    for number in range(9):
        lines = [
            line for line in result["lines"] if line["channel"] == number and line["line"] != "retransmission"
        ]
        assert len(lines) == 2
        union = set().union(*(carried[line["line"]] for line in lines))
        assert union == set(range(min(union), max(union) + 1))  # together they have everything
        assert sum(line["won"] for line in lines) == len(union)
        for line in lines:
            mine = carried[line["line"]]
            assert line["lost"] == len(set(range(min(union), max(mine) + 1)) - set(mine))
            holes += len(set(range(min(mine), max(mine) + 1)) - set(mine))
    assert holes == 4  # the natural gaps; a fifth loss is a line that began one packet later
    assert sum(line["lost"] for line in result["lines"]) == 5
    assert {key: result["gaps"][key] for key in ("lost", "open")} == {"lost": 0, "open": 0}
    assert result["stale"] == []
    assert result["messages_total"] == sum(result["messages"].values()) == 102


def test_iex_has_eleven_restarts_and_one_record_cut_short() -> None:
    result = replay(IEX, "iex-deep")
    assert (result["packets"], result["truncated"], result["restarts"]) == (121_314, 1, 11)
    assert result["messages_total"] == 391_999
    by_type = result["messages"]
    assert by_type["price_level_buy"] + by_type["price_level_sell"] == 27_568
    assert (by_type["trade_report"], by_type["system_event"], by_type["trade_break"]) == (83_343, 44, 73)
    assert by_type["security_event"] == 59
    assert sum(by_type[name] for name in by_type if name.endswith("status")) == 280_912
    (line,) = [line for line in result["lines"] if line["line"] != "retransmission"]
    assert (line["heartbeat"], line["lost"]) == (7_937, 0)
    assert [event["kind"] for event in result["events"]].count("restart") == 11
    assert result["gaps"]["found"] == 0


def test_a_replay_gives_the_same_object_twice() -> None:
    assert replay(V9, "cme-mdp3") == replay(V9, "cme-mdp3")


def test_every_key_of_the_summary_is_documented() -> None:
    told = replays.summary.__doc__ or ""
    result = replay(V9, "cme-mdp3", symbols=["nobody"])
    assert set(result) == {key for key in result if f"``{key}``" in told}


def test_symbols_choose_the_books_and_the_unknown_are_named(tmp_path: Path) -> None:
    result = replay(plain(tmp_path / "a.pcapng"), "plain", symbols=["#2", "#9"])
    assert set(result["books"]) == {"#2"}
    assert result["unknown_symbols"] == ["#9"]
    assert result["instruments"] == 2
    assert result["books"]["#2"] == replay(tmp_path / "a.pcapng", "plain")["books"]["#2"]


def test_as_recorded_takes_the_recorded_time(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.pcapng", packets=10, step=30 * MS)  # 270 ms
    for speed, wanted in ((1.0, 0.27), (3.0, 0.09)):
        began = time.monotonic()
        replay(path, "plain", speed=speed)
        took = time.monotonic() - began
        assert wanted * 0.95 <= took < wanted + 0.5  # late by what the machine was busy, never early


@pytest.mark.parametrize("speed", [-1.0, float("nan"), float("inf")])
def test_a_speed_that_means_nothing_is_refused(tmp_path: Path, speed: float) -> None:
    with pytest.raises(ConfigError, match="speed"):
        replay(plain(tmp_path / "a.pcapng"), "plain", speed=speed)


def test_progress_ends_at_the_number_of_packets(tmp_path: Path) -> None:
    told: list[int] = []
    replay(plain(tmp_path / "a.pcapng"), "plain", progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 20


def test_what_the_wrong_decoder_makes_of_a_capture_is_counted_not_raised() -> None:
    result = replay(V9, "itch50")
    assert result["messages_total"] == 0
    carried = [line for line in result["lines"] if line["packets"]]
    outcomes = ("won", "duplicate", "late", "heartbeat", "malformed", "truncated", "foreign", "no_room")
    assert sum(line["packets"] for line in carried) == 99
    assert all(line["packets"] == sum(line[one] for one in outcomes) + line["buffered"] for line in carried)
    assert sum(result["reasons"]["lines"].values()) > 0


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.pcap", b"", "it is shorter than a capture's header"),
        ("text.pcap", b"no capture, but a text of some length\n", "it is neither pcap nor pcapng"),
        ("noise.pcap", bytes(range(7, 256)) * 9, "it is neither pcap nor pcapng"),
        ("noise.pcap.gz", b"\x1f\x8b" + bytes(200), ""),
        ("noise.pcap.zst", b"\x28\xb5\x2f\xfd" + bytes(200), ""),
    ],
)
def test_what_is_no_capture_is_one_sentence_and_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, data: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for more in ([], ["--groups", "239.1.1.1:5"]):
        assert main(["feed", "replay", str(path), "--feed", "cme-mdp3", "--json", *more]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("xdpstack: ")
        assert says in said.err
        assert said.err.count("\n") == 1


@pytest.mark.parametrize("source", [V9, V8, IEX], ids=lambda path: path.suffix)
@pytest.mark.parametrize("size", [1, 10, 23, 24, 30, 60, 199, 200, 2_000, 5_000, 20_000, 40_001])
def test_a_file_that_ends_anywhere_is_counted_or_told(tmp_path: Path, source: Path, size: int) -> None:
    path = tmp_path / source.name
    with source.open("rb") as file:
        path.write_bytes(file.read(size))
    try:
        result = replay(path, "iex-deep" if source is IEX else "cme-mdp3")
    except SetupError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert str(path) in said
        assert "\n" not in said
        assert size < 2_000
    else:
        assert result["truncated"] == 1 or cut_between_records(path)
        assert result["packets"] > 0


def cut_between_records(path: Path) -> bool:
    """scapy's word that a file ends with a whole record."""
    from scapy.utils import RawPcapReader

    with RawPcapReader(str(path)) as reader:
        size = 24 + sum(16 + meta.caplen for _, meta in reader)
    return path.suffix == ".pcap" and size == path.stat().st_size


def damaged_in_the_middle(tmp_path: Path) -> tuple[Path, int]:
    """The V9 capture with a length that the format does not allow, and the number of packets before it."""
    raw, at = bytearray(V9.read_bytes()), 24
    for _ in range(60):
        at += 16 + int.from_bytes(raw[at + 8 : at + 12], "little")
    raw[at + 8 : at + 12] = b"\xff\xff\xff\x7f"
    path = tmp_path / "damaged.pcap"
    path.write_bytes(raw)
    return path, 60


@pytest.mark.parametrize("groups", [None, [["224.0.28.5:14314", "224.0.28.132:15314"]]])
def test_damage_in_the_middle_is_a_failure_not_the_end(
    tmp_path: Path, groups: list[list[str]] | None
) -> None:
    path, before = damaged_in_the_middle(tmp_path)
    told: list[int] = []
    with pytest.raises((ValueError, XdpstackError), match="a length or type that the format does not allow"):
        replay(path, "cme-mdp3", channels=groups, progress=told.append)
    assert told[-1:] in ([], [before])


def test_a_capture_without_udp_is_a_failure(tmp_path: Path) -> None:
    with PcapWriter(tmp_path / "a.pcapng") as writer:
        writer.write(1, b"\xff" * 12 + b"\x08\x06" + bytes(46))
    with pytest.raises(SetupError, match="it holds no UDP packet"):
        replay(tmp_path / "a.pcapng", "plain")


@pytest.mark.parametrize(
    "name",
    ["ice-impact-1.1.33.pcapng", "nyse-imbalances-xdp-2.1.pcap", "cboe-cfe-pitch-1.1.6.pcap"],
)
@pytest.mark.parametrize("feed", ["itch50", "iex-deep", "cme-mdp3", "plain"])
def test_captures_of_other_venues_are_counted_by_reason(name: str, feed: str) -> None:
    result = replay(shared(f"omi-directory/{name}"), feed)
    assert result["packets"] > 8_000
    json.dumps(result)
