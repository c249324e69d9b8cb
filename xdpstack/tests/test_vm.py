"""The virtual machine's outside, with a stand-in for QEMU that speaks over the same descriptors.

What is inside a real one is in tools/vmlab/tests."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from xdpstack import cli
from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import host, vm

STAND_IN = f"""#!{sys.executable}
import base64, json, os, re, socket, sys, time
wires = dict(re.findall(r"socket,id=(\\w+),fd=(\\d+)", " ".join(sys.argv)))
console, lab, serial, monitor = (
    socket.socket(fileno=int(wires[name])) for name in ("console", "lab", "serial", "monitor")
)
lines = lab.makefile("r")
def ask(line):
    lab.sendall(line.encode() + b"\\n")
    return lines.readline().strip()
"""


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``qemu(body)``: what is started as QEMU is that Python."""

    def become(body: str) -> Path:
        program = tmp_path / "bin/qemu-system-x86_64"
        program.parent.mkdir(exist_ok=True)
        program.write_text(STAND_IN + body)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return tmp_path

    return become


def output_of(machine_with: Callable[[int], int]) -> tuple[int, bytes]:
    """Run with the write end of a pipe; the exit code and what came out of it."""
    ours, theirs = os.pipe()
    taken: list[bytes] = []

    def take() -> None:
        while data := os.read(ours, 65536):
            taken.append(data)

    reader = threading.Thread(target=take)
    reader.start()
    try:
        code = machine_with(theirs)
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    return code, b"".join(taken)


def test_the_command_is_sent_its_output_comes_out_whole_and_its_exit_code_is_ours(
    qemu: Callable[[str], Path],
) -> None:
    directory = qemu(
        'script = base64.b64decode(ask("ready"))\n'
        'console.sendall(script + b"x" * 1000000)\n'
        'lab.sendall(b"exit 7\\n")\n'
    )

    def run(output: int) -> int:
        with vm.Machine(directory, "echo it's ours\n", output=output) as machine:
            return machine.wait(20)

    code, data = output_of(run)
    assert code == 7
    assert data == b"echo it's ours\n" + b"x" * 1_000_000


