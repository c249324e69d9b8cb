"""Alerts by rule: what a TOML file's ``[[alert]]`` tables watch for, judged outside the engines' threads.

    [[alert]]
    name = "slow-book"            # letters, digits, - and _
    when = "latency"              # of a stage, since the last look
    stage = "applied"
    percentile = 99.0
    above = 50e-6                 # seconds

| ``when`` | fires while | ``above`` |
| --- | --- | --- |
| ``latency`` | the percentile of a ``stage`` (of ``feed``, ``connection``, ``endpoint``) is above | seconds |
| ``gap`` | more gaps of a feed's channel are open | gaps, 0 |
| ``lapped`` | a ``reader`` of a tape lost records since the last look | records, 0 |
| ``lag`` | a ``reader`` of a tape or ring is further behind | of ``unit``: "bytes" or "records" |
| ``drops`` | so much is lost a second, for ``reason`` or any | a second, 0 |
| ``dead`` | an engine was killed, stands still, or (named by ``engine``) is not there | – |

``engine`` narrows a rule to one. ``lasts``: seconds that it must be so before it fires (0); ``again``:
seconds after which a rule that still fires is said once more (60).
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdpstack.errors import ConfigError
from xdpstack.feed import refuse_faults
from xdpstack.stats import Segment
from xdpstack.watch import Engine, Watch, drops, key_of

if TYPE_CHECKING:
    from xdpstack.config import Reader

__all__ = ["WHEN", "Alert", "AlertRule", "Alerts", "Judge", "load", "rules_of"]

log = logging.getLogger("xdpstack.alerts")

UNITS = ("bytes", "records")
WHEN = ("latency", "gap", "lapped", "lag", "drops", "dead")
_TAKES = {
    "latency": {"feed", "connection", "endpoint", "stage", "percentile"},
    "gap": {"feed"},
    "lapped": {"reader"},
    "lag": {"reader", "unit"},
    "drops": {"reason"},
    "dead": set(),
}
_COMMON = {"name", "when", "engine", "above", "lasts", "again"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One rule; see the module's words for the keys."""

    name: str
    when: str
    engine: str = ""
    feed: str = ""
    connection: str = ""
    endpoint: str = ""
    stage: str = ""
    reader: str = ""
    reason: str = ""
    unit: str = "bytes"
    percentile: float = 99.0
    above: float = 0.0
    lasts: float = 0.0
    again: float = 60.0

    def __post_init__(self) -> None:
        refuse_faults(self)
        if not re.fullmatch(r"[\w-]{1,32}", self.name, re.ASCII):
            raise ConfigError(f"name: wanted letters, digits, - and _, at most 32, not {self.name!r}")
        if self.when not in WHEN:
            raise ConfigError(f"when: wanted one of {', '.join(WHEN)}, not {self.when!r}")
        for field in dataclasses.fields(self):
            given = getattr(self, field.name) != field.default
            if given and field.name not in _COMMON | _TAKES[self.when]:
                raise ConfigError(f'{field.name}: when = "{self.when}" does not ask for it')
        if self.unit not in UNITS:
            raise ConfigError(f"unit: wanted one of {', '.join(UNITS)}, not {self.unit!r}")
        if not 0 <= self.percentile <= 100:
            raise ConfigError(f"percentile: wanted 0 to 100, not {self.percentile!r}")
        if self.when in ("latency", "lag") and not self.above:
            raise ConfigError(f'above: when = "{self.when}" takes a limit')
        if self.when == "dead" and self.above:
            raise ConfigError('above: when = "dead" has no limit; lasts says how long it may stand still')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A rule that began to fire, still fires, or (``firing`` false) is good again."""

    rule: AlertRule
    engine: str
    """Label of the engine; empty where it is of a tape."""
    subject: str
    """What it is about: ``feed itch channel 0``, ``reader strategy of news``."""
    value: float
    """In the rule's unit."""
    firing: bool

    def __str__(self) -> str:
        where = f" (engine {self.engine})" if self.engine else ""
        if not self.firing:
            return f"alert {self.rule.name}: {self.subject}: good again{where}"
        return f"alert {self.rule.name}: {self.subject}: {_told(self.rule, self.value)}{where}"


def _told(rule: AlertRule, value: float) -> str:
    if rule.when == "latency":
        return f"p{rule.percentile:g} is {value * 1e6:,.1f} µs, above {rule.above * 1e6:,.1f} µs"
    if rule.when == "dead":
        return "does not turn"
    unit = {
        "gap": "gaps are open",
        "lapped": "records were lost",
        "lag": f"{rule.unit} behind",
        "drops": "lost a second",
    }
    return f"{value:,.0f} {unit[rule.when]}, above {rule.above:,.0f}"


