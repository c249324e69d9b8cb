"""The decoders on real captures: counts of messages by type, and what the venues' own data proves.

Session headers are stripped here by a few lines of Python, so nothing of ours but the decoder is tested.
Captures outside of the repository are looked for in $XDPSTACK_SHARED_DATA or in shared/data beside it.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import xdpstack
from xdpstack.schema import dtypes, load, plugin, reference, scapy_layer
from xdpstack.schema.model import FLAGS, KINDS
from xdpstack.schema.native import NativeDecoder

CAPTURES = Path(xdpstack.__file__).parent / "captures"
ROOT = Path(xdpstack.__file__).resolve().parents[1]


class Datagram(NamedTuple):
    ns: int
    dst: str
    dport: int
    payload: bytes


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """(time in units of the file, frame) of pcap and pcapng, gzip or not; a cut last record ends it."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if raw[:4] == b"\x0a\x0d\x0d\x0a":
        yield from pcapng_records(raw)
        return
    order = "<" if raw[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    at = 24
    while at + 16 <= len(raw):
        seconds, part, length, _ = struct.unpack_from(order + "IIII", raw, at)
        if at + 16 + length > len(raw):
            return
        yield seconds * 1_000_000 + part, raw[at + 16 : at + 16 + length]
        at += 16 + length


def pcapng_records(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 12 <= len(raw):
        kind, length = struct.unpack_from("<II", raw, at)
        if kind == 6:
            high, low, captured = struct.unpack_from("<III", raw, at + 12)
            yield high << 32 | low, raw[at + 28 : at + 28 + captured]
        at += length


def datagrams(path: Path) -> Iterator[Datagram]:
    """The UDP payloads of a capture; Ethernet with or without VLAN tags, IPv4."""
    for ns, frame in records(path):
        at = 12
        while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
        if frame[at : at + 2] != b"\x08\x00":
            continue
        ip = frame[at + 2 :]
        head = 4 * (ip[0] & 15)
        if ip[9] != 17:
            continue
        total = int.from_bytes(ip[2:4], "big")
        udp = ip[head:total]
        yield Datagram(ns, ".".join(str(b) for b in ip[16:20]), int.from_bytes(udp[2:4], "big"), udp[8:])


class Packet(NamedTuple):
    seq: int
    count: int
    body: bytes


def mold64(payload: bytes) -> Packet:
    seq, count = struct.unpack_from(">QH", payload, 10)
    return Packet(seq, count, payload[20:])


def iextp(payload: bytes) -> Packet:
    length, count, _, seq = struct.unpack_from("<HHQQ", payload, 12)
    return Packet(seq, count, payload[40 : 40 + length])


def cme(payload: bytes) -> Packet:
    return Packet(int.from_bytes(payload[:4], "little"), 0xFFFF, payload[12:])


def shared(relative: str) -> Path:
    """A file of the shared data; skips, aloud, where it is not."""
    folders = [Path(os.environ["XDPSTACK_SHARED_DATA"])] if "XDPSTACK_SHARED_DATA" in os.environ else []
    folders += [ROOT.parent / "shared" / "data", ROOT.parent.parent / "shared" / "data"]
    for folder in folders:
        if (folder / relative).exists():
            return folder / relative
    pytest.skip(f"{relative} is in none of {', '.join(map(str, folders))}; set XDPSTACK_SHARED_DATA")


class Run(NamedTuple):
    native: NativeDecoder
    by_type: Counter[str]
    kinds: Counter[int]
    rows: int


def run(
    feed: str, packets: Iterator[Packet], native: NativeDecoder | None = None, compare: bool = True
) -> Run:
    """Decode packets; with ``compare`` the slow decoder and scapy must say the same."""
    native = native or NativeDecoder(feed, max_instruments=20_000)
    schema = load(feed)
    slow = reference.Decoder(schema, 20_000)
    kinds: Counter[int] = Counter()
    rows = 0
    for packet in packets:
        updates, _ = native.block(packet.body, count=packet.count, seq=packet.seq)
        kinds.update(updates["kind"].tolist())
        rows += len(updates)
        if compare:
            expected = slow.block(reference.Block(packet.body, packet.count, packet.seq))
            assert [tuple(map(int, u)) for u in updates] == [tuple(r) for r in expected]
            for index, data, _ in slow.messages[:3]:
                if index != 0xFFFF:
                    second_opinion(feed, schema.messages[index].name, data)
    return Run(native, Counter(native.stats()["by_type"]), kinds, rows)


def second_opinion(feed: str, name: str, data: bytes) -> None:
    """scapy's reading of one message, field by field, equals the numpy view's."""
    schema = load(feed)
    message = schema.message(name)
    packet = scapy_layer.parse(schema, data)
    assert packet is not None
    view = dtypes.view(message, data).reshape(1)
    if view.dtype.itemsize != message.dtype.itemsize:
        return  # of an older version: the layer knows the newest only
    for field in message.fields:
        theirs = getattr(packet, field.name.replace(".", "_"))
        ours = dtypes.column(view, field.name).tolist()[0]
        assert ours == (theirs.rstrip(b"\0") if isinstance(theirs, bytes) else theirs), (name, field.name)


# -- in the repository --------------------------------------------------------------------------


def itch_messages(raw: bytes) -> Iterator[bytes]:
    """RITCH writes two zero bytes where the length belongs: walk by the length of each type."""
    lengths = {m.id: m.length for m in load("itch50").messages}
    at = 0
    while at < len(raw):
        assert raw[at : at + 2] == b"\0\0"
        length = lengths[raw[at + 2]]
        yield raw[at + 2 : at + 2 + length]
        at += 2 + length


def test_ritch_has_the_message_counts_that_its_origin_says() -> None:
    messages = list(itch_messages((CAPTURES / "ritch-ex20101224.itch50").read_bytes()))
    schema = load("itch50")
    packets = (
        Packet(i + 1, len(part), scapy_layer.frame(schema, part))
        for i in range(0, len(messages), 40)
        for part in [messages[i : i + 40]]
    )
    result = run("itch50", packets)
    by_char = {chr(schema.message(name).id): n for name, n in result.by_type.items()}
    assert by_char == {
        "A": 4997, "P": 5000, "D": 1745, "E": 198, "X": 45, "U": 12, "S": 6, "F": 3, "R": 3, "H": 3,
    }  # fmt: skip
    assert result.native.stats()["reasons"] == {}
    assert [i.symbol for i in result.native.instruments()] == ["ALC", "BOB", "CHAR"]
    assert result.rows == 12_012 - 6 - 3 - 3


@pytest.mark.parametrize("line", ["224.0.31.11", "224.0.32.11"])
def test_both_lines_of_cme_version_8_have_the_message_counts_of_the_capture(line: str) -> None:
    path = CAPTURES / "cme-mdp3-v8-line-a-and-b.pcapng"
    packets = (cme(d.payload) for d in datagrams(path) if d.dst == line)
    result = run("cme-mdp3", packets, compare=line == "224.0.31.11")  # B carries the same bytes
    stats = result.native.stats()
    assert stats["blocks"] == 5000
    assert stats["messages"] == 10_598 // 2
    assert {name[-2:] for name in result.by_type} == {"32", "35", "12", "30", "42", "37"}
    assert stats["reasons"] == {}


def test_rptseq_of_every_instrument_is_whole_in_the_gapless_cme_capture() -> None:
    """The venue's own check: if one entry's offset were wrong, its sequence would jump."""
    path = CAPTURES / "cme-mdp3-v8-line-a-and-b.pcapng"
    result = run(
        "cme-mdp3", (cme(d.payload) for d in datagrams(path) if d.dst == "224.0.31.11"), compare=False
    )
    assert result.native.stats()["instrument_gaps"] == 0
    assert {i.scale for i in result.native.instruments()} == {7}


def test_a_lost_cme_packet_shows_in_the_sequence_of_its_instruments() -> None:
    path = CAPTURES / "cme-mdp3-v8-line-a-and-b.pcapng"
    packets = [cme(d.payload) for d in datagrams(path) if d.dst == "224.0.31.11"]
    lost = next(i for i, p in enumerate(packets) if i > 1000 and p.body[4:6] == b"\x20\0")
    result = run("cme-mdp3", iter(packets[:lost] + packets[lost + 1 :]))
    assert result.native.stats()["instrument_gaps"] >= 1


def test_cme_version_9_has_the_message_counts_of_the_capture() -> None:
    path = CAPTURES / "cme-mdp3-v9-nine-channels-natural-gaps.pcap"
    found = [d for d in datagrams(path) if d.dst.startswith("224.0.28.")]
    assert len(found) == 99
    result = run("cme-mdp3", (cme(d.payload) for d in found))
    assert sum(result.by_type.values()) == 194
    assert {name[-2:] for name in result.by_type} == {"46", "47", "48", "37"}
    assert result.native.stats()["reasons"] == {}
    assert {i.scale for i in result.native.instruments()} == {9, 7} - (
        {7} if not old_prices(result) else set()
    )


def old_prices(result: Run) -> bool:
    """Whether instruments exist that no price was seen of: they have the schema's scale."""
    return any(i.scale == 7 for i in result.native.instruments())


IEX_COUNTS = {"levels": 27_568, "T": 83_343, "status": 280_912, "S": 44, "E": 59, "B": 73}


def check_iex(path: Path) -> None:
    found = [iextp(d.payload) for d in datagrams(path)]
    result = run("iex-deep", iter(found), compare=False)
    stats = result.native.stats()
    assert stats["reasons"] == {}
    schema = load("iex-deep")
    by_char = {chr(schema.message(name).id): n for name, n in result.by_type.items()}
    walked = walk_iex(found)
    assert by_char == walked
    assert len(found) == 121_314
    assert sum(1 for p in found if not p.count) == 7_937
    assert sum(by_char.values()) == 391_999
    assert by_char["8"] + by_char["5"] == IEX_COUNTS["levels"]
    assert by_char["H"] + by_char["O"] + by_char["P"] == IEX_COUNTS["status"]
    assert {k: by_char[k] for k in "TSEB"} == {k: IEX_COUNTS[k] for k in "TSEB"}
    level, trade = KINDS["level"], KINDS["trade"]
    assert result.kinds[level] == by_char["8"] + by_char["5"]
    assert result.kinds[trade] == by_char["T"]


def walk_iex(packets: list[Packet]) -> dict[str, int]:
    """Counts by an independent walk of the u16 lengths."""
    counts: Counter[str] = Counter()
    for packet in packets:
        at = 0
        while at < len(packet.body):
            length = int.from_bytes(packet.body[at : at + 2], "little")
            counts[chr(packet.body[at + 2])] += 1
            at += 2 + length
    return dict(counts)


def test_iex_deep_has_the_message_counts_of_the_capture() -> None:
    path = CAPTURES / "iex-deep10-2017-04-25.pcap.gz"
    check_iex(path)


def test_iex_deep_updates_equal_the_slow_decoder_on_part_of_the_capture() -> None:
    found = [iextp(d.payload) for _, d in zip(range(3000), datagrams(CAPTURES / "iex-deep10-2017-04-25.pcap.gz"), strict=False)]  # noqa: E501  # fmt: skip
    result = run("iex-deep", iter(found))
    assert result.rows > 0
    assert all(len(i.symbol) > 0 for i in result.native.instruments())


# -- the shared collection ------------------------------------------------------------------------

ITCH_PACKETS = {
    "AddOrderNoMpidAttributionMessage": "A", "MarketParticipantPositionMessage": "L",
    "NetOrderImbalanceIndicatorMessage": "I", "OrderDeleteMessage": "D", "OrderExecutedMessage": "E",
    "OrderReplaceMessage": "U", "StockTradingActionMessage": "H",
}  # fmt: skip
ITCH_2023 = {
    "AddOrderNoMPID": "A", "AddOrderWithMPID": "F", "CrossTrade": "Q", "LULDAuctionCollar": "J",
    "MarketParticipantPosition": "L", "NetOrderImbalanceIndicator": "I", "NonCrossTrade": "P",
    "OrderCancel": "X", "OrderDelete": "D", "OrderExecuted": "E", "OrderExecutedWithPrice": "C",
    "OrderReplace": "U", "RegSHORestriction": "Y", "StockTradingAction": "H", "SystemEvent": "S",
}  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "name", "type_"),
    [("v5.0", *item) for item in ITCH_PACKETS.items()]
    + [("v5.0.20230822", *item) for item in ITCH_2023.items()],
)
def test_single_itch_packets_hold_the_message_that_their_name_says(
    folder: str, name: str, type_: str
) -> None:
    path = shared(f"omi-data-packets/Nasdaq/Nasdaq.Equities.TotalView.Itch.{folder}/{name}.pcap")
    packets = [mold64(d.payload) for d in datagrams(path)]
    result = run("itch50", iter(packets), NativeDecoder("itch50", max_instruments=65_536))
    assert packets
    if not any(p.count for p in packets):
        pytest.skip(f"{name}: the capture holds heartbeats only")
    message = load("itch50").by_id(ord(type_))
    assert message is not None
    assert result.by_type[message.name] >= 1
    assert result.native.stats()["reasons"] == {}


