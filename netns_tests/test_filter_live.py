"""The filter on a veth pair: life, pins, other people's programs, crashes, and changes under traffic."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import xdpstack
from xdpstack import bpf
from xdpstack.bpf import Filter, attached
from xdpstack.cli.capture import capture
from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import Namespace
from xdpstack.port import XskPort

HERE = "10.77.0.2"
CAPTURE = Path(xdpstack.__file__).parent / "captures" / "cme-mdp3-v9-nine-channels-natural-gaps.pcap"

FOREIGN = """
#include <linux/bpf.h>
#define SEC(name) __attribute__((section(name), used))
SEC("xdp") int foreign(struct xdp_md *ctx) { return XDP_PASS; }
char _license[] SEC("license") = "GPL";
"""


def cli(namespace: Namespace, *words: str) -> tuple[int, str, str]:
    """Run ``xdpstack`` in a namespace: exit code, standard output, standard error."""
    done = namespace.popen(
        [sys.executable, "-m", "xdpstack", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, err = done.communicate(timeout=60)
    return done.returncode, out, err


def owned_pins(namespace: Namespace) -> Path:
    """The folder of t0's pins, which the lab removes should a test fail before it does."""
    with namespace.enter():
        directory = bpf.pin_dir(socket.if_nametoindex("t0"))
    return namespace.lab.owns(directory)


def send(namespace: Namespace, port: int, payload: bytes = b"x", count: int = 1) -> None:
    with namespace.socket() as sender:
        for _ in range(count):
            sender.sendto(payload, (HERE, port))


