"""Binding to NIC queues: channels, rings, offloads, steering, interrupts; all of it journalled and put back.

``pending`` and ``restore`` are for the next start and ``doctor --restore``: what a killed process left.
"""

from xdpstack.nic.binding import Binding
from xdpstack.nic.change import pending, restore
from xdpstack.nic.drivers import DRIVERS, quirks_of, unsuitable
from xdpstack.nic.settings import Flow, NicConfig

__all__ = [
    "DRIVERS",
    "Binding",
    "Flow",
    "NicConfig",
    "pending",
    "quirks_of",
    "restore",
    "unsuitable",
]
