"""Running engines for Prometheus: every counter, gauge and histogram of their mapped memory.

An entry's name becomes a metric and labels: ``feed.itch.channel.0.gaps_open`` of engine ``trader`` is
``xdpstack_channel_gaps_open{engine="trader",feed="itch",channel="0"}``. Counters end in ``_total``; times are
seconds. A latency is a histogram whose bounds are two an octave from 64 ns to 1.07 s, at edges of its HDR
buckets, so that each count is exact (of values below the bound), and beside it the percentiles that HDR knows
within 0.4 %. Losses come once more as ``xdpstack_dropped_total{where,reason}``.

:class:`Collector` is prometheus_client's; ``xdpstack metrics`` serves it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from xdpstack._ffi import lib, view
from xdpstack.alerts import Alerts
from xdpstack.stats import Histogram
from xdpstack.watch import Engine, Look, drops, key_of, look

__all__ = ["BOUNDS", "PERCENTS", "Collector", "expose"]

BOUNDS = tuple(step << octave for octave in range(5, 30) for step in (2, 3))[:-1]
"""Of the buckets, in ns: a record counts where it is below."""
PERCENTS = (50.0, 90.0, 99.0, 99.9, 99.99)
"""Of ``xdpstack_stage_percentile_seconds``."""
_PLACES = np.array([lib.xds_hist_bucket(bound) for bound in BOUNDS])

# The labels of a family, besides the engine; an empty value is no label to Prometheus.
_LABELS: dict[str, tuple[str, ...]] = {
    "line": ("feed", "channel", "line"),
    "channel": ("feed", "channel"),
    "books": ("feed",),
    "books_reasons": ("feed", "reason"),
    "host": ("port", "interface", "queue"),
    "host_frames": ("port", "interface", "queue", "reason"),
    "port": ("port", "interface", "queue"),
    "stack": ("port", "interface", "queue"),
    "stack_segments": ("port", "interface", "queue", "reason"),
    "tcp": ("port", "interface", "queue"),
    "tcp_segments": ("port", "interface", "queue", "reason"),
    "tcp_states": ("port", "interface", "queue", "state"),
    "session": ("protocol",),
    "session_messages": ("protocol", "reason"),
    "link": ("interface",),
    "link_events": ("interface", "reason"),
    "phc": ("interface",),
    "no_socket": ("group", "interface", "queue"),
    "alert": ("alert", "subject"),
    "stage": ("feed", "connection", "endpoint", "stage"),
    "stages": ("feed", "connection", "endpoint"),
    "connection": ("connection",),
}
_ABOUT = {
    "engine": "The engine",
    "clock": "The engine's clock against CLOCK_TAI",
    "phc": "A NIC's clock against CLOCK_TAI, to which its stamps are mapped",
    "line": "A line of a channel",
    "channel": "A channel of a feed",
    "books": "The books of a feed",
    "books_reasons": "Updates that the books refused or found odd, by reason",
    "host": "The host core of a port",
    "host_frames": "Frames of a port by what became of them",
    "port": "A port's queues",
    "stack": "The TCP stack of a port",
    "stack_segments": "Segments of a port's TCP by what became of them before any connection had them",
    "tcp": "All connections of a port's TCP together",
    "tcp_segments": "Segments that connections got, by what became of them",
    "tcp_states": "Connections of a port's TCP, by state",
    "session": "All sessions of one protocol together",
    "session_messages": "Messages, frames or records that a session did not take, by reason",
    "link": "A network interface",
    "link_events": "What happened to a network interface",
    "no_socket": "Frames that came by a queue without a socket, and went to the kernel",
    "alert": "A rule of [[alert]]",
    "stage": "To a stage from the one before it (total, decoded, applied: from arrival), below each bound",
    "stages": "The first packets, which the stages leave out",
    "connection": "A place of connections",
}


class _Families:
    """Metrics in the making, by name: one family each, whichever engine a value is of."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def add(self, kind: Any, name: str, about: str, labels: dict[str, str], value: float) -> None:
        family = self.made.get(name)
        if family is None:
            family = self.made[name] = kind(name, about, labels=list(labels))
        family.add_metric(list(labels.values()), value)

    def histogram(self, name: str, about: str, labels: dict[str, str], histogram: Histogram) -> None:
        family = self.made.get(name)
        if family is None:
            family = self.made[name] = HistogramMetricFamily(name, about, labels=list(labels))
        buckets, total = _buckets(histogram)
        family.add_metric(list(labels.values()), buckets, sum_value=histogram.pointer.sum / 1e9)
        for percent in PERCENTS:
            self.add(
                GaugeMetricFamily, f"{name.removesuffix('_seconds')}_percentile_seconds",
                "What so many percent of the values do not exceed, of the whole run",
                {**labels, "percent": f"{percent:g}"},
                histogram.percentile(percent) / 1e9 if total else float("nan"),
            )  # fmt: skip
        self.add(
            GaugeMetricFamily, f"{name.removesuffix('_seconds')}_max_seconds", "The largest value of the run",
            labels, histogram.pointer.max / 1e9 if total else float("nan"),
        )  # fmt: skip


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], int]:
    """Prometheus' cumulative buckets, by bound in seconds, and the count of all."""
    counts = view(histogram.pointer.buckets, lib.XDS_HIST_BUCKETS, "uint64_t")
    sums = np.concatenate([[0], np.cumsum(counts)])
    total = int(sums[-1])
    bounded = [(f"{bound / 1e9:.10g}", float(sums[at])) for bound, at in zip(BOUNDS, _PLACES, strict=True)]
    return [*bounded, ("+Inf", float(total))], total


