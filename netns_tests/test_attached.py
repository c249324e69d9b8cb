"""Other people's programs on the hook, in every mode: named, never replaced silently; and waiting for a link
that an attach took down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from xdpstack import bpf
from xdpstack import node as nodes
from xdpstack.bpf import Filter, all_attached, attached
from xdpstack.errors import SetupError
from xdpstack.lab import Namespace
from xdpstack.links import has_carrier, wait_for_carrier
from xdpstack.nic import drivers

FOREIGN = """
#include <linux/bpf.h>
#define SEC(name) __attribute__((section(name), used))
SEC("xdp") int foreign(struct xdp_md *ctx) { return XDP_PASS; }
char _license[] SEC("license") = "GPL";
"""
MODES = {"native": "xdpdrv", "generic": "xdpgeneric"}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> str:
    """The object of a program that is not ours."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "foreign.c").write_text(FOREIGN)
    arch = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    command = ["clang", "-target", "bpf", "-O2", arch, "-c", folder / "foreign.c", "-o", folder / "foreign.o"]
    subprocess.run(command, check=True)
    return str(folder / "foreign.o")


def put(trader: Namespace, foreign: str, mode: str) -> None:
    trader.run(["ip", "link", "set", "t0", MODES[mode], "obj", foreign, "sec", "xdp"])


