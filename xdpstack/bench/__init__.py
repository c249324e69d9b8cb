"""Benches: ours beside a peer, in one run, interleaved, with the settings in sight.

A *bench* is a name of the table in :mod:`xdpstack.bench.registry` and a function that gives rows. A *row* is
one line of JSON: ``{"bench", "ours", "peer", "peer_name", "ratio", "unit", "better", "n"}`` and what is
worth knowing beside it (percentiles, settings). The first row of a bench carries its plain name and is the
one that the target speaks of; details are named ``rx-rate.dpdk``, ``book.add.p99``.

Benches are not tests: nothing fails because a figure is bad. The peers are small C programs in tools/bench
(``make bench-peers``); the in-memory benches of decoders and books live there as well.
"""

from __future__ import annotations

from xdpstack.bench.registry import Bench, Context, Skip, benches, find
from xdpstack.bench.rows import Row, Target, median, row

__all__ = ["Bench", "Context", "Row", "Skip", "Target", "benches", "find", "median", "row"]
