"""Making a change and undoing it, with the journal in between; and undoing what the dead left.

The order is: read what is there, note it, make the change, note what came of it. Undoing reads again: what is
as it was needs nothing; what somebody else has changed since is left to him, and said.
"""

from __future__ import annotations

import errno
import logging
import operator
import os
import uuid
from typing import Any

from xdpstack.errors import SetupError
from xdpstack.nic import ethtool
from xdpstack.nic.journal import KEPT, Entry, Held, Journal, is_alive, this_netns, this_process
from xdpstack.nic.needs import holding
from xdpstack.nic.operations import OPERATIONS, Gone, Operation
from xdpstack.nic.surface import Host, Link, Surface

__all__ = ["HOST", "Changes", "pending", "restore"]

log = logging.getLogger("xdpstack.nic")

HOST = Link(name="this host", index=0, mac="", mtu=0, kind="", is_loopback=False, master="", lower="")
"""In place of an interface, for settings that belong to none."""


class Changes:
    """The changes that one owner made to one interface. Undo them by :meth:`undo`, twice calmly."""

    def __init__(
        self,
        link: Link,
        surface: Surface | None = None,
        journal: Journal | None = None,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """``owner``: this process, or ``KEPT`` for changes that stay until ``restore(kept=True)``."""
        self.link = link
        self.surface: Surface = surface or Host()
        self.journal = journal or Journal(self.surface.cookie())
        self._owner = owner
        self._driver = "" if link.index == 0 else ethtool.driver(self.surface, link.name)
        self._mine: list[str] = []  # ids of entries, in order

    def make(self, operation: Operation) -> Any:
        """Make one change. Returns the value that came of it. SetupError: nothing was changed."""
        with self.journal.held() as held:
            before = self._try(operation, None, lambda: operation.read(self.surface, self.link))
            wanted = self._try(operation, before, lambda: operation.want(self.surface, self.link, before))
            owner, started = self._owner or this_process()
            entry = Entry(
                id=uuid.uuid4().hex,
                owner=owner,
                started=started,
                operation=operation.name,
                index=self.link.index,
                interface=self.link.name,
                driver=self._driver,
                key=operation.key,
                before=before,
                wanted=wanted,
                netns=this_netns(),
            )
            self._refuse_loss(held, operation, entry)
            self._mine.append(entry.id)  # before it is noted: nothing may come between and be forgotten
            held.add(entry)
            try:
                self._try(operation, wanted, lambda: operation.write(self.surface, self.link, wanted))
                entry.taken = self._try(operation, wanted, lambda: operation.read(self.surface, self.link))
                entry.is_made = True
            except SetupError:
                self._mine.pop()
                for sentence in _undo(held, self.surface, entry):  # half of it may be made
                    log.warning("%s", sentence)
                raise
            held.save()
            return entry.taken

    def follow(self, link: Link) -> None:
        """The same device was in another namespace, and is ``link`` now."""
        self.link = link
        if self._mine:
            with self.journal.held() as held:
                for entry in held.entries:
                    if entry.id in self._mine:
                        entry.index, entry.interface = link.index, link.name
                held.save()

    def rests_on(self, operation: str) -> bool:
        """Whether somebody else's change of that kind to this interface is in force."""
        return any(
            entry.operation == operation and entry.index == self.link.index and entry.id not in self._mine
            for entry in self.journal.entries()
        )

    def _refuse_loss(self, held: Held, operation: Operation, entry: Entry) -> None:
        """What others rest on stays."""
        lost = holding(held.entries, entry, entry.wanted)
        if lost:
            by = f"process {lost[0].owner}" if lost[0].owner else "doctor --fix"
            raise SetupError(
                operation.say(self.link.name, entry.wanted),
                f"what {by} has made there would be lost ({lost[0].operation})",
                "end it first",
                errno.EBUSY,
            )

    def _try(self, operation: Operation, value: Any, step: Any) -> Any:
        try:
            return step()
        except Gone:
            raise SetupError(
                f"change {operation.name} of {self.link.name}", "it is gone", "is the interface up?"
            ) from None
        except SetupError:
            raise
        except OSError as error:
            tried = operation.say(self.link.name, value) if value is not None else ""
            what = f"{tried}" if tried else f"read {operation.name} of {self.link.name}"
            reason = os.strerror(error.errno) if error.errno else str(error)
            if error.strerror and error.strerror != reason:
                reason = f"{reason}: {error.strerror}"
            driver = f" (driver {self._driver})" if self._driver else ""
            raise SetupError(what, f"{reason}{driver}", errno=error.errno) from None

    def undo(self) -> list[str]:
        """Put everything back, last change first. Returns what could not be, a sentence each. What others
        rest on stays for the last of them to put back; what was refused is tried again, too, whoever leaves
        next."""
        if not self._mine:
            return []
        said = []
        with self.journal.held() as held:
            for entry in reversed(held.entries.copy()):
                if entry.id in self._mine and (entry.owner, entry.started) == (self._owner or this_process()):
                    said += _undo(held, self.surface, entry)
            self._mine = [entry.id for entry in held.entries if entry.id in self._mine]
            _undo_left(held, self.surface)
        for sentence in said:
            log.warning("%s", sentence)
        return said

    def __repr__(self) -> str:
        return f"<Changes of {self.link.name}: {len(self._mine)}>"


def _undo(held: Held, surface: Surface, entry: Entry) -> list[str]:
    """Undo one change and forget it. What could not be put back stays in the journal, and is said."""
    later = held.later(entry)
    if later is not None:  # somebody builds on it: he will put back what was before us both
        later.before = entry.before
        held.drop(entry)
        return []
    operation: Operation = OPERATIONS[entry.operation](*entry.key)
    name = entry.interface
    try:
        link = surface.link(entry.index) if entry.index else HOST
        if link is None or (link is not HOST and ethtool.driver(surface, link.name) != entry.driver):
            held.drop(entry)  # the device went, and its settings with it
            return []
        name = link.name
        now, same = operation.read(surface, link), getattr(operation, "same", operator.eq)
        if not same(now, entry.before):
            if entry.is_made and not same(now, entry.taken):
                reset = same(now, held.first(entry).before)  # as it was before all of us
                held.drop(entry)
                if reset:
                    return []
                was = operation.say(name, entry.before)
                return [f"{name}: {entry.operation} was changed by somebody else since; it was: {was}"]
            if holding(held.entries, entry, entry.before):
                held.leave(entry)
                return []
            if (
                entry.is_made
            ):  # a write may take several steps: whoever is killed between them has made nothing
                entry.is_made = False
                held.save()
            operation.write(surface, link, entry.before)
    except Gone:
        pass
    except OSError as error:
        if operation.name == "rule" and error.errno == errno.EOPNOTSUPP:
            held.drop(entry)  # somebody turned the table off, and drivers forget its rules then
            return []
        by_hand = operation.say(name, entry.before)
        held.leave(entry)
        return [f"{name}: cannot put back {entry.operation}: {error}; by hand: {by_hand}"]
    held.drop(entry)
    return []


def _undo_left(held: Held, surface: Surface) -> None:
    """Try again what its owner could not put back: what it waited for may be gone."""
    more = True
    while more:
        before = len(held.entries)
        for entry in reversed([entry for entry in held.entries if entry.is_left]):
            _undo(held, surface, entry)  # its owner has said why it was refused
        more = len(held.entries) < before


_WITHOUT_A_HOME = ("", "veth", "dummy", "tun", "macvlan", "ipvlan")
"""Drivers whose devices end with their namespace."""


def _went_home(entry: Entry) -> str:
    """What is to be said of a change whose network namespace ended; devices of software ended with it."""
    if entry.driver in _WITHOUT_A_HOME:
        return ""
    by_hand = OPERATIONS[entry.operation](*entry.key).say(entry.interface, entry.before)
    return (
        f"{entry.interface}: its network namespace ended with {entry.operation} changed; hardware is back "
        f"in the host's namespace, as it was then; by hand: {by_hand}"
    )


def _is_over(entry: Entry, kept: bool = False) -> bool:
    return entry.is_left or not is_alive(entry) or (kept and (entry.owner, entry.started) == KEPT)


def pending(surface: Surface | None = None, journal: Journal | None = None) -> list[Entry]:
    """Changes in this network namespace whose owner is dead: what :func:`restore` would undo. What somebody
    who lives rests on is not among them."""
    surface = surface or Host()
    journal = journal or Journal(surface.cookie())
    entries = journal.entries()
    living = [entry for entry in entries if not _is_over(entry)]
    return [one for one in entries if _is_over(one) and not holding(living, one, one.before)]


def restore(
    surface: Surface | None = None, journal: Journal | None = None, *, kept: bool = False
) -> tuple[list[Entry], list[str]]:
    """Undo what the dead left in this network namespace, last change first; with ``kept`` also what was
    made to stay.

    Returns the changes that were undone, and a sentence for each that could not be. SetupError: not root.
    """
    surface = surface or Host()
    journal = journal or Journal(surface.cookie())
    undone: list[Entry] = []
    left = [sentence for entry in journal.forget_ended() if (sentence := _went_home(entry))]
    if not journal.is_there:
        return [], left
    refused: list[str] = []
    with journal.held() as held:
        more = True
        while more:  # what was refused for the sake of a later change may pass when that is undone
            more, refused = False, []
            for entry in reversed([entry for entry in held.entries if _is_over(entry, kept)]):
                said = _undo(held, surface, entry)
                if entry in held.entries:
                    refused += said
                    continue
                more = True
                left += said
                if not said:
                    undone.append(entry)
    for entry in undone:
        log.info("%s: %s of dead process %d put back", entry.interface, entry.operation, entry.owner)
    return undone, left + refused