TOPS_PACKETS = {
    "AuctionInformationMessage": "A", "OfficialPriceMessage": "X", "OperationalHaltStatusMessage": "O",
    "QuoteUpdateMessage": "Q", "SecurityDirectoryMessage": "D", "ShortSalePriceTestStatusMessage": "P",
    "SystemEventMessage": "S", "TradeReportMessage": "T", "TradingStatusMessage": "H",
}  # fmt: skip


@pytest.mark.parametrize(("name", "type_"), TOPS_PACKETS.items())
def test_single_tops_packets_hold_the_message_that_their_name_says(name: str, type_: str) -> None:
    path = shared(f"omi-data-packets/Iex/Tops.IexTp.v1.5/{name}.pcap")
    result = run("iex-tops", (iextp(d.payload) for d in datagrams(path)))
    message = load("iex-tops").by_id(ord(type_))
    assert message is not None
    assert result.by_type[message.name] >= 1
    assert result.native.stats()["reasons"] == {}


@pytest.mark.parametrize(("name", "side"), [("Buy", 1), ("Sell", 2)])
def test_single_deep_packets_are_one_level_of_their_side(name: str, side: int) -> None:
    path = shared(f"omi-data-packets/Iex/Deep.IexTp.v1.0/PriceLevel{name}UpdateMessage.pcap")
    (packet,) = (iextp(d.payload) for d in datagrams(path))
    updates, _ = NativeDecoder("iex-deep").block(packet.body, count=packet.count, seq=packet.seq)
    assert [(int(u["kind"]), int(u["side"]), int(u["flags"])) for u in updates] == [
        (KINDS["level"], side, FLAGS["last"])
    ]


