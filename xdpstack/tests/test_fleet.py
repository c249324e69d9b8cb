"""What one engine a queue refuses before it touches the host; the rest is netns_tests/test_fleet.py."""

from __future__ import annotations

import pytest

from xdpstack import config, fleet
from xdpstack import node as nodes
from xdpstack.errors import ConfigError

ENGINE = '[engine]\nengines = "queue"\n'
PORT = '[ports.a]\nport = "xsk:eth0"\n'
FEED = '[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n'


def load(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return config.load(path)


def test_the_keys_are_read(tmp_path):
    text = '[engine]\nengines = "queue"\ncpus = [2, 3]\nworkers = "processes"\nburst = 32\n' + PORT + FEED
    program = load(tmp_path, text)
    assert (program.engines, program.cpus, program.workers) == ("queue", (2, 3), "processes")
    assert program.engine.burst == 32
    made = fleet.open(program)
    assert [made.cpu(position) for position in range(3)] == [2, 3, 2]
    assert repr(made) == "<Fleet xsk:eth0: queues not built, processes: plain>"
    made.close()
    made.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[engine]\nengines = "many"\n', "2: engine.engines: wanted one of one, queue, not 'many'"),
        (ENGINE + 'workers = "fibres"\n', "3: engine.workers: wanted one of threads, processes"),
        (ENGINE + "cpus = 3\n", r"3: engine.cpus: wanted a list of cores like \[2, 3\], not 3"),
        (ENGINE + "cpus = [true]\n", "3: engine.cpus: wanted a list of cores"),
        ("[engine]\ncpus = [1]\n", '2: engine.cpus: only with engines = "queue"'),
        ('[engine]\nworkers = "threads"\n', '2: engine.workers: only with engines = "queue"'),
    ],
)
def test_a_wrong_key_is_named_with_its_line(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, text + PORT + FEED)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PORT + '[ports.b]\nport = "xsk:eth0"\n' + FEED, "two ports of one interface: name all its queues"),
        (PORT + '[ports.b]\nport = "sock:eth1"\n' + FEED, "takes ports of the kind xsk, without an opener"),
        ('[ports.a]\nport = "pcap:x"\n' + FEED, "takes ports of the kind xsk, without an opener"),
        (PORT + 'opener = "/run/o"\n' + FEED, "takes ports of the kind xsk, without an opener"),
        (PORT, 'engines = "queue": no feed'),
    ],
)
def test_what_cannot_be_spread_is_said(tmp_path, text, words):
    program = load(tmp_path, ENGINE + text)
    with pytest.raises(ConfigError, match=words):
        fleet.open(program)


def test_a_node_alone_does_not_take_several_engines(tmp_path):
    with pytest.raises(ConfigError, match=r"takes several nodes: xdpstack\.fleet\.open"):
        nodes.open(load(tmp_path, ENGINE + PORT + FEED))


def test_a_recording_is_named_by_its_queue():
    assert fleet._with_queue("a/day.pcapng.zst", 3) == "a/day.q3.pcapng.zst"
    assert fleet._with_queue(None, 3) is None
