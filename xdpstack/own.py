"""An address of a port's own, beside the kernel's: what belongs to it, what is steered to it, and what the
host says and believes on its behalf.

    [ports.main]
    port = "xsk:eth0"
    address = "2001:db8::9/64"     # and fe80::9, by which neighbours and routers know the host
    link_local = false             # without that one
    routers = true                 # what routers advertise is taken: default routes, prefixes, MTU, hop limit
    reports = true                 # groups are reported by MLD and IGMP from this address

The link-local address has the last 64 bits of the one that is configured (RFC 4291 2.5.6), and is probed
for and defended as that is (RFC 4862 5.4); where somebody has it already, it is not used, and the other one
still is. With ``routers`` or ``reports`` ICMPv6 to all nodes, with ``reports`` also IGMP to all systems, and
either to the groups of the port's feeds, comes to us alone: the kernel does not see it on this interface.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from xdpstack._ffi import lib
from xdpstack.errors import ConfigError
from xdpstack.port import Subscription

__all__ = ["own_addresses", "own_rules", "said_of_groups"]

_ALL_NODES, _ALL_SYSTEMS = "ff02::1", "224.0.0.1"
_IDENTIFIER = (1 << 64) - 1
_LINK_LOCAL = 0xFE80 << 112


def own_addresses(options: Mapping[str, Any]) -> list[str]:
    """With their prefixes, the configured one first; none where the kernel's are shared. ConfigError."""
    text = str(options.get("address", ""))
    if not text:
        for key in ("link_local", "routers", "reports"):
            if options.get(key):
                raise ConfigError(f"{key}: of a port with an address of its own; give it one")
        return []
    own = ipaddress.ip_interface(text)
    if own.version == 4 and options.get("routers"):
        raise ConfigError(f"routers: they are those of IPv6, and {text} is not")
    identifier = int(own.ip) & _IDENTIFIER
    # A lender's policy names addresses: one that nobody asked for would be refused.
    if own.version == 4 or own.ip.is_link_local or not options.get("link_local", not options.get("opener")):
        return [text]
    if not identifier:  # the routers' anycast address
        return [text]
    return [text, f"{ipaddress.IPv6Address(_LINK_LOCAL | identifier)}/64"]


def own_rules(own: Iterable[str], options: Mapping[str, Any], groups: Iterable[Subscription]) -> list[str]:
    """What is steered to the port for them, in words without a target."""
    rules, heard = [], set()
    for text in own:
        address = text.partition("/")[0]
        if ":" in address:
            rules += [f"ndp target {address}", f"ip dst {address}"]
        else:
            rules += [f"arp target {address}", f"arp sender {address}", f"ip dst {address}"]
        heard.add(":" in address)
    many = {g.address for g in groups if g.is_group} if options.get("reports") else set()
    heard |= {":" in group for group in many}
    if options.get("routers") or (options.get("reports") and True in heard):
        rules.append(f"icmp6 dst {_ALL_NODES}")
    if options.get("reports") and False in heard:
        rules.append(f"igmp dst {_ALL_SYSTEMS}")
    return rules + [f"{'icmp6' if ':' in group else 'igmp'} dst {group}" for group in sorted(many)]


def said_of_groups(groups: Iterable[Subscription]) -> tuple[list[str], list[tuple[str, str]]]:
    """The groups that are wanted from anybody, and (group, source) of the others: of one with more sources
    than a report holds, anybody's is asked for."""
    wanted: dict[str, set[str]] = {}
    for g in groups:
        if g.is_group:
            wanted.setdefault(g.address, set()).add(g.source or "")
    anybody = [group for group, of in wanted.items() if "" in of or len(of) > lib.XDS_HOST_SOURCES]
    listed = [(group, source) for group, of in wanted.items() if group not in anybody for source in of]
    return sorted(anybody), sorted(listed)
