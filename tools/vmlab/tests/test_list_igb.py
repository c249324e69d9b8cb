"""The kernel's own AF_XDP list over two cards in zero-copy: a part of it that is certain on a slow host.

The tests are those of netns_tests, with fewer frames and more patience. The whole list over these cards takes
a quarter of an hour: tools/vmlab/README.md. Left out here is what rests on how fast the card is emptied (a
burst above its rings is dropped by this one), and what only opens or waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from netns_tests import test_xsk_list as tests
from netns_tests import xsk_list as ground
from netns_tests.test_xsk_list import (
    beds,
    make,
    test_ALIGNED_INV_DESC,
    test_BIDIRECTIONAL,
    test_POLL_RX,
    test_POLL_TX,
    test_POLL_TXQ_FULL,
    test_SEND_RECEIVE,
    test_SEND_RECEIVE_SINGLE_PKT,
    test_SEND_RECEIVE_UNALIGNED,
    test_STAT_TX_INVALID,
    test_UMEM_HEADROOM,
    test_UNALIGNED_INV_DESC,
    test_XDP_METADATA_COPY,
    test_XDP_PROG_CLEANUP,
    test_XDP_SHARED_UMEM,
)
from tools.vmlab.tests.machine import PATIENCE, put_links_back, up, write

KEEPS_LINKS = True
BUSY = {
    "SEND_RECEIVE",
    "SEND_RECEIVE_UNALIGNED",
    "BIDIRECTIONAL",
    "POLL_TX",
    "STAT_TX_INVALID",
    "XDP_METADATA_COPY",
}
"""Those that poll busily; the others do not. Each runs once, for the time's sake."""
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
__all__ = [
    "beds",
    "make",
    "test_ALIGNED_INV_DESC",
    "test_BIDIRECTIONAL",
    "test_POLL_RX",
    "test_POLL_TX",
    "test_POLL_TXQ_FULL",
    "test_SEND_RECEIVE",
    "test_SEND_RECEIVE_SINGLE_PKT",
    "test_SEND_RECEIVE_UNALIGNED",
    "test_STAT_TX_INVALID",
    "test_UMEM_HEADROOM",
    "test_UNALIGNED_INV_DESC",
    "test_XDP_METADATA_COPY",
    "test_XDP_PROG_CLEANUP",
    "test_XDP_SHARED_UMEM",
]


@pytest.fixture(scope="module")
def mode() -> str:
    return "zerocopy"


@pytest.fixture
def busy(request: pytest.FixtureRequest) -> bool:
    return request.function.__name__.removeprefix("test_") in BUSY


@pytest.fixture(scope="module", autouse=True)
def _over_the_cards() -> Iterator[None]:
    """igb0 sends to igb1, with huge pages for chunks across pages."""
    before = HUGE_PAGES.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground, "NIC", "igb0")
        patch.setattr(ground, "PEER", "igb1")
        patch.setattr(ground, "PATIENCE", PATIENCE)
        patch.setattr(tests, "COUNT", 512)
        write(str(HUGE_PAGES), 48)
        assert int(HUGE_PAGES.read_text()) >= 16, "a guest of 2 GiB has 32 MiB in huge pages"
        up("igb0", "igb1")
        yield
    put_links_back()
    write(str(HUGE_PAGES), before.strip())
