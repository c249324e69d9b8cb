"""What an engine's process holds for its speed: memory, wake-ups, a core and a priority; and that all of it
ends with it, whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdpstack import config
from xdpstack.cli import main
from xdpstack.cli import run as cli_run
from xdpstack.doctor import examine
from xdpstack.errors import ConfigError, SetupError
from xdpstack.placing import DMA_LATENCY, Placed, Placement
from xdpstack.stats import segments

SECONDS = 60.0


@pytest.fixture
def latency(tmp_path: Path) -> Path:
    """A file in place of the device: it says what was written, and 2 s before."""
    path = tmp_path / "cpu_dma_latency"
    path.write_bytes(struct.pack("i", 2_000_000_000))
    return path


def child(code: str) -> str:
    """What a process of its own prints: locking memory here would lock all that the tests ever mapped."""
    words = (
        "from xdpstack.errors import SetupError\n"
        "from xdpstack.placing import Placed, Placement, locked_bytes\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", words + code], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lock_or_skip() -> None:
    if "libasan" in Path("/proc/self/maps").read_text():
        pytest.skip("AddressSanitizer's shadow, terabytes of it, would be locked too")
    code = "try: Placed(Placement(lock_memory=True)).close()\nexcept SetupError as error: print(error)"
    refused = child(code)
    if refused:
        pytest.skip(f"memory cannot be locked here: {refused}")


def test_wake_ups_are_held_and_said_with_what_was_before(latency: Path) -> None:
    with Placed(Placement(cpu_latency=20e-6), dma_latency=latency) as placed:
        assert placed.notes == ["cores wake within 20 µs while this runs (before: 2,000,000,000 µs)"]
        assert latency.read_bytes()[-4:] == struct.pack("i", 20)
        assert "wake-ups" in repr(placed)
        assert os.readlink(f"/proc/self/fd/{placed._fd}") == str(latency)
    assert repr(placed) == "<Placed: nothing held>"
    placed.close()


def test_the_kernel_itself_holds_them() -> None:
    try:
        fd = os.open(DMA_LATENCY, os.O_RDWR)
    except OSError as error:
        pytest.skip(f"{DMA_LATENCY}: {error.strerror}")
    os.close(fd)
    with Placed(Placement(cpu_latency=0)) as placed:
        assert placed.notes[0].startswith("cores wake within 0 µs while this runs (before: ")


def test_memory_is_locked_until_the_last_lets_go() -> None:
    lock_or_skip()
    said = child(
        "print(locked_bytes())\n"
        "with Placed(Placement(lock_memory=True)) as one:\n"
        "    print(locked_bytes() > 1 << 20, one.notes[0].startswith('memory is locked: '))\n"
        "    with Placed(Placement(lock_memory=True)): pass\n"
        "    print(locked_bytes() > 1 << 20)\n"
        "print(locked_bytes())\n"
    )
    assert said.split() == ["0", "True", "True", "True", "0"], "the second let go before the first"


def test_nothing_is_held_where_one_of_both_is_refused(latency: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"hold wake-ups of cores at 0 µs: .*No such file"):
        Placed(Placement(cpu_latency=0.0, lock_memory=True), dma_latency=tmp_path / "none")
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    said = child(
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: Placed(Placement(lock_memory=True))\n"
        "except SetupError as error: print(error, locked_bytes())\n"
    )
    assert said.startswith("lock the process's memory: ")
    assert said.rstrip().endswith("ulimit -l unlimited, or CAP_IPC_LOCK 0")


@pytest.mark.parametrize(
    ("keys", "says"),
    [({"rt_priority": 100}, "rt_priority: wanted 0 to 99, not 100"),
     ({"rt_priority": True}, "rt_priority: wanted"), ({"lock_memory": 1}, "lock_memory: wanted true"),
     ({"cpu_latency": -1.0}, "cpu_latency: wanted seconds from 0 to 1"),
     ({"cpu_latency": float("nan")}, "cpu_latency: wanted"), ({"cpu_latency": "0"}, "cpu_latency: wanted")],
)  # fmt: skip
def test_what_cannot_be_is_refused(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Placement(**keys)  # type: ignore[arg-type]


# -- of a program

NAME = f"placed-{os.getpid()}"
PROGRAM = (
    '[engine]\nname = "{name}"\n{keys}\n[ports.main]\nport = "sock:lo"\n[feeds.a]\nschema = "plain"\n'
    '[[feeds.a.channels]]\nlines = ["239.255.77.8:45778"]\n'
)


def program(folder: Path, keys: str = "") -> Path:
    file = folder / "placed.toml"
    file.write_text(PROGRAM.format(name=NAME, keys=keys))
    return file


def test_keys_of_the_engine_are_read_and_refused_by_line(tmp_path: Path) -> None:
    keys = "cpu = 1\nrt_priority = 50\nlock_memory = true\ncpu_latency = 5e-6"
    read = config.load(program(tmp_path, keys))
    assert read.placement == Placement(rt_priority=50, lock_memory=True, cpu_latency=5e-6)
    assert config.load(program(tmp_path)).placement == Placement()
    with pytest.raises(ConfigError, match=r"placed\.toml:3: engine\.rt_priority: wanted 0 to 99, not 200"):
        config.load(program(tmp_path, "rt_priority = 200"))


class Running:
    """`xdpstack run` in a process of its own, once it runs."""

    def __init__(self, file: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xdpstack", "run", str(file), *words], stderr=subprocess.PIPE, text=True
        )
        self.watchdog = threading.Timer(SECONDS, self.process.kill)
        self.watchdog.start()
        self.said: list[str] = []

    def until(self, word: str) -> str:
        assert self.process.stderr is not None
        for line in iter(self.process.stderr.readline, ""):
            self.said.append(line)
            if word in line:
                return line
        raise AssertionError(f"no {word!r} in {self.said}")

    def thread(self) -> tuple[list[int], int, int]:
        """Cores, policy and priority of the engine's thread."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            if (task / "comm").read_text() == "xds-engine\n":
                tid = int(task.name)
                param = os.sched_getparam(tid).sched_priority
                return sorted(os.sched_getaffinity(tid)), os.sched_getscheduler(tid), param
        raise AssertionError("no thread of an engine")

    def close(self) -> None:
        self.watchdog.cancel()
        self.process.kill()
        self.process.wait()
        for left in Path("/dev/shm").glob(f"xdpstack-{self.process.pid}-*"):
            left.unlink()  # of one that had to be killed
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def runs() -> Iterator[list[Running]]:
    made: list[Running] = []
    yield made
    for one in made:
        one.close()


