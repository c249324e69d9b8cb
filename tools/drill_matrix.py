"""The scripts of every state × segment × place of the window, with and without time stamps, from the table
below.

Run it to write ``xdpstack/tests/drill/matrix`` and ``matrix-stamped``; ``test_drill.py`` fails when they are
stale. The rules are those of RFC 9293 3.10.7.4, with RFC 5961, 6191 and 1337; the code of the stack is not
asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "xdpstack" / "tests" / "drill"
ISN, WINDOW = 1000, 8192
EDGE = ISN + 1 + WINDOW  # the first number that the window does not hold; a FIN does not move it
TEXT = 100  # bytes of a data segment


@dataclass(frozen=True)
class State:
    """``way``: from ESTABLISHED there; ``ours``: our next number; ``acks``: what the peer acknowledges;
    ``ended``: the peer's FIN has come."""

    name: str
    way: tuple[str, ...] = ()
    ours: int = 1
    acks: int = 1
    ended: bool = False

    @property
    def tcpi(self) -> str:
        """Its name in an assertion."""
        return "TCP_" + self.name.replace("FIN-WAIT-", "FIN_WAIT").replace("-", "_")


FIN_OUT = ("+0 shutdown(4, SHUT_WR) = 0", "+0 > F. 1:1(0) ack {next}{stamp}")
FIN_IN = "+0 < F. {next}:{next}(0) ack {acks} win 32792{theirs}"
FIN_TAKEN = "+0 > . {ours}:{ours}(0) ack {after}{stamp}"
STATES = (
    State("SYN-RECEIVED"),
    State("ESTABLISHED"),
    State("FIN-WAIT-1", FIN_OUT, ours=2),
    State("FIN-WAIT-2", (*FIN_OUT, "+.1 < . {next}:{next}(0) ack 2 win 32792{theirs}"), ours=2, acks=2),
    State("CLOSE-WAIT", (FIN_IN, FIN_TAKEN), ended=True),
    State("CLOSING", (*FIN_OUT, FIN_IN, FIN_TAKEN), ours=2, ended=True),
    State(
        "LAST-ACK",
        (FIN_IN, "+0 > . 1:1(0) ack {after}{stamp}", FIN_OUT[0], "+0 > F. 1:1(0) ack {after}{stamp}"),
        ours=2,
        ended=True,
    ),
    State("TIME-WAIT", ("+0 close(4) = 0", FIN_OUT[1], FIN_IN, FIN_TAKEN), ours=2, acks=2, ended=True),
)
SEGMENTS = ("syn", "fin", "rst", "ack", "data")
PLACES = {
    "left": "left of the window",
    "next": "with the next number",
    "in": "inside the window",
    "edge": "with the last number of the window",
    "right": "right of the window",
}


def number(state: State, segment: str, place: str) -> int:
    """Where the segment begins."""
    after = ISN + 1 + state.ended
    length = TEXT if segment == "data" else 1
    return {
        "left": after - 501,
        "next": after,
        "in": after + 1000,
        "edge": EDGE - length,
        "right": EDGE + 1000,
    }[place]


def reply(state: State, segment: str, place: str, stamped: bool) -> str:
    """``ack``: of what there was; ``ack 1``: of so many numbers more; ``syn-ack``: a new connection; empty:
    none."""
    inside = place in ("next", "in", "edge")
    waits = state.name == "TIME-WAIT"
    if segment == "syn" and waits:  # RFC 6191 2 by the stamp, MAY-2 by the number
        return "syn-ack" if stamped or place in ("in", "edge", "right") else "ack"
    if segment == "rst":  # RFC 5961 3.2; RFC 1337 3
        return "ack" if place in ("in", "edge") and not waits else ""
    if not inside:
        return "ack"
    if segment == "syn":  # back to LISTEN, without a word; else RFC 5961 4.2
        return "" if state.name == "SYN-RECEIVED" else "ack"
    if segment == "ack":
        return ""
    if state.ended:  # nothing is left to come; in TIME-WAIT it may be the FIN again
        return "ack" if waits else ""
    if place == "next":
        return f"ack {TEXT if segment == 'data' else 1}"
    return "ack"


def state_after(state: State, segment: str, place: str) -> str:
    """The state's name in an assertion; empty: not to be seen from a socket."""
    if state.name == "TIME-WAIT":
        return ""
    if place != "next":
        return state.tcpi
    if segment == "rst":
        return "TCP_CLOSE"
    moves = {"ESTABLISHED": "TCP_CLOSE_WAIT", "FIN-WAIT-1": "TCP_CLOSING", "FIN-WAIT-2": ""}
    return moves.get(state.name, state.tcpi) if segment == "fin" else state.tcpi


WORDS = {"syn": "a SYN", "fin": "a FIN", "rst": "a reset", "ack": "an ACK", "data": "data"}


def title(state: State, segment: str, place: str, stamped: bool) -> str:
    """What the script shows."""
    answer = reply(state, segment, place, stamped)
    told = {"": "no answer", "ack": "an ACK of what there was", "syn-ack": "a new connection"}
    end = told.get(answer, "taken, and acknowledged")
    if segment == "rst" and place == "next" and state.name != "TIME-WAIT":
        end = "the connection ends"
    return f"{state.name}, {WORDS[segment]} {PLACES[place]}: {end}."


