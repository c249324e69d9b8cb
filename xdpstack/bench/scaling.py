"""rules and queues: what more rules, and more queues on one thread, cost a receiver of ours.

Both compare ours with ours: 1,024 rules against one, several queues against one. The last rule is the one
that matches. For queues the sender spreads its batches over them, and the busy time of the receive thread
is counted as in `rx`, by the tenth percentile of its slices; the row compares the dearest number of queues
with the cheapest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from xdpstack.bench.lab import Bed, bed, settings
from xdpstack.bench.rate import STEPS, highest
from xdpstack.bench.receive import OURS, Contestant, Load, busy, quiet
from xdpstack.bench.registry import MANY, Context
from xdpstack.bench.rows import Row, median, row, spread

__all__ = ["queues", "rules"]

RULES = 1024
QUEUES = (1, 2, 4)


def _with(name: str, *more: str) -> Contestant:
    """Ours with further options."""

    def command(ground: Bed, options: Sequence[str]) -> list[str]:
        return [*OURS.command(ground, options), *more]

    return replace(OURS, name=name, command=command)


def rules(context: Context) -> Iterable[Row]:
    """The highest rate without loss; ``rules`` over AF_XDP, ``rules.live`` where the filter weighs most."""
    count = 3000 if context.quick else 150_000
    many, one = _with(f"{RULES} rules", "--rules", str(RULES)), _with("1 rule", "--rules", "1")
    loads = {"": Load("xsk_send", count), ".live": Load("live_frames", count, batch=64)}
    with bed() as ground:
        for suffix, load in loads.items():
            found: dict[str, list[float]] = {many.name: [], one.name: []}
            for number in range(context.rounds()):
                context.say(f"  rules{suffix} round {number + 1} of {context.rounds()}")
                for who in (many, one):
                    rate, _ = highest(ground, who, load, 1 if context.quick else STEPS)
                    found[who.name].append(rate)
            yield row(
                "rules" + suffix,
                median(found[many.name]),
                median(found[one.name]),
                one.name,
                unit="/s",
                better="higher",
                n=count * context.rounds(),
                rounds=spread(found[many.name]),
                peer_rounds=spread(found[one.name]),
                **settings(
                    ground,
                    generator=load.generator,
                    payload=load.size,
                    packets=count,
                    stamps="none",
                    match="last",
                ),
            )


def queues(context: Context) -> Iterable[Row]:
    """Busy ns a packet by number of queues; ours is the dearest, the peer the cheapest of them.

    By the tenth percentile of slices, over all rounds: on a virtual machine trials fall into two heaps some
    40 % apart, whatever the number of queues, and a median is now in one, now in the other: ``medians``."""
    load = Load("xsk_send", 3000 if context.quick else 100_000)
    skip = "0" if context.quick else "10000"
    answers: dict[int, list[dict[str, Any]]] = {number: [] for number in QUEUES}
    with bed(queues=max(QUEUES)) as ground:
        for turn in range(rounds := context.rounds(MANY)):
            context.say(f"  queues round {turn + 1} of {rounds}")
            for number in QUEUES:
                who = _with(f"{number} queues", "--queues", str(number))
                sends = ["--queues", str(number)]
                answers[number].append(who.receive(ground, load, "--skip", skip, sender=sends))
        figures = {number: quiet(got) for number, got in answers.items()}
        dear, cheap = max(QUEUES, key=figures.__getitem__), min(QUEUES, key=figures.__getitem__)
        yield row(
            "queues",
            figures[dear],
            figures[cheap],
            f"{cheap} queue{'s' if cheap > 1 else ''}",
            unit="ns",
            n=sum(one["packets"] for got in answers.values() for one in got),
            dearest=dear,
            by_queues={str(number): round(figure, 1) for number, figure in figures.items()},
            rounds={str(number): spread([busy(one) for one in got]) for number, got in answers.items()},
            medians={
                str(number): round(median([busy(one) for one in got]), 1) for number, got in answers.items()
            },
            packets_a_poll={str(number): _a_poll(got) for number, got in answers.items()},
            lost=sum(one["sent"] - one["seen"] for got in answers.values() for one in got),
            by="slices",
            **settings(ground, generator=load.generator, rate="flat out", payload=load.size),
        )


def _a_poll(answers: list[dict[str, Any]]) -> float:
    packets: int = sum(a["packets"] for a in answers)
    polls: int = sum(a["polls_busy"] for a in answers)
    return round(packets / max(1, polls), 2)
