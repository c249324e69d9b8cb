"""Exports: the file holds exactly the updates that the engine gave."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from xdpstack import node as nodes
from xdpstack._ffi import dtype, lib, names
from xdpstack.errors import ConfigError
from xdpstack.export import Export, _decimal
from xdpstack.replay import replay

V9 = Path(__file__).parents[1] / "captures" / "cme-mdp3-v9-nine-channels-natural-gaps.pcap"
IEX = Path(__file__).parents[1] / "captures" / "iex-deep10-2017-04-25.pcap.gz"
INTEGERS = ("rx_ns", "venue_ns", "seq", "order_id", "price", "qty", "ref", "flags", "line")
COLUMNS = ["feed", "symbol", "kind", "side", "flags", "line", "scale",
           "rx_ns", "venue_ns", "seq", "order_id", "price", "qty", "ref"]  # fmt: skip


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, list[str], list[int]]:
    """Updates of the capture as the engine gives them, with each one's symbol and scale."""
    with nodes.open(f"pcap:{V9}") as node:
        feed = node.feed("cme-mdp3")
        updates = np.concatenate([batch.of(feed).copy() for batch in node.run()])
        which = updates["instrument"].tolist()
        return updates, [feed.symbol(i) for i in which], [feed.scale(i) for i in which]


def test_parquet_holds_every_update_with_its_integers(tmp_path: Path, truth: tuple) -> None:
    updates, symbols, scales = truth
    replay(V9, "cme-mdp3", out=tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == COLUMNS
    assert table.num_rows == len(updates) == 453
    for name in INTEGERS:
        assert table[name].to_pylist() == updates[name].tolist()
        assert table.schema.field(name).type == pyarrow.from_numpy_dtype(dtype("struct xds_update")[name])
    assert table["symbol"].to_pylist() == symbols
    assert table["scale"].to_pylist() == scales
    kinds = names("xds_kind", "XDS_")
    assert table["kind"].to_pylist() == [kinds[kind] for kind in updates["kind"].tolist()]
    assert table["side"].to_pylist() == [("", "bid", "ask")[side] for side in updates["side"].tolist()]
    assert set(table["feed"].to_pylist()) == {"cme-mdp3"}


def test_csv_holds_the_same_with_exact_decimal_prices(tmp_path: Path, truth: tuple) -> None:
    updates, symbols, scales = truth
    replay(V9, "cme-mdp3", out=tmp_path / "a.CSV")
    with (tmp_path / "a.CSV").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert len(rows) == len(updates)
    assert [row["symbol"] for row in rows] == symbols
    for name in set(INTEGERS) - {"price"}:
        assert [int(row[name]) for row in rows] == updates[name].tolist()
    for row, price, scale in zip(rows, updates["price"].tolist(), scales, strict=True):
        if price == lib.XDS_NO_PRICE:
            assert row["price"] == ""
        else:
            assert Decimal(row["price"]) == Decimal(price).scaleb(-scale)
            assert len(row["price"].partition(".")[2]) == scale


def test_symbols_choose_the_rows(tmp_path: Path, truth: tuple) -> None:
    _, symbols, _ = truth
    wanted = sorted(set(symbols))[:3]
    replay(V9, "cme-mdp3", out=tmp_path / "a.parquet", symbols=wanted)
    found = parquet.read_table(tmp_path / "a.parquet")["symbol"].to_pylist()
    assert found == [symbol for symbol in symbols if symbol in wanted]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_no_row_is_a_file_with_its_columns(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    replay(V9, "cme-mdp3", out=path, symbols=["nobody"])
    if suffix == "csv":
        assert path.read_text().strip().replace('"', "").split(",") == COLUMNS
    else:
        table = parquet.read_table(path)
        assert (table.num_rows, table.column_names) == (0, COLUMNS)


def test_many_batches_are_one_file(tmp_path: Path) -> None:
    result = replay(IEX, "iex-deep", out=tmp_path / "a.parquet")
    assert parquet.read_metadata(tmp_path / "a.parquet").num_rows == result["updates"] == 110_984


@pytest.mark.parametrize("name", ["a.txt", "parquet", "a.csv.gz"])
def test_an_unknown_suffix_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"wanted a name that ends in \.parquet or \.csv"):
        Export(tmp_path / name, [], set())
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_a_folder_that_is_not_there_is_told_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        Export(tmp_path / "no" / name, [], set())


def test_closing_twice_is_calm(tmp_path: Path) -> None:
    export = Export(tmp_path / "a.csv", [], set())
    export.close()
    export.close()
    assert export.rows == 0


@given(st.integers(-(1 << 63) + 1, (1 << 63) - 1), st.integers(0, 18))
def test_a_decimal_is_exact(price: int, scale: int) -> None:
    if price == lib.XDS_NO_PRICE:
        return
    text = _decimal(price, scale)
    sign, digits, exponent = Decimal(text).as_tuple()
    assert (exponent, int(Decimal((sign, digits, 0)))) == (-scale, price)


def test_no_price_is_empty() -> None:
    assert _decimal(int(lib.XDS_NO_PRICE), 4) == ""
