"""What other processes see of an engine's ports, by the segment of :mod:`xdpstack.stats`.

Entries are ``port.NAME.FIELD`` (``struct xds_link_stats``, or of kernel sockets ``xds_sock_stats``) and
``host.NAME.reasons.REASON``, by the name that the port has in TOML without its ``queues``: ``xsk:eth0:3``,
``sock:eth0``. A port with a TCP stack has ``stack.NAME.FIELD`` and ``stack.NAME.reasons.REASON``, and of all
its connections together ``tcp.NAME.FIELD``, ``tcp.NAME.reasons.REASON`` and ``tcp.NAME.states.STATE``. These
are brought up to date by the turn, as the engine's own are; there are those of kernel sockets, too, as far as
TCP_INFO has them (:mod:`xdpstack.sock_figures`). Those of a port are asked of the kernel, so the
turn leaves them alone: :meth:`Ports.show` is for the loop that waits for an engine, not for its thread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xdpstack._ffi import check, ffi, lib, names
from xdpstack.stats import Segment

__all__ = ["Ports", "port_name", "sock_name", "stack_words"]

_LONGEST = 40  # of a name, so that it fits an entry with the longest field


def port_name(port: Any) -> str:
    """What a port is called in a segment: its kind, interface and queues, or the capture's name."""
    if port.kind == "xsk":
        first, last = port.queues[0], port.queues[-1]
        return f"xsk:{port.interface}:{first}" + (f"-{last}" if last != first else "")
    subject = {"sock": getattr(port, "interface", ""), "pcap": getattr(port, "path", "")}.get(port.kind, "")
    return _called(port.kind, getattr(subject, "name", "") or str(subject))


def _called(kind: str, subject: str) -> str:
    word = re.sub(r"[^!-~]", "_", subject)[:_LONGEST]
    return f"{kind}:{word}" if word else str(kind)


def sock_name(interface: str) -> str:
    """The same of the kernel sockets on an interface."""
    return _called("sock", interface)


def stack_words(segment: Segment, name: str) -> tuple[Any, Any]:
    """Room for what a TCP stack tells: ``xds_stack_stats`` and ``xds_stack_totals``, as ``uint64_t *``."""
    stack = segment.struct(
        f"stack.{name}",
        "struct xds_stack_stats",
        gauges={"connections", "time_waits", "connections_max"},
        words={"reasons": names("xds_stack_reason", "XDS_STACK_")},
    )
    states, reasons = names("xds_tcp_state", "XDS_TCP_"), names("xds_tcp_reason", "XDS_TCP_")
    entries = {f"states.{states[number]}": ("count", True) for number in range(lib.XDS_TCP_STATES)}
    for field, _ in ffi.typeof("struct xds_tcp_stats").fields:
        unit = "bytes" if field.endswith("_bytes") else "count"
        if field == "reasons":
            entries |= {f"reasons.{reasons[number]}": (unit, False) for number in range(lib.XDS_TCP_REASONS)}
        else:
            entries[field] = (unit, False)
    return ffi.cast("uint64_t *", stack), segment.words(f"tcp.{name}", entries)


class Ports:
    """The words of an engine's ports, in the order of ``ports``."""

    def __init__(self, core: Any, segment: Segment, ports: Sequence[Any]) -> None:
        """``core``: the ``struct xds_engine *``; ``ports``: the engine's own list, which grows."""
        self._core, self._segment, self._ports = core, segment, ports
        self._words: list[Any] = []
        self._names: list[str] = []

    def add(self, *, host: bool) -> None:
        """Make room for the port that was added last; ``host``: it has a host core."""
        index = len(self._words)
        name = port_name(self._ports[index])
        if name in self._names:
            name += f"#{index}"
        self._names.append(name)
        ctype = "struct xds_link_stats" if host else "struct xds_sock_stats"
        units = {field: "bytes" for field in ("rx_bytes", "tx_bytes")}
        self._words.append(self._segment.struct(f"port.{name}", ctype, units=units))
        if host:
            words = {"reasons": names("xds_host_reason", "XDS_HOST_")}
            block = self._segment.struct(f"host.{name}", "struct xds_host_stats", words=words)
            what = lib.XDS_MIRROR_HOST
            check(
                lib.xds_engine_mirror(self._core, ffi.cast("uint64_t *", block), what, index, 0),
                f"mirror host.{name}",
            )

    def add_stack(self, index: int) -> None:
        """Port ``index`` has a TCP stack. Connections are looked at a few at a time: their sums are late."""
        name, core = self._names[index], self._core
        for what, words in zip(
            (lib.XDS_MIRROR_STACK, lib.XDS_MIRROR_TCP), stack_words(self._segment, name), strict=True
        ):
            check(lib.xds_engine_mirror(core, words, what, index, 0), f"mirror stack.{name}")

    def show(self) -> None:
        """Bring the ports' words up to date: a system call for each AF_XDP queue."""
        for port, words in zip(self._ports, self._words, strict=False):
            if not port.closed:
                ask = lib.xds_sock_stats if port.kind == "sock" else lib.xds_link_stats
                ask(port.handle, words)
