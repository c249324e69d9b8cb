// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/* neighbour.bpf.c: somebody else's XDP program, for tests of sharing an interface: it counts and passes. `make bpf`
 * compiles it into build/tests.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} neighbour_seen SEC(".maps");

SEC("xdp")
int neighbour(struct xdp_md *ctx)
{
    __u32 zero = 0;
    __u64 *seen = bpf_map_lookup_elem(&neighbour_seen, &zero);
    if (seen)
        __sync_fetch_and_add(seen, 1);
    return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