def wait_until(condition, seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_load_attaches_in_the_mode_asked_for_and_leaving_detaches(lab_pair, mode):
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", mode, ["udp dst *:5000 -> drop"]) as steering:
        assert steering.mode == ("native" if mode == "auto" else mode)
        assert attached("t0").mode == steering.mode
        send(venue, 5000, b"1234", 3)
        wait_until(lambda: steering.counters().reasons["dropped"].packets == 3)
        (rule,) = steering.rules
        assert steering.counters().rules[rule.id] == bpf.Count(3, 3 * 46)
    with trader.enter():
        assert attached("t0") is None


def test_close_is_calm_when_repeated_and_a_closed_filter_says_so(lab_pair):
    _, trader = lab_pair
    with trader.enter():
        steering = Filter.load("t0")
    steering.close()
    steering.close()
    assert "closed" in repr(steering)
    with pytest.raises(SetupError, match="closed"):
        steering.counters()


def test_unknown_and_down_interfaces_are_refused_in_one_sentence(lab_pair):
    _, trader = lab_pair
    with trader.enter(), pytest.raises(SetupError, match="nosuch0: no such interface"):
        Filter.load("nosuch0")
    with trader.netlink() as route:
        route.link("set", ifname="t0", state="down")
    with trader.enter(), pytest.raises(SetupError, match="t0 is down; ip link set t0 up"):
        Filter.load("t0")
    assert cli(trader, "load", "t0") == (1, "", "xdpstack: t0 is down; ip link set t0 up\n")


def test_without_the_capability_the_sentence_names_it(lab_pair):
    _, trader = lab_pair
    told, tell = os.pipe()

    def try_it() -> None:
        os.setuid(65534)
        try:
            Filter.load("t0")
        except SetupError as error:
            os.write(tell, str(error).encode())

    child = trader.fork(try_it)
    assert child.wait(20) == 0
    os.close(tell)
    words = os.read(told, 4096).decode()
    os.close(told)
    assert "load the XDP program: Operation not permitted" in words
    assert "CAP_BPF" in words


def test_somebody_elses_program_is_named_and_replaced_only_by_force(lab_pair, tmp_path):
    _, trader = lab_pair
    (tmp_path / "foreign.c").write_text(FOREIGN)
    arch = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run(
        ["clang", "-target", "bpf", "-O2", arch, "-c", tmp_path / "foreign.c", "-o", tmp_path / "foreign.o"],
        check=True,
    )
    trader.run(["ip", "link", "set", "t0", "xdp", "obj", str(tmp_path / "foreign.o"), "sec", "xdp"])
    owned_pins(trader)
    with trader.enter():
        there = attached("t0")
        assert there.link_id == 0
        for mode in ("auto", "native", "generic"):
            with pytest.raises(SetupError, match=rf"t0: program {there.prog_id} \({there.name}") as caught:
                Filter.load("t0", mode)
            assert caught.value.errno == errno.EBUSY
        assert attached("t0") == there
    code, _, err = cli(trader, "unload", "t0")
    assert code == 1
    assert "--force" in err
    with trader.enter(), Filter.load("t0", force=True):
        assert attached("t0").name == "xds_rx"
    with trader.enter():
        assert attached("t0") is None


def test_a_second_filter_is_refused_and_force_takes_the_place_of_a_link(lab_pair):
    _, trader = lab_pair
    with trader.enter(), Filter.load("t0"):
        with pytest.raises(SetupError, match="attached already"):
            Filter.load("t0")
        with Filter.load("t0", force=True) as second:
            assert attached("t0").prog_id == second.info()["prog_id"]


def test_a_killed_process_leaves_the_host_reachable(lab_pair):
    venue, trader = lab_pair
    ready, tell = os.pipe()

    def hold() -> None:
        steering = Filter.load("t0", rules=["udp -> drop"])
        os.write(tell, b"!")
        signal.pause()
        steering.close()

    child = trader.fork(hold)
    assert os.read(ready, 1) == b"!"
    with trader.socket() as receiver:
        receiver.bind((HERE, 5000))
        receiver.settimeout(0.2)
        send(venue, 5000)
        with pytest.raises(TimeoutError):
            receiver.recv(10)
        child.kill()
        child.wait(60)
        with trader.enter():
            wait_until(lambda: attached("t0") is None)
        receiver.settimeout(60)
        send(venue, 5000)
        assert receiver.recv(10) == b"x"


def test_the_command_line_loads_changes_shows_and_unloads(lab_pair, tmp_path):
    venue, trader = lab_pair
    directory = owned_pins(trader)
    rules = tmp_path / "rules"
    rules.write_text("# the feed\nudp dst *:5000 -> feed  # to nobody yet\n\narp -> pass\n")
    code, out, _ = cli(trader, "load", "t0", "--rules", str(rules), "--json")
    assert (code, json.loads(out)["mode"]) == (0, "native")
    assert directory.is_dir()
    send(venue, 5000, count=4)
    code, out, _ = cli(trader, "rules", "list", "t0", "--json")
    listed = json.loads(out)
    assert [(r["rule"], r["packets"]) for r in listed["rules"]] == [
        ("udp dst *:5000 -> feed", 4),
        ("arp -> pass", 0),
    ]
    (missed,) = listed["no_socket"]
    assert (missed["group"], missed["queue"], missed["packets"], missed["bytes"]) == ("feed", 0, 4, 4 * 43)
    assert "xsk:t0 opens all" in missed["mend"]
    code, out, _ = cli(trader, "rules", "add", "t0", "udp dst *:6000 -> drop", "--before", "1", "--json")
    assert (code, json.loads(out)["id"]) == (0, 3)
    send(venue, 6000)
    code, out, _ = cli(trader, "rules", "del", "t0", "2")
    assert (code, out) == (0, "2 deleted: arp -> pass\n")
    code, out, _ = cli(trader, "status", "t0", "--json")
    (shown,) = json.loads(out)["interfaces"]
    assert [(r["id"], r["packets"]) for r in shown["rules"]] == [(3, 1), (1, 4)]
    assert "t0: 4 frames for feed came by queue 0, which has no socket" in cli(trader, "status")[1]
    frame = "02" * 12 + "0800" + "4500001c00010000401100000a4d00010a4d0002" + "1388138800080000"
    code, out, _ = cli(trader, "rules", "test", "t0", frame, "--json")
    assert (code, json.loads(out)["group"]) == (0, "feed")
    assert json.loads(cli(trader, "rules", "list", "t0", "--json")[1])["rules"][1]["packets"] == 4, (
        "a dry run"
    )
    code, out, _ = cli(trader, "rules", "test", "t0", str(CAPTURE), "--json")
    tried = json.loads(out)
    assert (code, tried["frames"], [rule["packets"] for rule in tried["rules"]]) == (0, 100, [0, 0])
    assert tried["reasons"]["unmatched"]["packets"] == 100
    code, _, err = cli(trader, "load", "t0")
    assert code == 1
    assert "xdpstack unload t0" in err
    assert cli(trader, "unload", "t0")[0] == 0
    assert not directory.exists()
    with trader.enter():
        assert attached("t0") is None
    code, _, err = cli(trader, "rules", "list", "t0")
    assert (code, err) == (1, "xdpstack: t0: no filter is loaded; xdpstack load t0\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["rules", "add", "t0", "udp dst 10.0.0.300 -> a"], "'10.0.0.300' is not an address or prefix"),
        (["load", "t0", "--rules", "RULES"], "RULES:2: no '->' in rule 'udp'"),
        (["load", "t0", "--rules", "nosuchfile"], "nosuchfile: No such file or directory"),
        (["rules", "test", "-", "xyz", "--rules", "/dev/null"], "neither a file nor a frame in hex"),
    ],
)
def test_bad_words_are_a_usage_error_and_leave_nothing(lab_pair, tmp_path, words, error):
    _, trader = lab_pair
    owned_pins(trader)
    rules = tmp_path / "rules"
    rules.write_text("arp -> pass\nudp\n")
    if words[0] == "rules" and words[1] == "add":
        assert cli(trader, "load", "t0")[0] == 0
    code, out, err = cli(trader, *(word.replace("RULES", str(rules)) for word in words))
    assert (code, out) == (2, "")
    assert error.replace("RULES", str(rules)) in err
    assert err.count("\n") == 1
    cli(trader, "unload", "t0")
    with trader.enter():
        assert attached("t0") is None


