/* live_frames.c: the generator by BPF_PROG_TEST_RUN with live frames: XDP frames without a sender's skb.
 *
 * The program (live.bpf.c) redirects every frame to --iface, whose veth peer receives it as an XDP
 * frame, as from a driver: the cheapest way for a packet to reach XDP on this kind of link, so the
 * receiver's own kernel share weighs more than with xsk_send. The peer must run an XDP program or GRO
 * (else veth refuses redirected frames, silently). --pass 1 hands the frames to --iface itself, as if
 * it had received them. One run sends all: its set-up and end cost some 20 ms, which "seconds" includes.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <net/if.h>

#include "frame.h"

#ifndef BPF_F_TEST_XDP_LIVE_FRAMES
#define BPF_F_TEST_XDP_LIVE_FRAMES (1U << 1) /* linux/bpf.h since 5.18 */
#endif

struct settings { /* as live.bpf.c's .rodata: checked against its size */
    uint64_t gap_ps;
    uint32_t ifindex, pad;
};

/* live.bpf.o lies beside the executable. */
static struct bpf_object *load(const char *self, struct settings settings)
{
    char path[4096];
    const char *slash = strrchr(self, '/');
    snprintf(path, sizeof path, "%.*slive.bpf.o", slash ? (int)(slash + 1 - self) : 0, self);
    struct bpf_object *object = bpf_object__open_file(path, NULL);
    if (!object)
        bench_die("cannot open %s: %s", path, strerror(errno));
    struct bpf_map *map = bpf_object__find_map_by_name(object, ".rodata");
    if (!map || bpf_map__set_initial_value(map, &settings, sizeof settings))
        bench_die("%s was built from another live.bpf.c", path);
    if (bpf_object__load(object))
        bench_die("cannot load %s", path);
    return object;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    const char *iface = bench_text(&options, "iface", NULL);
    const uint32_t ifindex = iface ? if_nametoindex(iface) : 0;
    if (!ifindex)
        bench_die("--iface: no such interface");
    uint8_t frame[2048];
    const uint32_t len = bench_frame(&options, frame, sizeof frame);
    const double rate = bench_number(&options, "rate", 0);
    struct settings settings = {.ifindex = bench_number(&options, "pass", 0) != 0 ? 0 : ifindex};
    settings.gap_ps = rate > 0 ? (uint64_t)(1e12 / rate) : 0;
    struct bpf_object *object = load(argv[0], settings);
    struct xdp_md context = {.data_end = len, .ingress_ifindex = ifindex};
    const uint64_t count = (uint64_t)bench_number(&options, "count", 100000);
    LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = frame, .data_size_in = len, .ctx_in = &context,
                .ctx_size_in = sizeof context, .repeat = (int)count, .flags = BPF_F_TEST_XDP_LIVE_FRAMES,
                .batch_size = (uint32_t)bench_number(&options, "batch", 64));
    const double ns_per_tick = bench_calibrate();
    const uint64_t begin = bench_ticks();
    const int prog = bpf_program__fd(bpf_object__find_program_by_name(object, "bench_live"));
    const int rc = bpf_prog_test_run_opts(prog, &run);
    if (rc && rc != -EINTR)
        bench_die("the kernel refuses live XDP frames: %s", strerror(-rc));
    const double seconds = (double)(bench_ticks() - begin) * ns_per_tick / 1e9;
    printf("{\"generator\": \"live\", \"sent\": %lu, \"seconds\": %.6f, \"rate\": %.0f}\n", count, seconds,
           (double)count / seconds);
    bpf_object__close(object);
    return 0;
}
