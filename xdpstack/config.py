"""One program in TOML: ports, feeds, the engine, what is recorded.

    [engine]                      # all keys optional
    cpu = 1                       # free-running: the core to pin to
    rt_priority = 0               # of its thread: SCHED_FIFO, 1 to 99
    lock_memory = false           # mlockall: no page fault while it runs
    cpu_latency = 0.0             # seconds that idle cores may take to wake; without: no wish
    engines = "one"               # "queue": one engine a queue, on cpus = [1, 2], see xdpstack.fleet
    messages = false              # keep an index of messages beside the updates
    slow = 10e-6                  # alert where a turn takes longer, a line each alert_every = 1.0 s

    [ports.main]
    port = "xsk:eth0:3"           # or "sock:eth0", "pcap:FILE"
    mode = "auto"                 # further keys go to the port: see xdpstack.port
    address = "192.0.2.9/24"      # of our own, for TCP, or of IPv6; without: the kernel's are shared
    reports = false               # its groups by IGMP and MLD; link_local, routers, too: see xdpstack.own
    carrier_wait = 30.0           # seconds that attaching may take the carrier away; 0: do not wait
    metadata = ["timestamp"]      # stamps by the NIC's clock, or no start where its driver has none
    dispatcher = false            # beside other XDP programs, in libxdp's dispatcher; priority = 60 there
    link_wait = 30.0              # seconds that its interface may be gone before that ends the run
    queues = "all"                # or "0-3", [1, 3]; instead of a number in the port's name
    steer = true                  # these and more are for the NIC: see xdpstack/nic/README.md
    irq_cpus = [0]

    [feeds.itch]
    schema = "itch50"
    max_orders = 2_000_000
    [[feeds.itch.channels]]
    lines = ["233.54.12.111:26477", "233.54.13.111:26477"]  # "GROUP:PORT@SENDER": that sender only
    request = "10.1.0.1:26400"    # MoldUDP64 request server
    window_packets = 1024

    [tcp]                         # of each connection that node.connect and node.listen make
    congestion = "cubic"          # newreno, none
    nagle = false
    delayed_ack = 0.0             # seconds; so keep_idle, keep_interval, rto_min, msl
    give_up = 180.0               # the user timeout
    keepalive = false             # keep_count = 9
    ecn = false
    dscp = 0
    mss = 1460                    # at most; the path says how much less
    connections = 64              # at once; listeners, send_bytes, receive_bytes too

    [record]
    file = "today.pcapng.zst"

    [publish]                     # what the engine finds, to other processes: see xdpstack.publish
    tape = "itch"                 # a path, or a name in /dev/shm; bytes = 8_388_608, mode = "0640"
    what = ["updates", "events", "state"]  # "messages" too, with [engine] messages = true
    tcp = false                   # true: connections of the AF_XDP port too, and commands about them

    [commands]                    # send, connect, write, subscribe, shut down, ...: asked by another process
    ring = "itch"

    [[session]]                   # what a connection may be opened as: see xdpstack.sessions
    name = "exchange"
    protocol = "ws"               # and its keys: see xdpstack.ws; of "fix": xdpstack.fix
    host = "stream.exchange.example"
    tls = true                    # over TLS, whose keys are here too: see xdpstack.tls

    [[alert]]                     # to the log and the exporter, by rule: see xdpstack.alerts
    name = "slow-book"
    when = "latency"              # gap, lapped, lag, drops, dead
    stage = "applied"
    above = 50e-6

    [handover]                    # `run --takeover` may replace the process without losing a frame
    socket = "/run/xdpstack/itch.sock"

Every mistake is one sentence with file, line and key.
"""

from __future__ import annotations

import dataclasses
import inspect
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xdpstack.alerts import AlertRule, rules_of
from xdpstack.engine import EngineConfig
from xdpstack.errors import ConfigError
from xdpstack.feed import ChannelConfig, FeedConfig, fault
from xdpstack.netdev import RX_METADATA
from xdpstack.nic.settings import KEYS, NicConfig, nic_config, parse_queues
from xdpstack.placing import Placement
from xdpstack.port import PcapPort, SockPort, Subscription, XskPort, parse_spec
from xdpstack.publish import CommandsConfig, PublishConfig
from xdpstack.schema import native
from xdpstack.sessions import SessionConfig
from xdpstack.tcp import table_setting

