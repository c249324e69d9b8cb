"""packetdrill's grammar: a script's text as a list of events. What is not in the subset that ``README.md``
beside this file names is refused, with the file and the line."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import re
import socket
from dataclasses import dataclass, field
from typing import Any

from xdpstack.errors import ConfigError

__all__ = ["ANY", "Call", "Check", "Event", "Packet", "Script", "When", "parse", "state_names"]

ANY = "..."
"""An argument, a result or a list of options that is not looked at."""
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|\d+")
_TIME = r"(\+?)\s*(\d+(?:\.\d+)?|\.\d+)"
_WHEN = re.compile(rf"(\*)|{_TIME}(?:\s*(~|\.\.\.)\s*{_TIME})?")
_PACKET = re.compile(
    r"([<>])\s*(?:\[(\w+)\]\s*)?([SFRPWEU.]+|-)\s+(\d+):(\d+)\((\d+)\)"
    r"(?:\s+ack\s+(\d+))?(?:\s+win\s+(\d+))?(?:\s+urg\s+(\d+))?"
)
_FOREIGN = re.compile(r"[<>]\s*(?:\[\w+\]\s*)?(udp|icmp|icmpv6|ipv4|ipv6|gre|mpls)\b")
_OPTION = re.compile(r"--([a-z_]+)(?:=(\S+))?[ \t]*")
_SYSCTL = re.compile(r"(?:sysctl\s+(?:-q\s+)?(?:-w\s+)?)([\w.\-]+)\s*=\s*\"?([^\"]*)\"?")
_TAG = re.compile(r"//\s*rfc(\d+):[ \t]*(.*)")
_STATES = (
    "ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN CLOSING"
)
ECN = {"noecn": 0, "ect1": 1, "ect0": 2, "ce": 3}


def state_names() -> dict[str, int]:
    """``TCP_ESTABLISHED`` and its like, and ``TCP_CA_Open``: the numbers of ``tcpi_state`` and
    ``tcpi_ca_state``."""
    states = {f"TCP_{name}": number for number, name in enumerate(_STATES.split(), 1)}
    phases = ("Open", "Disorder", "CWR", "Recovery", "Loss")
    return states | {f"TCP_CA_{name}": number for number, name in enumerate(phases)}


@dataclass(frozen=True, slots=True)
class When:
    """The time of an event, ns: from the start, or (``relative``) from the event before it."""

    relative: bool = False
    first: int = 0
    last: int = 0
    any: bool = False
    """At whatever time; only of a packet that is sent."""
    ends: int | None = None
    """By when a call that blocks has to return; counted as ``first`` is."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment as it is written. Numbers count from each side's own start, as in the text."""

    sent: bool
    """By the stack under test (``>``); else to it."""
    flags: str
    seq: int
    length: int
    ack: int | None
    window: int | None
    urgent: int | None
    options: tuple[tuple[Any, ...], ...] | None
    """("mss", n), ("wscale", n), ("sackOK",), ("TS", value, echo), ("sack", ((from, to), ...)), ("nop",),
    ("eol",); a number that is None (written ``*``): whatever it is. None: whatever they are."""
    ecn: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A system call with what it returns; ``out`` is what it is to write to its last but one argument."""

    name: str
    args: tuple[Any, ...]
    result: Any
    error: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """``%{ assert tcpi_cwnd == 10 }%``: expressions over the connection's tcp_info."""

    expressions: tuple[tuple[str, ast.expr], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One line."""

    line: int
    when: When
    what: Packet | Call | Check
    text: str


@dataclass(slots=True)
class Script:
    """A whole file."""

    name: str
    events: list[Event] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    """``--name=value`` before the first event."""
    sysctls: dict[str, str] = field(default_factory=dict)
    tags: list[tuple[str, str]] = field(default_factory=list)
    """(RFC, clause) of every comment ``// rfc9293: 3.10.7.4, MUST-12``."""


def parse(text: str, name: str = "script") -> Script:
    """A script from its text; ConfigError with ``name`` and the line for what cannot be read."""
    return _Reader(text, name).script()


def _ns(text: str) -> int:
    whole, _, part = text.partition(".")
    return int(whole or 0) * 1_000_000_000 + int((part + "0" * 9)[:9])


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.found = Script(name)
        for match in _TAG.finditer(text):
            clauses = [clause.strip() for clause in match[2].split(",")]
            self.found.tags += [(match[1], clause) for clause in clauses if clause]
        self.text = _without_comments(text)
        self.at = 0

    def fail(self, why: str) -> ConfigError:
        return ConfigError(f"{self.name}:{self.line()}: {why}")

    def line(self, at: int | None = None) -> int:
        return self.text.count("\n", 0, self.at if at is None else at) + 1

    def skip(self) -> bool:
        """Over white space; False at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.at < len(self.text)

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return match

    def eat(self, word: str) -> bool:
        self.skip()
        if not self.text.startswith(word, self.at):
            return False
        self.at += len(word)
        return True

    def want(self, word: str) -> None:
        if not self.eat(word):
            got = self.text[self.at : self.at + 12].split("\n")[0]
            raise self.fail(f"{word!r} was expected before {got!r}")

    def script(self) -> Script:
        while self.skip():
            if option := self.take(_OPTION):
                self.option(option[1], option[2] or "")
            elif self.text[self.at] == "`":
                self.settings()
            else:
                self.event()
        if not self.found.events:
            raise ConfigError(f"{self.name}: no event")
        return self.found

    def option(self, name: str, value: str) -> None:
        if self.found.events:
            raise self.fail(f"--{name} comes before the first event")
        self.found.options[name] = value

    def settings(self) -> None:
        """Backticks: sysctl alone, and before the first event alone."""
        start = self.at
        end = self.text.find("`", start + 1)
        if end < 0:
            raise self.fail("a backtick without its other one")
        if self.found.events:
            raise self.fail("settings come before the first event, without a time")
        for command in re.split(r"[\n;]|&&", self.text[start + 1 : end]):
            if not command.strip():
                continue
            match = _SYSCTL.fullmatch(command.strip())
            if not match:
                raise self.fail(f"`{command.strip()}`: of commands only `sysctl -q name=value` is known")
            self.found.sysctls[match[1]] = match[2].strip()
        self.at = end + 1

    def event(self) -> None:
        start = self.at
        when = self.when()
        self.skip()
        if self.at >= len(self.text):
            raise self.fail("a time without an event")
        if self.text[self.at] == "`":
            zero = when == When() and not self.found.events
            if not zero:
                raise self.fail("settings come at time 0, before the first event")
            self.settings()
            return
        what: Packet | Call | Check
        if self.text[self.at] in "<>":
            what = self.packet()
        elif self.eat("%{"):
            what = self.check()
        else:
            what = self.call()
        if when.any and not (isinstance(what, Packet) and what.sent):
            raise self.fail("the time * is for packets that are sent")
        if when.ends is not None and not isinstance(what, Call):
            raise self.fail("a time with ... is for calls")
        text = " ".join(self.text[start : self.at].split())
        self.found.events.append(Event(self.line(start), when, what, text))

    def when(self) -> When:
        match = self.take(_WHEN)
        if not match:
            got = self.text[self.at : self.at + 16].split("\n")[0]
            raise self.fail(f"a time was expected before {got!r}")
        if match[1]:
            return When(any=True)
        relative, first = bool(match[2]), _ns(match[3])
        if not match[4]:
            return When(relative, first, first)
        second = _ns(match[6]) + (first if match[5] and not relative else 0)
        if second < first:
            raise self.fail("a time that ends before it begins")
        if match[4] == "~":
            return When(relative, first, second)
        return When(relative, first, first, ends=second)

    def packet(self) -> Packet:
        if foreign := _FOREIGN.match(self.text, self.at):
            raise self.fail(f"{foreign[1]} packets are not known, TCP segments alone are")
        match = self.take(_PACKET)
        if not match:
            got = self.text[self.at : self.at + 40].split("\n")[0]
            raise self.fail(f"not a segment: {got!r}")
        seq, end, length = int(match[4]), int(match[5]), int(match[6])
        if end - seq != length:
            raise self.fail(f"{seq}:{end}({length}): the length is {end - seq}")
        if match[2] and match[2] not in ECN:
            raise self.fail(f"[{match[2]}]: one of {', '.join(ECN)}")
        numbers = [None if n is None else int(n) for n in match.group(7, 8, 9)]
        if "." in match[3] and numbers[0] is None:
            raise self.fail("a segment with ACK (.) names its ack")
        ecn = ECN[match[2]] if match[2] else None
        sent = match[1] == ">"
        options = self.options()
        if not sent and (options is None or any(None in option for option in options)):
            raise self.fail("a segment to the stack has no * and no ... among its options")
        ack, window, urgent = numbers
        return Packet(sent, match[3].strip("-"), seq, length, ack, window, urgent, options, ecn)

    def options(self) -> tuple[tuple[Any, ...], ...] | None:
        if not self.eat("<"):
            return ()
        if self.eat("...") or self.eat(">"):
            ended = self.text[self.at - 1] == ">"
            if not ended:
                self.want(">")
            return () if ended else None
        found = [self.an_option()]
        while self.eat(","):
            found.append(self.an_option())
        self.want(">")
        return tuple(found)

    def number(self) -> int:
        self.skip()
        match = self.take(_NUMBER)
        if not match:
            raise self.fail(f"a number was expected before {self.text[self.at : self.at + 8]!r}")
        return int(match[0], 0)

    def an_option(self) -> tuple[Any, ...]:
        self.skip()
        word = self.take(_WORD)
        name = word[0] if word else ""
        if name in ("mss", "wscale"):
            return name, None if self.eat("*") else self.number()
        if name in ("nop", "eol", "sackOK"):
            return (name,)
        if name == "TS":
            self.want("val")
            value = None if self.eat("*") else self.number()
            self.want("ecr")
            return name, value, (None if self.eat("*") else self.number())
        if name == "sack":
            blocks = []
            while True:
                first = self.number()
                self.want(":")
                blocks.append((first, self.number()))
                self.skip()
                if not _NUMBER.match(self.text, self.at):
                    return name, tuple(blocks)
        raise self.fail(f"TCP option {name!r}: one of mss, wscale, sackOK, TS, sack, nop, eol")

    def check(self) -> Check:
        end = self.text.find("}%", self.at)
        if end < 0:
            raise self.fail("%{ without }%")
        found = []
        for part in re.split(r"[;\n]", self.text[self.at : end]):
            words = part.strip()
            if not words:
                continue
            if not words.startswith("assert "):
                raise self.fail(f"%{{ {words} }}%: only `assert EXPRESSION` is known")
            try:
                tree = ast.parse(words.removeprefix("assert ").strip(), mode="eval").body
            except SyntaxError as error:
                raise self.fail(f"{words}: {error.msg}") from None
            _no_more_than_sums(tree, self)
            found.append((words, tree))
        self.at = end + 2
        return Check(tuple(found))

    def call(self) -> Call:
        word = self.take(_WORD)
        if not word:
            got = self.text[self.at : self.at + 16].split("\n")[0]
            raise self.fail(f"a packet, a call or %{{ was expected before {got!r}")
        self.want("(")
        args: list[Any] = []
        while not self.eat(")"):
            args.append(self.value())
            if not self.eat(","):
                self.want(")")
                break
        self.want("=")
        result, error = self.result()
        return Call(word[0], tuple(args), result, error)

    def result(self) -> tuple[Any, str]:
        if self.eat("?"):
            return ANY, ""
        value = self.value()
        name = ""
        if value == -1:
            while self.text[self.at : self.at + 1] in (" ", "\t"):
                self.at += 1
            word = self.take(_WORD)
            name = word[0] if word else ""
            if not isinstance(getattr(errno, name or "?", None), int):
                raise self.fail("-1 is followed by the name of an error")
            if self.eat("("):
                self.at = self.text.find(")", self.at) + 1 or len(self.text)
        return value, name

    def value(self) -> Any:
        """A number, words joined by |, [values], {name=value}, or ...: as themselves."""
        if self.eat(ANY):
            return ANY
        if self.eat("["):
            items = []
            while not self.eat("]"):
                items.append(self.value())
                self.eat(",")
            return items
        if self.eat("{"):
            fields: dict[str, Any] = {}
            while not self.eat("}"):
                self.skip()
                word = self.take(_WORD)
                if not word:
                    raise self.fail("{: name=value was expected")
                self.want("=")
                fields[word[0]] = self.value()
                self.eat(",")
            return fields
        total = self.term()
        while self.eat("|"):
            total |= self.term()
        return total

    def term(self) -> int:
        sign = -1 if self.eat("-") else 1
        self.skip()
        if _NUMBER.match(self.text, self.at):
            return sign * self.number()
        word = self.take(_WORD)
        if not word:
            raise self.fail(f"a value was expected before {self.text[self.at : self.at + 8]!r}")
        known = {"SOL_TCP": socket.IPPROTO_TCP, **state_names()}
        for place in (socket, os, fcntl, errno):
            number = known.get(word[0], getattr(place, word[0], None))
            if isinstance(number, int):
                return sign * int(number)
        raise self.fail(f"{word[0]}: a constant that is not known")


def _without_comments(text: str) -> str:
    """Comments blanked, lines kept."""
    return re.sub(
        r"/\*.*?\*/|//[^\n]*|(?m:^[ \t]*#[^\n]*)",
        lambda match: re.sub(r"[^\n]", " ", match[0]),
        text,
        flags=re.S,
    )


_SUMS = (
    ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Name, ast.Constant, ast.Load, ast.operator,
    ast.cmpop, ast.boolop, ast.unaryop,
)  # fmt: skip


def _no_more_than_sums(tree: ast.expr, reader: _Reader) -> None:
    names = state_names()
    for node in ast.walk(tree):
        if not isinstance(node, _SUMS) or isinstance(node, ast.Pow | ast.LShift):
            raise reader.fail("an assertion has names, numbers, comparisons and sums, no more")
        if isinstance(node, ast.Name) and not node.id.startswith("tcpi_") and node.id not in names:
            raise reader.fail(f"{node.id}: of names an assertion knows tcpi_ ones and those of states")
