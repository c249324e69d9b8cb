"""What the kernel tells of a device and its queues, by the generic netlink family ``netdev``.

Two rules: what a device can is read here and never guessed from its driver's name; what this kernel does not
tell is None, which means unknown and not "no". The socket belongs to the network namespace of the calling
thread. Format: Documentation/netlink/specs/netdev.yaml of the kernel, include/uapi/linux/netdev.h.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from xdpstack.errors import SetupError

__all__ = ["SINCE", "Capabilities", "Napi", "Queue", "capabilities", "napis", "queues", "set_napi"]

SINCE = {
    "xdp": "6.3",
    "zc_max_segs": "6.6",
    "rx_metadata": "6.7",
    "xsk": "6.8",
    "queues": "6.8",
    "napis": "6.8",
    "set_napi": "6.13",
}
"""The first Linux that tells each of them."""

# Words for the bits, as ynl and the kernel's specification spell them.
XDP_FEATURES = {
    1: "basic",
    2: "redirect",
    4: "ndo-xmit",
    8: "zero-copy",  # "xsk-zerocopy" in the specification
    16: "hw-offload",
    32: "rx-sg",
    64: "ndo-xmit-sg",
}
RX_METADATA = {1: "timestamp", 2: "hash", 4: "vlan-tag"}
XSK_FEATURES = {1: "tx-timestamp", 2: "tx-checksum", 4: "tx-launch-time-fifo"}
QUEUE_TYPES = {0: "rx", 1: "tx"}

CMD_DEV_GET, CMD_QUEUE_GET, CMD_NAPI_GET, CMD_NAPI_SET = 1, 10, 11, 14
# The kernel has no such family, no such command, or refuses an attribute that it does not know.
_OLDER = {errno.ENOENT, errno.EOPNOTSUPP, errno.ENOTSUP}


class _Dev(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("DEV_UNSPEC", "none"),
        ("DEV_IFINDEX", "uint32"),
        ("DEV_PAD", "hex"),
        ("DEV_XDP_FEATURES", "uint64"),
        ("DEV_XDP_ZC_MAX_SEGS", "uint32"),
        ("DEV_XDP_RX_METADATA_FEATURES", "uint64"),
        ("DEV_XSK_FEATURES", "uint64"),
    )


class _Queue(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("QUEUE_UNSPEC", "none"),
        ("QUEUE_ID", "uint32"),
        ("QUEUE_IFINDEX", "uint32"),
        ("QUEUE_TYPE", "uint32"),
        ("QUEUE_NAPI_ID", "uint32"),
        ("QUEUE_DMABUF", "hex"),
        ("QUEUE_IO_URING", "hex"),
        ("QUEUE_XSK", "hex"),
    )


class _Napi(genlmsg):  # type: ignore[misc]
    # "uint" in the specification: four bytes where the value fits, else eight; so these two come as bytes.
    nla_map = (
        ("NAPI_UNSPEC", "none"),
        ("NAPI_IFINDEX", "uint32"),
        ("NAPI_ID", "uint32"),
        ("NAPI_IRQ", "uint32"),
        ("NAPI_PID", "uint32"),
        ("NAPI_DEFER_HARD_IRQS", "uint32"),
        ("NAPI_GRO_FLUSH_TIMEOUT", "cdata"),
        ("NAPI_IRQ_SUSPEND_TIMEOUT", "cdata"),
        ("NAPI_THREADED", "uint32"),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a device says that it can, in words; a part that is None is unknown on this kernel."""

    xdp: frozenset[str] | None = None
    """Of ``XDP_FEATURES``; Linux 6.3 tells."""
    zc_max_segs: int | None = None
    """Buffers that a zero-copy frame may take, 0 without zero-copy; Linux 6.6 tells."""
    rx_metadata: frozenset[str] | None = None
    """Of ``RX_METADATA``: what a device-bound program can ask; Linux 6.7 tells."""
    xsk: frozenset[str] | None = None
    """Of ``XSK_FEATURES``: what TX metadata can ask for; Linux 6.8 tells."""

    @property
    def known(self) -> bool:
        """The kernel tells at least the XDP features."""
        return self.xdp is not None

    def can(self, word: str) -> bool | None:
        """Whether the device has an XDP, RX metadata or XSK feature; None is unknown."""
        for words, there in (
            (XDP_FEATURES, self.xdp),
            (RX_METADATA, self.rx_metadata),
            (XSK_FEATURES, self.xsk),
        ):
            if word in words.values():
                return None if there is None else word in there
        raise ValueError(f"no feature is called {word!r}")

    def __str__(self) -> str:
        if self.xdp is None:
            return f"unknown: the kernel does not tell XDP features (Linux {SINCE['xdp']} does)"
        return ", ".join(sorted(self.xdp)) or "no XDP features"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue in use. ``napi_id`` is None where the driver did not link the queue to a NAPI instance."""

    id: int
    kind: str
    """``rx`` or ``tx``."""
    napi_id: int | None = None
    has_xsk: bool | None = None
    """An AF_XDP socket is bound to it. None where no queue has one, or the kernel (before 6.15) is silent."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Napi:
    """A NAPI instance. What is None the driver or this kernel does not tell."""

    id: int
    irq: int | None = None
    pid: int | None = None
    """Of the kernel thread, when it is threaded."""
    defer_hard_irqs: int | None = None
    """Empty polls before the interrupt is armed again; Linux 6.13 tells each NAPI's own."""
    gro_flush_timeout_ns: int | None = None
    irq_suspend_timeout_ns: int | None = None


