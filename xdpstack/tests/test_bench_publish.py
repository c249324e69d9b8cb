"""publish with tiny counts: whole rows, and both publishers were given the same. No figure is tested."""

import contextlib
import os

from xdpstack.bench import Context, benches
from xdpstack.bench.publish import MESSAGES, PACKETS, Pair
from xdpstack.bench.rows import KEYS
from xdpstack.publish import Subscriber


def test_the_rows_are_whole():
    cores = os.sched_getaffinity(0)
    rows = [made.as_dict() for made in benches()["publish"].run(Context(quick=True))]
    assert [line["bench"] for line in rows] == ["publish", "publish.burst", "publish.read"]
    assert [line["n"] for line in rows] == [40, 40 * PACKETS * MESSAGES, 40]
    for line in rows:
        assert list(line)[: len(KEYS)] == list(KEYS)
        assert line["unit"] == "ns"
        assert line["peer"] is None
    assert os.sched_getaffinity(0) == cores


def test_one_of_both_puts_every_update_on_its_tape(tmp_path):
    with contextlib.ExitStack() as stack:
        pair = Pair(tmp_path, stack)
        reader = stack.enter_context(Subscriber.open(pair.tape, oldest=True))
        spent = pair.turns(3, 2, 10)
        assert (spent > 0).all()
        silent, published = (side.stats()["records"]["updates"] for side in pair.sides)
        assert (silent, published) == (0, 42)
        assert len(reader.gather().of("plain")) == 42 * 3 * 2