def test_a_deep_heartbeat_is_an_empty_block() -> None:
    path = shared("omi-data-packets/Iex/Deep.IexTp.v1.0/Heartbeat.pcap")
    (packet,) = (iextp(d.payload) for d in datagrams(path))
    native = NativeDecoder("iex-deep")
    updates, messages = native.block(packet.body, count=packet.count)
    assert (len(updates), len(messages), native.stats()["reasons"]) == (0, 0, {})


CME_PACKETS = {
    "v1.8/MdIncrementalRefreshTradeSummary": 42, "v1.9/MdIncrementalRefreshBook": 46,
    "v1.9/MdIncrementalRefreshOrderBook": 47, "v1.9/MdIncrementalRefreshTradeSummary": 48,
    "v1.9/MdIncrementalRefreshVolume": 37,
}  # fmt: skip


@pytest.mark.parametrize(("name", "id_"), CME_PACKETS.items())
def test_single_cme_packets_hold_the_template_that_their_name_says(name: str, id_: int) -> None:
    path = shared(f"omi-data-packets/Cme/Mdp3.Sbe.{name}.pcap")
    result = run("cme-mdp3", (cme(d.payload) for d in datagrams(path)))
    message = load("cme-mdp3").by_id(id_)
    assert message is not None
    assert result.by_type[message.name] >= 1
    assert result.native.stats()["reasons"] == {}


