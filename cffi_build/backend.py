"""The build backend (PEP 517): setuptools, after `make native bpf`.

So `pip install .` in a clone gives a package with the native core and the XDP program inside. It wants
the Debian packages of tools/bootstrap. An editable install builds nothing: `make build` does both.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.dist import Distribution

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parents[1]


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Make the core and the XDP program with this Python, then a wheel for this Python and machine."""
    subprocess.run(
        ["make", "--no-print-directory", "native", "bpf", f"PY={sys.executable}"], cwd=ROOT, check=True
    )
    Distribution.has_ext_modules = lambda self: True  # type: ignore[method-assign]  # not py3-none-any
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