def _metric(family: str, field: str, unit: str, gauge: bool) -> tuple[str, float]:
    """A metric's name without ``_total``, and what to multiply a value by."""
    words = [word for word in (family, field) if word]
    factor = 1.0
    if unit == "ns" or field.endswith("_ns"):
        words[-1] = words[-1].removesuffix("_ns") + "_seconds"
        factor = 1e-9
    elif family == "no_socket":
        words.append("frames")
    return re.sub(r"\W", "_", "xdpstack_" + "_".join(words)).removesuffix("_total"), factor


def _labels(family: str, engine: str, found: dict[str, str]) -> dict[str, str]:
    return {"engine": engine, **{label: found.get(label, "") for label in _LABELS.get(family, ())}}


def _add_engine(families: _Families, engine: Engine) -> None:
    for name, value in engine.values.items():
        key = key_of(name)
        gauge, unit = name in engine.gauges, engine.units[name]
        metric, factor = _metric(key.family, key.field, unit, gauge)
        about = f"{_ABOUT.get(key.family, name)}{': ' + key.field if key.field else ''}"
        labels = _labels(key.family, engine.label, dict(key.labels))
        kind = GaugeMetricFamily if gauge else CounterMetricFamily
        families.add(kind, metric, about, labels, value * factor)
    for name, histogram in engine.histograms.items():
        key = key_of(name)
        labels = _labels(key.family, engine.label, dict(key.labels))
        about = _ABOUT.get(key.family, name)
        families.histogram(f"xdpstack_{key.family}_seconds", about, labels, histogram)
    for places in engine.fields("connection"):
        place = dict(places)["connection"]
        labels = {"engine": engine.label, "connection": place, "peer": engine.peer(place)}
        about = "Who has a place of connections: 1, or 0 for nobody"
        families.add(
            GaugeMetricFamily, "xdpstack_connection_peer", about, labels, float(bool(labels["peer"]))
        )
    for drop in drops(engine.values):
        labels = {"engine": engine.label, "where": drop.where, "reason": drop.reason}
        labels |= {label: drop.key[label] for label in ("feed", "queue")}
        families.add(
            CounterMetricFamily, "xdpstack_dropped", "Everything that was refused or lost", labels, drop.count
        )


def _add_rest(families: _Families, seen: Look) -> None:
    up = "Whether the engine's process runs; 0: it was killed, `xdpstack stats --sweep` forgets it"
    for engine in seen.engines.values():
        labels = {"engine": engine.label, "pid": str(engine.pid)}
        families.add(GaugeMetricFamily, "xdpstack_engine_up", up, labels, 1)
    for found in seen.dead:
        labels = {"engine": found.name, "pid": str(found.pid)}
        families.add(GaugeMetricFamily, "xdpstack_engine_up", up, labels, 0)
    for tape in seen.tapes:
        at = {"tape": tape.tape}
        written = "Written to a tape or ring"
        families.add(CounterMetricFamily, "xdpstack_tape_records", written, at, tape.written)
        families.add(GaugeMetricFamily, "xdpstack_tape_bytes", "Room of a tape or ring", at, tape.bytes)
        for one in tape.readers:
            labels = {**at, "reader": one["name"], "pid": str(one["pid"])}
            about = "How far a reader is behind the writer"
            families.add(GaugeMetricFamily, "xdpstack_reader_lag_bytes", about, labels, one["lag"])
            if one["lag_records"] is not None:
                name = "xdpstack_reader_lag_records"
                families.add(GaugeMetricFamily, name, about, labels, one["lag_records"])
            about = "Records that a reader lost by being lapped"
            families.add(CounterMetricFamily, "xdpstack_reader_lost_records", about, labels, one["lost"])
            families.add(CounterMetricFamily, "xdpstack_reader_laps", "How often", labels, one["laps"])


def _add_alerts(families: _Families, alerts: Alerts) -> None:
    """Of rules that the exporter judges itself; those of `xdpstack run` are in the engines' segments."""
    about = f"{_ABOUT['alert']}: "
    firing = {(alert.rule.name, alert.engine, alert.subject) for alert in alerts.firing}
    for rule in alerts.rules:
        mine = [(engine, subject) for name, engine, subject in sorted(firing) if name == rule.name]
        for engine, subject in mine or [("", "")]:
            labels = {"engine": engine, "alert": rule.name, "subject": subject}
            families.add(
                GaugeMetricFamily, "xdpstack_alert_firing", about + "firing", labels, float(bool(mine))
            )
        labels = {"engine": "", "alert": rule.name, "subject": ""}
        fired = float(alerts.fired[rule.name])
        families.add(CounterMetricFamily, "xdpstack_alert_fired", about + "fired", labels, fired)


class Collector:
    """Looks when it is asked. ``take`` gives a look, without it one is taken of /dev/shm."""

    def __init__(self, take: Callable[[], Look] = look, alerts: Alerts | None = None) -> None:
        self._take, self._alerts = take, alerts

    def describe(self) -> Sequence[Metric]:
        """Nothing ahead of time: what there is depends on what runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric, in order of name."""
        families, seen = _Families(), self._take()
        for engine in seen.engines.values():
            _add_engine(families, engine)
        _add_rest(families, seen)
        if self._alerts is not None:
            _add_alerts(families, self._alerts)
        for name in sorted(families.made):
            yield families.made[name]


def expose(collector: Collector) -> str:
    """Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()
