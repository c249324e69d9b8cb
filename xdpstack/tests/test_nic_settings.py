"""Keys of a port that are about its NIC: right ones are taken, wrong ones named."""

from __future__ import annotations

import pytest

from xdpstack.errors import ConfigError
from xdpstack.nic.drivers import DRIVERS, quirks_of, table
from xdpstack.nic.settings import KEYS, nic_config, parse_queues


def test_right_values_are_taken():
    config = nic_config(
        {
            "channels": 4,
            "steer": True,
            "coalesce": {"rx_usecs": 0, "adaptive_rx": False},
            "irq_cpus": "2-3,5",
            "multicast_macs": ["01:00:5e:36:0c:6f"],
            "numa": 1,
            "defer_hard_irqs": 2,
            "gro_flush_timeout": 200_000,
        }
    )
    assert (config.channels, config.steer, config.numa) == (4, True, "1")
    assert config.coalesce == {"rx_usecs": 0, "adaptive_rx": 0}
    assert config.irq_cpus == (2, 3, 5)
    assert nic_config({}).changes_nothing
    assert nic_config({"numa": "nic"}).numa == "nic"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"channels": -1}, "channels: wanted a whole number from 0 to 4096, not -1"),
        ({"channels": True}, "channels: wanted a whole number"),
        ({"steer": 1}, "steer: wanted true or false, not 1"),
        ({"coalesce": 5}, "coalesce: wanted a table like"),
        ({"coalesce": {"rx-usecs": 5}}, "coalesce: rx-usecs is none of rx_usecs, "),
        ({"coalesce": {"rx_usecs": "5"}}, "coalesce: rx_usecs: wanted a whole number, not '5'"),
        ({"irq_cpus": "2-x"}, r'irq_cpus: wanted cores like \[2, 3\] or "2-3"'),
        ({"irq_cpus": [True]}, "irq_cpus: wanted cores"),
        ({"multicast_macs": ["01:00"]}, "multicast_macs: wanted a list like"),
        ({"numa": "near"}, 'numa: wanted the number of a node or "nic"'),
        ({"numa": 64}, "numa: wanted"),
        ({"spread": True}, "spread: it says how to steer; add steer = true"),
        ({"defer_hard_irqs": 2}, "defer_hard_irqs: it takes both"),
        ({"gro_flush_timeout": 2}, "defer_hard_irqs: it takes both"),
    ],
)
def test_a_wrong_value_is_named(values, words):
    with pytest.raises(ConfigError, match=words):
        nic_config(values)


@pytest.mark.parametrize(
    ("value", "queues"),
    [("all", None), ("0-3", [0, 1, 2, 3]), ("3,1", [1, 3]), (2, [2]), ([5, 4], [4, 5])],
)
def test_queues_are_all_a_range_or_a_list(value, queues):
    assert parse_queues(value) == queues


@pytest.mark.parametrize("value", ["", "x", "3-1", [], [-1], [1.0], [True], None, {"a": 1}])
def test_what_is_no_queues_is_said(value):
    with pytest.raises(ConfigError, match='queues: wanted "all", a range like "0-3", or a list'):
        parse_queues(value)


def test_a_queue_named_twice_is_a_mistake():
    with pytest.raises(ConfigError, match="a queue is named twice"):
        parse_queues([1, 1])


def test_the_readme_has_the_drivers_as_they_are_and_every_key():
    from xdpstack.nic.__main__ import README, with_table

    text = README.read_text()
    assert with_table(text) == text, "stale: run `python -m xdpstack.nic`"
    assert [key for key in KEYS if f"`{key}`" not in text] == []


def test_the_drivers_that_matter_are_in_the_table():
    wanted = [
        "mlx5_core",
        "ice",
        "i40e",
        "ixgbe",
        "igb",
        "igc",
        "ena",
        "gve",
        "virtio_net",
        "bnxt_en",
        "stmmac",
        "veth",
    ]
    assert [name for name in wanted if quirks_of(name) is None] == []
    assert DRIVERS["ena"].whole_pages
    assert quirks_of("no such driver") is None
    assert table().count("\n") == len(DRIVERS) + 2