@pytest.mark.parametrize(
    "name", ["MdIncrementalRefreshBookLongQty", "MdIncrementalRefreshTradeSummaryLongQty"]
)
def test_cme_templates_newer_than_ours_are_stepped_over_and_counted(name: str) -> None:
    """They came by TCP: two bytes of encoding type before the usual packet header."""
    path = shared(f"omi-data-packets/Cme/Mdp3.Sbe.v1.12/{name}.pcap")
    packets = [cme(frame[14 + 20 + 20 + 2 :]) for _, frame in records(path)]
    result = run("cme-mdp3", iter(packets))
    assert result.native.stats()["reasons"] == {"unknown_type": len(packets)}


def test_the_head_of_a_nasdaq_day_names_its_symbols() -> None:
    path = shared("nasdaq-itch/itch50-first-1000-messages.itch")
    native = NativeDecoder("itch50", max_instruments=65_536)
    result = run("itch50", iter([Packet(1, 0xFFFF, path.read_bytes())]), native)
    names = {"system_event": 1, "stock_directory": 993, "stock_trading_action": 3, "reg_sho": 3}
    assert dict(result.by_type) == names
    symbols = [i.symbol for i in native.instruments()]
    assert len(symbols) == 993
    assert "A" in symbols
    assert all(symbols)