def cli(trader: Namespace, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xdpstack", *words]
    running = trader.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = running.communicate(timeout=60)
    return subprocess.CompletedProcess(command, running.returncode, out, err)


@pytest.mark.parametrize("theirs", ["native", "generic"])
@pytest.mark.parametrize("wanted", ["native", "generic", "auto"])
def test_a_program_in_either_mode_is_named_and_not_replaced_in_any(lab_pair, foreign, theirs, wanted):
    _, trader = lab_pair
    put(trader, foreign, theirs)
    with trader.enter():
        (there,) = all_attached("t0")
        assert (there.mode, there.link_id) == (theirs, 0)
        words = rf"program {there.prog_id} \({there.name}, {theirs} mode, attached over netlink, .*root"
        with pytest.raises(SetupError, match=rf"t0: {words}\) is attached already; .* --force replaces it"):
            Filter.load("t0", wanted)
        with pytest.raises(SetupError, match="attached already"), nodes.open("xsk:t0") as node:
            node.build()
        assert all_attached("t0") == [there]
        with Filter.load("t0", wanted, force=True) as steering:
            (said,) = steering.replaced
            assert said.startswith(f"program {there.prog_id} ({there.name}, {theirs} mode")
            assert [one.name for one in all_attached("t0")] == ["xds_rx"]
        assert attached("t0") is None


def test_a_link_of_another_process_names_that_process(lab_pair):
    _, trader = lab_pair
    with trader.enter(), Filter.load("t0") as holder:
        link = holder.info()["link_id"]
        with pytest.raises(SetupError) as caught:
            Filter.load("t0")
        said = str(caught.value)
        assert f"by link {link} of process {os.getpid()} (" in said
        shown = cli(trader, "status", "t0").stdout
        assert f"native mode, by link {link} of process {os.getpid()} (" in shown


def test_the_commands_refuse_name_and_replace_by_force(lab_pair, foreign, tmp_path):
    _, trader = lab_pair
    config = tmp_path / "c.toml"
    config.write_text(
        '[ports.main]\nport = "xsk:t0"\n[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n'
    )
    put(trader, foreign, "generic")
    for words in (["load", "t0"], ["run", str(config)]):
        done = cli(trader, *words)
        assert done.returncode == 1
        assert done.stderr.startswith("xdpstack: t0: program ")
        assert "generic mode, attached over netlink" in done.stderr
        assert done.stderr.count("\n") == 1
    shown = json.loads(cli(trader, "status", "t0", "--json").stdout)["interfaces"][0]
    assert shown["attached"]["origin"].startswith("attached over netlink")
    assert (shown["ours"], shown["others"]) == (False, [])
    done = cli(trader, "run", str(config), "--force", "--seconds", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    assert "t0: replacing program" in done.stderr
    put(trader, foreign, "native")
    done = cli(trader, "load", "t0", "--force", "--json")
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout)["replaced"]
    assert "native mode, attached over netlink" in said
    assert cli(trader, "load", "t0").stderr.endswith("is attached already; xdpstack unload t0\n")
    assert cli(trader, "unload", "t0").returncode == 0
    with trader.enter():
        assert attached("t0") is None


def test_pins_of_ours_do_not_make_a_program_of_somebody_elses_ours(lab_pair, foreign):
    _, trader = lab_pair
    with trader.enter():
        with Filter.load("t0", pin=True) as steering:
            trader.lab.owns(bpf.pin_dir(steering.info()["ifindex"]))
        assert bpf.ours("t0")
        bpf.lib.xds_attached_remove(steering_index(trader))
        put(trader, foreign, "native")
        assert not bpf.ours("t0")
        with pytest.raises(SetupError, match=r"foreign.*--force replaces it"), nodes.open("xsk:t0") as node:
            node.build()
        done = cli(trader, "unload", "t0")
        assert done.returncode == 1
        assert "was not loaded by `xdpstack load`; --force detaches it" in done.stderr
        done = cli(trader, "unload", "t0", "--force")
        assert done.returncode == 0
        assert "t0: detached program" in done.stdout
        assert attached("t0") is None
        assert bpf.pinned() == []


def steering_index(trader: Namespace) -> int:
    return int(trader.link("t0")["index"])


class Resetting:
    """The native calls, where attaching takes the carrier away for a while, as many drivers do."""

    def __init__(self, venue: Namespace, seconds: float | None = None) -> None:
        """``seconds`` until the carrier comes back; None: not by itself."""
        self.venue, self.seconds = venue, seconds
        self.real = bpf.lib

    def __getattr__(self, name: str):
        return getattr(self.real, name)

    def carrier(self, state: str) -> None:
        with self.venue.netlink() as route:
            route.link("set", index=route.link_lookup(ifname="v0")[0], state=state)

    def xds_filter_attach(self, *arguments):
        code = self.real.xds_filter_attach(*arguments)
        self.carrier("down")
        if self.seconds is not None:
            threading.Timer(self.seconds, self.carrier, ["up"]).start()
        return code


def test_loading_waits_for_the_carrier_that_it_took(lab_pair, monkeypatch, caplog):
    venue, trader = lab_pair
    monkeypatch.setattr(bpf, "lib", Resetting(venue, 0.4))
    with trader.enter(), caplog.at_level("INFO"):
        begin = time.monotonic()
        with Filter.load("t0"):
            assert has_carrier("t0")
            assert 0.3 < time.monotonic() - begin < 5
    assert "t0: its carrier was gone for 0." in caplog.text


def test_waiting_for_carrier_is_bounded_and_says_so(lab_pair, monkeypatch, caplog):
    venue, trader = lab_pair
    resetting = Resetting(venue)
    monkeypatch.setattr(bpf, "lib", resetting)
    with trader.enter():
        with Filter.load("t0", carrier_wait=0.2):
            assert not has_carrier("t0")
        assert "t0: no carrier 0.2 s after attaching the filter" in caplog.text
        resetting.carrier("up")
        assert wait_for_carrier("t0", 5.0)
        caplog.clear()
        with Filter.load("t0", carrier_wait=0):  # not at all
            assert not has_carrier("t0")
        assert caplog.text == ""


def test_a_driver_that_resets_its_link_is_warned_of_before_a_live_one_is_touched(
    lab_pair, monkeypatch, caplog
):
    venue, trader = lab_pair
    monkeypatch.setattr(bpf.ethtool, "driver", lambda surface, interface: "ixgbe")
    with trader.enter():
        with Filter.load("t0"):
            assert "t0: attaching may interrupt a live link: with ixgbe, " in caplog.text
            assert drivers.DRIVERS["ixgbe"].resets in caplog.text
        caplog.clear()
        Resetting(venue).carrier("down")
        with Filter.load("t0"):
            assert "may interrupt" not in caplog.text  # there is nothing to interrupt


def test_an_interface_that_had_no_carrier_is_not_waited_for(lab_pair):
    venue, trader = lab_pair
    with venue.netlink() as route:
        route.link("set", index=route.link_lookup(ifname="v0")[0], state="down")
    begin = time.monotonic()
    with trader.enter(), Filter.load("t0", carrier_wait=60.0):
        assert time.monotonic() - begin < 30
        assert not has_carrier("t0")
