"""The pages that say where each byte of shared memory lies, against the structs that are compiled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xdpstack._ffi import ffi

PAGES = Path(__file__).resolve().parents[2] / "cffi_build" / "xds"
TABLES = [
    ("ring.md", "The file", "struct xds_ring"),
    ("ring.md", "A record", "struct xds_ring_record"),
    ("tape.md", "The file", "struct xds_tape"),
    ("tape.md", "A record", "struct xds_tape_record"),
    ("tape.md", "A slot", "struct xds_tape_slot"),
    ("tape.md", "begins with", "struct xds_publish_head"),
    ("tape.md", "A stream record tells", "struct xds_publish_stream"),
    ("tape.md", "what its bytes mean is told", "struct xds_publish_session"),
]
BEHIND = {"text", "data"}
"""What follows some structs."""


def rows_of(page: str, behind: str) -> list[tuple[int, int, str]]:
    """(at, bytes, name) of the first table behind these words; those whose place is a name are left out."""
    text = (PAGES / page).read_text()
    lines = text[text.index(behind) :].splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("| at | bytes | name |"))
    found = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        at, size, name = (cell.strip() for cell in line.split("|")[1:4])
        counts = [int(part) for part in re.findall(r"\d+", size)]
        if at.isdigit() and counts:
            found.append((int(at), counts[0] * (counts[1] if len(counts) > 1 else 1), name))
    return found


def members(ctype: str) -> dict[str, tuple[int, int]]:
    return {name: (field.offset, ffi.sizeof(field.type)) for name, field in ffi.typeof(ctype).fields}


@pytest.mark.parametrize(("page", "behind", "ctype"), TABLES, ids=[table[2] for table in TABLES])
def test_a_page_has_every_field_where_the_struct_has_it(page: str, behind: str, ctype: str) -> None:
    rows, there = rows_of(page, behind), members(ctype)
    assert rows
    for at, size, name in rows:
        if name in BEHIND - set(there):
            continue
        assert there.get(name) == (at, size), name
    told = {name for _, _, name in rows}
    silent = {name for name in there if name not in told and not name.startswith(("_", "pad", "reserved"))}
    assert silent == set(), "of which the page says nothing"
