"""A network namespace that a lab holds: entering it, its links and routes by netlink, programs in it.

Entering is plain ``setns`` of the network namespace, a thread at a time: mounts stay as they are, so bpffs
is seen (``ip netns exec`` hides it) and /sys/class/net still shows the host's links; ask netlink instead.

Programs started here are killed by the kernel when the *thread* that started them ends (PR_SET_PDEATHSIG):
start them from a thread that lives as long as they should.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool

from xdpstack.errors import SetupError
from xdpstack.lab import host

if TYPE_CHECKING:
    from xdpstack.lab import Lab

__all__ = ["Child", "LinkEnd", "Namespace"]

_OFFLOADS = (
    "tx-checksum-",
    "tx-scatter-gather",
    "tx-tcp",
    "tx-udp",
    "tx-generic-seg",
    "tx-gso",
    "rx-gro",
    "rx-lro",
)
"""Features by prefix that hide the wire from an AF_XDP end: partial checksums, super-packets, merged
packets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEnd:
    """One end of a veth pair."""

    name: str
    index: int
    mac: str
    address: str | None
    """IPv4 address without its prefix length, or None."""
    mtu: int
    queues: int


class Child:
    """A process that a lab started: its own process group, killed with the thread that started it."""

    def __init__(self, pid: int, what: str) -> None:
        self.pid = pid
        self.what = what
        self.returncode: int | None = None

    def __repr__(self) -> str:
        return f"<Child {self.pid} {self.what} {'runs' if self.poll() is None else self.returncode}>"

    def poll(self) -> int | None:
        """The exit code (negative: the signal that ended it), None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.returncode = 0
            else:
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code; TimeoutError after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.0005
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.what} (process {self.pid}) still runs after {timeout} s")
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now."""
        self.signal(signal.SIGKILL)