def capabilities(ifindex: int) -> Capabilities:
    """What the device says that it can. SetupError: there is no such device in this namespace."""
    answers = _ask(_Dev, CMD_DEV_GET, [("DEV_IFINDEX", ifindex)], f"device {ifindex}")
    return _capabilities(answers[0]) if answers else Capabilities()


def _capabilities(answer: Any) -> Capabilities:
    def words(name: str, table: dict[int, str]) -> frozenset[str] | None:
        bits = answer.get_attr(name)
        # A bit without a word comes from a newer kernel; it is shown, not hidden.
        return None if bits is None else frozenset(table.get(1 << n, f"bit-{n}") for n in _bits(bits))

    xdp = words("DEV_XDP_FEATURES", XDP_FEATURES)
    segments = answer.get_attr("DEV_XDP_ZC_MAX_SEGS")
    if segments is None and xdp is not None and "zero-copy" not in xdp:
        segments = 0  # told only of a device that has zero-copy
    return Capabilities(
        xdp=xdp,
        zc_max_segs=segments,
        rx_metadata=words("DEV_XDP_RX_METADATA_FEATURES", RX_METADATA),
        xsk=words("DEV_XSK_FEATURES", XSK_FEATURES),
    )


def _bits(value: int) -> list[int]:
    return [n for n in range(value.bit_length()) if value >> n & 1]


def queues(ifindex: int) -> list[Queue] | None:
    """The queues in use, receive queues first; none while the device is down. None: unknown here.

    SetupError: there is no such device in this namespace.
    """
    request = [("QUEUE_IFINDEX", ifindex)]
    answers = _ask(_Queue, CMD_QUEUE_GET, request, f"queues of device {ifindex}", dump=True)
    if not answers:
        return _none_of(ifindex, answers)
    told = any(answer.get_attr("QUEUE_XSK") is not None for answer in answers)
    found = [
        Queue(
            id=answer.get_attr("QUEUE_ID"),
            kind=QUEUE_TYPES[answer.get_attr("QUEUE_TYPE")],
            napi_id=answer.get_attr("QUEUE_NAPI_ID"),
            has_xsk=answer.get_attr("QUEUE_XSK") is not None if told else None,
        )
        for answer in answers
    ]
    return sorted(found, key=lambda queue: (queue.kind, queue.id))


