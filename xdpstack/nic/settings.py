"""What a port asks of its NIC, as keys of ``[ports.NAME]`` and flags of commands."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xdpstack.errors import ConfigError
from xdpstack.nic import ethtool
from xdpstack.nic.irq import parse_cpus

__all__ = ["KEYS", "Flow", "NicConfig", "nic_config", "parse_queues"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A flow of a feed: UDP to an address and port, from a source or anybody."""

    dst: str
    dport: int
    src: str = ""
    channel: int = 0
    """Flows of one channel keep together: they go to one queue."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NicConfig:
    """What to change while a port is open. What has its default is left as it is on the host."""

    channels: int = 0
    """Queues that the NIC shall have."""
    steer: bool = False
    """Have the NIC send the feed's flows to the port's queues: by flow rules, else by its RSS table."""
    spread: bool = False
    """With ``steer``: flow rules name an RSS context over the port's queues, not one queue a channel."""
    isolate: bool = False
    """Keep everything else off the port's queues (RSS table over the other ones)."""
    nic_rx_ring: int = 0
    """Descriptors a receive ring of the NIC; ``rx_ring`` is the socket's."""
    nic_tx_ring: int = 0
    coalesce: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """By ethtool's names, ``_`` for ``-``: {adaptive_rx = 0, rx_usecs = 0}."""
    bypass_offloads: bool = False
    """Turn off what breaks bypass: GRO, LRO, VLAN stripping; over veth checksums and segmentation too."""
    timestamps: bool = False
    """Let the NIC stamp every received frame."""
    irq_cpus: Sequence[int] = ()
    """Cores for the interrupts of the port's queues, in turn."""
    defer_hard_irqs: int = 0
    """Empty polls before an interrupt is armed again; busy polling needs some."""
    gro_flush_timeout: int = 0
    """ns after which the kernel polls by itself when nobody does."""
    promiscuous: bool = False
    all_multicast: bool = False
    multicast_macs: Sequence[str] = ()
    """Further link addresses that the NIC shall let in."""
    numa: str = ""
    """The NUMA node of the port's memory: a number, or ``nic`` for the NIC's own."""

    @property
    def changes_nothing(self) -> bool:
        """Every key has its default."""
        return self == NicConfig()


KEYS = tuple(field.name for field in dataclasses.fields(NicConfig))
_SEQUENCES = {"irq_cpus": "cores", "multicast_macs": "link addresses"}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.I)
_LIMITS = {"channels": 4096, "nic_rx_ring": 1 << 20, "nic_tx_ring": 1 << 20, "gro_flush_timeout": 10**9}


def nic_config(values: Mapping[str, Any]) -> NicConfig:
    """Build a configuration from TOML values. ConfigError: ``KEY: wanted …, not …``."""
    taken: dict[str, Any] = {}
    for key, value in values.items():
        taken[key] = _value(key, value)
    config = NicConfig(**taken)
    if config.spread and not config.steer:
        raise ConfigError("spread: it says how to steer; add steer = true")
    if (config.defer_hard_irqs == 0) != (config.gro_flush_timeout == 0):
        raise ConfigError(
            "defer_hard_irqs: it takes both, defer_hard_irqs and gro_flush_timeout: "
            "without the first there is no deferral, without the second it never ends"
        )
    return config


def _value(key: str, value: Any) -> Any:
    default = NicConfig.__dataclass_fields__[key].default
    if key == "coalesce":
        return _coalesce(value)
    if key == "irq_cpus":
        return _cpus(key, value)
    if key == "multicast_macs":
        if isinstance(value, str):
            value = value.split(",")
        if not isinstance(value, list) or not all(isinstance(v, str) and _MAC.fullmatch(v) for v in value):
            raise ConfigError(f'{key}: wanted a list like ["01:00:5e:36:0c:6f"], not {value!r}')
        return tuple(value)
    if key == "numa":
        number = str(value) if type(value) is int else value
        if number != "nic" and not (isinstance(number, str) and number.isdigit() and int(number) < 64):
            raise ConfigError(f'{key}: wanted the number of a node or "nic", not {value!r}')
        return number
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{key}: wanted true or false, not {value!r}")
        return value
    limit = _LIMITS.get(key, (1 << 31) - 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise ConfigError(f"{key}: wanted a whole number from 0 to {limit}, not {value!r}")
    return value


def _cpus(key: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        try:
            return tuple(parse_cpus(value))
        except ValueError:
            pass
    elif isinstance(value, list) and all(type(v) is int and 0 <= v < 8192 for v in value):
        return tuple(value)
    raise ConfigError(f'{key}: wanted cores like [2, 3] or "2-3", not {value!r}')


def _coalesce(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"coalesce: wanted a table like {{ adaptive_rx = 0, rx_usecs = 0 }}, not {value!r}")
    taken = {}
    for name, number in value.items():
        if name not in ethtool.COALESCE:
            raise ConfigError(f"coalesce: {name} is none of {', '.join(ethtool.COALESCE)}")
        if isinstance(number, bool):
            number = int(number)
        if not isinstance(number, int) or not 0 <= number < 1 << 32:
            raise ConfigError(f"coalesce: {name}: wanted a whole number, not {number!r}")
        taken[name] = number
    return taken


def parse_queues(value: Any) -> list[int] | None:
    """Queues from ``"all"`` (None), ``"0-3"``, ``"1,3"``, a number or a list. ConfigError: none of these."""
    if value == "all":
        return None
    if isinstance(value, str):
        try:
            value = parse_cpus(value)
        except ValueError:
            value = None
    elif type(value) is int:
        value = [value]
    if not isinstance(value, list) or not value or not all(type(n) is int and 0 <= n < 4096 for n in value):
        raise ConfigError('queues: wanted "all", a range like "0-3", or a list like [1, 3]')
    if len(set(value)) != len(value):
        raise ConfigError("queues: a queue is named twice")
    return sorted(value)
