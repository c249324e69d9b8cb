"""What belongs to an address of a port's own: the link-local one beside it, rules, and bad options."""

from __future__ import annotations

import pytest

from xdpstack import config
from xdpstack.errors import ConfigError
from xdpstack.own import own_addresses, own_rules, said_of_groups
from xdpstack.port import Subscription
from xdpstack.rules import parse_rule


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, []),
        ({"address": "192.0.2.9/24"}, ["192.0.2.9/24"]),
        ({"address": "2001:db8::9/64"}, ["2001:db8::9/64", "fe80::9/64"]),
        ({"address": "2001:db8::1:2:3:4/48"}, ["2001:db8::1:2:3:4/48", "fe80::1:2:3:4/64"]),
        ({"address": "2001:db8::9/64", "link_local": False}, ["2001:db8::9/64"]),
        ({"address": "2001:db8::9/64", "opener": "/run/x"}, ["2001:db8::9/64"]),
        (
            {"address": "2001:db8::9/64", "opener": "/run/x", "link_local": True},
            ["2001:db8::9/64", "fe80::9/64"],
        ),
        ({"address": "fe80::77/64"}, ["fe80::77/64"]),
        ({"address": "2001:db8:1::/64"}, ["2001:db8:1::/64"]),
    ],
)
def test_a_link_local_address_is_made_of_the_configured_ones_last_64_bits(options, own):
    assert own_addresses(options) == own


@pytest.mark.parametrize("key", ["link_local", "routers", "reports"])
def test_where_the_kernels_address_is_shared_these_are_the_kernels_business(key):
    assert own_addresses({key: False}) == []
    with pytest.raises(ConfigError, match=f"{key}: of a port with an address of its own"):
        own_addresses({key: True})


def test_routers_are_those_of_ipv6():
    with pytest.raises(ConfigError, match="routers: they are those of IPv6"):
        own_addresses({"address": "192.0.2.9/24", "routers": True})


FEEDS = [
    Subscription(address="239.1.1.1", port=5000),
    Subscription(address="ff15::1", port=5000),
    Subscription(address="10.0.0.7", port=5000),
]


@pytest.mark.parametrize(
    ("own", "options", "more"),
    [
        (["10.0.0.9/24"], {}, []),
        (["2001:db8::9/64"], {"routers": True}, ["icmp6 dst ff02::1"]),
        (
            ["10.0.0.9/24"],
            {"reports": True},
            ["icmp6 dst ff02::1", "igmp dst 224.0.0.1", "igmp dst 239.1.1.1", "icmp6 dst ff15::1"],
        ),
    ],
)
def test_what_is_steered(own, options, more):
    six = ":" in own[0]
    alone = ["ndp target 2001:db8::9", "ip dst 2001:db8::9"]
    alone4 = ["arp target 10.0.0.9", "arp sender 10.0.0.9", "ip dst 10.0.0.9"]
    found = own_rules(own, options, FEEDS)
    assert found == (alone if six else alone4) + more
    assert [parse_rule(f"{one} -> main").group for one in found] == ["main"] * len(found)


def test_groups_without_feeds_of_the_other_family_ask_nothing_of_it():
    assert own_rules(["10.0.0.9/24"], {"reports": True}, [])[3:] == ["igmp dst 224.0.0.1"]
    assert own_rules(["2001:db8::9/64"], {"reports": True}, [])[2:] == ["icmp6 dst ff02::1"]
    assert own_rules([], {}, FEEDS) == []


def test_sources_are_listed_where_there_are_few_and_nobody_wants_everything():
    def of(group, *sources):
        return [Subscription(address=group, port=1, source=source) for source in sources]

    groups = [
        *of("239.1.1.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"),
        *of("239.1.1.2", "10.0.0.1", ""),
        *of("ff35::1", *(f"fd00::{n}" for n in range(1, 9))),
        *of("ff35::2", *(f"fd00::{n}" for n in range(1, 10))),
        *of("10.0.0.9", ""),
    ]
    anybody, listed = said_of_groups(groups)
    assert anybody == ["239.1.1.2", "ff35::2"]
    assert listed == [
        ("239.1.1.1", "10.0.0.1"),
        ("239.1.1.1", "10.0.0.2"),
        *(("ff35::1", f"fd00::{n}") for n in range(1, 9)),
    ]


def test_a_program_says_so_in_toml(tmp_path):
    file = tmp_path / "p.toml"
    own = '[ports.main]\nport = "xsk:eth0"\naddress = "2001:db8::9/64"\n'
    file.write_text(own + "link_local = false\nrouters = true\nreports = true\n")
    options = config.load(file).ports[0].options
    assert own_addresses(options) == ["2001:db8::9/64"]
    assert options["routers"] is options["reports"] is True
    file.write_text(own + 'routers = "yes"\n')
    with pytest.raises(ConfigError, match=r":4: ports.main.routers: "):
        config.load(file)
