"""The exporter: every entry is a metric, buckets agree with HDR, the text is Prometheus', the dashboard asks
for what there is, and HTTP serves it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from xdpstack import tape
from xdpstack._ffi import lib, view
from xdpstack.alerts import AlertRule, Alerts
from xdpstack.cli import main
from xdpstack.metrics import BOUNDS, PERCENTS, Collector, expose
from xdpstack.stats import Segment
from xdpstack.tests.watched import Shown, fixed, shown, speak
from xdpstack.watch import Watch, key_of

DASHBOARD = Path(__file__).parents[2] / "tools" / "grafana" / "xdpstack.json"
SECONDS = 60.0


class Exposed:
    """What the exporter says, read back by prometheus_client's parser."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) == 1, f"{len(found)} of {name} {labels}"
        return float(found[0])


@contextlib.contextmanager
def all_there_is(tmp_path: Path) -> Iterator[tuple[Shown, Collector]]:
    """Two engines (the first one's is the value), a dead one, sessions, a tape with a reader, links, a queue
    without a socket, alerts."""
    (tmp_path / "xdpstack-4194999-gone.stat").write_bytes(b"half")
    with (
        shown(tmp_path) as engine,
        shown(tmp_path, "backup"),
        tape.Tape.create(tmp_path / "news.tape", 1 << 16) as writer,
        writer.reader("strategy", oldest=True),
    ):
        segment = engine.segment
        segment.words("link.eth0", {"up": ("links", True), "events.moved": ("events", False)})
        segment.counter("filter.main.no_socket.eth0.2", "packets")[0] = 17
        segment.words("alert.inside", {"firing": ("alerts", True), "fired": ("alerts", False)})
        speak(segment)
        writer.write(b"x" * 100)
        watch = Watch(lambda: fixed(tmp_path, 1.0))
        rules = [AlertRule(name="gaps", when="gap"), AlertRule(name="calm", when="gap", feed="none")]
        alerts = Alerts(rules)
        watch.look()
        alerts.look(watch)
        yield engine, Collector(lambda: fixed(tmp_path, 2.0), alerts)


@pytest.fixture
def everything(tmp_path: Path) -> Iterator[Exposed]:
    with all_there_is(tmp_path) as (_, collector):
        yield Exposed(expose(collector))


def test_every_counter_and_gauge_is_there_once_for_each_engine_with_its_value(
    everything: Exposed, tmp_path: Path
) -> None:
    engines = fixed(tmp_path, 3.0).engines
    assert len(engines) == 2
    for label, engine in engines.items():
        mine = [s for s in everything.samples if s.labels.get("engine") == label]
        for name, value in engine.values.items():
            key = key_of(name)
            words = {k: v for k, v in key.labels}
            stem = re.sub(r"\W", "_", "_".join(w for w in ("xdpstack", key.family, key.field) if w))
            stem = stem.removesuffix("_total").removesuffix("_ns")
            good = re.compile(stem + r"(_seconds|_frames)?(_total)?")
            found = [
                s for s in mine
                if good.fullmatch(s.name) and all(s.labels.get(k, "") == v for k, v in words.items())
            ]  # fmt: skip
            assert len(found) == 1, f"{name}: {found}"
            factor = 1e-9 if "_seconds" in found[0].name else 1
            assert found[0].value == pytest.approx(value * factor), name
            assert found[0].name.endswith("_total") == (name not in engine.gauges), name


def test_units_are_seconds_and_labels_say_where(everything: Exposed) -> None:
    assert everything.value("xdpstack_engine_busy_seconds_total", engine="trader") == pytest.approx(0.3)
    assert everything.value("xdpstack_engine_slow_worst_seconds", engine="trader") == pytest.approx(48.2e-6)
    port = {"engine": "trader", "interface": "eth0", "queue": "3", "port": "xsk:eth0:3"}
    assert everything.value("xdpstack_port_rx_frames_total", **port) == 1_000_000
    assert everything.value("xdpstack_host_frames_total", reason="udp_checksum", **port) == 100
    line = {"engine": "backup", "feed": "itch-a", "channel": "0", "line": "1"}
    assert everything.value("xdpstack_line_won_total", **line) == 125_000
    lost = everything.value("xdpstack_dropped_total", engine="trader", reason="rx_ring_full", queue="3")
    assert lost == 500
    assert everything.value("xdpstack_no_socket_frames_total", interface="eth0", queue="2") == 17
    assert everything.value("xdpstack_connection_peer", engine="trader", peer="10.1.0.1:7001") == 1
    ws = {"engine": "trader", "protocol": "ws"}
    assert everything.value("xdpstack_session_live", **ws) == 2
    assert everything.value("xdpstack_session_messages_total", reason="too_long", **ws) == 1
    assert everything.value("xdpstack_dropped_total", where="sessions ws", reason="too_long") == 1


def test_who_runs_who_was_killed_and_who_reads_a_tape(everything: Exposed) -> None:
    assert everything.value("xdpstack_engine_up", engine="trader") == 1
    assert everything.value("xdpstack_engine_up", engine="gone") == 0
    assert everything.value("xdpstack_tape_records_total", tape="news") == 1
    assert everything.value("xdpstack_reader_lag_bytes", tape="news", reader="strategy") >= 100
    assert everything.value("xdpstack_reader_lag_records", tape="news", reader="strategy") >= 1
    assert everything.value("xdpstack_reader_lost_records_total", reader="strategy") == 0