def test_the_guest_gets_directory_environment_and_words_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k 'a b' $HOME")
    monkeypatch.setenv("SECRET_TOKEN", "stays here")
    text = vm.script(["printf", "%s\n", "two words", "$x", "it's"])
    assert "SECRET_TOKEN" not in text
    guest = next(line for line in text.splitlines() if line.startswith("exec "))
    words = guest.split("tools/vmlab/guest run ", 1)[1]
    shown = text.replace(guest, f'pwd; echo "$PYTEST_ADDOPTS"; echo $XDPSTACK_VM; {words}')
    done = subprocess.run(
        ["bash", "-c", shown], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert done.stdout.splitlines() == [str(tmp_path), "-k 'a b' $HOME", "1", "two words", "$x", "it's"]


def test_a_guest_that_does_not_come_up_is_killed_and_said(
    qemu: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vm, "BOOT_TIMEOUT_S", 1.5)
    directory = qemu('serial.sendall(b"Kernel panic - not syncing\\r\\n")\ntime.sleep(60)\n')
    with vm.Machine(directory, "true\n") as machine:
        with pytest.raises(
            SetupError, match=r"boot the virtual machine: no end within 1.5 s: killed process \d+"
        ):
            machine.wait(5)
        pid = machine._qemu.pid
    assert not Path(f"/proc/{pid}").exists()
    assert "Kernel panic - not syncing" in capsys.readouterr().err


@pytest.mark.parametrize("hangs", [1, 2])
def test_a_guest_that_does_not_come_up_is_started_once_more_and_only_once(
    qemu: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hangs: int,
) -> None:
    monkeypatch.setattr(vm, "BOOT_TIMEOUT_S", 1.5)
    directory = qemu(
        "from pathlib import Path\n"
        'starts = Path(sys.argv[0]).parent / "starts"\n'
        'starts.open("a").write(".")\n'
        f"if len(starts.read_text()) <= {hangs}: time.sleep(60)\n"
        'ask("ready")\nlab.sendall(b"exit 3\\n")\n'
    )
    monkeypatch.setattr(vm, "prepare", lambda: directory)
    if hangs == 1:
        assert vm.run(["true"], timeout_s=5) == 3
    else:
        with pytest.raises(SetupError, match=r"boot the virtual machine: no end within 1.5 s"):
            vm.run(["true"], timeout_s=5)
    assert (directory / "bin/starts").read_text() == ".."
    assert capsys.readouterr().err.count("it is started once more") == 1


def test_a_command_that_does_not_end_is_tried_once(
    qemu: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = qemu(
        'open(os.path.dirname(sys.argv[0]) + "/starts", "a").write(".")\nask("ready")\ntime.sleep(60)\n'
    )
    monkeypatch.setattr(vm, "prepare", lambda: directory)
    with pytest.raises(SetupError, match="run the command in it: no end within 1 s"):
        vm.run(["sleep", "60"], timeout_s=1)
    assert (directory / "bin/starts").read_text() == "."


def test_a_command_that_does_not_end_is_killed_and_said(qemu: Callable[[str], Path]) -> None:
    directory = qemu('ask("ready")\ntime.sleep(60)\n')
    with (
        vm.Machine(directory, "sleep 60\n") as machine,
        pytest.raises(SetupError, match="run the command in it: no end within 1 s"),
    ):
        machine.wait(1)


def test_a_qemu_that_ends_early_is_quoted(qemu: Callable[[str], Path]) -> None:
    directory = qemu('sys.exit("qemu: no such machine")\n')
    with vm.Machine(directory, "true\n") as machine, pytest.raises(SetupError, match="qemu: no such machine"):
        machine.wait(5)


def test_what_the_first_process_of_the_guest_could_not_do_is_the_reason(qemu: Callable[[str], Path]) -> None:
    directory = qemu('lab.sendall(b"failed module 9p\\n")\ntime.sleep(60)\n')
    with vm.Machine(directory, "true\n") as machine, pytest.raises(SetupError, match="module 9p"):
        machine.wait(5)


def test_a_cable_is_pulled_by_the_monitor_and_only_ours(qemu: Callable[[str], Path]) -> None:
    directory = qemu(
        'ask("ready")\n'
        "import threading\n"
        "said = []\n"
        "def monitor_side():\n"
        "    monitor.sendall(b'{\"QMP\": {}}\\n')\n"
        '    for line in monitor.makefile("r"):\n'
        "        said.append(json.loads(line))\n"
        '        monitor.sendall(b\'{"event": "NIC"}\\n{"return": {}}\\n\')\n'
        "threading.Thread(target=monitor_side, daemon=True).start()\n"
        'answers = [ask("link igb1 off"), ask("link eth0 off"), ask("link igb1 sideways")]\n'
        "console.sendall(json.dumps([answers, said]).encode())\n"
        'lab.sendall(b"exit 0\\n")\n'
    )

    def run(output: int) -> int:
        with vm.Machine(directory, "true\n", output=output) as machine:
            return machine.wait(20)

    code, data = output_of(run)
    assert code == 0
    assert data.decode() == (
        '[["ok", "no such request: link eth0 off", "no such request: link igb1 sideways"], '
        '[{"execute": "qmp_capabilities", "arguments": {}}, '
        '{"execute": "set_link", "arguments": {"name": "igb1", "up": false}}]]'
    )


def test_the_machine_dies_with_the_process_that_holds_it(qemu: Callable[[str], Path], tmp_path: Path) -> None:
    directory = qemu(
        f'open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()) + "\\n")\ntime.sleep(60)\n'
    )
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib\nfrom xdpstack.lab import vm\n"
            f"vm.Machine(pathlib.Path({str(directory)!r}), '').wait(50)",
        ]
    )
    try:
        end = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
            assert time.monotonic() < end
            time.sleep(0.02)
        pid = int((tmp_path / "pid").read_text())
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.02)


