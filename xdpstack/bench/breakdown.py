"""Where the time of a bench went, by stage: ``stage_ns`` of a row, which ``bench --plot`` draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xdpstack.bench.rows import median
from xdpstack.stages import StageHists
from xdpstack.stats import Histogram

__all__ = ["FIGURES", "between", "merged", "row_key"]

FIGURES = ("mean", "p50", "p90", "p99", "p999", "max")
"""Of each stage, in ns, beside ``n``."""


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


def row_key(told: Mapping[str, Any]) -> dict[str, Any]:
    """``stage_ns`` for a row; nothing where no stage was stamped."""
    return {"stage_ns": dict(told)} if told else {}
