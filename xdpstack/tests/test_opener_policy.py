"""The opener's policy: what it admits, and every mistake with file, line and key."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from xdpstack.cli import main
from xdpstack.errors import ConfigError, RemoteProtocolError, SetupError
from xdpstack.opener import wire
from xdpstack.opener.leases import Lease, Leases
from xdpstack.opener.policy import Peer, Refused, load
from xdpstack.rules import parse_rule

GOOD = """
socket = "/run/x.sock"
mode = "0660"
[limits]
silence = 2.5
[workers.trader]
users = [1001]
groups = [77]
interface = "eth0"
queues = "0-3"
rules = ["udp dst 233.54.12.0/22", "udp dst 10.1.0.9:26400-26410"]
[workers.probe]
users = [1001, 1002]
interface = "eth1"
queues = 5
rules = []
send = false
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "p.toml"
    path.write_text(text)
    return path


def test_a_policy_says_who_may_have_what(tmp_path):
    policy = load(written(tmp_path, GOOD))
    assert (policy.socket, policy.mode, policy.limits.silence, policy.limits.connections) == (
        "/run/x.sock", 0o660, 2.5, 64,
    )  # fmt: skip
    assert policy.interfaces == ["eth0", "eth1"]
    trader, member, stranger = (
        Peer(1, 1001, frozenset()),
        Peer(1, 5, frozenset({77})),
        Peer(1, 9, frozenset({9})),
    )
    worker, queues = policy.find(trader, "eth0", None)
    assert (worker.name, worker.target, queues) == ("trader", "trader", range(0, 4))
    assert policy.find(member, "eth0", range(2, 4))[1] == range(2, 4)
    assert policy.find(trader, "eth1", range(5, 6))[0].send is False
    for peer, interface, queues, words in (
        (stranger, "eth0", None, "in no table"),
        (member, "eth1", None, "may have eth0, not eth1"),
        (trader, "eth0", range(3, 5), "may have queue 0-3 of eth0, not 3-4"),
        (trader, "eth1", range(0, 1), "may have queue 5 of eth1, not 0"),
    ):
        with pytest.raises(Refused, match=words):
            policy.find(peer, interface, queues)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("udp dst 233.54.12.111:26477", ""),
        ("udp src 10.0.0.1 dst 233.54.15.1", ""),
        ("vlan 7 udp dst 233.54.12.0/24 -> trader", ""),
        ("udp dst 10.1.0.9:26405", ""),
        ("udp dst 10.1.0.9", "wider"),
        ("udp dst 10.1.0.9:26405-26411", "wider"),
        ("udp dst 233.54.16.1", "wider"),
        ("udp dst 233.54.0.0/16", "wider"),
        ("ip dst 233.54.12.1", "wider"),
        ("any", "wider"),
        ("tcp dst 233.54.12.1", "wider"),
        ("udp dst 233.54.12.1 -> stack", "no other"),
        ("udp dst 233.54.12.1 -> drop", "no other"),
        ("nonsense", "nonsense"),
        ("", "kind of frame"),
    ],
)
def test_a_rule_is_granted_only_inside_the_policy(tmp_path, wanted, words):
    worker = load(written(tmp_path, GOOD)).workers[0]
    if not words:
        assert worker.rule(wanted).group == "trader"
        return
    with pytest.raises(Refused, match=words):
        worker.rule(wanted)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("any", "udp dst 1.2.3.4:5", True),
        ("any", "arp", True),
        ("vlan 5 any", "udp", False),
        ("vlan 5 any", "vlan 5.6 udp", True),
        ("vlan none udp", "vlan 5 udp", False),
        ("ip", "ip6 udp", True),
        ("ip4", "icmp6", False),
        ("ip4", "udp dst 1.2.3.4", True),
        ("udp dst 10.0.0.0/8", "udp dst 10.1.0.0/16", True),
        ("udp dst 10.1.0.0/16", "udp dst 10.0.0.0/8", False),
        ("udp dst 10.0.0.0/8", "udp dst 2001:db8::1", False),
        ("udp dst *:5000-5010", "udp dst 1.2.3.4:5005", True),
        ("udp dst *:5000-5010", "udp dst 1.2.3.4", False),
        ("udp src *:1", "udp dst *:1", False),
        ("icmp-error udp", "udp", False),
        ("arp target 10.0.0.0/24", "arp target 10.0.0.7", True),
    ],
)
def test_covers_says_whether_every_frame_of_the_one_is_the_others(wide, narrow, covers):
    a, b = parse_rule(f"{wide} -> x"), parse_rule(f"{narrow} -> y")
    assert a.covers(b) is covers
    assert a.covers(a)
    assert b.covers(b)


