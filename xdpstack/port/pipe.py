"""Two link ends joined in memory."""

from __future__ import annotations

from typing import Any

from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError
from xdpstack.port.base import LinkPort, Memory, raise_code

__all__ = ["PipePort", "pipe"]


class PipePort(LinkPort):
    """One end of a pair in memory; make them with ``pipe()``. Both ends belong to one thread."""

    kind = "pipe"

    def __init__(self, memory: Memory, handle: Any, name: str) -> None:
        super().__init__()
        self._memory, self._handle, self._name = memory, handle, name
        self.peer: PipePort
        """The other end."""

    def __repr__(self) -> str:
        return f"<PipePort {self._name}{' closed' if self._closed else ''}>"


def pipe(
    slots: int = 256, slot_bytes: int = 2048, *, virtual_time: bool = False
) -> tuple[PipePort, PipePort]:
    """Two link ends in memory: ``slots`` frames of ``slot_bytes`` each way. ConfigError: out of bounds."""
    config = ffi.new("struct xds_pipe_config *")
    config.slots, config.slot_bytes = slots, slot_bytes
    config.flags = lib.XDS_LINK_VIRTUAL_TIME if virtual_time else 0
    size = lib.xds_pipe_size(config)
    if size == 0:
        raise ConfigError(
            f"pipe of {slots} slots of {slot_bytes} bytes: 1 .. 1048576 slots of 64 .. 65536 bytes"
        )
    memory = Memory(size, huge=False)
    ends = ffi.new("struct xds_link *[2]")
    raise_code(lib.xds_pipe_open(memory.pointer, config, ends, ends + 1), "open a pipe")
    memory.users = 2
    left, right = PipePort(memory, ends[0], "left"), PipePort(memory, ends[1], "right")
    left.peer, right.peer = right, left
    return left, right
