"""What rests on what: each pair that matters, and some that do not."""

from __future__ import annotations

import pytest

from xdpstack.nic.needs import holding
from xdpstack.tests.test_nic_journal import entry

NTUPLE = entry(id="n", operation="feature", key=["rx-ntuple-filter"], before=False, wanted=True)
CHANNELS = entry(id="c", before={"combined": 4, "rx": 0}, wanted={"combined": 8, "rx": 0})
CONTEXT = entry(id="x", operation="context", key=[[4, 5]], before=[1], wanted=[1, 0], taken=[1, 2])
FEW, MANY = {"combined": 5, "rx": 0}, {"combined": 6, "rx": 0}


def of(operation, key, wanted=None, index=7):
    return entry(id="o", operation=operation, key=key, wanted=wanted, index=index)


def rule(**more):
    return of("rule", [{"dst": "239.1.1.1", "dport": 1, **more}])


@pytest.mark.parametrize(
    ("change", "value", "other", "held"),
    [
        (NTUPLE, False, rule(queue=1), True),
        (NTUPLE, True, rule(queue=1), False),
        (NTUPLE, False, of("channels", []), False),
        (CHANNELS, FEW, rule(queue=5), True),
        (CHANNELS, MANY, rule(queue=5), False),
        (CHANNELS, FEW, rule(context=2), False),  # its table names the queues
        (CHANNELS, FEW, CONTEXT, True),
        (CHANNELS, FEW, of("indirection", [], [0, 5]), True),
        (CHANNELS, FEW, of("indirection", [], None), False),  # the driver's own follows the channels
        (CHANNELS, FEW, of("queues", [[5]]), True),
        (CHANNELS, {"combined": 0, "rx": 2}, of("queues", [[1]]), False),
        (CONTEXT, [1], rule(context=2), True),
        (CONTEXT, [1], rule(context=1), False),
        (CONTEXT, [1], rule(queue=2), False),
        (of("feature", ["rx-gro"]), False, rule(queue=1), False),
    ],
)
def test_what_would_be_lost_is_found(change, value, other, held):
    assert holding([change, other], change, value) == ([other] if held else [])


def test_another_interface_loses_nothing():
    elsewhere = of("rule", [{"dst": "239.1.1.1", "dport": 1, "queue": 5}], index=8)
    assert holding([elsewhere], NTUPLE, False) == holding([elsewhere], CHANNELS, FEW) == []
