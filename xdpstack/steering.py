"""The filter that a program's ports on an interface share: found or loaded, and rules in it for a time."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from xdpstack.bpf import Filter, ours
from xdpstack.dispatcher import PRIORITY
from xdpstack.links import CARRIER_SECONDS
from xdpstack.port import row_of

__all__ = ["add_rule", "filter_words", "steering"]


def steering(
    interface: str,
    options: Mapping[str, Any],
    *,
    force: bool = False,
    carrier_wait: float = CARRIER_SECONDS,
) -> Filter:
    """The filter that ``xdpstack load`` left on an interface, else one of our own that ends with us; by the
    port's ``filter``, ``stamps``, ``dispatcher``, ``priority`` and ``metadata``, which the one that is
    there must ask for, too."""
    words = filter_words(options)
    if ours(interface):
        return Filter.open_pinned(interface).asking(words["metadata"])
    return Filter.load(
        interface,
        mode=words["filter"],
        stamp=words["stamps"],
        force=force,
        carrier_wait=carrier_wait,
        dispatcher=words["dispatcher"],
        priority=words["priority"],
        metadata=words["metadata"],
        row=row_of(interface, options),
    )


def filter_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """The filter's settings among a port's options, what is left out filled in."""
    return {
        "filter": str(options.get("filter", "auto")),
        "stamps": bool(options.get("stamps", True)),
        "dispatcher": bool(options.get("dispatcher", False)),
        "priority": int(options.get("priority", PRIORITY)),
        "metadata": sorted(set(options.get("metadata", ()))),
    }


def add_rule(undo: contextlib.ExitStack, steer: Filter, rule: str) -> None:
    """Put a rule in force, for as long as ``undo`` is open: in a pinned filter it comes before the others."""
    if not steer.is_pinned:
        steer.add_rule(rule)
        return
    there = steer.rules  # before them: what runs now has asked for these flows
    number = steer.add_rule(rule, before=there[0].id if there else None)
    undo.callback(steer.delete_rule, number)