def test_qemu_gets_two_cables_no_other_network_and_files_that_it_cannot_write() -> None:
    words = " ".join(vm.arguments(Path("/nowhere"), 3, 4, 5, 6))
    assert "path=/,security_model=none,readonly=on" in words
    assert [part.split()[0] for part in words.split("-netdev ")[1:]] == [
        f"hubport,id={name}-end,hubid={hub}" for name, hub in zip(vm.LINKS, (0, 0, 1, 1), strict=True)
    ]
    assert "-nodefaults" in words


def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr(
        host, "die_with_parent", lambda parent: None
    )  # would bind this test run to its parent
    assert cli.main(["lab", "--vm"]) == 2
    assert "a shell needs a terminal" in capsys.readouterr().err
    assert cli.main(["lab", "--vm", "--timeout", "0", "--", "true"]) == 2
    assert "--timeout 0: seconds, more than 0" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        vm.run(["true"], timeout_s=-1)
    monkeypatch.setattr(vm, "_TREE", tmp_path)
    assert cli.main(["lab", "vm", "--", "true"]) == vm.CANNOT_RUN
    assert capsys.readouterr().err == (
        "xdpstack: start the virtual machine: its scripts are not part of an installed package; "
        "use a source tree\n"
    )


@pytest.fixture
def fetching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """``fetching(body)``: what is run as tools/vmlab/fetch is that shell script."""

    def become(body: str) -> None:
        fetch = tmp_path / "tools/vmlab/fetch"
        fetch.parent.mkdir(parents=True)
        fetch.write_text(f"#!/bin/sh\n{body}\n")
        fetch.chmod(0o755)
        monkeypatch.setattr(vm, "_TREE", tmp_path)
        monkeypatch.setattr(host, "die_with_parent", lambda parent: None)

    return become


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        (
            "echo 'E: 404' >&2; echo 'vmlab: no kernel could be had' >&2; exit 75",
            77,
            "no kernel could be had",
        ),
        ("sleep 60", 77, "no end of fetching within 1 s"),
        ("echo 'cp: no space left' >&2; exit 1", 1, "cp: no space left"),
        ("exit 3", 1, "tools/vmlab/fetch ended with 3"),
    ],
)
def test_a_fetch_that_fails_gives_its_sentence_and_77_where_something_cannot_be_had(
    fetching: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    body: str,
    code: int,
    sentence: str,
) -> None:
    monkeypatch.setattr(vm, "FETCH_TIMEOUT_S", 1)
    fetching(body)
    assert cli.main(["lab", "vm", "--", "true"]) == code
    said = capfd.readouterr().err.splitlines()
    assert said[-1] == f"xdpstack: prepare the virtual machine: {sentence}"
    assert said[:-1] == (["E: 404"] if "404" in body else []), "what was said before is shown as it was"


@pytest.mark.parametrize(
    ("test", "machine", "ends", "ran"),
    [(0, 0, 0, True), (0, 77, 0, True), (0, 1, 1, True), (0, 4, 4, True), (2, 0, 2, False)],
)
def test_ci_counts_a_machine_that_cannot_be_had_as_not_run_and_any_other_end_as_it_is(
    tmp_path: Path, test: int, machine: int, ends: int, ran: bool
) -> None:
    tree = tmp_path / "tree"
    programs = {
        "bin/make": f'echo "make $*"; exit {test}',
        "tools/vmlab/test": f'echo "vm $*"; exit {machine}',
    }
    for name, body in programs.items():
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(f"#!/bin/sh\n{body}\n")
        (tree / name).chmod(0o755)
    (tree / ".ci").mkdir()
    (tree / ".ci/run").write_bytes((Path(__file__).parents[2] / ".ci/run").read_bytes())
    path = f"{tree / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", tree / ".ci/run"], capture_output=True, text=True, env={"PATH": path, "VM_SECONDS": "9"}
    )
    assert done.returncode == ends
    assert done.stdout.splitlines() == ["make test"] + ["vm --timeout 9"] * ran
    assert ("NOT RUN" in done.stderr) == (machine == 77)
