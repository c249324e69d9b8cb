// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/* xds_send.bpf.c: what BPF_PROG_TEST_RUN runs to send a burst that user space has put into mapped memory.
 *
 * A run with repeat > 1 puts its program into the kernel's XDP dispatcher and takes it out again, some 20 ms. So
 * here one live frame is run once and broadcast over a map of devices in which every entry is the same interface:
 * the kernel clones it, and the program of the entry (xds_send_fill) makes each clone the next frame as it leaves.
 *
 * Two rules of the kernel's dev_map_enqueue_multi and bq_xmit_all (kernel/bpf/devmap.c) shape the maps:
 * - The last copy is the live frame itself, out of a page pool that is made for the run. It is never sent: a frame
 *   that somebody keeps would keep the pool, and a pool a run would pile up. So there is one entry more than frames,
 *   and the clones too many are dropped first, not last.
 * - Copies go to the driver 16 at a time and the driver is told to deliver with the last 16 only, if one of those is
 *   left. So a map has 16 k + 2 entries: then its last two are a frame and the live frame.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "xds_send.h"

struct xds_send_burst xds_send_burst;

#define DEVICES(entries)                                                                                     \
    struct {                                                                                                 \
        __uint(type, BPF_MAP_TYPE_DEVMAP);                                                                   \
        __uint(max_entries, entries);                                                                        \
        __type(key, __u32);                                                                                  \
        __type(value, struct bpf_devmap_val);                                                                \
    } xds_send_##entries SEC(".maps")

DEVICES(34);
DEVICES(50);
DEVICES(66);
DEVICES(98);
DEVICES(130);

#define SEND_BY(entries)                                                                                     \
    if (count < (entries)) {                                                                                 \
        xds_send_burst.skip = (entries)-1 - count;                                                           \
        return bpf_redirect_map(&xds_send_##entries, 0, BPF_F_BROADCAST);                                    \
    }

SEC("xdp")
int xds_send(struct xdp_md *ctx)
{
    const __u32 count = *(volatile __u32 *)&xds_send_burst.count;

    SEND_BY(34)
    SEND_BY(50)
    SEND_BY(66)
    SEND_BY(98)
    SEND_BY(130)
    return XDP_DROP;
}

/* Make the clone that frame. User space may write all of this while it runs: each word is read once. */
static __always_inline bool become(struct xdp_md *ctx, const volatile struct xds_send_slot *slot)
{
    const __u32 at = slot->at, len = slot->len;

    if (len < XDS_SEND_LEAST || len > XDS_SEND_LONGEST || at > XDS_SEND_BYTES)
        return false;
    /* Not data_end - data: the difference of two pointers is for those who may see the kernel's (CAP_PERFMON). */
    const int longer = (int)len - (int)bpf_xdp_get_buff_len(ctx);
    if (longer && bpf_xdp_adjust_tail(ctx, longer))
        return false;
    return bpf_xdp_store_bytes(ctx, 0, xds_send_burst.bytes + at, len) == 0;
}

SEC("xdp/devmap")
int xds_send_fill(struct xdp_md *ctx)
{
    struct xds_send_burst *burst = &xds_send_burst;
    const __u32 number = *(volatile __u32 *)&burst->taken;

    if (burst->skip) {
        burst->skip--;
        return XDP_DROP;
    }
    if (number >= burst->count || number >= XDS_SEND_FRAMES)
        return XDP_DROP;
    if (!become(ctx, &burst->slot[number])) {
        burst->count = number; /* this one and those behind it go another way, in order */
        return XDP_DROP;
    }
    burst->taken = number + 1;
    return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
