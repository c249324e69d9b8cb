"""xdpstack.drill: every script of ``drill/`` against our stack, and the runner itself: what it must refuse,
and what it must notice."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from xdpstack.cli import main
from xdpstack.drill import Mismatch, Refused, parse
from xdpstack.drill.play import pattern
from xdpstack.drill.segment import FLAGS, Ends, Segment, build, read
from xdpstack.drill.virtual import run
from xdpstack.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "xdpstack" / "tests" / "drill"
SCRIPTS = sorted(FOLDER.rglob("*.pkt"))
TAG = re.compile(r"// rfc(\d+): (.+)")


def named(path):
    """A script as a case of a test, with the clauses that it holds as ``rfc()`` tags."""
    tags = [(n, clause.strip()) for n, line in TAG.findall(path.read_text()) for clause in line.split(",")]
    marks = [pytest.mark.rfc(*tag) for tag in tags]
    return pytest.param(path, marks=marks, id=str(path.relative_to(FOLDER).with_suffix("")))


@pytest.mark.parametrize("path", [named(path) for path in SCRIPTS])
def test_our_stack_keeps_to_the_script(path):
    run(parse(path.read_text(), str(path.relative_to(FOLDER))))


OTHER_OVER_IPV6 = {"rfc9293/3.7.1-no-segment-size.pkt:14"}
"""A size that nobody names is 1220 bytes there."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_our_stack_keeps_to_the_script_over_ipv6(path):
    name = str(path.relative_to(FOLDER))
    differs = {place for place in OTHER_OVER_IPV6 if place.startswith(f"{name}:")}
    try:
        run(parse(path.read_text(), name), "v6")
    except Mismatch as error:
        place = ":".join(str(error).split(":")[:2])
        if place not in differs:
            raise
        differs.remove(place)
    assert not differs, "it is as over IPv4"


def test_every_script_says_which_clause_it_holds_and_is_in_the_folder_of_its_rfc():
    assert len(SCRIPTS) >= 500
    for path in SCRIPTS:
        numbers = [f"rfc{n}" for n, _ in TAG.findall(path.read_text())]
        folder = path.parent.name
        assert (path.name.partition("-")[0] if folder.startswith("matrix") else folder) in numbers, path.name


def test_the_matrix_is_what_its_table_gives(monkeypatch):
    spec = importlib.util.spec_from_file_location("drill_matrix", ROOT / "tools" / "drill_matrix.py")
    matrix = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "drill_matrix", matrix)
    spec.loader.exec_module(matrix)
    wanted = dict(matrix.scripts())
    assert len(wanted) == 2 * 8 * 5 * 5
    stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    assert not stale, f"run tools/drill_matrix.py: {len(stale)} stale, {stale[0]} first"
    assert {path for path in SCRIPTS if path.parent.name.startswith("matrix")} == set(wanted)


# -- the grammar


LISTEN = """0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0 bind(3, ..., ...) = 0
+0 listen(3, 1) = 0
"""
OPEN = (
    LISTEN
    + """+0 < S 0:0(0) win 32792 <mss 1000>
+0 > S. 0:0(0) ack 1 <mss 1460>
+.1 < . 1:1(0) ack 1 win 32792
+0 accept(3, ..., ...) = 4
"""
)


