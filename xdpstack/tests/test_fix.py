"""cores/fix: framer, parser, builder and values, with simplefix and datetime as second opinions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import simplefix
from hypothesis import given
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.fix import LEAP_NS, REASONS, build, format_time, parse, parse_time
from xdpstack.tests.fix_peer import NOW, message, resum

REPORT = message(
    (35, "8"), (49, "VENUE"), (56, "BUYSIDE"), (34, 4711), (52, "20261129-02:50:00.123"), (37, "O-1"),
    (11, "C-1"), (17, "E-1"), (150, "F"), (39, "1"), (55, "EUR/USD"), (54, 1), (38, 100), (44, "1.08215"),
    (32, 40), (31, "1.08214"), (151, 60), (14, 40), (6, "1.08214"), (60, "20261129-02:50:00.122"),
)  # fmt: skip
TAG = st.integers(1, 999_999_999).filter(lambda tag: not lib_data(tag))
VALUE = st.binary(min_size=1, max_size=40).filter(lambda value: b"\x01" not in value)


def lib_data(tag):
    """Length fields, whose value says how the next one is read, and what simplefix sorts by itself."""
    pairs = {90, 93, 95, 212, 445, 618, 621, 1184, 1277, 1280, 1282, 1397, 1401, 1403, 1468}
    return tag in pairs | {8, 9, 10, 35} | set(range(348, 366, 2))


def frame(data, most=16384):
    reason, skip = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    return lib.xds_fix_frame(data, len(data), most, reason, skip), REASONS.get(reason[0]), skip[0]


def test_a_message_is_parsed_as_simplefix_does():
    parser = simplefix.FixParser()
    parser.append_buffer(REPORT)
    assert parse(REPORT) == [(int(tag), value) for tag, value in parser.get_message().pairs]
    assert frame(REPORT) == (len(REPORT), "delivered", len(REPORT))
    assert frame(REPORT + b"8=FIX")[0] == len(REPORT)


def test_every_prefix_of_a_message_waits_for_the_rest():
    for cut in range(len(REPORT)):
        code, _, skip = frame(REPORT[:cut])
        assert code == 0
        assert skip in (0, len(REPORT))


@given(st.lists(st.tuples(TAG, VALUE), max_size=30), st.sampled_from(["FIX.4.2", "FIX.4.4", "FIXT.1.1"]))
def test_what_is_built_is_what_simplefix_builds(fields, begin):
    ours = build(begin, "D", fields)
    assert ours == message((35, "D"), *fields, begin=begin)
    assert parse(ours)[3:-1] == fields
    assert frame(ours)[0] == len(ours)


@given(st.lists(st.tuples(TAG, VALUE), max_size=6), st.integers(0, 300))
def test_a_builder_stays_in_its_room(fields, room):
    whole = build("FIX.4.4", "D", fields)
    memory = ffi.new("uint8_t[]", b"\xee" * 1024)
    b, start = ffi.new("struct xds_fix_builder *"), ffi.new("uint32_t *")
    lib.xds_fix_begin(b, memory, room, b"FIX.4.4", b"D")
    for tag, value in fields:
        lib.xds_fix_put(b, tag, value, len(value))
    size = lib.xds_fix_finish(b, start)
    assert bytes(ffi.buffer(memory))[room:1024] == b"\xee" * (1024 - room)
    if size >= 0:
        assert bytes(ffi.buffer(memory))[start[0] : start[0] + size] == whole
    else:
        assert size == lib.XDS_ECAPACITY
        assert room < len(whole) + 64


def test_data_fields_may_hold_the_separator():
    inner = b"a\x01b=\x0110=000\x01"
    raw = build("FIX.4.4", "B", [(95, len(inner)), (96, inner), (58, "after")])
    assert parse(raw)[3:-1] == [(95, b"%d" % len(inner)), (96, inner), (58, b"after")]
    parser = simplefix.FixParser()
    parser.append_buffer(raw)
    assert parser.get_message().get(96) == inner
    signed = build("FIX.4.4", "B", [(93, 3), (89, b"\x01\x01\x01")])
    assert parse(signed)[4] == (89, b"\x01\x01\x01")
    for bad in (len(inner) + 1, len(inner) - 1, 99_999_999, 12_345_678_901):
        with pytest.raises(ValueError, match="has no form"):
            parse(build("FIX.4.4", "B", [(95, bad), (96, inner), (58, "after")]))


@pytest.mark.parametrize("bad", [b"x=1", b"=1", b"0=1", b"55", b"55=", b"1234567890=1", b"-5=1", b""])
def test_a_field_without_form_is_named(bad):
    with pytest.raises(ValueError, match="has no form"):
        parse(b"8=FIX.4.4\x01" + bad + b"\x0158=x\x01")


def test_a_parser_tells_when_its_room_is_too_small():
    fields = ffi.new("struct xds_fix_field[3]")
    assert lib.xds_fix_parse(REPORT, len(REPORT), fields, 3) == lib.XDS_ECAPACITY


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (REPORT.replace(b"9=", b"7=", 1), "begin"),
        (b"8=FIX.4.4.4.4.4.4\x01" + REPORT[10:], "begin"),
        (REPORT.replace(b"\x019=", b"\x019=x", 1), "begin"),
        (b"8=FIX.4.4\x019=\x01" + REPORT[16:], "begin"),
        (REPORT.replace(b"\x01151=60", b"\x01151=61"), "checksum"),
        (resum(REPORT.replace(b"\x019=189", b"\x019=188")), "length"),
        (b"8=FIX.4.4\x019=4\x0135=\x0110=000\x01", "length"),
        (b"8=FIX.4.4\x019=9999999\x0135=D", "too_long"),
        (b"8=FIX.4.4\x019=00000001\x0135=D", "begin"),
    ],
)
def test_garbled_messages_are_named_and_passed_over(raw, reason):
    code, said, skip = frame(raw)
    assert (code, said) == (lib.XDS_EMALFORMED, reason)
    assert 0 < skip <= len(raw)


def test_msg_type_must_be_the_third_field():
    body = b"49=A\x0135=D\x0158=x\x01"
    raw = resum(b"8=FIX.4.4\x019=%d\x01%s10=000\x01" % (len(body), body))
    assert frame(raw) == (lib.XDS_EMALFORMED, "begin", len(raw))


def test_what_lies_between_messages_is_no_message():
    assert frame(b"\r\n\r\n" + REPORT) == (lib.XDS_EMALFORMED, "delivered", 4)
    assert frame(b"88=F8=FIX") == (lib.XDS_EMALFORMED, "delivered", 4)


def integer(text):
    out = ffi.new("int64_t *")
    return None if lib.xds_fix_integer(text, len(text), out) else out[0]


def decimal(text):
    mantissa, scale = ffi.new("int64_t *"), ffi.new("uint32_t *")
    if lib.xds_fix_decimal(text, len(text), mantissa, scale):
        return None
    return Decimal(mantissa[0]).scaleb(-scale[0])


@given(st.integers(-(2**61), 2**61), st.integers(0, 3))
def test_integers(number, zeros):
    digits = str(abs(number)).rjust(len(str(abs(number))) + zeros, "0")
    text = ("-" if number < 0 else "") + digits
    assert integer(text.encode()) == number
    assert parse(build("FIX.4.4", "D", [(38, number)]))[3][1] == str(number).encode()


@pytest.mark.parametrize("bad", [b"", b"-", b"+1", b"1.0", b" 1", b"1 ", b"0x1", b"9" * 20])
def test_what_is_no_integer(bad):
    assert integer(bad) is None


@given(st.integers(-(10**17), 10**17), st.integers(0, 12))
def test_decimals(mantissa, scale):
    number = Decimal(mantissa).scaleb(-scale)
    assert decimal(f"{number:f}".encode()) == number
    memory, start = ffi.new("uint8_t[256]"), ffi.new("uint32_t *")
    b = ffi.new("struct xds_fix_builder *")
    lib.xds_fix_begin(b, memory, 256, b"FIX.4.4", b"D")
    lib.xds_fix_put_decimal(b, 44, mantissa, scale)
    size = lib.xds_fix_finish(b, start)
    assert parse(bytes(ffi.buffer(memory + start[0], size)))[3] == (44, f"{number:f}".encode())


@pytest.mark.parametrize("bad", [b"", b".", b"-", b"1.2.3", b"1e5", b"1,5", b"9" * 25])
def test_what_is_no_decimal(bad):
    assert decimal(bad) is None


@given(st.datetimes(datetime(1970, 1, 1), datetime(2261, 12, 31)), st.sampled_from([3, 6, 9]))
def test_times_are_those_of_datetime(moment, digits):
    utc = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    ns = (utc // timedelta(microseconds=1)) * 1000
    text = format_time(ns + LEAP_NS, digits)
    assert text[:17] == moment.strftime("%Y%m%d-%H:%M:%S").rjust(17, "0")
    assert text[17:] == f".{ns % 10**9:09d}"[: digits + 1]
    assert parse_time(text) == ns - ns % 10 ** (9 - digits) + LEAP_NS


def test_times_without_and_with_many_digits():
    assert format_time(NOW, 0) == "20260921-14:12:43"
    assert parse_time("20260921-14:12:43") == NOW
    assert parse_time("20260921-14:12:43.1") == NOW + 100_000_000
    assert parse_time("20260921-14:12:43.000000001999") == NOW + 1
    assert parse_time("20161231-23:59:60") == parse_time("20170101-00:00:00")


@pytest.mark.parametrize(
    "bad",
    ["", "20260921", "20260921-14:12", "20260921-14:12:43.", "20260921 14:12:43", "20260229-00:00:00",
     "20261301-00:00:00", "20260921-24:00:00", "20260921-14:60:00", "20260921-14:12:61",
     "20260921-14:12:43,5", "20260921-14:12:43.00x", "20260921-14:12:43.0000000000x", "99990101-00:00:00"],
)  # fmt: skip
def test_what_is_no_time(bad):
    with pytest.raises(ValueError, match="no UTCTimestamp"):
        parse_time(bad)