__all__ = ["PortConfig", "Program", "Reader", "check_options", "load", "port_config", "read"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PortConfig:
    """A port by specification, with the options that its kind takes."""

    port: str
    name: str = "main"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    queues: tuple[int, ...] | None = None
    """Of an AF_XDP port; None: those that ``port`` names, and all when it names none."""
    nic: NicConfig = dataclasses.field(default_factory=NicConfig)
    """What to change on its NIC while the port is open."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What ``xdpstack run`` runs."""

    ports: tuple[PortConfig, ...]
    feeds: tuple[FeedConfig, ...]
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    cpu: int | None = None
    placement: Placement = dataclasses.field(default_factory=Placement)
    """Priority, locked memory, wake-ups: see :mod:`xdpstack.placing`."""
    record: str | None = None
    engines: str = "one"
    """``one`` for all ports and queues, or one a ``queue``: see :mod:`xdpstack.fleet`."""
    cpus: tuple[int, ...] = ()
    """With one engine a queue: their cores, in turn."""
    workers: str = "threads"
    """With one engine a queue: ``threads`` of one process, or ``processes``."""
    tcp: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of :class:`~xdpstack.stack.Stack`, for the connections of each port."""
    handover: str | None = None
    """The socket at which a running process gives its ports to the next one."""
    publish: PublishConfig | None = None
    """The tape by which other processes read the engine."""
    commands: CommandsConfig | None = None
    """The ring by which one of them commands it."""
    sessions: tuple[SessionConfig, ...] = ()
    """What a connection may be opened as, by command."""
    alerts: tuple[AlertRule, ...] = ()
    """What is watched for while it runs."""


def _word(key: str) -> str:
    """A key as TOML has it: in quotes where it needs them."""
    return key if re.fullmatch(r"[\w-]+", key) else ascii(key)


class Reader:
    """Walks the tables and remembers where it is, so that an error can name file, line and key."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.lines = path, text.splitlines()

    def fail(self, keys: tuple[str, ...], why: str) -> ConfigError:
        """The error about a key: file, line, key, ``why``."""
        line = self.line_of(keys)
        named = ".".join(map(_word, keys))
        return ConfigError(f"{self.path}:{line}: {named}: {why}")

    def line_of(self, keys: tuple[str, ...]) -> int:
        """The line of the last key that can be found below its table's header; 1 when none can."""
        table = ".".join(key for key in keys[:-1] if not key.isdigit())
        which = next((int(key) for key in reversed(keys[:-1]) if key.isdigit()), 0)
        header = re.compile(rf"\s*\[\[?\s*{re.escape(table)}\s*\]")
        headers = [number for number, line in enumerate(self.lines) if header.match(line)]
        start = headers[min(which, len(headers) - 1)] if headers else 0
        for number in range(start, len(self.lines)):
            if re.match(rf"\s*(\[+[^\]]*\b)?{re.escape(keys[-1])}\b", self.lines[number]):
                return number + 1
        return start + 1

    def build(self, form: type, table: Mapping[str, Any], keys: tuple[str, ...], **fixed: Any) -> Any:
        """A configuration object from a table; unknown keys and wrong types are refused by name."""
        fields = {field.name: field for field in dataclasses.fields(form)}
        values = dict(fixed)
        for key, value in table.items():
            if key not in fields or key in fixed:
                known = ", ".join(name for name in fields if name not in fixed)
                raise self.fail((*keys, key), f"unknown key (known: {known})")
            if why := fault(fields[key], value):
                raise self.fail((*keys, key), why)
            values[key] = value
        try:
            return form(**values)
        except TypeError as error:
            raise self.fail(keys, str(error).removeprefix(f"{form.__name__}.__init__() ")) from None


def read(path: str | Path) -> tuple[dict[str, Any], Reader]:
    """The tables of a TOML file. Raises ConfigError (file, line) and OSError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}:1: not TOML: byte {error.start} is no UTF-8") from None
    try:
        root = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"line (\d+)", str(error))
        raise ConfigError(f"{path}:{at[1] if at else 1}: {error}") from None
    return root, Reader(str(path), text)


def load(path: str | Path, ports: Mapping[str, Any] | None = None) -> Program:
    """Read a program; ``ports`` are keys that override the file's, of every port or (``NAME.KEY``) of one.
    Raises ConfigError (file, line, key) and OSError."""
    root, reader = read(path)
    for key in root:
        if key not in _TABLES:
            raise reader.fail((key,), f"unknown table (known: {', '.join(_TABLES)})")
    engine = _table(reader, root.get("engine", {}), ("engine",), "[engine]")
    cpu = engine.pop("cpu", None)
    if cpu is not None and not (type(cpu) is int and 0 <= cpu < 8192):
        raise reader.fail(("engine", "cpu"), f"wanted the number of a core, not {cpu!r}")
    placement = _placement(reader, engine)
    several = _several(reader, engine)
    messages = engine.pop("messages", False)
    if not isinstance(messages, bool):
        raise reader.fail(("engine", "messages"), f"wanted true or false, not {messages!r}")
    if messages:
        engine.setdefault("max_messages", 1 << 16)
    tables = _overridden(_tables(reader, root, "ports"), ports or {})
    opened = tuple(_port(reader, name, table) for name, table in tables)
    if not opened:
        raise reader.fail(("ports",), 'no port: add [ports.main] with port = "xsk:IFACE:QUEUE"')
    feeds = tuple(_feed(reader, name, table) for name, table in _tables(reader, root, "feeds"))
    record = _table(reader, root.get("record", {}), ("record",), "[record]")
    if record and (set(record) != {"file"} or not isinstance(record["file"], str)):
        raise reader.fail(("record",), 'wanted file = "NAME.pcapng"')
    handover = _table(reader, root.get("handover", {}), ("handover",), "[handover]")
    if handover and (set(handover) != {"socket"} or not isinstance(handover["socket"], str)):
        raise reader.fail(("handover",), 'wanted socket = "PATH"')
    return Program(
        ports=opened,
        feeds=feeds,
        engine=reader.build(EngineConfig, engine, ("engine",)),
        cpu=cpu,
        placement=placement,
        record=record.get("file"),
        tcp=_tcp(reader, root),
        handover=handover.get("socket"),
        alerts=rules_of(reader, root),
        **several,
        **_published(reader, root, several.get("engines") == "queue", bool(handover)),
    )


_TABLES = ("engine", "ports", "feeds", "tcp", "record", "handover", "publish", "commands", "session", "alert")


def _published(reader: Reader, root: Mapping[str, Any], several: bool, handover: bool) -> dict[str, Any]:
    """``[publish]`` and ``[commands]``."""
    found: dict[str, Any] = {}
    for key, form, needed in (("publish", PublishConfig, "tape"), ("commands", CommandsConfig, "ring")):
        if key not in root:
            continue
        table = _table(reader, root[key], (key,), f"[{key}]")
        if needed not in table:
            raise reader.fail((key,), f'wanted {needed} = "NAME"')
        try:
            found[key] = reader.build(form, table, (key,))
        except ConfigError as error:
            word, _, why = str(error).partition(": ")
            if word not in table:
                raise
            raise reader.fail((key, word), why) from None
    if "commands" in found and "publish" not in found:
        raise reader.fail(("commands",), "answers come by the tape: add [publish]")
    found["sessions"] = _sessions(reader, root)
    if found["sessions"] and not ("commands" in found and found["publish"].tcp):
        raise reader.fail(("session",), "a command opens them: add [commands], and tcp = true in [publish]")
    if "publish" in found and (several or handover):
        what = "one engine a queue" if several else "a handover"
        raise reader.fail(("publish",), f"a tape has one writer: not with {what}")
    return found


def _sessions(reader: Reader, root: Mapping[str, Any]) -> tuple[SessionConfig, ...]:
    """``[[session]]``."""
    tables = root.get("session", [])
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise reader.fail(("session",), "wanted tables [[session]]")
    made: list[SessionConfig] = []
    for number, table in enumerate(tables):
        try:
            made.append(SessionConfig.of(table))
        except ConfigError as error:
            key, _, why = str(error).partition(": ")
            raise reader.fail(("session", str(number), key), why) from None
        if made[-1].name in [one.name for one in made[:-1]]:
            raise reader.fail(("session", str(number), "name"), f"{made[-1].name!r} is there already")
    return tuple(made)


def _placement(reader: Reader, engine: dict[str, Any]) -> Placement:
    """The keys of how engines run, taken out of ``[engine]``."""
    names = [field.name for field in dataclasses.fields(Placement)]
    given = {name: engine.pop(name) for name in names if name in engine}
    try:
        return Placement(**given)
    except ConfigError as error:
        key, _, why = str(error).partition(": ")
        raise reader.fail(("engine", key), why) from None


def _several(reader: Reader, engine: dict[str, Any]) -> dict[str, Any]:
    """The keys of one engine a queue, taken out of ``[engine]``."""
    found: dict[str, Any] = {}
    for key, words in (("engines", ("one", "queue")), ("workers", ("threads", "processes"))):
        if key in engine:
            found[key] = engine.pop(key)
            if found[key] not in words:
                raise reader.fail(("engine", key), f"wanted one of {', '.join(words)}, not {found[key]!r}")
    if "cpus" in engine:
        cpus = engine.pop("cpus")
        if not isinstance(cpus, list) or not all(type(cpu) is int and 0 <= cpu < 8192 for cpu in cpus):
            raise reader.fail(("engine", "cpus"), f"wanted a list of cores like [2, 3], not {cpus!r}")
        found["cpus"] = tuple(cpus)
    for key in ("cpus", "workers"):
        if key in found and found.get("engines") != "queue":
            raise reader.fail(("engine", key), 'only with engines = "queue"')
    return found


def _tcp(reader: Reader, root: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in _table(reader, root.get("tcp", {}), ("tcp",), "[tcp]").items():
        try:
            name, good = table_setting(key, value)
        except ConfigError as error:
            raise reader.fail(("tcp", key), str(error)) from None
        found[name] = good
    return found


def _table(reader: Reader, table: object, keys: tuple[str, ...], header: str) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise reader.fail(keys, f"wanted a table {header}, not {table!r}")
    return dict(table)


def _tables(reader: Reader, root: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    tables = root.get(key, {})
    if not isinstance(tables, Mapping):
        raise reader.fail((key,), f"wanted tables [{key}.NAME]")
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise reader.fail((key, name), f"wanted a table [{key}.{_word(name)}]")
    return list(tables.items())


def _overridden(
    tables: list[tuple[str, Mapping[str, Any]]], keys: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any]]]:
    names = {name for name, _ in tables}
    for key in keys:
        if "." in key and key.partition(".")[0] not in names:
            raise ConfigError(f"{key}: no port is called {key.partition('.')[0]}")
    made: list[tuple[str, Mapping[str, Any]]] = []
    for name, table in tables:
        mine = {key: value for key, value in keys.items() if "." not in key}
        mine |= {key.partition(".")[2]: value for key, value in keys.items() if key.startswith(f"{name}.")}
        made.append((name, {**table, **mine}))
    return made


def _port(reader: Reader, name: str, table: Mapping[str, Any]) -> PortConfig:
    port = table.get("port")
    if not isinstance(port, str):
        raise reader.fail(("ports", name), 'wanted port = "xsk:IFACE:QUEUE", "sock:IFACE" or "pcap:FILE"')
    kind, _, rest = port.partition(":")
    try:
        kind = kind if kind == "sock" and rest else parse_spec(port).kind
    except ConfigError as error:
        raise reader.fail(("ports", name, "port"), str(error)) from None
    if kind == "pipe":
        raise reader.fail(("ports", name, "port"), "a pipe joins engines of one process; take another kind")
    options = {key: value for key, value in table.items() if key != "port"}
    for key in options:
        try:
            check_options(kind, {key: options[key]})
        except ConfigError as error:
            raise reader.fail(("ports", name, key), str(error).removeprefix(f"{_word(key)}: ")) from None
    try:
        return port_config(port, name, options)
    except ConfigError as error:
        key, _, why = str(error).partition(": ")
        raise reader.fail(("ports", name, key), why) from None


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Whether a port of that kind takes these keys with these values. ConfigError: ``KEY: what is wrong``."""
    if kind not in _KINDS:
        raise ConfigError(f"port: {kind} is none of {', '.join(_KINDS)}")
    known, of_nic = _port_options(kind), _OF_NIC if kind == "xsk" else frozenset()
    for key, value in options.items():
        if key in of_nic:
            continue
        if key not in known:
            names = ", ".join(["port", *sorted({*known, *of_nic})])
            raise ConfigError(f"{_word(key)}: unknown key (known: {names})")
        if why := fault(known[key], value) or _WRONG.get(key, _nothing_wrong)(value):
            raise ConfigError(f"{key}: {why}")


def _wrong_own(text: object) -> str:
    """What is wrong with an address of one's own; empty when nothing is."""
    try:
        own = ipaddress.ip_interface(str(text))
    except ValueError:
        own = None
    if (
        own is None
        or "/" not in str(text)
        or own.ip.is_multicast
        or own.ip.is_unspecified
        or own.ip.is_loopback
    ):
        return f'wanted an address with its prefix ("192.0.2.9/24", "2001:db8::9/64"), not {text!r}'
    return ""


def _wrong_metadata(words: object) -> str:
    """What an engine can use of a driver's words about a frame; empty when it is that."""
    if words == ["timestamp"] or words == []:
        return ""
    if isinstance(words, list) and all(word in list(RX_METADATA.values()) for word in words):
        return "an engine keeps the timestamp alone; hash and vlan-tag are of frames: see Frame.hints"
    return f'wanted ["timestamp"], not {words!r}'


def _nothing_wrong(value: object) -> str:
    return ""


def _wrong_probe(value: object) -> str:
    return "" if isinstance(value, int) and 0 <= value <= 10_000 else f"wanted 0 to 10000, not {value!r}"


def _wrong_way(value: object) -> str:
    """What is wrong with how frames leave; empty when nothing is."""
    return "" if value in ("socket", "live", "auto") else f"wanted socket, live or auto, not {value!r}"


_WRONG = {"metadata": _wrong_metadata, "address": _wrong_own, "probe_ms": _wrong_probe, "tx": _wrong_way}
_OF_NIC = frozenset({"queues", *KEYS})


def port_config(port: str, name: str = "main", options: Mapping[str, Any] | None = None) -> PortConfig:
    """A port whose ``options`` may be its own and its NIC's. ConfigError: ``KEY: what is wrong``."""
    given = dict(options or {})
    of_nic = {key: given.pop(key) for key in KEYS if key in given}
    for key, wrong in (("address", _wrong_own), ("probe_ms", _wrong_probe)):
        if key in given and (why := wrong(given[key])):
            raise ConfigError(f"{key}: {why}")
    queues: tuple[int, ...] | None = None
    if "queues" in given:
        chosen = parse_queues(given.pop("queues"))
        if re.fullmatch(r"xsk:[^:]+:.*", port):
            raise ConfigError(f"queues: {port} names its queues already")
        queues = None if chosen is None else tuple(chosen)
    return PortConfig(port=port, name=name, options=given, queues=queues, nic=nic_config(of_nic))


_KINDS = {"xsk": XskPort, "sock": SockPort, "pcap": PcapPort}
# A node gives these itself; a port that shares, or is for tests of the kernel, is opened in Python.
_NODE_SAYS = {"interface", "port_index", "all_types", "share", "raw", "shared", "row"}
_OF_FILTER = (
    ("opener", "str"),
    ("filter", "str"),
    ("dispatcher", "bool"),
    ("priority", "int"),
    ("metadata", "list[str]"),
    ("accept_partial_checksum", "bool"),
    ("carrier_wait", "float"),
    ("address", "str"),
    ("probe_ms", "int"),
    ("link_local", "bool"),
    ("routers", "bool"),
    ("reports", "bool"),
)
_OF_LINK = (("link_wait", "float"),)


def _port_options(kind: str) -> dict[str, dataclasses.Field[Any]]:
    """The keys that a port of a kind takes, from its class, as fields that :func:`fault` can judge."""
    words = {"int": "int", "int | None": "int", "bool": "bool"}
    found = [
        (name, words.get(str(one.annotation), "str"))
        for name, one in inspect.signature(_KINDS[kind]).parameters.items()
        if one.kind is inspect.Parameter.KEYWORD_ONLY and name not in _NODE_SAYS
    ]
    keys = [*found, *(_OF_FILTER if kind == "xsk" else ()), *(_OF_LINK if kind != "pcap" else ())]
    form = dataclasses.make_dataclass("Options", keys)
    return {field.name: field for field in dataclasses.fields(form)}


def _feed(reader: Reader, name: str, table: Mapping[str, Any]) -> FeedConfig:
    channels = table.get("channels")
    if not isinstance(channels, list) or not channels:
        raise reader.fail(
            ("feeds", name),
            f'no channel: add [[feeds.{_word(name)}.channels]] with lines = ["GROUP:PORT", …]',
        )
    built = []
    for number, channel in enumerate(channels):
        keys = ("feeds", name, "channels", str(number))
        values = _table(reader, channel, ("feeds", name, "channels"), f"[[feeds.{_word(name)}.channels]]")
        lines = values.pop("lines", None)
        if not isinstance(lines, list) or not lines:
            raise reader.fail((*keys[:-1], "lines"), 'wanted lines = ["GROUP:PORT", …]')
        request = values.pop("request", None)
        if request is not None and not isinstance(request, str):
            raise reader.fail((*keys[:-1], "request"), f"wanted an ADDRESS:PORT, not {request!r}")
        key = "lines"
        try:
            groups = tuple(Subscription.parse(str(line)) for line in lines)
            key = "request"
            server = Subscription.parse(request) if request else None
        except ConfigError as error:
            raise reader.fail((*keys[:-1], key), str(error)) from None
        built.append(reader.build(ChannelConfig, values, keys[:-1], lines=groups, request=server))
    rest = {key: value for key, value in table.items() if key != "channels"}
    rest.setdefault("schema", name)
    feed: FeedConfig = reader.build(FeedConfig, rest, ("feeds", name), channels=tuple(built), name=name)
    try:
        native.find(feed.schema)
    except ConfigError as error:
        raise reader.fail(("feeds", name, "schema"), str(error)) from None
    return feed
