"""What is closed when its ``with`` block ends: the same four lines for everything that has a ``close()``."""

from __future__ import annotations

from typing import Self

__all__ = ["Closing"]


class Closing:
    """Base of what ``with`` closes. Its own ``close()`` is calm when repeated."""

    def close(self) -> object:
        """Let go of what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
