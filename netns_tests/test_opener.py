"""A worker of user nobody behind an opener with three capabilities: what it can do, and what it cannot."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdpstack.bpf import Filter
from xdpstack.lab import Namespace
from xdpstack.opener.client import status

NOBODY = 65534
KEPT = (1 << 12) | (1 << 13) | (1 << 39)
SMALL = "rx_ring=512, rx_frames=512, tx_ring=256, tx_frames=256, huge_pages=False"


def policy(folder: Path, more: str = "", limits: str = "", **table: str) -> Path:
    keys = {
        "users": "[65534]",
        "interface": '"t0"',
        "queues": '"0-1"',
        "rules": '["udp dst 239.1.1.0/24", "udp dst 10.77.0.2:7"]',
        **table,
    }
    path = folder / "policy.toml"
    body = "\n".join(f"{key} = {value}" for key, value in keys.items())
    path.write_text(f'socket = "{folder}/opener.sock"\n[limits]\n{limits}\n[workers.w]\n{body}\n{more}\n')
    return path


class Opener:
    """``xdpstack opener`` as a process of its own in the trader's namespace."""

    def __init__(self, trader: Namespace, path: Path, *words: str) -> None:
        self.trader, self.path, self.words = trader, path, words
        self.socket = str(path.parent / "opener.sock")
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "xdpstack", "opener", str(self.path), *self.words]
        log, end = self.path.with_suffix(".log"), time.monotonic() + 20
        with log.open("w") as stderr:
            self.process = self.trader.popen(command, stderr=stderr)
        while "serving" not in self.said and self.process.poll() is None:
            assert time.monotonic() < end, self.said
            time.sleep(0.01)
        assert self.process.poll() is None, self.said

    @property
    def said(self) -> str:
        return self.path.with_suffix(".log").read_text()

    def end(self, number: int = 15) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)

    def status(self) -> dict:
        return status(self.socket)

    def wait(self, what, patience: float = 5.0) -> dict:
        deadline = time.monotonic() + patience
        while not what(found := self.status()):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user may enter (pytest's own are private)."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="xds-opener-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def loaded(make_pair) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces; the trader's t0 has two queues and a pinned filter."""
    venue, trader = make_pair(queues=2)
    with trader.enter():
        Filter.load("t0", rules=["arp -> pass"], pin=True).close()
    yield venue, trader
    with trader.enter():
        Filter.open_pinned("t0").unload()


@pytest.fixture
def opener(loaded, folder) -> Iterator[Opener]:
    running = Opener(loaded[1], policy(folder))
    yield running
    if running.process.poll() is None:
        assert running.end() == 0


def as_nobody(trader: Namespace, code: str, path: str) -> subprocess.Popen[str]:
    """Python as user nobody without a capability; it has ``PATH`` and the names of a worker."""
    head = (
        "import os, sys, time\n"
        "from xdpstack.opener.client import Lease\n"
        "from xdpstack.errors import SetupError\n"
        f"PATH = {path!r}\n"
    )
    words = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--no-new-privs"]
    words += ["--bounding-set", "-all", "--inh-caps", "-all", sys.executable, "-c", head + code]
    return trader.popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def line(running: subprocess.Popen[str]) -> str:
    text = running.stdout.readline()
    if not text:
        pytest.fail(running.communicate(timeout=20)[1])
    return text


def said(running: subprocess.Popen[str], patience: float = 20) -> str:
    out, err = running.communicate(timeout=patience)
    assert running.returncode == 0, err
    return out


def send_to(count: int, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
        for _ in range(count):
            out.sendto(b"counted", ("239.1.1.1", port))


def send(count: int, group: str = "239.1.1.1", first: int = 0, pause: float = 0.0) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
        for seq in range(first, first + count):
            out.sendto(seq.to_bytes(8, "big"), (group, 5000))
            if pause:
                time.sleep(pause)


def test_the_opener_keeps_three_capabilities_no_group_and_gains_none(opener):
    pid = opener.process.pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = dict(
            line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line
        )
        for kind in ("CapPrm", "CapEff", "CapBnd"):
            assert int(lines[kind], 16) == KEPT, (task, kind)
        assert lines["NoNewPrivs"] == "1"
        assert lines["Groups"].split() == []


def test_nobody_receives_its_flow_and_sends(loaded, opener):
    venue, trader = loaded
    worker = as_nobody(
        trader,
        f"""
with Lease.open(PATH, "t0", {SMALL}) as lease:
    print(lease.add_rules(["udp dst 239.1.1.1:5000"]), flush=True)
    seen, end = [], time.monotonic() + 60
    while len(seen) < 500 and time.monotonic() < end:
        for frame in lease.port.receive():
            seen.append(int.from_bytes(bytes(frame.data[42:50]), "big"))
    assert seen == list(range(500)), seen
    frame = bytes.fromhex("ffffffffffff") + b"\\2" * 6 + b"\\x88\\xb5" + b"from nobody" * 5
    assert lease.port.send([frame] * 300) == 300
    counters = lease.counters()
    print(sorted(c.packets for c in counters.rules.values()), flush=True)
""",
        opener.socket,
    )
    with venue.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0xB588) as wire:
        wire.bind(("v0", 0x88B5))
        wire.settimeout(60)
        assert line(worker) == "['udp dst 239.1.1.1:5000 -> w']\n"
        venue.fork(send, 500)
        assert b"from nobody" in wire.recv(2048)
        assert said(worker) == "[500]\n"
    with trader.enter(), Filter.open_pinned("t0") as left:
        assert [str(rule) for rule in left.rules] == ["arp -> pass"], "the rules end with the worker"
    assert opener.status()["counts"]["leases_ended"] == 1


# ---- what it cannot do ------------------------------------------------------------------------------------


def test_nobody_opens_nothing_by_itself(loaded, opener):
    _, trader = loaded
    answer = said(
        as_nobody(
            trader,
            """
from xdpstack.bpf import Filter
from xdpstack.port import XskPort
for what in (
    lambda: XskPort("t0", rx_frames=512, tx_frames=0),
    lambda: Filter.load("t0", force=True),
    lambda: Filter.open_pinned("t0"),
    lambda: Filter.dry(),
):
    try:
        what()
        print("opened")
    except SetupError as error:
        print(error.errno)
""",
            opener.socket,
        )
    )
    assert set(answer.split()) <= {"1", "13"}, answer


def test_a_worker_cannot_touch_rules_another_queue_or_the_filter(loaded, opener):
    _, trader = loaded
    answer = said(
        as_nobody(
            trader,
            f"""
import ctypes, os, socket, struct
with Lease.open(PATH, "t0", range(0, 1), {SMALL}) as lease:
    lease.add_rules(["udp dst 239.1.1.1:5000"])
    kinds = []
    for fd in range(256):
        try:
            kinds.append(os.readlink(f"/proc/self/fd/{{fd}}"))
        except OSError:
            pass
    assert not [kind for kind in kinds if "bpf" in kind], kinds  # no map, program or link is here
    libc, fd = ctypes.CDLL(None, use_errno=True), lease.port.fds()[0]
    for queue in (0, 1):
        to = struct.pack("HHIII", 44, 0, socket.if_nametoindex("t0"), queue, 0)
        assert libc.bind(fd, to, len(to)) < 0
    for option in (1, 2, 3, 4, 5, 6):  # rings and UMEM
        assert libc.setsockopt(fd, 283, option, struct.pack("QQIIII", 0, 0, 0, 0, 0, 0), 32) < 0, option
    try:
        socket.socket(44, socket.SOCK_RAW)
        print("a socket")
    except PermissionError:
        pass
    try:
        os.ftruncate(lease.port._memory.fd, 4096)
        print("truncated")
    except PermissionError:
        print("ok")
""",
            opener.socket,
        )
    )
    assert answer == "ok\n"
    with trader.enter():
        assert Filter.open_pinned("t0").info()["link_id"]


TWO = f"""
with Lease.open(PATH, "t0", range(NUMBER, NUMBER + 1), {SMALL}) as lease:
    lease.add_rules(["udp dst 239.1.1.1:500" + str(NUMBER)])
    print("ready", flush=True)
    sys.stdin.readline()
    counters = lease.counters()
    print([c.packets for c in counters.rules.values()], counters.reasons, dict(counters.no_socket))
"""


def test_a_worker_sees_the_counters_of_its_own_rules_and_no_others(loaded, folder):
    """Two users' workers of one interface; what the filter counts for the other is nowhere to be had."""
    venue, trader = loaded
    table = '[workers.x]\nusers = [65534]\ninterface = "t0"\nqueues = 1\nrules = ["udp dst 239.1.1.0/24"]'
    running = Opener(trader, policy(folder, table, queues="0"))
    both = [as_nobody(trader, TWO.replace("NUMBER", str(number)), running.socket) for number in (0, 1)]
    assert [line(one) for one in both] == ["ready\n"] * 2
    venue.fork(send_to, 7, 5000).wait(10)
    venue.fork(send_to, 9, 5001).wait(10)
    found = []
    for one in both:
        out, err = one.communicate("\n", timeout=20)
        assert one.returncode == 0, err
        found.append(out.split("]")[0] + "]")
        assert "] {} {" in out, "no reasons: they are of everybody's frames"
    assert found == ["[7]", "[9]"]
    assert running.end() == 0


REFUSED = f"""
def refused(what):
    try:
        what()
        print("GIVEN")
    except SetupError as error:
        print(error)
refused(lambda: Lease.open(PATH, "t0", range(2, 3)))
refused(lambda: Lease.open(PATH, "v9"))
refused(lambda: Lease.open(PATH, "t0", range(0, 1), rx_frames=1 << 20))
refused(lambda: Lease.open(PATH, "t0", range(0, 1), raw=True))
refused(lambda: Lease.open(PATH, "t0", range(0, 1), rx_ring="many"))
refused(lambda: Lease.open(PATH, "t0", range(0, 1), rx_ring=500))
refused(lambda: Lease.open(PATH, "t0", range(0, 1), tx_queue=3))
with Lease.open(PATH, "t0", range(0, 1), {SMALL}) as lease:
    refused(lambda: lease.add_rules(["udp dst 239.2.1.1:5000"]))
    refused(lambda: lease.add_rules(["udp"]))
    refused(lambda: lease.add_rules(["udp dst 239.1.1.1 -> stack"]))
    refused(lambda: lease.add_rules(["no rule at all"]))
    refused(lambda: lease.add_rules([f"udp dst 239.1.1.1:{{port}}" for port in range(65)]))
    refused(lambda: Lease.open(PATH, "t0", range(0, 1)))
    refused(lambda: Lease.open(PATH, "t0", range(1, 2)))
    print(lease.rules)
"""


def test_what_the_policy_does_not_name_is_refused_in_a_sentence(loaded, opener):
    _, trader = loaded
    lines = said(as_nobody(trader, REFUSED, opener.socket)).splitlines()
    wanted = [
        "may have queue 0-1 of t0, not 2",
        "may have t0, not v9",
        "w may have 64 MiB",
        "option 'raw'",
        "option rx_ring: wanted int",
        "powers of two",
        "tx_queue 3: w may have 0-1",
        "wider than the policy of w allows (udp dst 239.1.1.0/24; udp dst 10.77.0.2:7)",
        "wider than the policy",
        "its target is w, no other",
        "not a kind of frame",
        "more than 64 rules",
        "queue 0 of t0 is leased: lease 1 of w",
        "w has its 1 lease already",
        "{}",
    ]
    assert len(lines) == len(wanted), lines
    for text, part in zip(lines, wanted, strict=True):
        assert part in text, (part, text)
    with trader.enter(), Filter.open_pinned("t0") as left:
        assert [str(rule) for rule in left.rules] == ["arp -> pass"]


def test_a_port_that_may_not_send_has_no_sender(loaded, folder):
    _, trader = loaded
    running = Opener(trader, policy(folder, send="false"))
    code = """
with Lease.open(PATH, "t0", range(0, 1), rx_ring=512, rx_frames=512) as lease:
    print(lease.port.tx_frames, len(lease.port.sockets()), lease.port.send([b"x" * 60]))
"""
    assert said(as_nobody(trader, code, running.socket)) == "0 1 0\n"
    assert running.end() == 0


def test_a_user_of_no_table_is_refused_at_the_door(loaded, folder):
    _, trader = loaded
    running = Opener(trader, policy(folder, users="[12345]"))
    worker = as_nobody(trader, 'Lease.open(PATH, "t0")', running.socket)
    _, err = worker.communicate(timeout=20)
    assert "user nobody (65534) is in no table of the policy" in err
    assert running.end() == 0


# ---- bad input --------------------------------------------------------------------------------------------


def connected(opener: Opener) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(60)
    connection.connect(opener.socket)
    return connection


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\x00garbage", "no JSON"),
        (b"[1, 2]", "no JSON object"),
        (b"[" * 60000, "no JSON"),
        (b'{"ask": "' + b"x" * 70000 + b'"}', "more than 65536 bytes"),
        (b'{"ask": "everything"}', "asked for one of open, reopen, rules, counters, resume, end, status"),
        (b'{"ask": "open"}', "which interface"),
        (b'{"ask": "open", "interface": "t0", "queues": [1, 0]}', "wanted [first, last]"),
        (b'{"ask": "open", "interface": "t0", "options": 7}', "wanted an object"),
        (b'{"ask": "rules", "rules": ["any"]}', "has no lease"),
        (b'{"ask": "resume", "lease": 77}', "that lease is over"),
        (b'{"ask": "end"}', "has no lease"),
    ],
)
def test_garbage_gets_one_sentence_and_the_opener_goes_on(loaded, folder, data, words):
    running = Opener(loaded[1], policy(folder, users="[0, 65534]"))
    with connected(running) as connection:
        connection.send(data)
        assert words in connection.recv(1 << 16).decode()
    assert running.status()["leases"] == []
    assert running.end() == 0


