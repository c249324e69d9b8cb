// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/* xds_live.bpf.c: what BPF_PROG_TEST_RUN runs to send live frames: number, stamp, pace and redirect each.
 *
 * A live run cannot be paced from outside (each costs milliseconds of set-up), so the program waits by itself:
 * a frame leaves no earlier than first + number * gap. The wait is bounded for the verifier; below about
 * 100,000 frames a second frames come faster than asked. What comes after the run's time is dropped, uncounted.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "xds_live.h"

#define WAITS 400 /* times about 25 ns: some 10 us a frame */

const volatile struct xds_live_settings xds_live_settings;
struct xds_live_state xds_live_state;

static __u64 (*const tai_ns)(void) = (void *)208; /* bpf_ktime_get_tai_ns, Linux 6.1 */

/* Of UDP, in the byte order of memory (RFC 1071 2B). */
static __always_inline void checksum(__u8 *at, __u64 rest, __u64 word, __u64 stamp)
{
    __u64 sum = rest + (word & 0xffffffff) + (word >> 32) + (stamp & 0xffffffff) + (stamp >> 32);

    for (int i = 0; i < 4; i++)
        sum = (sum & 0xffff) + (sum >> 16);
    const __u16 kept = sum == 0xffff ? 0xffff : (__u16)~sum;
    __builtin_memcpy(at, &kept, 2);
}

SEC("xdp")
int xds_live(struct xdp_md *ctx)
{
    struct xds_live_state *state = &xds_live_state;
    const volatile struct xds_live_settings *live = &xds_live_settings;
    __u8 *data = (void *)(long)ctx->data;
    void *end = (void *)(long)ctx->data_end;
    const __u32 at = live->at;

    if (at < 2 || at > 2048 || data + at + 16 > (__u8 *)end)
        return XDP_ABORTED;
    __u64 now = bpf_ktime_get_ns();
    const __u64 number = state->sent;
    if (!number)
        state->first = now;
    if (now - state->first >= live->duration)
        return XDP_DROP;
    if (live->gap_ps) {
        const __u64 due = state->first + number * live->gap_ps / 1000;
        for (int i = 0; i < WAITS && now < due; i++)
            now = bpf_ktime_get_ns();
    }
    state->sent = number + 1;
    const __u64 word = live->mark | number, stamp = tai_ns();
    __builtin_memcpy(data + at, &word, 8);
    __builtin_memcpy(data + at + 8, &stamp, 8);
    if (live->rest)
        checksum(data + at - 2, live->rest, word, stamp);
    return live->ifindex ? bpf_redirect(live->ifindex, 0) : XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