def test_a_script_is_read_with_its_settings_times_and_tags():
    script = parse(
        "// what it shows\n// rfc9293: 3.5, MUST-12\n// rfc7323: 2.2\n--tolerance_usecs=4000\n"
        "`sysctl -q net.ipv4.tcp_sack=0\n sysctl -q net.ipv4.tcp_timestamps=0`\n"
        "/* over\n two lines */\n0 `sysctl -q net.ipv4.tcp_rfc1337=1`\n"
        "0...0.5 connect(3, ..., ...) = -1 ECONNREFUSED (Connection refused)\n"
        "+.1~+.25 > S 0:0(0) <mss 1460,nop,wscale *,TS val * ecr 0>\n"
        "* > . 1:1(0) ack 1 <...>\n"
        "0.5 < [ce] PE. 1:3(2) ack 4294967295 win 1 urg 2 <sack 1:2 5:7,eol>\n"
        "# a line of no use\n"
        "+0 setsockopt(3, SOL_SOCKET, SO_LINGER, {onoff=1, linger=0}, 8) = 0\n"
        "+0 %{ assert tcpi_unacked == 2 * 3 and not tcpi_lost\nassert tcpi_state == TCP_LISTEN }%\n"
    )
    assert script.tags == [("9293", "3.5"), ("9293", "MUST-12"), ("7323", "2.2")]
    assert script.options == {"tolerance_usecs": "4000"}
    assert set(script.sysctls) == {f"net.ipv4.tcp_{name}" for name in ("sack", "timestamps", "rfc1337")}
    connect, syn, whenever, odd, linger, check = script.events
    assert (connect.line, connect.when.ends, connect.what.error) == (10, 500_000_000, "ECONNREFUSED")
    assert (syn.when.relative, syn.when.first, syn.when.last) == (True, 100_000_000, 250_000_000)
    assert syn.what.options == (("mss", 1460), ("nop",), ("wscale", None), ("TS", None, 0))
    assert whenever.when.any
    assert whenever.what.options is None
    assert (odd.what.ecn, odd.what.flags, odd.what.urgent, odd.what.ack) == (3, "PE.", 2, 4294967295)
    assert odd.what.options == (("sack", ((1, 2), (5, 7))), ("eol",))
    assert linger.what.args[3] == {"onoff": 1, "linger": 0}
    assert len(check.what.expressions) == 2


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("", None, "no event"),
        ("// only this\n", None, "no event"),
        ("0", 1, "a time without an event"),
        ("soon close(3) = 0", 1, "a time was expected"),
        ("\n\n0 < S 0:0(5)", 3, "the length is 0"),
        ("0 < . 1:1(0) win 5", 1, "names its ack"),
        ("0 < X 1:1(0)", 1, "not a segment"),
        ("0 < udp (100)", 1, "udp packets are not known"),
        ("0 > icmp unreachable frag_needed", 1, "icmp packets are not known"),
        ("0 < [odd] S 0:0(0)", 1, "[odd]: one of"),
        ("0 < S 0:0(0) <wscale 7", 1, "'>' was expected"),
        ("0 < S 0:0(0) <mss x>", 1, "a number was expected"),
        ("0 < S 0:0(0) <mss *>", 1, "has no *"),
        ("0 < S 0:0(0) <...>", 1, "no ..."),
        ("0 < S 0:0(0) <md5 1>", 1, "TCP option 'md5'"),
        ("* < S 0:0(0)", 1, "the time * is for packets that are sent"),
        ("0...1 < S 0:0(0)", 1, "a time with ... is for calls"),
        (".2~.1 > S 0:0(0)", 1, "ends before it begins"),
        ("0 close(3)", 1, "'=' was expected"),
        ("0 close(3) = -1", 1, "the name of an error"),
        ("0 close(3) = -1 EWHAT", 1, "the name of an error"),
        ("0 close(SO_WHAT) = 0", 1, "SO_WHAT: a constant that is not known"),
        ("0 close(3 = 0", 1, "')' was expected"),
        ("0 close({3}) = 0", 1, "name=value"),
        ("0 %{ print(tcpi_rtt) }%", 1, "only `assert EXPRESSION`"),
        ("0 %{ assert open('x') }%", 1, "comparisons and sums, no more"),
        ("0 %{ assert tcpi_rtt.real == 1 }%", 1, "comparisons and sums, no more"),
        ("0 %{ assert 9 ** 9 == 1 }%", 1, "comparisons and sums, no more"),
        ("0 %{ assert x == 1 }%", 1, "x: of names"),
        ("0 %{ assert }%", 1, "only `assert EXPRESSION`"),
        ("0 %{ assert ( }%", 1, "was never closed"),
        ("0 %{ assert 1", 1, "without }%"),
        ("`rm -rf x`\n0 close(3) = 0", 1, "only `sysctl -q name=value` is known"),
        ("`sysctl -q a=1", 1, "without its other one"),
        ("0 close(3) = 0\n`sysctl -q a=1`", 2, "before the first event"),
        ("0 close(3) = 0\n--mss=4", 2, "before the first event"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text, line, why):
    with pytest.raises(ConfigError) as error:
        parse(text, "a.pkt")
    place = f"a.pkt:{line}: " if line else "a.pkt: "
    assert str(error.value).startswith(place)
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        ("+0 sendfile(4) = 0", ConfigError, "sendfile() is no call that is known"),
        ("+0 write(4) = 0", ConfigError, "write(): "),
        ("+0 fcntl(4, F_SETFD, 1) = 0", ConfigError, "F_GETFL and F_SETFL alone"),
        ("+0 < . 1:1(0) ack 1 <sack 1:2 3:4 5:6 7:8 9:10>", ConfigError, "bytes of TCP options"),
        ("+0 setsockopt(4, SOL_SOCKET, SO_BROADCAST, [1], 4) = 0", Refused, "no option"),
        ("+0 setsockopt(4, SOL_TCP, TCP_NODELAY, [1], 4) = 0", Refused, "when a connection begins"),
        ("+0 %{ assert tcpi_rcv_ooopack == 0 }%", Refused, "no tcpi_rcv_ooopack here"),
    ],
)
def test_what_the_machine_does_not_have_is_said(text, error, why):
    with pytest.raises(error, match=re.escape(why)):
        run(parse(OPEN + text, "a.pkt"))