def test_too_many_descriptors_are_refused_and_closed(opener):
    import array

    held = len(os.listdir(f"/proc/{opener.process.pid}/fd"))
    with connected(opener) as connection, open("/dev/null") as null:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * 250))
        connection.sendmsg([b'{"ask": "status"}'], [rights])
        assert "more than 128 descriptors" in connection.recv(4096).decode()
    with connected(opener) as connection, open("/dev/null") as null:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * 100))
        connection.sendmsg([b'{"ask": "resume", "lease": 1}'], [rights])
        assert "over" in connection.recv(4096).decode()
    opener.wait(lambda found: found["connections"] == 1)
    time.sleep(0.1)
    assert len(os.listdir(f"/proc/{opener.process.pid}/fd")) <= held + 1


def test_who_connects_and_says_nothing_is_let_go(loaded, folder):
    running = Opener(loaded[1], policy(folder, limits="silence = 0.3"))
    with connected(running) as connection:
        began = time.monotonic()
        assert b"nothing was asked for 0.3 s" in connection.recv(4096)
        assert connection.recv(4096) == b""
        assert time.monotonic() - began < 5
    assert running.status()["counts"]["silent"] == 1
    assert running.end() == 0


def test_a_thousand_connections_are_bounded_and_a_worker_still_gets_in(loaded, folder):
    _, trader = loaded
    running = Opener(trader, policy(folder, limits="silence = 1.0"))
    held = []
    for _ in range(1000):
        one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        one.connect(running.socket)
        one.settimeout(60)
        held.append(one)
    code = f'with Lease.open(PATH, "t0", range(0, 1), {SMALL}) as lease:\n    print(lease.state)\n'
    assert said(as_nobody(trader, code, running.socket)) == "held\n"
    refused = sum(b"refused" in one.recv(4096) for one in held)
    assert refused == 1000 - 16, "sixteen of one user at once; those were silent"
    for one in held:
        one.close()
    running.wait(lambda found: found["connections"] == 1)
    assert running.status()["counts"]["refused_connections"] == refused
    assert running.end() == 0


