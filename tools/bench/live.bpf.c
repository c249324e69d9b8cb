/* live.bpf.c: the program that live_frames runs: number, stamp, pace and redirect each live frame.
 *
 * A live run cannot be paced from outside (each costs milliseconds of set-up), so the program waits
 * by itself: a frame leaves no earlier than first + sequence * gap. The wait is bounded for the
 * verifier; below about 100,000 frames a second frames come faster than asked, and the caller says so.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define WAITS   400 /* times about 25 ns: some 10 us a frame */
#define PAYLOAD 42  /* Ethernet, IPv4, UDP                   */

const volatile struct { /* struct settings in live_frames.c */
    __u64 gap_ps;       /* picoseconds between frames, 0: none    */
    __u32 ifindex;      /* 0: pass to the interface the run names */
    __u32 pad;
} live;
__u64 live_first; /* CLOCK_MONOTONIC ns of frame 0 */
__u64 live_sequence;

static __u64 (*const tai_ns)(void) = (void *)208; /* bpf_ktime_get_tai_ns, Linux 6.1 */

SEC("xdp")
int bench_live(struct xdp_md *ctx)
{
    __u8 *data = (void *)(long)ctx->data;
    void *end = (void *)(long)ctx->data_end;
    const __u64 sequence = live_sequence++;
    if (data + PAYLOAD + 16 > (__u8 *)end)
        return XDP_ABORTED;
    if (live.gap_ps) {
        __u64 now = bpf_ktime_get_ns();
        if (!sequence)
            live_first = now;
        const __u64 due = live_first + sequence * live.gap_ps / 1000;
        for (int i = 0; i < WAITS && now < due; i++)
            now = bpf_ktime_get_ns();
    }
    const __u64 stamp = tai_ns();
    __builtin_memcpy(data + PAYLOAD, &sequence, 8);
    __builtin_memcpy(data + PAYLOAD + 8, &stamp, 8);
    return live.ifindex ? bpf_redirect(live.ifindex, 0) : XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
