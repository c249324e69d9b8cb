"""The in-memory benches: itch, book and sbe, ours and the peers in turns on one core.

    python tools/bench/book_bench.py [--quick] [itch|book|sbe ...]

``xdpstack bench`` finds ``BENCHES`` here. Times are the thread's CPU time, medians over the rounds. The
loops are in book_bench.c, compiled on first use into build/bench beside the library; the peers come by
tools/bench/peers. Workloads: xdpstack/venues/README.md (the generated day) and the CME capture, line A.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cffi import FFI

from xdpstack._ffi import dtype, lib
from xdpstack.venues.day import BENCH_500, BENCH_ALL, Day, generate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "build" / "bench"
PEERS = Path(os.environ.get("PEERS", ROOT / "build" / "peers"))
LIBRARY = ROOT / "build" / "native" / "libxds.a"
Row = dict[str, Any]
MESSAGES_A_BLOCK = 20  # about 600 bytes: half of a full packet
BLOCKS_A_TURN = 4
CAP = 8192
KINDS = {
    "add": (lib.XDS_ADD,),
    "execute": (lib.XDS_EXECUTE, lib.XDS_EXECUTE_AT),
    "reduce": (lib.XDS_REDUCE,),
    "delete": (lib.XDS_DELETE,),
    "replace": (lib.XDS_REPLACE,),
}


def row(
    bench: str, ours: float, peer: float | None, name: str | None, n: int, better: str = "lower", **more: Any
) -> Row:
    ratio = ours / peer if peer else None
    return {"bench": bench, "ours": ours, "peer": peer, "peer_name": name, "ratio": ratio, "unit": "ns"} | {
        "better": better,
        "n": n,
        **more,
    }


def compiled(target: Path, command: list[str], sources: list[Path]) -> Path:
    """Build ``target`` when a source is newer."""
    OUT.mkdir(parents=True, exist_ok=True)
    if not target.exists() or any(source.stat().st_mtime > target.stat().st_mtime for source in sources):
        subprocess.run([*command, "-o", str(target)], check=True)
    return target


@functools.cache
def native() -> tuple[Any, Any]:
    """(ffi, lib) of book_bench.c with the whole of libxds behind it."""
    spec = importlib.util.spec_from_file_location("xds_build", ROOT / "cffi_build" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    ffi = FFI()
    for path in build.ordered_headers():
        if path.name in ("base.h", "update.h", "books.h", "channel.h", "decode.h"):
            ffi.cdef(build.declarations(path))
    ffi.cdef(
        """
        uint64_t bench_cut(const uint8_t *data, uint64_t len, unsigned count, uint64_t *ends, uint64_t cap);
        int64_t bench_blocks(const struct xds_decoder *d, void *decoder, struct xds_books *books,
                             const uint8_t *data, const uint64_t *ends, uint64_t first, uint64_t last,
                             unsigned skip, unsigned gather, struct xds_sink *sink, uint64_t *updates);
        void bench_each(struct xds_books *books, struct xds_update *u, uint64_t n, uint32_t *out);
        uint64_t bench_tick_q20(void);
        """
    )
    source = HERE / "book_bench.c"
    flags = ["-O3", "-g", "-march=x86-64-v2", "-flto=auto", "-shared", "-fPIC", f"-I{ROOT / 'cffi_build'}"]
    libraries = ["-lxdp", "-lbpf", "-lzstd", "-lz", "-lpthread"]
    whole = ["-Wl,--whole-archive", str(LIBRARY), "-Wl,--no-whole-archive"]
    command = ["gcc", *flags, str(source), *whole, *libraries]
    return ffi, ffi.dlopen(str(compiled(OUT / "book_bench.so", command, [source, LIBRARY])))


class Arena:
    """Memory on huge pages where the kernel gives them."""

    def __init__(self, size: int) -> None:
        ffi, _ = native()
        self.map = mmap.mmap(-1, (size + (1 << 21) - 1) & ~((1 << 21) - 1))
        self.map.madvise(mmap.MADV_HUGEPAGE)
        self.pointer = ffi.from_buffer(self.map)


class Run:
    """A decoder, books and arrays, driven over one stream."""

    def __init__(
        self, feed: str, data: bytes, ends: Any, skip: int, kind: int, orders: int, levels: int
    ) -> None:
        ffi, native_lib = native()
        self.ffi, self.lib, self.skip = ffi, native_lib, skip
        self.data, self.ends = ffi.from_buffer("uint8_t[]", data), ends
        self.decoder = native_lib.xds_decoder_find(feed.encode())
        self.decoder_cfg = ffi.new("struct xds_decoder_config *", {"max_instruments": 65_536})
        self.books_cfg = ffi.new(
            "struct xds_books_config *",
            {"kind": kind, "max_instruments": 9_000 if kind == 3 else 65_536, "max_levels": levels},
        )
        self.books_cfg.max_orders = orders
        self.memory = Arena(native_lib.xds_decoder_size(self.decoder, self.decoder_cfg))
        self.arena = Arena(native_lib.xds_books_size(self.books_cfg))
        self.books = ffi.cast("struct xds_books *", self.arena.pointer)
        self.updates = np.zeros(CAP, dtype("struct xds_update"))
        self.count = ffi.new("uint64_t *")
        self.reset()

    def reset(self) -> None:
        assert self.lib.xds_decoder_init(self.decoder, self.memory.pointer, self.decoder_cfg) == 0
        assert self.lib.xds_books_init(self.arena.pointer, self.books_cfg) == 0

    def drive(
        self, first: int, last: int, books: bool, gather: int = BLOCKS_A_TURN, into: Any = None
    ) -> float:
        """CPU ns of blocks [first, last)."""
        updates = self.updates if into is None else into
        sink = self.ffi.new("struct xds_sink *", {"cap_updates": len(updates)})
        sink.updates = self.ffi.cast("struct xds_update *", updates.ctypes.data)
        ends = self.ffi.cast("uint64_t *", self.ends.ctypes.data)
        where = self.books if books else self.ffi.NULL
        ns = self.lib.bench_blocks(
            self.decoder,
            self.memory.pointer,
            where,
            self.data,
            ends,
            first,
            last,
            self.skip,
            gather,
            sink,
            self.count,
        )
        return float(ns)

    def stats(self) -> Any:
        out = self.ffi.new("struct xds_books_stats *")
        self.lib.xds_books_stats(self.books, out)
        return out


@functools.lru_cache(maxsize=1)
def stream(day: Day) -> tuple[bytes, Any]:
    """The day and where its blocks end."""
    ffi, native_lib = native()
    data = generate(day).tobytes()
    ends = np.zeros(day.messages // MESSAGES_A_BLOCK + 2, np.uint64)
    pointer = ffi.cast("uint64_t *", ends.ctypes.data)
    n = native_lib.bench_cut(
        ffi.from_buffer("uint8_t[]", data), len(data), MESSAGES_A_BLOCK, pointer, len(ends)
    )
    return data, ends[:n]


def pinned() -> None:
    """Stay on the last core that this process may use."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


