"""What ``bench --plot`` draws of a row: percentiles of its samples, and where the time went, by stage.

``percentiles`` and ``peer_percentiles`` of a row are in the row's unit and of what its figure is of, unless
``percentiles_unit`` and ``percentiles_of`` say otherwise; their ``n`` is the samples of one round.
``stage_ns`` is of ours; ``stages_of`` says of which trials, where they are not those of the figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xdpstack.bench.rows import median
from xdpstack.stages import StageHists
from xdpstack.stats import Histogram

__all__ = ["FIGURES", "PERCENTILES", "between", "curves", "merged", "pooled", "row_key"]

FIGURES = ("mean", "p50", "p90", "p99", "p999", "max")
"""Of each stage, in ns, beside ``n``."""
PERCENTILES = ("p50", "p90", "p99", "p999", "max")
"""Of what a program sampled, as it prints them beside ``n``."""
_POOLED = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def merged(found: Iterable[StageHists]) -> dict[str, dict[str, float]]:
    """The figures of each stage that has records, over feeds, endpoints or connections."""
    stages: dict[str, Histogram] = {}
    for hists in found:
        for stage, histogram in hists.by_stage.items():
            if len(histogram):
                stages.setdefault(stage, Histogram()).merge(histogram)
    told = {}
    for stage, histogram in stages.items():
        summary = histogram.summary()
        told[stage] = {
            "n": summary.count,
            **{figure: round(float(getattr(summary, figure)), 1) for figure in FIGURES},
        }
    return told


def between(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Of several rounds the median of each figure, and the sum of ``n``; stages that all of them have."""
    common = [stage for stage in (rounds[0] if rounds else ()) if all(stage in one for one in rounds)]
    return {
        stage: {
            "n": sum(one[stage]["n"] for one in rounds),
            **{figure: round(median([one[stage][figure] for one in rounds]), 1) for figure in FIGURES},
        }
        for stage in common
    }


def row_key(told: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    """``stage_ns`` for a row, and ``of`` which trials; nothing where no stage was stamped."""
    if not told:
        return {}
    return {"stage_ns": dict(told), **({"stages_of": of} if of else {})}


def curves(
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]] = (),
    *,
    per: float = 1000,
    of: str = "",
    unit: str = "",
) -> dict[str, Any]:
    """Of what the programs of both sides said after each round: every percentile the median over the rounds,
    divided by ``per``, and the samples of a round. ``of``, ``unit``: see the module."""
    found: dict[str, Any] = {}
    for prefix, answers in (("", ours), ("peer_", theirs)):
        if answers:
            table = {key: round(median([a[key] for a in answers]) / per, 3) for key in PERCENTILES}
            found[f"{prefix}percentiles"] = {"n": int(median([a["n"] for a in answers])), **table}
    return {**found, **_named(of, unit)}


def pooled(
    ours: Sequence[float], theirs: Sequence[float], *, per: float = 1, of: str = "", unit: str = ""
) -> dict[str, Any]:
    """Of the samples of all rounds together, as :func:`curves`: those percentiles that their number can tell;
    real samples, no interpolation."""
    found: dict[str, Any] = {}
    for prefix, samples in (("", sorted(ours)), ("peer_", sorted(theirs))):
        if (last := len(samples) - 1) >= 0:
            told = {key: samples[int(last * at)] for key, at in _POOLED.items() if at <= last / (last + 1)}
            told["max"] = samples[last]
            table = {key: round(value / per, 3) for key, value in told.items()}
            found[f"{prefix}percentiles"] = {"n": len(samples), **table}
    return {**found, **_named(of, unit)}


def _named(of: str, unit: str) -> dict[str, str]:
    return {key: word for key, word in (("percentiles_of", of), ("percentiles_unit", unit)) if word}
