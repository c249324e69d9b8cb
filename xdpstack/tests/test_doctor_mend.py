"""``doctor --fix`` and ``--restore`` on a host of files: every change is noted, made, and put back."""

import errno
import os
import subprocess
import sys

import pytest

from xdpstack.doctor import Check, examine, mend, restore
from xdpstack.doctor.check import Change
from xdpstack.errors import ConfigError, SetupError
from xdpstack.nic.journal import KEPT, Journal, is_alive
from xdpstack.nic.operations import LinkMtu, LinkUp
from xdpstack.nic.surface import Link
from xdpstack.tests.doctor_hosts import CPU, HUGE, build, config

BALANCING = "/proc/sys/kernel/numa_balancing"
POLL = "/proc/sys/net/core/busy_poll"


class Files:
    """A :class:`xdpstack.nic.surface.Surface` of files under a root: what the doctor's changes ask of it."""

    def __init__(self, root, *, refuse=(), die_at=0):
        self.root, self.refuse, self.die_at, self.writes = root, refuse, die_at, []

    def read(self, path):
        return (self.root / path.lstrip("/")).read_text().strip()

    def write(self, path, text):
        if path in self.refuse:
            raise OSError(errno.EACCES, "")
        self.writes.append(path)
        if len(self.writes) == self.die_at:
            os.kill(os.getpid(), 9)
        (self.root / path.lstrip("/")).write_text(text)

    def ethtool(self, interface, request):
        raise OSError(errno.EOPNOTSUPP, "")

    def napis(self, index):
        return None  # a kernel before 6.8

    def cookie(self):
        return 42

    def link(self, interface):
        return LINK if interface in ("eth0", 2) else None


LINK = Link(name="eth0", index=2, mac="", mtu=9000, kind="", is_loopback=False, master="", lower="")
WRONG = {
    BALANCING: "1",
    POLL: "50",
    f"{HUGE}/hugepages-2048kB/free_hugepages": "0",
    f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave",
    f"{CPU}/cpu0/cpuidle/state1/disable": "0",
    "/proc/sys/kernel/sched_rt_runtime_us": "950000",
    "/proc/sys/net/core/bpf_jit_harden": "2",
    "/proc/irq/41/effective_affinity_list": "2",
    "/proc/irq/41/smp_affinity_list": "2",
    "/sys/class/net/eth0/napi_defer_hard_irqs": "0",
    "/sys/class/net/eth0/gro_flush_timeout": "0",
    "/sys/class/net/eth0/mtu": "9000",
    "/sys/class/net/eth0/flags": "0x1002",
    "/proc/config.gz": config(),
}


def journals(tmp_path):
    return Journal(0, tmp_path / "journal"), Journal(42, tmp_path / "journal")


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def wrong(tmp_path):
    """A host with much to mend, its files and its surface."""
    from xdpstack.tests.doctor_hosts import able, link

    answers = {
        "links": {"eth0": link(up=False, mtu=9000)},
        "napis": None,
        "capabilities": {2: able("basic", "redirect", zc_max_segs=0)},
    }
    root = tmp_path / "root"
    return build(root, WRONG, answers), root


def test_what_was_fixed_is_put_back_bit_for_bit(wrong, tmp_path):
    host, root = wrong
    before = contents(root)
    made = mend(examine("eth0", host=host), surface=Files(root), journals=journals(tmp_path))
    assert [change.error for change in made if change.error] == []
    values = {change.what: (change.before, change.after) for change in made}
    assert values[BALANCING] == ("1", "0")
    assert values["eth0 mtu"] == ("9000", "3498")
    assert values["eth0 state"] == ("off", "on")
    assert values["eth0 deferral"] == ("0 0", "2 200000")
    assert values["eth0 /proc/irq/41/smp_affinity_list"] == ("2", "0-1")
    assert (root / "sys/class/net/eth0/flags").read_text() == "0x1003"
    assert len(values) == len(made) >= 11
    done, left = restore(surface=Files(root), journals=journals(tmp_path))
    assert (len(done), left) == (len(made), [])
    assert contents(root) == before
    assert not any(journal.is_there for journal in journals(tmp_path))


def test_what_is_fixed_is_no_longer_found(wrong, tmp_path):
    host, root = wrong
    mend(examine("eth0", host=host), surface=Files(root), journals=journals(tmp_path))
    found = {check.name: check.state for check in examine("eth0", host=host)}
    # The recorded answers stay as they were: link and mtu are netlink's, effective_affinity is the kernel's.
    for name in (
        "numa-balancing",
        "busy-poll",
        "governor",
        "c-states",
        "rt-throttling",
        "bpf-jit",
        "napi-deferral",
    ):
        assert found[name] == "ok", name


def test_a_second_fix_and_one_restore_give_the_first_state(wrong, tmp_path):
    host, root = wrong
    before = contents(root)
    mend(examine("eth0", host=host), surface=Files(root), journals=journals(tmp_path))
    (root / BALANCING.lstrip("/")).write_text("1")  # somebody turned it on again
    mend(examine("eth0", host=host), surface=Files(root), journals=journals(tmp_path))
    restore(surface=Files(root), journals=journals(tmp_path))
    assert contents(root) == before


def test_a_change_that_is_refused_is_said_and_the_others_are_made(wrong, tmp_path):
    host, root = wrong
    surface = Files(root, refuse=[BALANCING])
    made = mend(examine("eth0", host=host), surface=surface, journals=journals(tmp_path))
    (failed,) = [change for change in made if change.error]
    assert (failed.what, failed.check) == (BALANCING, "numa-balancing")
    assert failed.error == f"echo 0 > {BALANCING}: Permission denied"
    assert (root / POLL.lstrip("/")).read_text() == "0"


