"""The doctor on real links: down, jumbo, stacked, in use, and with somebody's program attached."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import time

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from xdpstack.bpf import Filter
from xdpstack.doctor import Host, examine, system
from xdpstack.port.xsk import XskPort


def checks(namespace, interface):
    with namespace.enter():
        return {check.name: check for check in examine(interface)}


@pytest.fixture
def foreign(tmp_path):
    """The object file of a program that is not ours, for XDP and for tc."""
    source, thing = tmp_path / "p.c", tmp_path / "p.o"
    source.write_text(
        '__attribute__((section("xdp"), used)) int foreign_pass(void *c) { return 2; }\n'
        '__attribute__((section("tc"), used)) int foreign_tc(void *c) { return 0; }\n'
    )
    subprocess.run(["clang", "-target", "bpf", "-O2", "-c", source, "-o", thing], check=True)
    return str(thing)


def test_a_veth_has_native_mode_but_copies(lab_pair):
    _venue, trader = lab_pair
    found = checks(trader, "t0")
    assert found["link"].state == "ok"
    assert found["kind"].found.startswith("a veth")
    assert found["driver"].state == "warn"
    assert found["driver"].found.startswith("veth: ")
    assert "copied" in found["driver"].found
    assert found["queues"].state == "ok"
    assert found["xdp-program"].state == "ok"
    assert "tx off" in found["offloads"].remedy
    assert found["napi-deferral"].found.startswith("napi_defer_hard_irqs 0, gro_flush_timeout 0")


def test_the_granted_mode_is_found_by_a_trial(lab_pair):
    _venue, trader = lab_pair
    found = checks(trader, "t0")["mode"]
    assert (found.state, found.found) == ("warn", "native, frames are copied")
    time.sleep(0.5)  # the kernel lets go of the trial's socket in a worker of its own
    with trader.enter(), XskPort("t0") as port:  # the trial has left nothing on the queue
        assert port.granted == "copy"
        assert port.bind_retries == 0


def test_a_queue_that_somebody_holds_is_left_alone(lab_pair):
    _venue, trader = lab_pair
    with trader.enter(), XskPort("t0") as port:
        found = {check.name: check for check in examine("t0")}["mode"]
        assert (found.state, "holds a socket" in found.found) == ("unknown", True)
        assert port.granted == "copy"


def test_an_interface_with_the_filter_on_it_is_left_alone(lab_pair):
    _venue, trader = lab_pair
    with trader.enter(), Filter.load("t0"):
        found = {check.name: check for check in examine("t0")}
    assert (found["mode"].state, "program is attached" in found["mode"].found) == ("unknown", True)
    assert (found["xdp-program"].state, found["xdp-program"].found.endswith("attached, ours")) == ("ok", True)


def test_the_way_out_is_tried_only_when_told_to(lab_pair):
    _venue, trader = lab_pair
    trader.run(["ip", "route", "add", "default", "via", "10.77.0.1"])
    assert "way out" in checks(trader, "t0")["mode"].found
    with trader.enter():
        found = {check.name: check for check in examine("t0", insist=True)}["mode"]
    assert found.found == "native, frames are copied"


def test_a_link_that_is_down_fails_with_the_command_that_mends_it(lab_pair):
    _venue, trader = lab_pair
    trader.run(["ip", "link", "set", "dev", "t0", "down"])
    found = checks(trader, "t0")
    assert (found["link"].state, found["link"].remedy) == ("fail", "ip link set dev t0 up")
    assert found["mode"].found == "not tried: the interface is down"


def test_several_queues_are_pointed_out(make_pair):
    _venue, trader = make_pair(queues=2)
    found = checks(trader, "t0")
    assert found["queues"].state == "warn"
    assert "xsk:t0:0-1" in found["queues"].remedy


def test_jumbo_frames_need_a_driver_with_several_buffers(make_pair):
    _venue, trader = make_pair(mtu=9000)
    found = checks(trader, "t0")["mtu"]
    assert found.state == "ok"  # veth has rx-sg
    assert "several buffers" in found.found


@pytest.mark.parametrize(("flag", "slot"), [("xdpdrv", "native"), ("xdpgeneric", "generic")])
def test_a_foreign_program_fails_and_is_named_with_its_slot(lab_pair, foreign, flag, slot):
    _venue, trader = lab_pair
    trader.run(["ip", "link", "set", "dev", "t0", flag, "obj", foreign, "sec", "xdp"])
    found = checks(trader, "t0")["xdp-program"]
    assert found.state == "fail"
    assert "foreign_pass" in found.found
    assert f", {slot})" in found.found
    command = found.remedy.split("; ")[-1].split()
    trader.run(command)  # the remedy mends it
    assert checks(trader, "t0")["xdp-program"].state == "ok"


def test_a_program_at_tc_is_named_with_its_hook(lab_pair, foreign):
    _venue, trader = lab_pair
    trader.run(["tc", "qdisc", "add", "dev", "t0", "clsact"])
    trader.run(["tc", "filter", "add", "dev", "t0", "ingress", "bpf", "da", "obj", foreign, "sec", "tc"])
    found = checks(trader, "t0")["tc-programs"]
    assert found.state == "ok"
    assert "tc ingress" in found.found
    trader.run(["tc", "filter", "add", "dev", "t0", "egress", "bpf", "da", "obj", foreign, "sec", "tc"])
    found = checks(trader, "t0")["tc-programs"]
    assert found.state == "warn"
    assert "tc egress" in found.found


def test_a_program_at_tcx_is_named_with_its_hook(lab_pair, foreign, tmp_path):
    _venue, trader = lab_pair
    pin = trader.lab.owns(f"/sys/fs/bpf/xdpstack-t{os.getpid()}-tcx")
    section = tmp_path / "tc.o"
    subprocess.run(["llvm-objcopy", "--remove-section=xdp", foreign, section], check=True)
    subprocess.run(["bpftool", "prog", "load", section, pin, "type", "classifier"], check=True)
    path = ctypes.create_string_buffer(bytes(pin))
    program, _ = system._bpf(7, struct.pack("QII", ctypes.addressof(path), 0, 0))  # BPF_OBJ_GET
    assert program >= 0, program
    with trader.enter():
        index = socket.if_nametoindex("t0")
        link, _ = system._bpf(
            28, struct.pack("IIII", program, index, system.TCX["tcx egress"], 0)
        )  # LINK_CREATE
    os.close(program)
    if link < 0:
        pytest.skip(f"this kernel (before 6.6) has no tcx: {os.strerror(-link)}")
    try:
        found = checks(trader, "t0")["tc-programs"]
    finally:
        os.close(link)
    assert (found.state, "foreign_tc (id " in found.found) == ("warn", True), found
    assert ", tcx egress)" in found.found
    assert checks(trader, "t0")["tc-programs"].state == "ok"


def test_the_other_end_of_a_veth_is_looked_at_where_it_can_be_seen(lab):
    both = lab.namespace("both")
    lab.veth(both, "a0", "10.77.0.1/24", both, "b0", "10.77.0.2/24")
    assert checks(both, "a0")["offloads"].found == "the other end, b0, finishes its checksums"
    both.set_offloads("b0", True)
    found = checks(both, "a0")["offloads"]
    assert (found.state, found.remedy) == ("warn", "ethtool -K b0 tx off")
    both.run(found.remedy.split())
    assert checks(both, "a0")["offloads"].state == "ok"


@pytest.mark.parametrize("kind", ["dummy", "bond", "vlan", "bridge", "ifb", "macvlan"])
def test_what_stands_on_a_nic_gets_a_clear_answer(lab_pair, kind):
    _venue, trader = lab_pair
    more = {"vlan": {"link": "t0", "vlan_id": 7}, "macvlan": {"link": "t0"}}.get(kind, {})
    with trader.netlink() as route:
        if "link" in more:
            more["link"] = route.link_lookup(ifname="t0")[0]
        try:
            route.link("add", ifname="x0", kind=kind, **more)
        except NetlinkError as error:
            pytest.skip(f"this kernel makes no {kind}: {error}")
    found = checks(trader, "x0")["kind"]
    assert found.state == "warn"
    assert found.found.startswith(f"a {'VLAN of t0' if kind == 'vlan' else kind}")
    assert found.remedy


def test_sys_is_read_of_the_namespace_that_asks(lab_pair):
    venue, trader = lab_pair
    with trader.enter():
        assert not os.path.exists("/sys/class/net/t0")  # /sys is the host's
        t0 = Host().interface("t0")
        assert t0.read("mtu", "ifindex") == ["1500", str(socket.if_nametoindex("t0"))]
        assert t0.list("queues") == ["rx-0", "tx-0"] or t0.list("queues") == ["tx-0", "rx-0"]
    with venue.enter():
        assert Host().interface("v0").read("mtu") == ["1500"]


def test_nobody_sees_a_link_as_far_as_it_may_be_seen(lab_pair):
    _venue, trader = lab_pair
    command = [sys.executable, "-m", "xdpstack", "doctor", "t0", "--json"]
    with trader.popen(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        out, err = child.communicate(timeout=60)
    shown = {c["name"]: c for c in json.loads(out)["checks"]}
    assert (child.returncode, err) == (1, "")  # it has no capability
    assert shown["mode"]["found"] == "not allowed to try"
    assert shown["napi-deferral"]["state"] == "unknown"
    assert shown["link"]["state"] == "ok"
    assert shown["driver"]["found"].startswith("veth: ")
