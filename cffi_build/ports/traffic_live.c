/* traffic_live.c: the generator by BPF_PROG_TEST_RUN with live XDP frames, frames without a sender's skb.
 *
 * The program (bpf/xds_live.bpf.c) numbers, stamps, paces and redirects; here it is loaded, run in pieces so
 * that its bound in seconds holds, and read. One piece costs some 20 ms of set-up and end.
 */
#include "xds/base.h"
#include "xds/traffic.h"
#include "xds_live.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#define PIECE 1000000 /* frames a run */

static int64_t monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int load(struct bpf_object *object, const struct xds_traffic_live *t)
{
    uint16_t was; /* see xds_traffic_frame: with zeros where number and stamp go */
    memcpy(&was, t->frame.data + t->frame.at - 2, 2);
    struct bpf_map *map = bpf_object__find_map_by_name(object, ".rodata");
    struct xds_live_settings settings = {
        .gap_ps = t->rate ? 1000000000000 / t->rate : 0,
        .duration = (uint64_t)t->duration_ns,
        .mark = t->mark,
        .ifindex = t->pass ? 0 : t->ifindex,
        .at = t->frame.at,
        .rest = was == 0xffff ? was
                : was         ? (uint16_t)~was
                              : 0,
    };
    struct bpf_map *counts = bpf_object__find_map_by_name(object, ".bss");
    const struct xds_live_state state = {.sent = t->sent, .first = t->first_ns};
    if (!map || bpf_map__set_initial_value(map, &settings, sizeof settings) || !counts ||
        bpf_map__set_initial_value(counts, &state, sizeof state))
        return -EINVAL; /* built from another xds_live.h */
    return bpf_object__load(object);
}

static int run_pieces(struct xds_traffic_live *t, struct bpf_object *object)
{
    struct xdp_md context = {.data_end = t->frame.len, .ingress_ifindex = t->ifindex};
    struct xds_live_state state = {0};
    const int program = bpf_program__fd(bpf_object__find_program_by_name(object, "xds_live"));
    const int map = bpf_object__find_map_fd_by_name(object, ".bss"), zero = 0;
    const int64_t begin = t->first_ns ? (int64_t)t->first_ns : monotonic_ns();
    int rc = 0;

    while (rc == 0 && t->sent < t->count && t->took_ns < t->duration_ns) {
        const uint64_t left = t->count - t->sent;
        LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = t->frame.data, .data_size_in = t->frame.len,
                    .ctx_in = &context, .ctx_size_in = sizeof context,
                    .repeat = (int)(left < PIECE ? left : PIECE), .flags = BPF_F_TEST_XDP_LIVE_FRAMES,
                    .batch_size = t->batch);
        rc = bpf_prog_test_run_opts(program, &run);
        t->runs++;
        t->took_ns = monotonic_ns() - begin;
        if (bpf_map_lookup_elem(map, &zero, &state))
            return -errno;
        t->sent = state.sent;
        t->first_ns = state.first;
    }
    return rc == -EINTR ? t->sent < t->count && t->took_ns < t->duration_ns : rc;
}

int xds_traffic_live(struct xds_traffic_live *t)
{
    if (!t->frame.data || t->frame.len < 14 || t->frame.at < 2 ||
        t->frame.at + XDS_TRAFFIC_BYTES > t->frame.len || t->duration_ns <= 0 || t->batch < 1 ||
        t->batch > 256)
        return XDS_ECONFIG;
    libbpf_set_print(NULL);
    struct bpf_object *object = bpf_object__open_file(t->object, NULL);
    if (!object)
        return -errno;
    if (!t->first_ns)
        t->sent = t->runs = 0;
    t->took_ns = 0;
    int rc = load(object, t);
    if (rc == 0)
        rc = run_pieces(t, object);
    bpf_object__close(object);
    return rc;
}
