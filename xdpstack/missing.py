"""Frames that the filter sent to a port whose queue has no socket: how many, where, and the mend.

They are not lost: the kernel gets them. But the feed does not, and nothing else would say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xdpstack.bpf import Counters

__all__ = ["Missing", "missing"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Frames of one socket group that came by a queue where it has no socket."""

    interface: str
    group: str
    queue: int
    packets: int
    bytes: int
    mend: str

    def __str__(self) -> str:
        where = f"came by queue {self.queue}, which has no socket, and went to the kernel"
        return f"{self.interface}: {self.packets:,} frames for {self.group} {where}; {self.mend}"


def missing(interface: str, counters: Counters, open_queues: Collection[int] = ()) -> list[Missing]:
    """What a filter's counters say; ``open_queues`` are the port's, where they are known."""
    return [
        Missing(
            interface=interface,
            group=group,
            queue=queue,
            packets=count.packets,
            bytes=count.bytes,
            mend=_mend(interface, queue, open_queues),
        )
        for (group, queue), count in sorted(counters.no_socket.items())
    ]


def _mend(interface: str, queue: int, open_queues: Collection[int]) -> str:
    if not open_queues:
        return f"open it (xsk:{interface} opens all), or take the rule away (xdpstack rules del)"
    wanted = ",".join(map(str, sorted({*open_queues, queue})))
    rule = f"flow-type udp4 dst-ip GROUP dst-port PORT action {min(open_queues)}"
    listed = ", ".join(map(str, sorted(open_queues)))
    return (
        f'queues = "{wanted}" opens it; steer = true has the NIC send the flow to queue {listed}, '
        f"as does: ethtool -N {interface} {rule}"
    )
