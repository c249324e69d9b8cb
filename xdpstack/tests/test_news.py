"""Records of an engine's tape in words: ``xdpstack shm tail`` over what an engine published."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

import xdpstack.streams
from xdpstack._ffi import ffi, lib
from xdpstack.cli import main
from xdpstack.news import as_plain
from xdpstack.publish import News, Subscriber
from xdpstack.sessions import PROTOCOLS
from xdpstack.tests.line_session import Line, Veil
from xdpstack.tests.test_publish import played
from xdpstack.tests.test_publish_sessions import lively, messages, opened, profile
from xdpstack.tests.test_publish_streams import PORT
from xdpstack.tests.test_stream_hooks import B


def told(capsys, tape, *options):
    """The records of a tape that is no longer written, by kind."""
    capsys.readouterr()
    assert main(["shm", "tail", str(tape), "--oldest", "--json", *options]) == 0
    found: dict[str, list[dict]] = {}
    for line in capsys.readouterr().out.splitlines():
        record = json.loads(line)
        found.setdefault(record["kind"], []).append(record["data"])
    return found


def test_tail_tells_what_a_feed_gave(tmp_path, capsys):
    played(tmp_path, [3, 2])
    found = told(capsys, tmp_path / "tape")
    assert {"updates", "messages", "state"} <= set(found)
    rows = [row for record in found["updates"] for row in record["updates"]]
    assert found["updates"][0]["feed"] == "plain"
    assert {"price", "qty"} <= set(rows[0])
    assert [row["price"] for row in rows] == list(range(100, 105))
    assert found["state"][-1]["updates"] == 5
    assert all(record["now"] > 0 for records in found.values() for record in records)
    texts = [text for record in found["messages"] for text in record["messages"]]
    assert len(texts) == 5
    assert {len(text["data"]) // text["len"] for text in texts} <= {1, 2}  # as text, or in hex


def test_tail_tells_what_sessions_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)
    monkeypatch.setitem(PROTOCOLS, "ws", Line)
    monkeypatch.setitem(PROTOCOLS, "tls", Veil)
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(lively(tmp_path, profile(tls=True)))
        connection = opened(live)
        number = live.commander.write(connection, b"hello, line", text=True)
        live.until(lambda: messages(live, connection) == [b"hello, line"])
        _, plain = live.answer(live.commander.connect(B, PORT))
        live.answer(live.commander.write(plain, b"\x00\xff"))
        live.until(lambda: live.got.get(plain) == b"\x00\xff")
        found = told(capsys, tmp_path / "tape", "--seconds", "0.2")
    message = found["ws"][-1]
    assert message["data"] == "hello, line"
    assert (message["what"], message["session"], message["protocol"]) == ("message", "lines", "ws")
    assert message["connection"] == connection
    assert len(message["stages"]) == 6
    assert [record["what"] for record in found["tls"]] == ["open"]
    assert {"number": number, "refused": "", "connection": connection}.items() <= next(
        answer for answer in found["answer"] if answer["number"] == number
    ).items()
    opens = [record for record in found["stream"] if "open" in record["what"]]
    assert opens[0]["remote"] == [B, PORT]
    assert [record["data"] for record in found["stream"] if record.get("data")] == ["00ff"]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"8=FIX.4.4\x019=5\x01", "8=FIX.4.4|9=5|"),
        (b"\xff\x00", "ff00"),
        (b"x" * 300, "x" * 256),
        (b"", None),
    ],
)
def test_data_is_text_where_it_can_be(data, shown):
    raw = ffi.new("struct xds_publish_session *", {"what": 2, "len": len(data), "whole": len(data)})
    record = bytes(ffi.sizeof("struct xds_publish_head")) + bytes(ffi.buffer(raw)) + data
    none = np.empty(0, np.uint8)
    news = News(1, "fix", 5, 6, "", 0, 0, [], none, np.frombuffer(record, np.uint8))
    assert as_plain(news).get("data") == shown


def test_a_record_of_no_kind_ends_the_tail_with_a_sentence(tmp_path, capsys):
    with lively(tmp_path, profile()) as live:
        live.engine.runner.stop()
        tape = live.engine.publication._tape
        tape.write(b"x" * 64, 77)
        assert isinstance(live.reader, Subscriber)
        assert main(["shm", "tail", str(tmp_path / "tape"), "--oldest", "--seconds", "0.1"]) == 1
    assert "is of no known kind" in capsys.readouterr().err
    assert lib.XDS_PUBLISH_FIX < 77
