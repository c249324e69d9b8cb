"""What a configuration asks for is made in the order that holds, and put back; on NICs that have all of it,
some of it, or nothing."""

from __future__ import annotations

import errno

import pytest

from xdpstack.errors import ConfigError, SetupError
from xdpstack.nic import Binding, Flow, NicConfig, ethtool
from xdpstack.nic import irq as irqs
from xdpstack.nic.ethtool import FlowRule
from xdpstack.nic.journal import Journal
from xdpstack.tests.nic_fake import COMMANDS, FakeNic

LINES = [
    Flow(dst="233.54.12.111", dport=26477, channel=0),
    Flow(dst="233.54.13.111", dport=26477, channel=0),
    Flow(dst="233.54.12.112", dport=26478, src="198.51.100.9", channel=1),
]


@pytest.fixture
def bind(tmp_path):
    def make(nic, **config):
        journal = Journal(nic.cookie(), tmp_path)
        return Binding("eth0", NicConfig(**config), surface=nic, journal=journal)

    return make


def rules_of(nic):
    return {
        location: spec[:160] + context.to_bytes(4, "little")
        for location, (spec, context) in nic.state.rules.items()
    }


def test_all_of_it_is_made_and_put_back(bind):
    nic = FakeNic()
    before = nic.snapshot()
    binding = bind(
        nic,
        channels=6,
        steer=True,
        isolate=True,
        nic_rx_ring=4096,
        coalesce={"adaptive_rx": 0, "rx_usecs": 0},
        bypass_offloads=True,
        timestamps=True,
        irq_cpus=[2, 3],
        defer_hard_irqs=2,
        gro_flush_timeout=200_000,
        promiscuous=True,
        multicast_macs=["01:00:5e:36:0c:6f"],
    )
    queues = binding.prepare([4, 5], LINES)
    binding.settle(queues)
    state = nic.state
    assert state.channels["combined"] == 6
    assert state.rings["rx"] == 4096
    assert (state.coalesce["adaptive_rx"], state.coalesce["rx_usecs"]) == (0, 0)
    assert [name for name in ("rx-gro", "rx-lro", "rx-vlan-hw-parse") if state.wanted[name]] == []
    assert state.stamping == (0, 0, 1)
    assert set(state.table) == {0, 1, 2, 3}
    assert binding.flow_queues == {0: 4, 1: 5}  # the lines of a channel keep together
    assert sorted(rules_of(nic).values()) == sorted(
        FlowRule(dst=f.dst, dport=f.dport, src=f.src, queue=4 + f.channel).identity for f in LINES
    )
    assert (state.affinity[104], state.affinity[105], state.affinity[103]) == ("2", "3", "0-7")
    assert (state.napis[204], state.napis[205], state.napis[203]) == ([2, 200_000], [2, 200_000], [0, 0])
    assert nic.joined == [("promiscuous", b""), ("multicast", bytes.fromhex("01005e360c6f"))]
    assert binding.notes == []
    assert binding.close() == []
    assert nic.snapshot() == before
    assert nic.joined == []
    assert binding.close() == []


def test_nothing_is_touched_by_a_port_that_asks_for_nothing(bind):
    nic = FakeNic()
    with bind(nic) as binding:
        assert binding.prepare(None, LINES) == [0, 1, 2, 3]
        binding.settle([0, 1, 2, 3])
    assert nic.log == []
    assert NicConfig().changes_nothing


def test_a_context_spreads_a_feed_over_its_queues(bind):
    nic = FakeNic()
    before = nic.snapshot()
    with bind(nic, steer=True, spread=True) as binding:
        binding.prepare([1, 3], LINES)
        assert list(nic.state.contexts.values()) == [[1, 3] * 8]
        assert {context for _, context in nic.state.rules.values()} == set(nic.state.contexts)
    assert nic.snapshot() == before


def test_a_nic_that_knows_link_addresses_alone_steers_groups_by_them(bind):
    nic = FakeNic(driver="igc", by_mac=True)
    before = nic.snapshot()
    with bind(nic, steer=True) as binding:
        binding.prepare([2, 3], LINES)
        wanted = [("01:00:5e:36:0c:6f", 2), ("01:00:5e:36:0d:6f", 2), ("01:00:5e:36:0c:70", 3)]
        assert sorted(rules_of(nic).values()) == sorted(
            FlowRule(protocol="ether", dst=mac, queue=queue).identity for mac, queue in wanted
        )
        assert binding.flow_queues == {0: 2, 1: 3}
        assert binding.notes == ["eth0 tells flows apart by link address only: groups, not ports"]
        binding.add_flow(Flow(dst="198.51.100.1", dport=4000), 3)  # answers come to the NIC's own address
        assert FlowRule(protocol="ether", dst="02:00:00:00:00:01", queue=3).identity in rules_of(nic).values()
    assert nic.snapshot() == before


