/* drops.c: reads the perf buffers into which the XDP program copies frames that it refused.
 *
 * The maps are found through the program's id: the filter may be pinned, or held by another process.
 * One read hands out what one round over the CPUs' buffers gave, copied together; what does not fit is
 * counted as lost, as is what found a CPU's buffer full. The kernel puts a record of such losses before the
 * next sample that fits in the same buffer, which may never come: so the counts are read from the events
 * themselves (PERF_FORMAT_LOST, Linux 6.0) and the records are passed over. A wake-up for each frame costs
 * an interrupt in the path of packets, several microseconds on a virtual machine: the reader looks by the
 * millisecond instead.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/perf_event.h>
#include "ports/libbpf_words.h"
#include "xds/drops.h"

#define MAPS_MAX 32
#ifndef PERF_FORMAT_LOST /* younger than Debian 12's headers may be */
#define PERF_FORMAT_LOST (1U << 4)
#endif

struct xds_drops {
    struct perf_buffer *buffer;
    int tap_fd, dropped_fd; /* the second is what keeps the buffers in the map */
    uint64_t unfit;         /* found no place in room */
    uint8_t *room;
    uint32_t used, cap;
};

static int maps_of(uint32_t prog_id, int *tap_fd, int *dropped_fd)
{
    uint32_t ids[MAPS_MAX], len = sizeof(struct bpf_prog_info);
    struct bpf_prog_info info = {.nr_map_ids = MAPS_MAX, .map_ids = (uint64_t)(uintptr_t)ids};
    int fd = bpf_prog_get_fd_by_id(prog_id);
    if (fd < 0)
        return -errno;
    int code = bpf_obj_get_info_by_fd(fd, &info, &len);
    close(fd);
    if (code)
        return code;
    for (uint32_t i = 0; i < info.nr_map_ids && i < MAPS_MAX; i++) {
        struct bpf_map_info map = {0};
        uint32_t map_len = sizeof(map);
        fd = bpf_map_get_fd_by_id(ids[i]);
        if (fd < 0)
            return -errno;
        int *wanted = bpf_obj_get_info_by_fd(fd, &map, &map_len)                                 ? NULL
                      : !strcmp(map.name, "xds_tap") && map.value_size == sizeof(struct xds_tap) ? tap_fd
                      : !strcmp(map.name, "xds_dropped")                                         ? dropped_fd
                                                                                                 : NULL;
        if (wanted)
            *wanted = fd;
        else
            close(fd);
    }
    return *tap_fd < 0 || *dropped_fd < 0 ? -ENOENT : 0;
}

struct sample { /* of PERF_SAMPLE_RAW */
    struct perf_event_header header;
    uint32_t size;
    uint8_t data[];
};

static enum bpf_perf_event_ret take(void *ctx, int cpu, struct perf_event_header *event)
{
    struct xds_drops *d = ctx;
    const struct sample *s = (const void *)event;
    if (event->type != PERF_RECORD_SAMPLE)
        return LIBBPF_PERF_EVENT_CONT;
    struct xds_drop drop;
    memcpy(&drop, s->data, sizeof(drop)); /* the size before it leaves it unaligned */
    uint32_t len = drop.length < XDS_DROP_BYTES ? drop.length : XDS_DROP_BYTES;
    struct xds_drops_record head = {.len = (uint32_t)sizeof(drop) + len};
    uint32_t need = (uint32_t)sizeof(head) + ((head.len + 7) & ~7u);
    if (s->size < head.len || d->cap - d->used < need) { /* perf rounds sizes up, never down */
        d->unfit++;
        return LIBBPF_PERF_EVENT_CONT;
    }
    memcpy(d->room + d->used, &head, sizeof(head));
    memcpy(d->room + d->used + sizeof(head), s->data, head.len);
    d->used += need;
    return LIBBPF_PERF_EVENT_CONT;
}

int xds_drops_open(uint32_t prog_id, struct xds_drops **out)
{
    struct xds_drops *d = calloc(1, sizeof(*d));
    if (!d)
        return -ENOMEM;
    d->tap_fd = d->dropped_fd = -1;
    int code = maps_of(prog_id, &d->tap_fd, &d->dropped_fd);
    if (code) {
        xds_drops_close(d);
        return code;
    }
    *out = d;
    return 0;
}

int xds_drops_start(struct xds_drops *d, uint32_t pages)
{
    xdsi_listen_to_libbpf();
    d->cap = pages * 4096 * (uint32_t)libbpf_num_possible_cpus();
    d->room = malloc(d->cap);
    if (!d->room)
        return -ENOMEM;
    struct perf_event_attr attr = {.size = sizeof(attr),
                                   .type = PERF_TYPE_SOFTWARE,
                                   .config = PERF_COUNT_SW_BPF_OUTPUT,
                                   .sample_type = PERF_SAMPLE_RAW,
                                   .sample_period = 1,
                                   .watermark = 1,
                                   .wakeup_watermark = pages * 2048,
                                   .read_format = PERF_FORMAT_LOST};
    d->buffer = perf_buffer__new_raw(d->dropped_fd, pages, &attr, take, d, NULL);
    return d->buffer ? 0 : -errno;
}

int xds_drops_tap(const struct xds_drops *d, struct xds_tap *out)
{
    uint32_t zero = 0;
    return bpf_map_lookup_elem(d->tap_fd, &zero, out);
}

int xds_drops_hold(const struct xds_drops *d, const struct xds_tap *tap)
{
    uint32_t zero = 0;
    return bpf_map_update_elem(d->tap_fd, &zero, tap, BPF_ANY);
}

int xds_drops_read(struct xds_drops *d, int timeout_ms, const uint8_t **out)
{
    static const struct timespec pause = {.tv_nsec = 1000000};
    d->used = 0;
    *out = d->room;
    for (int waited = 0;; waited++) {
        int code = perf_buffer__consume(d->buffer);
        if (code < 0)
            return code;
        if (d->used || waited >= timeout_ms || nanosleep(&pause, NULL))
            return (int)d->used;
    }
}

uint64_t xds_drops_lost(const struct xds_drops *d)
{
    uint64_t lost = d->unfit;
    struct {
        uint64_t value, lost;
    } said;
    for (size_t i = 0; d->buffer && i < perf_buffer__buffer_cnt(d->buffer); i++)
        if (read(perf_buffer__buffer_fd(d->buffer, i), &said, sizeof(said)) == sizeof(said))
            lost += said.lost;
    return lost;
}

void xds_drops_close(struct xds_drops *d)
{
    if (!d)
        return;
    if (d->buffer)
        perf_buffer__free(d->buffer);
    if (d->tap_fd >= 0)
        close(d->tap_fd);
    if (d->dropped_fd >= 0)
        close(d->dropped_fd);
    free(d->room);
    free(d);
}
