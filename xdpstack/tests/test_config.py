"""Programs in TOML: what is read, and that every mistake is one sentence with file, line and key."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack import config
from xdpstack.errors import ConfigError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.port import Subscription

WHOLE = """\
[engine]
cpu = 1
messages = true
burst = 32
slow = 1

[ports.main]
port = "xsk:eth0:3"
mode = "copy"
rx_ring = 8192
filter = "generic"

[ports.other]
port = "sock:eth1"
rcvbuf = 4096

[feeds.itch]
schema = "itch50"
max_orders = 2_000_000
[[feeds.itch.channels]]
lines = ["233.54.12.111:26477", "233.54.13.111:26477@10.1.0.1"]
request = "10.1.0.1:26400"
window_packets = 512

[feeds.plain]
books = false
[[feeds.plain.channels]]
lines = ["239.1.1.1:5000"]

[record]
file = "today.pcapng.zst"
"""


def load(tmp_path: Path, text: str) -> config.Program:
    path = tmp_path / "it.toml"
    path.write_text(text)
    return config.load(path)


def test_a_whole_program_is_read_as_it_stands(tmp_path: Path) -> None:
    program = load(tmp_path, WHOLE)
    assert (program.cpu, program.record) == (1, "today.pcapng.zst")
    assert (program.engine.burst, program.engine.slow, program.engine.max_messages) == (32, 1, 1 << 16)
    main, other = program.ports
    assert (main.name, main.port) == ("main", "xsk:eth0:3")
    assert main.options == {"mode": "copy", "rx_ring": 8192, "filter": "generic"}
    assert (other.name, other.port, other.options) == ("other", "sock:eth1", {"rcvbuf": 4096})
    itch, plain = program.feeds
    assert (itch.name, itch.schema, itch.max_orders, itch.books) == ("itch", "itch50", 2_000_000, True)
    (channel,) = itch.channels
    assert [str(line) for line in channel.lines] == [
        "233.54.12.111:26477",
        "233.54.13.111:26477@10.1.0.1",
    ]
    assert channel.request == Subscription(address="10.1.0.1", port=26400)
    assert channel.window_packets == 512
    assert (plain.schema, plain.books) == ("plain", False)  # the name is the schema where none is said


TCP = """
[tcp]
congestion = "newreno"
nagle = true
delayed_ack = 0.04
keepalive = true
keep_idle = 60
keep_interval = 1.5
keep_count = 3
give_up = 20.0
user_timeout = true
ecn = true
dscp = 46
mss = 0
connections = 1000
send_bytes = 4096
cookies = false
"""


def test_settings_of_tcp_are_what_connections_take(tmp_path: Path) -> None:
    assert load(tmp_path, WHOLE).tcp == {}
    assert load(tmp_path, WHOLE + TCP).tcp == {
        "congestion": "newreno", "nagle": 1, "delayed_ack_ns": 40_000_000, "keepalive": 1,
        "keep_idle_ns": 60_000_000_000, "keep_interval_ns": 1_500_000_000, "keep_count": 3,
        "give_up_ns": 20_000_000_000, "user_timeout": 1, "ecn": 1, "dscp": 46, "mss": 0,
        "connections": 1000, "send_bytes": 4096, "cookies": False,
    }  # fmt: skip


PORT = '[ports.main]\nport = "pcap:x"\n'
FEED = PORT + '[feeds.itch]\nschema = "itch50"\n'
XSK = '[ports.main]\nport = "xsk:eth0"\n'
CHANNEL = FEED + '[[feeds.itch.channels]]\nlines = ["239.1.1.1:5000"]\n'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "ports: no port"),
        ("x = 1\n", 1, "x: unknown table"),
        ("[ports\n", 1, "Expected"),
        ('\n\nengine = "fast"\n', 3, "engine: wanted a table"),
        ("engine = 5\n", 1, "engine: wanted a table"),
        (PORT + "[engine]\ncpu = -1\n", 4, "engine.cpu: wanted the number of a core"),
        (PORT + "[engine]\ncpu = true\n", 4, "engine.cpu: wanted the number of a core"),
        (PORT + "[engine]\nmessages = 3\n", 4, "engine.messages: wanted true or false"),
        (PORT + "[engine]\nburst = -3\n", 4, "engine.burst: wanted a whole number"),
        (PORT + "[engine]\nburst = 1.5\n", 4, "engine.burst: wanted a whole number"),
        (PORT + "[engine]\nslow = nan\n", 4, "engine.slow: wanted seconds"),
        (PORT + "[engine]\nname = 4\n", 4, "engine.name: wanted a string"),
        (PORT + "[engine]\nspeed = 4\n", 4, "engine.speed: unknown key (known: max_updates"),
        ("ports = 3\n", 1, "ports: wanted tables"),
        ("[ports]\nmain = 3\n", 2, "ports.main: wanted a table"),
        ("[ports.main]\n", 1, "ports.main: wanted port ="),
        ('[ports.main]\nport = "eth0"\n', 2, "ports.main.port: port 'eth0' is none of"),
        ('[ports.main]\nport = "pipe"\n', 2, "ports.main.port: a pipe"),
        (PORT + "rings = 4\n", 3, "ports.main.rings: unknown key (known: port, window)"),
        (XSK + "rings = 4\n", 3, "ports.main.rings: unknown key (known: port, accept_partial_checksum, addr"),
        (XSK + "channels = 'x'\n", 3, "ports.main.channels: wanted a whole number from 0 to 4096, not 'x'"),
        (XSK + "queues = '3-1'\n", 3, 'ports.main.queues: wanted "all", a range like "0-3", or a list'),
        (XSK + "spread = true\n", 3, "ports.main.spread: it says how to steer; add steer = true"),
        (XSK + "coalesce = { rx = 1 }\n", 3, "ports.main.coalesce: rx is none of rx_usecs, "),
        (XSK.replace("eth0", "eth0:1") + "queues = 2\n", 3, "ports.main.queues: xsk:eth0:1 names its queues"),
        (XSK + 'metadata = ["hash"]\n', 3, "ports.main.metadata: an engine keeps the timestamp alone; hash"),
        (XSK + 'tx = "lve"\n', 3, "ports.main.tx: wanted socket, live or auto, not 'lve'"),
        (XSK + 'metadata = "timestamp"\n', 3, 'ports.main.metadata: wanted ["timestamp"], not'),
        (XSK + 'metadata = ["colour", 3]\n', 3, 'ports.main.metadata: wanted ["timestamp"], not ['),
        (PORT + 'metadata = ["timestamp"]\n', 3, "ports.main.metadata: unknown key"),
        (PORT + "steer = true\n", 3, "ports.main.steer: unknown key (known: port, window)"),
        (PORT + 'window = "big"\n', 3, "ports.main.window: wanted a whole number"),
        ('[ports.main]\nport = "xsk:eth0"\nrequire = 1\n', 3, "ports.main.require: wanted true or false"),
        ("tcp = 5\n" + PORT, 1, "tcp: wanted a table"),
        (PORT + '[tcp]\ncongestion = "fast"\n', 4, "tcp.congestion: wanted one of cubic, newreno, none, not"),
        (PORT + "[tcp]\nnagle = 1\n", 4, "tcp.nagle: wanted true or false, not 1"),
        (
            PORT + "[tcp]\ndelayed_ack = 0.6\n",
            4,
            "tcp.delayed_ack: wanted seconds from 0 to 0.5, or 0 for the",
        ),
        (PORT + "[tcp]\nkeep_idle = true\n", 4, "tcp.keep_idle: wanted seconds from 0.01 to 2,592,000"),
        (PORT + "[tcp]\ngive_up = -1\n", 4, "tcp.give_up: wanted seconds from 0 to 2,592,000"),
        (PORT + "[tcp]\ngive_up = nan\n", 4, "tcp.give_up: wanted seconds from 0 to"),
        (
            PORT + "[tcp]\nkeep_count = 128\n",
            4,
            "tcp.keep_count: wanted a whole number from 0 to 127, not 128",
        ),
        (PORT + "[tcp]\ndscp = 64\n", 4, "tcp.dscp: wanted a whole number from 0 to 63, not 64"),
        (PORT + "[tcp]\ndscp = 4.0\n", 4, "tcp.dscp: wanted a whole number from 0 to 63, not 4.0"),
        (PORT + "[tcp]\nmss = 63\n", 4, "tcp.mss: wanted a whole number from 64 to 65,495, not 63"),
        (PORT + "[tcp]\nconnections = 0\n", 4, "tcp.connections: wanted a whole number from 1 to 131,072"),
        (PORT + "[tcp]\nsend_bytes = 1000\n", 4, "tcp.send_bytes: wanted a power of two from 256"),
        (PORT + "[tcp]\ncolour = 1\n", 4, "tcp.colour: unknown key (known: congestion, connections, cookies"),
        (PORT + "[record]\nfile = 3\n", 3, "record: wanted file ="),
        ("record = 5\n" + PORT, 1, "record: wanted a table"),
        ('record = ["file"]\n' + PORT, 1, "record: wanted a table"),
        ("feeds = 1\n" + PORT, 1, "feeds: wanted tables"),
        (FEED, 3, "feeds.itch: no channel"),
        (FEED + "channels = [1]\n", 5, "feeds.itch.channels: wanted a table"),
        (FEED + "[[feeds.itch.channels]]\n", 5, "feeds.itch.channels.lines: wanted lines"),
        (CHANNEL.replace(":5000", ""), 6, "feeds.itch.channels.lines: '239.1.1.1' is not ADDRESS:PORT"),
        (CHANNEL.replace(":5000", ":99999"), 6, "feeds.itch.channels.lines: port 99999"),
        (CHANNEL + 'request = "x"\n', 7, "feeds.itch.channels.request: 'x' is not ADDRESS:PORT"),
        (CHANNEL + "request = 5\n", 7, "feeds.itch.channels.request: wanted an ADDRESS:PORT, not 5"),
        (CHANNEL + "window = -1.0\n", 7, "feeds.itch.channels.window: wanted seconds"),
        (CHANNEL + 'start = "never"\n', 7, "feeds.itch.channels.start: wanted one of late, first"),
        (CHANNEL + 'session = "ABCDEFGHIJK"\n', 7, "feeds.itch.channels.session: wanted at most 10"),
        (CHANNEL + "name = 1\n", 7, "feeds.itch.channels.name: unknown key"),
        (CHANNEL.replace('"itch50"', "50"), 4, "feeds.itch.schema: wanted a string"),
        (CHANNEL.replace("itch50", "itch49"), 4, "feeds.itch.schema: there is no decoder 'itch49'"),
        (CHANNEL.replace("schema", "max_orders = 99999999999\nschema"), 4, "feeds.itch.max_orders: wanted"),
    ],
)
def test_a_mistake_is_one_sentence_with_file_line_and_key(
    tmp_path: Path, text: str, line: int, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/it.toml:{line}: {says}"), said
    assert "\n" not in said


def test_a_file_that_is_no_text_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "it.toml"
    path.write_bytes(b"\xd4\xc3\xb2\xa1")
    with pytest.raises(ConfigError, match=r"it\.toml:1: not TOML"):
        config.load(path)


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        config.load(tmp_path / "no.toml")


def test_the_same_bounds_hold_without_a_file() -> None:
    line = (Subscription(address="239.1.1.1", port=1),)
    with pytest.raises(ConfigError, match=r"^max_orders: wanted a whole number"):
        FeedConfig(schema="plain", channels=(), max_orders=-1)
    with pytest.raises(ConfigError, match=r"^give_up: wanted seconds"):
        ChannelConfig(lines=line, give_up=float("inf"))
    assert ChannelConfig(lines=line, first_seq=1 << 63).first_seq == 1 << 63


def toml(value: object) -> str:
    """A value as TOML text; tables inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, datetime.date):
        return value.isoformat()
    return repr(value)


