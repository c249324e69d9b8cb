"""Tests here run in the virtual machine alone; its links are as they were after each."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tools.vmlab.tests.machine import put_links_back


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("XDPSTACK_VM") != "1":
        for item in items:
            if "vmlab" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="only in the virtual machine: make test-vm"))


@pytest.fixture(autouse=True)
def _as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Links are as they were when the next test comes. A module with KEEPS_LINKS does that at its own end."""
    yield
    if not getattr(request.module, "KEEPS_LINKS", False):
        put_links_back()
