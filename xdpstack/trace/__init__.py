"""What the kernel does with packets on their way to us, counted by bcc probes on tracepoints.

    with Tracer() as tracer:
        ...                        # traffic
        print(tracer.counts())     # since the start, for the whole machine

XDP redirects, their errors and exceptions by interface and program; NAPI polls by queue; softirq time by CPU;
kicks and wake-ups of AF_XDP sockets. Needs root, Debian's python3-bpfcc and kernel headers (another
version's serve); SetupError says in one sentence what is missing. A probe costs some 100 ns an event: not
for a host that trades.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path
from typing import Any, Self

from xdpstack import netdev
from xdpstack.bpf import attached
from xdpstack.errors import SetupError
from xdpstack.trace import headers
from xdpstack.trace.btf import member_offset

__all__ = ["Tracer"]

PROBES = Path(__file__).with_name("probes.c")
EVENTS = (
    "xdp/xdp_redirect", "xdp/xdp_redirect_err", "xdp/xdp_exception", "xdp/xdp_bulk_tx",
    "xdp/xdp_devmap_xmit", "napi/napi_poll", "irq/softirq_entry", "irq/softirq_exit",
    "syscalls/sys_enter_sendto", "syscalls/sys_exit_sendto", "syscalls/sys_enter_recvfrom",
    "syscalls/sys_exit_recvfrom",
)  # fmt: skip
WAKEUPS = "sock/sk_data_ready"  # Linux 6.3
ACTIONS = ("aborted", "drop", "pass", "tx", "redirect")  # enum xdp_action
# enum of include/linux/interrupt.h
VECTORS = (
    "hi", "timer", "net-tx", "net-rx", "block", "irq-poll", "tasklet", "sched", "hrtimer", "rcu",
)  # fmt: skip
AF_XDP, SO_DOMAIN = 44, 39
PIDFD_OPEN, PIDFD_GETFD = 434, 438


class Tracer:
    """Probes from ``start`` (or ``with``) to ``close``; the kernel removes them when we are killed."""

    def __init__(self, interface: str | None = None) -> None:
        """``interface``: only its redirects, sends and polls. SetupError when there is no such one."""
        self.interface = interface
        self.headers: headers.Headers | None = None
        self._bpf: Any = None
        self._began = 0.0
        self._sockets: dict[tuple[int, int], bool] = {}
        self._programs: set[int] = set()  # seen on the interface
        self._napis: set[int] = set()
        if interface is not None:
            try:
                socket.if_nametoindex(interface)
            except OSError:
                raise SetupError(
                    f"trace {interface}", "there is no such interface", errno=errno.ENODEV
                ) from None

    def start(self) -> Self:
        """Compile and attach, which takes about a second. SetupError: what this host lacks."""
        if os.geteuid() != 0:
            raise SetupError("trace", "not root", "run it by sudo", errno.EPERM)
        try:
            from bcc import BPF
        except ImportError:
            reason = (
                "Python has no module bcc: python3-bpfcc is not installed, or this is not Debian's Python"
            )
            raise SetupError("trace", reason, headers.INSTALL) from None
        self.headers = headers.find()
        events = headers.need_tracefs() / "events"
        missing = [event for event in EVENTS if not (events / event).exists()]
        if missing:
            raise SetupError("trace", f"this kernel lacks the tracepoint {missing[0]}", "boot another")
        offset = member_offset("napi_struct", "napi_id")
        flags = [f"-DNAPI_ID_OFFSET={-1 if offset is None else offset}"]
        flags += ["-DSK_DATA_READY"] if (events / WAKEUPS).exists() else []
        with headers.Tree(self.headers), _quiet() as said:
            try:
                self._bpf = BPF(text=PROBES.read_text(), cflags=flags)
            except Exception as error:  # bcc raises plain Exception
                lines = (said() or str(error)).strip().splitlines()
                first = next((line for line in lines if "error" in line), lines[0] if lines else str(error))
                raise SetupError(
                    "trace: compile and attach the probes", first, f"headers: {self.headers.version}"
                ) from None
        self._began = time.monotonic()
        self._look()
        return self

    def close(self) -> None:
        """Take the probes away."""
        if self._bpf is not None:
            self._bpf.cleanup()
            self._bpf = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Tracer {self.interface or 'of all interfaces'}: {'off' if self._bpf is None else 'on'}>"

    # -- counts --

    def counts(self) -> dict[str, Any]:
        """Everything since the start; keys as ``xdpstack trace --json`` documents them."""
        assert self.headers is not None
        self._look()
        return {
            "seconds": round(time.monotonic() - self._began, 3),
            "headers": self.headers.version,
            "borrowed_headers": self.headers.borrowed,
            "xdp": self._xdp(),
            "sends": self._sends(),
            "napi": self._napi(),
            "softirq": self._softirq(),
            "kicks": self._kicks(),
            "wakeups": self._wakeups(),
        }

    def _look(self) -> None:
        """Remember what belongs to the interface. A tracepoint gives numbers and names that another network
        namespace may use, too; ids of programs and NAPI instances are the machine's own."""
        if self.interface is None:
            return
        with contextlib.suppress(OSError):  # it may go while we trace
            program = attached(self.interface)
            self._programs |= {program.prog_id} if program else set()
            napis = netdev.napis(socket.if_nametoindex(self.interface)) or []
            self._napis |= {napi.id for napi in napis}

    def _xdp(self) -> list[dict[str, Any]]:
        found = []
        for key, value in self._bpf["verdicts"].items():
            name = _interface(key.ifindex)
            if self.interface is None or (self.interface == name and key.program in self._programs):
                found.append(
                    {
                        "interface": name,
                        "program": key.program,
                        "what": "exception" if key.kind else "redirect",
                        "action": ACTIONS[key.act] if key.act < len(ACTIONS) else str(key.act),
                        "error": _error(key.error),
                        "map": key.map,
                        "packets": value.value,
                    }
                )
        return sorted(found, key=lambda row: (row["interface"], row["what"], -row["packets"]))

    def _sends(self) -> list[dict[str, Any]]:
        found = []
        for key, value in self._bpf["sends"].items():
            name, origin = (
                _interface(key.ifindex),
                _interface(getattr(key, "from")) if getattr(key, "from") else "",
            )
            if self.interface in (None, name, origin):
                found.append(
                    {
                        "interface": name,
                        "from": origin,
                        "error": _error(key.error),
                        "sent": value.sent,
                        "dropped": value.dropped,
                    }
                )
        return sorted(found, key=lambda row: (row["interface"], row["from"], row["error"]))

    def _napi(self) -> list[dict[str, Any]]:
        found = []
        queues: dict[str, dict[int, int]] = {}
        for key, value in self._bpf["napis"].items():
            device = key.device.decode(errors="replace")
            ours = not self._napis or not key.napi or key.napi in self._napis
            if self.interface is None or (self.interface == device and ours):
                if device not in queues:
                    queues[device] = _queues(device)
                found.append(
                    {
                        "device": device,
                        "napi": key.napi or None,
                        "queue": queues[device].get(key.napi),
                        "polls": value.polls,
                        "packets": value.packets,
                        "full": value.full,
                        "empty": value.empty,
                    }
                )
        return sorted(found, key=lambda row: (row["device"], row["napi"] or 0))

    def _softirq(self) -> list[dict[str, Any]]:
        found = [
            {
                "cpu": key.cpu,
                "vector": VECTORS[key.number] if key.number < len(VECTORS) else str(key.number),
                "runs": value.runs,
                "ns": value.ns,
                "longest_ns": value.longest_ns,
            }
            for key, value in self._bpf["softirqs"].items()
        ]
        return sorted(found, key=lambda row: (row["cpu"], row["vector"]))

    def _kicks(self) -> list[dict[str, Any]]:
        found = []
        for key, value in self._bpf["kicks"].items():
            if self._is_xsk(key.process, key.fd):
                found.append(
                    {
                        "pid": key.process,
                        "process": _text(f"/proc/{key.process}/comm") or "?",
                        "fd": key.fd,
                        "kind": "tx" if key.sends else "rx",
                        "error": _error(key.error),
                        "calls": value.value,
                    }
                )
        return sorted(found, key=lambda row: (row["pid"], row["fd"], row["kind"], row["error"]))

    def _wakeups(self) -> dict[str, int] | None:
        """How often AF_XDP sockets told their readers; None before Linux 6.3."""
        try:
            table = self._bpf["wakeups"]
        except KeyError:
            return None
        counts = [value.value for value in table.values()]
        return {"sockets": len(counts), "calls": sum(counts)}

    def _is_xsk(self, process: int, fd: int) -> bool:
        """Whether that descriptor is an AF_XDP socket; what can no longer be asked is believed to be one."""
        known = self._sockets.get((process, fd))
        if known is None:
            known = self._sockets[process, fd] = _domain(process, fd) in (None, AF_XDP)
        return known


