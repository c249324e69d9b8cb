"""What is closed when its block ends, and what is not."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import xdpstack
from xdpstack.closing import Closing


class Thing(Closing):
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_block_closes_what_it_entered_whether_it_ends_well_or_not() -> None:
    with Thing() as first:
        assert (type(first), first.closed) == (Thing, 0)
    assert first.closed == 1
    second = Thing()
    with pytest.raises(ZeroDivisionError), second:
        _ = 1 // 0
    assert second.closed == 1


def test_everything_that_closes_has_a_close_of_its_own() -> None:
    for module in pkgutil.walk_packages(xdpstack.__path__, "xdpstack."):
        if module.name.rpartition(".")[2] in (
            "node",
            "fleet",
            "bpf",
            "port",
            "ring",
            "stats",
            "dropped",
            "links",
        ):
            importlib.import_module(module.name)

    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    found = below(Closing) - {Closing}
    assert len(found) > 15
    assert [one.__name__ for one in found if one.close is Closing.close] == []
