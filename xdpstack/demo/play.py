"""What the venue plays, with which damage, and how the trader is told to take it."""

from __future__ import annotations

from collections.abc import Sequence

from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.lab import feeds as venue_feeds
from xdpstack.lab.faults import Faults
from xdpstack.lab.feeds import Feed
from xdpstack.lab.venue import Play
from xdpstack.port import Subscription

__all__ = ["FAULTS", "REQUEST_PORT", "SEED", "damaged", "feeds", "trader_feeds"]

REQUEST_PORT = 26400
SEED = 7
FAULTS = Faults(loss=0.01, duplicate=0.005, reorder=0.005)
"""Of each line: a hundredth lost, a two-hundredth doubled, as many held back."""

_SLOTS = 16384  # of a reorder window: a machine that holds the trader up for a second must not cost a message
_HOLD = 0.1  # seconds: longer than the player holds a packet back (Faults.hold_ns, 50 ms)


def feeds(seconds: float) -> list[Feed]:
    """CME and IEX as recorded, ITCH as a recorded life cycle and then a generated day, undamaged."""
    return [
        venue_feeds.cme(seconds),
        venue_feeds.iex(seconds),
        venue_feeds.itch(seconds, venue_feeds.day_packets()),
    ]


def damaged(undamaged: Sequence[Feed]) -> Play:
    """The same with each line's own seeded loss, duplication and reordering, and the truth about it."""
    return Play(undamaged, faults=FAULTS, seed=SEED)


def trader_feeds(undamaged: Sequence[Feed], server: str) -> list[FeedConfig]:
    """The trader's configuration of those feeds: lines, windows, the request server."""
    made = []
    for feed in undamaged:
        lines = tuple(Subscription(address=line.group, port=line.port) for line in feed.lines)
        if feed.refused is None:
            channel = ChannelConfig(lines=lines, window_packets=_SLOTS, window=_HOLD, give_up=2 * _HOLD)
        else:
            ask = Subscription(address=server, port=REQUEST_PORT)
            channel = ChannelConfig(
                lines=lines,
                window_packets=_SLOTS,
                window=0.002,
                retry=0.005,
                retries=6,
                give_up=1.0,
                request=ask,
            )
        made.append(FeedConfig(schema=feed.name, channels=(channel,), max_orders=1 << 17, max_levels=1 << 17))
    return made
