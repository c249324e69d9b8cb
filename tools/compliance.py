"""COMPLIANCE.md: what RFC 9293 requires, what we do about each requirement, and the test that holds it.

The verdicts are the table below; the tests come from their own ``rfc()`` tags. Run it to write the file;
``test_compliance.py`` fails when it is stale, when a tag names nothing, or when nothing holds what is kept.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "COMPLIANCE.md"
FOLDERS = ("xdpstack/tests", "netns_tests")
SCRIPTS = ROOT / "xdpstack" / "tests" / "drill"

# Each with whether a test must hold it.
VERDICTS = {
    "kept": True,
    "kept, off by default": True,
    "kept in part": True,
    "deliberately not": False,
    "not yet": False,
}

# `number | what it asks for | verdict | why, where that is not plain`, under Appendix B's headings.
TABLE = """
# PUSH
MAY-16 | hold back data until it is pushed | deliberately not | all goes, and is read, at once
SHLD-27 | one PSH for several writes in a row | kept | PSH goes with the segment that empties the buffer
MAY-15 | SEND can ask for PSH | deliberately not | every write does
MUST-60 | without that, do not hold data for ever | kept |
MUST-61 | without that, PSH with the last segment | kept |
MAY-17 | tell the user of PSH | deliberately not | every byte is told at once
SHLD-28 | segments as large as may be | kept |

# Window
MUST-1 | the window has no sign | kept |
REC-1 | windows are kept in 32 bits or more | kept |
SHLD-14 | do not take back a window | kept |
SHLD-15 | no new data where the peer took it back | kept |
SHLD-16 | but what is out within it goes again | kept |
SHLD-17 | and nobody is given up for what lies past it | kept |
MUST-34 | stand a peer that takes it back | kept |
MAY-8 | the receiver keeps its window closed | kept |
MUST-35 | probe a window that shrank to nothing | kept |
MUST-36 | probe a closed window | kept |
SHLD-29 | first after the retransmission timeout | kept |
SHLD-30 | then less and less often | kept |
MUST-37 | a window stays closed while the peer answers | kept |
MAY-7 | send old data again past the window | kept |
MUST-66 | RST and URG count with a closed window | kept in part | RST; for URG see MUST-30

# Urgent data
MUST-30 | the urgent mechanism | deliberately not | RFC 6093 advises against it: ignored, the bytes stay
MUST-62 | the pointer names the byte behind | deliberately not | never sent
MUST-31 | urgent data of any length | deliberately not | it arrives as ordinary data, whatever its length
MUST-32 | tell the user of urgent data | deliberately not | as MUST-30
MUST-33 | how much of it is unread | deliberately not | as MUST-30
SHLD-13 | programs do not use it | kept | there is no call for it

# Options
MUST-4 | end of list, no-operation, segment size | kept |
MUST-5 | options in any segment | kept |
MUST-6 | ignore unknown ones | kept |
MUST-68 | every other option has a length | kept |
MUST-7 | stand lengths that cannot be | kept | the segment is refused, reason `options`
MUST-64 | options wherever they begin | kept |
MUST-14 | send and take the segment size | kept |
SHLD-5 | send it unless it is 536 or 1220 | kept |
MAY-3 | send it always | kept |
MUST-15 | 536 or 1220 where the peer names none | kept |
MUST-16 | the effective segment size | kept |
SHLD-6 | of the smallest MTU where it varies | kept | a port has one
MUST-65 | no segment size but in a SYN | kept |
MUST-67 | what is named fits what can be received | kept |
MUST-69 | padded with zeros | kept | padded with no-operations: there is no end of list to pad behind

# Checksums
MUST-2 | computed | kept |
MUST-3 | verified | kept | on veth those that the kernel left to a NIC pass

# Initial numbers
MUST-8 | a clock drives them | kept | RFC 6528, 4 us a tick
SHLD-1 | and a keyed function of the ends | kept | SipHash-2-4
MUST-9 | that nobody outside can compute | kept | 16 bytes of the system's randomness

# Opening
MUST-10 | both may open at once | kept |
MUST-11 | SYN-RECEIVED knows how it began | kept |
MUST-41 | a listener disturbs nobody | kept |
MUST-42 | listen while others have the port | kept |
MUST-44 | the source address from the routes | kept |
MUST-45 | and the same one to the end | kept |
MUST-46 | no open to group or broadcast addresses | kept |
MUST-57 | segments to such are dropped in silence | kept |

