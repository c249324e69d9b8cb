"""Settings of a NIC that can be read, changed and put back, one class each, by a name that the journal
keeps.

Three rules. ``read`` gives a value that JSON can hold and ``write`` takes such a value, so that writing what
was read before undoes the change, in this process or another. Reading what was written shows the change even
when nobody lived to say that it was made. ``write`` of what is there already does no harm.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from xdpstack.errors import SetupError
from xdpstack.nic import ethtool
from xdpstack.nic.ethtool import FlowRule
from xdpstack.nic.surface import Link, Surface

__all__ = [
    "OPERATIONS",
    "Affinity",
    "Channels",
    "Coalesce",
    "Context",
    "DeviceNapi",
    "Feature",
    "File",
    "Gone",
    "Indirection",
    "LinkMtu",
    "LinkUp",
    "Napi",
    "Operation",
    "Queues",
    "Rings",
    "Rule",
    "Timestamps",
]


_IFF_UP = 1  # linux/if.h


class Gone(Exception):
    """What the setting belongs to is no longer there: nothing is left to put back."""


class Operation(Protocol):
    """One setting of one interface."""

    name: ClassVar[str]
    key: list[Any]
    """Which one of its kind; an operation is made from it again: ``OPERATIONS[name](*key)``."""

    def read(self, surface: Surface, link: Link) -> Any:
        """The value now. OSError; Gone."""

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """Make it so. OSError; Gone."""

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """The value to write, given the one before. SetupError: the device cannot have it."""

    def say(self, interface: str, value: Any) -> str:
        """The command that makes it so by hand."""

    # ``same(one, other)``, where values are equal that do not compare so.


class _Fixed:
    """An operation whose wanted value does not depend on the one before."""

    wanted: Any = None

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """See :class:`Operation`."""
        return self.wanted


class Channels:
    """How many queues a NIC has: combined ones where the driver has such, else receive and transmit."""

    name: ClassVar[str] = "channels"

    def __init__(self, count: int = 0) -> None:
        self.key: list[Any] = []
        self.count = count

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        return ethtool.channels(surface, link.name)[0]

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        if ethtool.channels(surface, link.name)[0] != value:
            ethtool.set_channels(surface, link.name, value)

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """See :class:`Operation`."""
        _, most = ethtool.channels(surface, link.name)
        room = max(most["combined"], most["rx"])
        if not 0 < self.count <= room:
            raise SetupError(
                f"give {link.name} {self.count} queues",
                f"it has 1 to {room}",
                f"channels = {room}",
                errno.EINVAL,
            )
        if most["combined"]:
            return before | {"combined": self.count, "rx": 0}
        return before | {"rx": self.count, "tx": min(self.count, most["tx"])}

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        kinds = ("combined",) if value["combined"] else ("rx", "tx")
        return f"ethtool -L {interface} " + " ".join(f"{kind} {value[kind]}" for kind in kinds)


class Queues(_Fixed):
    """No change: a note that a port uses these queues while it rests on somebody else's channels."""

    name: ClassVar[str] = "queues"

    def __init__(self, queues: Sequence[int] = ()) -> None:
        self.key: list[Any] = [list(queues)]

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        return None

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        return f"use queues of {interface}"


class Rings:
    """Descriptors a ring of the NIC."""

    name: ClassVar[str] = "rings"

    def __init__(self, rx: int = 0, tx: int = 0) -> None:
        self.key: list[Any] = []
        self.sizes = {"rx": rx, "tx": tx}

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        now, _ = ethtool.rings(surface, link.name)
        return {"rx": now["rx"], "tx": now["tx"]}

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        if self.read(surface, link) != value:
            ethtool.set_rings(surface, link.name, value)

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """See :class:`Operation`."""
        _, most = ethtool.rings(surface, link.name)
        for ring, size in self.sizes.items():
            if size > most[ring]:
                raise SetupError(
                    f"give {link.name} {ring} rings of {size}",
                    f"it has at most {most[ring]} descriptors",
                    f"nic_{ring}_ring = {most[ring]}",
                    errno.EINVAL,
                )
        return before | {ring: size for ring, size in self.sizes.items() if size}

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        return f"ethtool -G {interface} rx {value['rx']} tx {value['tx']}"


