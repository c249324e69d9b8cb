"""csum_inl.h: every length, every alignment, at the optimization levels that it is built with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=gnu11", "-g", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
MARCH = ["-march=x86-64-v2"] if platform.machine() == "x86_64" else []
CASES = 2113 * 16 * 9
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        ("gcc", ["-O0"]),
        ("gcc", ["-O2", *MARCH]),
        ("gcc", ["-O3", *MARCH]),  # as the Makefile builds it
        ("gcc", ["-O3", "-march=native"]),  # wider vectors
        ("gcc", ["-O1", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"]),
        ("clang", ["-O2"]),
    ],
    ids=lambda part: part if isinstance(part, str) else "".join(part),
)
def test_every_length_and_alignment_sums_as_single_bytes_do(
    tmp_path: Path, compiler: str, flags: list[str]
) -> None:
    assert shutil.which(compiler), f"{compiler} is among the packages of tools/bootstrap"
    program = tmp_path / "csum_check"
    source = ROOT / "xdpstack/tests/csum_check.c"
    subprocess.run(
        [compiler, *FLAGS, *flags, "-I", ROOT / "cffi_build", source, "-o", program], check=True, env=PLAIN
    )
    seed = str(sum(map(ord, compiler + "".join(flags))))
    done = subprocess.run([program, seed], capture_output=True, text=True, timeout=240, env=PLAIN)
    assert done.returncode == 0, f"csum_check {seed}: {done.stdout or done.returncode}"
    assert int(done.stdout) > 15 * CASES, "sums were compared"


def test_a_wrong_sum_would_be_seen(tmp_path: Path) -> None:
    """The check itself: a sum that forgets an odd byte at the end does not pass."""
    broken = tmp_path / "ground"
    broken.mkdir()
    text = (ROOT / "cffi_build/ground/csum_inl.h").read_text()
    assert "if (len & 1)" in text
    (broken / "csum_inl.h").write_text(text.replace("if (len & 1)", "if (len & 0)"))
    program = tmp_path / "broken"
    source = ROOT / "xdpstack/tests/csum_check.c"
    subprocess.run(
        ["gcc", *FLAGS, "-O2", "-I", tmp_path, "-I", ROOT / "cffi_build", source, "-o", program],
        check=True,
        env=PLAIN,
    )
    done = subprocess.run([program, "1"], capture_output=True, text=True, env=PLAIN)
    assert done.returncode == 1
    assert "length 1, alignment 0" in done.stdout
