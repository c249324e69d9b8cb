"""Words for the kernel's bits, and what an older kernel leaves unknown. The kernel itself answers in
netns_tests/test_netdev_veth.py."""

from __future__ import annotations

import errno

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from xdpstack import netdev
from xdpstack.errors import SetupError
from xdpstack.netdev import Capabilities


class Answer:
    """One netlink message, decoded."""

    def __init__(self, **attributes):
        self.attributes = attributes

    def get_attr(self, name):
        return self.attributes.get(name)


def test_bits_become_the_words_of_the_specification():
    found = netdev._capabilities(
        Answer(
            DEV_XDP_FEATURES=0b1111011,
            DEV_XDP_ZC_MAX_SEGS=5,
            DEV_XDP_RX_METADATA_FEATURES=0b101,
            DEV_XSK_FEATURES=0b111,
        )
    )
    assert found.xdp == {"basic", "redirect", "zero-copy", "hw-offload", "rx-sg", "ndo-xmit-sg"}
    assert found.zc_max_segs == 5
    assert found.rx_metadata == {"timestamp", "vlan-tag"}
    assert found.xsk == {"tx-timestamp", "tx-checksum", "tx-launch-time-fifo"}


def test_a_bit_of_a_newer_kernel_is_shown_by_its_number():
    assert netdev._capabilities(Answer(DEV_XDP_FEATURES=1 | 1 << 40)).xdp == {"basic", "bit-40"}


def test_what_the_kernel_does_not_tell_is_unknown_and_not_no():
    of_6_3 = netdev._capabilities(Answer(DEV_XDP_FEATURES=0b1011))
    assert (of_6_3.can("redirect"), of_6_3.can("hw-offload")) == (True, False)
    assert of_6_3.can("timestamp") is None
    assert of_6_3.can("tx-checksum") is None
    assert of_6_3.zc_max_segs is None  # it has zero-copy, and the kernel is silent on its buffers
    assert netdev._capabilities(Answer(DEV_XDP_FEATURES=1)).zc_max_segs == 0


def test_a_kernel_without_the_family_leaves_everything_unknown():
    nothing = Capabilities()
    assert not nothing.known
    assert nothing.can("zero-copy") is None
    assert str(nothing) == "unknown: the kernel does not tell XDP features (Linux 6.3 does)"


def test_a_word_that_is_no_feature_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="no feature is called 'zerocopy'"):
        Capabilities().can("zerocopy")


class Older:
    """A generic netlink socket of a kernel that lacks the family (``at="bind"``) or the command."""

    at, code = "bind", errno.ENOENT

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    prid = 30

    def bind(self, *_):
        if self.at == "bind":
            raise NetlinkError(self.code)

    def nlm_request(self, *_, **__):
        raise NetlinkError(self.code)


@pytest.mark.parametrize(("at", "code"), [("bind", errno.ENOENT), ("ask", errno.EOPNOTSUPP)])
def test_an_older_kernel_answers_unknown_to_every_question(monkeypatch, at, code):
    monkeypatch.setattr(netdev, "GenericNetlinkSocket", type("K", (Older,), {"at": at, "code": code}))
    assert not netdev.capabilities(1).known
    assert netdev.queues(1) is None
    assert netdev.napis(1) is None


def test_a_setting_that_an_older_kernel_lacks_is_an_error(monkeypatch):
    older = type("K", (Older,), {"at": "ask", "code": errno.EOPNOTSUPP})
    monkeypatch.setattr(netdev, "GenericNetlinkSocket", older)
    with pytest.raises(SetupError, match=r"set NAPI instance 7: the kernel has no such command \(Linux 6.13"):
        netdev.set_napi(7, defer_hard_irqs=2)


def test_being_not_allowed_is_not_unknown(monkeypatch):
    refused = type("K", (Older,), {"at": "ask", "code": errno.EPERM})
    monkeypatch.setattr(netdev, "GenericNetlinkSocket", refused)
    with pytest.raises(SetupError, match="Operation not permitted"):
        netdev.capabilities(1)
