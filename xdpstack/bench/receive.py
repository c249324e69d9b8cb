"""rx, rx-kernel, jumbo: what a packet costs the receive thread, beside a bare loop and a kernel socket.

Only polls that found packets count. All three are programs with one protocol (see :mod:`xdpstack.bench.lab`)
that account by slices of 1,000 packets; the figure of a round is the median slice, the figure of a
bench the median of its rounds. Rounds take turns: bare, ours, recvmmsg, bare, ... Where the host moves the
cores so often that rounds cannot be compared, slices are (:func:`settled`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from xdpstack.bench.breakdown import between, pooled, row_key
from xdpstack.bench.lab import PORT, WHOLE, Bed, Program, alike, bed, peer, settings
from xdpstack.bench.registry import MANY, Context
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.errors import SetupError

__all__ = [
    "BARE",
    "OURS",
    "RECVMMSG",
    "Contestant",
    "JumboLoad",
    "Load",
    "busy",
    "jumbo",
    "quiet",
    "rx",
    "rx_kernel",
    "settled",
]

SIZE = 64
"""Bytes of UDP payload."""
JUMBO = 9000 - 14 - 28
"""Of a frame of 9,000 bytes."""
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Load:
    """What a generator is told."""

    generator: str
    count: int
    rate: float = 0
    """Packets a second; 0 is flat out."""
    batch: int = 32
    size: int = SIZE

    def run(self, ground: Bed, *more: str) -> dict[str, Any]:
        """Send it all; what the generator says."""
        options = ["--count", str(self.count), "--rate", str(self.rate), "--batch", str(self.batch), *more]
        return ground.generate(self.generator, *options, size=self.size)


@dataclass(frozen=True, slots=True)
class JumboLoad(Load):
    """Frames over several chunks: no peer sends them, ours does (a port of its own, no engine)."""

    def run(self, ground: Bed, *more: str) -> dict[str, Any]:
        """Send it all; what the sender says."""
        command = [sys.executable, "-m", "xdpstack.bench.worker", "send", "--iface", ground.near.name]
        command += ["--local", str(ground.near.address), "--remote", str(ground.far.address)]
        command += ["--core", str(ground.cores[0]), "--port", str(PORT), "--size", str(self.size)]
        command += ["--count", str(self.count), "--rate", str(self.rate), "--burst", str(self.batch), *more]
        with contextlib.closing(Program(ground.sender, command)) as program:
            return program.wait(60)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A receiver: its name and the command that starts it on a bed."""

    name: str
    command: Callable[[Bed, Sequence[str]], list[str]]
    kernel: bool = False
    """A kernel socket: redirected frames need GRO at its interface."""
    ours: bool = False
    """A worker of ours."""

    def receive(self, ground: Bed, load: Load, *options: str, sender: Sequence[str] = ()) -> dict[str, Any]:
        """One trial: start, send, stop. The receiver's answer, with the generator's under ``sent``.

        Once more where not one slice came, nor half of the packets: a guest that loses its core as the sender
        runs flat out loses what was sent, and nothing was measured.
        """
        for tries in range(1, _TRIES + 1):
            answer = {**self._trial(ground, load, options, sender), "tries": tries}
            if answer["slice_ps"]["n"] or answer["seen"] > answer["sent"] // 2:
                break
        return answer

    def _trial(
        self, ground: Bed, load: Load, options: Sequence[str], sender: Sequence[str]
    ) -> dict[str, Any]:
        kernel_way = self.kernel and load.generator == "live_frames"
        if kernel_way:
            ground.gro(True)
        try:
            before = ground.core_to_core()
            with contextlib.closing(Program(ground.receiver, self.command(ground, options))) as program:
                program.ready()
                sent = load.run(ground, *sender)
                answer = program.stop()
            line = [before, ground.core_to_core()]
        finally:
            if kernel_way:
                ground.gro(False)
        return {**answer, "sent": sent["sent"], "generator": sent, "line_ns": line}


def _xsk(name: str) -> Callable[[Bed, Sequence[str]], list[str]]:
    def command(ground: Bed, options: Sequence[str]) -> list[str]:
        core = str(ground.cores[1])
        return [peer(name), "--iface", ground.far.name, "--core", core, "--seconds", "50", *options]

    return command


def _recvmmsg(ground: Bed, options: Sequence[str]) -> list[str]:
    core = str(ground.cores[1])
    return [peer("recvmmsg_rx"), "--port", str(PORT), "--core", core, "--seconds", "50", *options]


def _ours(ground: Bed, options: Sequence[str]) -> list[str]:
    core = str(ground.cores[1])
    command = [sys.executable, "-m", "xdpstack.bench.worker", "rx", "--iface", ground.far.name]
    return [*command, "--core", core, "--port", str(PORT), "--local", str(ground.far.address), *options]


BARE = Contestant("bare libxdp", _xsk("bare_xsk"))
RECVMMSG = Contestant("recvmmsg", _recvmmsg, kernel=True)
OURS = Contestant("xdpstack", _ours, ours=True)
GENERIC = Contestant(
    "xdpstack", lambda ground, options: _ours(ground, [*options, "--xdp", "generic"]), ours=True
)
"""The filter in generic mode: see ``udp-rtt``."""


