"""The systemd units under tools/systemd: sound, and no more open than they say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "tools" / "systemd"
INSTANCES = {
    "xdpstack-load@.service": "xdpstack-load@eth0.service",
    "xdpstack-run@.service": "xdpstack-run@itch.service",
}
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="systemd-analyze is not installed (package systemd)"
)


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units as instances, their program one that is there."""
    program = tmp_path / "xdpstack"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m xdpstack "$@"\n')
    program.chmod(0o755)
    found = []
    for unit in sorted(UNITS.iterdir()):
        path = tmp_path / INSTANCES.get(unit.name, unit.name)
        path.write_text(unit.read_text().replace("/usr/local/bin/xdpstack", str(program)))
        found.append(path)
    return found


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_units(units):
    done = subprocess.run([ANALYZE, "verify", *map(str, units)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize(("name", "exposure"), [("opener", 30), ("run@itch", 25), ("load@eth0", 55)])
def test_the_services_are_hardened(units, name, exposure):
    (unit,) = [path for path in units if path.name == f"xdpstack-{name}.service"]
    command = [ANALYZE, "security", "--offline=yes", f"--threshold={exposure}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:]


def test_opener_and_worker_hold_what_they_say():
    opener = (UNITS / "xdpstack-opener.service").read_text()
    worker = (UNITS / "xdpstack-run@.service").read_text()
    assert "\nCapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF\n" in opener
    assert "\nCapabilityBoundingSet=\n" in worker
    for unit in (opener, worker):
        assert "\nNoNewPrivileges=yes\n" in unit
