"""Plays a script against a machine: our stack in virtual time, or the kernel's behind a TUN device."""

from __future__ import annotations

import ast
import errno
import operator
import os
from collections.abc import Callable
from typing import Any, Protocol

from xdpstack.drill.script import ANY, Call, Check, Event, Packet, Script, state_names
from xdpstack.drill.segment import FLAGS, Ends, Segment, build, read
from xdpstack.errors import ConfigError, XdpstackError

__all__ = ["CALLS", "PORT", "Machine", "Mismatch", "Refused", "pattern", "play"]

PORT = 8080
"""What ``...`` is for bind and connect."""
_PEER_PORT = 40001
_REMOTE_SHIFT = 0xFFFFF000  # the peer's numbers wrap soon
_FIELD = 0xFFFFFFFF


class Mismatch(XdpstackError):
    """The stack did something else than a line of the script says; the message begins with FILE:LINE."""


class Refused(XdpstackError):
    """The machine has no such option or setting: a script can be right, and not for it."""


class Machine(Protocol):
    """A stack under test with its sockets, its clock and its wire. Times are ns since it began.

    The calls raise OSError as the system's do; BlockingIOError where a blocking socket would wait.
    ``early`` and ``late``: by how much a segment may miss its time, and later by ``slack`` of the wait for
    it. ``settle``: how long the last line waits for what nobody expects.
    """

    local: str
    remote: str
    early: int
    late: int
    slack: float
    settle: int

    def now(self) -> int:
        """The time."""

    def advance(self, until: int) -> None:
        """Let time pass; what is sent meanwhile waits for :meth:`sent`."""

    def inject(self, packet: bytes) -> None:
        """An IP packet arrives."""

    def sent(self, until: int) -> tuple[int, bytes] | None:
        """The next IP packet that was sent and when; waits for it up to ``until``."""

    def socket(self) -> int:
        """A TCP socket, the lowest free number from 3 on."""

    def bind(self, fd: int, port: int) -> None:
        """As the system's, to the local address."""

    def listen(self, fd: int, backlog: int) -> None:
        """As the system's."""

    def accept(self, fd: int) -> int:
        """As the system's."""

    def connect(self, fd: int, port: int) -> None:
        """As the system's, to the remote address; BlockingIOError while it is under way."""

    def read(self, fd: int, most: int) -> bytes:
        """As the system's."""

    def write(self, fd: int, data: bytes) -> int:
        """As the system's."""

    def shutdown(self, fd: int, how: int) -> None:
        """As the system's."""

    def close(self, fd: int) -> None:
        """As the system's."""

    def setsockopt(self, fd: int, level: int, name: int, value: Any) -> None:
        """``value``: a number, or for SO_LINGER a dict; Refused where there is no such option."""

    def getsockopt(self, fd: int, level: int, name: int) -> int:
        """The number that it is."""

    def blocking(self, fd: int, does: bool | None = None) -> bool:
        """Whether calls wait; sets it first where ``does`` is given."""

    def info(self, fd: int) -> dict[str, int]:
        """Fields of ``struct tcp_info`` with their names (``tcpi_state``), times in us."""


def pattern(offset: int, length: int) -> bytes:
    """The bytes of every stream here, both ways, from ``offset`` on: they tell where they belong."""
    return bytes((i * 7 + (i >> 8)) & 0xFF for i in range(offset, offset + length))


def play(script: Script, machine: Machine) -> None:
    """Every event in turn. Mismatch: the stack did something else. Refused: not for this machine."""
    _Player(script, machine).run()


