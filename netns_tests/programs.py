"""A program in TOML, of one port and one plain feed, and a process that runs it in a namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from xdpstack.lab import Namespace

__all__ = ["started", "written"]


def written(
    folder: Path, port: str = "xsk:t0", *, engine: str = "", options: str = "", more: str = ""
) -> Path:
    """The file; ``engine`` and ``options`` (of the port) are lines of their tables, ``more`` comes last."""
    path = folder / "c.toml"
    path.write_text(
        f'[engine]\n{engine}\n[ports.main]\nport = "{port}"\n{options}\n'
        f'[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n{more}\n'
    )
    return path


def started(namespace: Namespace, path: Path, *words: str) -> subprocess.Popen[str]:
    """``xdpstack run`` of it, which runs already."""
    command = [sys.executable, "-m", "xdpstack", "run", str(path), *words]
    process = namespace.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = ""
    while not (line := process.stderr.readline()).startswith("running"):
        said += line  # a warning, or why it ends
        assert line, said
    return process
