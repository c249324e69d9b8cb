"""A NIC that is not there: the ethtool structs, files and netlink answers of a driver like ice, over plain
state. It records what changes it, refuses what a real one would, and can fail at any call."""

from __future__ import annotations

import copy
import dataclasses
import errno
import struct

from xdpstack import netdev
from xdpstack.nic import ethtool
from xdpstack.nic.surface import Link

FEATURES = {  # name: (wanted, can change)
    "rx-checksum": (True, True),
    "rx-gro": (True, True),
    "rx-gro-hw": (False, False),
    "rx-lro": (True, True),
    "rx-vlan-hw-parse": (True, True),
    "rx-ntuple-filter": (False, True),
    "tx-checksum-ip-generic": (True, True),
    "highdma": (True, False),
}
RSS_SIZE, RULES_MOST, CONTEXTS_MOST = 16, 8, 4


def refuse(code):
    raise OSError(code, "")


@dataclasses.dataclass
class State:
    """Everything about the NIC that a change can touch."""

    channels: dict
    rings: dict
    coalesce: dict
    wanted: dict
    rules: dict  # location: (spec with location, context)
    table: list | None  # None: the driver's own
    contexts: dict
    stamping: tuple
    affinity: dict
    napis: dict  # id: [defer, flush]
    device_napi: list


