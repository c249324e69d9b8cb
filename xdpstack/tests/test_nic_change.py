"""Any sequence of changes by two owners, failing or killed at any point, ends as it began."""

from __future__ import annotations

import contextlib
import errno
import itertools
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack.nic import change, ethtool, journal, operations
from xdpstack.nic.change import Changes, pending, restore
from xdpstack.nic.journal import Journal
from xdpstack.tests.nic_fake import FakeNic


class Killed(BaseException):
    """SIGKILL: nothing of the process runs after it."""


class World:
    """One NIC, one journal, processes by number; ``fail`` says what happens at each call to the host."""

    def __init__(self, folder, monkeypatch, **nic):
        self.nic = FakeNic(**nic)
        self.journal = Journal(self.nic.cookie(), folder)
        self.now, self.dead = 1, set()
        monkeypatch.setattr(change, "this_process", lambda: (self.now, 1000 + self.now))
        monkeypatch.setattr(change, "is_alive", lambda entry: entry.owner not in self.dead)

    def changes(self, owner=1):
        self.now = owner
        return Changes(self.nic.link("eth0"), self.nic, self.journal)

    def journal_is_empty(self):
        return not self.journal.path.exists() and not self.journal.entries()


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


SOME = [
    operations.Channels(8),
    operations.Rings(1024, 100),
    operations.Coalesce({"adaptive_rx": 0, "rx_usecs": 0}),
    operations.Feature("rx-lro", False),
    operations.Feature("rx-ntuple-filter", True),
    operations.Indirection([1, 2]),
    operations.Context([1, 2] * 8),
    operations.Rule(dst="233.54.12.111", dport=26477, queue=3),
    operations.Timestamps(),
    operations.Affinity(101, "2"),
    operations.Napi(201, 2, 200_000),
]


def test_each_change_is_made_and_undone_in_reverse(world):
    before = world.nic.snapshot()
    changes = world.changes()
    for operation in SOME:
        changes.make(operation)
    made = world.nic.snapshot()
    assert made.channels["combined"] == 8
    assert made.rings["rx"] == 1024
    assert made.rings["tx"] == 128  # the driver rounds 100
    assert (made.coalesce["adaptive_rx"], made.coalesce["rx_usecs"]) == (0, 0)
    assert made.table == [1, 2] * 8
    assert list(made.contexts.values()) == [[1, 2] * 8]
    assert len(made.rules) == 1
    assert made.stamping == (0, 0, 1)
    assert made.affinity[101] == "2"
    assert world.journal.path.exists()
    log = len(world.nic.log)
    assert changes.undo() == []
    assert world.nic.snapshot() == before
    undone = [line.split()[0] for line in world.nic.log[log:]]
    assert (
        undone.index("affinity")
        < undone.index("stamping")
        < undone.index("delete")
        < undone.index("channels")
    )
    assert world.journal_is_empty()
    assert changes.undo() == []


def test_a_change_is_on_disk_before_it_is_made(world):
    seen = []
    world.nic.change = lambda *what: seen.append([entry.operation for entry in world.journal.entries()])
    world.changes().make(operations.Channels(8))
    assert seen == [["channels"]]


@pytest.mark.parametrize("operation", SOME, ids=lambda one: one.name)
def test_a_killed_owner_leaves_what_restore_undoes(world, operation):
    world.changes().make(operations.Feature("rx-ntuple-filter", True))
    before = world.nic.snapshot()
    changes = world.changes(2)
    changes.make(operation)
    assert pending(world.nic, world.journal) == []
    world.dead.add(2)
    assert [entry.operation for entry in pending(world.nic, world.journal)] == [operation.name]
    undone, said = restore(world.nic, world.journal)
    assert ([entry.operation for entry in undone], said) == ([operation.name], [])
    assert world.nic.snapshot() == before
    assert restore(world.nic, world.journal) == ([], [])


@pytest.mark.parametrize("first_leaves", [True, False])
def test_two_owners_of_one_setting_leave_in_either_order(world, first_leaves):
    before = world.nic.snapshot()
    first, second = world.changes(1), world.changes(2)
    world.now = 1
    first.make(operations.Channels(6))
    world.now = 2
    second.make(operations.Channels(8))
    for owner, changes in ((1, first), (2, second)) if first_leaves else ((2, second), (1, first)):
        world.now = owner
        assert changes.undo() == []
        if not world.journal_is_empty():  # the one who stays keeps what he needs
            assert world.nic.count == (8 if first_leaves else 6)
    assert world.nic.snapshot() == before


def test_what_is_there_already_stays_while_the_second_owner_needs_it(world):
    first, second = world.changes(1), world.changes(2)
    for owner, changes in ((1, first), (2, second)):
        world.now = owner
        changes.make(operations.Feature("rx-lro", False))
    world.now = 1
    first.undo()
    assert not world.nic.state.wanted["rx-lro"]
    world.now = 2
    second.undo()
    assert world.nic.state.wanted["rx-lro"]