class _Player:
    def __init__(self, script: Script, machine: Machine) -> None:
        self.script, self.machine = script, machine
        self.local_port, self.remote_port = PORT, _PEER_PORT
        self.learns_port = False
        self.fresh, self.local_start = True, 0
        self.stamp_shift: int | None = None
        self.peer_syn: int | None = None
        self.last = 0
        self.read_at: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.connection = -1
        self.waiting: tuple[Event, Call, int] | None = None
        self.event = script.events[0]

    def fail(self, why: str, event: Event | None = None) -> Mismatch:
        event = event or self.event
        return Mismatch(f"{self.script.name}:{event.line}: {why}")

    def run(self) -> None:
        for event in self.script.events:
            self.event = event
            base = self.last if event.when.relative else 0
            if isinstance(event.what, Packet) and event.what.sent:
                self.expect(event.what, base)
            else:
                self.machine.advance(base + event.when.first)
                self.last = max(base + event.when.first, self.machine.now())
                if isinstance(event.what, Packet):
                    self.machine.inject(self.made(event.what))
                elif isinstance(event.what, Check):
                    self.check(event.what)
                else:
                    self.call(event, event.what, base)
            self.try_waiting()
        self.finish()

    def finish(self) -> None:
        if self.waiting:
            self.machine.advance(self.waiting[2])
            self.try_waiting(over=True)
        packet = self.machine.sent(self.machine.now() + self.machine.settle)
        if packet:
            at = f"{packet[0] / 1e9:.4f}".rstrip("0")
            raise self.fail(f"behind this line {self.shown(self.decoded(packet[1]))} was sent at {at} s")

    # -- segments

    def made(self, packet: Packet) -> bytes:
        """A segment of the script as it arrives."""
        if "S" in packet.flags and packet.seq != self.peer_syn:
            self.peer_syn, self.fresh = packet.seq, self.fresh or self.peer_syn is not None
        start = packet.seq + (0 if "S" in packet.flags else -1) - (self.peer_syn or 0)
        segment = Segment(
            Ends(self.machine.remote, self.remote_port, self.machine.local, self.local_port),
            sum(FLAGS[flag] for flag in packet.flags),
            packet.seq + _REMOTE_SHIFT & _FIELD,
            0 if packet.ack is None else packet.ack + self.local_start & _FIELD,
            packet.window if packet.window is not None else 65535,
            packet.urgent or 0,
            tuple(self.lived(option) for option in packet.options or ()),
            pattern(start, packet.length),
            packet.ecn or 0,
        )
        try:
            return build(segment)
        except ValueError as error:
            raise ConfigError(f"{self.script.name}:{self.event.line}: {error}") from None

    def lived(self, option: tuple[Any, ...]) -> tuple[Any, ...]:
        if option[0] == "TS":
            return "TS", option[1] or 0, (option[2] or 0) + (self.stamp_shift or 0) & _FIELD
        if option[0] == "sack":
            shift = self.local_start
            return "sack", tuple((a + shift & _FIELD, b + shift & _FIELD) for a, b in option[1])
        return option

    def decoded(self, raw: bytes) -> Segment:
        try:
            return read(raw)
        except ValueError as error:
            raise self.fail(f"what was sent is no sound segment: {error}") from None

    def expect(self, packet: Packet, base: int) -> None:
        when, machine = self.event.when, self.machine
        until = base + when.last + machine.late
        until += int(max(base + when.last - self.last, 0) * machine.slack)
        if when.any:
            until = machine.now() + 120_000_000_000
        found = machine.sent(until)
        if found is None:
            raise self.fail(f"{self.event.text!r} was not sent by {until / 1e9:.4g} s")
        at, raw = found
        segment = self.decoded(raw)
        self.learn(packet, segment)
        wrong = self.differences(packet, segment)
        if not when.any and not base + when.first - machine.early <= at <= until:
            wrong.append("time")
        if wrong:
            told = f"{self.shown(segment)} was sent at {at / 1e9:.4f} s, not {self.event.text!r}"
            raise self.fail(f"{told} ({', '.join(wrong)})")
        self.last = at

    def learn(self, packet: Packet, segment: Segment) -> None:
        """Where this side's numbers and stamps begin, from its SYN."""
        if "S" in packet.flags and segment.flags & FLAGS["S"] and self.fresh:
            self.local_start, self.fresh = segment.seq - packet.seq & _FIELD, False
            self.stamp_shift = None
            if self.learns_port:
                self.local_port, self.learns_port = segment.ends.sport, False
        stamps = [o for o in segment.options if o[0] == "TS"]
        asked = [o for o in packet.options or () if o[0] == "TS" and o[1] is not None]
        if stamps and asked and self.stamp_shift is None:
            self.stamp_shift = stamps[0][1] - asked[0][1] & _FIELD

    def differences(self, packet: Packet, segment: Segment) -> list[str]:
        flags = sum(FLAGS[flag] for flag in packet.flags)
        push = FLAGS["P"]
        wrong = []
        if (segment.flags ^ flags) & ~push or flags & push & ~segment.flags:
            wrong.append("flags")
        if segment.seq != packet.seq + self.local_start & _FIELD:
            wrong.append("number")
        if len(segment.payload) != packet.length:
            wrong.append("length")
        elif segment.payload != pattern(packet.seq - 1, packet.length):
            wrong.append("bytes")
        if packet.ack is not None and segment.ack != packet.ack + _REMOTE_SHIFT & _FIELD:
            wrong.append("ack")
        if packet.window is not None and segment.window != packet.window:
            wrong.append("window")
        if packet.urgent is not None and segment.urgent != packet.urgent:
            wrong.append("urgent")
        if packet.ecn is not None and segment.ecn != packet.ecn:
            wrong.append("ECN")
        own = Ends(self.machine.local, self.local_port, self.machine.remote, self.remote_port)
        if segment.ends != own:
            wrong.append("addresses or ports")
        if packet.options is not None and not self.same_options(packet.options, segment.options):
            wrong.append("options")
        return wrong

    def same_options(self, asked: tuple[tuple[Any, ...], ...], found: tuple[tuple[Any, ...], ...]) -> bool:
        """Padding and order are each stack's own; a stamp may be off by as much as a time may."""
        want = {o[0]: o for o in asked if o[0] not in ("nop", "eol")}
        have = {o[0]: o for o in found if o[0] not in ("nop", "eol")}
        if want.keys() != have.keys():
            return False
        for name, option in want.items():
            seen = have[name]
            if name == "TS":
                if option[1] is not None:
                    off = seen[1] - option[1] - (self.stamp_shift or 0) & _FIELD
                    off = off - (1 << 32) if off >> 31 else off
                    if not -self.machine.early <= off * 1_000_000 <= self.machine.late + 1_000_000:
                        return False
                if option[2] is not None and seen[2] != option[2]:
                    return False
            elif name == "sack":
                shift = _REMOTE_SHIFT
                if seen[1] != tuple((a + shift & _FIELD, b + shift & _FIELD) for a, b in option[1]):
                    return False
            elif seen != option and None not in option:
                return False
        return True

    def shown(self, segment: Segment) -> str:
        """A segment as a script would have it."""
        flags = "".join(word for word, bit in FLAGS.items() if segment.flags & bit) or "-"
        seq = segment.seq - self.local_start & _FIELD
        text = f"> {flags} {seq}:{seq + len(segment.payload)}({len(segment.payload)})"
        if segment.flags & FLAGS["."]:
            text += f" ack {segment.ack - _REMOTE_SHIFT & _FIELD}"
        text += f" win {segment.window}"
        words = [self.option_shown(o) for o in segment.options if o[0] not in ("nop", "eol")]
        return f"`{text} <{','.join(words)}>`" if words else f"`{text}`"

    def option_shown(self, option: tuple[Any, ...]) -> str:
        if option[0] == "TS":
            return f"TS val {option[1] - (self.stamp_shift or 0) & _FIELD} ecr {option[2]}"
        if option[0] == "sack":
            blocks = [(a - _REMOTE_SHIFT & _FIELD, b - _REMOTE_SHIFT & _FIELD) for a, b in option[1]]
            return "sack " + " ".join(f"{a}:{b}" for a, b in blocks)
        return " ".join(str(part) for part in option)

    # -- calls

    def call(self, event: Event, call: Call, base: int) -> None:
        do = CALLS.get(call.name)
        if do is None:
            raise ConfigError(f"{self.script.name}:{event.line}: {call.name}() is no call that is known")
        try:
            found = do(self, call.args)
        except BlockingIOError as error:
            code = error.errno or errno.EAGAIN
            if event.when.ends is not None:
                if self.waiting:
                    raise self.fail("a second call that waits") from None
                self.waiting = (event, call, base + event.when.ends)
                return
            self.compare(event, call, -1, code)
        except OSError as error:
            if isinstance(error, XdpstackError):
                raise
            self.compare(event, call, -1, error.errno or 0)
        except (IndexError, TypeError, KeyError) as error:
            raise ConfigError(f"{self.script.name}:{event.line}: {call.name}(): {error}") from None
        else:
            self.compare(event, call, found, 0)

    def compare(self, event: Event, call: Call, found: int, code: int) -> None:
        named = errno.errorcode.get(code, "")
        got = f"-1 {named}" if code else str(found)
        if call.result == ANY:
            return
        if (call.error != named) if call.error or code else (call.result != found):
            raise self.fail(f"{call.name}() gave {got}, not {call.result} {call.error}".rstrip(), event)

    def try_waiting(self, over: bool = False) -> None:
        """A call that blocks is tried again whenever something has happened."""
        if not self.waiting:
            return
        event, call, ends = self.waiting
        try:
            found, code = CALLS[call.name](self, call.args), 0
        except BlockingIOError:
            if over or self.machine.now() > ends + self.machine.late:
                raise self.fail(f"{call.name}() had not returned at its time", event) from None
            return
        except OSError as error:
            found, code = -1, error.errno or 0
        self.waiting = None
        self.compare(event, call, found, code)

    def fd_of(self, args: tuple[Any, ...]) -> int:
        if not isinstance(args[0], int):
            raise TypeError("the first argument is a number")
        return args[0]

    def opened(self, fd: int) -> int:
        self.read_at[fd] = self.written[fd] = 0
        self.connection = fd
        return fd

    def do_socket(self, args: tuple[Any, ...]) -> int:
        return self.machine.socket()

    def do_bind(self, args: tuple[Any, ...]) -> int:
        self.machine.bind(self.fd_of(args), PORT)
        return 0

    def do_listen(self, args: tuple[Any, ...]) -> int:
        self.machine.listen(self.fd_of(args), args[1])
        return 0

    def do_accept(self, args: tuple[Any, ...]) -> int:
        return self.opened(self.machine.accept(self.fd_of(args)))

    def do_connect(self, args: tuple[Any, ...]) -> int:
        fd = self.fd_of(args)
        if fd not in self.written:
            self.opened(fd)
            self.remote_port, self.learns_port, self.fresh = PORT, True, True
        self.machine.connect(fd, PORT)
        return 0

    def do_read(self, args: tuple[Any, ...]) -> int:
        fd = self.fd_of(args)
        data = self.machine.read(fd, args[2])
        at = self.read_at.get(fd, 0)
        if data != pattern(at, len(data)):
            raise self.fail(f"the {len(data)} bytes from {at} on that were read are not those that were sent")
        self.read_at[fd] = at + len(data)
        return len(data)

    def do_write(self, args: tuple[Any, ...]) -> int:
        fd = self.fd_of(args)
        at = self.written.get(fd, 0)
        done = self.machine.write(fd, pattern(at, args[2]))
        self.written[fd] = at + done
        return done

    def do_shutdown(self, args: tuple[Any, ...]) -> int:
        self.machine.shutdown(self.fd_of(args), args[1])
        return 0

    def do_close(self, args: tuple[Any, ...]) -> int:
        self.machine.close(self.fd_of(args))
        if self.connection == args[0]:
            self.connection = -1
        return 0

    def do_setsockopt(self, args: tuple[Any, ...]) -> int:
        value = args[3]
        self.machine.setsockopt(
            self.fd_of(args), args[1], args[2], value[0] if isinstance(value, list) else value
        )
        return 0

    def do_getsockopt(self, args: tuple[Any, ...]) -> int:
        found = self.machine.getsockopt(self.fd_of(args), args[1], args[2])
        if args[3] != ANY and [found] != args[3]:
            raise self.fail(f"getsockopt() gave [{found}], not {args[3]}")
        return 0

    def do_fcntl(self, args: tuple[Any, ...]) -> int:
        import fcntl

        fd = self.fd_of(args)
        if args[1] == fcntl.F_GETFL:
            return os.O_RDWR | (0 if self.machine.blocking(fd) else os.O_NONBLOCK)
        if args[1] != fcntl.F_SETFL:
            raise TypeError("F_GETFL and F_SETFL alone are known")
        self.machine.blocking(fd, not args[2] & os.O_NONBLOCK)
        return 0

    # -- assertions

    def check(self, check: Check) -> None:
        if self.connection < 0:
            raise self.fail("no connection to look at")
        info = self.machine.info(self.connection)
        for words, tree in check.expressions:
            try:
                good = _value(tree, {**state_names(), **info})
            except KeyError as error:
                raise Refused(f"{self.script.name}:{self.event.line}: no {error.args[0]} here") from None
            if not good:
                names = sorted({n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in info})
                told = ", ".join(f"{name} is {info[name]}" for name in names)
                raise self.fail(f"`{words}` does not hold: {told}")