_Found = tuple[str, str, float | None]  # engine, subject, value; None: not to be known just now
_OF = ("feed", "connection", "endpoint", "stage")


def _engines(rule: AlertRule, watch: Watch) -> Iterator[Engine]:
    assert watch.now is not None
    for engine in watch.now.engines.values():
        if rule.engine in ("", engine.name, engine.label):
            yield engine


def _latency(rule: AlertRule, watch: Watch) -> Iterator[_Found]:
    for engine in _engines(rule, watch):
        for name in engine.histograms:
            key = key_of(name)
            wanted = all(getattr(rule, word) in ("", key[word]) for word in _OF)
            fresh = watch.fresh(engine.label, name) if wanted and key.family == "stage" else None
            if fresh:
                kind = next((word for word in _OF[:3] if key[word]), "feed")
                value = fresh.percentile(rule.percentile) / 1e9
                yield engine.label, f"{kind} {key[kind]} {key['stage']}", value


def _gap(rule: AlertRule, watch: Watch) -> Iterator[_Found]:
    for engine in _engines(rule, watch):
        for labels, fields in engine.fields("channel").items():
            found = dict(labels)
            if rule.feed in ("", found["feed"]):
                yield engine.label, f"feed {found['feed']} channel {found['channel']}", fields["gaps_open"]


def _readers(watch: Watch, rule: AlertRule) -> Iterator[tuple[str, int, dict[str, Any]]]:
    assert watch.now is not None
    for tape in watch.now.tapes:
        for reader in tape.readers:
            if rule.reader in ("", reader["name"]):
                yield tape.tape, reader["pid"], reader


def _lapped(rule: AlertRule, watch: Watch) -> Iterator[_Found]:
    tapes = watch.before.tapes if watch.before else ()
    before = {(t.tape, r["pid"], r["name"]): r["lost"] for t in tapes for r in t.readers}
    for tape, pid, reader in _readers(watch, rule):
        if watch.before:
            grown = reader["lost"] - before.get((tape, pid, reader["name"]), 0)
            yield "", f"reader {reader['name'] or pid} of {tape}", max(0, grown)


def _lag(rule: AlertRule, watch: Watch) -> Iterator[_Found]:
    for tape, pid, reader in _readers(watch, rule):
        behind = reader["lag_records" if rule.unit == "records" else "lag"]
        yield "", f"reader {reader['name'] or pid} of {tape}", behind


def _drops(rule: AlertRule, watch: Watch) -> Iterator[_Found]:
    for engine in _engines(rule, watch):
        found: dict[str, float] = {}
        for drop in drops(engine.values):
            rate = watch.rate(engine.label, drop.name)
            if rule.reason in ("", drop.reason) and rate is not None:
                subject = f"{drop.where} {drop.reason}" if rule.reason else "all"
                found[subject] = found.get(subject, 0.0) + rate
        for subject, rate in found.items():
            yield engine.label, "packets and updates" if subject == "all" else subject, rate


def _dead(rule: AlertRule, watch: Watch) -> Iterator[_Found]:
    assert watch.now is not None
    for engine in _engines(rule, watch):
        turns = watch.rate(engine.label, "engine.turns")
        yield engine.label, f"engine {engine.label}", float(turns == 0)
    named = {e.name for e in watch.now.engines.values()} | set(watch.now.engines)
    for found in watch.now.dead:
        if found.state == "dead" and rule.engine in ("", found.name) and found.name not in named:
            named.add(found.name)
            yield found.name, f"engine {found.name}", 1.0
    if rule.engine and rule.engine not in named:
        yield rule.engine, f"engine {rule.engine}", 1.0


_LOOKS: dict[str, Callable[[AlertRule, Watch], Iterator[_Found]]] = {
    "latency": _latency, "gap": _gap, "lapped": _lapped, "lag": _lag, "drops": _drops, "dead": _dead,
}  # fmt: skip


@dataclasses.dataclass(slots=True)
class _State:
    since: float
    """Monotonic seconds since when it is so."""
    said: float | None = None
    """When it was said last; None: it does not fire yet."""