@pytest.mark.parametrize("setting", ["net.ipv4.tcp_sack=7", "net.ipv4.ip_forward=1"])
def test_a_setting_that_our_stack_does_not_have_is_refused(setting):
    with pytest.raises(Refused, match=re.escape(f"our stack has no setting for {setting}")):
        run(parse(f"`sysctl -q {setting}`\n{LISTEN}", "a.pkt"))
    with pytest.raises(ConfigError, match="name=number was expected"):
        run(parse(f"--xds=mss\n{LISTEN}", "a.pkt"))


# -- what the runner notices


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("+0 > . 1:1(0) ack 101", ""),
        ("+0 > P. 1:1(0) ack 101", "(flags)"),
        ("+0 > F. 1:1(0) ack 101", "(flags)"),
        ("+0 > . 2:2(0) ack 101", "(number)"),
        ("+0 > . 1:3(2) ack 101", "(length)"),
        ("+0 > . 1:1(0) ack 102", "(ack)"),
        ("+0 > . 1:1(0) ack 101 win 3", "(window)"),
        ("+0 > . 1:1(0) ack 101 urg 3", "(urgent)"),
        ("+0 > [ect0] . 1:1(0) ack 101", "(ECN)"),
        ("+0 > . 1:1(0) ack 101 <TS val 1 ecr 2>", "(options)"),
        ("+.1 > . 1:1(0) ack 101", "(time)"),
        ("+0 > . 1:1(0) ack 101\n+0 > . 1:1(0) ack 101", "was not sent by"),
        ("+.2 read(4, ..., 10) = 10", "behind this line `> . 1:1(0) ack 101 win 65435` was sent at 0.1 s"),
        ("+0 > . 1:1(0) ack 101\n+0 read(4, ..., 1000) = 99", "read() gave 100, not 99"),
        ("+0 > . 1:1(0) ack 101\n+0 read(7, ..., 1000) = 9", "read() gave -1 EBADF, not 9"),
        ("+0 > . 1:1(0) ack 101\n+0 read(4, ..., 9) = -1 EAGAIN", "read() gave 9, not -1 EAGAIN"),
        ("+0 > . 1:1(0) ack 101\n+0...0.4 accept(3, ..., ...) = 5", "accept() had not returned at its time"),
        ("+0 > . 1:1(0) ack 101\n+0 %{ assert tcpi_unacked == 1 }%", "tcpi_unacked is 0"),
        ("+0 > . 1:1(0) ack 101\n+0 getsockopt(4, SOL_SOCKET, SO_ERROR, [5], [4]) = 0", "gave [0], not [5]"),
    ],
)
def test_a_reply_that_differs_is_noticed_by_its_line(line, why):
    script = parse(OPEN + "+0 < P. 1:101(100) ack 1 win 32792\n" + line, "a.pkt")
    if not why:
        run(script)
        return
    with pytest.raises(Mismatch) as error:
        run(script)
    assert re.match(r"a\.pkt:(9|10): ", str(error.value))
    assert why in str(error.value)


