"""What steering costs: ns a frame by BPF_PROG_TEST_RUN, against a bare redirect. Prints the table of
bpf/README.md: ``python -m pytest netns_tests/test_bpf_cost.py -s``."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from xdpstack import loaded
from xdpstack._ffi import ffi, lib
from xdpstack.bpf import Filter
from xdpstack.clock import tai_ns

REPEAT, ROUNDS = 200_000, 7  # the least of the rounds: what the machine does when nobody disturbs it
BARE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, 64);
    __uint(key_size, 4);
    __uint(value_size, 4);
} socks SEC(".maps");
SEC("xdp") int bare(struct xdp_md *ctx) { return bpf_redirect_map(&socks, ctx->rx_queue_index, XDP_PASS); }
char _license[] SEC("license") = "GPL";
"""
PAYLOAD = bytes(100)
ETHER = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
LAST = UDP(sport=4000, dport=26477) / PAYLOAD
FRAME4 = bytes(ETHER / IP(src="10.0.0.1", dst="233.54.12.111") / LAST)
FRAME6 = bytes(ETHER / IPv6(src="2001:db8::2", dst="2001:db8::1") / LAST)
TAGGED = bytes(ETHER / Dot1Q(vlan=7) / IP(src="10.0.0.1", dst="233.54.12.111") / LAST)
MATCH4, MATCH6 = "udp dst 233.54.12.111:26477 -> a", "udp dst [2001:db8::1]:26477 -> a"


def hosts(count: int) -> list[str]:
    """Groups and ports of many feeds; the frame's own comes last."""
    return [f"udp dst 233.54.{i // 250}.{i % 250}:{20000 + i} -> a" for i in range(count - 1)] + [MATCH4]


def prefixes(count: int) -> list[str]:
    """Overlapping prefixes and port ranges in every dimension."""
    return [
        f"udp src 10.{i // 256}.{i % 256}.0/24 dst 233.{i % 60}.0.0/{16 + i % 8}:{i * 9}-{i * 9 + 9999} -> a"
        for i in range(count - 1)
    ] + [MATCH4]


def hosts6(count: int) -> list[str]:
    return [f"udp dst [2001:db8::1:{i:x}]:{20000 + i} -> a" for i in range(count - 1)] + [MATCH6]


def least(run: Callable[[], int]) -> int:
    return min(run() for _ in range(ROUNDS))


class _Options(ctypes.Structure):  # struct bpf_test_run_opts
    _fields_ = [
        ("sz", ctypes.c_size_t), ("data_in", ctypes.c_void_p), ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32), ("data_size_out", ctypes.c_uint32), ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p), ("ctx_size_in", ctypes.c_uint32), ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32), ("repeat", ctypes.c_int), ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32), ("cpu", ctypes.c_uint32), ("batch_size", ctypes.c_uint32),
    ]  # fmt: skip


def bare_redirect(tmp_path) -> int:
    """ns a frame of the program that libxdp's default comes down to."""
    source, target = tmp_path / "bare.c", tmp_path / "bare.o"
    source.write_text(BARE)
    arch = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run(
        ["clang", "-target", "bpf", "-mcpu=v3", "-O2", "-g", arch, "-c", source, "-o", target], check=True
    )
    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    libbpf.bpf_object__open_file.restype = libbpf.bpf_object__find_program_by_name.restype = ctypes.c_void_p
    thing = ctypes.c_void_p(libbpf.bpf_object__open_file(bytes(target), None))
    assert libbpf.bpf_object__load(thing) == 0
    program = ctypes.c_void_p(libbpf.bpf_object__find_program_by_name(thing, b"bare"))
    fd = libbpf.bpf_program__fd(program)
    frame = ctypes.create_string_buffer(FRAME4, len(FRAME4))

    def run() -> int:
        opts = _Options(sz=ctypes.sizeof(_Options), data_size_in=len(FRAME4), repeat=REPEAT)
        opts.data_in = ctypes.addressof(frame)
        assert libbpf.bpf_prog_test_run_opts(fd, ctypes.byref(opts)) == 0
        return int(opts.duration)

    try:
        return least(run)
    finally:
        libbpf.bpf_object__close(thing)