class Alerts:
    """Rules, and which of them fire. Each look goes to the log ``xdpstack.alerts`` and to ``tell``."""

    def __init__(self, rules: Sequence[AlertRule], tell: Iterable[Callable[[Alert], object]] = ()) -> None:
        """``tell``: called with every alert, on the thread that looks; what they raise is logged."""
        self.rules = tuple(rules)
        self._tell = list(tell)
        self._states: dict[tuple[str, str, str], _State] = {}
        self.firing: list[Alert] = []
        """Those that fire now, as of the last look."""
        self.fired: dict[str, int] = {rule.name: 0 for rule in self.rules}
        """How often each rule began to fire."""
        self._words: dict[str, Any] = {}

    def show_in(self, segment: Segment) -> None:
        """Let other processes see which rules fire: entries ``alert.NAME.firing`` and ``.fired``."""
        for rule in self.rules:
            names = {"firing": ("alerts", True), "fired": ("alerts", False)}
            self._words[rule.name] = segment.words(f"alert.{rule.name}", names)

    def look(self, watch: Watch) -> list[Alert]:
        """Judge the watch's last look. Returns what is to be said: beginnings, reminders, ends."""
        assert watch.now is not None
        said: list[Alert] = []
        firing: list[Alert] = []
        last = {(alert.rule.name, alert.engine, alert.subject): alert for alert in self.firing}
        seen = set()
        for rule in self.rules:
            for engine, subject, value in _LOOKS[rule.when](rule, watch):
                at = (rule.name, engine, subject)
                if value is None:  # neither worse nor good again: it stays what it was
                    seen.add(at)
                    firing += [last[at]] if at in last else []
                elif value > rule.above:
                    seen.add(at)
                    alert = Alert(rule=rule, engine=engine, subject=subject, value=value, firing=True)
                    state = self._states.setdefault(at, _State(watch.now.at))
                    if watch.now.at - state.since >= rule.lasts:
                        firing.append(alert)
                        said += self._due(state, alert, watch.now.at)
        for at in set(self._states) - seen:
            if self._states.pop(at).said is not None:
                rule = next(rule for rule in self.rules if rule.name == at[0])
                said.append(Alert(rule=rule, engine=at[1], subject=at[2], value=0.0, firing=False))
        self.firing = firing
        for name, words in self._words.items():
            words[0] = sum(alert.rule.name == name for alert in firing)
            words[1] = self.fired[name]
        self._say(said)
        return said

    def _due(self, state: _State, alert: Alert, now: float) -> list[Alert]:
        if state.said is None:
            self.fired[alert.rule.name] += 1
        elif now - state.said < alert.rule.again:
            return []
        state.said = now
        return [alert]

    def _say(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            log.log(logging.WARNING if alert.firing else logging.INFO, "%s", alert)
            for tell in self._tell:
                try:
                    tell(alert)
                except Exception:  # a watcher's fault is not the engine's
                    log.exception("the callback for alert %s failed", alert.rule.name)


class Judge:
    """The rules of a running program, judged at most once in ``every`` seconds by the loop that waits for
    its engines."""

    def __init__(
        self, rules: Sequence[AlertRule], engines: Sequence[str], segment: Segment | None = None,
        tell: Iterable[Callable[[Alert], object]] = (), *, every: float = 1.0,
    ) -> None:  # fmt: skip
        """``engines``: their names or process ids; those that a rule names are looked at, too."""
        self.alerts = Alerts(rules, tell)
        if segment is not None:
            self.alerts.show_in(segment)
        self.watch = Watch(only={*engines, *(rule.engine for rule in rules if rule.engine)})
        self._every, self._due = every, 0.0

    def look(self) -> list[Alert]:
        """Judge them, when it is time to; see :meth:`Alerts.look`."""
        now = time.monotonic()
        if not self.alerts.rules or now < self._due:
            return []
        self._due = now + self._every
        self.watch.look()
        return self.alerts.look(self.watch)


def rules_of(reader: Reader, root: Mapping[str, Any]) -> tuple[AlertRule, ...]:
    """The ``[[alert]]`` tables of a file. ConfigError with file, line and key."""
    tables = root.get("alert", [])
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise reader.fail(("alert",), "wanted tables [[alert]]")
    found: list[AlertRule] = []
    for table in tables:
        for needed in ("name", "when"):
            if needed not in table:
                raise reader.fail(("alert",), f'wanted {needed} = "…" in each [[alert]]')
        try:
            rule: AlertRule = reader.build(AlertRule, table, ("alert",))
        except ConfigError as error:
            key, _, why = str(error).partition(": ")
            if key not in {field.name for field in dataclasses.fields(AlertRule)}:
                raise
            raise reader.fail(("alert", key), f"{why} (alert {table['name']})") from None
        if rule.name in {other.name for other in found}:
            raise reader.fail(("alert", "name"), f"two alerts are called {rule.name!r}")
        found.append(rule)
    return tuple(found)


def load(path: str | Path) -> tuple[AlertRule, ...]:
    """The rules of a file, whose other tables are somebody else's. ConfigError, OSError."""
    from xdpstack import config  # which reads our tables, too

    root, reader = config.read(path)
    rules = rules_of(reader, root)
    if not rules:
        raise ConfigError(f"{path}:1: alert: there is no [[alert]]")
    return rules
