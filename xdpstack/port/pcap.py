"""Captures: read as a link in virtual time, and written."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any, Final, Literal

from xdpstack._ffi import ffi, lib
from xdpstack.closing import Closing
from xdpstack.errors import ConfigError, LocalProtocolError, SetupError
from xdpstack.port.base import LinkPort, Memory, fields, now_tai, raise_code

__all__ = ["PcapPort", "PcapWriter"]

_PACKINGS: Final = {".gz": 1, ".zst": 2}


class PcapPort(LinkPort):
    """A capture as a link in virtual time: pcap or pcapng, plain, gzip or zstd.

    ``window`` bounds the largest record, bytes. ``all_types`` delivers records of every link type, else only
    Ethernet. Stamps are as the file holds them: UTC, or CLOCK_TAI in our own recordings (``clock``).
    """

    kind = "pcap"

    def __init__(
        self, path: str | os.PathLike[str], *, window: int = 320 << 10, all_types: bool = False
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self._fd = -1
        self.at_end = False
        """True once everything was delivered."""
        config = ffi.new("struct xds_pcap_config *")
        config.window, config.flags = window, lib.XDS_PCAP_ALL_TYPES if all_types else 0
        size = lib.xds_pcap_size(config)
        if size == 0:
            raise ConfigError(f"capture {self.path}: window {window} is not in 4096 .. 67108864 bytes")
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            if Path(self.path).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        except OSError as error:
            self._abandon()
            raise SetupError(
                f"open capture {self.path}", error.strerror or str(error), errno=error.errno
            ) from None
        self._memory = Memory(size, huge=False)
        out = ffi.new("struct xds_link **")
        code = lib.xds_pcap_open(self._memory.pointer, config, self._fd, out)
        if code < 0:
            self._abandon()
            reason = {
                lib.XDS_ETRUNC: "it is shorter than a capture's header",
                lib.XDS_EMALFORMED: "it is neither pcap nor pcapng, plain, gzip or zstd",
            }.get(code, os.strerror(-code) if code > -4096 else str(code))
            raise SetupError(f"open capture {self.path}", reason)
        self._handle = out[0]

    def _abandon(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._closed = True

    @property
    def granted(self) -> str:
        """``file``."""
        return "file"

    @property
    def clock(self) -> str:
        """The clock of the stamps: ``tai`` in our own recordings, else ``utc``."""
        return "tai" if self._info().clock == lib.XDS_PCAP_CLOCK_TAI else "utc"

    def _info(self) -> Any:
        info = ffi.new("struct xds_pcap_info *")
        lib.xds_pcap_info(self.handle, info)
        return info

    def info(self) -> dict[str, Any]:
        """Format, packing, clock and interfaces, as far as the file was read."""
        info, interfaces = self._info(), []
        for index in range(info.interfaces):
            one = ffi.new("struct xds_pcap_interface *")
            lib.xds_pcap_interface(self.handle, index, one)
            name = ffi.string(one.name).decode(errors="replace")
            interfaces.append(
                {"name": name, "linktype": one.linktype, "snaplen": one.snaplen, "frames": one.frames}
            )
        return {
            "format": "pcap" if info.format == lib.XDS_PCAP_FORMAT_PCAP else "pcapng",
            "packing": ("plain", "gzip", "zstd")[info.packing],
            "clock": self.clock,
            "sections": info.sections,
            "blocks": info.blocks,
            "blocks_skipped": info.blocks_skipped,
            "interfaces": interfaces,
        }

    def _ended(self, code: int) -> None:
        if code == -errno.EPIPE:
            self.at_end = True
            return
        super()._ended(code)

    def _close_native(self) -> None:
        super()._close_native()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __repr__(self) -> str:
        return f"<PcapPort {self.path}{' closed' if self._closed else ''}>"


class PcapWriter(Closing):
    """Write a capture: the format by suffix, ``.pcap`` or ``.pcapng``, then ``.gz`` or ``.zst``.

    Nanosecond stamps. ``clock="tai"`` marks them as CLOCK_TAI (pcapng), with the offset to UTC for other
    readers. ``snaplen``: longer records are cut and flagged. Raises ConfigError, SetupError; a failed write
    is an OSError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Literal["utc", "tai"] = "utc",
        snaplen: int = 65535,
        buffer: int = 1 << 20,
        level: int = 0,
    ) -> None:
        self.path = Path(path)
        self._fd, self._handle, self._interfaces = -1, ffi.NULL, 0
        self._memory: Memory | None = None
        self._last_stats: dict[str, int] = {}
        if not 0 < snaplen <= 1 << 24 or not 0 <= buffer <= 1 << 30:
            raise ConfigError(f"capture {self.path}: snaplen {snaplen} or buffer {buffer} is out of bounds")
        config = ffi.new("struct xds_pcap_writer_config *")
        config.format, config.packing = _format_of(self.path)
        config.level, config.buffer, config.snaplen = level, max(buffer, snaplen + 4096), snaplen
        if clock == "tai":
            config.clock = lib.XDS_PCAP_CLOCK_TAI
            config.tai_offset_s = round((now_tai() - time.time_ns()) / 1e9)
        size = lib.xds_pcap_writer_size(config)
        if size == 0:
            raise ConfigError(f"capture {self.path}: snaplen {snaplen} or buffer {buffer} is out of bounds")
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SetupError(
                f"write capture {self.path}", error.strerror or str(error), errno=error.errno
            ) from None
        self._memory = Memory(size, huge=False)
        out = ffi.new("struct xds_pcap_writer **")
        code = lib.xds_pcap_writer_open(self._memory.pointer, config, self._fd, out)
        if code < 0:
            self._abandon()
            raise SetupError(f"write capture {self.path}", os.strerror(-code) if code > -4096 else str(code))
        self._handle = out[0]

    @property
    def handle(self) -> Any:
        """The C pointer that the engine's recorder takes; valid until close."""
        if self._handle == ffi.NULL:
            raise LocalProtocolError(f"{self!r} is closed")
        return self._handle

    def add_interface(self, name: str, linktype: int = 1) -> int:
        """Describe one more interface; returns its number. A pcap file holds one."""
        got = lib.xds_pcap_writer_add_interface(self.handle, name.encode(), linktype)
        self._interfaces = raise_code(got, f"add an interface to {self.path}") + 1
        return self._interfaces - 1

    def write(
        self,
        ns: int,
        data: bytes | memoryview,
        *,
        interface: int = 0,
        orig_len: int = 0,
        comment: str = "",
    ) -> bool:
        """Append one record stamped ``ns``; ``orig_len``: bytes on the wire; ``comment`` of the packet, in
        pcapng. True: cut to ``snaplen``."""
        if self._interfaces == 0:
            self.add_interface("any")
        buffer, said = ffi.from_buffer(data), comment.encode()
        got = lib.xds_pcap_writer_write_comment(
            self.handle, interface, ns, buffer, len(buffer), orig_len, said, len(said)
        )
        return bool(raise_code(got, f"write {self.path}"))

    def flush(self) -> None:
        """What was written can be read from the file."""
        raise_code(lib.xds_pcap_writer_flush(self.handle), f"write {self.path}")

    def stats(self) -> dict[str, int]:
        """The counters of ``struct xds_pcap_writer_stats``; after close the last ones."""
        if self._handle != ffi.NULL:
            out = ffi.new("struct xds_pcap_writer_stats *")
            lib.xds_pcap_writer_stats(self._handle, out)
            self._last_stats = fields(out, "struct xds_pcap_writer_stats")
        return dict(self._last_stats)

    def _abandon(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._handle = ffi.NULL

    def close(self) -> None:
        """Write the rest and close the file; twice is calm. OSError: the rest could not be written."""
        if self._handle == ffi.NULL:
            return
        code = lib.xds_pcap_writer_close(self._handle)
        self.stats()
        self._abandon()
        raise_code(code, f"write {self.path}")

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __repr__(self) -> str:
        return f"<PcapWriter {self.path}{' closed' if self._handle == ffi.NULL else ''}>"


def _format_of(path: Path) -> tuple[int, int]:
    """``(format, packing)`` by the suffixes."""
    suffixes = path.suffixes
    packing = _PACKINGS.get(suffixes[-1], 0) if suffixes else 0
    kind = suffixes[-2 if packing else -1] if len(suffixes) > (1 if packing else 0) else ""
    formats = {".pcap": lib.XDS_PCAP_FORMAT_PCAP, ".pcapng": lib.XDS_PCAP_FORMAT_PCAPNG}
    if kind not in formats:
        raise ConfigError(f"capture {path}: name it *.pcap or *.pcapng, then .gz or .zst where packed")
    return formats[kind], packing