RULE = operations.Rule(dst="233.54.12.111", dport=26477, queue=3)
FAR = operations.Rule(dst="233.54.13.111", dport=26477, queue=5)
NTUPLE = operations.Feature("rx-ntuple-filter", True)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))), ids=str)
@pytest.mark.parametrize("dies", [0, 1, 2, 3])
def test_what_others_rest_on_stays_until_the_last_of_them_leaves(world, order, dies):
    """Owner 1 turns the table of rules on and adds channels, 2 and 3 add rules, one on a channel of 1's;
    they leave in any order, and one of them is killed."""
    before = world.nic.snapshot()
    changes = {owner: world.changes(owner) for owner in (1, 2, 3)}
    for owner, operation in ((1, NTUPLE), (1, operations.Channels(6)), (2, RULE), (3, FAR)):
        world.now = owner
        changes[owner].make(operation)
    living = {1, 2, 3}
    for owner in order:
        world.now = owner
        living.remove(owner)
        if owner == dies:
            world.dead.add(owner)
            assert restore(world.nic, world.journal)[1] == []
        else:
            assert changes[owner].undo() == []
        assert len(world.nic.state.rules) == len(living & {2, 3})
        assert world.nic.state.wanted["rx-ntuple-filter"] == bool(living)
        assert world.nic.count == (6 if living & {1, 3} else 4)
        assert pending(world.nic, world.journal) == []  # nothing that could be undone now
    assert world.nic.snapshot() == before
    assert world.journal_is_empty()


def test_a_queue_that_is_used_keeps_the_channels_of_somebody_else(world):
    first, second = world.changes(1), world.changes(2)
    world.now = 1
    first.make(operations.Channels(6))
    assert second.rests_on("channels")
    assert not first.rests_on("channels")
    world.now = 2
    second.make(operations.Queues([5]))
    world.now = 1
    assert first.undo() == []
    assert world.nic.count == 6
    world.now = 2
    assert second.undo() == []
    assert world.nic.count == 4
    assert world.journal_is_empty()


def test_nobody_takes_away_what_others_rest_on(world):
    first, second = world.changes(1), world.changes(2)
    world.now = 2
    for operation in (NTUPLE, operations.Channels(6), FAR):
        second.make(operation)
    held = world.nic.snapshot()
    world.now = 1
    for operation, words in (
        (operations.Feature("rx-ntuple-filter", False), "ethtool -K eth0 rx-ntuple-filter off"),
        (operations.Channels(5), "ethtool -L eth0 combined 5"),
    ):
        with pytest.raises(OSError, match=rf"{words}: what process 2 has made there would be lost \(rule\)"):
            first.make(operation)
    assert world.nic.snapshot() == held


def test_rules_that_went_with_their_table_are_not_kept_in_the_journal(world):
    changes = world.changes()
    changes.make(NTUPLE)
    changes.make(RULE)
    world.nic.state.wanted["rx-ntuple-filter"] = False  # by hand; drivers forget their rules
    world.nic.state.rules.clear()
    assert changes.undo() == []
    assert world.journal_is_empty()


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.deferred(lambda: ANY)), max_size=12),
    order=st.permutations([1, 2, 3]),
    killed=st.sets(st.sampled_from([1, 2, 3])),
)
def test_whatever_three_owners_made_the_last_who_leaves_leaves_it_as_it_was(steps, order, killed):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        world = World(folder, monkeypatch)
        before = world.nic.snapshot()
        changes = {owner: world.changes(owner) for owner in (1, 2, 3)}
        for owner, step in steps:
            world.now = owner
            with contextlib.suppress(OSError):
                changes[owner].make(step)
        for owner in order:
            world.now = owner
            if owner in killed:
                world.dead.add(owner)
                assert restore(world.nic, world.journal)[1] == []
            else:
                assert changes[owner].undo() == []
        assert world.nic.snapshot() == before
        assert world.journal_is_empty()


def test_a_setting_made_twice_that_another_change_resets_is_nobody_elses(world):
    before = world.nic.snapshot()
    changes = world.changes()
    for operation in (operations.Napi(201, 0, 1000), operations.Napi(201, 0, 1000), operations.Channels(1)):
        changes.make(operation)
    assert changes.undo() == []
    assert world.nic.snapshot() == before
    assert world.journal_is_empty()


def test_what_somebody_else_changed_since_is_left_to_him_and_said(world):
    changes = world.changes()
    changes.make(operations.Channels(6))
    world.nic.state.channels["combined"] = 2
    (sentence,) = changes.undo()
    assert sentence == (
        "eth0: channels was changed by somebody else since; it was: ethtool -L eth0 combined 4"
    )
    assert world.nic.count == 2
    assert world.journal_is_empty()


