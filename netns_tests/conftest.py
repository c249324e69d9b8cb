"""Fixtures for tests on a real kernel: labs with names of their own, gone when the test ends."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from xdpstack.lab import Lab, Namespace, pair

_count = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        reason = "not root: network namespaces need CAP_SYS_ADMIN; run: sudo make test"
        for item in items:
            if "netns_tests" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Labs on demand: ``make_lab()`` gives one that is up; all end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **more: stack.enter_context(Lab(f"t{os.getpid()}-{next(_count)}", **more))


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """An empty lab."""
    return make_lab()


@pytest.fixture
def lab_pair(lab: Lab) -> tuple[Namespace, Namespace]:
    """``(venue, trader)``: v0 10.77.0.1/24 and t0 10.77.0.2/24, one queue, MTU 1500, offloads off."""
    return pair(lab)


@pytest.fixture
def make_pair(make_lab: Callable[..., Lab]) -> Callable[..., tuple[Namespace, Namespace]]:
    """Pairs on demand, e.g. ``make_pair(queues=2, mtu=9000)``: the arguments are those of ``Lab.veth``."""
    return lambda **more: pair(make_lab(), **more)
