"""Kernel-bypass packet processing for trading hosts, Python first.

    with xdpstack.open("xsk:eth0:3") as node:
        feed = node.feed("itch50", groups=["233.54.12.111:26477", "233.54.13.111:26477"])
        for batch in node.run():
            ...

Nothing is loaded at import; ``open``, ``Node`` and ``Engine`` come when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdpstack.engine import Engine
    from xdpstack.node import Node, open

__all__ = ["Engine", "Node", "__version__", "open"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("open", "Node"):
        from xdpstack import node

        return getattr(node, name)
    if name == "Engine":
        from xdpstack import engine

        return engine.Engine
    raise AttributeError(f"module 'xdpstack' has no attribute {name!r}")
