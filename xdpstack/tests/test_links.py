"""Link messages: our reading of their bytes against pyroute2's writing of them, and what follows."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from xdpstack import links
from xdpstack.links import Link

NEW, DEL = 16, 17


def message(kind: int, index: int = 7, name: str = "eth0", flags: int = 1, **attributes) -> bytes:
    written = ifinfmsg()
    written["header"]["type"] = kind
    written["family"], written["index"], written["flags"] = attributes.pop("family", 0), index, flags
    said = {"IFNAME": name, "MTU": 1500, "CARRIER": 1, **attributes}
    written["attrs"] = [(f"IFLA_{key}", value) for key, value in said.items()]
    written.encode()
    return bytes(written.data)


def test_a_link_message_is_read_as_pyroute2_writes_it():
    data = message(NEW) + message(DEL, 9, "a-name-of-15-ch", 0, MTU=9000, CARRIER=0)
    assert list(links.parse(data)) == [
        (NEW, Link(7, "eth0", True, True, 1500), False),
        (DEL, Link(9, "a-name-of-15-ch", False, False, 9000), False),
    ]


def test_a_bridges_own_message_about_a_port_says_nothing_about_the_link():
    assert list(links.parse(message(DEL, family=7))) == []


def test_an_end_that_names_a_namespace_is_a_move():
    ((kind, _, moved),) = links.parse(message(DEL, NEW_NETNSID=0))
    assert (kind, moved) == (DEL, True)


def test_an_error_message_is_raised():
    with pytest.raises(PermissionError):
        list(links.parse(struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -1)))


@given(st.binary(max_size=200), st.integers(0, 200))
def test_damaged_messages_end_and_do_not_loop(noise, at):
    whole = message(NEW)
    for data in (noise, whole[:at], whole[:at] + noise):
        with contextlib.suppress(OSError):  # an error message by chance
            assert all(0 <= kind < 65536 for kind, _, _ in links.parse(data))


@pytest.mark.parametrize(
    ("messages", "told", "state"),
    [
        ([(NEW, Link(1, "a", True, False, 1500), False)], ["no_carrier"], "no_carrier"),
        ([(NEW, Link(1, "a", False, False, 1500), False)], ["down"], "down"),
        ([(NEW, Link(1, "b", True, True, 1400), False)], ["renamed", "mtu"], "up"),
        ([(NEW, Link(2, "a", True, True, 1500), False)], [], "up"),  # another one: ours is called otherwise
        ([(DEL, Link(2, "a", True, True, 1500), False)], [], "up"),
        ([(DEL, Link(1, "a", True, True, 1500), True)], ["moved"], "moved"),
        (
            [(DEL, Link(1, "a", True, True, 1500), False), (NEW, Link(5, "a", False, True, 1500), False)],
            ["deleted", "created"],
            "down",
        ),
        (  # what it was called last counts as well
            [
                (NEW, Link(1, "b", True, True, 1500), False),
                (DEL, Link(1, "b", True, True, 1500), False),
                (NEW, Link(5, "b", True, True, 1500), False),
            ],
            ["renamed", "deleted", "created"],
            "up",
        ),
        (
            [(NEW, Link(1, "a", False, False, 1500), False), (NEW, Link(1, "a", True, False, 1500), False)],
            ["down", "no_carrier"],
            "no_carrier",
        ),
    ],
)
def test_what_messages_say_about_a_watched_interface(messages, told, state):
    watched = links._Watched("a", Link(1, "a", True, True, 1500), "up")
    kinds = [kind for one in messages for kind, _ in links._changes(watched, *one)]
    assert (kinds, watched.state) == (told, state)
