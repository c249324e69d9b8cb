"""What of ``xdpstack trace`` needs no probes: BTF, headers, the table, what it says when it cannot run."""

import json
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from xdpstack.cli.trace import render
from xdpstack.errors import SetupError
from xdpstack.trace import PROBES, Tracer, headers
from xdpstack.trace.btf import VMLINUX, member_offset

DEBIAN, KERNEL = headers.ARCHITECTURES.get(platform.machine(), ("amd64", "x86"))


def btf(tmp_path, *, bitfields=False, kind_after=0):
    """An int, an array, an enum and two structures, of which the second has members a at 0, b at 8."""
    strings = b"\0int\0one\0two\0a\0b\0"
    at = {name: strings.index(b"\0" + name + b"\0") + 1 for name in (b"int", b"one", b"two", b"a", b"b")}

    def record(name, kind, count, size, tail=b"", flag=False):
        return struct.pack("<III", at.get(name, 0), flag << 31 | kind << 24 | count, size) + tail

    def member(name, bits):
        return struct.pack("<III", at[name], 1, bits | (32 << 24 if bitfields else 0))

    types = record(b"int", 1, 0, 4, struct.pack("<I", 32))
    types += record(b"", 3, 0, 0, struct.pack("<III", 1, 1, 4))
    types += record(b"", 6, 2, 4, bytes(16))
    types += record(b"one", 4, 1, 4, member(b"a", 96), bitfields)
    if kind_after:
        types += record(b"", kind_after, 0, 0)
    types += record(b"two", 4, 2, 16, member(b"a", 0) + member(b"b", 64), bitfields)
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    path = tmp_path / "btf"
    path.write_bytes(head + types + strings)
    return path


@pytest.mark.parametrize("bitfields", [False, True])
def test_a_member_is_found_behind_types_of_every_length(tmp_path, bitfields):
    path = btf(tmp_path, bitfields=bitfields)
    assert member_offset("one", "a", path) == 12
    assert member_offset("two", "b", path) == 8


@pytest.mark.parametrize(("structure", "member"), [("three", "a"), ("two", "c"), ("int", "a")])
def test_what_is_not_there_has_no_offset(tmp_path, structure, member):
    assert member_offset(structure, member, btf(tmp_path)) is None


def test_a_kind_from_a_newer_kernel_ends_the_search(tmp_path):
    assert member_offset("two", "b", btf(tmp_path, kind_after=25)) is None


def test_every_cut_of_a_file_is_refused_calmly(tmp_path):
    whole = btf(tmp_path).read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        assert member_offset("two", "b", cut) in (None, 8)
    assert member_offset("two", "b", tmp_path / "none") is None


def test_the_running_kernel_has_the_member_that_we_read():
    if not VMLINUX.exists():
        pytest.skip("this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")
    assert (member_offset("napi_struct", "napi_id") or 0) > 0


