/* live_frames.c: the generator by BPF_PROG_TEST_RUN with live frames: XDP frames without a sender's skb.
 *
 * The core's own (cffi_build/ports/traffic_live.c) with the options of the other generators: the cheapest way
 * for a packet to reach XDP on a veth pair, so the receiver's own kernel share weighs more than with xsk_send.
 * The peer must run an XDP program or GRO (else veth refuses redirected frames, silently). --pass 1 hands the
 * frames to --iface itself, as if it had received them. A run's set-up and end cost some 20 ms, which
 * "seconds" includes.
 */
#include <net/if.h>

#include "frame.h"
#include "xds/traffic.h"

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    const char *iface = bench_text(&options, "iface", NULL);
    uint8_t frame[2048];
    char path[4096]; /* the program lies beside the executable */
    const char *slash = strrchr(argv[0], '/');
    snprintf(path, sizeof path, "%.*sxds_live.bpf.o", slash ? (int)(slash + 1 - argv[0]) : 0, argv[0]);
    struct xds_traffic_live run = {
        .object = path,
        .ifindex = iface ? if_nametoindex(iface) : 0,
        .pass = bench_number(&options, "pass", 0) != 0,
        .frame = {.data = frame, .len = bench_frame(&options, frame, sizeof frame), .at = BENCH_HEADERS},
        .batch = (uint32_t)bench_number(&options, "batch", 64),
        .rate = (uint64_t)bench_number(&options, "rate", 0),
        .count = (uint64_t)bench_number(&options, "count", 100000),
        .duration_ns = (int64_t)(bench_seconds(&options) * 1e9),
    };
    if (!run.ifindex)
        bench_die("--iface: no such interface");
    const int rc = xds_traffic_live(&run);
    if (rc)
        bench_die("the kernel refuses live XDP frames: %s", strerror(-rc));
    const double seconds = (double)run.took_ns / 1e9;
    printf("{\"generator\": \"live\", \"sent\": %lu, \"seconds\": %.6f, \"rate\": %.0f}\n", run.sent, seconds,
           (double)run.sent / seconds);
    return 0;
}
