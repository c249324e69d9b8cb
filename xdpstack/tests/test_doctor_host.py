"""Every check of a host, on hosts made of files and recorded answers, in each of its states."""

import re
import struct

import pytest

from xdpstack.doctor import Host, examine
from xdpstack.doctor.host import cpus, cpus_text
from xdpstack.doctor.table import HOST_CHECKS
from xdpstack.tests.doctor_hosts import CLOCK, CPU, HUGE, build, config

JIT = "/proc/sys/net/core/bpf_jit_enable"
HARDEN = "/proc/sys/net/core/bpf_jit_harden"
BALANCING = "/proc/sys/kernel/numa_balancing"
RT = "/proc/sys/kernel/sched_rt_runtime_us"
STATUS = "/proc/self/status"
RELEASE = "/proc/sys/kernel/osrelease"
IDLE = f"{CPU}/cpu0/cpuidle/state1"
ADRIFT = {"synchronized": False, "max_error_ns": 16_000_000_000}
SLOW = {"source": "system", "reason": "not_invariant", "hertz": 0.0}
NOBODY = struct.pack("i", 2_000_000_000)
NO_IDLE = {f"{IDLE}/{name}": None for name in ("latency", "name", "disable")}
NO_IDLE |= {f"{CPU}/cpu0/cpuidle/state0/{name}": None for name in ("latency", "name")}
NO_GOVERNOR = {f"{CPU}/cpu{n}/cpufreq/scaling_governor": None for n in (0, 1)}
NO_PROCESSES = {"/proc/1/comm": None, "/proc/71/comm": None}


def found(host):
    return {check.name: check for check in examine(host=host)}


def test_a_good_host_has_nothing_to_mend(tmp_path):
    checks = examine(host=build(tmp_path))
    assert {c.name: c.found for c in checks if c.state != "ok"} == {}
    assert [c.name for c in checks] == [row.name for row in HOST_CHECKS]
    assert not any(c.remedy or c.changes for c in checks)


def test_every_check_says_why_in_one_sentence():
    for row in HOST_CHECKS:
        assert re.fullmatch(r"[^\n]+\.", row.why), row
        assert len(row.why) <= 110


TASK = "/proc/71/task/72"
ENGINE: dict = {
    f"{TASK}/comm": "xds-engine",
    f"{TASK}/status": "Name:\txds-engine\nCpus_allowed_list:\t0-3\n",
}
FAST = {
    f"{TASK}/stat": "72 (xds-engine) R " + " ".join(["0"] * 36) + " 50 1 0 0",
    "/proc/71/status": "Name:\tpython\nVmLck:\t    3072 kB\n",
}


def on_core(core):
    return {f"{TASK}/status": f"Name:\txds-engine\nCpus_allowed_list:\t{core}\n"}


