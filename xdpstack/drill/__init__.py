"""Scripts in packetdrill's grammar, played against our stack in virtual time or against the kernel's.

    xdpstack drill FILE...            our stack: the same every time, faster than time
    xdpstack drill --kernel FILE...   the kernel, behind a TUN device in a namespace of its own

The grammar, and what of it is left out: ``README.md`` beside this file.
"""

from __future__ import annotations

from xdpstack.drill.play import Mismatch, Refused
from xdpstack.drill.script import Script, parse

__all__ = ["Mismatch", "Refused", "Script", "parse"]