def test_alerts_of_the_exporter_and_of_an_engine(everything: Exposed) -> None:
    firing = everything.value("xdpstack_alert_firing", alert="gaps", engine="trader")
    assert firing == 1
    assert everything.value("xdpstack_alert_firing", alert="calm") == 0
    assert everything.value("xdpstack_alert_firing", alert="inside", engine="trader") == 0
    assert everything.value("xdpstack_alert_fired_total", alert="gaps") == 2, "one an engine"


def test_buckets_are_exact_and_percentiles_are_those_of_hdr(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    values = np.concatenate(
        [(10 ** rng.uniform(0, 10.5, 20_000)).astype(np.int64), np.array([*BOUNDS, *(b - 1 for b in BOUNDS)])]
    )
    with Segment("eng", root=tmp_path) as segment:
        histogram = segment.hist("feed.f.stage.total")
        histogram.record_many(values)
        seen = Exposed(expose(Collector(lambda: fixed(tmp_path, 1.0))))
        labels = {"engine": "eng", "feed": "f", "stage": "total"}
        for bound in BOUNDS:
            le = f"{bound / 1e9:.10g}"
            counted = [
                s.value for s in seen.samples
                if s.name == "xdpstack_stage_seconds_bucket" and float(s.labels["le"]) == float(le)
            ]  # fmt: skip
            assert counted == [np.count_nonzero(values < bound)], f"below {bound} ns"
        assert seen.value("xdpstack_stage_seconds_count", **labels) == len(values)
        kept = values.sum()
        assert seen.value("xdpstack_stage_seconds_sum", **labels) == pytest.approx(kept / 1e9)
        for percent in PERCENTS:
            told = seen.value("xdpstack_stage_percentile_seconds", percent=f"{percent:g}", **labels)
            assert told == pytest.approx(histogram.percentile(percent) / 1e9)
        assert seen.value("xdpstack_stage_max_seconds", **labels) == pytest.approx(values.max() / 1e9)


def test_the_bounds_are_edges_of_hdr_buckets() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert (BOUNDS[0], BOUNDS[-1]) == (64, 1 << 30)
    for bound in BOUNDS:
        assert lib.xds_hist_bucket_start(lib.xds_hist_bucket(bound)) == bound


def test_a_histogram_without_records_has_no_percentiles(tmp_path: Path) -> None:
    with Segment("eng", root=tmp_path) as segment:
        empty = segment.hist("feed.f.stage.total")
        assert not view(empty.pointer.buckets, lib.XDS_HIST_BUCKETS, "uint64_t").any()
        seen = Exposed(expose(Collector(lambda: fixed(tmp_path, 1.0))))
    assert math.isnan(seen.value("xdpstack_stage_percentile_seconds", percent="99"))
    assert seen.value("xdpstack_stage_seconds_count") == 0


def test_prometheus_own_linter_has_nothing_to_say(everything: Exposed) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=everything.text, capture_output=True, text=True, timeout=SECONDS
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- the dashboard


def queries() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_every_query_of_the_dashboard_names_metrics_and_labels_that_there_are(everything: Exposed) -> None:
    names = {sample.name for sample in everything.samples}
    labels: dict[str, set[str]] = {}
    for sample in everything.samples:
        labels.setdefault(sample.name, set()).update(sample.labels)
    assert len(queries()) > 20
    for query in queries():
        found = re.findall(r"\bxdpstack_\w+", query)
        assert found, query
        for name in found:
            assert name in names, f"{name} of {query!r} does not exist"
        of_these = set().union(*(labels[name] for name in found))
        asked = re.findall(r"(\w+)=~?\"", query)
        asked += [word for by in re.findall(r"by \(([^)]*)\)", query) for word in re.split(r",\s*", by)]
        for label in asked:
            assert label in of_these, f"{label} of {query!r}"
    legends = re.findall(r'"legendFormat": "([^"]*)"', DASHBOARD.read_text())
    known = set().union(*labels.values())
    for legend in legends:
        assert set(re.findall(r"{{(\w+)}}", legend)) <= known, legend


def _plain(query: str) -> str:
    """As Grafana asks it, with all engines chosen."""
    return query.replace("$__rate_interval", "1m").replace("$engine", ".*")


class Prometheus:
    """A server of its own that scrapes one address of this machine each second; its API, over loopback."""

    def __init__(self, binary: str, folder: Path, target: str) -> None:
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "xdpstack", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._log = folder / "prometheus.log"
        words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [binary, *words, "--web.listen-address=127.0.0.1:0"], stdout=log, stderr=log, cwd=folder
            )
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def address(self) -> str | None:
        """Where it listens, as soon as it does."""
        assert self._process.poll() is None, self._log.read_text()
        found = re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', self._log.read_text())
        return found and found[1]

    def ask(self, what: str, **words: str) -> Any:
        """The data of an answer, which has to be one without a warning."""
        where = f"http://{self.address()}/api/v1/{what}?{urllib.parse.urlencode(words)}"
        try:
            with self._open(where, timeout=SECONDS) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{words}: {error.read().decode()}") from None
        assert (said["status"], said.get("warnings")) == ("success", None), said
        return said["data"]

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(SECONDS)
        finally:
            self._process.kill()
            self._process.wait()