# A venue that this tree does not know, as its user would write it: order by order, over IEX-TP.
DEEP_PLUS = """
name = "deep-plus"
session = "iextp"
framing = "u16le"
byte_order = "little"
book = 3
scale = 4
[instrument]
key = "symbol"
symbol = "symbol"
define = ["security_directory"]
[update]
venue_ns = "timestamp"
order_id = "order_id"
[header]
layout = '''
flags     char
timestamp u64
'''
[message.system_event]
id = "S"
[message.security_directory]
id = "D"
layout = '''
symbol char8
round_lot u32
poc sprice4x64
luld_tier u8
'''
[message.trading_status]
id = "H"
layout = '''
symbol char8
reason char4
'''
[message.operational_halt]
id = "O"
layout = "symbol char8"
[message.retail_liquidity]
id = "I"
layout = "symbol char8"
[message.security_event]
id = "E"
layout = "symbol char8"
[message.short_sale]
id = "P"
layout = '''
symbol char8
detail char
'''
[message.add_order]
id = "a"
layout = '''
symbol char8
order_id u64
size u32
price sprice4x64
'''
update = { kind = "add", side = { field = "flags", 8 = "bid", 5 = "ask" }, price = "price", qty = "size" }
[message.order_modify]
id = "M"
layout = "= add_order"
update = { kind = "modify", price = "price", qty = "size" }
[message.order_delete]
id = "R"
layout = '''
symbol char8
order_id u64
'''
update = { kind = "delete" }
[message.order_executed]
id = "L"
layout = '''
symbol char8
order_id u64
size u32
price sprice4x64
trade_id u64
'''
update = { kind = "execute", price = "price", qty = "size", ref = "trade_id" }
[message.trade]
id = "T"
layout = '''
symbol char8
size u32
price sprice4x64
trade_id u64
'''
update = { kind = "trade", price = "price", qty = "size", ref = "trade_id" }
[message.trade_break]
id = "B"
layout = "= trade"
update = { kind = "trade_break", price = "price", qty = "size", ref = "trade_id" }
"""


def test_a_venue_that_we_do_not_know_is_a_file_and_no_code(tmp_path: Path) -> None:
    path = shared("omi-data-packets/Iex/DeepPlus.IexTp.1.0.2/all_message_types.pcap")
    file = tmp_path / "deep-plus.toml"
    file.write_text(DEEP_PLUS)
    native = NativeDecoder(plugin.build(file, tmp_path / "deep-plus.so"))
    slow = reference.Decoder(load(file), 10_000)
    found = []
    for packet in (iextp(d.payload) for d in datagrams(path)):
        updates, _ = native.block(packet.body, count=packet.count, seq=packet.seq)
        expected = slow.block(reference.Block(packet.body, packet.count, packet.seq))
        assert [tuple(map(int, u)) for u in updates] == [tuple(r) for r in expected]
        found += [(int(u["kind"]), int(u["side"]), int(u["price"]), int(u["qty"])) for u in updates]
    stats = native.stats()
    assert stats["reasons"] == {}
    assert len(stats["by_type"]) == 13
    assert (KINDS["add"], 2, 1_365_000, 100) in found
    assert any(i.symbol == "IBKR" for i in native.instruments())
