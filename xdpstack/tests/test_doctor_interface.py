"""Every check of an interface, on interfaces that are not there, in each of its states."""

import errno
import re

import pytest

from xdpstack.doctor import examine
from xdpstack.doctor.table import INTERFACE_CHECKS
from xdpstack.errors import ConfigError
from xdpstack.tests.doctor_hosts import ANSWERS, CPU, FULL, NET, able, build, link

PLAIN = ANSWERS["links"]
NATIVE = able("basic", "redirect", zc_max_segs=0, rx_metadata=[])
NO_XDP = able(zc_max_segs=0)
UNTOLD = {"xdp": None, "rx_metadata": None, "xsk": None, "zc_max_segs": None}
ON, FIXED, OFF = ({"on": a, "changed": b} for a, b in ((True, True), (True, False), (False, True)))
OLD = {"napis": {2: [{"id": 257, "irq": None, "defer": None, "flush": None}]}}  # Linux 6.8
HALF = {"napis": {2: [{"id": 257 + n, "irq": None, "defer": 2 * n, "flush": 9} for n in (0, 1)]}}
NO_IRQS = {f"{NET}/device/msi_irqs/{n}": None for n in (40, 41)}


def with_link(**facts):
    return {"links": {**PLAIN, "eth0": link(**facts)}}


def with_links(**links):
    return {"links": {**PLAIN, **links}}


def refused(number, sentence="open AF_XDP: no"):
    return {"trial": {"eth0": {"granted": "", "error": sentence, "errno": number}}}


def granted(word):
    return {"trial": {"eth0": {"granted": word, "error": "", "errno": 0}}}


def only(key, value):
    """The answer to one question about eth0."""
    return {key: {"eth0": value}}


def found(host, **more):
    return {check.name: check for check in examine("eth0", host=host, **more)}


def test_a_good_interface_has_nothing_to_mend(tmp_path):
    checks = examine("eth0", host=build(tmp_path))
    assert {c.name: c.found for c in checks if c.state != "ok"} == {}
    assert not any(c.remedy or c.changes for c in checks)
    assert [c.name for c in checks][-len(INTERFACE_CHECKS) :] == [row.name for row in INTERFACE_CHECKS]
    assert all(re.fullmatch(r"[^\n]+\.", row.why) for row in INTERFACE_CHECKS)


