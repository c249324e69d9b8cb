"""What keeps this host from its best, why it matters, and the command that mends it.

``examine(interface)`` gives a list of :class:`Check`. Every check only looks: none changes anything, and
none needs root (what root alone may see is ``unknown`` and says so). One opens an AF_XDP socket for a
moment, where nobody else uses the interface. :func:`mend` does the reversible remedies and :func:`restore`
takes them back. ``Host(root, answers)`` is another host than this one, for tests.

A subject has a module, ``table`` has a row for each check.
"""

from __future__ import annotations

import dataclasses

from xdpstack.doctor.check import STATES, Change, Check, Finding
from xdpstack.doctor.host import Host, Interface
from xdpstack.doctor.table import HOST_CHECKS, INTERFACE_CHECKS
from xdpstack.errors import ConfigError

__all__ = ["STATES", "Change", "Check", "Host", "examine"]


def examine(interface: str | None = None, *, host: Host | None = None, insist: bool = False) -> list[Check]:
    """Every check of this host, and of one interface of it. ConfigError when there is no such interface.

    ``insist``: try what mode is granted on an interface that carries this host's default route, too; its
    driver may take the link down for that moment.
    """
    host = host or Host()
    subject = None if interface is None else _look_up(host, interface, insist)
    found = [_check(row.name, row.why, row.look(host)) for row in HOST_CHECKS]
    if subject is not None:
        found += [_check(row.name, row.why, row.look(subject)) for row in INTERFACE_CHECKS]
    return found


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