def test_the_cost_does_not_grow_with_the_number_of_rules(tmp_path, capsys):
    counts = (1, 64, 1024)
    table: dict[str, list[int]] = {}
    with socket.socket(socket.AF_XDP if hasattr(socket, "AF_XDP") else 44, socket.SOCK_RAW) as sock:
        for stamp in (False, True):
            with Filter._load("", 0, stamp) as dry:
                dry.set_socket("a", 0, sock.fileno())
                for name, make, frame in (
                    ("hosts and ports", hosts, FRAME4),
                    ("prefixes and ranges", prefixes, FRAME4),
                    ("one VLAN tag", hosts, TAGGED),
                    ("IPv6 hosts", hosts6, FRAME6),
                ):
                    if stamp and name != "hosts and ports":
                        continue
                    row = table.setdefault(name + (", stamped" if stamp else ""), [])
                    for count in counts:
                        dry.replace_rules(make(count))
                        assert dry.test(frame).rule == dry.rules[-1]
                        row.append(least(lambda dry=dry, frame=frame: dry.run(frame, REPEAT)))
    bare = bare_redirect(tmp_path)
    with capsys.disabled():
        print(f"\n\nns a frame, the last rule matches; a bare redirect: {bare}\n")
        print("| rules | " + " | ".join(map(str, counts)) + " |\n| --- |" + " ---: |" * len(counts))
        for name, row in table.items():
            print(f"| {name} | " + " | ".join(map(str, row)) + " |")
    for name, row in table.items():
        assert row[2] < row[0] + 200, f"{name}: {row}: 1,024 rules cost {row[2] - row[0]} ns more than one"
    assert table["hosts and ports"][0] < bare + 60, "one rule against a bare redirect"


def without_tap(tmp_path: Path) -> Path:
    """Our program as it would be without the look at the tap."""
    ours = Path(__file__).parents[1] / "bpf"
    look = "    if (tap && tap->until_ns)\n        xds_tell(ctx, reason, rule);\n"
    for path in ours.glob("*.[ch]"):
        text = path.read_text()
        if path.name == "xds_leave.bpf.h":
            assert look in text
            text = text.replace(look, "").replace("const struct xds_tap *tap = bpf_map", "(void)bpf_map")
            text = text.replace("(void)bpf_map_lookup_elem(&xds_tap, &zero);", "(void)zero;")
        (tmp_path / path.name).write_text(text)
    target = tmp_path / "xds_rx.bpf.o"
    arch = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    source = tmp_path / "xds_rx.bpf.c"
    flags = ["-target", "bpf", "-mcpu=v3", "-O2", "-g", f"-I{tmp_path}", arch]
    subprocess.run(["clang", *flags, "-c", source, "-o", target], check=True)
    return target


def shown(dry: Filter) -> int:
    """ns a frame while a reader takes each; what a read costs is not in it."""
    out, room = ffi.new("struct xds_drops **"), ffi.new("uint8_t const **")
    assert lib.xds_drops_open(dry.info()["prog_id"], out) == 0
    try:
        assert lib.xds_drops_start(out[0], 64) == 0
        tap = ffi.new("struct xds_tap *", {"until_ns": tai_ns() + 60 * 10**9, "pid": os.getpid()})
        assert lib.xds_drops_hold(out[0], tap) == 0
        best = 10**9
        for _ in range(200):
            best = min(best, dry.run(FRAME4, 500))
            assert lib.xds_drops_read(out[0], 1000, room) > 500 * len(FRAME4)
        assert lib.xds_drops_lost(out[0]) == 0
        assert lib.xds_drops_hold(out[0], ffi.new("struct xds_tap *")) == 0
        return best
    finally:
        lib.xds_drops_close(out[0])


def test_a_tap_that_is_off_costs_nothing_to_what_is_taken_and_a_load_to_what_is_refused(
    tmp_path, monkeypatch, capsys
):
    bare = without_tap(tmp_path)
    family = socket.AF_XDP if hasattr(socket, "AF_XDP") else 44
    cases = {"redirected": (MATCH4, 3), "dropped": (MATCH4.replace("-> a", "-> drop"), 5)}  # ns at most above
    table: dict[str, list[int]] = {}
    with socket.socket(family, socket.SOCK_RAW) as sock, Filter._load("", 0, False) as ours:
        monkeypatch.setattr(loaded, "OBJECT", bare)
        with Filter._load("", 0, False) as plain:
            for name, (rule, above) in cases.items():
                for dry in (plain, ours):
                    dry.set_socket("a", 0, sock.fileno())
                    dry.replace_rules([rule])
                rounds: list[list[int]] = []
                for _ in range(20):  # a shared machine strays by 15: go on until the least of both are in
                    rounds += [[dry.run(FRAME4, REPEAT) for dry in (plain, ours)] for _ in range(2 * ROUNDS)]
                    table[name] = [min(column) for column in zip(*rounds, strict=True)]
                    if table[name][1] <= table[name][0] + above:
                        break
        on = shown(ours)
    with capsys.disabled():
        print("\n\nns a frame, without the tap and with one that is off:", table, "on:", on)
    for name, (_, above) in cases.items():
        assert table[name][1] <= table[name][0] + above, name
    assert on < 5000