def test_two_channels_of_one_link_address_cannot_be_parted_there(bind):
    nic = FakeNic(driver="igc", by_mac=True)
    before = nic.snapshot()
    same = [Flow(dst="233.54.12.111", dport=1, channel=0), Flow(dst="233.182.12.111", dport=1, channel=1)]
    with pytest.raises(SetupError, match="by link address only, and 01:00:5e:36:0c:6f goes to queue 2"):
        bind(nic, steer=True).prepare([2, 3], same)
    assert nic.snapshot() == before


def test_a_nic_whose_rules_know_nothing_of_it_takes_the_rss_table(bind, monkeypatch):
    def refuse_rule(nic, raw):
        raise OSError(errno.EOPNOTSUPP, "")

    nic = FakeNic()
    monkeypatch.setitem(COMMANDS, ethtool.SRXCLSRLINS, refuse_rule)
    with bind(nic, steer=True) as binding:
        binding.prepare([2, 3], LINES)
        assert nic.state.table == [2, 3] * 8
        assert binding.flow_queues == {}


def test_without_flow_rules_the_rss_table_sends_everything_to_the_queues(bind):
    nic = FakeNic(ntuple=False)
    before = nic.snapshot()
    with bind(nic, steer=True) as binding:
        binding.prepare([2, 3], LINES)
        assert nic.state.table == [2, 3] * 8
        assert binding.notes == ["eth0 has no flow rules: its RSS table sends everything to queues 2, 3"]
    assert nic.snapshot() == before


def test_with_every_queue_open_a_nic_without_anything_will_do(bind):
    nic = FakeNic(ntuple=False, rss=False)
    with bind(nic, steer=True) as binding:
        binding.prepare(None, LINES)
        assert binding.notes == ["eth0 has no flow rules; every queue is open, so none is needed"]


def test_without_rules_and_table_some_queues_cannot_be_had(bind):
    nic = FakeNic(ntuple=False, rss=False)
    binding = bind(nic, steer=True)
    with pytest.raises(SetupError, match=r"neither flow rules nor an RSS table .*; queues = \"all\""):
        binding.prepare([2], LINES)


def test_a_refusal_in_the_middle_puts_back_what_was_made(bind):
    nic = FakeNic()
    before = nic.snapshot()
    binding = bind(nic, channels=2, steer=True, nic_rx_ring=8192, promiscuous=True)
    with pytest.raises(SetupError, match="it has at most 4096 descriptors"):
        binding.prepare(None, LINES)
    assert nic.snapshot() == before
    assert nic.log[:1] == ["channels 2"]  # it was made


def test_a_refusal_after_the_sockets_puts_everything_back(bind):
    nic = FakeNic()
    nic.managed.add(101)
    before = nic.snapshot()
    binding = bind(nic, steer=True, irq_cpus=[2])
    queues = binding.prepare([0, 1], LINES)
    with pytest.raises(SetupError, match="echo 2 > /proc/irq/101/smp_affinity_list: Input/output error"):
        binding.settle(queues)
    assert nic.snapshot() == before


def test_a_queue_that_is_not_there_names_the_channels(bind):
    with pytest.raises(SetupError, match=r"open queue 6 of eth0: it has 4 receive queues.* channels = 7"):
        bind(FakeNic()).prepare([6])


def test_isolation_needs_a_queue_for_the_others(bind):
    with pytest.raises(SetupError, match="all of them are the port's; channels = 5, or leave isolate out"):
        bind(FakeNic(), isolate=True).prepare(None)


def test_irqbalance_is_named_with_the_mend(bind):
    nic = FakeNic()
    nic.processes[812] = "irqbalance"
    with bind(nic, irq_cpus=[2]) as binding:
        binding.settle([0, 1])
        assert binding.notes == [
            "irqbalance (process 812) moves interrupts back: systemctl stop irqbalance, "
            "or start it with --banirq=100 --banirq=101"
        ]


