"""A virtual machine that has what this host lacks: network cards with queues, and a newer kernel.

    vm.run(["ethtool", "-i", "igb0"])   # its output comes out here; returns its exit code

QEMU emulates every instruction (no KVM, no privilege), so all is ten to thirty times slower than here: what
is measured in it means nothing, what works in it works. The guest sees this host's files, read-only, below
an overlay in its memory: the same paths, the same Python, the same tree; what it writes is lost. Its network
is two cables: igb0 to igb1 (Intel 82576, two queues and a PTP clock each), virtio0 to virtio1.

Life. QEMU is killed when this process ends, however it ends, when the guest has not come up after
:data:`BOOT_TIMEOUT_S` (then it is started once more, said so), and when the command has not ended in its
time. Nothing is written on this host but the kernel that ``tools/vmlab/fetch`` unpacks into ``build/vmlab``
(or ``$VMLAB``).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from xdpstack.closing import Closing
from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import host

__all__ = ["BOOT_TIMEOUT_S", "CANNOT_RUN", "LINKS", "CannotRunError", "Machine", "prepare", "run"]

BOOT_TIMEOUT_S = 180.0
"""A boot takes 11 s on an idle core; this is for a host whose cores are not idle."""
FETCH_TIMEOUT_S = 900
CANNOT_RUN = 77
"""Exit code of ``lab --vm`` where QEMU or a kernel cannot be had on this host: nothing ran in the machine."""
COMMAND_TIMEOUT_S = 480.0
SHELL_TIMEOUT_S = 4 * 3600.0
POWER_OFF_TIMEOUT_S = 15.0
LINKS = ("igb0", "igb1", "virtio0", "virtio1")
"""The network cards, by the name that the guest gives them and QEMU's monitor knows."""

_CANNOT_BE_HAD = 75
"""What ``fetch`` ends with where this host, or its network, lacks something."""
_MEMORY_MIB = 2048
_CONSOLE_LINES = 60
_TREE = Path(__file__).resolve().parents[2]
_PASSED = ("CI", "HOME", "LANG", "PATH", "PYTHONPATH", "TERM", "USER", "VENV")
_PASSED_PREFIXES = ("PYTEST_", "XDPSTACK_", "HYPOTHESIS_")


class CannotRunError(SetupError):
    """QEMU or a kernel for it cannot be had here; no machine was started."""


def run(
    argv: Sequence[str] = (), *, timeout_s: float | None = None, verbose: bool = False, output: int = 1
) -> int:
    """Boot, run ``argv`` with this directory and environment (without one: a shell on this terminal), and
    return its exit code.

    ``timeout_s``: from the guest being up to the command's end. ``verbose``: kernel messages on stderr.
    ``output``: descriptor that takes what the command prints. SetupError when the guest does not come up or
    when the time is over; CannotRunError, one of them, when QEMU or a kernel cannot be had.
    """
    if not argv and not (sys.stdin.isatty() and os.isatty(output)):
        raise ConfigError("lab --vm: a shell needs a terminal; name a command: xdpstack lab --vm -- COMMAND")
    limit = timeout_s if timeout_s is not None else COMMAND_TIMEOUT_S if argv else SHELL_TIMEOUT_S
    if limit <= 0:
        raise ConfigError(f"--timeout {limit:g}: seconds, more than 0")
    directory = prepare()
    with _booted(directory, script(argv), verbose=verbose, output=output) as machine:
        if argv:
            return machine.wait(limit)
        with _raw_terminal():
            return machine.wait(limit, keyboard=True)


def _booted(directory: Path, command: str, *, verbose: bool, output: int) -> Machine:
    """A machine that is up. One that does not boot in its time is killed, said so, and started once more."""
    for last in (False, True):
        machine = Machine(directory, command, verbose=verbose, output=output)
        try:
            machine.boot()
            return machine
        except BaseException as error:
            machine.close()
            if last or not (isinstance(error, SetupError) and error.errno == errno.ETIMEDOUT):
                raise
            print(f"xdpstack: {error}; it is started once more", file=sys.stderr)
    raise AssertionError("not reached")


def prepare() -> Path:
    """The directory that holds kernel and initramfs, made by ``tools/vmlab/fetch`` where it is missing.
    CannotRunError: what could not be had in FETCH_TIMEOUT_S; SetupError: fetching failed otherwise."""
    fetch = _TREE / "tools/vmlab/fetch"
    if not fetch.exists():
        raise CannotRunError(
            "start the virtual machine",
            "its scripts are not part of an installed package",
            "use a source tree",
        )
    directory = Path(os.environ.get("VMLAB") or _TREE / "build/vmlab").absolute()
    bounded = ["timeout", "-k", "10", str(FETCH_TIMEOUT_S), str(fetch), str(directory)]
    done = subprocess.run(bounded, stdout=2, stderr=subprocess.PIPE, text=True)
    if done.returncode in (124, 137):  # timeout(1) ended it
        raise CannotRunError("prepare the virtual machine", f"no end of fetching within {FETCH_TIMEOUT_S} s")
    if done.returncode != 0:
        *before, last = done.stderr.strip().splitlines() or [
            f"tools/vmlab/fetch ended with {done.returncode}"
        ]
        sys.stderr.write("".join(f"{line}\n" for line in before))
        kind = CannotRunError if done.returncode == _CANNOT_BE_HAD else SetupError
        raise kind("prepare the virtual machine", last.removeprefix("vmlab: "))
    return directory / "current"


