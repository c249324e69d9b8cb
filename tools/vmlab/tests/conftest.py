"""Tests here run in the virtual machine alone; its links are as they were after each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tools.vmlab.tests.machine import LINKS, cable, run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("XDPSTACK_VM") != "1":
        for item in items:
            if "vmlab" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="only in the virtual machine: make test-vm"))


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Links are down, plugged and without addresses or programs when the next test comes."""
    yield
    for link in LINKS:
        cable(link, True)
    words = [f"link set {link} xdp off\naddr flush dev {link}\nlink set {link} down" for link in LINKS]
    subprocess.run(["ip", "-force", "-batch", "-"], input="\n".join(words), text=True, capture_output=True)
    for link in LINKS[:2]:
        if "Combined:\t2" not in run("ethtool", "-l", link).rpartition("settings")[2]:
            run("ethtool", "-L", link, "combined", "2")
