"""The schema model, its files and what is made of them without the native core."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import xdpstack.schema
from xdpstack.errors import ConfigError
from xdpstack.schema import document, dtypes, emit_c, load, model, names
from xdpstack.schema.sbe import read_templates

ROOT = Path(__file__).resolve().parents[2]

# Nasdaq TotalView-ITCH 5.0, section 4: message type and length in bytes.
ITCH_LENGTHS = {
    "S": 12, "R": 39, "H": 25, "Y": 20, "L": 26, "V": 35, "W": 12, "K": 28, "J": 35, "h": 21, "A": 36,
    "F": 40, "E": 31, "C": 36, "X": 23, "D": 19, "U": 35, "P": 44, "Q": 40, "B": 19, "I": 50, "N": 20,
    "O": 48,
}  # fmt: skip
# IEX DEEP 1.0 and TOPS 1.6: message type and length in bytes.
IEX_LENGTHS = {
    "S": 10, "D": 31, "H": 22, "O": 18, "P": 19, "I": 18, "T": 38, "X": 26, "B": 38, "A": 80, "E": 18,
    "8": 30, "5": 30, "Q": 42,
}  # fmt: skip


def write(folder: Path, text: str) -> Path:
    path = folder / "venue.toml"
    path.write_text(text)
    return path


MINIMAL = """
name = "venue"
session = "plain"
framing = "u16le"
byte_order = "little"
book = 2
[instrument]
key = "id"
index = "direct"
[message.level]
id = "L"
layout = '''
id u16
side char
price u32
qty u32
'''
update = { kind = "level", side = { field = "side", B = "bid", S = "ask" }, price = "price", qty = "qty" }
"""


def test_every_itch_type_has_the_length_of_the_specification() -> None:
    assert {chr(m.id): m.length for m in load("itch50").messages} == ITCH_LENGTHS


@pytest.mark.parametrize("name", ["iex-deep", "iex-tops"])
def test_every_iex_type_has_the_length_of_the_specification(name: str) -> None:
    lengths = {chr(m.id): m.length for m in load(name).messages}
    assert lengths == {key: IEX_LENGTHS[key] for key in lengths}
    assert set(IEX_LENGTHS) - set(lengths) == ({"Q"} if name == "iex-deep" else {"E", "8", "5"})


def test_plain_messages_have_the_offsets_of_the_requirement() -> None:
    message = load("plain").message("add")
    places = {f.name: (f.offset, f.size) for f in message.fields}
    assert places == {
        "type": (0, 1), "side": (1, 1), "symbol_id": (2, 2), "price": (4, 8), "quantity": (12, 8),
        "order_id": (20, 8),
    }  # fmt: skip
    assert message.length == 28


def test_cme_templates_of_three_versions_merge_by_id() -> None:
    schema = load("cme-mdp3")
    assert schema.versions == (5, 8, 9)
    files = [read_templates(xdpstack.schema.FOLDER / f"cme-mdp3.v{v}.xml") for v in schema.versions]
    assert {m.id for m in schema.messages} == set().union(*(f.messages for f in files))
    assert schema.by_id(36) is not None  # to version 8 only
    book = schema.by_id(32)
    assert book is not None
    assert book.group("NoOrderIDEntries").since == 7


def test_a_field_that_an_older_file_lacks_is_absent_in_its_version(tmp_path: Path) -> None:
    """Even where the newer file does not say since when it exists."""
    for version, more in ((5, ""), (8, '<field name="b" type="uint8" offset="4"/>')):
        (tmp_path / f"t{version}.xml").write_text(
            f'<messageSchema id="1" version="{version}"><types/><message name="M" id="1" blockLength="8">'
            f'<field name="a" type="uint32" offset="0"/>{more}</message></messageSchema>'
        )
    path = write(tmp_path, 'session = "cme"\nframing = "sbe"\ntemplates = ["t5.xml", "t8.xml"]\n')
    message = load(path).message("M")
    assert (message["a"].since, message["b"].since) == (0, 6)


def test_sbe_fields_lie_inside_their_blocks() -> None:
    for message in load("cme-mdp3").messages:
        assert all(f.end <= message.length for f in message.fields), message.name
        for group in message.groups:
            assert all(f.end <= group.block_length for f in group.fields), (message.name, group.name)


@pytest.mark.parametrize("name", names())
def test_fields_do_not_overlap(name: str) -> None:
    for message in load(name).messages:
        for fields in [message.fields, *(g.fields for g in message.groups)]:
            ordered = sorted(fields, key=lambda f: f.offset)
            assert all(a.end <= b.offset for a, b in itertools.pairwise(ordered)), message.name


@pytest.mark.parametrize("name", names())
def test_dtypes_have_the_wire_offsets_and_sizes(name: str) -> None:
    schema = load(name)
    for message in schema.messages:
        form = message.dtype
        assert form.itemsize == message.header + message.length
        for field in message.fields:
            kind, offset = form.fields[field.name][:2]
            assert (offset - message.header, kind.itemsize) == (field.offset, field.size), (
                message.name,
                field.name,
            )
        for group in message.groups:
            assert dtypes.group_dtype(message, group).itemsize == group.block_length
    assert set(dtypes.feed_dtypes(name)) == set(schema.names)


def test_a_48_bit_time_is_joined_by_column() -> None:
    message = load("itch50").message("order_delete")
    data = bytes.fromhex("44 0007 0001 123456789abc 0000000000000009".replace(" ", ""))
    view = dtypes.view(message, data)
    assert int(dtypes.column(view, "timestamp")) == 0x123456789ABC
    assert int(view["order_reference"]) == 9
    assert int(view["stock_locate"]) == 7


def test_a_view_shares_the_bytes() -> None:
    data = bytearray(load("itch50").message("order_delete").length)
    view = dtypes.view(load("itch50").message("order_delete"), data)
    data[18] = 5
    assert int(view["order_reference"]) == 5


def test_a_short_message_is_refused_as_a_view() -> None:
    with pytest.raises(ConfigError, match="needs 19 bytes, there are 18"):
        dtypes.view(load("itch50").message("order_delete"), bytes(18))


def test_an_older_sbe_message_is_viewed_by_its_own_block_length() -> None:
    """Version 5 sends 214 bytes of MDInstrumentDefinitionFuture27, later ones 216."""
    message = load("cme-mdp3").by_id(27)
    assert message is not None
    data = (214).to_bytes(2, "little") + bytes(6 + 214)
    view = dtypes.view(message, data)
    assert "TradingReferenceDate" not in view.dtype.names
    assert view.dtype.itemsize == 222


def test_format_tables_are_current() -> None:
    shown = (xdpstack.schema.FOLDER / "FORMATS.md").read_text()
    assert shown == document.all_tables(), "run: python -m xdpstack.schema doc -o xdpstack/schemas/FORMATS.md"


@pytest.mark.parametrize("name", names())
def test_generation_is_deterministic(name: str) -> None:
    assert emit_c.emit(load(name)) == emit_c.emit(load(name))


def test_the_generator_imports_neither_numpy_nor_the_native_core() -> None:
    """It runs before either may be there: the build calls it."""
    code = (
        "import sys, runpy; sys.argv = ['x', 'c', 'xdpstack/schemas/cme-mdp3.toml', '-o', '/dev/null']\n"
        "try: runpy.run_module('xdpstack.schema', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "bad = {'numpy', 'scapy', 'cffi', 'xdpstack._ffi', 'xdpstack._xds'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_slots_read_inside_their_message() -> None:
    """A slot is eight bytes that contain the field and lie inside the fixed part."""
    for name in names():
        schema = load(name)
        if schema.sbe:
            continue
        for message in schema.messages:
            for field in message.fields if message.updates else ():
                if field.size > 8:
                    continue
                mask, off, shift, _ = emit_c.slot(field, message.length, schema.byte_order)
                assert off >= 0
                assert off + 8 <= message.length
                raw = np.random.default_rng(1).bytes(message.length)
                order: Literal["big", "little"] = "big" if schema.byte_order == "big" else "little"
                window = int.from_bytes(raw[off : off + 8], order)
                exact = int.from_bytes(
                    raw[field.offset : field.end], "big" if schema.byte_order == "big" else "little"
                )
                assert (window >> shift) & mask == exact, (name, message.name, field.name)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('name = "venue"', 'name = "Venue X"', "small letters"),
        ('framing = "u16le"', 'framing = "u17"', "framing must be one of"),
        ("price u32", "price u33", "is not 'name type'"),
        ('kind = "level"', 'kind = "lewel"', "'lewel' is none of"),
        ('qty = "qty"', 'qty = "quantity"', "there is no such field"),
        ('B = "bid"', 'BB = "bid"', "is no value of side"),
        ('key = "id"', 'key = "ident"', "lacks the instrument's key 'ident'"),
        ("book = 2", "book = 2\nboook = 2", "unknown key 'boook'"),
        ('id = "L"', 'id = "LL"', "id must be one character"),
        ("side char", "side char\nside char", "two fields have one name"),
        ("[message.level]", "[message.level]\nlength = 99", "length = 99, but the layout has 12 bytes"),
        ('session = "plain"', "session = ", "venue.toml: Invalid value"),
    ],
)
def test_a_bad_schema_is_told_with_file_and_reason(tmp_path: Path, old: str, new: str, why: str) -> None:
    path = write(tmp_path, MINIMAL.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        load(path)
    assert why in str(error.value)
    assert "venue.toml" in str(error.value)


def test_an_unknown_schema_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="no schema 'itch51'; known: cme-mdp3, iex-deep"):
        load("itch51")


def test_template_files_that_do_not_merge_are_refused(tmp_path: Path) -> None:
    """A field that moves between versions would be read from the wrong place."""
    for version, offset in ((5, 0), (8, 4)):
        (tmp_path / f"t{version}.xml").write_text(
            f'<messageSchema id="1" version="{version}"><types/><message name="M" id="1" blockLength="8">'
            f'<field name="a" type="uint32" offset="{offset}"/></message></messageSchema>'
        )
    path = write(tmp_path, 'session = "cme"\nframing = "sbe"\ntemplates = ["t5.xml", "t8.xml"]\n')
    with pytest.raises(ConfigError, match=r"M\.a moved after version 5"):
        load(path)


def test_the_words_are_those_of_the_c_headers() -> None:
    from xdpstack import _ffi

    kinds = {v: k for k, v in model.KINDS.items() if v}
    assert _ffi.names("xds_kind", "XDS_") == kinds
    assert {v for v in _ffi.names("xds_flag", "XDS_")} >= set(model.FLAGS.values())
    assert _ffi.names("xds_session", "XDS_SESSION_") == {v: k for k, v in model.SESSIONS.items()}
    assert _ffi.names("xds_framing", "XDS_FRAMING_") == {v: k for k, v in model.FRAMINGS.items()}
