"""Updates into a file: Parquet (integers, with the scale beside them) or CSV (decimal prices)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack._ffi import dtype, lib, names
from xdpstack.engine import Batch
from xdpstack.errors import ConfigError
from xdpstack.feed import Feed

__all__ = ["Export"]

_KINDS = names("xds_kind", "XDS_")
_SIDES = {0: "", 1: "bid", 2: "ask"}
_INTEGERS = ("rx_ns", "venue_ns", "seq", "order_id", "price", "qty", "ref")


class Export:
    """One file, from construction to ``close``; ``write`` takes a batch. Columns: feed, symbol, kind, side,
    flags, line, scale and the integers of ``struct xds_update``."""

    def __init__(self, path: str | Path, feeds: Sequence[Feed], symbols: set[str]) -> None:
        self.path, self.feeds, self.symbols = Path(path), feeds, symbols
        self._writer: Any = None
        suffix = self.path.suffix.lower()
        if suffix not in (".parquet", ".csv"):
            raise ConfigError(f"{path}: wanted a name that ends in .parquet or .csv")
        try:
            import pyarrow
        except ImportError:
            raise ConfigError(
                f"{path}: writing {suffix} needs pyarrow (pip install 'xdpstack[parquet]')"
            ) from None
        self._csv = suffix == ".csv"
        self._schema = self._columns(pyarrow)
        self.rows = 0
        # Opened now: a wrong path is known before the work, and a file without rows has its columns.
        if self._csv:
            from pyarrow import csv

            self._writer = csv.CSVWriter(str(self.path), self._schema)
        else:
            from pyarrow import parquet

            self._writer = parquet.ParquetWriter(str(self.path), self._schema, compression="zstd")

    def _columns(self, arrow: Any) -> Any:
        """The schema of the file: words, then the integers as ``struct xds_update`` has them."""
        form = dtype("struct xds_update")
        words = [(name, arrow.string()) for name in ("feed", "symbol", "kind", "side")]
        numbers = [(name, arrow.from_numpy_dtype(form[name])) for name in ("flags", "line")]
        integers = [(name, arrow.from_numpy_dtype(form[name])) for name in _INTEGERS]
        if self._csv:
            integers = [(name, arrow.string() if name == "price" else kind) for name, kind in integers]
        return arrow.schema([*words, *numbers, ("scale", arrow.uint8()), *integers])

    def write(self, batch: Batch) -> None:
        """Append a batch's updates."""
        for feed in self.feeds:
            updates = batch.of(feed)
            if self.symbols:
                keep = [i for i in np.unique(updates["instrument"]) if feed.symbol(int(i)) in self.symbols]
                updates = updates[np.isin(updates["instrument"], keep)]
            if len(updates):
                self._append(self._table(feed, updates))

    def _table(self, feed: Feed, updates: np.ndarray[Any, Any]) -> Any:
        instruments, where = np.unique(updates["instrument"], return_inverse=True)
        symbols = np.array([feed.symbol(int(i)) for i in instruments], dtype=object)[where]
        scales = np.array([feed.scale(int(i)) for i in instruments], dtype=np.uint8)[where]
        columns: dict[str, Any] = {
            "feed": np.full(len(updates), feed.name, dtype=object),
            "symbol": symbols,
            "kind": np.array([_KINDS[int(k)] for k in updates["kind"]], dtype=object),
            "side": np.array([_SIDES[int(s)] for s in updates["side"]], dtype=object),
            "flags": updates["flags"].copy(),
            "line": updates["line"].copy(),
            "scale": scales,
        }
        columns |= {name: updates[name].copy() for name in _INTEGERS}
        if self._csv:
            prices = zip(updates["price"].tolist(), scales.tolist(), strict=True)
            columns["price"] = np.array([_decimal(price, scale) for price, scale in prices], dtype=object)
        import pyarrow

        return pyarrow.table(columns, schema=self._schema)

    def _append(self, table: Any) -> None:
        self.rows += table.num_rows
        self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _decimal(price: int, scale: int) -> str:
    """An integer price as exact decimal text; empty for none."""
    if price == lib.XDS_NO_PRICE:
        return ""
    if not scale:
        return str(price)
    sign, digits = ("-" if price < 0 else ""), f"{abs(price):0{scale + 1}d}"
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}"