VETH = link(kind="veth", lower=3)
COUNT = {"id": 5, "name": "count", "priority": 50, "ours": False}
CHAIN = {"id": 6, "name": "xds_rx_chain", "priority": 60, "ours": True}
CASES = [
    ("link", "fail", "down", {}, with_link(up=False)),
    ("link", "fail", "without carrier", {}, with_link(carrier=False)),
    ("kind", "warn", "a bond of p0, p1", {}, with_links(
        eth0=link(kind="bond"), p0=link(index=8, master=2), p1=link(index=9, master=2))),
    ("kind", "warn", "a bond of nothing", {}, with_link(kind="bond")),
    ("kind", "warn", "a VLAN of p0", {}, with_links(eth0=link(kind="vlan", lower=8), p0=link(index=8))),
    ("kind", "warn", "a VLAN of the interface below", {}, with_link(kind="vlan", lower=8, lower_here=False)),
    ("kind", "warn", "a dummy", {}, with_link(kind="dummy")),
    ("kind", "warn", "loopback", {}, with_link(loopback=True)),
    ("kind", "warn", "a member of bond0", {}, with_links(
        eth0=link(master=8), bond0=link(index=8, kind="bond"))),
    ("kind", "ok", "veth", {}, with_link(kind="veth")),
    ("kind", "ok", "a NIC", {}, with_links(eth0=link(master=8), br0=link(index=8, kind="bridge"))),
    ("driver", "unknown", "ice: the kernel does not tell", {}, {"capabilities": {2: UNTOLD}}),
    ("driver", "unknown", "does not tell", {}, {"capabilities": {}}),
    ("driver", "warn", "generic mode only", {}, {"capabilities": {2: NO_XDP}}),
    ("driver", "warn", "stamps at the XDP hook; frames are copied", {}, {"capabilities": {2: NATIVE}}),
    ("driver", "ok", "stamps by the NIC; zero-copy needs one XDP transmit queue a core", {}, {}),
    ("mode", "ok", "native, zero-copy", {}, {}),
    ("mode", "warn", "native, frames are copied", {}, granted("copy")),
    ("mode", "warn", "generic, frames are copied", {}, {**granted("copy"), "capabilities": {2: NO_XDP}}),
    ("mode", "warn", "mode untold", {}, {**granted("copy"), "capabilities": {}}),
    ("mode", "unknown", "down", {}, with_link(up=False)),
    ("mode", "unknown", "program is attached", {}, with_link(xdp={"native": 7})),
    ("mode", "unknown", "way out", {}, with_link(default_route=True)),
    ("mode", "unknown", "not tried", {}, {"trial": None}),
    ("mode", "unknown", "holds a socket", {}, refused(errno.EBUSY)),
    ("mode", "unknown", "not allowed", {}, refused(errno.EPERM)),
    ("mode", "fail", "its MTU of 9000", {}, refused(errno.EMSGSIZE, "open: its MTU of 9000; ip link set")),
    ("queues", "warn", "4 receive, 4 transmit", {}, only("channels", {"rx": 4, "tx": 4, "rx_max": 8})),
    ("queues", "warn", "2 receive", {}, {**with_link(rx=2), "channels": None}),
    ("offloads", "warn", "on: lro, rxvlan", {}, only("features", {"rx-lro": ON, "rx-vlan-hw-parse": ON})),
    ("offloads", "warn", "rx-gro-hw (fixed)", {}, only("features", {"rx-gro-hw": FIXED})),
    ("offloads", "ok", "none that breaks bypass; rx-vlan-filter: a rule", {}, only(
        "features", {"rx-vlan-filter": ON})),
    ("offloads", "warn", "on: lro; rx-vlan-filter: a rule", {}, only(
        "features", {"rx-lro": ON, "rx-vlan-filter": ON})),
    ("offloads", "unknown", "not tell", {}, {"features": None}),
    ("offloads", "unknown", "other end's", {}, with_link(kind="veth", lower=3, lower_here=False)),
    ("offloads", "warn", "v1, leaves", {}, {
        **with_links(eth0=VETH, v1=link(index=3, kind="veth", lower=2)),
        "features": {"eth0": {}, "v1": {"tx-checksum-ip-generic": ON}}}),
    ("offloads", "ok", "v1, finishes", {}, {
        **with_links(eth0=VETH, v1=link(index=3, kind="veth", lower=2)),
        "features": {"eth0": {}, "v1": {"tx-checksum-ip-generic": OFF}}}),
    ("mtu", "ok", "9000, in several buffers", {}, with_link(mtu=9000)),
    ("mtu", "warn", "not zero-copy", {}, {
        **with_link(mtu=9000), "capabilities": {2: {**FULL, "zc_max_segs": 1}}}),
    ("mtu", "fail", "one buffer", {}, {**with_link(mtu=9000), "capabilities": {2: NATIVE}}),
    ("mtu", "fail", "generic", {}, {**with_link(mtu=9000), "capabilities": {2: NO_XDP}}),
    ("mtu", "unknown", "9000", {}, {**with_link(mtu=9000), "capabilities": {2: UNTOLD}}),
    ("napi-deferral", "warn", "gro_flush_timeout 0", {f"{NET}/gro_flush_timeout": "0"}, OLD),
    ("napi-deferral", "warn", "off for 1 of 2 NAPI", {}, HALF),
    ("napi-deferral", "unknown", "while it is down", {}, {**with_link(up=False), "napis": {2: []}}),
    ("napi-deferral", "unknown", "another network namespace", {f"{NET}/ifindex": "5"}, OLD),
    ("napi-deferral", "ok", "no interrupts", {f"{NET}/gro_flush_timeout": "0"},
     {**with_link(kind="veth"), **OLD}),
    ("coalescing", "warn", "50 µs", {}, only("coalescing", {"usecs": 50, "frames": 0, "adaptive": 0})),
    ("coalescing", "warn", "adaptive", {}, only("coalescing", {"usecs": 0, "frames": 0, "adaptive": 1})),
    ("coalescing", "ok", "none", {}, {"coalescing": None}),
    ("xdp-program", "fail", "foreign (id 7, native)", {}, with_link(xdp={"native": 7})),
    ("xdp-program", "fail", "a program (id 9, generic)", {}, with_link(xdp={"generic": 9})),
    ("xdp-program", "fail", "(id 9, hw) are", {}, with_link(xdp={"native": 8, "hw": 9})),
    ("xdp-program", "ok", "ours", {}, with_link(xdp={"native": 8})),
    ("xdp-program", "ok", "in it count (id 5, priority 50), xds_rx_chain (id 6, priority 60)", {},
     with_link(xdp={"native": 11}) | only("chained", [COUNT, CHAIN])),
    ("xdp-program", "warn", "only --dispatcher loads beside it", {},
     with_link(xdp={"native": 11}) | only("chained", [COUNT])),
    ("xdp-program", "warn", "left by dead process 77", {},
     with_link(xdp={"native": 11}) | only("chained", [CHAIN]) | only("left_by", 77)),
    ("xdp-program", "fail", "what cannot be read", {}, with_link(xdp={"native": 11})),
    ("tc-programs", "warn", "shape (id 4, tc egress)", {},
     only("tc_programs", [{"hook": "tc egress", "id": 4, "name": "shape"}])),
    ("tc-programs", "ok", "only what it passes", {},
     only("tc_programs", [{"hook": "tcx ingress", "id": 4, "name": ""}])),
    ("interrupts", "warn", "0,2, of which 2 isolated", {"/proc/irq/41/effective_affinity_list": "2"}, {}),
    ("interrupts", "unknown", "2, and their cores", {
        f"/proc/irq/{n}/effective_affinity_list": None for n in (40, 41)}, {}),
    ("interrupts", "unknown", "2, which get their cores when", {
        f"/proc/irq/{n}/effective_affinity_list": None for n in (40, 41)}, with_link(up=False)),
    ("interrupts", "ok", "none of its own", NO_IRQS, {"napis": None}),
    ("interrupts", "ok", "on cores 0-1", NO_IRQS, {}),
    ("numa", "warn", "none of them is isolated", {f"{NET}/device/numa_node": "0"}, {}),
    ("numa", "ok", "belongs to no node", {f"{NET}/device/numa_node": "-1"}, {}),
    ("numa", "ok", "node 1 of 2: run the engine on cores 2-3", {}, {}),
    ("phc", "ok", "none", {}, only("stamping", {"hardware": False, "phc": -1})),
    ("phc", "warn", "/dev/ptp0, but", {}, only("stamping", {"hardware": False, "phc": 0})),
    ("phc", "unknown", "not tell", {}, {"stamping": None}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "state", "words", "files", "answers"), CASES)
