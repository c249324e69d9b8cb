"""A network in a box: namespaces joined by veth pairs, taken away again whatever happens.

    with Lab("demo") as lab:
        venue, trader = lab.namespace("venue"), lab.namespace("trader")
        lab.veth(venue, "v0", "10.77.0.1/24", trader, "t0", "10.77.0.2/24")
        with trader.enter():
            ...                                    # this thread is in the namespace
        player = venue.popen(["ping", "10.77.0.2"])  # dies with us

Life. A lab ends with its ``with`` block: by return, exception, SIGINT or SIGTERM. When its process is
killed, the kernel kills its children (PR_SET_PDEATHSIG), and with the last of them go the namespaces and
the veth pairs; a *warden*, a tiny process that waits for the owner's death, removes what the kernel does not
know to be ours: pinned BPF objects, shared memory, programs that our children left behind. If the warden
was killed as well, the next lab of this host sweeps. Only a *persistent* lab (``xdpstack lab up``) outlives
its process, until ``xdpstack lab down``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path
from types import TracebackType
from typing import Any

from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import host
from xdpstack.lab.host import sweep
from xdpstack.lab.namespace import Child, LinkEnd, Namespace

__all__ = ["Child", "Lab", "LinkEnd", "Namespace", "pair", "sweep"]

_log = logging.getLogger("xdpstack.lab")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_QUIET = {
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv4.igmp_max_memberships": 4096,
}
_NO_IPV6 = {"net.ipv6.conf.all.disable_ipv6": 1, "net.ipv6.conf.default.disable_ipv6": 1}
"""Autoconfiguration, MLD and duplicate detection put frames on the wire that no test asked for."""


class Lab:
    """Namespaces and veth pairs under one name, one life. Root only. Not for use from several threads at
    once."""

    def __init__(
        self, name: str, *, persistent: bool = False, ipv6: bool = False, grace: float = 1.0
    ) -> None:
        """Prepare a lab; nothing is made before ``with`` or :meth:`start`.

        ``persistent``: namespaces get names, stay when this process ends, and go by :meth:`remove`.
        ``grace``: seconds between SIGTERM and SIGKILL for children when the lab ends.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"lab name {name!r}: letters, digits, '-' and '_', at most 63")
        self.name = name
        self.persistent = persistent
        self.ipv6 = ipv6
        self.grace = grace
        self.namespaces: dict[str, Namespace] = {}
        self.links: list[dict[str, Any]] = []
        self._token = uuid.uuid4().hex
        self._owned: list[str] = []
        self._pid = 0
        self._made_at = 0.0
        self._settled = False
        self._warden: subprocess.Popen[bytes] | None = None
        self._old_sigterm: Any = None

    def __repr__(self) -> str:
        return f"<Lab {self.name!r} {'up' if self._pid else 'down'}: {', '.join(self.namespaces) or 'empty'}>"

    @property
    def mark(self) -> dict[str, str]:
        """The environment that marks a process as a child of this lab."""
        return {"XDPSTACK_LAB_TOKEN": self._token}

    @property
    def state_path(self) -> Path:
        """The file that says what this lab made."""
        return host.STATE_DIR / f"{self.name}.json"

    # -- life --

    def __enter__(self) -> Lab:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Lab:
        """Claim the name and sweep up after the dead; SetupError when not root or when the name is taken."""
        if os.geteuid() != 0:
            raise SetupError(f"make lab {self.name}", "not root", "run it by sudo")
        host.sweep()
        self._pid = os.getpid()
        self._made_at = time.time()
        with host.locked():
            held = host.read_state(self.state_path)
            if held and host.alive(held):
                owner = "it is persistent" if held.get("persistent") else f"process {held['owner']} holds it"
                self._pid = 0
                raise SetupError(f"make lab {self.name}", owner, f"xdpstack lab down {self.name}")
            self._save()
        start = host.start_time(self._pid)
        assert start is not None
        self._warden = subprocess.Popen(
            host.warden_command(self._pid, start),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._old_sigterm = signal.signal(signal.SIGTERM, _leave)
        return self

    def close(self) -> None:
        """Take everything away; calm when called again or in a forked child. Persistent labs keep
        standing."""
        if self._pid != os.getpid():
            return
        faults: list[Exception] = []
        for namespace in self.namespaces.values():
            try:
                namespace.close(self.grace)
            except Exception as error:
                faults.append(error)
        if not self._settled:
            with host.locked():
                host.sweep_state(self.state_path, host.read_state(self.state_path))
        self._pid = 0
        if self._warden is not None:
            self._warden.kill()
            self._warden.wait()
            self._warden = None
        if self._old_sigterm is not None:
            signal.signal(signal.SIGTERM, self._old_sigterm)
            self._old_sigterm = None
        self.namespaces.clear()
        if faults:
            raise faults[0]

    def settle(self) -> None:
        """Say that a persistent lab is complete: from now on it outlives this process."""
        if not self.persistent:
            raise ConfigError(f"lab {self.name} is not persistent")
        self._settled = True
        self._save()

    @staticmethod
    def remove(name: str) -> bool:
        """Take a lab away by name, whoever made it; False when there is none."""
        path = host.STATE_DIR / f"{name}.json"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"lab name {name!r}: letters, digits, '-' and '_', at most 63")
        if not path.exists():
            return False
        with host.locked():
            state = host.read_state(path)
            if host.alive(state) and not state.get("persistent"):
                raise SetupError(
                    f"remove lab {name}", f"process {state['owner']} holds it", "end that process"
                )
            host.sweep_state(path, state)
        return True

    @staticmethod
    def attach(name: str, namespace: str) -> int:
        """A descriptor of a namespace of a persistent lab, for ``setns``; the caller closes it."""
        state = host.read_state(host.STATE_DIR / f"{name}.json")
        if not state or not host.alive(state):
            raise SetupError(f"enter lab {name}", "there is none", f"xdpstack lab up {name}")
        found = state["namespaces"].get(namespace)
        if found is None:
            known = ", ".join(state["namespaces"])
            raise ConfigError(f"lab {name} has no namespace {namespace!r}; it has {known}")
        if found["path"] is None:
            raise SetupError(
                f"enter lab {name}", "its namespaces have no names", "make it by: xdpstack lab up"
            )
        return os.open(found["path"], os.O_RDONLY | os.O_CLOEXEC)

    def owns(self, path: str | os.PathLike[str]) -> Path:
        """Have a file, folder or pinned object removed with the lab; say so *before* you make it.

        It must lie under /dev/shm, /sys/fs/bpf, /run/xdpstack or /tmp.
        """
        target = Path(os.path.abspath(path))
        if not str(target).startswith(host.SWEPT_ROOTS):
            raise ConfigError(f"{target} is outside {', '.join(host.SWEPT_ROOTS)}")
        self._owned.append(str(target))
        self._save()
        return target

    def _save(self) -> None:
        host.write_state(
            self.state_path,
            {
                "name": self.name,
                "boot": host.boot_id(),
                "owner": self._pid,
                "start": host.start_time(self._pid),
                "persistent": self._settled,
                "made": self._made_at,
                "token": self._token,
                "namespaces": {
                    ns.name: {
                        "inode": ns.inode,
                        "cookie": ns.cookie,
                        "path": str(ns.path) if ns.path else None,
                    }
                    for ns in self.namespaces.values()
                },
                "links": self.links,
                "owned": self._owned,
            },
        )

    # -- making --

    def namespace(self, name: str) -> Namespace:
        """Make a network namespace with its loopback up and its own noise off."""
        if self._pid != os.getpid():
            raise ConfigError(f"lab {self.name} is not up")
        if not _NAME.fullmatch(name) or name in self.namespaces:
            raise ConfigError(f"namespace name {name!r} is taken or not made of letters, digits, '-' and '_'")
        path = None
        if self.persistent:
            path = self.state_path.with_suffix("") / name
            path.parent.mkdir(parents=True, exist_ok=True)
        made = Namespace(self, name, host.new_namespace(path), path)
        self.namespaces[name] = made
        self._save()
        settings: dict[str, int] = dict(_QUIET)
        if not self.ipv6 and Path("/proc/sys/net/ipv6").exists():
            settings |= _NO_IPV6
        for key, value in settings.items():
            made.sysctl(key, value)
        with made.netlink() as route:
            route.link("set", index=1, state="up")
        return made

    def veth(
        self,
        a: Namespace,
        a_name: str,
        a_address: str | None,
        b: Namespace,
        b_name: str,
        b_address: str | None,
        *,
        queues: int = 1,
        mtu: int = 1500,
        offloads: bool = False,
        neighbours: bool = True,
        multicast: bool = True,
        timeout: float = 5.0,
    ) -> tuple[LinkEnd, LinkEnd]:
        """Join two namespaces by a veth pair and wait until both ends carry.

        Addresses are IPv4 with prefix length ("10.77.0.1/24") or None. ``queues``: receive and transmit
        queues of either end. ``offloads``: leave checksum and segmentation offloads as the kernel has them;
        off, what the kernel sends is complete on the wire. ``neighbours``: fix each other's link address,
        so no ARP is needed. ``multicast``: route 224.0.0.0/4 over the pair.
        """
        ends = [(a, a_name, a_address), (b, b_name, b_address)]
        macs = [self._mac(ns, name) for ns, name, _ in ends]
        count = {"num_tx_queues": queues, "num_rx_queues": queues}
        try:
            with a.netlink() as route:
                peer = {"ifname": b_name, "net_ns_fd": b.fd, "address": macs[1], "mtu": mtu, **count}
                route.link("add", ifname=a_name, kind="veth", address=macs[0], mtu=mtu, peer=peer, **count)
        except Exception as error:  # pyroute2 raises NetlinkError, no OSError in every version
            number = getattr(error, "code", None) or getattr(error, "errno", None)
            raise SetupError(f"make veth {a_name} - {b_name}", str(error), errno=number) from error
        for ns, name, address in ends:
            if not offloads:
                ns.set_offloads(name, False)
            with ns.netlink() as route:
                index = route.link_lookup(ifname=name)[0]
                if address is not None:
                    mine = ip_interface(address)
                    route.addr("add", index=index, address=str(mine.ip), prefixlen=mine.network.prefixlen)
                route.link("set", index=index, state="up")
        for ns, name, address in ends:
            ns.wait_carrier(name, timeout=timeout)
            if multicast and address is not None:
                ns.route("224.0.0.0/4", name)
        if neighbours and a_address is not None and b_address is not None:
            a.neighbour(a_name, str(ip_interface(b_address).ip), macs[1])
            b.neighbour(b_name, str(ip_interface(a_address).ip), macs[0])
        made = []
        for (ns, name, address), mac in zip(ends, macs, strict=True):
            link = ns.link(name)
            plain = None if address is None else str(ip_interface(address).ip)
            made.append(
                LinkEnd(name=name, index=link["index"], mac=mac, address=plain, mtu=mtu, queues=queues)
            )
            self.links.append(
                {"namespace": ns.name, "name": name, "address": address, "mac": mac, "mtu": mtu}
            )
        self._save()
        return made[0], made[1]

    def _mac(self, namespace: Namespace, link: str) -> str:
        """A locally administered address that depends on the names alone, so recordings repeat."""
        digest = hashlib.sha256(f"{namespace.name}/{link}".encode()).digest()[:5]
        return "02:" + ":".join(f"{octet:02x}" for octet in digest)

    def children(self) -> list[int]:
        """The processes of this lab that still run."""
        return [pid for namespace in self.namespaces.values() for pid in namespace.children()]


def pair(
    lab: Lab,
    names: Sequence[str] = ("venue", "trader"),
    links: Sequence[str] = ("v0", "t0"),
    addresses: Sequence[str] = ("10.77.0.1/24", "10.77.0.2/24"),
    **more: Any,
) -> tuple[Namespace, Namespace]:
    """The usual lab: a venue and a trader joined by one veth pair; further arguments go to
    :meth:`Lab.veth`."""
    first, second = lab.namespace(names[0]), lab.namespace(names[1])
    lab.veth(first, links[0], addresses[0], second, links[1], addresses[1], **more)
    return first, second


def _leave(number: int, frame: object) -> None:
    """SIGTERM ends the ``with`` block like an exception, so that everything is put back."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)
