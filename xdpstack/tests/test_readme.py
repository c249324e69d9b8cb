"""What the README shows is run: its program, its commands, its captures of output's shape."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xdpstack.cli import build_parser
from xdpstack.flows import udp_frame
from xdpstack.lab.feeds import itch_messages
from xdpstack.port import PcapWriter
from xdpstack.replay import replay
from xdpstack.tests.channel_model import mold

README = Path(__file__).resolve().parents[2] / "README.md"
LINES = [("233.54.12.111", 26477), ("233.54.13.111", 26477)]


@pytest.fixture
def day(tmp_path: Path) -> Path:
    """Both lines of a short ITCH session, B a little later, one packet lost on each, none on both."""
    path, messages = tmp_path / "day.pcapng", itch_messages()
    with PcapWriter(path) as writer:
        writer.add_interface("day")
        for number, at in enumerate(range(0, len(messages), 5)):
            some = messages[at : at + 5]
            for line, to in enumerate(LINES):
                if number % 40 != 7 + line:
                    frame = udp_frame(mold(at + 1, [data for _, data in some]), to)
                    writer.write(1_700_000_000_000_000_000 + number * 10_000 + line * 100, frame)
    return path


def test_the_program_runs_as_it_stands(day: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 13, "twelve lines and an import"
    names: dict[str, object] = {}
    exec(compile(program.replace('"xsk:eth0:3"', f'"pcap:{day}"'), str(README), "exec"), names)
    assert repr(names["feed"]) == "<Feed itch50 closed>"
    traded = re.sub(r"(?m)^( *)trades = (.*?)  #.*$", r"\1seen += len(\2)", program)
    assert traded != program
    symbol = next(iter(replay(day, "itch50")["books"]))
    traded = traded.replace("AAPL", symbol).replace('"xsk:eth0:3"', f'"pcap:{day}"')
    names = {"seen": 0}
    exec(compile(traded, str(README), "exec"), names)
    assert names["seen"] > 0, "trades were printed"  # type: ignore[operator]
    assert names["best"].dtype.names[:2] == ("price", "qty")  # type: ignore[attr-defined]


def test_every_command_that_it_names_is_there_and_none_is_missing() -> None:
    text = README.read_text().partition("## Commands")[2].partition("## ")[0]
    named = set(re.findall(r"(?m)(?:^ +xdpstack |· )(\w+)", text))
    (commands,) = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert named == set(commands.choices)
