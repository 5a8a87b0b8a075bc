"""Packet filters and address translation by nf_tables, without the program ``nft``: tables, chains, rules and sets as values, and one
transaction that is carried out whole or not at all.

```python
table = Table("ip", "mine", owner=True)          # the kernel removes it when the socket is closed, or our process ends
nat = Chain(table, "nat", hook="prerouting", type="nat", priority=-100)
with Nftables.here() as kernel:
    work = Transaction().add(table).add(nat)
    work.add(rule(nat, [iifname("eth0"), tcp_dport(80), dnat("10.0.0.5", 8080)]))
    (handle,) = kernel.commit(work)
    kernel.commit(Transaction().delete_rule(nat, handle))
```

Theory of operation
-------------------
A batch of messages goes out by one sendmsg(2); the kernel carries all of it out, or none, before that returns, and its answers wait for us
then. Each message that it refuses is answered by its number; the last one asks to be acknowledged, rules are echoed with their handles.
A table with an owner belongs to the port of a netlink socket: others cannot change it, nor does ``nft flush ruleset`` touch it, and it goes
when the socket does (NFT_TABLE_F_OWNER, Linux 5.12, "netfilter: nftables: introduce table ownership").

This is the face of four modules: `_nft_wire` puts trees of attributes into bytes, `_nft_rules` knows what stands in rules, `_nft_objects` the
rest and the transaction, `_nft_kernel` speaks with the kernel.
"""

from __future__ import annotations

from sandbox.net._nft_kernel import Listed, ListedChain, Nftables
from sandbox.net._nft_objects import VERDICT, Chain, Element, Family, Rule, Set, Table, Transaction, rule
from sandbox.net._nft_rules import (
    ETHERTYPE,
    IFNAME,
    IPV4,
    IPV6,
    MAC,
    MARK,
    PORT,
    PROTOCOL,
    Expression,
    Field,
    Kind,
    Range,
    Statement,
    Verdict,
    accept,
    arp_saddr_ether,
    arp_saddr_ip,
    constant,
    counter,
    ct_original_dport,
    ct_original_protocol,
    ct_state,
    ct_status,
    dnat,
    dnat_to,
    drop,
    ether_daddr,
    ether_saddr,
    ether_type,
    fib_daddr,
    fib_saddr,
    forward,
    goto,
    icmp_type,
    icmpv6_type,
    iif,
    iifname,
    in_set,
    ip6_daddr,
    ip6_saddr,
    ip_daddr,
    ip_saddr,
    is_ip6,
    jump,
    l4proto,
    limit,
    mark,
    mark_as,
    masquerade,
    oifname,
    payload_field,
    protocol,
    redirect,
    reject,
    return_,
    set_ether_daddr,
    set_mark,
    snat,
    snat_to,
    tcp_dport,
    tcp_sport,
    th_dport,
    th_sport,
    udp_dport,
    udp_sport,
    update,
    vmap,
)
from sandbox.net._nft_wire import NETLINK_NETFILTER

__all__ = [
    "ETHERTYPE", "IFNAME", "IPV4", "IPV6", "MAC", "MARK", "NETLINK_NETFILTER", "PORT", "PROTOCOL", "VERDICT", "Chain", "Element", "Expression",
    "Family", "Field", "Kind", "Listed", "ListedChain", "Nftables", "Range", "Rule", "Set", "Statement", "Table", "Transaction", "Verdict",
    "accept", "arp_saddr_ether", "arp_saddr_ip", "constant", "counter", "ct_original_dport", "ct_original_protocol", "ct_state", "ct_status", "dnat",
    "dnat_to", "drop", "ether_daddr", "ether_saddr", "ether_type", "fib_daddr", "fib_saddr", "forward", "goto", "icmp_type", "icmpv6_type", "iif",
    "iifname", "in_set", "ip6_daddr", "ip6_saddr", "ip_daddr", "ip_saddr", "is_ip6", "jump", "l4proto", "limit", "mark", "mark_as", "masquerade",
    "oifname", "payload_field", "protocol", "redirect", "reject", "return_", "rule", "set_ether_daddr",
    "set_mark", "snat", "snat_to", "tcp_dport", "tcp_sport", "th_dport", "th_sport", "udp_dport",
    "udp_sport", "update", "vmap",
]  # fmt: skip
