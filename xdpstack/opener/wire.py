"""Messages between an opener and its workers, and between two workers that hand a port over.

One JSON object a packet of a SOCK_SEQPACKET Unix socket, descriptors beside it (SCM_RIGHTS). A packet is
whole or not there, so there is no framing to get wrong; what is larger than the bounds is refused whole.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from xdpstack.errors import RemoteProtocolError, SetupError
from xdpstack.opener.policy import Peer

__all__ = ["FDS_MAX", "MESSAGE_MAX", "close_all", "connect", "peer_of", "receive", "send", "socket_cookie"]

MESSAGE_MAX = 64 << 10  # bytes
FDS_MAX = 128  # of the kernel's 253 a packet
VERSION = 1
_SO_PEERGROUPS = 59
_SO_COOKIE = 57


def peer_of(connection: socket.socket) -> Peer:
    """Who connected: the kernel's word, as of that moment."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("iII", raw)
    gids = {gid}
    with contextlib.suppress(OSError):
        listed = array.array("I", connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4096))
        gids.update(listed)
    return Peer(pid, uid, frozenset(gids))


def socket_cookie(fd: int) -> int:
    """The kernel's number of a socket, never used twice while the host is up."""
    # The family is given because Python would ask for a name, which AF_XDP sockets have not.
    with socket.socket(socket.AF_UNIX, socket.SOCK_RAW, 0, fileno=os.dup(fd)) as one:
        (cookie,) = struct.unpack("Q", one.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))
    return int(cookie)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors; those below 0 are none."""
    for fd in fds:
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message. The descriptors stay the caller's. OSError: the peer is gone, or does not read."""
    data = json.dumps(message).encode()
    if len(data) > MESSAGE_MAX or len(fds) > FDS_MAX:
        raise ValueError(f"a message of {len(data)} bytes and {len(fds)} descriptors")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket, fds_max: int = FDS_MAX) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its descriptors, given; None: the peer closed. RemoteProtocolError: not one of ours,
    and its descriptors are closed. OSError as the socket says."""
    room = socket.CMSG_SPACE(FDS_MAX * 4)
    data, ancillary, flags, _ = connection.recvmsg(MESSAGE_MAX + 1, room, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += array.array("i", body[: len(body) // 4 * 4])
    try:
        if flags & socket.MSG_CTRUNC or len(fds) > fds_max:
            raise RemoteProtocolError(f"more than {fds_max} descriptors in one message")
        if flags & socket.MSG_TRUNC or len(data) > MESSAGE_MAX:
            raise RemoteProtocolError(f"a message of more than {MESSAGE_MAX} bytes")
        if not data:
            close_all(fds)
            return None, []
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            raise RemoteProtocolError("a message that is no JSON") from None
        if not isinstance(message, dict):
            raise RemoteProtocolError("a message that is no JSON object")
    except RemoteProtocolError:
        close_all(fds)
        raise
    return message, fds


def connect(path: str, timeout: float, what: str) -> socket.socket:
    """A connection to the socket at ``path``; ``what`` listens there. Raises SetupError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(timeout)
    end = time.monotonic() + timeout
    try:
        while True:
            try:
                connection.connect(path)
                break
            except BlockingIOError:  # its queue of connections is full
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
    except OSError as error:
        connection.close()
        reason = error.strerror or str(error)
        remedy = {
            "FileNotFoundError": f"is it running? it serves {path}",
            "ConnectionRefusedError": "nobody listens there: start it",
            "PermissionError": "its mode does not admit this user",
        }.get(type(error).__name__, "")
        if len(os.fsencode(path)) > 107:
            remedy = "a socket's path has at most 107 bytes"
        raise SetupError(f"ask {what} at {path}", reason, remedy, error.errno) from None
    return connection
