"""``--set KEY=VALUE``: values are TOML, bare words are strings."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdpstack import config
from xdpstack.cli._settings import settings
from xdpstack.errors import ConfigError

FILE = '[ports.a]\nport = "xsk:eth0"\nchannels = 2\n[ports.b]\nport = "xsk:eth1"\n'


def test_values_are_toml_and_bare_words_are_strings():
    given = [
        "channels=4",
        "steer=true",
        "irq_cpus=2-3",
        "coalesce={ rx_usecs = 0 }",
        "queues=all",
        "a.numa=nic",
    ]
    assert settings(given) == {
        "channels": 4,
        "steer": True,
        "irq_cpus": "2-3",
        "coalesce": {"rx_usecs": 0},
        "queues": "all",
        "a.numa": "nic",
    }
    assert settings(None) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["channels"], "--set channels: wanted KEY=VALUE"),
        (["=4"], "--set =4: wanted KEY=VALUE"),
        (["a=1", "a=2"], "--set a=2: a is set twice"),
    ],
)
def test_what_is_no_setting_is_said(given, words):
    with pytest.raises(ConfigError, match=words):
        settings(given)


def test_settings_override_the_file_for_every_port_or_for_one(tmp_path: Path):
    path = tmp_path / "c.toml"
    path.write_text(FILE)
    first, second = config.load(path, settings(["steer=true", "a.channels=4", "b.queues=1,3"])).ports
    assert (first.nic.steer, first.nic.channels, first.queues) == (True, 4, None)
    assert (second.nic.steer, second.nic.channels, second.queues) == (True, 0, (1, 3))


def test_a_port_that_is_not_there_cannot_be_set(tmp_path: Path):
    path = tmp_path / "c.toml"
    path.write_text(FILE)
    with pytest.raises(ConfigError, match=r"c\.channels: no port is called c"):
        config.load(path, {"c.channels": 4})