class Namespace:
    """One network namespace of a lab. Make it by :meth:`Lab.namespace`; it lives as long as the lab."""

    def __init__(self, lab: Lab, name: str, fd: int, path: Path | None = None) -> None:
        self.lab = lab
        self.name = name
        self.fd = fd
        self.path = path
        """Where the namespace is mounted, when it has a name on this host."""
        self.inode = os.fstat(fd).st_ino
        self.cookie = host.netns_cookie(fd)
        """Never used twice between two boots; pinned BPF objects are named by it."""
        self._children: list[Child | subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"<Namespace {self.name} of lab {self.lab.name!r}, cookie {self.cookie}>"

    # -- entering --

    @contextlib.contextmanager
    def enter(self) -> Iterator[Namespace]:
        """The calling thread is in this namespace within the block; sockets opened there stay there."""
        before = host.open_current()
        try:
            host.setns(self.fd)
            try:
                yield self
            finally:
                host.setns(before)
        finally:
            os.close(before)

    @contextlib.contextmanager
    def netlink(self) -> Iterator[Any]:
        """pyroute2's IPRoute in this namespace."""
        with self.enter(), IPRoute() as route:
            yield route

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, proto: int = 0
    ) -> socket.socket:
        """A socket of this namespace; use it from any thread."""
        with self.enter():
            return socket.socket(family, kind, proto)

    # -- programs --

    def popen(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, **more: Any) -> Any:
        """Start a program in this namespace: a subprocess.Popen in a process group of its own."""
        parent, fd = os.getpid(), self.fd

        def before_exec() -> None:
            host.die_with_parent(parent)
            host.setns(fd)

        marked = {**(os.environ if env is None else env), **self.lab.mark}
        child = subprocess.Popen(command, env=marked, preexec_fn=before_exec, process_group=0, **more)
        self._children.append(child)
        return child

    def run(
        self, command: Sequence[str], *, timeout: float = 30.0, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end and return its output as text; CalledProcessError when it fails."""
        with self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more) as child:
            try:
                out, err = child.communicate(timeout=timeout)
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, list(command), out, err)
        return subprocess.CompletedProcess(list(command), 0, out, err)

    def fork(self, work: Callable[..., object], *args: Any, **more: Any) -> Child:
        """Run ``work(*args, **more)`` in a forked process in this namespace.

        Its exit code is what ``work`` returns (None is 0), 1 with a traceback when it raises.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._forked(parent, work, args, more)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        child = Child(pid, getattr(work, "__qualname__", repr(work)))
        self._children.append(child)
        return child

    def _forked(self, parent: int, work: Callable[..., object], args: Any, more: Any) -> None:
        code = 1
        try:
            host.die_with_parent(parent)
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(self.lab.mark)
            host.setns(self.fd)
            outcome = work(*args, **more)
            code = outcome if isinstance(outcome, int) else 0
        except KeyboardInterrupt:
            code = 130
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code & 0xFF)

    # -- settings --

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read, or set and read back, one of this namespace's sysctls, e.g.
        ``net.ipv4.igmp_max_memberships``.

        A dot inside an interface's name is written as a slash, as sysctl(8) has it.
        """
        path = Path("/proc/sys") / "/".join(part.replace("/", ".") for part in name.split("."))
        with self.enter():
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

    def link(self, name: str) -> Any:
        """What netlink says of a link; SetupError when there is none of that name."""
        with self.netlink() as route:
            found = route.get_links(ifname=name)
            if not found:
                raise SetupError(f"link {name} in namespace {self.name}", "there is none")
            return found[0]

    def wait_carrier(self, *names: str, timeout: float = 5.0) -> None:
        """Wait until links are up with carrier; attaching an XDP program may take the carrier for a moment.

        A link whose queueing discipline is still ``noop`` drops what is sent. The operational state is not
        asked: the kernel brings it up to date once a second only.
        """

        def ready(link: Any) -> bool:
            carrier, discipline = link.get_attr("IFLA_CARRIER"), link.get_attr("IFLA_QDISC")
            return bool(link.get("state") == "up" and carrier == 1 and discipline != "noop")

        deadline = time.monotonic() + timeout
        with self.netlink() as route:
            waiting = list(names)
            while waiting := [name for name in waiting if not any(map(ready, route.get_links(ifname=name)))]:
                if time.monotonic() > deadline:
                    raise SetupError(
                        f"links {', '.join(waiting)} of {self.name}", f"no carrier after {timeout} s"
                    )
                time.sleep(0.002)

    def set_offloads(self, name: str, on: bool) -> list[str]:
        """Switch checksum, segmentation and merging offloads of a link; returns the names that changed."""
        with self.enter():
            tool = IoctlEthtool(name)
            features = tool.get_features()
            changed = [
                feature
                for feature, active, available, *_ in features
                if feature.startswith(_OFFLOADS) and available and active != on
            ]
            for feature in changed:
                features.set_value(feature, on)
            tool.set_features(features)
        return changed

    def offloads(self, name: str) -> dict[str, bool]:
        """The offloads of a link that :meth:`set_offloads` switches, and whether each is on."""
        with self.enter():
            features = IoctlEthtool(name).get_features()
            return {
                feature: bool(active)
                for feature, active, available, *_ in features
                if feature.startswith(_OFFLOADS) and available
            }

    def neighbour(self, link: str, address: str, mac: str) -> None:
        """Fix the link address of an IPv4 or IPv6 neighbour, so that no resolution goes over the wire."""
        with self.netlink() as route:
            route.neigh(
                "replace",
                dst=address,
                lladdr=mac,
                ifindex=route.link_lookup(ifname=link)[0],
                state="permanent",
            )

    def route(self, destination: str, link: str) -> None:
        """Add a route by link, e.g. ``route("224.0.0.0/4", "v0")`` for multicast."""
        with self.netlink() as route:
            route.route("replace", dst=destination, oif=route.link_lookup(ifname=link)[0])

    # -- the end --

    def children(self) -> list[int]:
        """The processes that this namespace started and that still run."""
        return [child.pid for child in self._children if child.poll() is None]

    def close(self, grace: float) -> None:
        """End every child: SIGTERM, ``grace`` seconds, SIGKILL to its process group. The lab calls it."""
        running = [child for child in self._children if child.poll() is None]
        for child in running:
            child.terminate()
        deadline = time.monotonic() + grace
        for child in running:
            while child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            if child.returncode is None:  # not reaped, so its number is still its own
                with contextlib.suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)
                with contextlib.suppress(Exception):
                    child.wait(timeout=2.0)
        self._children.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
