"""The doctor on real links: down, jumbo, several queues, and with somebody's program attached."""

from __future__ import annotations

import subprocess

from xdpstack.doctor import examine


def checks(namespace, interface):
    with namespace.enter():
        return {check.name: check for check in examine(interface)}


def test_a_veth_has_native_mode_but_copies(lab_pair):
    _venue, trader = lab_pair
    found = checks(trader, "t0")
    assert found["link"].state == "ok"
    assert found["driver"].state == "warn"
    assert found["driver"].found.startswith("veth: ")
    assert "copied" in found["driver"].found
    assert found["queues"].state == "ok"
    assert found["xdp-program"].state == "ok"
    assert "tx off" in found["offloads"].remedy


def test_a_link_that_is_down_fails_with_the_command_that_mends_it(lab_pair):
    _venue, trader = lab_pair
    trader.run(["ip", "link", "set", "dev", "t0", "down"])
    found = checks(trader, "t0")
    assert (found["link"].state, found["link"].remedy) == ("fail", "ip link set dev t0 up")


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


def test_a_foreign_program_fails_and_is_named(lab_pair, tmp_path):
    _venue, trader = lab_pair
    source, thing = tmp_path / "p.c", tmp_path / "p.o"
    source.write_text('__attribute__((section("xdp"), used)) int foreign_pass(void *c) { return 2; }')
    subprocess.run(["clang", "-target", "bpf", "-O2", "-c", source, "-o", thing], check=True)
    trader.run(["ip", "link", "set", "dev", "t0", "xdp", "obj", str(thing), "sec", "xdp"])
    found = checks(trader, "t0")["xdp-program"]
    assert found.state == "fail"
    assert "foreign_pass" in found.found
    assert "xdp off" in found.remedy