def napis(ifindex: int) -> list[Napi] | None:
    """The NAPI instances of a device, by id; none while it is down. None: unknown on this kernel.

    SetupError: there is no such device in this namespace.
    """
    request = [("NAPI_IFINDEX", ifindex)]
    answers = _ask(_Napi, CMD_NAPI_GET, request, f"NAPI instances of device {ifindex}", dump=True)
    if not answers:
        return _none_of(ifindex, answers)
    return sorted((_napi(answer) for answer in answers), key=lambda napi: napi.id)


def _none_of(ifindex: int, answers: list[Any] | None) -> list[Any] | None:
    """An empty answer: pyroute2 drops the error that ends a dump, so ask whether the device is there."""
    if answers is not None:
        _ask(_Dev, CMD_DEV_GET, [("DEV_IFINDEX", ifindex)], f"device {ifindex}")
    return answers


def _napi(answer: Any) -> Napi:
    def number(name: str) -> int | None:
        raw = answer.get_attr(name)
        return None if raw is None else int.from_bytes(raw, "little" if _LITTLE else "big")

    return Napi(
        id=answer.get_attr("NAPI_ID"),
        irq=answer.get_attr("NAPI_IRQ"),
        pid=answer.get_attr("NAPI_PID"),
        defer_hard_irqs=answer.get_attr("NAPI_DEFER_HARD_IRQS"),
        gro_flush_timeout_ns=number("NAPI_GRO_FLUSH_TIMEOUT"),
        irq_suspend_timeout_ns=number("NAPI_IRQ_SUSPEND_TIMEOUT"),
    )


_LITTLE = memoryview(b"\1\0").cast("H")[0] == 1


def set_napi(
    napi_id: int,
    *,
    defer_hard_irqs: int | None = None,
    gro_flush_timeout_ns: int | None = None,
    irq_suspend_timeout_ns: int | None = None,
) -> None:
    """Set the interrupt deferral of one NAPI instance; what is None stays. Needs CAP_NET_ADMIN.

    SetupError: no such instance (ENOENT), a kernel before 6.13 (EOPNOTSUPP), not allowed.
    """
    order = "little" if _LITTLE else "big"
    attributes: list[tuple[str, Any]] = [("NAPI_ID", napi_id)]
    if defer_hard_irqs is not None:
        attributes.append(("NAPI_DEFER_HARD_IRQS", defer_hard_irqs))
    for name, value in (
        ("NAPI_GRO_FLUSH_TIMEOUT", gro_flush_timeout_ns),
        ("NAPI_IRQ_SUSPEND_TIMEOUT", irq_suspend_timeout_ns),
    ):
        if value is not None:
            attributes.append((name, value.to_bytes(8, order)))  # type: ignore[arg-type]
    _ask(_Napi, CMD_NAPI_SET, attributes, f"set NAPI instance {napi_id}", write=True)


def _ask(
    form: type[Any],
    command: int,
    attributes: list[tuple[str, Any]],
    what: str,
    *,
    dump: bool = False,
    write: bool = False,
) -> list[Any] | None:
    """One request. None: this kernel does not know it (never for a write, which then raises)."""
    flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else NLM_F_ACK if write else 0)
    try:
        with GenericNetlinkSocket() as sock:
            try:
                sock.bind("netdev", form)
            except NetlinkError as error:
                if error.code == errno.ENOENT and not write:  # no such family
                    return None
                raise
            message = form()
            message["cmd"], message["version"] = command, 1
            message["attrs"] = attributes
            return list(sock.nlm_request(message, msg_type=sock.prid, msg_flags=flags))
    except NetlinkError as error:
        if not write and error.code in _OLDER:
            return None
        raise SetupError(what, _reason(error.code), errno=error.code) from None


def _reason(code: int) -> str:
    if code in (errno.EOPNOTSUPP, errno.ENOTSUP):
        return f"the kernel has no such command (Linux {SINCE['set_napi']} has)"
    return os.strerror(code)
