/* ring_stress.c: a writer thread and a reader thread over one ring; every record is checked.
 *
 *   ring_stress RECORDS BYTES SEED
 *
 * Compiled by test_ring.py, also with -fsanitize=thread. Prints "ok RECORDS refused N", exits 1 on the
 * first record that is not what the writer made.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ground/ring_inl.h"

static struct xds_ring *ring;
static uint64_t records;

static uint64_t mix(uint64_t x) /* splitmix64's finaliser: record i's length and bytes from i alone */
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static uint32_t length_of(uint64_t i) { return (uint32_t)(mix(i) % (ring->bytes / 4)); }

static void *writer(void *arg)
{
    for (uint64_t i = 0; i < records; i++) {
        void *room;
        const uint32_t len = length_of(i), claim = len + (i % 3 ? 0 : 40); /* some claim more than they use */
        while (xds_ring_claim(ring, claim, &room) != 1)
            sched_yield();
        memset(room, (int)(mix(i) >> 56), len);
        xds_ring_commit(ring, (uint32_t)i, len);
    }
    xds_ring_close(ring);
    return arg;
}

static int whole(const struct xds_ring_record *r, uint64_t i)
{
    const uint8_t *data = (const uint8_t *)(r + 1);
    if (r->kind != (uint32_t)i || r->len != length_of(i))
        return 0;
    for (uint32_t k = 0; k < r->len; k++)
        if (data[k] != (uint8_t)(mix(i) >> 56))
            return 0;
    return 1;
}

int main(int argc, char **argv)
{
    const uint64_t bytes = argc > 2 ? strtoull(argv[2], NULL, 0) : 4096;
    records = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000;
    void *memory;
    if (xds_ring_map_private(XDS_RING_HEADER, bytes, &memory) ||
        xds_ring_init(memory, XDS_RING_HEADER, bytes, NULL))
        return 2;
    ring = memory;
    pthread_t thread;
    pthread_create(&thread, NULL, writer, NULL);
    uint64_t seen = 0, idle = 0;
    for (int rc = 0; rc != -EPIPE;) {
        const struct xds_ring_record *r[16];
        rc = xds_ring_peek_many(ring, r, 16);
        if (rc == 0 && ++idle % 64 == 0)
            xds_ring_wait(ring, 1000000);
        else if (rc == 0)
            sched_yield();
        for (int i = 0; i < rc; i++)
            if (!whole(r[i], seen++)) {
                printf("record %llu is not what was written\n", (unsigned long long)seen - 1);
                return 1;
            }
        if (rc < 0 && rc != -EPIPE)
            return 3;
        xds_ring_release(ring);
    }
    pthread_join(thread, NULL);
    printf("ok %llu refused %llu\n", (unsigned long long)seen, (unsigned long long)ring->refused);
    return seen != records;
}