CALLS: dict[str, Callable[[_Player, tuple[Any, ...]], int]] = {
    "socket": _Player.do_socket,
    "bind": _Player.do_bind,
    "listen": _Player.do_listen,
    "accept": _Player.do_accept,
    "connect": _Player.do_connect,
    "read": _Player.do_read,
    "recv": _Player.do_read,
    "write": _Player.do_write,
    "send": _Player.do_write,
    "shutdown": _Player.do_shutdown,
    "close": _Player.do_close,
    "setsockopt": _Player.do_setsockopt,
    "getsockopt": _Player.do_getsockopt,
    "fcntl": _Player.do_fcntl,
}
"""What scripts may call."""

_SUMS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv, ast.Mod: operator.mod, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


def _value(tree: ast.expr, names: dict[str, int]) -> Any:
    if isinstance(tree, ast.Constant):
        return tree.value
    if isinstance(tree, ast.Name):
        return names[tree.id]
    if isinstance(tree, ast.BinOp):
        return _SUMS[type(tree.op)](_value(tree.left, names), _value(tree.right, names))
    if isinstance(tree, ast.UnaryOp):
        value = _value(tree.operand, names)
        return not value if isinstance(tree.op, ast.Not) else -value
    if isinstance(tree, ast.BoolOp):
        every = [bool(_value(part, names)) for part in tree.values]
        return all(every) if isinstance(tree.op, ast.And) else any(every)
    if isinstance(tree, ast.Compare):
        values = [_value(part, names) for part in (tree.left, *tree.comparators)]
        pairs = zip(tree.ops, values, values[1:], strict=False)
        return all(_SUMS[type(op)](a, b) for op, a, b in pairs)
    raise KeyError(ast.unparse(tree))
