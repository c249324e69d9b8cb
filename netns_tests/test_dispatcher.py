"""A kernel without libxdp's dispatcher: one sentence, and nothing of the attempt is left.

What it does where the kernel has it is in ``tools/vmlab/tests/test_dispatcher.py``.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys

import pytest

from xdpstack import bpf, dispatcher, pins
from xdpstack.bpf import Filter, attached
from xdpstack.dispatcher import Owner, own, owner_of, release
from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import Namespace
from xdpstack.lab.snapshot import Snapshot, other_labs


@pytest.fixture
def refusing() -> None:
    """Skip, aloud, where the kernel takes programs into a dispatcher."""
    if dispatcher.trial() is None:
        pytest.skip("this kernel has freplace: see tools/vmlab/tests/test_dispatcher.py")


def loaded() -> list[str]:
    """Programs of a dispatcher, in the kernel."""
    programs = subprocess.run(["bpftool", "prog", "show"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\d+: \S+ +name (?:xds_rx_chain|xdp_dispatcher|xdp_pass)", programs, re.MULTILINE)


def cli(namespace: Namespace, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xdpstack", *words]
    done = namespace.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = done.communicate(timeout=60)
    return subprocess.CompletedProcess(command, done.returncode, out, err)


@pytest.mark.usefixtures("refusing")
def test_a_refusal_is_one_sentence_and_leaves_nothing(lab_pair):
    _, trader = lab_pair
    before, dispatchers = Snapshot.take(), loaded()
    done = cli(trader, "load", "t0", "--dispatcher")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("xdpstack: use libxdp's dispatcher: the kernel refuses it: ")
    assert done.stderr.endswith("; without --dispatcher the filter has a link of its own\n")
    assert done.stderr.count("\n") == 1
    with trader.enter():
        assert attached("t0") is None
        with pytest.raises(SetupError, match="the kernel refuses it"):
            Filter.load("t0", dispatcher=True)
        assert attached("t0") is None
    assert loaded() == dispatchers
    assert before.wait_restored(but=other_labs) == {}


@pytest.mark.usefixtures("refusing")
def test_a_program_that_is_there_survives_a_refused_force(lab_pair):
    _, trader = lab_pair
    with trader.enter(), Filter.load("t0") as alone:
        with pytest.raises(SetupError, match=r"\(xds_rx, native mode.* attached already"):
            Filter.load("t0", dispatcher=True)
        with pytest.raises(SetupError, match="the kernel refuses it"):
            Filter.load("t0", dispatcher=True, force=True)
        there = attached("t0")
        assert there is not None
        assert there.prog_id == alone.info()["prog_id"]


@pytest.mark.usefixtures("refusing")
def test_a_program_with_a_port_in_the_dispatcher_does_not_start(lab_pair, tmp_path):
    _, trader = lab_pair
    (tmp_path / "shared.toml").write_text(
        '[ports.main]\nport = "xsk:t0:0"\ndispatcher = true\npriority = 40\n'
    )
    assert cli(trader, "run", str(tmp_path / "shared.toml"), "--check").returncode == 0
    done = cli(trader, "run", str(tmp_path / "shared.toml"), "--seconds", "1")
    assert done.returncode == 1
    assert "use libxdp's dispatcher: the kernel refuses it" in done.stderr
    with trader.enter():
        assert attached("t0") is None


def test_the_doctor_says_whether_it_can(lab_pair):
    _, trader = lab_pair
    done = cli(trader, "doctor", "--check", "dispatcher")
    assert done.returncode == 0
    told = dispatcher.trial()
    assert ("takes our filter" if told is None else f"stand alone: {told.reason}") in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--priority", "3"], "--priority is of a filter in the dispatcher: add --dispatcher"),
        (["--dispatcher", "--priority", "-1"], "priority -1 is not in 0..2147483647"),
        (["--dispatcher", "--device-bound"], "a program that is bound to a device cannot be in a dispatcher"),
    ],
)
def test_words_that_contradict_each_other_are_a_usage_error(lab_pair, words, sentence):
    _, trader = lab_pair
    done = cli(trader, "load", "t0", *words)
    assert (done.returncode, done.stderr) == (2, f"xdpstack: {sentence}\n")


def test_without_a_dispatcher_there_is_nobody_in_it(lab_pair):
    _, trader = lab_pair
    with trader.enter():
        assert dispatcher.chained("t0") == []
        assert dispatcher.evict("t0") == 0
        with Filter.load("t0"):
            assert dispatcher.chained("t0") == []


def test_an_owner_is_named_for_good_and_released(tmp_path):
    folder = tmp_path / "pins"
    assert owner_of(folder) is None
    own(folder, os.getpid())
    own(folder, os.getpid())
    owner = owner_of(folder)
    assert owner == Owner.of(os.getpid())
    assert owner.is_alive
    assert owner.is_us
    child = subprocess.Popen(["sleep", "60"])
    try:
        own(folder, child.pid)
        other = owner_of(folder)
        assert other is not None
        assert (other.is_alive, other.is_us) == (True, False)
    finally:
        child.kill()
        child.wait()
    assert not other.is_alive
    release(folder)
    release(folder)
    assert owner_of(folder) is None
    assert list(folder.iterdir()) == []


def test_a_dead_owner_without_a_filter_is_swept(lab_pair):
    _, trader = lab_pair
    with trader.enter():
        with Filter.load("t0"):
            pins.prepare_bpffs()
            folder = trader.lab.owns(pins.pin_dir(999_999))
            folder.mkdir(mode=0o700)
            (folder / "owner").symlink_to("1-1")
            pins.prepare_bpffs()
            assert not folder.exists()
        assert pins.clean_up_dead() == []


def test_a_dispatcher_of_an_older_libxdp_is_named_with_what_helps(monkeypatch):
    """libxdp lists what is in one of an older version, and answers EBUSY to who would add to it."""
    monkeypatch.setattr(
        bpf, "chained", lambda ifname: [dispatcher.Chained(7, "theirs", 50, ("pass",), False)]
    )
    with Filter.dry(dispatcher=True) as steering:
        steering.ifname = "t0"
        told = steering._join_error(-errno.EBUSY)
    assert re.fullmatch(
        r"t0: libxdp does not add to the dispatcher that is there \(.*[Bb]usy.*\); "
        "xdpstack unload t0 --force takes all of it off; then load each program again",
        str(told),
    )


def test_the_dry_program_for_it_is_given_by_name():
    with Filter.dry(["any -> drop"], dispatcher=True) as steering:
        assert steering.test(bytes(60)).action == "drop"
    with pytest.raises(ConfigError, match="14 or more"):
        Filter.dry(dispatcher=True).run(bytes(3))