class FakeNic:
    """A :class:`xdpstack.nic.surface.Surface` with one interface, ``eth0`` of index 7."""

    def __init__(
        self,
        driver="ice",
        *,
        ntuple=True,
        rss=True,
        contexts=True,
        napi_set=True,
        queues=4,
        cookie=42,
        by_mac=False,
    ):
        self.driver, self.has_ntuple, self.has_rss, self.has_contexts = driver, ntuple, rss, contexts
        self.napi_set, self.ns_cookie, self.by_mac = napi_set, cookie, by_mac
        self.kind, self.exists, self.loopback, self.index = "", True, False, 7
        self.most = {"rx": 0, "tx": 0, "other": 1, "combined": 8}
        self.irqs = {100 + queue: f"ice-eth0-TxRx-{queue}" for queue in range(8)}
        self.managed: set[int] = set()
        self.blocks = False
        self.processes: dict[int, str] = {1: "systemd"}
        self.files: dict[str, str] = {}
        self.folders: dict[str, list[str]] = {}
        self.joined: list[tuple] = []
        self.log: list[str] = []
        self.before_call = lambda: None
        self.state = self.fresh(queues)

    def fresh(self, queues=4):
        """As the driver leaves it when the device is made."""
        return State(
            channels={"rx": 0, "tx": 0, "other": 1, "combined": queues},
            rings={"rx": 512, "rx_mini": 0, "rx_jumbo": 0, "tx": 512},
            coalesce=dict.fromkeys(ethtool.COALESCE, 0) | {"rx_usecs": 50, "tx_usecs": 50, "adaptive_rx": 1},
            wanted={name: wanted for name, (wanted, _) in FEATURES.items()},
            rules={},
            table=None,
            contexts={},
            stamping=(0, 0, 0),
            affinity=dict.fromkeys(self.irqs, "0-7"),
            napis={200 + queue: [0, 0] for queue in range(queues)},
            device_napi=[0, 0],
        )

    def make_anew(self, queues=4):
        """Deleted, and made again under its name: another number, nothing of what was set."""
        self.index += 1
        self.joined.clear()
        self.state, self.exists = self.fresh(queues), True

    def snapshot(self):
        return copy.deepcopy(self.state)

    # -- Surface

    def ethtool(self, interface, request):
        self.before_call()
        if not self.exists or interface != "eth0":
            refuse(errno.ENODEV)
        command = struct.unpack_from("I", request)[0]
        answer = COMMANDS.get(command)
        return answer(self, bytearray(request)) if answer else refuse(errno.EOPNOTSUPP)

    def stamping(self, interface, config=None):
        self.before_call()
        if config is None:
            return self.state.stamping
        if config[2] not in (0, 1):
            refuse(errno.ERANGE)
        self.change("stamping", config)
        self.state.stamping = config
        return config

    def read(self, path):
        self.before_call()
        if path in self.files:
            return self.files[path]
        if path == "/proc/interrupts":
            rows = [
                f" {irq}:   0   0  IR-PCI-MSIX-0000:01:00.0  {irq - 99}-edge  {name}"
                for irq, name in self.irqs.items()
            ]
            return "\n".join(
                ["     CPU0  CPU1", "  8:  1  0  IO-APIC  8-edge  rtc0", *rows, "NMI: 0 0 Non-maskable"]
            )
        parts = path.split("/")
        if path.startswith("/proc/irq/") and int(parts[3]) in self.state.affinity:
            return self.state.affinity[int(parts[3])]
        if path.endswith("/comm") and int(parts[2]) in self.processes:
            return self.processes[int(parts[2])]
        if path == "/sys/class/net/eth0/napi_defer_hard_irqs":
            return str(self.state.device_napi[0])
        if path == "/sys/class/net/eth0/gro_flush_timeout":
            return str(self.state.device_napi[1])
        raise FileNotFoundError(errno.ENOENT, "", path)

    def write(self, path, text):
        self.before_call()
        parts = path.split("/")
        if path.startswith("/proc/irq/"):
            irq = int(parts[3])
            if irq in self.managed:
                refuse(errno.EIO)  # the kernel places managed interrupts itself
            if any(int(n) > 7 for part in text.split(",") for n in part.split("-")):
                refuse(errno.EINVAL)
            self.change("affinity", irq, text)
            self.state.affinity[irq] = text
            return
        place = ["napi_defer_hard_irqs", "gro_flush_timeout"].index(parts[-1])
        self.change(parts[-1], text)
        self.state.device_napi[place] = int(text)
        for napi in self.state.napis.values():  # as the kernel does
            napi[place] = int(text)

    def names(self, folder):
        self.before_call()
        if folder in self.folders:
            return self.folders[folder]
        if folder == "/sys/class/net/eth0/device/msi_irqs":
            return sorted(map(str, self.irqs))
        return sorted(map(str, self.processes)) if folder == "/proc" else []

    def link(self, interface):
        self.before_call()
        if not self.exists or interface not in ("eth0", self.index):
            return None
        return Link(
            name="eth0",
            index=self.index,
            mac="02:00:00:00:00:01",
            mtu=1500,
            kind=self.kind,
            is_loopback=self.loopback,
            master="",
            lower="eth1" if self.kind == "vlan" else "",
        )

    def queues(self, index):
        self.before_call()
        count = self.count
        return [
            netdev.Queue(id=n, kind="rx", napi_id=200 + n if self.napi_set else None) for n in range(count)
        ]

    def napis(self, index):
        self.before_call()
        return [
            netdev.Napi(
                id=number,
                irq=number - 100 if self.napi_set else None,
                defer_hard_irqs=defer if self.napi_set else None,
                gro_flush_timeout_ns=flush if self.napi_set else None,
            )
            for number, (defer, flush) in sorted(self.state.napis.items())
        ]

    def set_napi(self, napi, defer_hard_irqs, gro_flush_timeout_ns):
        self.before_call()
        if not self.napi_set:
            refuse(errno.EOPNOTSUPP)
        if napi not in self.state.napis:
            refuse(errno.ENOENT)
        self.change("napi", napi, defer_hard_irqs, gro_flush_timeout_ns)
        self.state.napis[napi] = [defer_hard_irqs, gro_flush_timeout_ns]

    def join(self, index, kind, mac=b""):
        self.before_call()
        entry = (kind, mac)
        self.joined.append(entry)
        return type("Held", (), {"close": lambda _: entry in self.joined and self.joined.remove(entry)})()

    def cookie(self):
        return self.ns_cookie

    # -- ethtool

    @property
    def count(self):
        return self.state.channels["combined"]

    def change(self, *what):
        self.log.append(" ".join(map(str, what)))

    def table(self):
        own = [n * self.count // RSS_SIZE if self.blocks else n % self.count for n in range(RSS_SIZE)]
        return own if self.state.table is None else self.state.table

    def get_driver(self, raw):
        raw[4:36] = self.driver.encode().ljust(32, b"\0")
        return bytes(raw)

    def get_channels(self, raw):
        kinds = ("rx", "tx", "other", "combined")
        now = (self.state.channels[kind] for kind in kinds)
        return struct.pack("9I", 0, *(self.most[kind] for kind in kinds), *now)

    def set_channels(self, raw):
        wanted = dict(zip(("rx", "tx", "other", "combined"), struct.unpack("9I", raw)[5:], strict=True))
        count = wanted["combined"]
        if not 0 < count <= 8 or wanted["rx"] or wanted["tx"] or wanted["other"] != 1:
            refuse(errno.EINVAL)
        tables = [*self.state.contexts.values(), self.state.table or [0]]
        cookies = [
            struct.unpack_from("Q", spec, 152)[0]
            for spec, context in self.state.rules.values()
            if not context
        ]
        if max([*(max(table) for table in tables), *cookies]) >= count:
            refuse(errno.EINVAL)  # a table or a rule names a queue that would go
        self.change("channels", count)
        self.state.channels = wanted
        self.state.napis = {
            200 + n: self.state.napis.get(200 + n, list(self.state.device_napi)) for n in range(count)
        }
        return bytes(raw)

    def get_rings(self, raw):
        kinds = ("rx", "rx_mini", "rx_jumbo", "tx")
        return struct.pack("9I", 0, 4096, 0, 0, 4096, *(self.state.rings[kind] for kind in kinds))

    def set_rings(self, raw):
        rx, mini, jumbo, tx = struct.unpack("9I", raw)[5:]
        if mini or jumbo or not 64 <= rx <= 4096 or not 64 <= tx <= 4096:
            refuse(errno.EINVAL)
        rx, tx = (rx + 31) // 32 * 32, (tx + 31) // 32 * 32  # ice rounds so
        self.change("rings", rx, tx)
        self.state.rings |= {"rx": rx, "tx": tx}
        return bytes(raw)

    def get_coalesce(self, raw):
        values = (self.state.coalesce[name] for name in ethtool.COALESCE)
        return struct.pack(f"{1 + len(ethtool.COALESCE)}I", 0, *values)

    def set_coalesce(self, raw):
        wanted = dict(zip(ethtool.COALESCE, struct.unpack(f"{len(raw) // 4}I", raw)[1:], strict=True))
        known = {"rx_usecs", "tx_usecs", "adaptive_rx", "adaptive_tx"}
        if any(value for name, value in wanted.items() if name not in known):
            refuse(errno.EOPNOTSUPP)
        for way in ("rx", "tx"):
            moves = wanted[f"{way}_usecs"] != self.state.coalesce[f"{way}_usecs"]
            if wanted[f"adaptive_{way}"] and moves:
                refuse(errno.EINVAL)
        self.change("coalesce", {name: wanted[name] for name in known})
        self.state.coalesce = wanted
        return bytes(raw)

    def get_strings_count(self, raw):
        return struct.pack("=IIQI", 0, 0, 16, len(FEATURES))

    def get_strings(self, raw):
        return bytes(raw[:12]) + b"".join(name.encode().ljust(32, b"\0") for name in FEATURES)

    def get_features(self, raw):
        bits = [0, 0, 0, 0]
        for number, (name, (_, can_change)) in enumerate(FEATURES.items()):
            if name == "rx-ntuple-filter" and not self.has_ntuple:
                bits[3] |= 1 << number
                continue
            on = self.state.wanted[name]
            for place, bit in enumerate((can_change, on, on, not can_change)):
                bits[place] |= bit << number
        return bytes(raw[:8]) + struct.pack("4I", *bits)

    def set_features(self, raw):
        valid, wanted = struct.unpack_from("II", raw, 8)
        for number, (name, (_, can_change)) in enumerate(FEATURES.items()):
            if valid >> number & 1 and can_change and (name != "rx-ntuple-filter" or self.has_ntuple):
                self.change("feature", name, wanted >> number & 1)
                self.state.wanted[name] = bool(wanted >> number & 1)
        if not self.state.wanted["rx-ntuple-filter"]:
            self.state.rules.clear()  # as drivers do
        return bytes(raw)

    def need_rules(self):
        if not self.has_ntuple or not self.state.wanted["rx-ntuple-filter"]:
            refuse(errno.EOPNOTSUPP)

    def get_ring_count(self, raw):
        struct.pack_into("Q", raw, 8, self.count)
        return bytes(raw)

    def get_rule_count(self, raw):
        self.need_rules()
        struct.pack_into("Q", raw, 8, RULES_MOST)
        struct.pack_into("I", raw, 184, len(self.state.rules))
        return bytes(raw)

    def get_rules(self, raw):
        self.need_rules()
        if len(raw) < 192 + 4 * len(self.state.rules):
            refuse(errno.EMSGSIZE)
        struct.pack_into("I", raw, 184, len(self.state.rules))
        struct.pack_into(f"{len(self.state.rules)}I", raw, 188, *self.state.rules)
        return bytes(raw)

    def get_rule(self, raw):
        self.need_rules()
        location = struct.unpack_from("I", raw, 16 + 160)[0]
        if location not in self.state.rules:
            refuse(errno.ENOENT)
        spec, context = self.state.rules[location]
        raw[16 : 16 + 168] = spec
        struct.pack_into("I", raw, 184, context)
        return bytes(raw)

    def insert_rule(self, raw):
        self.need_rules()
        spec = bytes(raw[16 : 16 + 168])
        kind, location = struct.unpack_from("I", spec)[0], struct.unpack_from("I", spec, 160)[0]
        context = struct.unpack_from("I", raw, 184)[0] if kind & 0x20000000 else 0
        queue = struct.unpack_from("Q", spec, 152)[0]
        if (
            kind & 0xFF not in ((0x12,) if self.by_mac else (1, 2, 5, 6, 0x12))
            or queue >= self.count
            or location >= RULES_MOST
        ):
            refuse(errno.EINVAL)
        if context and context not in self.state.contexts:
            refuse(errno.EINVAL)
        if location in self.state.rules:
            refuse(errno.EEXIST)
        self.change("insert rule", location)
        self.state.rules[location] = (spec, context)
        return bytes(raw)

    def delete_rule(self, raw):
        self.need_rules()
        location = struct.unpack_from("I", raw, 16 + 160)[0]
        if location not in self.state.rules:
            refuse(errno.ENOENT)
        self.change("delete rule", location)
        del self.state.rules[location]
        return bytes(raw)

    def get_rss(self, raw):
        if not self.has_rss:
            refuse(errno.EOPNOTSUPP)
        context, size, key = struct.unpack_from("3I", raw, 4)
        if context and context not in self.state.contexts:
            refuse(errno.ENOENT)
        struct.pack_into("2I", raw, 8, RSS_SIZE, 40)
        if size:
            table = self.state.contexts[context] if context else self.table()
            struct.pack_into(f"{RSS_SIZE}I", raw, 24, *table)
            raw[24 + 4 * RSS_SIZE :] = bytes(range(40))
        elif key:
            refuse(errno.EINVAL)
        return bytes(raw)

    def set_rss(self, raw):
        if not self.has_rss:
            refuse(errno.EOPNOTSUPP)
        context, size = struct.unpack_from("2I", raw, 4)
        table = list(struct.unpack_from(f"{size}I", raw, 24))
        if size not in (0, RSS_SIZE) or any(queue >= self.count for queue in table):
            refuse(errno.EINVAL)
        if context == 0:
            self.change("indirection", table or "default")
            self.state.table = table or None
        elif context == 0xFFFFFFFF:
            context = next((n for n in range(1, CONTEXTS_MOST + 1) if n not in self.state.contexts), 0)
            if not self.has_contexts:
                refuse(errno.EOPNOTSUPP)
            if not context or not size:
                refuse(errno.ENOSPC if size else errno.EINVAL)
            self.change("new context", context)
            self.state.contexts[context] = table
            struct.pack_into("I", raw, 4, context)
        else:
            if context not in self.state.contexts:
                refuse(errno.ENOENT)
            if any(context == used for _, used in self.state.rules.values()):
                refuse(errno.EBUSY)
            self.change("delete context", context)
            del self.state.contexts[context]
        return bytes(raw)


COMMANDS = {
    ethtool.GDRVINFO: FakeNic.get_driver,
    ethtool.GCHANNELS: FakeNic.get_channels,
    ethtool.SCHANNELS: FakeNic.set_channels,
    ethtool.GRINGPARAM: FakeNic.get_rings,
    ethtool.SRINGPARAM: FakeNic.set_rings,
    ethtool.GCOALESCE: FakeNic.get_coalesce,
    ethtool.SCOALESCE: FakeNic.set_coalesce,
    ethtool.GSSET_INFO: FakeNic.get_strings_count,
    ethtool.GSTRINGS: FakeNic.get_strings,
    ethtool.GFEATURES: FakeNic.get_features,
    ethtool.SFEATURES: FakeNic.set_features,
    ethtool.GRXRINGS: FakeNic.get_ring_count,
    ethtool.GRXCLSRLCNT: FakeNic.get_rule_count,
    ethtool.GRXCLSRLALL: FakeNic.get_rules,
    ethtool.GRXCLSRULE: FakeNic.get_rule,
    ethtool.SRXCLSRLINS: FakeNic.insert_rule,
    ethtool.SRXCLSRLDEL: FakeNic.delete_rule,
    ethtool.GRSSH: FakeNic.get_rss,
    ethtool.SRSSH: FakeNic.set_rss,
}