def script(argv: Sequence[str]) -> str:
    """What the guest's bash runs: this process's directory and environment, then the command."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }
    passed |= {"XDPSTACK_VM": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(passed.items())]
    lines.append("export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
    if not argv:
        columns, rows = shutil.get_terminal_size()
        lines.append(f"stty rows {rows} cols {columns}")
    lines.append(f"cd {shlex.quote(os.getcwd())}")
    guest = shlex.quote(str(_TREE / "tools/vmlab/guest"))
    lines.append(f"exec /bin/bash {guest} {'run ' + shlex.join(argv) if argv else 'shell'}")
    return "\n".join(lines) + "\n"


class Machine(Closing):
    """A running QEMU and the four wires to it: the command's output, the port "lab" of requests, kernel
    messages, QEMU's monitor."""

    def __init__(self, directory: Path, command: str, *, verbose: bool = False, output: int = 1) -> None:
        """Start QEMU; SetupError when it does not start. ``command``: a bash script for the guest."""
        self._command = command
        self._verbose = verbose
        self._output = output
        self._messages: deque[bytes] = deque([b""], maxlen=_CONSOLE_LINES)
        self._requests = b""
        self._code: int | None = None
        self._up = False
        self._replies: TextIO | None = None
        self._console, console = socket.socketpair()
        self._lab, lab = socket.socketpair()
        self._serial, serial = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        theirs = (console, lab, serial, monitor)
        parent = os.getpid()

        def before_exec() -> None:
            host.die_with_parent(parent)
            os.nice(5)

        try:
            self._qemu = subprocess.Popen(
                arguments(directory, *(end.fileno() for end in theirs)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[end.fileno() for end in theirs],
                preexec_fn=before_exec,
                start_new_session=True,  # Ctrl-C is ours: the terminal's signal does not reach QEMU
            )
        except OSError as error:
            self._close_wires()
            raise SetupError("start QEMU", os.strerror(error.errno or 0)) from error
        finally:
            for end in theirs:
                end.close()

    def close(self) -> None:
        """Kill QEMU if it still runs, by its process id, and wait for it."""
        if self._qemu.poll() is None:
            self._qemu.kill()
            self._qemu.wait()
        if self._qemu.stderr:
            self._qemu.stderr.close()
        self._close_wires()

    def _close_wires(self) -> None:
        for end in (self._console, self._lab, self._serial, self._monitor):
            end.close()

    def boot(self) -> None:
        """Wait until the guest is up and has its command; SetupError, with ETIMEDOUT after BOOT_TIMEOUT_S."""
        with self._wires(keyboard=False) as wires:
            self._until(wires, lambda: self._up, BOOT_TIMEOUT_S, "boot the virtual machine")

    def wait(self, timeout_s: float, *, keyboard: bool = False) -> int:
        """Carry output, requests and (``keyboard``) standard input until the guest has powered off; return
        the command's exit code. ``timeout_s``: from the guest being up, which is waited for, to that end."""
        self.boot()
        with self._wires(keyboard) as wires:
            self._until(wires, lambda: self._code is not None, timeout_s, "run the command in it")
            with contextlib.suppress(
                SetupError
            ):  # what it printed is on its way; a guest that hangs now is killed
                self._until(wires, lambda: not wires.get_map(), POWER_OFF_TIMEOUT_S, "power it off")
        assert self._code is not None
        return self._code

    @contextlib.contextmanager
    def _wires(self, keyboard: bool) -> Iterator[selectors.BaseSelector]:
        """What is read, each with the method that takes it; a method returns False at its wire's end."""
        with selectors.DefaultSelector() as wires:
            wires.register(self._console, selectors.EVENT_READ, self._take_output)
            wires.register(self._lab, selectors.EVENT_READ, self._take_requests)
            wires.register(self._serial, selectors.EVENT_READ, self._take_messages)
            if keyboard:
                wires.register(sys.stdin.fileno(), selectors.EVENT_READ, self._take_keys)
            yield wires

    def _until(
        self, wires: selectors.BaseSelector, done: Callable[[], bool], limit_s: float, tried: str
    ) -> None:
        deadline = time.monotonic() + limit_s
        while not done():
            ready = wires.select(0.5)
            for key, _ in ready:
                if not key.data():
                    wires.unregister(key.fileobj)
            if not ready and self._qemu.poll() is not None:
                raise self._failed(tried, self._last_words())
            if time.monotonic() > deadline:
                reason = f"no end within {limit_s:g} s: killed process {self._qemu.pid}"
                raise self._failed(tried, reason, errno.ETIMEDOUT)

    def _failed(self, tried: str, reason: str, number: int = 0) -> SetupError:
        """The error, after the last kernel messages on stderr."""
        if not self._verbose:
            sys.stderr.write(b"\n".join(self._messages).decode(errors="replace").strip() + "\n")
        return SetupError(tried, reason, "xdpstack lab --vm --verbose shows the kernel's messages", number)

    def _last_words(self) -> str:
        assert self._qemu.stderr is not None
        said = self._qemu.stderr.read().decode(errors="replace").strip().splitlines()
        errors = [line for line in said if "warning:" not in line]  # that no cable leads to the host, always
        return errors[-1] if errors else f"QEMU ended with {self._qemu.returncode}"

    def _take_output(self) -> bool:
        data = self._console.recv(65536)
        view = memoryview(data)
        while view:
            view = view[os.write(self._output, view) :]
        return bool(data)

    def _take_keys(self) -> bool:
        data = os.read(sys.stdin.fileno(), 4096)
        self._console.sendall(data)
        return bool(data)

    def _take_messages(self) -> bool:
        data = self._serial.recv(65536)
        if self._verbose:
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()
        first, *rest = data.replace(b"\r", b"").split(b"\n")
        self._messages[-1] += first
        self._messages.extend(rest)
        return bool(data)

    def _take_requests(self) -> bool:
        data = self._lab.recv(65536)
        *lines, self._requests = (self._requests + data).split(b"\n")
        for line in lines:
            self._serve(line.decode(errors="replace").split())
        return bool(data)

    def _serve(self, words: list[str]) -> None:
        """One request of the guest's; ``link`` is answered by ``ok`` or ``no REASON``."""
        match words:
            case ["ready"]:
                self._up = True
                self._answer(base64.b64encode(self._command.encode()).decode())
            case ["exit", code] if code.isdigit():
                self._code = int(code)
            case ["failed", *reason]:
                raise self._failed("boot the virtual machine", " ".join(reason))
            case ["link", name, "on" | "off" as state] if name in LINKS:
                refused = self._ask_monitor("set_link", name=name, up=state == "on")
                self._answer(f"no {refused}" if refused else "ok")
            case _:
                self._answer(f"no such request: {' '.join(words)}")

    def _answer(self, line: str) -> None:
        self._lab.sendall(line.encode() + b"\n")

    def _ask_monitor(self, command: str, **arguments: object) -> str:
        """Have QEMU do ``command``; why it refused, empty when it did it."""
        if self._replies is None:
            self._monitor.settimeout(10)
            self._replies = self._monitor.makefile("r")
            self._replies.readline()  # its greeting
            self._ask_monitor("qmp_capabilities")
        request = {"execute": command, "arguments": arguments}
        self._monitor.sendall(json.dumps(request).encode() + b"\n")
        while line := self._replies.readline():
            reply = json.loads(line)
            if "error" in reply:
                return str(reply["error"]["desc"])
            if "return" in reply:
                return ""
        return "QEMU's monitor is gone"


def arguments(directory: Path, console: int, lab: int, serial: int, monitor: int) -> list[str]:
    """QEMU's command line; the numbers are descriptors of sockets."""
    kernel = "console=ttyS0 panic=-1 mitigations=off no_timer_check quiet"
    kernel += f" vmlab.modules={directory.resolve()}/modules"
    argv = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2"]
    argv += ["-m", str(_MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-kernel", f"{directory}/vmlinuz", "-initrd", f"{directory}/initramfs.gz", "-append", kernel]
    for name, descriptor in (("console", console), ("lab", lab), ("serial", serial), ("monitor", monitor)):
        argv += ["-chardev", f"socket,id={name},fd={descriptor}"]
    argv += ["-serial", "chardev:serial", "-mon", "chardev=monitor,mode=control"]
    argv += ["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console"]
    argv += ["-device", "virtserialport,chardev=lab,name=lab"]
    argv += ["-fsdev", "local,id=files,path=/,security_model=none,readonly=on,multidevs=remap"]
    argv += ["-device", "virtio-9p-pci,fsdev=files,mount_tag=host", "-device", "virtio-rng-pci"]
    for number, name in enumerate(LINKS):
        mac = f"mac=52:54:00:00:00:{number + 1:02x}"
        argv += ["-netdev", f"hubport,id={name}-end,hubid={number // 2}"]
        if name.startswith("igb"):  # with its virtual functions a card fills a bus: each has one
            argv += ["-device", f"pcie-root-port,id={name}-bus,chassis={number},slot={number}"]
            argv += ["-device", f"igb,id={name},bus={name}-bus,netdev={name}-end,{mac}"]
        else:
            argv += ["-device", f"virtio-net-pci,id={name},netdev={name}-end,{mac}"]
    return argv


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too; the terminal is as it was afterwards."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    old = signal.signal(signal.SIGTERM, leave)
    try:
        tty.setraw(keyboard)
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, old)
