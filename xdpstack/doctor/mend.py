"""``--fix`` and ``--restore``: the reversible remedies, noted in the journal before they are made.

The journal and the way back are those of ``xdpstack.nic``: on disk before the change, read again before it is
undone, and what somebody else has changed since is left to him. Two things differ. These changes have no
process that owns them: they stay until ``restore``, and the next start of a port leaves them alone. And what
is the host's, not a network namespace's, has a journal of its own that every namespace finds.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

from xdpstack.doctor.check import Change, Check
from xdpstack.errors import SetupError
from xdpstack.nic import surface as nic
from xdpstack.nic.change import HOST, Changes
from xdpstack.nic.change import restore as undo
from xdpstack.nic.journal import KEPT, Entry, Journal
from xdpstack.nic.operations import Affinity, DeviceNapi, Feature, File, LinkMtu, LinkUp, Napi, Operation
from xdpstack.pins import clean_up_dead

__all__ = ["HOST_JOURNAL", "Mended", "mend", "restore"]

HOST_JOURNAL = 0  # no network namespace has this cookie


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """One change that was made, or (``error`` says why) could not be."""

    check: str
    what: str
    before: str
    after: str
    error: str = ""


def mend(
    checks: Sequence[Check], *, surface: nic.Surface | None = None, journals: Sequence[Journal] = ()
) -> list[Mended]:
    """Make the changes of these checks, in order; one that fails is undone, and the others go on.

    ``journals``: the host's and the namespace's, for tests. SetupError: not root, or no journal can be kept.
    """
    surface = surface or nic.Host()
    ours, theirs = journals or _journals(surface)
    if isinstance(surface, nic.Host) and os.geteuid() != 0:
        raise SetupError("doctor --fix", "not root", "run it by sudo")
    return [_make(check.name, change, surface, ours, theirs) for check in checks for change in check.changes]


def restore(
    *, surface: nic.Surface | None = None, journals: Sequence[Journal] = ()
) -> tuple[list[Mended], list[str]]:
    """Put back what ``mend`` did and what dead processes left, last change first.

    Returns what was put back, and a sentence for each that could not be. SetupError: not root.
    """
    surface = surface or nic.Host()
    if isinstance(surface, nic.Host) and os.geteuid() != 0:
        raise SetupError("doctor --restore", "not root", "run it by sudo")
    done: list[Mended] = []
    left: list[str] = []
    for journal in reversed(journals or _journals(surface)):
        undone, sentences = undo(surface, journal, kept=True)
        done += [_undone(entry) for entry in undone]
        left += sentences
    if isinstance(surface, nic.Host):
        done += [
            Mended(
                check="", what=f"{name} filter in a dispatcher", before="a dead process's", after="taken out"
            )
            for name in clean_up_dead()
        ]
    return done, left


def _journals(surface: nic.Surface) -> tuple[Journal, Journal]:
    return Journal(HOST_JOURNAL), Journal(surface.cookie())


def _make(check: str, change: Change, surface: nic.Surface, ours: Journal, theirs: Journal) -> Mended:
    operation = _operation(change)
    link = surface.link(change.subject) if change.subject else HOST
    if link is None:
        return Mended(check=check, what=str(change), before="", after="", error="the interface is gone")
    # Another network namespace does not see these files, and would take them for gone.
    local = change.subject or change.key.startswith("/proc/sys/net/")
    changes = Changes(link, surface, theirs if local else ours, owner=KEPT)
    try:
        before = _words(operation.read(surface, link))
        after = _words(changes.make(operation))
    except (OSError, SetupError) as error:
        return Mended(check=check, what=str(change), before="", after="", error=str(error))
    return Mended(check=check, what=str(change), before=before, after=after)


def _operation(change: Change) -> Operation:
    """The setting of a change, by the classes that the journal can make again."""
    if change.kind == "feature":
        return Feature(change.key, change.value == "on")
    if change.kind == "napi":
        defer, flush = map(int, change.value.split())
        return Napi(int(change.key), defer, flush) if change.key else DeviceNapi(defer, flush)
    if change.kind == "link":
        return LinkUp(change.value == "up") if change.key == "state" else LinkMtu(int(change.value))
    irq = re.fullmatch(r"/proc/irq/(\d+)/smp_affinity_list", change.key)
    return Affinity(int(irq[1]), change.value) if irq else File(change.key, change.value)


def _undone(entry: Entry) -> Mended:
    what = f"{entry.interface} {entry.operation} {' '.join(map(str, entry.key))}".strip()
    return Mended(check="", what=what, before=_words(entry.taken), after=_words(entry.before))


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
