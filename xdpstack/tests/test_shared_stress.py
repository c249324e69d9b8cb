"""Two processes over a ring and over a tape, every word of every record checked.

``make soak`` hands over an hour's worth of records, at a million a second: XDS_SHARED_RECORDS.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from xdpstack.tests.test_ring import PLAIN, ROOT

RECORDS = int(os.environ.get("XDS_SHARED_RECORDS", "2000000"))
PATIENCE = 300 + RECORDS / 100_000  # seconds: a hundredth of what a core does


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    made = tmp_path_factory.mktemp("stress") / "stress"
    ground = ROOT / "cffi_build/ground"
    sources = [ROOT / "xdpstack/tests/shared_stress.c", ground / "ring.c", ground / "tape.c"]
    include = ["-I", ROOT / "cffi_build", "-I", ROOT / "cffi_build/xds"]
    command = [
        "gcc",
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-O2",
        "-Wall",
        "-Werror",
        *include,
        *sources,
        "-o",
        made,
    ]
    subprocess.run(command, check=True, env=PLAIN)
    return made


@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize("kind", ["ring", "tape"])
@pytest.mark.parametrize("size", [4096, 8 << 20])
def test_two_processes_hand_over_every_record_whole(program, kind, size):
    count = RECORDS if size > 4096 else RECORDS // 10  # a page at a time: they mostly wait for each other
    done = subprocess.run(
        [program, kind, str(count), str(size)], env=PLAIN, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.split()
    assert said[:2] == ["ok", str(count)]
    assert int(said[3]) + int(said[5]) == count
    if kind == "ring":
        assert said[5] == "0"
