"""A folder of huge pages to test in, and as many of them as a test needs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@contextlib.contextmanager
def _pages(count: int) -> Iterator[None]:
    """So many are free; what had to be reserved for it is given back."""
    if os.geteuid() or not _POOL.exists():
        pytest.skip("needs root and huge pages of 2 MiB")
    size, free = _POOL / "nr_hugepages", _POOL / "free_hugepages"
    missing = max(0, count - int(free.read_text()))
    size.write_text(str(int(size.read_text()) + missing))
    try:
        if int(free.read_text()) < count:
            pytest.skip(f"this machine has no {count} huge pages of 2 MiB to reserve")
        yield
    finally:
        size.write_text(str(int(size.read_text()) - missing))


def on_hugetlbfs(folder: Path, code: str) -> str:
    """What Python ``code`` prints, in a mount namespace where ``folder``, its argument, is a hugetlbfs."""
    script = f"mount -t hugetlbfs -o pagesize=2M none {folder} && exec {sys.executable} -c '{code}' {folder}"
    with _pages(2):
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    return done.stdout