def test_a_queue_without_a_known_interrupt_is_said(bind):
    nic = FakeNic(napi_set=False)
    nic.irqs = {100: "ice-eth0-TxRx-0", 101: "ice-eth0-oicr"}
    with bind(nic, irq_cpus=[2]) as binding:
        binding.settle([0, 1])
        assert binding.notes == ["eth0: no interrupt is known for queues 1"]
        assert nic.state.affinity[100] == "2"


def test_before_linux_6_13_deferral_is_set_for_the_device(bind):
    nic = FakeNic(napi_set=False)
    with bind(nic, defer_hard_irqs=2, gro_flush_timeout=1000) as binding:
        binding.settle([0])
        assert nic.state.device_napi == [2, 1000]
    assert nic.state.device_napi == [0, 0]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("bond", "a bond has no queues of its own; open its ports"),
        ("vlan", "a VLAN device has no queues of its own; open eth1, and match the tag: `vlan N` in a rule"),
        ("bridge", "a bridge has no queues of its own; open the port of it that the feed comes by"),
        ("loopback", "loopback has no queues; use a veth pair"),
    ],
)
def test_what_has_no_queues_names_what_to_use_instead(bind, kind, sentence):
    nic = FakeNic()
    nic.kind, nic.loopback = kind, kind == "loopback"
    with pytest.raises(SetupError, match=f"bind queues of eth0: {sentence}"):
        bind(nic)


def test_an_interface_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SetupError, match="no interface eth9: not in this network namespace; see `ip link`"):
        Binding("eth9", NicConfig(), surface=FakeNic(), journal=Journal(1, tmp_path))


# ---- interfaces that went away


EVERYTHING = {
    "channels": 6,
    "steer": True,
    "nic_rx_ring": 4096,
    "coalesce": {"adaptive_rx": 0, "rx_usecs": 0},
    "bypass_offloads": True,
    "timestamps": True,
    "irq_cpus": [2, 3],
    "defer_hard_irqs": 2,
    "gro_flush_timeout": 200_000,
    "promiscuous": True,
}


def test_a_device_that_is_made_anew_gets_all_of_it_again_and_is_left_as_it_was_made(bind):
    nic = FakeNic()
    binding = bind(nic, **EVERYTHING)
    queues = binding.prepare([4, 5], LINES)
    binding.settle(queues)
    binding.add_flow(Flow(dst="198.51.100.1", dport=4000), 5)
    held, journal = nic.snapshot(), Journal(nic.cookie(), binding.changes.journal.folder)
    for _ in range(2):
        binding.lost, nic.exists = "deleted", False
        nic.make_anew()
        new = nic.snapshot()
        assert binding.again("eth0") == []
        assert nic.state.affinity[104] == "0-7"  # not before its sockets are there
        assert binding.settle_again() == []
        assert (binding.lost, binding.flow_queues) == ("", {0: 4, 1: 5})
        assert nic.snapshot() == held
        assert nic.joined == [("promiscuous", b"")]
        assert {entry.index for entry in journal.entries()} == {nic.index}
    assert binding.close() == []
    assert nic.snapshot() == new
    assert journal.entries() == []


def test_a_device_that_was_in_another_namespace_is_put_back_to_what_it_was_before_all(bind):
    nic = FakeNic()
    before = nic.snapshot()
    binding = bind(nic, **EVERYTHING)
    binding.settle(binding.prepare([4, 5], LINES))
    held = nic.snapshot()
    binding.lost = "moved"
    nic.index, nic.joined = 9, []  # another number, the same settings
    binding.again("eth0")
    binding.settle_again()
    assert nic.snapshot() == held
    assert binding.close() == []
    assert nic.snapshot() == before


def test_a_new_device_that_cannot_have_it_refuses_and_may_be_asked_again(bind):
    nic = FakeNic()
    binding = bind(nic, channels=6, promiscuous=True)
    binding.settle(binding.prepare([4, 5]))
    binding.lost, nic.exists = "deleted", False
    with pytest.raises(SetupError, match="no interface eth0"):
        binding.again("eth0")
    nic.make_anew()
    nic.most["combined"] = 2
    with pytest.raises(SetupError, match="give eth0 6 queues: it has 1 to 2"):
        binding.again("eth0")
    assert nic.log[-1] == "channels 6"  # of the first time: nothing since
    assert (binding.lost, nic.joined) == ("deleted", [])
    nic.most["combined"] = 8
    assert binding.again("eth0") == []
    assert nic.count == 6
    binding.close()
    assert nic.count == 4