def test_a_pinned_filter_survives_its_process_and_keeps_rules_groups_and_counters(lab_pair):
    venue, trader = lab_pair
    owned_pins(trader)
    with trader.enter():
        with Filter.load(
            "t0", rules=["udp dst *:5000 -> feed", "udp dst *:5001 -> orders"], pin=True
        ) as first:
            rules, groups = first.rules, first.groups
        send(venue, 5000, count=2)
        with Filter.open_pinned("t0") as again:
            assert (again.rules, again.groups) == (rules, groups)
            wait_until(lambda: again.counters().rules[rules[0].id].packets == 2)
            again.unload()
        assert attached("t0") is None
        with pytest.raises(SetupError, match="no filter is loaded"):
            Filter.open_pinned("t0")


def test_pins_of_an_interface_that_is_gone_are_swept_by_the_next_load(lab_pair, make_pair):
    _, trader = lab_pair
    directory = owned_pins(trader)
    with trader.enter():
        Filter.load("t0", pin=True).close()
    with trader.netlink() as route:
        route.link("del", ifname="t0")
    assert directory.exists()
    _, other = make_pair()
    owned_pins(other)
    with other.enter(), Filter.load("t0", pin=True) as steering:
        assert not directory.exists()
        steering.unload()


def test_frames_come_by_the_socket_with_their_stamp(lab_pair):
    venue, trader = lab_pair
    with (
        trader.enter(),
        Filter.load("t0", rules=["udp dst *:5000 -> feed"]) as steering,
        XskPort("t0", tx_frames=0) as port,
    ):
        for queue, fd in port.fds().items():
            steering.set_socket("feed", queue, fd)
        before = time.clock_gettime_ns(time.CLOCK_TAI)
        send(venue, 5000, b"tick")
        frames: list[tuple[int, bytes]] = []

        def took() -> bool:
            frames.extend((frame.rx_ns, bytes(frame.data)) for frame in port.receive(16, now=1))
            return bool(frames)

        wait_until(took)
        after = time.clock_gettime_ns(time.CLOCK_TAI)
        ((stamp, data),) = frames
        assert data[-4:] == b"tick"
        assert before <= stamp <= after, "the stamp is the hook's, not the reader's"
        assert steering.counters().reasons["redirected"].packets == 1
        steering.set_socket("feed", 0, None)
        send(venue, 5000)
        wait_until(lambda: steering.counters().no_socket == {("feed", 0): bpf.Count(1, 43)})