# Closing
SHLD-2 | a reset may carry data | kept |
MUST-12 | tell the user of an abort | kept |
MAY-1 | close both directions at once | kept | `close()`; `shutdown()` closes one
SHLD-3 | then reset where data is lost | kept |
MUST-13 | TIME-WAIT for twice the MSL | kept | an MSL of 30 s, as in Linux; ends early for `evicted` ones
MAY-2 | a SYN may end TIME-WAIT | kept |
SHLD-4 | by its stamp, too | kept | RFC 6191

# Retransmission
MUST-19 | backoff, slow start, congestion avoidance | kept | not with `congestion = "none"`, for a LAN
MAY-4 | with the same IP identity | deliberately not | it is 0: nothing of ours is fragmented (RFC 6864)
MUST-18 | Karn's algorithm | kept |

# Acknowledgments
MUST-58 | gather them | kept |
SHLD-31 | keep what is out of order | kept | up to 64 pieces
MUST-59 | first take all that has come | kept | a turn takes its whole batch first
MAY-13 | acknowledge what is out of order | kept |
SHLD-18 | delay them | kept, off by default | `delayed_ack_ns`: latency comes first here
MUST-40 | by less than half a second | kept |
SHLD-19 | and not past the second full segment | kept |
MUST-39 | no silly windows by the receiver | kept |

# Sending
MUST-49 | TTL can be set | kept | of the host
MUST-38 | no silly windows by the sender | kept |
SHLD-7 | Nagle's algorithm | kept, off by default | `nagle`: latency comes first here
MUST-17 | which can be switched off | kept |

# Failures
MUST-20 | advice to IP after R1, the end after R2 | kept | at R1 the neighbour is asked for anew
MUST-21 | the user can set R2 | kept | `give_up_ns`, at any time
SHLD-9 | tell the user between R1 and R2 | kept | `stalled`
SHLD-10 | R1 is three retransmissions at least | kept |
SHLD-11 | R2 is 100 s at least | kept | 180 s
MUST-22 | the same for a SYN | kept |
MUST-23 | with an R2 of three minutes at least | kept | 180 s

# Keep-alives
MAY-5 | send them | kept, off by default | `keepalive`
MUST-24 | the user can switch them on and off | kept |
MUST-25 | they are off by default | kept |
MUST-26 | only after an idle time | kept |
MUST-27 | which can be set | kept |
MUST-28 | and is two hours at least by default | kept |
MUST-29 | one lost answer is no end | kept |
SHLD-12 | without data | kept |
MAY-6 | or with a byte of garbage | deliberately not | no TCP of today needs it

# IP options
MUST-50 | ignore those that TCP does not know | kept |
MAY-10 | time stamps | deliberately not | routers drop such packets (RFC 7126)
MAY-11 | record route | deliberately not | as MAY-10
MUST-51 | the user can name a source route | deliberately not | RFC 7126 has them dropped
MUST-52 | which counts before that of a datagram | deliberately not | as MUST-51
MUST-53 | the way back from a source route | deliberately not | as MUST-51
SHLD-24 | a later one counts | deliberately not | as MUST-51

# ICMP
MUST-54 | errors reach the connection | kept | if they name what is in flight (RFC 5927 4.1)
SHLD-25 | unreachable 0, 1, 5: tell the user | kept | `info()["trouble"]`, and the error of a timeout
MUST-56 | other errors do not abort | kept |
SHLD-26 | unreachable 2 to 4: abort | kept in part | before it is open (RFC 5927 5.2); 4: RFC 1191
MUST-55 | source quench is dropped in silence | kept |

# Addresses
MUST-63 | no SYN from an impossible address | kept |

# The user's side
MUST-47 | errors are reported | kept |
SHLD-20 | the report can be switched off | kept | without a `callback` nothing is called
MUST-48 | the user sets the Diffserv field | kept | `dscp`
SHLD-22 | it reaches IP as it is | kept |
SHLD-21 | it can change during a connection | kept |
SHLD-23 | but should not | kept | only the user's word changes it
MAY-9 | the one received reaches the user | deliberately not |
MAY-14 | FLUSH | deliberately not | `abort()`
MUST-43 | a local address for an open | kept |

