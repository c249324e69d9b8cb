"""A dtype in words that any language reads: numpy's ``descr`` as JSON, kept inside a tape or a ring."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

__all__ = ["describe", "described"]


def describe(form: np.dtype[Any] | None) -> str:
    """``[["price", "<i8"], ["qty", "<u4", [2]]]``, or ``"<i8"``; empty for None."""
    return "" if form is None else json.dumps(_plain(form.descr if form.names else form.str))


def described(text: bytes) -> np.dtype[Any] | None:
    """The dtype of such words; None for what says none, or something else."""
    try:
        words = json.loads(text.decode())
        form: np.dtype[Any] = np.dtype(_descr(words))
    except (ValueError, TypeError, IndexError):
        return None
    return form


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _descr(value: Any) -> Any:
    """numpy's descr of what JSON made of it: lists of tuples again."""
    if isinstance(value, str):
        return value
    return [(f[0], _descr(f[1]), *([tuple(f[2])] if len(f) > 2 else [])) for f in value]