# ---- the command ------------------------------------------------------------------------------------------


def test_a_second_opener_of_one_socket_and_a_missing_filter_are_one_sentence(loaded, opener, folder):
    _, trader = loaded

    def fails(path: Path) -> str:
        command = [sys.executable, "-m", "xdpstack", "opener", str(path)]
        child = trader.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _, err = child.communicate(timeout=20)
        assert child.returncode == 1
        assert err.count("\n") == 1
        return err

    assert f"another opener does (pid {opener.process.pid})" in fails(opener.path)
    (folder / "b").mkdir()
    assert "xdpstack load lo" in fails(policy(folder / "b", interface='"lo"'))
    assert opener.status()["leases"] == []


def test_status_shows_leases_and_counts(loaded, opener):
    _, trader = loaded
    code = f"""
with Lease.open(PATH, "t0", range(1, 2), {SMALL}) as lease:
    lease.add_rules(["udp dst 239.1.1.1:5000"])
    print("held", flush=True)
    sys.stdin.readline()
"""
    worker = as_nobody(trader, code, opener.socket)
    assert line(worker) == "held\n"
    command = [sys.executable, "-m", "xdpstack", "opener", str(opener.path), "--status"]
    shown = trader.run(command).stdout
    assert f"w, pid {worker.pid}, t0:1-1" in shown
    assert "udp dst 239.1.1.1:5000 -> w" in shown
    found = json.loads(trader.run([*command, "--json"]).stdout)
    assert found["counts"]["leases_given"] == 1
    worker.communicate("\n", timeout=20)
    opener.wait(lambda found: not found["leases"])


def test_a_listening_socket_of_the_service_manager_is_used_and_left(loaded, folder):
    _, trader = loaded
    path = policy(folder)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "opener.sock"))
    os.chmod(folder / "opener.sock", 0o666)
    listener.listen()
    shell = f'exec 3<&{listener.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" -m xdpstack opener {path}'
    process = trader.popen(["bash", "-c", shell, sys.executable], pass_fds=[listener.fileno()])
    code = f'with Lease.open(PATH, "t0", range(0, 1), {SMALL}) as lease:\n    print(lease.state)\n'
    assert said(as_nobody(trader, code, str(folder / "opener.sock"))) == "held\n"
    process.terminate()
    assert process.wait(10) == 0
    assert (folder / "opener.sock").exists()
    listener.close()