class Coalesce:
    """Interrupt coalescing: all parameters at once, of which some are wanted."""

    name: ClassVar[str] = "coalesce"

    def __init__(self, wanted: Mapping[str, int] | None = None) -> None:
        self.key: list[Any] = []
        self.wanted = dict(wanted or {})

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        return ethtool.coalesce(surface, link.name)

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        if self.read(surface, link) == value:
            return
        try:
            ethtool.set_coalesce(surface, link.name, value)
        except OSError as error:
            adaptive = {name: number for name, number in value.items() if name.startswith("adaptive")}
            if error.errno != errno.EINVAL or not any(adaptive.values()):
                raise
            # Some drivers take no fixed values while they adapt: first those, then let it adapt.
            ethtool.set_coalesce(surface, link.name, value | dict.fromkeys(adaptive, 0))
            ethtool.set_coalesce(surface, link.name, adaptive)

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """See :class:`Operation`."""
        value = before | self.wanted
        for way in ("rx", "tx"):
            fixed = [name for name in (f"{way}_usecs", f"{way}_frames") if name in self.wanted]
            if fixed and value[f"adaptive_{way}"]:
                raise SetupError(
                    f"set {fixed[0]} of {link.name}",
                    f"adaptive_{way} is on, and moves it by itself",
                    f"coalesce = {{ adaptive_{way} = 0, {fixed[0]} = {self.wanted[fixed[0]]} }}",
                    errno.EINVAL,
                )
        return value

    def same(self, one: Any, other: Any) -> bool:
        """Equal, but for what a driver moves by itself while it adapts."""
        moving = {
            f"{way}_{what}"
            for way in ("rx", "tx")
            if one[f"adaptive_{way}"] and other[f"adaptive_{way}"]
            for what in ("usecs", "frames")
        }
        return all(one[name] == other[name] for name in ethtool.COALESCE if name not in moving)

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        wanted = self.wanted or {name: number for name, number in value.items() if number}
        words = []
        for name, number in wanted.items():
            shown = ("on" if number else "off") if name.startswith("adaptive") else str(number)
            words.append(f"{name.replace('_', '-')} {shown}")
        return f"ethtool -C {interface} " + " ".join(words)


class Feature(_Fixed):
    """One offload, by the kernel's name (``ethtool -k``). Drivers forget all flow rules where
    ``rx-ntuple-filter`` is turned off: that is refused while there are any, whoever made them."""

    name: ClassVar[str] = "feature"

    def __init__(self, feature: str, wanted: bool = False) -> None:
        self.key: list[Any] = [feature]
        self.feature, self.wanted = feature, wanted

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        there = ethtool.features(surface, link.name).get(self.feature)
        if there is None:
            raise OSError(errno.EOPNOTSUPP, f"the kernel has no {self.feature}")
        return there.wanted

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        if self.read(surface, link) == value:
            return
        if self.feature == "rx-ntuple-filter" and not value and ethtool.rules(surface, link.name):
            raise OSError(errno.EBUSY, "flow rules are there that would go with it")
        ethtool.set_features(surface, link.name, {self.feature: value})
        if self.read(surface, link) != value:  # the ioctl does not fail for what is fixed
            raise OSError(errno.EOPNOTSUPP, "the driver keeps it as it is")

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        return f"ethtool -K {interface} {self.feature} {'on' if value else 'off'}"