def test_what_somebody_else_has_changed_since_is_left_to_him(wrong, tmp_path):
    host, root = wrong
    mend(examine("eth0", host=host), surface=Files(root), journals=journals(tmp_path))
    (root / POLL.lstrip("/")).write_text("7")
    done, left = restore(surface=Files(root), journals=journals(tmp_path))
    assert left == [f"this host: file was changed by somebody else since; it was: echo 50 > {POLL}"]
    assert POLL not in {change.what for change in done}
    assert (root / POLL.lstrip("/")).read_text() == "7"


def test_the_start_of_a_port_does_not_undo_what_the_doctor_did(wrong, tmp_path):
    from xdpstack.nic.change import pending
    from xdpstack.nic.change import restore as next_start

    host, root = wrong
    mend(examine("eth0", host=host), surface=Files(root), journals=journals(tmp_path))
    after = contents(root)
    for journal in journals(tmp_path):
        assert pending(Files(root), journal) == []
        assert next_start(Files(root), journal) == ([], [])
        assert all((entry.owner, entry.started) == KEPT and is_alive(entry) for entry in journal.entries())
    assert contents(root) == after


@pytest.mark.parametrize("die_at", range(1, 12))
def test_a_doctor_that_is_killed_in_the_middle_is_undone(wrong, tmp_path, die_at):
    host, root = wrong
    before = contents(root)
    checks = examine("eth0", host=host)
    pid = os.fork()
    if pid == 0:
        mend(checks, surface=Files(root, die_at=die_at), journals=journals(tmp_path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    if die_at > 1:
        assert contents(root) != before
    _, left = restore(surface=Files(root), journals=journals(tmp_path))
    assert (left, contents(root)) == ([], before)


@pytest.mark.parametrize("die_at", range(1, 12))
def test_a_restore_that_is_killed_in_the_middle_is_finished_by_the_next(wrong, tmp_path, die_at):
    host, root = wrong
    before = contents(root)
    mend(examine("eth0", host=host), surface=Files(root), journals=journals(tmp_path))
    pid = os.fork()
    if pid == 0:
        restore(surface=Files(root, die_at=die_at), journals=journals(tmp_path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    _, left = restore(surface=Files(root), journals=journals(tmp_path))
    assert (left, contents(root)) == ([], before)


def test_an_interface_that_went_is_said_and_stops_nothing(wrong, tmp_path):
    _, root = wrong
    checks = [
        Check(name="a", state="warn", found="x", why="y.", changes=(Change("link", "gone0", "mtu", "1500"),)),
        Check(name="b", state="warn", found="x", why="y.", changes=(Change("file", "", POLL, "0"),)),
    ]
    made = mend(checks, surface=Files(root), journals=journals(tmp_path))
    assert [change.error for change in made] == ["the interface is gone", ""]


def test_other_flags_of_a_link_stay_as_they_are(tmp_path):
    (tmp_path / "sys/class/net/eth0").mkdir(parents=True)
    flags = tmp_path / "sys/class/net/eth0/flags"
    flags.write_text("0x1102")  # promiscuous, broadcast
    LinkUp().write(Files(tmp_path), LINK, True)
    assert flags.read_text() == "0x1103"
    LinkUp().write(Files(tmp_path), LINK, False)
    assert flags.read_text() == "0x1102"


def test_each_change_says_the_command_that_makes_it_by_hand():
    assert LinkUp().say("eth0", False) == "ip link set dev eth0 down"
    assert LinkMtu().say("eth0", 1500) == "ip link set dev eth0 mtu 1500"


def test_only_some_checks_can_be_asked_for(wrong):
    host, _ = wrong
    assert [check.name for check in examine("eth0", host=host, only=["mtu", "kernel"])] == ["kernel", "mtu"]
    with pytest.raises(ConfigError, match=r"^there is no check 'mut'; there are: kernel, .*, phc$"):
        examine("eth0", host=host, only=["mut"])
    with pytest.raises(ConfigError, match=r"^the check 'mtu' is of an interface: name one$"):
        examine(host=host, only=["mtu"])


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: dropping to nobody needs it")
@pytest.mark.parametrize("flag", ["--fix", "--restore"])
def test_nobody_is_told_in_one_sentence_that_it_takes_root(flag):
    done = subprocess.run(
        [sys.executable, "-m", "xdpstack", "doctor", flag],
        capture_output=True, text=True, timeout=60, user=65534, group=65534, extra_groups=[],
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"xdpstack: doctor {flag}: not root; run it by sudo\n"


@pytest.mark.parametrize("words", [["eth0"], ["--check", "mtu"], ["--fix"]])
def test_restore_takes_nothing_beside_it(words, capsys):
    from xdpstack.cli import main

    assert main(["doctor", "--restore", *words]) == 2
    assert capsys.readouterr().err.startswith("xdpstack: doctor: ")


def test_a_journal_that_cannot_be_kept_stops_before_anything_is_changed(wrong, tmp_path):
    host, root = wrong
    before = contents(root)
    (tmp_path / "journal").write_text("a file where the folder should be")
    made = mend(examine("eth0", host=host), surface=Files(root), journals=journals(tmp_path))
    assert all("keep a journal" in change.error for change in made)
    assert contents(root) == before
    assert SetupError  # what the command makes of it is a sentence a change