def test_what_is_wrong_is_named_with_what_mends_it(tmp_path, name, state, words, files, answers):
    check = found(build(tmp_path, files, answers))[name]
    assert (check.state, words in check.found) == (state, True), check
    assert check.remedy or state in ("unknown", "ok")
    assert not check.changes or state in ("warn", "fail")


def test_every_check_is_shown_in_a_state_that_is_not_good():
    seen = {name for name, state, *_ in CASES if state != "ok"}
    assert seen == {row.name for row in INTERFACE_CHECKS}


@pytest.mark.parametrize(
    ("name", "files", "answers", "changes"),
    [
        ("link", {}, with_link(up=False), {("link", "eth0", "state", "up")}),
        ("mtu", {}, {**with_link(mtu=9000), "capabilities": {2: NATIVE}}, {("link", "eth0", "mtu", "3498")}),
        ("mtu", {}, {**with_link(mtu=9000), "capabilities": {2: NO_XDP}}, set()),
        ("offloads", {}, only("features", {"rx-lro": ON, "rx-gro-hw": FIXED}),
         {("feature", "eth0", "rx-lro", "off")}),
        ("offloads", {}, {**with_links(eth0=VETH, v1=link(index=3, kind="veth", lower=2)),
                          "features": {"eth0": {}, "v1": {"tx-checksum-ip-generic": ON}}},
         {("feature", "v1", "tx-checksum-ip-generic", "off")}),
        ("napi-deferral", {f"{NET}/gro_flush_timeout": "0"}, OLD, {("napi", "eth0", "", "2 200000")}),
        ("napi-deferral", {}, HALF, {("napi", "eth0", "257", "2 200000")}),
        ("interrupts", {"/proc/irq/41/effective_affinity_list": "2"}, {},
         {("file", "eth0", "/proc/irq/41/smp_affinity_list", "0-1")}),
        ("queues", {}, only("channels", {"rx": 4, "tx": 4, "rx_max": 8}), set()),  # a choice, not a fault
        ("xdp-program", {}, with_link(xdp={"native": 7}), set()),  # somebody else's
    ],
)  # fmt: skip
def test_what_is_reversible_comes_as_changes_and_what_is_not_does_not(
    tmp_path, name, files, answers, changes
):
    check = found(build(tmp_path, files, answers))[name]
    assert {(c.kind, c.subject, c.key, c.value) for c in check.changes} == changes


def test_the_way_out_of_the_host_is_tried_only_when_told_to(tmp_path):
    host = build(tmp_path, {}, with_link(default_route=True))
    assert found(host)["mode"].remedy == "xdpstack doctor eth0 --try"
    assert found(host, insist=True)["mode"].found == "native, zero-copy"


def test_virtio_has_its_interrupts_one_device_further_up(tmp_path):
    files = {**NO_IRQS, f"{NET}/msi_irqs/40": ""}  # device/.. of the tree of files is the interface itself
    answers = {"napis": None, **only("driver", {"driver": "virtio_net", "firmware": "", "bus": ""})}
    assert found(build(tmp_path, files, answers))["interrupts"].found == "on cores 0"


def test_interrupts_on_a_host_that_isolates_no_core_are_nobodys_trouble(tmp_path):
    files = {f"{CPU}/isolated": "", "/proc/irq/41/effective_affinity_list": "2"}
    assert found(build(tmp_path, files))["interrupts"].state == "ok"


def test_an_interface_that_is_not_there_is_a_usage_error_that_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no interface 'nope0'; there are: eth0, lo$"):
        examine("nope0", host=build(tmp_path))
