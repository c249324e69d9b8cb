"""An AF_XDP port on its way from one process to another.

    parts = part(port)            # between two turns; the port is closed, its sockets and frames live
    ... parts.settings as JSON, parts.fds by SCM_RIGHTS ...
    port = adopt(parts)           # goes on at the same place of the same rings

No frame is lost and none comes twice: what arrives meanwhile waits in the RX ring. The port must be
``shared``. Received counters begin anew; what the kernel counts (``rx_dropped`` and its kin) goes on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError, LocalProtocolError, SetupError
from xdpstack.port.base import LinkPort, Memory, fields, raise_code
from xdpstack.port.xsk import XskPort, _Polled

__all__ = ["Parts", "adopt", "part", "snapshot"]

_CONFIG = "struct xds_xsk_config"
_PARTED = "struct xds_xsk_parted"
_NOT_SAID = ("ifname", "share")
_LIVE_FDS = 2


@dataclasses.dataclass(slots=True)
class Parts:
    """``settings``: what JSON can say. ``fds``: the memory, then the sockets, then what sends live XDP frames
    where the port does; whoever has this owns them."""

    settings: Mapping[str, Any]
    fds: list[int]

    @property
    def sockets(self) -> list[int]:
        """One a queue, then the one that sends."""
        config = self.settings["config"]
        return self.fds[1:][: config["queue_count"] + (config["tx_frames"] > 0)]

    @property
    def receivers(self) -> dict[int, int]:
        """The socket of each queue, for the filter's map: ``{queue: fd}``."""
        config = self.settings["config"]
        first, count = config["queue_first"], config["queue_count"]
        return dict(zip(range(first, first + count), self.sockets, strict=False))

    def close(self) -> None:
        """Close what nobody took; twice is calm."""
        while self.fds:
            os.close(self.fds.pop())


def part(port: XskPort) -> Parts:
    """Close a port here, but not its sockets. LocalProtocolError: it is not ``shared``, an engine holds it,
    it shares a UMEM with other ports, or a frame to be sent is reserved."""
    if port._holders:
        raise LocalProtocolError(f"{port!r} is in use by an engine: detach that first")
    parts = snapshot(port)
    try:
        port.close()
    except BaseException:
        parts.close()
        raise
    return parts


def snapshot(port: XskPort) -> Parts:
    """What another process needs to go on from here, if this one does not touch the port again; an engine
    that holds it stands still. The other adopts it when the port is closed here, not before: they share
    its memory. Raises LocalProtocolError as :func:`part`."""
    memory = port._memory
    if port._shared_memory is not None or port._config.lend:
        raise LocalProtocolError(f"{port!r} shares its frames with other ports: it cannot go without them")
    if memory is None or memory.fd < 0:
        raise LocalProtocolError(f"{port!r} is not shared: it cannot go to another process")
    port.release()
    port.flush()
    config, out = port._config, ffi.new(f"{_PARTED} *")
    taken = ffi.new("int32_t[]", lib.XDS_XSK_QUEUES_MAX + 1 + _LIVE_FDS)
    block = ffi.cast("uint8_t *", memory.pointer) + lib.xds_xsk_size(config)
    try:
        count = raise_code(lib.xds_xsk_part(port.handle, out, block, taken), f"part with {port!r}")
    except ValueError as error:
        raise LocalProtocolError(f"{error}: a frame is leased or reserved") from None
    live = port.sends_by == "live"
    if live:
        more = lib.xds_xsk_live_part(port.handle, taken + count)
        if more < 0:
            for fd in taken[0:count]:
                os.close(fd)
            raise_code(more, f"part with {port!r}")
        count += more
    settings = {
        "layout": lib.XDS_XSK_LAYOUT,
        "interface": port.interface,
        "config": {name: value for name, value in fields(config, _CONFIG).items() if name not in _NOT_SAID},
        "parted": fields(out, _PARTED),
        "live": live,
        "page": memory.page,
        "mtu_max": port.mtu_max,
    }
    return Parts(settings, [os.dup(memory.fd), *taken[0:count]])