def _domain(process: int, fd: int) -> int | None:
    """The family of another process's socket; None when that process is gone, or its descriptor closed."""
    held = headers._libc.syscall(PIDFD_OPEN, process, 0)
    if held < 0:
        return None
    try:
        copy = headers._libc.syscall(PIDFD_GETFD, held, fd, 0)
        if copy < 0:
            return None
        with socket.socket(fileno=os.dup(copy)) as sock:
            os.close(copy)
            return sock.getsockopt(socket.SOL_SOCKET, SO_DOMAIN)
    except OSError:
        return None
    finally:
        os.close(held)


def _interface(index: int) -> str:
    """Its name in this network namespace; the number of one that is not here."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)


def _error(number: int) -> str:
    """The name of an error; empty for none."""
    return errno.errorcode.get(-number, str(number)) if number else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _queues(device: str) -> dict[int, int]:
    """The receive queue of each NAPI instance of a device; empty where it cannot be known.

    Drivers link the two (Linux 6.8). Where one does not, as veth, and there are as many instances as queues,
    their ids are in the order of the queues, as the driver made them.
    """
    with contextlib.suppress(OSError):
        index = socket.if_nametoindex(device)
        queues = [queue for queue in netdev.queues(index) or [] if queue.kind == "rx"]
        linked = {queue.napi_id: queue.id for queue in queues if queue.napi_id is not None}
        napis = sorted(napi.id for napi in netdev.napis(index) or [])
        if linked or len(napis) != len(queues):
            return linked
        return {napi: queue.id for napi, queue in zip(napis, queues, strict=True)}
    return {}


@contextlib.contextmanager
def _quiet() -> Any:
    """What clang and bcc write to descriptor 2 goes to a file, which the yielded function reads."""
    with open(os.memfd_create("xdpstack-trace"), "rb+", buffering=0) as kept:
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)

        def said() -> str:
            return os.pread(kept.fileno(), 1 << 16, 0).decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