def test_the_queues_of_a_port_keep_the_channels_that_another_one_added(bind):
    nic = FakeNic()
    before = nic.snapshot()
    first, second = bind(nic, channels=6), bind(nic)
    first.prepare([4])
    second.prepare([5])
    first.close()
    assert nic.count == 6
    second.close()
    assert nic.snapshot() == before


# ---- interrupts and memory nodes


@pytest.mark.parametrize(
    ("name", "queue"),
    [
        ("eth0-TxRx-3", 3),
        ("i40e-eth0-TxRx-3", 3),
        ("eth0-rx-3", 3),
        ("ena-Tx-Rx-3", 3),
        ("mlx5_comp3@pci:0000:01:00.0", 3),
        ("virtio2-input.3", 3),
        ("gve-ntfy-blk3@pci:0000:00:04.0", 3),
        ("virtio2-output.3", None),
        ("eth0-tx-3", None),
        ("mlx5_async0@pci:0000:01:00.0", None),
        ("eth0", None),
    ],
)
def test_the_queue_of_an_interrupt_is_told_by_its_name(name, queue):
    nic = FakeNic(napi_set=False)
    nic.irqs = {55: name}
    found = irqs.queue_irqs(nic, nic.link("eth0"))
    assert found == ({} if queue is None else {queue: 55})


def test_the_kernel_s_own_answer_comes_before_names():
    nic = FakeNic()
    nic.irqs = dict.fromkeys(nic.irqs, "eth0-TxRx-0")
    assert irqs.queue_irqs(nic, nic.link("eth0")) == {0: 100, 1: 101, 2: 102, 3: 103}


def test_a_virtio_device_has_the_interrupts_of_its_parent():
    nic = FakeNic(napi_set=False)
    nic.irqs = {38: "virtio2-input.0", 39: "virtio2-output.0"}
    nic.folders["/sys/class/net/eth0/device/msi_irqs"] = []
    nic.folders["/sys/class/net/eth0/device/../msi_irqs"] = ["38", "39"]
    assert irqs.queue_irqs(nic, nic.link("eth0")) == {0: 38}


def two_nodes():
    nic = FakeNic()
    nic.folders["/sys/devices/system/node"] = ["node0", "node1", "possible"]
    nic.files["/sys/class/net/eth0/device/numa_node"] = "1"
    nic.files["/sys/devices/system/node/node1/cpulist"] = "8-11,24"
    return nic


def test_the_memory_node_is_the_nic_s_or_a_number(bind):
    nic = two_nodes()
    assert bind(nic, numa="nic").node() == 1
    assert bind(nic, numa="0").node() == 0
    assert bind(nic).node() is None
    assert irqs.cpus_of_node(nic, 1) == [8, 9, 10, 11, 24]
    with pytest.raises(ConfigError, match="numa: this host has no node 5"):
        bind(nic, numa="5").node()
    assert bind(FakeNic(), numa="nic").node() is None  # one node only


def test_a_core_far_from_the_frames_is_said(bind):
    with bind(two_nodes(), numa="nic") as binding:
        binding.note_far_cores([9, 2])
        assert binding.notes == [
            "eth0: core 2 is not on node 1, where the frames are; it has cores 8, 9, 10, 11, 24"
        ]
    with bind(two_nodes()) as binding:
        binding.note_far_cores([2])
        assert binding.notes == [
            "eth0: core 2 is not on node 1, where the NIC is; it has cores 8, 9, 10, 11, 24"
        ]
    with bind(FakeNic()) as binding:
        binding.note_far_cores([2])
        assert binding.notes == []


def test_over_a_veth_the_other_end_is_named(bind):
    nic = FakeNic(driver="veth")
    nic.kind = "veth"
    with bind(nic, bypass_offloads=True) as binding:
        binding.prepare(None)
        assert not nic.state.wanted["tx-checksum-ip-generic"]
        assert "ethtool -K PEER tx off" in binding.notes[0]


def test_memory_comes_from_the_node_while_the_block_lasts():
    with irqs.memory_on(0):
        assert bytearray(1 << 20)[-1] == 0
    with pytest.raises(OSError, match="prefer memory of NUMA node 63"), irqs.memory_on(63):
        pass
    with irqs.memory_on(None):
        pass
