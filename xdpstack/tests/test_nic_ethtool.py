"""The structs are the kernel's: the C compiler packs the same rules from linux/ethtool.h."""

from __future__ import annotations

import subprocess

import pytest

from xdpstack.nic import ethtool
from xdpstack.nic.ethtool import FlowRule
from xdpstack.tests.nic_fake import COMMANDS, FakeNic

PROGRAM = r"""
#include <arpa/inet.h>
#include <linux/ethtool.h>
#include <linux/net_tstamp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#define SIZE(type) printf("%zu\n", sizeof(struct type))
#define AT(type, member) printf("%zu\n", offsetof(struct type, member))
static void show(const void *p, size_t n)
{
    while (n--) printf("%02x", *(const unsigned char *)p++);
    puts("");
}
int main(void)
{
    struct ethtool_rx_flow_spec u4, t6;
    memset(&u4, 0, sizeof u4);
    u4.flow_type = UDP_V4_FLOW | FLOW_EXT;
    u4.h_u.udp_ip4_spec.ip4src = inet_addr("198.51.100.9");
    u4.h_u.udp_ip4_spec.ip4dst = inet_addr("233.54.12.111");
    u4.h_u.udp_ip4_spec.pdst = htons(26477);
    u4.m_u.udp_ip4_spec.ip4src = u4.m_u.udp_ip4_spec.ip4dst = 0xffffffff;
    u4.m_u.udp_ip4_spec.pdst = 0xffff;
    u4.h_ext.vlan_tci = htons(17);
    u4.m_ext.vlan_tci = htons(0xfff);
    u4.ring_cookie = 3;
    show(&u4, sizeof u4);
    memset(&t6, 0, sizeof t6);
    t6.flow_type = TCP_V6_FLOW | FLOW_RSS;
    inet_pton(AF_INET6, "2001:db8::7", t6.h_u.tcp_ip6_spec.ip6dst);
    memset(t6.m_u.tcp_ip6_spec.ip6dst, 0xff, 16);
    t6.h_u.tcp_ip6_spec.pdst = htons(443);
    t6.m_u.tcp_ip6_spec.pdst = 0xffff;
    show(&t6, sizeof t6);
    memset(&t6, 0, sizeof t6);
    t6.flow_type = ETHER_FLOW;
    memcpy(t6.h_u.ether_spec.h_dest, "\x01\x00\x5e\x36\x0c\x6f", 6);
    memset(t6.m_u.ether_spec.h_dest, 0xff, 6);
    t6.ring_cookie = 1;
    show(&t6, sizeof t6);
    SIZE(ethtool_rxnfc), AT(ethtool_rxnfc, fs), AT(ethtool_rxnfc, rule_cnt), AT(ethtool_rxnfc, rule_locs);
    AT(ethtool_rx_flow_spec, ring_cookie), AT(ethtool_rx_flow_spec, location);
    SIZE(ethtool_rxfh), AT(ethtool_rxfh, hfunc), SIZE(hwtstamp_config);
    SIZE(ethtool_channels), SIZE(ethtool_ringparam), SIZE(ethtool_coalesce);
    AT(ethtool_coalesce, use_adaptive_rx_coalesce), AT(ethtool_coalesce, rate_sample_interval);
    const int commands[] = {
        ETHTOOL_GDRVINFO, ETHTOOL_GCHANNELS, ETHTOOL_SCHANNELS, ETHTOOL_GRINGPARAM, ETHTOOL_SRINGPARAM,
        ETHTOOL_GCOALESCE, ETHTOOL_SCOALESCE, ETHTOOL_GSSET_INFO, ETHTOOL_GSTRINGS, ETHTOOL_GFEATURES,
        ETHTOOL_SFEATURES, ETHTOOL_GRXRINGS, ETHTOOL_GRXCLSRLCNT, ETHTOOL_GRXCLSRLALL, ETHTOOL_GRXCLSRULE,
        ETHTOOL_SRXCLSRLINS, ETHTOOL_SRXCLSRLDEL, ETHTOOL_GRSSH, ETHTOOL_SRSSH,
    };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) printf("%d\n", commands[i]);
    return 0;
}
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    (folder / "p.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-o", folder / "p", folder / "p.c"], check=True)
    return subprocess.run([folder / "p"], check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_rule_of_ipv4_with_source_and_vlan_is_packed_as_by_the_compiler(kernel):
    rule = FlowRule(dst="233.54.12.111", dport=26477, src="198.51.100.9", vlan=17, queue=3)
    assert rule.pack().hex() == kernel[0]
    assert str(rule) == (
        "flow-type udp4 src-ip 198.51.100.9 dst-ip 233.54.12.111 dst-port 26477 vlan 0x11 m 0xf000 action 3"
    )


def test_a_rule_of_ipv6_into_a_context_is_packed_as_by_the_compiler(kernel):
    rule = FlowRule(dst="2001:db8::7", dport=443, protocol="tcp", context=2)
    assert rule.pack().hex() == kernel[1]
    assert str(rule) == "flow-type tcp6 dst-ip 2001:db8::7 dst-port 443 context 2"


def test_a_rule_of_a_link_address_is_packed_as_by_the_compiler(kernel):
    rule = FlowRule(protocol="ether", dst="01:00:5e:36:0c:6f", queue=1)
    assert rule.pack().hex() == kernel[2]
    assert str(rule) == "flow-type ether dst 01:00:5e:36:0c:6f action 1"


def test_sizes_offsets_and_commands_are_the_kernel_s(kernel):
    adaptive, interval = (ethtool.COALESCE.index(name) for name in ("adaptive_rx", "rate_sample_interval"))
    assert [int(line) for line in kernel[3:]] == [
        *(ethtool._RXNFC, ethtool._FS, ethtool._COUNT, ethtool._LOCATIONS),
        *(ethtool._COOKIE, ethtool._LOCATION),
        *(24, 16, 12),
        *(36, 36, 4 + 4 * len(ethtool.COALESCE)),
        *(4 + 4 * adaptive, 4 + 4 * interval),
        *COMMANDS,  # in this order
    ]


def test_a_rule_is_known_by_what_it_says_and_not_by_its_place():
    nic = FakeNic()
    nic.state.wanted["rx-ntuple-filter"] = True
    rule = FlowRule(dst="233.54.12.111", dport=26477, queue=1)
    first = ethtool.insert_rule(nic, "eth0", rule)
    second = ethtool.insert_rule(nic, "eth0", rule)
    assert (first, second) == (7, 6)  # from the end: the front is the administrator's
    assert ethtool.rules(nic, "eth0") == {7: rule.identity, 6: rule.identity}
    assert rule.identity != FlowRule(dst="233.54.12.111", dport=26477, queue=2).identity


def test_a_rule_in_another_context_is_another_rule():
    nic = FakeNic()
    nic.state.wanted["rx-ntuple-filter"] = True
    number = ethtool.new_context(nic, "eth0", tuple([0, 1] * 8))
    inside = FlowRule(dst="233.54.12.111", dport=26477, context=number)
    ethtool.insert_rule(nic, "eth0", inside)
    (found,) = ethtool.rules(nic, "eth0").values()
    assert found == inside.identity
    assert found != FlowRule(dst="233.54.12.111", dport=26477, context=number + 1).identity


def test_an_rss_table_is_set_and_given_back_to_the_driver():
    nic = FakeNic()
    ethtool.set_indirection(nic, "eth0", tuple([2] * 16))
    assert ethtool.rss(nic, "eth0").table == (2,) * 16
    ethtool.set_indirection(nic, "eth0", None)
    assert nic.state.table is None
    assert ethtool.rss(nic, "eth0").table == (0, 1, 2, 3) * 4


def test_a_feature_tells_what_is_wanted_and_whether_it_can_change():
    found = ethtool.features(FakeNic(), "eth0")
    assert (found["rx-lro"].wanted, found["rx-lro"].can_change) == (True, True)
    assert (found["rx-gro-hw"].wanted, found["rx-gro-hw"].can_change) == (False, False)
    with pytest.raises(KeyError):
        ethtool.set_features(FakeNic(), "eth0", {"rx-nonsense": True})


def test_a_driver_without_a_name_is_empty_and_a_device_that_is_gone_an_error():
    nic = FakeNic(driver="")
    assert ethtool.driver(nic, "eth0") == ""
    with pytest.raises(OSError, match="19"):
        ethtool.driver(nic, "eth1")
