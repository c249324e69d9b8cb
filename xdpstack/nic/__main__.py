"""``python -m xdpstack.nic``: write the table of drivers into the README beside this file."""

from __future__ import annotations

from pathlib import Path

from xdpstack.nic.drivers import table

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- drivers: made by python -m xdpstack.nic -->\n", "<!-- end -->\n"


def with_table(text: str) -> str:
    """The README with the table as it is now."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