def _until(met: Callable[[], Any]) -> Any:
    """What it says as soon as that is true; its last word after a minute."""
    end = time.monotonic() + SECONDS
    while not (said := met()) and time.monotonic() < end:
        time.sleep(0.2)
    return said


def test_a_real_prometheus_has_an_answer_to_every_query_of_the_dashboard(tmp_path: Path) -> None:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (apt-get install prometheus)")
    with contextlib.ExitStack() as stack:
        engine, collector = stack.enter_context(all_there_is(tmp_path))
        registry = CollectorRegistry()
        registry.register(collector)
        server, thread = start_http_server(0, "127.0.0.1", registry)
        stack.callback(thread.join)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        (tmp_path / "prometheus").mkdir()
        there = Prometheus(binary, tmp_path / "prometheus", f"127.0.0.1:{server.server_port}")
        stack.callback(there.close)
        assert _until(there.address)

        def unanswered() -> list[str]:
            engine.second(10_000)
            return [q for q in queries() if not there.ask("query", query=_plain(q))["result"]]

        assert _until(lambda: not unanswered()), unanswered()
        packets = 'rate(xdpstack_engine_packets_total{engine="trader"}[1m]) > 0'
        assert _until(lambda: unanswered() == [] and there.ask("query", query=packets)["result"])
        variable = {"match[]": "xdpstack_engine_up"}
        assert there.ask("label/engine/values", **variable) == ["backup", "gone", "trader"]
        kinds = {name: one[0]["type"] for name, one in there.ask("metadata").items()}
        counted = {name for q in queries() for name in re.findall(r"(?:rate|increase)\((\w+)", q)}
        assert len(counted) > 20
        for name in counted:  # of anything else, a rate would be nonsense
            kind = kinds.get(name) or kinds.get(re.sub("_(total|bucket)$", "", name))
            assert kind in ("counter", "histogram"), f"{name} is a {kind}"


def test_prometheus_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    lines = ["groups:", "- name: dashboard", "  rules:"]
    for number, query in enumerate(queries()):
        lines += [f"  - record: q{number}", f"    expr: {json.dumps(_plain(query))}"]
    (tmp_path / "rules.yml").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True,
        timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries())} rules found" in done.stdout


def test_the_dashboards_panels_lie_beside_each_other_and_are_told_apart() -> None:
    board = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for key in ("id", "title"):
        assert len({panel[key] for panel in board["panels"]}) == len(board["panels"])


# -- the command


@pytest.fixture
def engine() -> Iterator[Shown]:
    with Segment(f"metrics-{os.getpid()}") as segment:
        made = Shown(segment)
        made.second(1_000_000)
        yield made


def test_it_serves_until_a_signal(engine: Shown, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[alert]]\nname = "open"\nwhen = "gap"\n')
    words = [engine.segment.name, "--listen", "127.0.0.1:0", "--alerts", str(rules), "--interval", "0.05"]
    process = subprocess.Popen(
        [sys.executable, "-m", "xdpstack", "metrics", *words], stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(SECONDS, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        address = re.fullmatch(r"metrics: (http://127\.0\.0\.1:\d+/metrics)\n", first)
        assert address, first
        second = process.stderr.readline()
        assert second.startswith("xdpstack: alert open: feed itch-a channel 0: 1 gaps are open")
        with urllib.request.urlopen(address[1], timeout=SECONDS) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            seen = Exposed(answer.read().decode())
        assert seen.value("xdpstack_engine_packets_total") == 1_000_000
        assert seen.value("xdpstack_alert_firing", alert="open") == 1
        engine.second(500)
        with urllib.request.urlopen(address[1], timeout=SECONDS) as answer:
            assert Exposed(answer.read().decode()).value("xdpstack_engine_packets_total") == 1_000_500
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


def test_once_prints_them(engine: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", engine.segment.name, "--once"]) == 0
    seen = Exposed(capsys.readouterr().out)
    assert seen.value("xdpstack_engine_packets_total", engine=engine.segment.name) == 1_000_000


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--listen", "9752"], 2, "--listen 9752: wanted ADDRESS:PORT"),
        (["--listen", "127.0.0.1:99999"], 2, "wanted ADDRESS:PORT"),
        (["--listen", "192.0.2.77:0"], 1, "listen at 192.0.2.77:0: Cannot assign requested address"),
        (["--alerts", "no.toml"], 1, "no.toml: No such file"),
        (["--interval", "0"], 2, "--interval: 0 is not a number of seconds above 0"),
    ],
)
def test_a_mistake_is_one_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    assert main(["metrics", *words]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert says in said.err


def test_without_prometheus_client_one_sentence_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["metrics"]) == 1
    assert "pip install 'xdpstack[metrics]'" in capsys.readouterr().err