def test_hardware_of_a_namespace_that_ended_is_named_with_what_was_changed(world, monkeypatch):
    monkeypatch.setattr(journal, "namespaces", set)
    other = World(world.journal.folder, monkeypatch, cookie=43)
    other.dead.add(1)
    other.changes().make(operations.Channels(6))
    monkeypatch.setattr(journal, "_start_time", lambda pid: None)
    assert restore(world.nic, world.journal) == (
        [],
        [
            "eth0: its network namespace ended with channels changed; hardware is back in the host's "
            "namespace, as it was then; by hand: ethtool -L eth0 combined 4"
        ],
    )
    assert other.journal_is_empty()
    assert restore(world.nic, world.journal) == ([], [])


def test_a_device_that_went_needs_nothing(world):
    changes = world.changes()
    changes.make(operations.Channels(6))
    world.nic.exists = False
    assert changes.undo() == []
    assert world.journal_is_empty()


def test_another_driver_under_the_same_index_is_not_touched(world):
    changes = world.changes()
    changes.make(operations.Channels(6))
    world.nic.driver = "veth"
    assert changes.undo() == []
    assert world.nic.count == 6


def test_what_cannot_be_put_back_stays_noted_and_names_the_command(world):
    changes = world.changes()
    changes.make(operations.Channels(6))
    world.nic.state.table = [5] * 16  # somebody's table keeps the channels
    (sentence,) = changes.undo()
    assert sentence.endswith("by hand: ethtool -L eth0 combined 4")
    assert not world.journal_is_empty()
    world.nic.state.table = None
    assert changes.undo() == []
    assert world.nic.count == 4


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (operations.Channels(9), "give eth0 9 queues: it has 1 to 8; channels = 8"),
        (
            operations.Rings(8192),
            "give eth0 rx rings of 8192: it has at most 4096 descriptors; nic_rx_ring = 4096",
        ),
        (operations.Rings(32), r"ethtool -G eth0 rx 32 tx 512: Invalid argument \(driver ice\)"),
        (operations.Coalesce({"tx_frames": 8}), "ethtool -C eth0 tx-frames 8: Operation not supported"),
        (
            operations.Coalesce({"rx_usecs": 8}),
            "adaptive_rx is on, and moves it by itself; coalesce = { adaptive_rx = 0, rx_usecs = 8 }",
        ),
        (
            operations.Feature("rx-gro-hw", True),
            "ethtool -K eth0 rx-gro-hw on: Operation not supported: the driver",
        ),
        (operations.Feature("rx-nonsense", True), "Operation not supported: the kernel has no rx-nonsense"),
        (operations.Indirection([7]), "ethtool -X eth0 weight 0 0 0 0 0 0 0 16: Invalid argument"),
        (operations.Affinity(103, "64"), "echo 64 > /proc/irq/103/smp_affinity_list: Invalid argument"),
        (operations.Affinity(104, "1"), "echo 1 > /proc/irq/104/smp_affinity_list: Input/output error"),
        (operations.Affinity(999, "1"), "change affinity of eth0: it is gone"),
        (operations.Rule(dst="233.54.12.111", dport=26477), "read rule of eth0: Operation not supported"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_refusal_is_a_sentence_and_changes_nothing(world, operation, words):
    world.nic.managed.add(104)
    before = world.nic.snapshot()
    changes = world.changes()
    with pytest.raises(OSError, match=words):
        changes.make(operation)
    assert world.nic.snapshot() == before
    assert world.journal_is_empty()


def test_a_full_table_of_rules_is_said(world):
    changes = world.changes()
    changes.make(operations.Feature("rx-ntuple-filter", True))
    for number in range(8):
        changes.make(operations.Rule(dst="233.54.12.111", dport=1 + number))
    with pytest.raises(OSError, match="No space left on device: all 8 places are taken"):
        changes.make(operations.Rule(dst="233.54.12.111", dport=100))
    changes.undo()
    assert world.nic.state.rules == {}


def test_before_linux_6_13_deferral_is_the_device_s(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, napi_set=False)
    changes = world.changes()
    with pytest.raises(OSError, match=r"before 6\.13"):
        changes.make(operations.Napi(201, 2, 200_000))
    changes.make(operations.DeviceNapi(2, 200_000))
    assert world.nic.state.device_napi == [2, 200_000]
    changes.undo()
    assert world.nic.state.device_napi == [0, 0]


def test_after_it_deferral_is_never_set_for_every_queue(world):
    with pytest.raises(OSError, match="this kernel defers by queue"):
        world.changes().make(operations.DeviceNapi(2, 200_000))


def test_a_driver_s_own_table_in_blocks_is_given_back_to_it(world):
    world.nic.blocks = True
    changes = world.changes()
    changes.make(operations.Indirection([1]))
    assert world.nic.state.table == [1] * 16
    changes.undo()
    assert world.nic.state.table is None


def test_steering_stays_on_while_the_administrator_has_a_rule(world):
    first, second = world.changes(1), world.changes(2)
    world.now = 1
    first.make(NTUPLE)
    ethtool.insert_rule(world.nic, "eth0", ethtool.FlowRule(dst="233.54.12.111", dport=26477))
    world.now = 2
    second.make(operations.Channels(6))
    rules = dict(world.nic.state.rules)
    world.now = 1
    (said,) = first.undo()
    assert "flow rules are there that would go with it" in said
    assert world.nic.state.rules == rules != {}
    ethtool.delete_rule(world.nic, "eth0", *rules)
    world.now = 2
    assert second.undo() == []  # whoever leaves next tries again
    assert not world.nic.state.wanted["rx-ntuple-filter"]
    assert world.journal_is_empty()


def test_a_rule_of_the_administrator_stays(world):
    world.changes().make(operations.Feature("rx-ntuple-filter", True))
    by_hand = world.changes(9)
    by_hand.make(operations.Rule(dst="233.54.12.111", dport=26477, queue=3))
    rules = dict(world.nic.state.rules)
    world.dead.add(9)
    world.journal.path.unlink()  # nobody of ours made it
    changes = world.changes()
    changes.make(operations.Rule(dst="233.54.12.111", dport=26477, queue=3))
    changes.make(operations.Rule(dst="233.54.12.112", dport=26477, queue=3))
    assert len(world.nic.state.rules) == 2
    changes.undo()
    assert world.nic.state.rules == rules


def queues():
    return st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)


