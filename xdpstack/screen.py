"""The screen of ``xdpstack top``: engines, queues, feeds, lines, latencies, drops and readers as text.

A :class:`Screen` is drawn from a :class:`~xdpstack.watch.Watch` and a :class:`State`, which is what the keys
change. It reads no memory and no clock, so the same looks give the same text; rich fits it to the terminal.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from xdpstack._ffi import names
from xdpstack.stats import Histogram, Summary
from xdpstack.tcp import STATES
from xdpstack.watch import Drop, Engine, Watch, drops

__all__ = ["KEYS", "SORTS", "Screen", "State", "amount", "as_object", "as_text", "duration", "shape", "spark"]

SORTS = ("name", "rate", "drops")
KEYS = "q quit · s sort · p pause · e engine · w window · j/k scroll"
_BARS = " ▁▂▃▄▅▆▇█"
_OCTAVES = range(6, 30)  # of a latency's shape: 64 ns to 1.07 s, a character an octave
_TREND = 24
_SOURCES = names("xds_clock_source", "XDS_CLOCK_")
_REASONS = names("xds_clock_reason", "XDS_CLOCK_")


@dataclasses.dataclass(slots=True)
class State:
    """What the keys change."""

    sort: str = "name"
    paused: bool = False
    engine: str | None = None
    """Only this one, by its label; None: all."""
    window: bool = False
    """Latencies of the time since the last look, not of the whole run."""
    offset: int = 0
    """Lines that are scrolled away."""

    def press(self, key: str, engines: Sequence[str]) -> bool:
        """A key was pressed; ``engines`` are there. False: it asks to end."""
        if key in ("q", "Q", "\x03"):
            return False
        if key == "s":
            self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        elif key in ("p", " "):
            self.paused = not self.paused
        elif key in ("e", "E"):
            rows: list[str | None] = [None, *engines]
            at = rows.index(self.engine) if self.engine in rows else 0
            self.engine = rows[(at + (1 if key == "e" else -1)) % len(rows)]
            self.offset = 0
        elif key == "w":
            self.window = not self.window
        elif key in ("j", "down"):
            self.offset += 1
        elif key in ("k", "up"):
            self.offset = max(0, self.offset - 1)
        return True


def amount(value: float | None) -> str:
    """A number in four characters or so: 999, 12.3k, 4.56M; a dash where it is not known."""
    if value is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:.0f}" if value >= 9.95 or value == int(value) else f"{value:.1f}"


def duration(ns: float) -> str:
    """A time with its unit: 812ns, 1.2µs, 34ms, 2.5s."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= 0.9995 * size:
            return f"{ns / size:.3g}{unit}" if ns < 999.5 * size else f"{ns / size:.0f}{unit}"
    return f"{ns:.0f}ns"


def spark(values: Iterable[float], width: int) -> str:
    """The last ``width`` values as bars, the largest of them full."""
    shown = [max(0.0, value) for value in values][-width:]
    top = max(shown, default=0.0)
    return "".join(_BARS[round(8 * value / top) if top else 0] if value else _BARS[0] for value in shown)


def shape(histogram: Histogram) -> str:
    """How records lie over the octaves from 64 ns to 1 s; a bar's height is the logarithm of its count, what
    is less or more stands at the ends."""
    counts = [0] * len(_OCTAVES)
    for start, count in histogram.buckets():
        octave = int(start).bit_length() - 1
        counts[min(max(octave - _OCTAVES.start, 0), len(counts) - 1)] += int(count)
    top = np.log1p(max(counts))
    return "".join(_BARS[1 + int(7 * np.log1p(count) / top)] if count else _BARS[0] for count in counts)