def test_a_program_runs_as_its_file_and_flags_say_and_says_before_and_after(
    tmp_path: Path, runs: list[Running]
) -> None:
    lock_or_skip()
    core = max(os.sched_getaffinity(0))
    run = Running(program(tmp_path, "cpu = 0"), "--cpu", str(core), "--lock-memory")
    runs.append(run)
    run.until("memory is locked: ")
    cores, policy, _ = run.thread()
    assert (cores, policy) == ([core], os.SCHED_OTHER)
    locked = int(Path(f"/proc/{run.process.pid}/status").read_text().partition("VmLck:")[2].split()[0])
    assert locked > 1024
    (check,) = examine(only=["engines"])
    assert f"process {run.process.pid} on core {core}" in check.found
    assert "MiB locked" in check.found
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(SECONDS) == 0


def test_a_real_time_priority_is_given_or_refused_in_one_sentence(
    tmp_path: Path, runs: list[Running]
) -> None:
    run = Running(program(tmp_path), "--rt-priority", "7", "--seconds", "30")
    runs.append(run)
    line = run.until(":")
    if "start the engine's thread" in line:
        assert "CAP_SYS_NICE" in line
        assert run.process.wait(SECONDS) == 1
        return
    assert line.endswith(f"; end with Ctrl-C, look with `xdpstack stats` and `top` (it is {NAME})\n")
    _, policy, priority = run.thread()
    assert (policy, priority) == (os.SCHED_FIFO, 7)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(SECONDS) == 0


def test_a_run_without_a_name_is_seen_by_that_of_its_file_and_leaves_nothing(
    tmp_path: Path, runs: list[Running]
) -> None:
    """A killed one leaves its segment, which is gone once the next of its name runs."""
    text = program(tmp_path).read_text()
    file = tmp_path / f"seen {os.getpid()}.toml"
    file.write_text("\n".join(line for line in text.splitlines() if "name" not in line))
    name = f"seen_{os.getpid()}"

    def there() -> list[int]:
        return [one.pid for one in segments() if one.name == name]

    killed = Running(file)
    runs.append(killed)
    line = f"; end with Ctrl-C, look with `xdpstack stats` and `top` (it is {name})\n"
    assert killed.until("running").endswith(line)
    killed.process.kill()
    killed.process.wait(SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT):
        run = Running(file)
        runs.append(run)
        run.until("running")
        assert there() == [run.process.pid]
        shown = subprocess.run(
            [sys.executable, "-m", "xdpstack", "top", name, "--json", "--interval", "0.1"],
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        assert [one["engine"] for one in json.loads(shown.stdout)["engines"]] == [name]
        run.process.send_signal(number)
        assert run.process.wait(SECONDS) == 0
        assert there() == []
        assert not list(Path("/dev/shm").glob(f"xdpstack-{run.process.pid}-*"))


def test_a_run_that_nobody_named_runs_unseen_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "unseen.toml"
    text = program(tmp_path).read_text()
    file.write_text("\n".join(line for line in text.splitlines() if "name" not in line))
    for root, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "MiB free, wanted are")):
        monkeypatch.setattr(cli_run, "ROOT", root)
        monkeypatch.setattr(cli_run, "_ROOM", 1 << 60)
        assert main(["run", str(file), "--seconds", "0.1"]) == 0
        said = capsys.readouterr().err
        assert f"xdpstack: stats and top will not see this engine: {root}" in said
        assert why in said
        assert "end with Ctrl-C, nothing shows it" in said


def test_a_core_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(program(tmp_path)), "--cpu", "4095", "--seconds", "1"]) == 1
    said = capsys.readouterr().err
    assert "start the engine's thread on core 4095: " in said
    assert "this process may use cores" in said


def test_flags_that_cannot_be_are_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["--rt-priority", "100"], "rt_priority: wanted 0 to 99"),
        (["--cpu-latency", "-1"], "'-1' is not a number of µs"),
        (["--cpu", "x"], "'x' is not a whole number"),
    ):
        assert main(["run", str(program(tmp_path)), *words]) == 2
        assert says in capsys.readouterr().err