CASES = [
    ("kernel", "fail", "bpf_ktime_get_tai_ns", {RELEASE: "5.10.0-amd64"}, {}),
    ("kernel", "warn", "XDP_USE_SG", {RELEASE: "6.1.0-amd64"}, {}),
    ("kernel", "unknown", "cannot be read", {RELEASE: None}, {}),
    ("kernel-options", "fail", "XDP_SOCKETS (no AF_XDP)", {"/proc/config.gz": config("XDP_SOCKETS")}, {}),
    ("kernel-options", "warn", "CONFIG_BPF_JIT", {"/proc/config.gz": config("BPF_JIT")}, {}),
    ("kernel-options", "unknown", "config-6.12.0-amd64", {"/proc/config.gz": None}, {}),
    ("kernel-options", "unknown", "neither", {"/proc/config.gz": b"\x1f\x8b broken"}, {}),
    ("af-xdp", "fail", "has none", {}, {"af_xdp": "EAFNOSUPPORT"}),
    ("af-xdp", "unknown", "EPERM", {}, {"af_xdp": "EPERM"}),
    ("af-xdp", "unknown", "cannot be tried", {}, {"af_xdp": None}),
    ("bpf-jit", "warn", "off", {JIT: "0"}, {}),
    ("bpf-jit", "warn", "blinded", {HARDEN: "2"}, {}),
    ("bpf-jit", "unknown", "cannot", {JIT: None}, {}),
    ("busy-poll", "warn", "net.core.busy_read 50", {"/proc/sys/net/core/busy_read": "50"}, {}),
    ("busy-poll", "unknown", "no busy polling", {"/proc/sys/net/core/busy_poll": None}, {}),
    ("capabilities", "fail", "CAP_NET_RAW, CAP_BPF", {STATUS: "CapEff:\t0000\n"}, {}),
    ("capabilities", "warn", "CAP_SYS_NICE", {STATUS: "CapEff:\t0000000000203000\n"}, {}),
    ("capabilities", "unknown", "cannot", {STATUS: None}, {}),
    ("memlock", "warn", "64 KiB", {STATUS: "CapEff:\t0000\n"}, {"memlock": 65536}),
    ("memlock", "ok", "CAP_IPC_LOCK passes it", {}, {"memlock": 65536}),
    ("memlock", "unknown", "cannot", {}, {"memlock": None}),
    ("bpffs", "warn", "not mounted", {"/proc/self/mounts": "proc /proc proc rw 0 0\n"}, {}),
    ("bpffs", "unknown", "cannot", {"/proc/self/mounts": None}, {}),
    ("dispatcher", "ok", "takes our filter", {}, {}),
    ("dispatcher", "ok", "stand alone: not permitted", {}, {"dispatcher_trial": "not permitted"}),
    ("dispatcher", "unknown", "only root", {}, {"dispatcher_trial": None}),
    ("huge-pages", "warn", "0 of 128", {f"{HUGE}/hugepages-2048kB/free_hugepages": "0"}, {}),
    ("huge-pages", "unknown", "none", {f"{HUGE}/hugepages-2048kB/nr_hugepages": None}, {}),
    ("huge-pages-1g", "warn", "0 of 4", {f"{HUGE}/hugepages-1048576kB/nr_hugepages": "4"}, {}),
    ("huge-pages-1g", "ok", "none reserved", {}, {}),
    ("huge-pages-1g", "unknown", "has none", {f"{HUGE}/hugepages-1048576kB/nr_hugepages": None}, {}),
    ("numa-balancing", "warn", "on", {BALANCING: "1"}, {}),
    ("numa-balancing", "ok", "has none", {BALANCING: None}, {}),
    ("governor", "warn", "performance, powersave", {f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave"}, {}),
    ("governor", "unknown", "cpufreq", NO_GOVERNOR, {}),
    ("c-states", "warn", "C6 (100 µs)", {f"{IDLE}/disable": "0"}, {}),
    ("c-states", "unknown", "cpuidle", NO_IDLE, {}),
    ("dma-latency", "warn", "nobody", {f"{IDLE}/disable": "0", "/dev/cpu_dma_latency": NOBODY}, {}),
    ("dma-latency", "ok", "no idle state is deep", {"/dev/cpu_dma_latency": NOBODY}, {}),
    ("dma-latency", "ok", "holds it at 0", {}, {}),
    ("dma-latency", "unknown", "cannot", {"/dev/cpu_dma_latency": None}, {}),
    ("isolation", "warn", "no core", {f"{CPU}/isolated": ""}, {}),
    ("isolation", "unknown", "cannot", {f"{CPU}/isolated": None}, {}),
    ("tick", "warn", "on every core", {f"{CPU}/nohz_full": "(null)"}, {}),
    ("tick", "warn", "isolated ones still", {f"{CPU}/nohz_full": "2"}, {}),
    ("tick", "unknown", "CONFIG_NO_HZ_FULL", {f"{CPU}/nohz_full": None}, {}),
    ("smt", "warn", "on", {f"{CPU}/smt/active": "1"}, {}),
    ("smt", "unknown", "cannot", {f"{CPU}/smt/active": None}, {}),
    ("rt-throttling", "warn", "50 ms of every 1000 ms", {RT: "950000"}, {}),
    ("rt-throttling", "ok", "off", {RT: "1000000"}, {}),
    ("rt-throttling", "unknown", "cannot", {RT: None}, {}),
    ("irqbalance", "warn", "process 71", {"/proc/71/comm": "irqbalance"}, {}),
    ("irqbalance", "unknown", "cannot", NO_PROCESSES, {}),
    ("engines", "warn", "process 71 on cores 0-3: process 71 is on no core of its own", ENGINE, {}),
    ("engines", "warn", "FIFO 50, 3 MiB locked: core 1 of process 71 is not isolated",
     {**ENGINE, **FAST, **on_core("1")}, {}),
    ("engines", "ok", "process 71 on core 2, FIFO 50, 3 MiB locked", {**ENGINE, **FAST, **on_core("2")}, {}),
    ("engines", "ok", "process 71 on core 1", {**ENGINE, **on_core("1"), f"{CPU}/isolated": ""}, {}),
    ("engines", "ok", "none", {}, {}),
    ("engines", "unknown", "ended", {**ENGINE, f"{TASK}/status": None}, {}),
    ("clock", "warn", "not invariant", {}, {"clock": SLOW}),
    ("clock", "unknown", "cannot", {}, {"clock": None}),
    ("clock-source", "warn", "hpet, and tsc is there", {f"{CLOCK}/current_clocksource": "hpet"}, {}),
    ("clock-source", "warn", "acpi_pm",
     {f"{CLOCK}/current_clocksource": "acpi_pm", f"{CLOCK}/available_clocksource": "acpi_pm"}, {}),
    ("clock-source", "unknown", "cannot", {f"{CLOCK}/current_clocksource": None}, {}),
    ("clock-sync", "ok", "within 12 µs", {}, {}),
    ("clock-sync", "warn", "nothing keeps it", {}, {"clock_sync": ADRIFT}),
    ("clock-sync", "unknown", "cannot", {}, {"clock_sync": None}),
    ("tai-offset", "warn", "0 s", {}, {"tai": 0}),
    ("tai-offset", "unknown", "cannot", {}, {"tai": None}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "state", "words", "files", "answers"), CASES)
def test_what_is_wrong_is_named_with_what_mends_it(tmp_path, name, state, words, files, answers):
    check = found(build(tmp_path, files, answers))[name]
    assert (check.state, words in check.found) == (state, True), check
    assert check.remedy or state in ("unknown", "ok")
    assert not check.changes or state in ("warn", "fail")


def test_every_check_is_shown_in_a_state_that_is_not_good():
    seen = {name for name, state, *_ in CASES if state != "ok"}
    assert seen == {row.name for row in HOST_CHECKS}


def test_the_options_of_the_kernel_are_read_from_boot_too(tmp_path):
    import gzip

    files = {"/proc/config.gz": None, "/boot/config-6.12.0-amd64": gzip.decompress(config("BPF_SYSCALL"))}
    check = found(build(tmp_path, files))["kernel-options"]
    assert (check.state, check.found) == ("fail", "without CONFIG_BPF_SYSCALL (no BPF at all)")


@pytest.mark.parametrize(
    ("name", "files", "changes"),
    [
        ("bpf-jit", {JIT: "0"}, {JIT: "1"}),
        ("bpf-jit", {HARDEN: "2"}, {HARDEN: "1"}),
        ("busy-poll", {"/proc/sys/net/core/busy_poll": "50"}, {"/proc/sys/net/core/busy_poll": "0"}),
        ("huge-pages", {f"{HUGE}/hugepages-2048kB/free_hugepages": "0"},
         {f"{HUGE}/hugepages-2048kB/nr_hugepages": "256"}),
        ("numa-balancing", {BALANCING: "1"}, {BALANCING: "0"}),
        ("governor", {f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave"},
         {f"{CPU}/cpu1/cpufreq/scaling_governor": "performance"}),
        ("c-states", {f"{IDLE}/disable": "0"}, {f"{IDLE}/disable": "1"}),
        ("rt-throttling", {RT: "950000"}, {RT: "-1"}),
        ("rt-throttling", {RT: "950000", f"{CPU}/isolated": ""}, {}),  # a spinning thread would take all
        ("smt", {f"{CPU}/smt/active": "1"}, {}),  # moves what is pinned, which nothing puts back
        ("clock-source", {f"{CLOCK}/current_clocksource": "hpet"}, {}),  # the kernel left it for a reason
    ],
)  # fmt: skip
def test_what_is_reversible_comes_as_changes_and_what_is_not_does_not(tmp_path, name, files, changes):
    check = found(build(tmp_path, files))[name]
    assert {change.key: change.value for change in check.changes} == changes
    assert all((change.kind, change.subject) == ("file", "") for change in check.changes)


def test_a_host_without_any_of_the_files_crashes_nothing(tmp_path):
    states = {check.name: check.state for check in examine(host=Host(tmp_path))}
    assert states["kernel"] == states["clock"] == states["af-xdp"] == "unknown"
    assert "fail" not in states.values()


@pytest.mark.parametrize(
    ("text", "numbers"), [("0,2-4", {0, 2, 3, 4}), ("", set()), (None, set()), ("(null)", set()), ("7", {7})]
)
def test_cpu_lists_are_read_as_sets(text, numbers):
    assert cpus(text) == numbers


def test_cpu_sets_are_written_as_the_kernel_lists_them():
    assert cpus_text({0, 2, 3, 4, 9}) == "0,2-4,9"
    assert cpus_text(set()) == ""
