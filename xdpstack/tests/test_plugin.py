"""A user's own venue: built, loaded, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdpstack._ffi import lib
from xdpstack.errors import ConfigError, SetupError
from xdpstack.schema import plugin
from xdpstack.schema.native import NativeDecoder

VENUE = """
name = "example"
session = "mold64"
framing = "u16be"
byte_order = "big"
book = 3
[instrument]
key = "symbol"
symbol = "symbol"
[update]
order_id = "order_id"
last = true
[message.order_delete]
id = 1
layout = '''
symbol   char6
order_id u64
'''
update = { kind = "delete" }
"""


def test_a_built_decoder_decodes(tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(VENUE)
    with NativeDecoder(plugin.build(path, tmp_path / "example.so")) as native:
        data = bytes([0, 15, 1]) + b"ABC   " + (77).to_bytes(8, "big")
        updates, messages = native.block(data, count=1, seq=9)
        assert [(int(u["order_id"]), int(u["seq"])) for u in updates] == [(77, 9)]
        assert [int(m["len"]) for m in messages] == [15]
        assert [i.symbol for i in native.instruments()] == ["ABC"]


def test_the_default_name_is_the_schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "venue.toml").write_text(VENUE)
    monkeypatch.chdir(tmp_path)
    assert plugin.build("venue.toml") == Path("example.so")
    assert (tmp_path / "example.so").exists()


def test_a_compiler_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "venue.toml").write_text(VENUE)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(SetupError, match="running no-such-compiler"):
        plugin.build(tmp_path / "venue.toml", tmp_path / "venue.so")
    assert not (tmp_path / "venue.so").exists()


def test_what_is_no_decoder_is_not_loaded(tmp_path: Path) -> None:
    junk = tmp_path / "junk.so"
    junk.write_bytes(b"not an object")
    with pytest.raises(SetupError, match=r"loading junk\.so"):
        NativeDecoder(junk)
    with pytest.raises(ConfigError, match="no decoder file"):
        NativeDecoder(tmp_path / "absent.so")
    with pytest.raises(ConfigError, match="no decoder 'nothing'; known: cme-mdp3"):
        NativeDecoder("nothing")


def test_a_decoder_of_another_abi_is_refused(tmp_path: Path) -> None:
    path, made = tmp_path / "example.toml", tmp_path / "example.so"
    path.write_text(VENUE)
    plugin.build(path, made)
    raw = bytearray(made.read_bytes())
    decoder = plugin.load(made)
    assert decoder.abi == lib.XDS_DECODER_ABI
    # The description lies in the file's data: {name pointer (relocated), abi, session, framing, types}.
    wanted = b"".join(v.to_bytes(4, "little") for v in (lib.XDS_DECODER_ABI, 2, 1, 1))
    at = raw.find(wanted)
    assert at > 0
    assert raw.find(wanted, at + 1) < 0
    raw[at] = 99
    other = tmp_path / "other.so"
    other.write_bytes(raw)
    with pytest.raises(SetupError, match="decoder ABI 99"):
        plugin.load(other)
