"""What keeps this host from its best, why it matters, and the command that mends it.

``examine(interface)`` gives a list of :class:`Check`. Every check only looks: none changes anything, and
none needs root (what root alone may see is ``unknown`` and says so). One opens an AF_XDP socket for a
moment, where nobody else uses the interface. :func:`mend` does the reversible remedies and :func:`restore`
takes them back. ``Host(root, answers)`` is another host than this one, for tests.

A subject has a module, ``table`` has a row for each check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from xdpstack.doctor.check import STATES, Change, Check, Finding
from xdpstack.doctor.host import Host, Interface
from xdpstack.doctor.mend import Mended, mend, restore
from xdpstack.doctor.table import HOST_CHECKS, INTERFACE_CHECKS
from xdpstack.errors import ConfigError

__all__ = ["STATES", "Change", "Check", "Host", "Mended", "examine", "mend", "restore"]


def examine(
    interface: str | None = None,
    *,
    host: Host | None = None,
    insist: bool = False,
    only: Sequence[str] = (),
) -> list[Check]:
    """Every check of this host, and of one interface of it, or ``only`` those of these names.

    ConfigError: no such interface, no such check. ``insist``: try what mode is granted on an interface that
    carries this host's default route, too; its driver may take the link down for that moment.
    """
    host = host or Host()
    subject = None if interface is None else _look_up(host, interface, insist)
    _known(only, interface)
    found = [_check(row.name, row.why, row.look(host)) for row in HOST_CHECKS if not only or row.name in only]
    if subject is not None:
        rows = [row for row in INTERFACE_CHECKS if not only or row.name in only]
        found += [_check(row.name, row.why, row.look(subject)) for row in rows]
    return found


def _known(only: Sequence[str], interface: str | None) -> None:
    names = [row.name for row in HOST_CHECKS], [row.name for row in INTERFACE_CHECKS]
    for name in only:
        if name not in names[0] + names[1]:
            raise ConfigError(f"there is no check {name!r}; there are: {', '.join(names[0] + names[1])}")
        if interface is None and name in names[1]:
            raise ConfigError(f"the check {name!r} is of an interface: name one")


def _check(name: str, why: str, found: Finding) -> Check:
    return Check(
        name=name, why=why, state=found.state, found=found.found, remedy=found.remedy, changes=found.changes
    )


def _look_up(host: Host, name: str, insist: bool) -> Interface:
    subject = host.interface(name)
    if subject is None:
        known = ", ".join(sorted(host.links())) or "none"
        raise ConfigError(f"there is no interface {name!r}; there are: {known}")
    return dataclasses.replace(subject, link={**subject.link, "insist": insist})
