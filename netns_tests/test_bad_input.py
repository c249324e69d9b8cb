"""What a host may hold against us, through the command line: one clear sentence, the right exit code, and
nothing left on the interface. Each case makes the host as it says, then runs a command of ours in it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xdpstack import bpf, cli
from xdpstack.bpf import Filter
from xdpstack.lab import Namespace
from xdpstack.port import XskPort

LINE = "239.1.1.1:5000"
LISTEN = ("feed", "listen", "--feed", "plain", "--groups", LINE, "--seconds", "5")
XSK = (*LISTEN, "--port", "xsk:t0")
CAPTURE = ("capture", "xsk:t0", "--rules", "any", "-w")
CONFIG = (
    '[ports.main]\nport = "xsk:t0"\n{extra}\n[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["{line}"]\n'
)
FOREIGN = """
#include <linux/bpf.h>
#define SEC(name) __attribute__((section(name), used))
SEC("xdp") int foreign(struct xdp_md *ctx) { return XDP_PASS; }
char _license[] SEC("license") = "GPL";
"""


def without_capabilities() -> None:
    os.setuid(65534)


def without_af_xdp() -> None:
    """socket(AF_XDP) fails as in a kernel that was built without: EAFNOSUPPORT, by a seccomp filter."""
    number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
    code = [
        (0x20, 0, 0, 0),  # load the system call's number
        (0x15, 0, 3, number),  # socket?
        (0x20, 0, 0, 16),  # load its family
        (0x15, 0, 1, 44),  # AF_XDP?
        (0x06, 0, 0, 0x00050000 | errno.EAFNOSUPPORT),
        (0x06, 0, 0, 0x7FFF0000),  # allow
    ]
    raw = b"".join(struct.pack("=HBBI", *step) for step in code)
    room = ctypes.create_string_buffer(raw)
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(room)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP


def nothing() -> None:
    pass


def run(
    namespace: Namespace, folder: Path, words: tuple[str, ...], before: Callable[[], None] = nothing
) -> tuple[int, str, str]:
    """A command in a process of its own that has first done ``before``: exit code, output, errors."""
    files = [folder / "out.txt", folder / "err.txt"]

    def main() -> int:
        sys.stdout, sys.stderr = (file.open("w") for file in files)
        os.chdir(folder)
        before()
        code = cli.main(list(words))
        sys.stdout.close()
        sys.stderr.close()
        return code

    code = namespace.fork(main).wait(60)
    out, err = (file.read_text() for file in files)
    return code, out, err


def refused(answer: tuple[int, str, str], code: int, *says: str) -> None:
    """One sentence that says it, nothing else, and the exit code."""
    got, out, err = answer
    assert got == code, err
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("listening: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("xdpstack: ")
    assert "Errno" not in err
    for word in says:
        assert word in err


def clean(trader: Namespace) -> None:
    with trader.enter():
        assert bpf.attached("t0") is None, "a program was left on the interface"
        assert "t0" not in bpf.pinned(), "a pin was left"


CASES = [
    ("unknown interface", (*LISTEN, "--port", "xsk:nope0"), 1, ("nope0", "no")),
    ("unknown interface, sockets", (*LISTEN, "--port", "sock:nope0"), 1, ("nope0",)),
    ("queue out of range", (*LISTEN, "--port", "xsk:t0:9"), 1, ("queue 9", "t0")),
    ("queues upside down", (*LISTEN, "--port", "xsk:t0:3-1"), 2, ("queue 1 is below 3",)),
    ("no such queue in a range", (*LISTEN, "--port", "xsk:t0:0-7"), 1, ("t0", "queue")),
    ("malformed rule", ("rules", "add", "t0", "udp dst 1.2.3.4:99999 -> x"), 2, ("99999",)),
    ("malformed rule file", ("load", "t0", "--rules", "bad.rules"), 2, ("bad.rules:2",)),
    ("a rule file that is not there", ("load", "t0", "--rules", "no.rules"), 2, ("no.rules",)),
    ("rules without a filter", ("rules", "list", "t0"), 1, ("t0",)),
    ("unload without a filter", ("unload", "t0"), 1, ("t0",)),
    ("TOML with an unknown key", ("run", "key.toml"), 2, ("key.toml:3", "mood", "unknown key")),
    ("TOML that is none", ("run", "none.toml"), 2, ("none.toml:1",)),
    ("a garbage capture", ("feed", "replay", "bad.pcap", "--feed", "plain"), 1, ("bad.pcap",)),
    ("native mode that a driver lacks", ("load", "lo", "--mode", "native"), 1, ("lo", "native")),
]


@pytest.mark.parametrize(("words", "code", "says"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_a_mistake_is_one_sentence_and_leaves_nothing(lab_pair, tmp_path, words, code, says):
    _, trader = lab_pair
    (tmp_path / "bad.rules").write_text("any -> pass\nudp dst nowhere -> x\n")
    (tmp_path / "key.toml").write_text(CONFIG.format(extra='mood = "good"', line=LINE))
    (tmp_path / "none.toml").write_text("= 1\n")
    (tmp_path / "bad.pcap").write_bytes(bytes(range(256)) * 8)
    refused(run(trader, tmp_path, words), code, *says)
    clean(trader)


@pytest.mark.parametrize("words", [XSK, ("load", "t0"), (*CAPTURE, "x.pcapng")])
def test_an_interface_that_is_down(lab_pair, tmp_path, words):
    _, trader = lab_pair
    trader.run(["ip", "link", "set", "t0", "down"])
    refused(run(trader, tmp_path, words), 1, "t0", "down", "ip link set")
    clean(trader)


@pytest.mark.parametrize("words", [XSK, ("load", "t0"), (*CAPTURE, "/dev/null")])
def test_a_missing_capability(lab_pair, tmp_path, words):
    _, trader = lab_pair
    tmp_path.chmod(0o755)
    refused(run(trader, tmp_path, words, without_capabilities), 1, "CAP_")
    clean(trader)


@pytest.mark.parametrize("words", [XSK, ("run", "c.toml"), (*CAPTURE, "x.pcapng")])
def test_a_kernel_without_af_xdp(lab_pair, tmp_path, words):
    _, trader = lab_pair
    (tmp_path / "c.toml").write_text(CONFIG.format(extra="", line=LINE))
    refused(
        run(trader, tmp_path, words, without_af_xdp), 1, "this kernel has no AF_XDP", "CONFIG_XDP_SOCKETS"
    )
    clean(trader)


def test_doctor_names_a_kernel_without_af_xdp(lab_pair, tmp_path):
    _, trader = lab_pair
    code, out, _ = run(trader, tmp_path, ("doctor",), without_af_xdp)
    assert code == 1
    assert "CONFIG_XDP_SOCKETS" in out


def test_an_mtu_that_no_frame_holds(make_pair, tmp_path):
    _, trader = make_pair(mtu=9000)
    (tmp_path / "c.toml").write_text(CONFIG.format(extra="jumbo = false", line=LINE))
    refused(run(trader, tmp_path, ("run", "c.toml")), 1, "t0", "MTU of 9000", "ip link set t0 mtu")
    clean(trader)


def test_a_filter_of_somebody_else(lab_pair, tmp_path):
    _, trader = lab_pair
    (tmp_path / "foreign.c").write_text(FOREIGN)
    asm = f"/usr/include/{platform.machine()}-linux-gnu"
    command = ["clang", "-target", "bpf", "-O2", "-g", f"-I{asm}", "-c", "foreign.c", "-o", "foreign.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    trader.run(["ip", "link", "set", "t0", "xdp", "obj", str(tmp_path / "foreign.o"), "sec", "xdp"])
    with trader.enter():
        before = bpf.attached("t0")
    for words in (XSK, ("load", "t0")):
        refused(run(trader, tmp_path, words), 1, "t0", "foreign", "xdpstack load t0 --force")
    with trader.enter():
        assert bpf.attached("t0") == before, "what somebody else attached stays"


def test_a_queue_that_another_process_holds(lab_pair, tmp_path):
    _, trader = lab_pair
    with trader.enter(), Filter.load("t0", pin=True) as steering, XskPort("t0"):
        refused(run(trader, tmp_path, XSK), 1, "queue 0 of t0", "another socket holds the queue")
        steering.unload()
    clean(trader)