class Indirection:
    """The default RSS table: which queues take what no flow rule names. None is nobody's, over all queues: a
    table that somebody set keeps the channel count from going below it, and so must not be left behind. It
    is given back to the kernel, which may lay the queues out in another order than the driver had.
    """

    name: ClassVar[str] = "indirection"

    def __init__(self, queues: Sequence[int] = ()) -> None:
        self.key: list[Any] = []
        self.queues = list(queues)

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        table = list(ethtool.rss(surface, link.name).table)
        if not table:
            raise OSError(errno.EOPNOTSUPP, "it has no RSS table")
        count, size = ethtool.ring_count(surface, link.name), len(table)
        own = ([n % count for n in range(size)], [n * count // size for n in range(size)])  # igb: in blocks
        return None if table in own else table

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        if self.read(surface, link) != value:
            ethtool.set_indirection(surface, link.name, None if value is None else tuple(value))

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """See :class:`Operation`."""
        if self.queues == list(range(ethtool.ring_count(surface, link.name))):
            return None
        size = len(ethtool.rss(surface, link.name).table)
        return [self.queues[n % len(self.queues)] for n in range(size)]

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        if value is None:
            return f"ethtool -X {interface} default"
        weights = " ".join(str(value.count(queue)) for queue in range(max(value) + 1))
        return f"ethtool -X {interface} weight {weights}"


CONTEXTS_MOST = 64
"""RSS contexts that are looked at; no driver in the kernel has more for one interface that we could need."""


class Context:
    """An RSS context with one table. The value is the numbers of all contexts with that table: what is
    there and was not there before is what was made."""

    name: ClassVar[str] = "context"

    def __init__(self, table: Sequence[int]) -> None:
        self.table = tuple(table)
        self.key: list[Any] = [list(table)]

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        found = []
        for number in range(1, CONTEXTS_MOST + 1):
            try:
                there = ethtool.rss(surface, link.name, number)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT):
                    continue
                raise
            if there.table == self.table:
                found.append(number)
        return found

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        now = self.read(surface, link)
        for number in set(now) - set(value):
            ethtool.remove_context(surface, link.name, number)
        if len(value) > len(now):
            ethtool.new_context(surface, link.name, self.table)

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """See :class:`Operation`."""
        return [*before, 0]  # one more, whatever its number

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        weights = " ".join(str(self.table.count(queue)) for queue in range(max(self.table) + 1))
        return f"ethtool -X {interface} context new weight {weights}"


class Rule:
    """A flow rule in the NIC. The value is its place in the table, None: it is not there."""

    name: ClassVar[str] = "rule"

    def __init__(self, **rule: Any) -> None:
        self.rule = FlowRule(**rule)
        self.key: list[Any] = [rule]

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        identity = self.rule.identity
        places = [place for place, there in ethtool.rules(surface, link.name).items() if there == identity]
        return min(places, default=None)

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        now = self.read(surface, link)
        if value is None and now is not None:
            ethtool.delete_rule(surface, link.name, now)
        elif value is not None and now is None:
            ethtool.insert_rule(surface, link.name, self.rule)

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """See :class:`Operation`."""
        return -1 if before is None else before  # any place

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        if value is None:
            return f"ethtool -N {interface} delete N   (ethtool -n {interface} shows N)"
        return f"ethtool -N {interface} {self.rule}"


_STAMP_ALL = 1  # HWTSTAMP_FILTER_ALL


class Timestamps:
    """Time stamps by the NIC: {flags, tx_type, rx_filter} of linux/net_tstamp.h."""

    name: ClassVar[str] = "timestamps"

    def __init__(self) -> None:
        self.key: list[Any] = []

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        return list(surface.stamping(link.name))

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        flags, tx_type, rx_filter = value
        if self.read(surface, link) != value:
            surface.stamping(link.name, (flags, tx_type, rx_filter))

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """See :class:`Operation`."""
        return [0, before[1], _STAMP_ALL]  # sending keeps what it had

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        return f"hwstamp_ctl -i {interface} -t {value[1]} -r {value[2]}"


class File(_Fixed):
    """A setting of the host: a file of /proc/sys or /sys, of no interface."""

    name: ClassVar[str] = "file"

    def __init__(self, path: str, wanted: str = "") -> None:
        self.key: list[Any] = [path]
        self.path, self.wanted = path, wanted

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        try:
            return surface.read(self.path)
        except FileNotFoundError:
            raise Gone from None

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        if self.read(surface, link) != value:
            surface.write(self.path, value)

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        return f"echo {value} > {self.path}"


class Affinity(File):
    """The cores that an interrupt may go to, as a list like ``0,2-3``."""

    name: ClassVar[str] = "affinity"

    def __init__(self, irq: int, wanted: str = "") -> None:
        super().__init__(f"/proc/irq/{irq}/smp_affinity_list", wanted)
        self.key = [irq]


class Napi(_Fixed):
    """Interrupt deferral of one NAPI instance, by netlink: [empty polls, ns until GRO is flushed]."""

    name: ClassVar[str] = "napi"

    def __init__(self, napi: int, defer: int = 0, flush_ns: int = 0) -> None:
        self.key: list[Any] = [napi]
        self.napi, self.wanted = napi, [defer, flush_ns]

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        there = next((n for n in surface.napis(link.index) or [] if n.id == self.napi), None)
        if there is None:
            raise Gone
        if there.defer_hard_irqs is None:
            raise OSError(errno.EOPNOTSUPP, "the kernel (before 6.13) has no deferral by queue")
        return [there.defer_hard_irqs, there.gro_flush_timeout_ns or 0]

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        if self.read(surface, link) != value:
            surface.set_napi(self.napi, *value)

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        defer, flush = value
        return f"defer interrupts of NAPI {self.napi} of {interface} by {defer} polls, {flush} ns"


class DeviceNapi:
    """Interrupt deferral of all queues of a device, by its files in /sys: for kernels before 6.13. Later ones
    keep it by queue, and writing these files would overwrite what every queue has."""

    name: ClassVar[str] = "device-napi"

    def __init__(self, defer: int = 0, flush_ns: int = 0) -> None:
        self.key: list[Any] = []
        self.wanted = [defer, flush_ns]

    def want(self, surface: Surface, link: Link, before: Any) -> Any:
        """See :class:`Operation`."""
        if any(napi.defer_hard_irqs is not None for napi in surface.napis(link.index) or []):
            raise OSError(errno.EOPNOTSUPP, "this kernel defers by queue")
        return self.wanted

    @staticmethod
    def _paths(link: Link) -> tuple[str, str]:
        folder = f"/sys/class/net/{link.name}"
        return f"{folder}/napi_defer_hard_irqs", f"{folder}/gro_flush_timeout"

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        return [int(surface.read(path)) for path in self._paths(link)]

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        for path, number in zip(self._paths(link), value, strict=True):
            if int(surface.read(path)) != number:
                surface.write(path, str(number))

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        folder = f"/sys/class/net/{interface}"
        return (
            f"echo {value[0]} > {folder}/napi_defer_hard_irqs; echo {value[1]} > {folder}/gro_flush_timeout"
        )


class LinkMtu(_Fixed):
    """The longest packet of a device, in bytes."""

    name: ClassVar[str] = "mtu"

    def __init__(self, mtu: int = 0) -> None:
        self.key: list[Any] = []
        self.wanted = mtu

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        return int(surface.read(f"/sys/class/net/{link.name}/mtu"))

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        if self.read(surface, link) != value:
            surface.write(f"/sys/class/net/{link.name}/mtu", str(value))

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        return f"ip link set dev {interface} mtu {value}"


class LinkUp(_Fixed):
    """Whether a device is up; its other flags stay as they are."""

    name: ClassVar[str] = "link-up"

    def __init__(self, wanted: bool = True) -> None:
        self.key: list[Any] = []
        self.wanted = wanted

    def read(self, surface: Surface, link: Link) -> Any:
        """See :class:`Operation`."""
        return bool(int(surface.read(f"/sys/class/net/{link.name}/flags"), 16) & _IFF_UP)

    def write(self, surface: Surface, link: Link, value: Any) -> None:
        """See :class:`Operation`."""
        path = f"/sys/class/net/{link.name}/flags"
        flags = int(surface.read(path), 16)
        wanted = flags | _IFF_UP if value else flags & ~_IFF_UP
        if flags != wanted:
            surface.write(path, hex(wanted))

    def say(self, interface: str, value: Any) -> str:
        """See :class:`Operation`."""
        return f"ip link set dev {interface} {'up' if value else 'down'}"


def _rule(rule: dict[str, Any]) -> Rule:
    return Rule(**rule)


OPERATIONS: dict[str, Any] = {
    one.name: one
    for one in (
        Channels,
        Queues,
        Rings,
        Coalesce,
        Feature,
        Indirection,
        Context,
        Timestamps,
        Affinity,
        Napi,
        DeviceNapi,
        File,
        LinkMtu,
        LinkUp,
    )
} | {Rule.name: _rule}
"""How an operation is made again from its key."""
