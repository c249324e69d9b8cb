"""The journal: on disk before the change, whole at any moment, one writer at a time, of this boot only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from xdpstack.errors import SetupError
from xdpstack.nic import journal as module
from xdpstack.nic.journal import Entry, Journal, is_alive, this_process


def entry(**more):
    owner, started = this_process()
    given = {"id": "a", "owner": owner, "started": started, "operation": "channels", "index": 7}
    given |= {
        "interface": "eth0",
        "driver": "ice",
        "key": [],
        "before": {"combined": 4},
        "wanted": {"combined": 8},
    }
    return Entry(**(given | more))


def test_an_entry_survives_its_writer(tmp_path):
    with Journal(42, tmp_path).held() as held:
        held.add(entry())
    (found,) = Journal(42, tmp_path).entries()
    assert found == entry()
    assert is_alive(found)


def test_no_file_is_left_when_there_is_nothing_to_remember(tmp_path):
    journal = Journal(42, tmp_path)
    with journal.held() as held:
        held.add(entry())
        held.drop(held.entries[0])
    assert list(tmp_path.iterdir()) == []


def test_every_step_is_synced_before_it_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    with Journal(42, tmp_path).held() as held:
        held.add(entry())
    assert synced[0].endswith(".json.new")  # the file, before it takes its name
    assert synced[1] == str(tmp_path)  # the name


def test_a_namespace_has_a_journal_of_its_own(tmp_path):
    with Journal(42, tmp_path).held() as held:
        held.add(entry())
    assert Journal(43, tmp_path).entries() == []


def test_what_another_boot_noted_is_forgotten(tmp_path):
    old = tmp_path / "01234567-89ab-cdef-0123-456789abcdef-42.json"
    old.write_text(json.dumps([]))
    (tmp_path / "notes.txt").write_text("not ours")
    with Journal(42, tmp_path).held():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def ended_and_others(folder):
    """Journals of: a namespace that ended; one that ended, with an owner who lives; the host; this one."""
    gone = 1  # no inode of nsfs
    dead = {"owner": 0, "started": 7}
    for cookie, one in (
        (43, entry(netns=gone, **dead)),
        (44, entry(netns=gone)),
        (0, entry(netns=gone, index=0, **dead)),
        (45, entry(netns=module.this_netns(), **dead)),
        (46, entry(**dead)),  # of an inode that nobody noted
    ):
        with Journal(cookie, folder).held() as held:
            held.add(one)


def cookies(folder):
    return sorted(int(path.stem.rpartition("-")[2]) for path in folder.iterdir())


def test_the_journal_of_a_namespace_that_ended_is_forgotten_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_sees_every_process", lambda: True)
    ended_and_others(tmp_path)
    forgotten = Journal(42, tmp_path).forget_ended()
    assert [one.netns for one in forgotten] == [1]
    assert cookies(tmp_path) == [0, 44, 45, 46]
    assert Journal(42, tmp_path).forget_ended() == []


def test_who_does_not_see_every_process_forgets_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_sees_every_process", lambda: False)
    ended_and_others(tmp_path)
    assert Journal(42, tmp_path).forget_ended() == []
    assert len(cookies(tmp_path)) == 5


def test_the_namespace_of_this_process_is_among_those_that_live():
    assert module.this_netns() in module.namespaces()


def test_a_process_id_that_is_used_again_is_nobody():
    _owner, started = this_process()
    assert is_alive(entry())
    assert not is_alive(entry(started=started + 1))
    assert not is_alive(entry(owner=0))


def test_a_process_that_ended_is_dead_before_it_is_reaped():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    of_child = entry(owner=child.pid, started=module._start_time(child.pid))
    assert is_alive(of_child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert not is_alive(of_child)
    child.communicate()


def test_writers_wait_for_each_other(tmp_path):
    def add(name):
        for _ in range(20):
            with Journal(42, tmp_path).held() as held:
                held.add(entry(id=name))

    threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.id for one in Journal(42, tmp_path).entries()) == sorted("abcd" * 20)


def test_a_killed_writer_leaves_the_file_whole(tmp_path):
    code = (
        "import sys\n"
        "from xdpstack.tests.test_nic_journal import entry\n"
        "from xdpstack.nic.journal import Journal\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    with Journal(42, sys.argv[1]).held() as held:\n"
        "        held.add(entry()) if len(held.entries) < 50 else held.drop(held.entries[0])\n"
    )
    for pause in (0.002, 0.005, 0.011, 0.02, 0.03):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        threading.Event().wait(pause)
        child.kill()
        child.communicate()
        with Journal(42, tmp_path).held() as held:  # readable, and the lock went with the process
            assert all(one.operation == "channels" for one in held.entries)


def test_a_damaged_journal_is_said_and_not_thrown_away(tmp_path):
    journal = Journal(42, tmp_path)
    journal.path.write_text("[{]")
    with pytest.raises(SetupError, match="it is damaged; look at it"):
        journal.entries()
    assert journal.path.read_text() == "[{]"


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SetupError, match=r"keep a journal in .*: Not a directory; run it by sudo"),
        Journal(42, tmp_path / "file" / "nic").held(),
    ):
        pass


def test_only_the_next_change_of_the_same_setting_is_later(tmp_path):
    with Journal(42, tmp_path).held() as held:
        first, other, second = entry(id="1"), entry(id="2", key=["x"]), entry(id="3")
        for one in (first, other, second):
            held.add(one)
        assert held.later(first) is second
        assert held.later(second) is None
        assert held.later(other) is None
