// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/* xsk_list.bpf.c: the XDP programs of test_xsk_list.py that are not the filter's: drop half, write metadata,
 * move the tail. `make bpf` compiles it into build/tests.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

typedef __u8 uint8_t;
typedef __u16 uint16_t;
typedef __u32 uint32_t;
typedef __u64 uint64_t;
typedef __s64 int64_t;
#include "xds_shared.h"

#define PAYLOAD 14 /* Ethernet header                                        */
#define ALIEN   -1 /* frames of others                                       */

enum { STATE_SEEN, STATE_ADJUST, STATE_RESULT, STATE_REFUSED, STATES };

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, 4);
    __type(key, __u32);
    __type(value, __u32);
} list_sockets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, STATES);
    __type(key, __u32);
    __type(value, __s64);
} list_state SEC(".maps");

static __s64 *state(__u32 index)
{
    return bpf_map_lookup_elem(&list_state, &index);
}

/* Only the tests' own frames are taken and counted: a real port hears others. */
static int ours(struct xdp_md *ctx)
{
    __u8 *data = (void *)(long)ctx->data;
    return data + PAYLOAD + 4 <= (__u8 *)(long)ctx->data_end && data[12] == 0x88 && data[13] == 0xb5;
}

/* The number of this frame among ours, ALIEN where it is none. */
static __s64 next(struct xdp_md *ctx)
{
    __s64 *seen = state(STATE_SEEN);
    if (!seen || !ours(ctx))
        return ALIEN;
    return (*seen)++;
}

SEC("xdp.frags")
int list_drop_half(struct xdp_md *ctx)
{
    const __s64 number = next(ctx);
    if (number == ALIEN)
        return XDP_PASS;
    return number & 1 ? XDP_DROP : bpf_redirect_map(&list_sockets, 0, XDP_DROP);
}

/* Room for the metadata before a frame; NULL: there is none. */
static __always_inline struct xds_rx_meta *room_before(struct xdp_md *ctx)
{
    if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct xds_rx_meta)))
        return NULL;
    struct xds_rx_meta *meta = (void *)(long)ctx->data_meta;
    return (void *)(meta + 1) > (void *)(long)ctx->data ? NULL : meta;
}

/* As the filter's stamp, with the frame's number for the time. */
SEC("xdp.frags")
int list_metadata(struct xdp_md *ctx)
{
    const __s64 number = next(ctx);
    if (number == ALIEN)
        return XDP_PASS;
    const __u32 length = (__u32)bpf_xdp_get_buff_len(ctx);
    struct xds_rx_meta *meta = room_before(ctx);
    if (!meta)
        return XDP_DROP;
    *meta = (struct xds_rx_meta){.rx_ns = (__u64)number, .length = length, .magic = XDS_META_MAGIC};
    return bpf_redirect_map(&list_sockets, 0, XDP_DROP);
}

/* As the filter that is bound to its device, with the frame's number for all that a driver tells: hash and tag
 * of the first of four frames, one of them of the next two, neither of the last. */
SEC("xdp.frags")
int list_hints(struct xdp_md *ctx)
{
    const __s64 number = next(ctx);
    if (number == ALIEN)
        return XDP_PASS;
    const __u32 length = (__u32)bpf_xdp_get_buff_len(ctx);
    const __u8 flags[] = {XDS_META_HASH | XDS_META_VLAN, XDS_META_HASH, XDS_META_VLAN, 0};
    if (bpf_xdp_adjust_meta(ctx, -(int)(sizeof(struct xds_rx_hints) + sizeof(struct xds_rx_meta))))
        return XDP_DROP;
    struct xds_rx_hints *hints = (void *)(long)ctx->data_meta;
    struct xds_rx_meta *meta = (void *)(hints + 1);
    if ((void *)(meta + 1) > (void *)(long)ctx->data)
        return XDP_DROP;
    *hints = (struct xds_rx_hints){.hash = 0xfeed0000 + (__u32)number,
                                   .hash_type = 8,
                                   .vlan_tci = (__u16)(0x6000 + number),
                                   .vlan_tpid = 0x88a8};
    *meta = (struct xds_rx_meta){.rx_ns = (__u64)number, .length = length, .magic = XDS_META_MAGIC};
    meta->flags = flags[number & 3];
    return bpf_redirect_map(&list_sockets, 0, XDP_DROP);
}

/* As a NIC whose clock is STATE_ADJUST ns from CLOCK_TAI: every frame of ours, and every IPv4 packet, with its stamp. */
SEC("xdp.frags")
int list_stamps(struct xdp_md *ctx)
{
    __s64 *ahead = state(STATE_ADJUST);
    __u8 *data = (void *)(long)ctx->data;
    if (!ahead || data + PAYLOAD > (__u8 *)(long)ctx->data_end)
        return XDP_PASS;
    if ((data[12] != 0x88 || data[13] != 0xb5) && (data[12] != 0x08 || data[13] != 0x00))
        return XDP_PASS;
    const __u32 length = (__u32)bpf_xdp_get_buff_len(ctx);
    struct xds_rx_meta *meta = room_before(ctx);
    if (!meta)
        return XDP_DROP;
    *meta = (struct xds_rx_meta){.length = length, .flags = XDS_META_NIC, .magic = XDS_META_MAGIC};
    meta->rx_ns = bpf_ktime_get_tai_ns() + (__u64)*ahead;
    return bpf_redirect_map(&list_sockets, 0, XDP_DROP);
}

/* Take off the bytes behind its Ethernet header that made a PTP message of an IPv4 packet: of what a card stamps
 * only as such, a kernel UDP socket then gets the stamp. */
SEC("xdp")
int list_strip(struct xdp_md *ctx)
{
    __u8 *data = (void *)(long)ctx->data;
    if (data + PAYLOAD + 4 > (__u8 *)(long)ctx->data_end || data[12] != 0x88 || data[13] != 0xf7)
        return XDP_PASS;
    __builtin_memmove(data + 4, data, 12);
    data[16] = 0x08;
    data[17] = 0x00;
    return bpf_xdp_adjust_head(ctx, 4) ? XDP_DROP : XDP_PASS;
}

SEC("xdp.frags")
int list_adjust_tail(struct xdp_md *ctx)
{
    __s64 *adjust = state(STATE_ADJUST), *result = state(STATE_RESULT), *refused = state(STATE_REFUSED);
    if (!adjust || !result || !refused || next(ctx) == ALIEN)
        return XDP_PASS;
    const __s64 code = bpf_xdp_adjust_tail(ctx, (int)*adjust);
    if (code) {
        *result = code;
        ++*refused;
        return XDP_DROP;
    }
    return bpf_redirect_map(&list_sockets, 0, XDP_DROP);
}

char _license[] SEC("license") = "Dual BSD/GPL";