@pytest.mark.skipif(
    "XDPSTACK_VM" not in os.environ,
    reason="a device-bound program can hang the kernel's RTNL when its namespace goes: in the VM lab only",
)
def test_a_device_bound_filter_asks_the_driver_and_falls_back_to_the_hook(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", "native", ["udp -> drop"], device_bound=True) as steering:
        assert steering.info()["device_bound"] == 1
        assert attached("t0").name == "xds_rx_meta"
        send(venue, 5000)
        wait_until(lambda: steering.counters().reasons["dropped"].packets == 1)


@pytest.mark.parametrize(
    ("port", "file", "said"),
    [
        ("pcap:x.pcapng", "y.pcapng", "capture from xsk:INTERFACE"),
        ("xsk:t0", "y.pcap", "pcap keeps nothing of a frame but its stamp; write .pcapng"),
    ],
)
def test_a_capture_says_where_metadata_cannot_be(port, file, said):
    with pytest.raises(ConfigError, match=said):
        capture(port, file, rules=["udp"] if port[0] == "x" else [], metadata=["hash"])


def test_frames_without_a_tag_offload_keep_their_vlan(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", rules=["vlan 100 udp -> drop", "udp -> pass"]) as steering:
        packet = "4500001c00010000401100000a4d00010a4d0002" + "1388138800080000"
        with venue.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("v0", 0))
            raw.send(bytes.fromhex("02" * 12 + "8100" + "0064" + "0800" + packet))
        wait_until(lambda: steering.counters().reasons["dropped"].packets == 1)


def test_rules_change_under_traffic_without_loss_or_misdirection(lab_pair):
    """One flow to AF_XDP, one to the kernel, while other rules come and go: each gets all of its own."""
    venue, trader = lab_pair
    total, batch, wanted = 0, 50, 24
    stay = ["udp dst 10.77.0.2:5000 -> feed", "udp dst 10.77.0.2:5001 -> pass"]
    others = [
        [],
        [f"udp dst 10.77.0.2:{6000 + i} -> drop" for i in range(10)],
        [f"udp src 10.0.0.0/{8 + i % 24} dst 192.0.2.0/24:{i} -> drop" for i in range(300)],
        ["any -> count", "icmp-error -> drop"],
    ]
    got: dict[str, list[int]] = {"feed": [], "kernel": []}
    done = threading.Event()

    def number(data: bytes) -> int:
        return int.from_bytes(data[-4:], "big")

    with (
        trader.enter(),
        Filter.load("t0", rules=stay) as steering,
        XskPort("t0", tx_frames=0) as port,
        trader.socket() as kernel,
    ):
        steering.set_socket("feed", 0, port.fds()[0])
        kernel.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        kernel.bind((HERE, 5001))
        kernel.settimeout(0.5)
        changes = 0

        def change() -> None:
            nonlocal changes
            while not done.is_set():
                more = others[changes % len(others)]
                # The order moves as well: what stays is first, last, or in the middle.
                at = (changes // 4) % 2 * len(more)
                steering.replace_rules([*more[:at], *stay, *more[at:]])
                changes += 1

        changer = threading.Thread(target=change)
        changer.start()
        try:
            with venue.socket() as sender:
                while changes < wanted and total < 200_000:
                    first, total = total, total + batch
                    for i in range(first, total):
                        sender.sendto(i.to_bytes(4, "big"), (HERE, 5000))
                        sender.sendto(i.to_bytes(4, "big"), (HERE, 5001))
                    deadline = time.monotonic() + 60
                    while len(got["feed"]) < total and time.monotonic() < deadline:
                        got["feed"] += [number(bytes(frame.data)[:46]) for frame in port.receive(256)]
                    while len(got["kernel"]) < total:
                        try:
                            got["kernel"].append(number(kernel.recv(64)))
                        except TimeoutError:
                            break
        finally:
            done.set()
            changer.join()
        assert got["feed"] == list(range(total))
        assert got["kernel"] == list(range(total))
        counters = steering.counters()
        assert counters.reasons["redirected"].packets == total
        assert counters.reasons["dropped"].packets == counters.reasons["unmatched"].packets == 0
        assert changes >= wanted, f"only {changes} changes fell into the traffic"


def test_a_capture_is_tried_against_rules_of_a_file_rule_by_rule(tmp_path):
    rules = tmp_path / "dry.rules"
    rules.write_text("udp dst 224.0.28.5 -> feed\nudp -> drop\n")
    words = ["rules", "test", "-", str(CAPTURE), "--rules", str(rules), "--json"]
    done = subprocess.run([sys.executable, "-m", "xdpstack", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tried = json.loads(done.stdout)
    assert [(rule["rule"], rule["packets"]) for rule in tried["rules"]] == [
        ("udp dst 224.0.28.5 -> feed", 8),
        ("udp -> drop", 91),
    ]
    assert sum(reason["packets"] for reason in tried["reasons"].values()) == tried["frames"] == 100
