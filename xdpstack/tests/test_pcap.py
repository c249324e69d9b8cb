"""Captures: read and written, with scapy and capinfos as second opinions, cut at every byte."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.utils import PcapNgReader, PcapReader, RawPcapNgReader, wrpcap

from xdpstack._ffi import lib
from xdpstack.errors import ConfigError, SetupError
from xdpstack.port import NEVER, PcapPort, PcapWriter
from xdpstack.testing import capture_pair, check_link, make_frames

CAPTURES = Path(__file__).parents[1] / "captures"
SUFFIXES = [".pcap", ".pcapng", ".pcap.gz", ".pcapng.gz", ".pcap.zst", ".pcapng.zst"]
START = 1_700_000_000_123_456_789


def read_all(path: Path, **options: object) -> list[tuple[bytes, int, int, int]]:
    with PcapPort(path, **options) as port:
        got = []
        while frames := port.receive(64):
            got += [(bytes(frame.data), frame.rx_ns, frame.queue, frame.flags) for frame in frames]
        assert port.at_end
        return got


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_capture_is_a_link(tmp_path: Path, suffix: str) -> None:
    numbers = itertools.count()
    check_link(lambda: capture_pair(tmp_path / f"{next(numbers)}{suffix}"))


@pytest.mark.parametrize(
    ("name", "packets", "truncated"),
    [
        ("cme-mdp3-v8-line-a-and-b.pcapng", 10_000, 0),
        ("cme-mdp3-v9-nine-channels-natural-gaps.pcap", 100, 0),
        ("iex-deep10-2017-04-25.pcap.gz", 121_314, 1),
    ],
)
def test_a_real_capture_gives_every_packet(name: str, packets: int, truncated: int) -> None:
    with PcapPort(CAPTURES / name) as port:
        seen = 0
        while frames := port.receive(4096):
            seen += len(frames)
        stats = port.stats()
    assert (seen, stats["rx_frames"], stats["rx_truncated"]) == (packets, packets, truncated)


@pytest.mark.parametrize(
    "name", ["cme-mdp3-v8-line-a-and-b.pcapng", "cme-mdp3-v9-nine-channels-natural-gaps.pcap"]
)
def test_scapy_reads_the_same_bytes_and_stamps(name: str) -> None:
    reader = PcapNgReader if name.endswith("ng") else PcapReader
    with reader(str(CAPTURES / name)) as second:
        theirs = [
            (bytes(packet), round(packet.time * 1_000_000_000)) for packet in itertools.islice(second, 1000)
        ]
    ours = [(data, stamp) for data, stamp, _, _ in read_all(CAPTURES / name)[: len(theirs)]]
    assert ours == theirs


@pytest.mark.parametrize("window", [4096, 8192, 1 << 20])
def test_the_window_changes_nothing(window: int, tmp_path: Path) -> None:
    frames = make_frames(500, longest=3000)
    path = tmp_path / "a.pcapng"
    with PcapWriter(path) as writer:
        for number, frame in enumerate(frames):
            writer.write(START + number, frame)
    got = read_all(path, window=window)
    assert [data for data, *_ in got] == frames
    assert [stamp for _, stamp, *_ in got] == list(range(START, START + 500))


RECORDS = st.lists(
    st.tuples(st.integers(0, 2**62), st.binary(min_size=0, max_size=300), st.integers(0, 2)), max_size=20
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS, suffix=st.sampled_from(SUFFIXES), snaplen=st.sampled_from([40, 65535]))
def test_what_is_written_is_read(
    tmp_path: Path, records: list[tuple[int, bytes, int]], suffix: str, snaplen: int
) -> None:
    path = tmp_path / f"round{suffix}"
    one = "pcapng" not in suffix
    if one:  # 32 bits of seconds, one interface
        records = [(stamp % (2**32 * 10**9), data, 0) for stamp, data, _ in records]
    with PcapWriter(path, snaplen=snaplen) as writer:
        for name in ["only"] if one else ["left", "right", "turns"]:
            writer.add_interface(name)
        for stamp, data, interface in records:
            assert writer.write(stamp, data, interface=interface) == (len(data) > snaplen)
    with PcapPort(path) as port:
        if not one:
            assert [i["name"] for i in port.info()["interfaces"]] == ["left", "right", "turns"] or not records
    expected = [
        (data[:snaplen], stamp, interface, lib.XDS_FRAME_CUT if len(data) > snaplen else 0)
        for stamp, data, interface in records
    ]
    assert read_all(path) == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_capinfos_agrees_with_what_we_write(tmp_path: Path, suffix: str) -> None:
    if shutil.which("capinfos") is None:
        pytest.skip("capinfos (tshark) is not installed")
    path = tmp_path / f"ours{suffix}"
    frames = make_frames(321)
    with PcapWriter(path) as writer:
        for number, frame in enumerate(frames):
            writer.write(START + number * 1000, frame)
    said = subprocess.run(["capinfos", "-Mcda", path], capture_output=True, text=True, check=True).stdout
    assert re.search(r"Number of packets:\s+321$", said, re.M), said
    assert re.search(rf"Data size:\s+{sum(map(len, frames))} bytes", said), said
    assert ".123456789" in said, "nanoseconds survive"


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
def test_scapy_reads_what_we_write(tmp_path: Path, suffix: str) -> None:
    path, frames = tmp_path / f"ours{suffix}", make_frames(50)
    with PcapWriter(path) as writer:
        for number, frame in enumerate(frames):
            writer.write(START + number, frame)
    reader = PcapNgReader if suffix == ".pcapng" else PcapReader
    with reader(str(path)) as second:
        assert [bytes(packet) for packet in second] == frames


def test_we_read_what_scapy_writes(tmp_path: Path) -> None:
    path, frames = tmp_path / "theirs.pcap", make_frames(50)
    wrpcap(str(path), frames)
    assert [data for data, *_ in read_all(path)] == frames
    wrpcap(str(tmp_path / "ns.pcap"), frames, nano=True)
    assert [data for data, *_ in read_all(tmp_path / "ns.pcap")] == frames


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_either_byte_order_and_resolution(tmp_path: Path, order: str, magic: int, unit: int) -> None:
    path = tmp_path / "a.pcap"
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(head + struct.pack(order + "IIII", 1000, 999, 3, 5) + b"abc")
    assert read_all(path) == [(b"abc", 1000 * 10**9 + 999 * unit, 0, lib.XDS_FRAME_CUT)]


def block(order: str, kind: int, body: bytes) -> bytes:
    body += b"\0" * (-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def section(order: str, *options: bytes) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1) + b"".join(options))


def interface(order: str, linktype: int, *options: bytes, snaplen: int = 0) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", linktype, 0, snaplen) + b"".join(options))


def packet(order: str, number: int, ticks: int, data: bytes, length: int | None = None) -> bytes:
    fields = (number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data) if length is None else length)
    return block(order, 6, struct.pack(order + "IIIII", *fields) + data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("tsresol", "ticks", "ns"),
    [
        (None, 1_500_000, 1_500_000_000),
        (6, 1_500_000, 1_500_000_000),
        (9, 1_500_000_001, 1_500_000_001),
        (3, 1_500, 1_500_000_000),
        (0, 7, 7_000_000_000),
        (12, 1_500_000_000_999, 1_500_000_000),
        (0x80 | 10, 1536, 1_500_000_000),
        (0x80 | 32, (3 << 32) | (1 << 31), 3_500_000_000),
        (127, 2**64 - 1, 0),
    ],
)
def test_any_time_resolution(tmp_path: Path, order: str, tsresol: int | None, ticks: int, ns: int) -> None:
    path = tmp_path / "a.pcapng"
    options = [] if tsresol is None else [option(order, 9, bytes([tsresol]))]
    path.write_bytes(section(order) + interface(order, 1, *options) + packet(order, 0, ticks, b"abcd"))
    assert read_all(path) == [(b"abcd", ns, 0, 0)]


def test_every_kind_of_block(tmp_path: Path) -> None:
    path, order = tmp_path / "a.pcapng", "<"
    offset = option(order, 14, struct.pack("<q", 100))
    path.write_bytes(
        section(order, option(order, 1, b"a comment"))
        + interface(order, 1, option(order, 2, b"left"), option(order, 9, b"\x09"))
        + block(order, 0x0BAD, b"custom")
        + interface(order, 1, option(order, 2, b"right"), offset, snaplen=4)
        + packet(order, 0, 5, b"one")
        + packet(order, 1, 1_000_000, b"two", 9)
        + block(order, 5, b"\0" * 12)  # interface statistics
        + block(order, 2, struct.pack("<HHIIII", 1, 0, 0, 2_000_000, 3, 3) + b"old")
        + block(order, 3, struct.pack("<I", 6) + b"simple")
        + section(">")
        + interface(">", 1, option(">", 2, b"later"))
        + packet(">", 0, 7, b"four")
        + block(">", 3, struct.pack(">I", 2) + b"by")
    )
    with PcapPort(path) as port:
        got = [(bytes(f.data), f.rx_ns, f.queue, f.flags) for f in port.receive(64)]
        info = port.info()
    assert got == [
        (b"one", 5, 0, 0),
        (b"two", 101 * 10**9, 1, lib.XDS_FRAME_CUT),
        (b"old", 102 * 10**9, 1, 0),
        (b"simple", 102 * 10**9, 0, 0),
        (b"four", 7000, 2, 0),
        (b"by", 7000, 2, 0),
    ]
    assert [i["name"] for i in info["interfaces"]] == ["left", "right", "later"]
    assert (info["sections"], info["blocks_skipped"], info["format"]) == (2, 2, "pcapng")


def test_an_unknown_block_larger_than_the_window_is_passed_over(tmp_path: Path) -> None:
    path, order = tmp_path / "a.pcapng", "<"
    path.write_bytes(
        section(order)
        + interface(order, 1)
        + block(order, 0x0BAD, bytes(100_000))
        + packet(order, 0, 1, b"on")
    )
    assert [data for data, *_ in read_all(path, window=4096)] == [b"on"]


def test_other_link_types_are_counted_and_given_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with PcapWriter(path, clock="tai") as writer:
        writer.add_interface("eth0")
        writer.add_interface("turns", lib.XDS_LINKTYPE_USER0)
        writer.write(1, b"x" * 60)
        writer.write(2, b"turn", interface=1)
    with PcapPort(path) as port:
        assert [frame.queue for frame in port.receive(8)] == [0]
        assert port.stats()["rx_dropped"] == 1
        assert port.clock == "tai"
        assert [i["linktype"] for i in port.info()["interfaces"]] == [1, 147]
    assert [(queue, data) for data, _, queue, _ in read_all(path, all_types=True)][1] == (1, b"turn")


def test_virtual_time_gives_what_is_due(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    with PcapWriter(path) as writer:
        for stamp in (100, 200, 200, 150, 400):  # not quite in order, as real captures are
            writer.write(stamp, b"x" * 60)
    with PcapPort(path) as port:
        assert port.virtual_time
        assert port.read_only
        assert port.deadline == 100
        assert port.receive(8, now=99) == []
        assert [frame.rx_ns for frame in port.receive(8, now=200)] == [100, 200, 200, 150]
        assert port.deadline == 400
        assert [frame.rx_ns for frame in port.receive(8)] == [400]
        assert port.deadline == NEVER
        assert port.send([b"x" * 60]) == 0
        assert not port.at_end
        assert port.receive(8) == []
        assert port.at_end


def small_captures(tmp_path: Path) -> dict[str, bytes]:
    frames = make_frames(3, longest=70)
    made = {}
    for suffix in SUFFIXES:
        path = tmp_path / f"small{suffix}"
        with PcapWriter(path) as writer:
            for number, frame in enumerate(frames):
                writer.write(START + number, frame)
        made[suffix] = path.read_bytes()
    return made


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_capture_cut_at_any_byte_gives_a_prefix_and_counts_the_rest(tmp_path: Path, suffix: str) -> None:
    whole, path = small_captures(tmp_path)[suffix], tmp_path / f"cut{suffix}"
    path.write_bytes(whole)
    everything = read_all(path)
    assert len(everything) == 3
    borders = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            port = PcapPort(path)
        except SetupError as error:
            assert "header" in str(error) or "neither" in str(error)  # noqa: PT017
            continue
        with port:
            got = [(bytes(f.data), f.rx_ns, f.queue, f.flags) for f in port.receive(64)]
            assert got == everything[: len(got)]
            assert port.receive(64) == []
            assert port.at_end
            truncated = port.stats()["rx_truncated"]
            assert truncated in (0, 1)
            borders += truncated == 0
    assert borders <= 4, "only between records is nothing missing"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_gives_frames_or_one_sentence(tmp_path: Path, suffix: str) -> None:
    whole, path = small_captures(tmp_path)[suffix], tmp_path / f"bad{suffix}"
    outcomes = set()
    for at in range(len(whole)):
        for value in (0x00, 0xFF, whole[at] ^ 0x80):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                with PcapPort(path, window=4096, all_types=True) as port:
                    while port.receive(64):
                        pass
                    outcomes.add("read")
            except (SetupError, ValueError) as error:
                assert str(path) in str(error)  # noqa: PT017
                outcomes.add(type(error).__name__)
    assert "SetupError" in outcomes


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(
        [b"", b"\xd4\xc3\xb2\xa1", b"\x0a\x0d\x0d\x0a", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"]
    ),
    rest=st.binary(max_size=400),
)
def test_garbage_is_refused_or_read_but_never_worse(tmp_path: Path, head: bytes, rest: bytes) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(head + rest)
    try:
        with PcapPort(path, window=4096) as port:
            for _ in range(100):
                if not port.receive(64) and port.at_end:
                    break
    except (SetupError, ValueError) as error:
        assert "garbage" in str(error)  # noqa: PT017


def test_packed_files_may_have_several_parts(tmp_path: Path) -> None:
    whole = small_captures(tmp_path)[".pcap"]
    for name, pack in (("a.gz", gzip.compress), ("a.zst", zstandard.compress)):
        path = tmp_path / name
        path.write_bytes(pack(whole[:50]) + pack(whole[50:51]) + pack(b"") + pack(whole[51:]))
        assert len(read_all(path)) == 3
    padded = tmp_path / "padded.gz"
    padded.write_bytes(gzip.compress(whole) + bytes(1000))
    assert len(read_all(padded)) == 3


def test_a_packing_that_we_do_not_know_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap.bz2"
    path.write_bytes(bz2.compress(small_captures(tmp_path)[".pcap"]))
    with pytest.raises(SetupError, match="neither pcap nor pcapng"):
        PcapPort(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "shorter"), (b"\xd4\xc3\xb2\xa1", "shorter"), (b"hello world" * 9, "neither")],
)
def test_what_is_no_capture_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "no.pcap"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=words):
        PcapPort(path)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="No such file"):
        PcapPort(tmp_path / "missing.pcap")
    with pytest.raises(SetupError, match="directory"):
        PcapPort(tmp_path)
    with pytest.raises(SetupError, match="No such file"):
        PcapWriter(tmp_path / "nowhere" / "a.pcap")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.gz", "a.pcap.bz2"])
def test_a_suffix_that_says_no_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name it"):
        PcapWriter(tmp_path / name)


def test_what_was_flushed_can_be_read_while_writing_goes_on(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / f"live{suffix}"
        with PcapWriter(path) as writer:
            writer.write(START, b"x" * 60)
            writer.flush()
            assert [data for data, *_ in read_all(path)] == [b"x" * 60]


def test_a_full_disk_is_an_error_that_stays() -> None:
    with pytest.raises(OSError, match="No space"), PcapWriterTo("/dev/full") as writer:  # noqa: PT012
        for _ in range(100_000):
            writer.write(1, b"x" * 1000)


class PcapWriterTo(PcapWriter):
    """A writer into a file whose name has no suffix."""

    def __init__(self, path: str) -> None:
        link = Path(f"/tmp/xdpstack-test-{id(self)}.pcap")
        link.symlink_to(path)
        try:
            super().__init__(link, buffer=70_000)
        finally:
            link.unlink()


def test_pcap_holds_one_interface(tmp_path: Path) -> None:
    with PcapWriter(tmp_path / "a.pcap") as writer:
        writer.add_interface("eth0")
        with pytest.raises(ValueError, match="bound"):
            writer.add_interface("eth1")


def test_tshark_reads_names_and_offset_of_a_recording(tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    path = tmp_path / "a.pcapng"
    with PcapWriter(path, clock="tai") as writer:
        writer.add_interface("eth7")
        writer.write(START, make_frames(1)[0])
    said = subprocess.run(
        ["tshark", "-r", path, "-T", "json", "-e", "frame.interface_name", "-e", "frame.len"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    layers = json.loads(said)[0]["_source"]["layers"]
    assert layers == {"frame.interface_name": ["eth7"], "frame.len": ["60"]}


def test_a_comment_of_a_packet_is_kept_in_pcapng_and_read_over_by_every_reader(tmp_path):
    path = tmp_path / "c.pcapng"
    with PcapWriter(path) as writer:
        for number in range(5):
            writer.write(10**18 + number, bytes(60 + number), comment="x" * number + "é")
        writer.write(10**18 + 9, b"y" * 14, comment="z" * 5000)  # cut at 1,024 bytes
    assert [len(data) for data, _ in RawPcapNgReader(str(path))] == [60, 61, 62, 63, 64, 14]
    with PcapPort(path) as port:
        assert [len(frame.data) for frame in port.receive(64)] == [60, 61, 62, 63, 64, 14]
    data = path.read_bytes()
    assert "xxxé".encode() in data
    assert b"z" * 1024 in data
    assert b"z" * 1025 not in data
    plain = tmp_path / "c.pcap"
    with PcapWriter(plain) as writer:
        writer.write(10**18, bytes(60), comment="lost")
    assert b"lost" not in plain.read_bytes()
