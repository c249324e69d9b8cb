"""How long decoding takes, from memory to normalised updates, on one core.

    python tools/bench/decode_bench.py [--rounds N]

Blocks as they come on the wire (ITCH: about 1,400 bytes; CME and IEX: the captures' own packets) are
decoded over and over into one small batch. The figure is the fastest and the median round, in ns a
message and a packet. Prints one JSON object a line, as `xdpstack bench --json` does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import xdpstack
from xdpstack._ffi import ffi, lib
from xdpstack.schema import load, reference

CAPTURES = Path(xdpstack.__file__).parent / "captures"
CAP = 4096
Blocks = list[tuple[bytes, int]]


def ritch() -> Blocks:
    """The RITCH capture in MoldUDP64 blocks of about 1,400 bytes."""
    lengths = {m.id: m.length for m in load("itch50").messages}
    raw = (CAPTURES / "ritch-ex20101224.itch50").read_bytes()
    messages, at = [], 0
    while at < len(raw):
        length = lengths[raw[at + 2]]
        messages.append(raw[at + 2 : at + 2 + length])
        at += 2 + length
    return packed(messages)


def mixed() -> Blocks:
    """A random order of types in a Nasdaq day's proportions: what a branch on the type would miss."""
    schema = load("itch50")
    rng = random.Random(1)
    kinds = {"A": 44, "D": 42, "U": 8, "E": 3, "X": 1, "F": 1, "P": 1}
    messages = []
    for type_ in rng.choices(list(kinds), list(kinds.values()), k=200_000):
        message = schema.by_id(ord(type_))
        assert message is not None
        data = bytearray(rng.randbytes(message.length))
        data[0], data[1:3] = ord(type_), rng.randrange(1, 8900).to_bytes(2, "big")
        for update in message.updates:
            if update.side.offset is not None:
                data[update.side.offset] = rng.choice(b"BS")
        messages.append(bytes(data))
    return packed(messages)


def packed(messages: list[bytes]) -> Blocks:
    blocks: Blocks = []
    part: list[bytes] = []
    for message in messages:
        if sum(map(len, part)) + len(message) > 1300:
            blocks.append((reference.frame(load("itch50"), part), len(part)))
            part = []
        part.append(message)
    return [*blocks, (reference.frame(load("itch50"), part), len(part))]


def udp(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(destination address, payload) of captures of Ethernet, IPv4, UDP."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for frame in pcapng(raw) if raw[:4] == b"\x0a\x0d\x0d\x0a" else pcap(raw):
        if frame[12:14] == b"\x08\x00" and frame[23] == 17:
            yield frame[30:34], frame[42 : 14 + int.from_bytes(frame[16:18], "big")]


def pcap(raw: bytes) -> Iterator[bytes]:
    at = 24
    while at + 16 <= len(raw):
        length = struct.unpack_from("<I", raw, at + 8)[0]
        yield raw[at + 16 : at + 16 + length]
        at += 16 + length


def pcapng(raw: bytes) -> Iterator[bytes]:
    at = 0
    while at + 12 <= len(raw):
        kind, length = struct.unpack_from("<II", raw, at)
        if kind == 6:
            yield raw[at + 28 : at + 28 + struct.unpack_from("<I", raw, at + 20)[0]]
        at += length


def cme() -> Blocks:
    path = CAPTURES / "cme-mdp3-v8-line-a-and-b.pcapng"
    return [(payload[12:], 0xFFFF) for dst, payload in udp(path) if dst == bytes((224, 0, 31, 11))]


def iex() -> Blocks:
    path = CAPTURES / "iex-deep10-2017-04-25.pcap.gz"
    found = [(p[40:], int.from_bytes(p[14:16], "little")) for _, p in udp(path) if len(p) > 40]
    return found[:20_000]


def measure(name: str, feed: str, blocks: Blocks, rounds: int, index: bool) -> dict[str, object]:
    """Decode all blocks ``rounds`` times; the time of each round over its messages."""
    decoder = lib.xds_decoder_find(feed.encode())
    config = ffi.new("struct xds_decoder_config *", {"max_instruments": 65_536})
    memory = ffi.new("char[]", lib.xds_decoder_size(decoder, config))
    assert lib.xds_decoder_init(decoder, memory, config) == 0
    raw = ffi.new("struct xds_block[]", len(blocks))
    kept = [ffi.from_buffer(data) for data, _ in blocks]
    for i, (data, count) in enumerate(blocks):
        raw[i].data, raw[i].len, raw[i].count, raw[i].seq = (
            ffi.cast("uint8_t *", kept[i]),
            len(data),
            count,
            i,
        )
    updates, messages = ffi.new("struct xds_update[]", CAP), ffi.new("struct xds_message[]", CAP)
    sink = ffi.new("struct xds_sink *", {"updates": updates, "cap_updates": CAP, "cap_messages": CAP})
    sink.messages = messages if index else ffi.NULL
    total = lib.xds_decoder_run(decoder, memory, raw, len(blocks), sink)
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        lib.xds_decoder_run(decoder, memory, raw, len(blocks), sink)
        times.append(time.perf_counter_ns() - start)
    median = round(statistics.median(times) / total, 2)
    return {
        "bench": name, "ours": round(min(times) / total, 2), "peer": None, "peer_name": None, "ratio": None,
        "unit": "ns", "better": "lower", "n": total * rounds, "median": median,
        "packet_ns": round(min(times) / len(blocks), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    for name, feed, make in (
        ("decode.itch-ritch", "itch50", ritch),
        ("decode.itch-mixed", "itch50", mixed),
        ("decode.sbe", "cme-mdp3", cme),
        ("decode.iex-deep", "iex-deep", iex),
    ):
        blocks = make()
        for index in (False, True):
            label = name + (".indexed" if index else "")
            print(json.dumps(measure(label, feed, blocks, args.rounds, index)), flush=True)


if __name__ == "__main__":
    main()