def debian(sources, version, flavour=""):
    """Debian's two folders of a version."""
    own, common = (
        sources / f"linux-headers-{version}{flavour}-{DEBIAN}",
        sources / f"linux-headers-{version}-common",
    )
    for folder, file in ((own, "include/generated/autoconf.h"), (common, "include/linux/kconfig.h")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")
        (folder / f"arch/{KERNEL}/include").mkdir(parents=True, exist_ok=True)
    return common, own


def test_the_running_kernels_own_headers_come_first(tmp_path):
    debian(tmp_path / "src", "6.1.0-9")
    (tmp_path / "modules/6.9/build/include/linux").mkdir(parents=True)
    (tmp_path / "modules/6.9/build/include/linux/kconfig.h").write_text("")
    found = headers.find(tmp_path / "modules", tmp_path / "src", "6.9")
    assert (found.version, found.borrowed, found.parts) == ("6.9", False, ())


def test_the_newest_of_debians_headers_is_borrowed(tmp_path):
    debian(tmp_path, "6.1.0-9")
    parts = debian(tmp_path, "6.1.0-56")
    found = headers.find(tmp_path / "modules", tmp_path, "6.18")
    assert (found.version, found.borrowed, found.parts) == (f"6.1.0-56-{DEBIAN}", True, parts)


def test_the_headers_of_a_flavour_stand_on_the_common_ones(tmp_path):
    parts = debian(tmp_path, "6.1.0-9", "-cloud")
    assert headers.find(tmp_path / "modules", tmp_path, "6.18").parts == parts


def test_half_of_debians_headers_are_none(tmp_path):
    (tmp_path / f"linux-headers-6.1.0-9-{DEBIAN}/include/generated").mkdir(parents=True)
    (tmp_path / f"linux-headers-6.1.0-9-{DEBIAN}/include/generated/autoconf.h").write_text("")
    with pytest.raises(SetupError, match=r"^trace: no kernel headers, neither for 6.18.*make trace-deps"):
        headers.find(tmp_path / "modules", tmp_path, "6.18")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: a mount that is nowhere needs it")
def test_the_parts_of_headers_are_shown_as_one_tree_and_leave_nothing(tmp_path):
    common, own = debian(tmp_path, "6.1.0-9")
    mounts = Path("/proc/self/mounts").read_text()
    with headers.Tree(headers.find(tmp_path / "modules", tmp_path, "6.18")):
        root = Path(os.environ["BCC_KERNEL_SOURCE"])
        assert (root / "include/linux/kconfig.h").samefile(common / "include/linux/kconfig.h")
        assert (root / "include/generated/autoconf.h").samefile(own / "include/generated/autoconf.h")
        assert Path("/proc/self/mounts").read_text() == mounts
    assert not root.exists()
    assert "BCC_KERNEL_SOURCE" not in os.environ


def test_an_interface_that_is_not_there_is_said_before_anything_is_compiled():
    with pytest.raises(SetupError, match=r"^trace nope0: there is no such interface$"):
        Tracer("nope0")


def test_without_bcc_one_sentence_says_what_to_install():
    code = (
        "import sys, os; sys.modules['bcc'] = None; os.geteuid = lambda: 0\n"
        "from xdpstack.cli import main; sys.exit(main(['trace']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("xdpstack: trace: Python has no module bcc: python3-bpfcc is not installed")
    assert "sudo make trace-deps" in done.stderr


def test_every_event_that_is_attached_is_one_that_is_asked_for():
    from xdpstack.trace import EVENTS, WAKEUPS

    probes = set()
    for line in PROBES.read_text().splitlines():
        if line.startswith("TRACEPOINT_PROBE("):
            probes.add(line.partition("(")[2].rstrip(")").replace(", ", "/"))
    assert probes == {*EVENTS, WAKEUPS}


COUNTS = {
    "seconds": 2.0, "headers": "6.1", "borrowed_headers": True,
    "xdp": [{"interface": "t0", "program": 7, "what": "redirect", "action": "redirect", "error": "ENOSPC",
             "map": 3, "packets": 3000}],
    "sends": [], "kicks": [],
    "napi": [{"device": "t0", "napi": 8193, "queue": None, "polls": 10, "packets": 640, "full": 10,
              "empty": 0}],
    "softirq": [{"cpu": 1, "vector": "net-rx", "runs": 5, "ns": 1_000_000, "longest_ns": 400}],
    "wakeups": {"sockets": 1, "calls": 9},
}  # fmt: skip


def test_the_table_has_totals_and_rates_since_the_one_before():
    before = json.loads(json.dumps(COUNTS))
    before["seconds"], before["xdp"][0]["packets"] = 1.5, 1000
    lines = render(COUNTS, before).splitlines()
    redirect = next(line for line in lines if "ENOSPC" in line)
    assert redirect.split() == ["t0", "7", "redirect", "redirect", "ENOSPC", "3,000", "4,000"]
    assert (
        next(line for line in lines if "8193" in line).split()[1] == "-"
    )  # the driver does not tell the queue
    assert lines[-1] == "wake-ups of AF_XDP readers: 9 (1 socket)"
    assert not any(line.startswith(("sends", "kicks")) for line in lines)


def test_the_first_table_counts_from_the_start():
    line = next(line for line in render(COUNTS, None).splitlines() if "net-rx" in line)
    assert line.split() == ["1", "net-rx", "5", "2", "1,000,000", "500,000", "400"]