def busy(answer: dict[str, Any]) -> float:
    """ns a packet: the median slice."""
    if not answer["slice_ps"]["n"]:
        raise SetupError(
            "measure busy time", f"only {answer['seen']} packets of {answer['sent']} came, a slice is 1,000"
        )
    return float(answer["slice_ps"]["p50"]) / 1000


def settled(*sides: list[dict[str, Any]]) -> tuple[list[float], dict[str, Any]]:
    """ns a packet of each side, and a note on the state of the machine that they hold for.

    Medians over the rounds that were alike. Where too few were (see :func:`~xdpstack.bench.lab.alike`): of
    the slices of all rounds together the tenth percentile, which is a packet's cost in the better of the two
    states as long as a tenth of the time was spent in it; the note then says ``by: slices``.
    """
    kept, note = alike(*sides)
    if note["rounds_alike"] >= WHOLE or "trials_alike" in note:
        return [median([busy(answer) for answer in side]) for side in kept], note
    return [quiet(side) for side in sides], {**note, "by": "slices"}


def quiet(answers: Sequence[dict[str, Any]]) -> float:
    """ns a packet: the tenth percentile of all slices."""
    slices = sorted(picos for answer in answers for picos in answer["slices_ps"])
    if not slices:
        raise SetupError("measure busy time", "no slice of 1,000 packets is whole")
    return float(slices[(len(slices) - 1) // 10]) / 1000


def _compare(
    context: Context,
    name: str,
    contestants: Sequence[Contestant],
    loads: dict[str, Load],
    *,
    skip: int = 10_000,
    mtu: int = 1500,
    per: int = 1,
    unit: str = "ns",
) -> Iterable[Row]:
    """Rows of ``unit``: ns a packet, divided by ``per``."""
    skip = 0 if context.quick else skip
    with bed(mtu=mtu) as ground:
        for suffix, load in loads.items():
            answers: dict[str, list[dict[str, Any]]] = {c.name: [] for c in contestants}
            for number in range(rounds := context.rounds(MANY)):
                context.say(f"  {name}{suffix} round {number + 1} of {rounds}")
                for contestant in contestants:
                    answers[contestant.name].append(contestant.receive(ground, load, "--skip", str(skip)))
            ours, other = contestants[0].name, contestants[1].name
            figures = {who: [busy(answer) / per for answer in given] for who, given in answers.items()}
            (mine, theirs), note = settled(answers[ours], answers[other])
            yield row(
                name + suffix,
                mine / per,
                theirs / per,
                other,
                unit=unit,
                n=sum(answer["packets"] for answer in answers[ours]),
                rounds=spread(figures[ours]),
                peer_rounds=spread(figures[other]),
                **note,
                **_percentiles(answers[ours], answers[other], per),
                **row_key(between([answer["stages"] for answer in answers[ours]])),
                **settings(
                    ground,
                    generator=load.generator,
                    rate=load.rate or "flat out",
                    batch=load.batch,
                    payload=load.size,
                    slice=1000,
                ),
            )


def _percentiles(ours: list[dict[str, Any]], other: list[dict[str, Any]], per: int) -> dict[str, Any]:
    """By slice, divided by ``per``, medians over the rounds; packets a busy poll; the tenth percentile of all
    slices, and (what is drawn) their other ones."""
    mine, theirs = ([ps for answer in side for ps in answer["slices_ps"]] for side in (ours, other))
    out = pooled(mine, theirs, per=1000 * per, of="slices of 1,000 packets")
    for prefix, answers in (("", ours), ("peer_", other)):
        for key in ("p90", "p99"):
            out[prefix + key] = round(median([a["slice_ps"][key] for a in answers]) / 1000 / per, 3)
        out[prefix + "packets_a_poll"] = round(
            sum(a["packets"] for a in answers) / max(1, sum(a["polls_busy"] for a in answers)), 2
        )
        out[prefix + "lost"] = sum(a["sent"] - a["seen"] for a in answers)
        out[prefix + "quiet"] = round(quiet(answers) / per, 3)
    return out


def _loads(context: Context) -> dict[str, Load]:
    count = 3000 if context.quick else 100_000
    return {
        "": Load("xsk_send", count, rate=200_000),
        ".flat": Load("xsk_send", count),
        ".live": Load("live_frames", count, rate=400_000),
    }


def rx(context: Context) -> Iterable[Row]:
    """Ours against the bare loop: singly (``rx``), flat out, and in batches of 64 (``rx.live``)."""
    return _compare(context, "rx", [OURS, BARE], _loads(context))


def rx_kernel(context: Context) -> Iterable[Row]:
    """Ours against recvmmsg, under the same loads."""
    return _compare(context, "rx-kernel", [OURS, RECVMMSG], _loads(context))


def jumbo(context: Context) -> Iterable[Row]:
    """Frames of 9,000 bytes over an MTU of 9,000: three chunks in a row; recvmmsg copies one datagram."""
    count = 3000 if context.quick else 40_000
    room = ["--room", "9216"]
    contestants = [
        OURS,
        Contestant("recvmmsg", lambda ground, options: _recvmmsg(ground, [*options, *room]), kernel=True),
    ]
    loads: dict[str, Load] = {"": JumboLoad("send", count, rate=40_000, batch=8, size=JUMBO)}
    return _compare(context, "jumbo", contestants, loads, skip=5000, mtu=9000, per=JUMBO, unit="ns/B")
