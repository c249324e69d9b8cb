"""The two trading cores as processes, the venue's order desk, and whether all agree with the engine."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from xdpstack.demo import core
from xdpstack.errors import SetupError
from xdpstack.lab import Lab
from xdpstack.lab.namespace import Child, Namespace
from xdpstack.port import Subscription

__all__ = ["NAMES", "Cores", "Desk", "agreement", "shared"]

NAMES = ("core-1", "core-2")
_DESK_PORT = 26500


def shared(lab: Lab, transport: str) -> tuple[Path, Path]:
    """Where tape and command ring of a run lie; they go with the lab, whoever is killed."""
    stem = f"/dev/shm/xdpstack-{os.getpid()}-demo-{transport}"
    tape, ring = Path(f"{stem}.tape"), Path(f"{stem}.ring")
    for path in (tape, ring, Path(f"{ring}.new")):
        lab.owns(path)
    return tape, ring


class Desk:
    """Where orders arrive: a socket of the venue's."""

    def __init__(self, venue: Namespace, address: str) -> None:
        self.at = Subscription(address=address, port=_DESK_PORT)
        self._socket = venue.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((address, _DESK_PORT))
        self._socket.setblocking(False)
        self.orders: list[str] = []

    def look(self) -> None:
        """Take what arrived."""
        while True:
            try:
                self.orders.append(self._socket.recv(2048).hex())
            except BlockingIOError:
                return

    def close(self) -> None:
        """Open no longer."""
        self._socket.close()


class Cores:
    """Both processes, from their start to what they saw."""

    def __init__(
        self, there: Namespace, files: tuple[Path, Path], desk: Desk, sport: int, folder: Path
    ) -> None:
        """``sport``: the local port that the engine sends orders from."""
        tape, ring = files
        self._folder = folder
        stop, self._stop = os.pipe()
        self._children: dict[str, Child] = {}
        for name, commands in zip(NAMES, (None, ring), strict=True):
            out = folder / f"{name}.json"
            self._children[name] = there.fork(core.main, name, tape, commands, desk.at, sport, stop, out)
        os.close(stop)

    def shut_down(self, trader: Child) -> None:
        """Have the second one command the engine to end, and wait for the trader. SetupError."""
        os.write(self._stop, b"s")
        end = time.monotonic() + 120
        while trader.poll() is None:
            if any(child.poll() for child in self._children.values()):
                self.results()
            if time.monotonic() > end:
                raise SetupError("end the trader by a command", "its engine still runs after 120 s")
            time.sleep(0.02)

    def results(self) -> dict[str, Any]:
        """What both saw. SetupError with their own words when one failed."""
        found = {}
        for name, child in self._children.items():
            code, path = child.wait(120), self._folder / f"{name}.json"
            found[name] = json.loads(path.read_text()) if path.exists() else {"failed": f"exit code {code}"}
            if code or "failed" in found[name]:
                raise SetupError("a trading core failed", str(found[name].get("failed", f"exit code {code}")))
        return found

    def close(self) -> None:
        """End them at once, whatever they do."""
        for child in self._children.values():
            if child.poll() is None:
                child.kill()
                child.wait(5)
        os.close(self._stop)


def agreement(run: dict[str, Any]) -> dict[str, Any]:
    """Both cores saw what the engine gave, byte by byte, and every order came to the desk."""
    faults = []
    for name, mine in run["cores"].items():
        if mine["lost"]:
            faults.append(f"{name} was lapped and lost {mine['lost']} records")
        for feed, seen in run["seen"].items():
            if mine["feeds"][feed] != seen:
                faults.append(
                    f"{name} saw {mine['feeds'][feed]['updates']} updates of {feed}, and not the "
                    f"{seen['updates']} that the engine gave, or others"
                )
            if seen["updates"] != run["feeds"][feed]["updates"]:
                faults.append(f"the engine counts {run['feeds'][feed]['updates']} updates of {feed}")
        if mine["events"] != run["events_raw"]:
            faults.append(f"{name} saw other events than the engine gave")
        if mine["refused"]:
            faults.append(f"{name}: commands were refused: {mine['refused']}")
    asking = run["cores"][NAMES[1]]
    if not asking["orders"]:
        faults.append(f"{NAMES[1]} sent no order")
    if asking["orders"] != run["desk"]:
        faults.append(f"{len(asking['orders'])} orders were sent, and others, or {len(run['desk'])}, came")
    if any(one["answered"] != len(asking["orders"]) + 1 for one in run["cores"].values()):
        faults.append("not every command was answered")  # to all readers; one is the shut-down
    return {"faults": faults, "orders": len(asking["orders"]), "arrived": len(run["desk"])}