def script(state: State, segment: str, place: str, stamped: bool) -> str:
    """The whole text."""
    after = ISN + 1 + state.ended
    words = {
        "next": ISN + 1,
        "after": after,
        "ours": state.ours,
        "acks": state.acks,
        "theirs": " <nop,nop,TS val 1100 ecr 100>" if stamped else "",
        "stamp": " <TS val * ecr 1100>" if stamped else "",
    }
    first = "<mss 1036,nop,nop,TS val 1000 ecr 0>" if stamped else "<mss 1024>"
    answer = "<mss 1036,TS val 100 ecr 1000>" if stamped else "<mss 1024>"
    lines = [
        "0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3",
        f"+0 setsockopt(3, SOL_TCP, TCP_MAXSEG, [{1036 if stamped else 1024}], 4) = 0",
        f"+0 setsockopt(3, SOL_TCP, TCP_WINDOW_CLAMP, [{WINDOW}], 4) = 0",
        "+0 bind(3, ..., ...) = 0",
        "+0 listen(3, 1) = 0",
        "",
        f"+0 < S {ISN}:{ISN}(0) win 32792 {first}",
        f"+0 > S. 0:0(0) ack {ISN + 1} win {WINDOW} {answer}",
    ]
    if state.name != "SYN-RECEIVED":
        lines.append(f"+.1 < . {ISN + 1}:{ISN + 1}(0) ack 1 win 32792{words['theirs']}")
        lines.append("+0 accept(3, ..., ...) = 4")
    lines += [line.format(**words) for line in state.way]
    return (
        "\n".join(
            [*heads(state, segment, place, stamped), *lines, "", *exchange(state, segment, place, stamped)]
        )
        + "\n"
    )


def heads(state: State, segment: str, place: str, stamped: bool) -> list[str]:
    """What it shows, and the clauses that it holds; then settings that Linux needs to keep to them."""
    tags = ["// rfc9293: 3.10.7.4"]
    if segment == "rst":
        tags.append("// rfc1337: 3" if state.name == "TIME-WAIT" else "// rfc5961: 3.2")
    if segment == "syn" and state.name == "TIME-WAIT":
        tags += ["// rfc9293: SHLD-4", "// rfc6191: 2"] if stamped else ["// rfc9293: MAY-2"]
    elif segment == "syn" and state.name != "SYN-RECEIVED":
        tags.append("// rfc5961: 4.2")
    if stamped:
        tags.append("// rfc7323: 5.3")
    settings = (
        ["`sysctl -q net.ipv4.tcp_rfc1337=1`"] if state.name == "TIME-WAIT" and segment == "rst" else []
    )
    return [f"// {title(state, segment, place, stamped)}", *tags, *settings, ""]


def exchange(state: State, segment: str, place: str, stamped: bool) -> Iterator[str]:
    """The segment, the reply, and what has become of the connection."""
    after = ISN + 1 + state.ended
    at, length = number(state, segment, place), TEXT if segment == "data" else 0
    flags = {"syn": "S", "fin": "F.", "rst": "R", "ack": ".", "data": "P."}[segment]
    acks = f" ack {state.acks}" if "." in flags else ""
    options = ""
    if stamped and segment != "rst":
        size, echo = ("mss 1024,", 0) if segment == "syn" else ("", 100)
        options = f" <{size}nop,nop,TS val 1200 ecr {echo}>"
    yield f"+.1 < {flags} {at}:{at + length}({length}){acks} win 32792{options}"
    answer = reply(state, segment, place, stamped)
    known = {"next": "1200", "left": "*"}.get(place, "1100" if state.name != "SYN-RECEIVED" else "1000")
    stamp = f" <TS val * ecr {known}>" if stamped else ""
    if answer == "syn-ack":
        yield f"+0 > S. 0:0(0) ack {at + 1} <...>"
    elif answer:
        more = int(answer.removeprefix("ack") or 0)
        yield f"+0 > . {state.ours}:{state.ours}(0) ack {after + more}{stamp}"
    if state.name == "SYN-RECEIVED":
        taken = segment in ("fin", "ack", "data") and place in ("next", "in", "edge")
        yield f"+.1 accept(3, ..., ...) = {'4' if taken else '-1 EAGAIN'}"
        return
    then = state_after(state, segment, place)
    if then:
        yield f"+.1 %{{ assert tcpi_state == {then} }}%"
    if segment == "data" and not state.ended:
        yield f"+0 read(4, ..., 1000) = {TEXT if place == 'next' else '-1 EAGAIN'}"


def scripts() -> Iterator[tuple[Path, str]]:
    """Each with where it lies."""
    for folder, stamped in (("matrix", False), ("matrix-stamped", True)):
        for state in STATES:
            for segment in SEGMENTS:
                for place in PLACES:
                    name = f"rfc9293-3.10.7.4-{state.name.lower()}-{segment}-{place}.pkt"
                    yield FOLDER / folder / name, script(state, segment, place, stamped)


def main() -> None:
    """Write them."""
    for path, text in scripts():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
