"""The doctor on this host, as root and as nobody, and its command."""

import json
import os
import subprocess
import sys

import pytest

from xdpstack.cli import doctor as command_module
from xdpstack.doctor import Check, Host, examine, system
from xdpstack.doctor.table import HOST_CHECKS, INTERFACE_CHECKS
from xdpstack.errors import ConfigError
from xdpstack.tests.doctor_hosts import ANSWERS, FILES

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root: dropping to nobody needs it")


def command(*args, **more):
    return subprocess.run(
        [sys.executable, "-m", "xdpstack", "doctor", *args],
        capture_output=True,
        text=True,
        timeout=60,
        **more,
    )


def test_an_unknown_interface_is_a_usage_error_that_names_those_there_are():
    with pytest.raises(ConfigError, match=r"no interface 'nope0'.*\blo\b"):
        examine("nope0")


def test_this_host_answers_every_question_that_tests_record():
    host = Host()
    assert set(ANSWERS) - {"trial"} <= set(dir(system))
    assert host.real
    assert host.ask("af_xdp") in ("", "EPERM", "EAFNOSUPPORT")
    assert host.ask("clock")["source"] in ("counter", "system")
    assert isinstance(host.ask("tai"), int)
    assert set(host.ask("clock_sync") or ANSWERS["clock_sync"]) == set(ANSWERS["clock_sync"])
    assert isinstance(host.ask("memlock"), int)
    assert set(host.links()["lo"]) == set(ANSWERS["links"]["eth0"])
    assert set(host.ask("capabilities", 1)) == set(ANSWERS["capabilities"][2])


def test_the_files_that_tests_make_up_are_where_this_kernel_has_them():
    there = [
        path for path in FILES if path.startswith("/proc/sys/") and "numa" not in path and "rt_" not in path
    ]
    host = Host()
    assert {path for path in there if host.read(path) is None} <= {"/proc/sys/net/core/bpf_jit_enable"}


def test_the_loopback_has_no_native_mode_and_the_doctor_says_so():
    checks = {check.name: check for check in examine("lo")}
    assert checks["mtu"].found.startswith("65536")
    assert checks["driver"].state in ("warn", "unknown")
    assert checks["mtu"].state in ("fail", "unknown")
    assert checks["kind"].found.startswith("the loopback")
    assert checks["mode"].state in ("fail", "unknown")


def test_the_command_prints_one_object_and_its_exit_code_says_whether_something_fails():
    done = command("--json")
    shown = json.loads(done.stdout)
    failing = [c["name"] for c in shown["checks"] if c["state"] == "fail"]
    assert done.returncode == (1 if failing else 0)
    assert set(shown["checks"][0]) == {"name", "state", "found", "why", "remedy"}
    assert shown["state"] in ("ok", "warn", "unknown", "fail")
    assert [c["name"] for c in shown["checks"]] == [row.name for row in HOST_CHECKS]


@pytest.mark.parametrize(
    ("states", "strict", "code"),
    [
        (["ok", "ok"], False, 0), (["ok", "ok"], True, 0), (["unknown", "ok"], True, 0),
        (["ok", "warn", "unknown"], False, 0), (["ok", "warn", "unknown"], True, 3),
        (["warn", "fail"], False, 1), (["fail", "warn"], True, 1),
    ],
)  # fmt: skip
def test_the_exit_code_is_the_worst_of_the_checks(monkeypatch, capsys, states, strict, code):
    checks = [Check(name=f"c{n}", state=state, found="x", why="y.") for n, state in enumerate(states)]
    monkeypatch.setattr("xdpstack.doctor.examine", lambda *_, **__: checks)
    from xdpstack.cli import main

    assert main(["doctor", "--json", *(["--strict"] if strict else [])]) == code
    worst = next(state for state in ("fail", "warn", "unknown", "ok") if state in states)
    assert json.loads(capsys.readouterr().out)["state"] == worst


def test_what_is_not_good_is_shown_with_its_reason_and_its_mend(capsys):
    command_module.show(
        [
            Check(name="good", state="ok", found="fine", why="Never shown."),
            Check(name="worse", state="warn", found="so so", why="It is slow.", remedy="mend it"),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "ok      good   fine",
        "warn    worse  so so",
        "               It is slow.",
        "               > mend it",
    ]


def test_the_command_ends_with_2_for_an_unknown_interface():
    done = command("nope0")
    assert done.returncode == 2
    assert done.stderr.startswith("xdpstack: there is no interface 'nope0'")


def test_a_program_that_is_not_loaded_has_no_name():
    assert system.program(2**31 - 1) == ""


@needs_root
def test_what_root_alone_may_see_is_unknown_to_others():
    done = command("lo", "--json", user=65534, group=65534, extra_groups=[])
    shown = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert done.stderr == ""
    assert done.returncode == 1
    assert shown["capabilities"]["state"] == "fail"
    assert shown["af-xdp"]["state"] == "unknown"
    assert shown["dma-latency"]["state"] == "unknown"
    assert shown["mode"]["state"] in ("unknown", "fail")
    assert [*shown] == [row.name for row in (*HOST_CHECKS, *INTERFACE_CHECKS)]