def assert_loads_or_tells(path: Path) -> None:
    """Loads, or raises ConfigError with one sentence; any other exception is a failure."""
    try:
        said = f"{path}:{len(config.load(path).ports)} ports"
    except ConfigError as error:
        said = str(error)
    assert said.startswith(f"{path}:")
    assert "\n" not in said


KEYS = st.sampled_from(
    [
        "engine",
        "ports",
        "feeds",
        "record",
        "main",
        "itch",
        "port",
        "schema",
        "channels",
        "lines",
        "request",
        "cpu",
        "messages",
        "burst",
        "slow",
        "name",
        "window",
        "mode",
        "rx_ring",
        "filter",
        "file",
        "books",
        "max_orders",
        "window_packets",
        "start",
        "session",
        "first_seq",
        "x",
    ]
) | st.text("ab.\"'\n[]#é", max_size=3)
LEAVES = (
    st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.sampled_from([0, 1, 64, 1 << 31, 1 << 32])
    | st.floats()
    | st.dates()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["xsk:eth0:0", "sock:lo", "pcap:x", "pipe", "plain", "itch50", "239.1.1.1:5", "late"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(root=st.dictionaries(KEYS, VALUES, max_size=5), grow=st.booleans())
def test_whatever_the_tables_hold_only_config_errors_come(
    tmp_path_factory: pytest.TempPathFactory, root: dict[str, object], grow: bool
) -> None:
    if grow:  # past the first check
        root = {"ports": {"main": {"port": "pcap:x"}}, **root}
    path = tmp_path_factory.mktemp("c") / "it.toml"
    path.write_text("\n".join(f"{toml(key)} = {toml(value)}" for key, value in root.items()))
    assert_loads_or_tells(path)


@settings(max_examples=100, deadline=None)
@given(
    table=st.dictionaries(KEYS, LEAVES | st.lists(LEAVES, max_size=2), max_size=4), where=st.integers(0, 3)
)
def test_whatever_one_table_holds_only_config_errors_come(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, object], where: int
) -> None:
    root: dict[str, object] = {
        "engine": {},
        "ports": {"main": {"port": "xsk:eth0:0"}},
        "feeds": {"plain": {"channels": [{"lines": ["239.1.1.1:5"]}]}},
    }
    places: list[dict[str, object]] = [
        root["engine"],
        root["ports"]["main"],  # type: ignore[index]
        root["feeds"]["plain"],  # type: ignore[index]
        root["feeds"]["plain"]["channels"][0],  # type: ignore[index]
    ]
    places[where].update(table)
    path = tmp_path_factory.mktemp("c") / "it.toml"
    path.write_text("\n".join(f"{toml(key)} = {toml(value)}" for key, value in root.items()))
    assert_loads_or_tells(path)