# ---- peers: each takes the whole stream and returns CPU ns; absent ones are left out ----------------


def thread_ns(work: Callable[[], object]) -> float:
    begin = time.thread_time_ns()
    work()
    return float(time.thread_time_ns() - begin)


def itch_book(data: bytes, tables: list[str]) -> float:
    """itch-book's session, without or with its table of messages as numpy columns."""
    from itch_book._core import Session

    session, chunk, view = Session(tables=tables, depth=0, symbols=[]), 8 << 20, memoryview(data)

    def work() -> None:
        for at in range(0, len(data), chunk):
            session.feed(np.frombuffer(view[at : at + chunk], np.uint8))
            if tables:
                session.take_messages()

    return thread_ns(work)


def itchcpp_books(data: bytes) -> float:
    from itchcpp.book import BookManager

    manager = BookManager()
    return thread_ns(lambda: manager.process_stream(data))


def itchcpp_messages(data: bytes) -> float:
    from itchcpp.parser import MessageParser

    parser = MessageParser()
    return thread_ns(lambda: parser.parse_messages(data, lambda message: None))


def itchcpp_callbacks(data: bytes) -> float:
    """Its C++ interface, compiled from the headers and library in the package."""
    source, archive = HERE / "peer_itchcpp.cpp", PEERS / "lib64" / "libitch.a"
    command = ["g++", "-std=c++20", "-O3", "-march=x86-64-v2", "-shared", "-fPIC", f"-I{PEERS / 'include'}"]
    target = compiled(OUT / "peer_itchcpp.so", [*command, str(source), str(archive)], [source, archive])
    ffi = FFI()
    ffi.cdef("int64_t peer_parse(const char *data, uint64_t len, uint64_t *messages);")
    return float(ffi.dlopen(str(target)).peer_parse(ffi.from_buffer(data), len(data), ffi.new("uint64_t *")))


def peers_there() -> bool:
    if not (PEERS / "itch_book").is_dir():
        print("book_bench: no peers: run tools/bench/peers (make bench-peers)", file=sys.stderr)
        return False
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    return True


# ---- the benches ----------------------------------------------------------------------------------


