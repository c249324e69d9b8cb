"""The doctor on this host, on a host made of files, and on interfaces that are not as they should be."""

import json
import os
import subprocess
import sys

import pytest

from xdpstack import doctor
from xdpstack.doctor import Host, examine
from xdpstack.errors import ConfigError

GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
RT = "/proc/sys/kernel/sched_rt_runtime_us"
GOOD = {
    "/proc/sys/kernel/osrelease": "6.12.0-amd64",
    "/proc/sys/net/core/bpf_jit_enable": "1",
    "/proc/self/status": "Name:\tx\nCapEff:\t000001ffffffffff\n",
    "/proc/self/mounts": "bpf /sys/fs/bpf bpf rw 0 0\n",
    "/proc/meminfo": "HugePages_Total:     128\nHugePages_Free:      100\n",
    RT: "-1",
    "/proc/1/comm": "init",
    "/sys/devices/system/cpu/isolated": "2-3",
    "/sys/devices/system/cpu/nohz_full": "2-3",
    "/sys/devices/system/cpu/smt/active": "0",
    GOVERNOR: "performance",
    "/sys/devices/system/cpu/cpu0/cpuidle/state0/latency": "0",
    "/sys/devices/system/cpu/cpu0/cpuidle/state0/name": "POLL",
    "/sys/devices/system/cpu/cpu0/cpuidle/state1/latency": "100",
    "/sys/devices/system/cpu/cpu0/cpuidle/state1/name": "C6",
    "/sys/devices/system/cpu/cpu0/cpuidle/state1/disable": "1",
    SOURCE: "tsc",
}


@pytest.fixture
def host(tmp_path):
    """Make a host of files: the good one, with some of them changed or (None) missing."""

    def build(changes=None):
        for path, text in {**GOOD, **(changes or {})}.items():
            file = tmp_path / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            if text is not None:
                file.write_text(text)
        return Host(tmp_path)

    return build


def found(host):
    return {check.name: check for check in examine(host=host)}


# What the running machine decides, whatever the files say.
REAL = {"af-xdp", "memlock", "clock", "tai-offset"}


def test_a_good_host_has_nothing_to_mend(host):
    checks = found(host())
    assert {name: c.found for name, c in checks.items() if c.state != "ok" and name not in REAL} == {}
    assert all(c.why.endswith(".") for c in checks.values())


@pytest.mark.parametrize(
    ("changes", "name", "state", "words"),
    [
        ({"/proc/sys/kernel/osrelease": "5.10.0-amd64"}, "kernel", "fail", "bpf_ktime_get_tai_ns"),
        ({"/proc/sys/kernel/osrelease": "6.1.0-amd64"}, "kernel", "warn", "XDP_USE_SG"),
        ({"/proc/sys/net/core/bpf_jit_enable": "0"}, "bpf-jit", "warn", "off"),
        ({"/proc/sys/net/core/bpf_jit_enable": None}, "bpf-jit", "unknown", "cannot"),
        ({"/proc/self/status": "CapEff:\t0000\n"}, "capabilities", "fail", "CAP_NET_RAW, CAP_BPF"),
        ({"/proc/self/status": "CapEff:\t0000000000203000\n"}, "capabilities", "warn", "CAP_SYS_NICE"),
        ({"/proc/self/status": None}, "capabilities", "unknown", "cannot"),
        ({"/proc/self/mounts": "proc /proc proc rw 0 0\n"}, "bpffs", "warn", "not mounted"),
        ({"/proc/meminfo": "HugePages_Total: 0\nHugePages_Free: 0\n"}, "huge-pages", "warn", "0 of 0"),
        ({GOVERNOR: "powersave"}, "governor", "warn", "powersave"),
        ({GOVERNOR: None}, "governor", "unknown", "cpufreq"),
        ({"/sys/devices/system/cpu/cpu0/cpuidle/state1/disable": "0"}, "c-states", "warn", "C6 (100 µs)"),
        ({"/sys/devices/system/cpu/isolated": ""}, "isolation", "warn", "no core"),
        ({"/sys/devices/system/cpu/smt/active": "1"}, "smt", "warn", "on"),
        ({RT: "950000"}, "rt-throttling", "warn", "50 ms of every 1000 ms"),
        ({"/proc/1/comm": "irqbalance"}, "irqbalance", "warn", "runs"),
        ({SOURCE: "acpi_pm"}, "clock", "warn", "acpi_pm"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_mends_it(host, changes, name, state, words):
    check = found(host(changes))[name]
    assert (check.state, words in check.found) == (state, True), check
    assert check.remedy or state == "unknown"


def test_a_host_without_any_of_the_files_crashes_nothing(tmp_path):
    states = {check.state for check in examine(host=Host(tmp_path))}
    assert "unknown" in states


def test_an_unknown_interface_is_a_usage_error_that_names_those_there_are():
    with pytest.raises(ConfigError, match=r"no interface 'nope0'.*\blo\b"):
        examine("nope0")


def test_the_loopback_has_no_native_mode_and_the_doctor_says_so():
    checks = {check.name: check for check in examine("lo")}
    assert checks["mtu"].found == "65536"
    assert checks["driver"].state in ("warn", "unknown")
    assert checks["mtu"].state in ("fail", "unknown")
    assert checks["mode"].found == "not tried"


def test_cpu_lists_are_read_as_sets():
    assert doctor._cpus("0,2-4") == {0, 2, 3, 4}
    assert doctor._cpus("") == set()


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", "xdpstack", "doctor", *args], capture_output=True, text=True, timeout=60
    )


def test_the_command_prints_one_object_and_its_exit_code_says_whether_something_fails():
    done = command("--json")
    shown = json.loads(done.stdout)
    failing = [c["name"] for c in shown["checks"] if c["state"] == "fail"]
    assert done.returncode == (1 if failing else 0)
    assert set(shown["checks"][0]) == {"name", "state", "found", "why", "remedy"}
    assert shown["state"] in ("ok", "warn", "unknown", "fail")


def test_the_command_ends_with_2_for_an_unknown_interface():
    done = command("nope0")
    assert done.returncode == 2
    assert done.stderr.startswith("xdpstack: there is no interface 'nope0'")


def test_a_program_that_is_not_loaded_has_no_name():
    assert doctor._program_name(None) == ""
    assert doctor._program_name(2**31 - 1) == ""


def test_what_root_alone_may_see_is_unknown_to_others():
    if os.geteuid() != 0:
        pytest.skip("not root: dropping to nobody needs it")
    code = (
        "import os; from xdpstack.doctor import examine; os.setgid(65534); os.setuid(65534);"
        "print({c.name: c.state for c in examine('lo')}['capabilities'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "fail", done.stderr