@pytest.mark.parametrize(
    ("before", "after", "line", "words"),
    [
        ('socket = "/run/x.sock"', 'socket = "x"', 2, "socket: wanted an absolute path"),
        ('mode = "0660"', "mode = 660", 3, "mode: wanted permissions"),
        ('mode = "0660"', 'mode = "rw"', 3, "mode: wanted permissions"),
        ("silence = 2.5", "silence = -1", 5, "limits.silence: wanted seconds"),
        ("silence = 2.5", "noise = 1", 5, "limits.noise: unknown key"),
        ("users = [1001]", "users = 1001", 7, "workers.trader.users: wanted a list"),
        ("users = [1001]", 'users = ["no-such-user"]', 7, "this host has no user 'no-such-user'"),
        ("groups = [77]", 'groups = ["no-such-group"]', 8, "this host has no group 'no-such-group'"),
        ("groups = [77]", "groups = [-1]", 8, "neither a name nor a number"),
        ('interface = "eth0"', "interface = 0", 9, "workers.trader.interface: wanted the name"),
        ('interface = "eth0"', 'interface = "a/b"', 9, "workers.trader.interface: wanted the name"),
        ('queues = "0-3"', 'queues = "3-0"', 10, "workers.trader.queues: queues 3-0"),
        ('queues = "0-3"', "queues = true", 10, "workers.trader.queues: wanted a number"),
        ('queues = "0-3"', 'queues = "0-200"', 10, "above 127"),
        (
            'rules = ["udp dst 233',
            'rules = ["udp dst 999',
            11,
            "workers.trader.rules: rule: '999.54.12.0/22'",
        ),
        ('rules = ["udp dst', 'rules = ["udp -> drop", "udp dst', 11, "without a target, which is trader"),
        ("rules = []", "rules = [7]", 16, "workers.probe.rules: wanted a list"),
        ("send = false", "send = 1", 17, "workers.probe.send: wanted true or false"),
        ("send = false", "leases = -1", 17, "workers.probe.leases: wanted a whole number"),
        ("send = false", 'target = "drop"', 17, "workers.probe.target: 'drop' is not the name"),
        ("send = false", "queue = 1", 17, "workers.probe.queue: unknown key"),
        ("users = [1001, 1002]", "", 12, "workers.probe: nobody"),
        ("[workers.probe]", "[workers.'a b']", 12, "a worker's name has letters"),
        ("[workers.probe]", "[worker.probe]", 12, "worker: unknown key"),
        ('interface = "eth1"', 'interface = "eth0"\ntarget = "trader"', 15, "the target of trader already"),
        ("[limits]", "[limits", 4, ""),
    ],
)
def test_every_mistake_names_file_line_and_key(tmp_path, before, after, line, words):
    assert before in GOOD
    path = written(tmp_path, GOOD.replace(before, after, 1))
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}:{line}: "), error.value
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_policy_without_workers_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no worker"):
        load(written(tmp_path, ""))
    path = tmp_path / "p.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="no UTF-8"):
        load(path)


def test_the_command_checks_a_file_and_says_what_is_wrong(tmp_path, capsys):
    path = written(tmp_path, GOOD)
    assert main(["opener", str(path), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "workers": ["trader", "probe"]}
    assert main(["opener", str(written(tmp_path, "x = 1")), "--check"]) == 2
    assert "p.toml:1: x: unknown key" in capsys.readouterr().err
    assert main(["opener", str(tmp_path / "nowhere.toml"), "--check"]) == 1
    assert main(["opener", str(written(tmp_path, GOOD.replace("/run/x", "/run/nowhere/x"))), "--status"]) == 1
    assert "ask the opener at /run/nowhere/x.sock" in capsys.readouterr().err


# ---- messages ----


def test_a_message_and_its_descriptors_travel_whole():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right, open("/dev/null") as null:
        wire.send(left, {"a": "é"}, [null.fileno()] * 3)
        message, fds = wire.receive(right)
        assert message == {"a": "é"}
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == ["/dev/null"] * 3
        wire.close_all([*fds, -1])
        with pytest.raises(ValueError, match="129 descriptors"):
            wire.send(left, {}, [0] * 129)
        with pytest.raises(ValueError, match="70009 bytes"):
            wire.send(left, {"a": "x" * 70000})
        left.close()
        assert wire.receive(right) == (None, [])


@pytest.mark.parametrize("data", [b"\xff", b"7", b'"x"', b"[]", b"x" * 70000, b'{"a":' * 20000])
def test_a_message_that_is_none_is_a_protocol_error_and_leaves_no_descriptor(data):
    import array

    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        before = len(os.listdir("/proc/self/fd"))
        rights = array.array("i", [left.fileno()] * 5)
        left.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with pytest.raises(RemoteProtocolError):
            wire.receive(right)
        assert len(os.listdir("/proc/self/fd")) == before


def test_the_peer_is_who_the_kernel_says():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        peer = wire.peer_of(left)
        assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
        assert os.getgid() in peer.gids
        assert wire.socket_cookie(left.fileno()) == wire.socket_cookie(os.dup(left.fileno()))
        assert wire.socket_cookie(left.fileno()) != wire.socket_cookie(right.fileno())


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "is it running"), ("file", "nobody listens"), ("x" * 120, "107 bytes")]
)
def test_a_wrong_socket_path_is_one_sentence(tmp_path, name, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=words):
        wire.connect(str(tmp_path / name), 1.0, "the opener")


# ---- the journal ----


def test_a_journal_is_read_as_it_was_written(tmp_path):
    leases = Leases(tmp_path / "j")
    lease = Lease(
        id=leases.number(), worker="w", uid=5, pid=6, interface="e", queues=(0, 1), target="t",
        cookies=[7, 8, 9], rules=["udp -> t"],
    )  # fmt: skip
    leases.add(lease)
    again = Leases.read(tmp_path / "j")
    assert again.living == {1: lease}
    assert again.targets == {"e": {"t"}}
    assert again.number() == 2
    assert again.holder("e", range(1, 5)) == lease
    assert again.holder("e", range(2, 5)) is None
    assert again.holder("f", range(0, 2)) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"next": 1}', '{"next": 1, "targets": {}, "leases": [{"id": 1}]}']
)
def test_a_torn_journal_is_an_empty_one(tmp_path, text):
    (tmp_path / "j").write_text(text)
    assert Leases.read(tmp_path / "j").living == {}