# Beyond
MAY-12 | RFC 5961 against blind data | kept |
SHLD-8 | ECN | kept, off by default | `ecn` (RFC 3168)
MAY-18 | another congestion control | kept | CUBIC (RFC 9438) by default, `newreno`, `none`
"""


class Row(NamedTuple):
    number: str
    what: str
    verdict: str
    why: str


def rows(text: str = TABLE) -> dict[str, list[Row]]:
    """The table's rows by heading."""
    found: dict[str, list[Row]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("# "):
            found[heading := line[2:]] = []
        else:
            found[heading].append(Row(*(word.strip() for word in line.split("|"))))
    return found


def _tags(decorators: Iterable[ast.expr]) -> Iterator[tuple[str, str]]:
    for node in decorators:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.rfc":
            number, *clauses = (ast.literal_eval(word) for word in node.args)
            yield from ((number, clause) for clause in clauses)


def tags(sources: Iterable[Path] | None = None) -> dict[tuple[str, str], list[str]]:
    """(RFC, clause) -> the tests that hold it, as ``file::name``, without running any; scripts of
    ``xdpstack/tests/drill`` as ``drill/name``."""
    scripts: list[Path] = []
    if sources is None:
        sources = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("test_*.py"))
        scripts = sorted(SCRIPTS.rglob("*.pkt"))
    found: dict[tuple[str, str], list[str]] = {}
    for path in scripts:
        inside = path.relative_to(SCRIPTS).with_suffix("")  # a matrix is one name: it has hundreds
        name = f"drill/{inside.parent if inside.parent.name.startswith('matrix') else inside}"
        for number, clauses in re.findall(r"^// rfc(\d+): (.+)$", path.read_text(), re.M):
            for clause in clauses.split(", "):
                if name not in found.setdefault((number, clause), []):
                    found[number, clause].append(name)
    for path in sources:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                for tag in _tags(node.decorator_list):
                    found.setdefault(tag, []).append(f"{path.stem}::{node.name}")
    return found


def _tests(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _by_clause(tag: tuple[str, str]) -> list[int]:
    return [int(tag[0]), *(int(word) if word.isdigit() else 0 for word in tag[1].split("."))]


def written(found: dict[tuple[str, str], list[str]]) -> str:
    """The file's text."""
    out = [
        "# What TCP is asked for, and what we do",
        "",
        "Written by `make compliance` from the `rfc()` tags of the tests: not by hand.",
        "",
        "## RFC 9293, Appendix B",
        "",
        "**kept**; **kept, off by default**: there is a switch; **kept in part**, **deliberately not** and",
        "**not yet**: the last column says why. A test is `file::name` in `xdpstack/tests`, `netns_tests`,",
        "or a script, `drill/name`, in `xdpstack/tests`.",
    ]
    for heading, list_ in rows().items():
        out += [
            "",
            f"### {heading}",
            "",
            "| | asks for | ours | test | note |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in list_:
            held = _tests(found.get(("9293", row.number), []))
            out.append(f"| {row.number} | {row.what} | {row.verdict} | {held} | {row.why} |")
    out += ["", "## Other clauses that a test holds", "", "| RFC | clause | test |", "| --- | --- | --- |"]
    known = {row.number for list_ in rows().values() for row in list_}
    for tag in sorted((tag for tag in found if tag[1] not in known), key=_by_clause):
        out.append(f"| {tag[0]} | {tag[1]} | {_tests(found[tag])} |")
    return "\n".join(out) + "\n"


def problems(found: dict[tuple[str, str], list[str]], table: str = TABLE) -> Iterator[str]:
    """What does not fit together, a sentence each."""
    known: set[str] = set()
    for row in (row for list_ in rows(table).values() for row in list_):
        if row.number in known:
            yield f"{row.number} stands there twice"
        known.add(row.number)
        held = ("9293", row.number) in found
        if row.verdict not in VERDICTS:
            yield f"{row.number}: {row.verdict!r} is no verdict"
        elif VERDICTS[row.verdict] and not held:
            yield f"{row.number} is {row.verdict}, and no test holds it"
        elif row.verdict == "not yet" and held:
            yield f"{row.number} is not yet kept, and a test holds it"
    for number, clause in found:
        if number == "9293" and "-" in clause and clause not in known:
            yield f"a test is tagged {clause}, which RFC 9293 has not"


def main() -> int:
    found = tags()
    for line in (wrong := list(problems(found))):
        print(line, file=sys.stderr)
    if not wrong:
        TARGET.write_text(written(found))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