ANY = st.one_of(
    st.integers(1, 9).map(operations.Channels),
    st.tuples(st.sampled_from([0, 64, 100, 4096, 5000]), st.sampled_from([0, 512, 2048])).map(
        lambda sizes: operations.Rings(*sizes)
    ),
    st.dictionaries(
        st.sampled_from(["rx_usecs", "tx_usecs", "adaptive_rx", "rx_frames"]), st.integers(0, 1), min_size=1
    ).map(operations.Coalesce),
    st.builds(
        operations.Feature,
        st.sampled_from(["rx-gro", "rx-lro", "rx-ntuple-filter", "highdma"]),
        st.booleans(),
    ),
    queues().map(operations.Indirection),
    queues().map(lambda some: operations.Context([some[n % len(some)] for n in range(16)])),
    st.builds(
        operations.Rule,
        dst=st.sampled_from(["233.54.12.111", "233.54.13.111"]),
        dport=st.just(26477),
        queue=st.integers(0, 5),
        context=st.sampled_from([0, 0, 1]),
    ),
    st.just(operations.Timestamps()),
    st.builds(operations.Affinity, st.integers(100, 103), st.sampled_from(["0", "1-2", "64"])),
    st.builds(operations.Napi, st.integers(200, 204), st.integers(0, 3), st.sampled_from([0, 1000])),
    st.builds(operations.DeviceNapi, st.integers(0, 3), st.sampled_from([0, 1000])),
)


@settings(max_examples=400, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from([1, 2]), st.one_of(ANY, st.just("leave"))), max_size=14),
    trouble=st.one_of(st.none(), st.tuples(st.integers(0, 200), st.sampled_from(["fails", "killed"]))),
    again=st.one_of(st.none(), st.integers(0, 30)),
    by_queue=st.booleans(),
)
def test_any_sequence_failing_at_any_point_ends_as_it_began(steps, trouble, again, by_queue):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        world = World(folder, monkeypatch, napi_set=by_queue)
        before = world.nic.snapshot()
        changes = {owner: world.changes(owner) for owner in (1, 2)}
        arm(world, trouble)
        for owner, step in steps:
            if owner in world.dead:
                continue
            world.now = owner
            try:
                if step == "leave":
                    changes[owner].undo()
                else:
                    changes[owner].make(step)
            except Killed:
                world.dead.add(owner)
            except OSError:
                pass
        world.dead |= {1, 2}
        arm(world, None if again is None else (again, "killed"))
        try:
            restore(world.nic, world.journal)
        except Killed:  # while it restores: the next one goes on
            arm(world, None)
        assert restore(world.nic, world.journal)[1] == []
        assert world.nic.snapshot() == before
        assert world.journal_is_empty()


def arm(world, trouble):
    """Have the call of that number fail, or kill the process."""
    if trouble is None:
        world.nic.before_call = lambda: None
        return
    at, what = trouble
    calls = itertools.count()

    def before_call():
        if next(calls) == at:
            raise Killed if what == "killed" else OSError(errno.EIO, "")

    world.nic.before_call = before_call