def adopt(parts: Parts) -> XskPort:
    """Go on with a port of another process; the descriptors are taken, whatever comes. SetupError: the parts
    do not fit together, or the host refuses."""
    fds, parts.fds = parts.fds, []
    if parts.settings.get("layout") != lib.XDS_XSK_LAYOUT:
        for fd in fds:
            os.close(fd)
        remedy = "end that program, then start this one"
        raise SetupError("take a port over", "it was opened by another version of xdpstack", remedy)
    try:
        port = XskPort.__new__(XskPort)
        LinkPort.__init__(port)
        port._shared, port.interface = True, str(parts.settings["interface"])
        config = port._config = _filled(_CONFIG, parts.settings["config"])
        config.ifname = port.interface.encode()
        parted = _filled(_PARTED, parts.settings["parted"])
        port.queues = range(config.queue_first, config.queue_first + config.queue_count)
        port._shared_memory, port._polled = None, _Polled() if config.busy_poll_us else None
        told = {"granted": parted.granted, "mtu": parted.mtu, "mtu_max": int(parts.settings["mtu_max"])}
        port._report = ffi.new("struct xds_xsk_report *", told)
        live = parts.settings.get("live", False) is True
        _check(config, fds, live)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        for fd in fds:
            os.close(fd)
        raise SetupError("take a port over", f"its description is damaged: {error}") from None
    try:
        port._memory = memory = Memory.of(fds[0], int(parts.settings["page"]))
    except OSError:
        for fd in fds[1:]:
            os.close(fd)
        raise
    sockets = fds[1 : len(fds) - _LIVE_FDS * live]
    try:
        _adopt_native(port, memory, config, parted, sockets)
    except BaseException:
        for fd in fds[1 + len(sockets) :]:
            os.close(fd)
        raise
    if live:
        _adopt_live(port, fds[1 + len(sockets) :])
    return port


def _adopt_live(port: XskPort, fds: list[int]) -> None:
    code = lib.xds_xsk_live_adopt(port.handle, fds)
    if code < 0:
        port.close()
        reason = os.strerror(-code) if code > -4096 else "it cannot send live XDP frames"
        raise SetupError("take a port over", reason, errno=-code if code > -4096 else None)
    port._sends_live("it was opened so")


def _check(config: Any, fds: list[int], live: bool) -> None:
    fault = lib.xds_xsk_fault(config)
    if fault != ffi.NULL:
        raise ValueError(ffi.string(fault).decode())
    wanted = 1 + config.queue_count + (config.tx_frames > 0) + _LIVE_FDS * live
    if len(fds) != wanted:
        raise ValueError(f"{len(fds)} descriptors, not {wanted}")
    size, needed = os.fstat(fds[0]).st_size, lib.xds_xsk_size(config) + lib.xds_xsk_parted_size(config)
    if size < needed:
        raise ValueError(f"a memory of {size} bytes, not {needed}")


def _adopt_native(port: XskPort, memory: Memory, config: Any, parted: Any, sockets: list[int]) -> None:
    out = ffi.new("struct xds_link **")
    block = ffi.cast("uint8_t *", memory.pointer) + lib.xds_xsk_size(config)
    code = lib.xds_xsk_adopt(memory.pointer, config, parted, block, sockets, out)
    if code < 0:
        memory.close()
        port._memory, port._closed = None, True
        try:
            raise_code(code, f"take over {port!r}")
        except (OSError, ValueError) as error:
            raise SetupError("take a port over", str(error), errno=getattr(error, "errno", None)) from None
    port._handle = out[0]


def _filled(ctype: str, values: Mapping[str, Any]) -> Any:
    """A C struct from numbers by name; every one must be there, and no other."""
    known = {name for name, _ in ffi.typeof(ctype).fields}.difference(_NOT_SAID)
    if set(values) != known:
        raise ConfigError(f"wanted {', '.join(sorted(known))}")
    made = ffi.new(f"{ctype} *")
    for name, value in values.items():
        setattr(made, name, value)
    return made