def in_turns(rounds: int, contestants: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each contestant's times, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            times[name].append(run())
    return times


def figures(times: dict[str, list[float]], per: int) -> dict[str, float]:
    return {name: round(statistics.median(values) / per, 2) for name, values in times.items()}


def itch(quick: bool = False) -> Iterator[Row]:
    """ITCH 5.0 from memory to normalised updates, ns a message."""
    pinned()
    day = replace(BENCH_500, messages=200_000 if quick else 2_000_000)
    data, ends = stream(day)
    run = Run("itch50", data, ends, 0, 3, 1_000, 1_000)
    contestants: dict[str, Callable[[], float]] = {"ours": lambda: run.drive(0, len(ends), False)}
    if peers_there():
        contestants |= {
            "itch-book": lambda: itch_book(data, ["messages"]),
            "itchcpp": lambda: itchcpp_messages(data),
            "itchcpp C++": lambda: itchcpp_callbacks(data),
        }
    times = in_turns(1 if quick else 5, contestants)
    got = figures(times, day.messages)
    ours = got.pop("ours")
    python = {name: value for name, value in got.items() if name != "itchcpp C++"}
    best = min(python, key=lambda name: python[name]) if python else None
    yield row("itch", ours, python[best] if best else None, best, day.messages, rounds=len(times["ours"]))
    for name, value in got.items():
        yield row(f"itch.{name.lower().replace(' ', '-')}", ours, value, name, day.messages)


def operations(run: Run, ends: Any, name: str) -> Iterator[Row]:
    """Latency of single updates, one a call, after the books are at their level. With the timer's own."""
    first = len(ends) * 2 // 3
    last = min(len(ends), first + 25_000)
    run.reset()
    run.drive(0, first, True)
    updates = np.zeros((last - first) * MESSAGES_A_BLOCK + 64, dtype("struct xds_update"))
    run.drive(first, last, False, last - first, updates)
    n = run.count[0]
    ticks = np.zeros(n, np.uint32)
    pointer = run.ffi.cast("struct xds_update *", updates.ctypes.data)
    run.lib.bench_each(run.books, pointer, n, run.ffi.cast("uint32_t *", ticks.ctypes.data))
    ns = ticks * (run.lib.bench_tick_q20() / 1048576)
    for word, kinds in KINDS.items():
        of_kind = ns[np.isin(updates["kind"][:n], kinds)]
        for percentile in (50, 99):
            if len(of_kind):
                value = round(float(np.percentile(of_kind, percentile)), 1)
                yield row(f"{name}.{word}.p{percentile}", value, None, None, len(of_kind))


def book_over(day: Day, name: str, rounds: int) -> Iterator[Row]:
    data, ends = stream(day)
    run = Run("itch50", data, ends, 0, 3, day.orders_alive + 65_536, 2_000_000)

    def ours() -> float:
        run.reset()
        return run.drive(0, len(ends), True)

    contestants: dict[str, Callable[[], float]] = {"ours": ours}
    if peers_there():
        contestants |= {"itch-book": lambda: itch_book(data, []), "itchcpp": lambda: itchcpp_books(data)}
    times = in_turns(rounds, contestants)
    stats = run.stats()
    assert sum(stats.reasons) == 0, "a generated day has nothing to refuse"
    got = figures(times, day.messages)
    mine = got.pop("ours")
    best = min(got, key=lambda peer: got[peer]) if got else None
    more = {
        "symbols": day.symbols,
        "orders_alive": int(stats.orders_max),
        "levels": int(stats.levels_max),
        "memory_mib": int(stats.memory_bytes) >> 20,
        "rounds": rounds,
    }
    yield row(name, mine, got[best] if best else None, best, day.messages, **more)
    for peer, value in got.items():
        yield row(f"{name}.{peer}", mine, value, peer, day.messages)
    yield from operations(run, ends, name)


def book(quick: bool = False) -> Iterator[Row]:
    """Decode and L3 book over the generated days: 500 symbols, then all with two million orders alive."""
    pinned()
    small, whole = BENCH_500, BENCH_ALL
    if quick:
        small = replace(small, messages=300_000)
        whole = replace(whole, messages=1_000_000, orders_alive=200_000)
    yield from book_over(small, "book", 1 if quick else 5)
    yield from book_over(whole, "book.8900", 1 if quick else 3)


def sbe(quick: bool = False) -> Iterator[Row]:
    """The CME capture's line A, packets from memory to L2 books: ns a packet."""
    pinned()
    spec = importlib.util.spec_from_file_location("xds_decode_bench", HERE / "decode_bench.py")
    assert spec is not None
    assert spec.loader is not None
    capture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(capture)
    path = capture.CAPTURES / "cme-mdp3-v8-line-a-and-b.pcapng"
    packets = [payload for address, payload in capture.udp(path) if address == bytes((224, 0, 31, 11))]
    ends = np.cumsum([len(packet) for packet in packets], dtype=np.uint64)
    run = Run("cme-mdp3", b"".join(packets), ends, 12, 2, 0, 65_536)
    times = []
    for i in range(3 if quick else 50):
        run.reset()
        ns = run.drive(0, len(ends), True, gather=1)
        if i:  # the first fills the caches
            times.append(ns / len(ends))
    updates = int(run.count[0])
    mine = round(statistics.median(times), 1)
    yield row("sbe", mine, None, None, len(ends) * len(times), packets=len(ends), updates=updates)


BENCHES: dict[str, Callable[[bool], Iterator[Row]]] = {"itch": itch, "book": book, "sbe": sbe}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    for name in args.names or BENCHES:
        for line in BENCHES[name](args.quick):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