def test_a_number_is_looked_at_beyond_where_it_wraps():
    with pytest.raises(Mismatch, match=r"\(ack\)"):
        run(parse(OPEN + "+0 < P. 1:5001(5000) ack 1 win 32792\n+0 > . 1:1(0) ack 5002", "a.pkt"))
    run(parse(OPEN + "+0 < P. 1:5001(5000) ack 1 win 32792\n+0 > . 1:1(0) ack 5001", "a.pkt"))


# -- segments


def a_segment(**changes):
    values = {
        "ends": Ends("192.0.2.1", 4001, "192.0.2.2", 80),
        "flags": FLAGS["."] | FLAGS["P"] | FLAGS["E"],
        "seq": 0xFFFFFFFF,
        "ack": 7,
        "window": 65535,
        "urgent": 3,
        "options": (("mss", 1000), ("sackOK",), ("TS", 5, 6), ("nop",), ("wscale", 14)),
        "payload": pattern(5, 333),
        "ecn": 2,
    }
    return Segment(**values | changes)


@pytest.mark.parametrize("ends", [("192.0.2.1", "192.0.2.2"), ("fd00::1", "fd00::2")], ids=["v4", "v6"])
def test_segments_are_scapys(ends):
    scapy = pytest.importorskip("scapy.all", reason="scapy is the second opinion of this test")
    segment = a_segment(ends=Ends(ends[0], 4001, ends[1], 80))
    raw = build(segment)
    assert read(raw) == segment
    ip = scapy.IPv6 if ":" in ends[0] else scapy.IP
    seen = ip(raw)
    tcp = seen[scapy.TCP]
    assert (tcp.seq, tcp.ack, tcp.urgptr, str(tcp.flags)) == (0xFFFFFFFF, 7, 3, "PAE")
    assert tcp.options == [
        ("MSS", 1000), ("SAckOK", b""), ("Timestamp", (5, 6)), ("NOP", None), ("WScale", 14),
    ]  # fmt: skip
    again = ip(raw)
    del again[scapy.TCP].chksum
    if ip is scapy.IP:
        del again.chksum
    assert bytes(again) == raw


@pytest.mark.parametrize("at", [0, 2, 9, 11, 12, 20, 33, 36, 40, 60])
def test_a_damaged_segment_is_no_sound_one(at):
    raw = bytearray(build(a_segment()))
    raw[at] ^= 0x10
    with pytest.raises(ValueError, match=r"checksum|IP packet|bytes"):
        read(bytes(raw))


# -- the command


def test_the_command_says_how_each_script_went(tmp_path, capsys):
    good, bad = tmp_path / "a.pkt", tmp_path / "b.pkt"
    good.write_text(OPEN)
    bad.write_text(OPEN + "+0 close(4) = 0")
    assert main(["drill", str(good)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 scripts, 0 failed, 0 refused"
    assert main(["drill", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok       {good}"
    assert lines[1].startswith(f"failed   {bad}:8: behind this line `> F. 1:1(0) ack 1")
    assert main(["drill", "--json", str(tmp_path)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["failed"], told["refused"], told["scripts"][str(good)]) == (1, 0, "")
    bad.write_text("0 fly(3) = 0")
    assert main(["drill", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"xdpstack: {bad}:1: fly() is no call that is known\n"
    assert main(["drill", str(tmp_path / "none.pkt")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main(["drill", "--v6", str(good)]) == 0
    (tmp_path / "empty").mkdir()
    assert main(["drill", str(tmp_path / "empty")]) == 2