class Screen:
    """One frame. ``height`` 0: as many lines as there are, without the footer of keys."""

    def __init__(self, watch: Watch, state: State, *, height: int = 0, title: str = "") -> None:
        self.watch, self.state, self.height, self.title = watch, state, height, title
        self.engines: list[Engine] = self._sorted()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = [_fitted(part, console, options) for part in self.parts()]
        body = console.render_lines(Group(*parts), options.update(height=None), pad=False)
        if self.height:
            room = max(1, self.height - 2)
            self.state.offset = max(0, min(self.state.offset, len(body) - room))
            below = len(body) - self.state.offset - room
            body = body[self.state.offset : self.state.offset + room]
            body += [[Segment("")] for _ in range(room - len(body))]
            more = f" · {below} lines below" if below > 0 else ""
            footer = Text(f"{KEYS}{more}", style="dim", no_wrap=True, overflow="crop")
        head = console.render_lines(self._head(), options.update(height=None), pad=False)
        for line in [*head[:1], *body]:
            yield from line
            yield Segment.line()
        if self.height:
            yield from console.render_lines(footer, options.update(height=None), pad=False)[0]

    # -- parts

    def parts(self) -> Iterator[RenderableType]:
        """The sections that have something to show."""
        yield self._engines()
        for section in (
            self._alerts, self._queues, self._feeds, self._lines, self._tcp, self._sessions,
            self._connections, self._latencies, self._drops, self._clocks, self._nic_clocks,
        ):  # fmt: skip
            yield from section()
        yield from self._readers()
        yield from self._dead()

    def _head(self) -> Text:
        now = self.watch.now
        text = Text(self.title or "xdpstack top", style="bold", no_wrap=True, overflow="crop")
        count = len(now.engines) if now else 0
        words = [f"{count} engine{'' if count == 1 else 's'}"]
        if now and now.dead:
            words.append(f"{len(now.dead)} dead")
        words.append(f"over {self.watch.seconds:.1f} s" if self.watch.seconds else "first look")
        words.append(f"by {self.state.sort}")
        if self.state.engine:
            words.append(f"only {self.state.engine}")
        if self.state.paused:
            words.append("PAUSED")
        return text.append(" · " + " · ".join(words), style="not bold")

    def _sorted(self) -> list[Engine]:
        if self.watch.now is None:
            return []
        chosen = [e for e in self.watch.now.engines.values() if self.state.engine in (None, e.label)]
        if self.state.sort == "rate":
            return sorted(chosen, key=lambda e: -(self.watch.rate(e.label, "engine.packets") or 0))
        if self.state.sort == "drops":
            return sorted(chosen, key=lambda e: -sum(drop.count for drop in drops(e.values)))
        return sorted(chosen, key=lambda e: e.label)

    def _table(self, *columns: str, left: int = 1) -> Table:
        """A table without lines whose first ``left`` columns are words."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="reverse", expand=False)
        for number, column in enumerate(columns):
            words = number < left
            table.add_column(
                column, justify="left" if words else "right", no_wrap=True,
                overflow="ellipsis" if words else "crop", min_width=4 if words else None,
            )  # fmt: skip
        return table

    def _rate(self, engine: Engine, name: str) -> str:
        return amount(self.watch.rate(engine.label, name))

    def _sum_rate(self, engine: Engine, names: Iterable[str]) -> float | None:
        rates = [self.watch.rate(engine.label, name) for name in names]
        known = [rate for rate in rates if rate is not None]
        return sum(known) if known or self.watch.seconds else None

    def _engines(self) -> RenderableType:
        if not self.engines:
            return Text(
                "no engine is running" + (f" called {self.state.engine}" if self.state.engine else "")
            )
        table = self._table(
            "ENGINE", "STATE", "PID", "TURNS/s", "BUSY", "PACKETS/s", "UPDATES/s", "SENT/s", "DROPS/s",
            "SLOW", "WORST", f"{'PACKETS/s, TREND':<{_TREND}}", left=2,
        )  # fmt: skip
        table.columns[-1].justify = "left"
        for e in self.engines:
            turns, busy = self.watch.rate(e.label, "engine.turns"), self.watch.rate(e.label, "engine.busy_ns")
            lost = self._sum_rate(e, [drop.name for drop in drops(e.values)])
            state = ("still", "yellow") if turns == 0 else ("turns", "green") if turns else ("", "")
            table.add_row(
                e.label, Text(*state), str(e.pid), amount(turns),
                "-" if busy is None else f"{busy / 1e7:.0f}%",
                self._rate(e, "engine.packets"), self._rate(e, "engine.updates"),
                self._rate(e, "engine.sent"), Text(amount(lost), "red" if lost else ""),
                amount(e.values.get("engine.slow_turns")), duration(e.values.get("engine.slow_worst_ns", 0)),
                Text(spark(self.watch.history.get(e.label, ()), _TREND), "cyan"),
            )  # fmt: skip
        return table

    def _alerts(self) -> Iterator[RenderableType]:
        firing = [
            (e.label, dict(labels)["alert"])
            for e in self.engines
            for labels, fields in e.fields("alert").items()
            if fields.get("firing")
        ]
        if firing:
            yield ""
            words = ", ".join(f"{alert} ({label})" for label, alert in firing)
            yield Text(f"ALERTS firing: {words}", style="bold red")

    def _queues(self) -> Iterator[RenderableType]:
        table = self._table(
            "QUEUE",
            "ENGINE",
            "RX/s",
            "RX B/s",
            "TX/s",
            "FRAMES",
            "DROPPED",
            "RING FULL",
            "FILL EMPTY",
            left=2,
        )
        for e in self.engines:
            for labels, fields in e.fields("port").items():
                port = dict(labels)["port"]
                lost = [d.count for d in drops({f"port.{port}.{f}": v for f, v in fields.items()})]
                taken = "rx_datagrams" if "rx_datagrams" in fields else "rx_frames"
                table.add_row(
                    port, e.label, self._rate(e, f"port.{port}.{taken}"),
                    self._rate(e, f"port.{port}.rx_bytes"), self._rate(e, f"port.{port}.t{taken[1:]}"),
                    amount(fields[taken]), Text(amount(sum(lost)), "red" if lost else ""),
                    amount(fields.get("rx_ring_full")), amount(fields.get("rx_fill_empty")),
                )  # fmt: skip
        yield from _section(table)

    def _feeds(self) -> Iterator[RenderableType]:
        table = self._table(
            "FEED", "ENGINE", "CHANNELS", "MESSAGES/s", "MESSAGES", "GAPS", "OPEN", "FILLED", "LOST",
            "ORDERS", "LEVELS", left=2,
        )  # fmt: skip
        for e in self.engines:
            books = {dict(labels)["feed"]: fields for labels, fields in e.fields("books").items()}
            feeds: dict[str, list[tuple[str, dict[str, int]]]] = {}
            for labels, fields in e.fields("channel").items():
                found = dict(labels)
                feeds.setdefault(found["feed"], []).append((found["channel"], fields))
            for feed, channels in feeds.items():
                total = {key: sum(fields[key] for _, fields in channels) for key in channels[0][1]}
                names = [f"feed.{feed}.channel.{number}.messages" for number, _ in channels]
                levels = books.get(feed, {})
                table.add_row(
                    feed, e.label, str(len(channels)), amount(self._sum_rate(e, names)),
                    amount(total["messages"]), amount(total["gaps_found"]),
                    Text(amount(total["gaps_open"]), "yellow" if total["gaps_open"] else ""),
                    amount(total["units_filled"]),
                    Text(amount(total["units_lost"]), "red" if total["units_lost"] else ""),
                    amount(levels.get("orders")), amount(levels.get("levels")),
                )  # fmt: skip
        yield from _section(table)

    def _lines(self) -> Iterator[RenderableType]:
        table = self._table(
            "LINE", "ENGINE", "PACKETS/s", "PACKETS", "WON", "DUPLICATE", "LATE", "LOST", "WAITING", left=2
        )
        for e in self.engines:
            for labels, fields in e.fields("line").items():
                found = dict(labels)
                name = f"feed.{found['feed']}.channel.{found['channel']}.line.{found['line']}"
                share = f"{100 * fields['won'] / fields['packets']:.0f}%" if fields["packets"] else "-"
                table.add_row(
                    f"{found['feed']} {found['channel']}.{found['line']}", e.label,
                    self._rate(e, f"{name}.packets"), amount(fields["packets"]), share,
                    amount(fields["duplicate"]), amount(fields["late"]), amount(fields["lost"]),
                    amount(fields["buffered"]),
                )  # fmt: skip
        yield from _section(table)

    def _tcp(self) -> Iterator[RenderableType]:
        table = self._table(
            "TCP", "ENGINE", "RX/s", "TX/s", "ESTABLISHED", "OTHERS", "OPENED", "ACCEPTED", "RETRANSMITS",
            "TIMEOUTS", "DROPPED", left=2,
        )  # fmt: skip
        for e in self.engines:
            sums, states = e.fields("tcp"), e.states()
            for labels, fields in e.fields("stack").items():
                port, tcp = dict(labels)["port"], sums.get(labels, {})
                own = "stack" if "received" in fields else "tcp"  # kernel sockets: what TCP_INFO has
                rates = [self._rate(e, f"{own}.{port}.{word}") for word in ("received", "sent")]
                lost = [
                    d.count for d in drops(e.values) if d.key["port"] == port and d.where.endswith(" tcp")
                ]
                there = states.get(port, {})
                table.add_row(
                    port, e.label, *rates, amount(there.get("established", 0)),
                    amount(sum(there.values()) - there.get("established", 0)),
                    amount(fields["opened"]), amount(fields["accepted"]), amount(tcp.get("retransmits")),
                    amount(tcp.get("timeouts")), Text(amount(sum(lost)), "red" if lost else ""),
                )  # fmt: skip
        yield from _section(table)

    def _sessions(self) -> Iterator[RenderableType]:
        table = self._table(
            "SESSIONS", "ENGINE", "RX/s", "TX/s", "LIVE", "BEGUN", "OPENED", "CLOSED", "FAILED", "CUT",
            "DROPPED", left=2,
        )  # fmt: skip
        for e in self.engines:
            lost = [d for d in drops(e.values) if d.key.family == "session_messages"]
            for labels, fields in e.fields("session").items():
                protocol = dict(labels)["protocol"]
                dropped = sum(d.count for d in lost if d.key["protocol"] == protocol)
                rates = [self._rate(e, f"session.{protocol}.{word}") for word in ("received", "sent")]
                counts = [amount(fields[word]) for word in ("live", "begun", "opened", "closed")]
                bad = [
                    Text(amount(n), "red" if n else "") for n in (fields["failed"], fields["cut"], dropped)
                ]
                table.add_row(protocol, e.label, *rates, *counts, *bad)
        yield from _section(table)

    def _connections(self) -> Iterator[RenderableType]:
        table = self._table(
            "CONNECTION", "PEER", "STATE", "ENGINE", "LOCAL PORT", "RTT", "CWND", "IN FLIGHT", "LOST",
            "RETRANS", "RATE", "SO FAR", left=4,
        )  # fmt: skip
        for e in self.engines:
            for labels, fields in e.fields("connection").items():
                place = dict(labels)["connection"]
                if fields.get("connections"):
                    peer = e.peer(place) or ("all others" if place == "rest" else "-")
                    state = fields.get("state", 0)
                    sizes = [f"{amount(fields.get(word, 0))}B" for word in ("cwnd", "in_flight", "lost")]
                    rate = fields.get("delivery_rate", 0)
                    how = [
                        duration(fields.get("srtt_ns", 0)), *sizes, amount(fields.get("retransmits", 0)),
                        f"{amount(rate)}B/s" if rate else "-",
                    ] if state else ["-"] * 6  # fmt: skip
                    table.add_row(
                        place, peer, STATES[state] if state else "-", e.label,
                        str(fields.get("local_port") or "-"), *how, amount(fields["connections"]),
                    )  # fmt: skip
        yield from _section(table)

    def _histograms(self) -> Iterator[tuple[Engine, str, str, Histogram]]:
        """Engine, whose it is, stage, records: of the run, or since the last look."""
        for e in self.engines:
            for subject, stage, name in e.stages():
                fresh = self.watch.fresh(e.label, name) if self.state.window else None
                yield e, subject, stage, e.histograms[name] if fresh is None else fresh

    def _latencies(self) -> Iterator[RenderableType]:
        title = "LAST LATENCIES" if self.state.window else "LATENCY"
        table = self._table(
            title, "STAGE", "ENGINE", "COUNT", "P50", "P90", "P99", "P99.9", "P99.99", "MAX",
            "64ns  ~4µs  ~260µs   ~1s", left=3,
        )  # fmt: skip
        table.columns[-1].justify = "left"
        for e, subject, stage, histogram in self._histograms():
            if not len(histogram):
                continue
            s = histogram.summary()
            times = [duration(value) for value in (s.p50, s.p90, s.p99, s.p999, s.p9999, s.max)]
            table.add_row(subject, stage, e.label, amount(s.count), *times, Text(shape(histogram), "cyan"))
        yield from _section(table)

    def _drops(self) -> Iterator[RenderableType]:
        table = self._table("DROPPED", "REASON", "ENGINE", "COUNT", "/s", left=3)
        rows: list[tuple[Engine, Drop]] = [(e, drop) for e in self.engines for drop in drops(e.values)]
        for e, drop in sorted(rows, key=lambda row: -row[1].count):
            rate = self.watch.rate(e.label, drop.name)
            table.add_row(
                drop.where, drop.reason, e.label, f"{drop.count:,}", Text(amount(rate), "red" if rate else "")
            )
        yield from _section(table)

    def _clocks(self) -> Iterator[RenderableType]:
        table = self._table("CLOCK", "SOURCE", "WHY", "OFFSET", "LARGEST", "DRIFT", "TICKS", "STEPS", left=3)
        for e in self.engines:
            for fields in e.fields("clock").values():
                if not fields.get("ticks"):
                    continue
                offset, drift = (
                    fields.get(fast, 0) - fields.get(slow, 0)
                    for fast, slow in (("ahead_ns", "behind_ns"), ("fast_ppb", "slow_ppb"))
                )
                table.add_row(
                    e.label, _SOURCES.get(fields.get("source", 0), "?"),
                    _REASONS.get(fields.get("reason", 0), "?"), f"{offset:+,}ns",
                    duration(fields.get("error_max_ns", 0)), f"{drift:+,}ppb", amount(fields["ticks"]),
                    amount(fields.get("steps")),
                )  # fmt: skip
        yield from _section(table)

    def _nic_clocks(self) -> Iterator[RenderableType]:
        table = self._table(
            "NIC CLOCK", "INTERFACE", "OFFSET", "ERROR", "LARGEST", "DRIFT", "KNOWN TO", "COMPARED", "STEPS",
            "FAILED", left=2,
        )  # fmt: skip
        for e in self.engines:
            for labels, fields in e.fields("phc").items():
                ahead, behind, drift = (
                    fields.get("ahead_ns", 0),
                    fields.get("behind_ns", 0),
                    fields.get("fast_ppb", 0) - fields.get("slow_ppb", 0),
                )
                failed = fields.get("failed", 0)
                table.add_row(
                    e.label, dict(labels)["interface"],
                    ("-" if behind else "+") + duration(ahead or behind),
                    duration(fields.get("error_ns", 0)), duration(fields.get("error_max_ns", 0)),
                    f"{drift:+,}ppb", duration(fields.get("spread_ns", 0)),
                    amount(fields.get("comparisons")), amount(fields.get("steps")),
                    Text(amount(failed), "red" if failed else ""),
                )  # fmt: skip
        yield from _section(table)

    def _readers(self) -> Iterator[RenderableType]:
        table = self._table("READER", "TAPE", "PID", "BEHIND", "LAG", "OF TAPE", "LOST", "LAPPED", left=2)
        for tape in self.watch.now.tapes if self.watch.now else ():
            for reader in tape.readers:
                lost = Text(amount(reader["lost"]), "red" if reader["lost"] else "")
                share = f"{100 * min(1.0, reader['lag'] / tape.bytes):.0f}%"
                table.add_row(
                    reader["name"] or "-", tape.tape, str(reader["pid"]), amount(reader["lag_records"]),
                    f"{amount(reader['lag'])}B", share, lost, amount(reader["laps"]),
                )  # fmt: skip
        yield from _section(table)

    def _dead(self) -> Iterator[RenderableType]:
        dead = self.watch.now.dead if self.watch.now else []
        if dead:
            yield ""
        for one in dead:
            yield Text(f"{one.name} (pid {one.pid}): {one.state}, {one.reason}", style="yellow")


def _fitted(part: RenderableType, console: Console, options: ConsoleOptions) -> RenderableType:
    """A table without the columns on the right that find no room: a figure that is cut would be wrong."""
    if isinstance(part, Table):
        wide = options.update(width=10_000)
        while len(part.columns) > 2 and Measurement.get(console, wide, part).maximum > options.max_width:
            part.columns.pop()
    return part


def _section(table: Table) -> Iterator[RenderableType]:
    if table.row_count:
        yield ""
        yield table


def as_text(watch: Watch, state: State, width: int, height: int = 0) -> str:
    """The screen without a terminal: no colours, no blanks at the ends of lines."""
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, force_terminal=False, highlight=False)
    console.print(Screen(watch, state, height=height))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _times(s: Summary) -> dict[str, int]:
    return {key: getattr(s, key) for key in ("count", "p50", "p90", "p99", "p999", "p9999", "max")}


def as_object(watch: Watch) -> dict[str, Any]:
    """The same for ``--json``: seconds between the looks, engines (name, pid, rates, drops, latencies of the
    run and of the time since, ns), readers of tapes, dead."""
    engines = []
    now = watch.now
    assert now is not None
    for e in now.engines.values():
        rates = {name: watch.rate(e.label, name) for name in e.values if name not in e.gauges}
        engines.append(
            {
                "engine": e.label, "pid": e.pid,
                "rates": {name: rate for name, rate in rates.items() if rate},
                "drops": [
                    {"where": d.where, "reason": d.reason, "count": d.count, "name": d.name}
                    for d in drops(e.values)
                ],
                "latencies": {
                    name: {
                        "run": _times(h.summary()),
                        "since": _times(fresh.summary()) if (fresh := watch.fresh(e.label, name)) else None,
                    }
                    for name, h in e.histograms.items()
                },
            }
        )  # fmt: skip
    return {
        "seconds": watch.seconds, "engines": engines, "tapes": [dataclasses.asdict(t) for t in now.tapes],
        "dead": [{"name": f.name, "pid": f.pid, "state": f.state, "reason": f.reason} for f in now.dead],
    }  # fmt: skip
