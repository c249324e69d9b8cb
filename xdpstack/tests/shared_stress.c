/* shared_stress.c: a writer process and a reader process over one ring or tape; every word of every record is
 * checked.
 *
 *   shared_stress ring|tape RECORDS BYTES
 *
 * Compiled by test_shared_stress.py. Prints "ok RECORDS seen S lost L", exits 1 on the first record that is not what
 * the writer made, or when seen and lost are not all. (A ring loses nothing; a tape tells what it lost.)
 */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "ground/ring_inl.h"
#include "ground/tape_inl.h"

#define WORDS 8

static uint64_t records, bytes;

static void make(uint64_t *data, uint64_t i)
{
    for (int k = 0; k < WORDS; k++)
        data[k] = i * 0x9e3779b97f4a7c15 + (uint64_t)k;
}

static int whole(const uint64_t *data, uint64_t i)
{
    uint64_t wrong = 0;
    for (int k = 0; k < WORDS; k++)
        wrong |= data[k] ^ (i * 0x9e3779b97f4a7c15 + (uint64_t)k);
    return !wrong;
}

static int fail(const char *what, uint64_t i)
{
    printf("%s: record %llu is not what was written\n", what, (unsigned long long)i);
    fflush(stdout);
    return 1;
}

static void write_ring(struct xds_ring *ring)
{
    void *room;
    for (uint64_t i = 1; i <= records; i++) {
        for (unsigned tries = 1; xdsi_ring_claim(ring, WORDS * 8, &room) != 1; tries++)
            if (tries % 256 == 0)
                sched_yield();
        make(room, i);
        xdsi_ring_commit(ring, (uint32_t)i, WORDS * 8);
    }
    xds_ring_close(ring);
}

static int read_ring(struct xds_ring *ring)
{
    const struct xds_ring_record *r;
    uint64_t seen = 0;
    int rc;
    while ((rc = xdsi_ring_peek(ring, &r)) >= 0) {
        if (!rc) {
            xdsi_ring_release(ring);
            if (!xdsi_ring_spin(ring, 1000))
                xdsi_ring_wait(ring, 10000000);
            continue;
        }
        seen++;
        if (r->kind != (uint32_t)seen || r->len != WORDS * 8 || !whole((const uint64_t *)(r + 1), seen))
            return fail("ring", seen);
        if (seen % 64 == 0)
            xdsi_ring_release(ring);
    }
    printf("ok %llu seen %llu lost 0\n", (unsigned long long)records, (unsigned long long)seen);
    return rc != -EPIPE || seen != records;
}

static void write_tape(struct xds_tape *tape)
{
    struct xds_tape_writer w;
    uint64_t data[64 * WORDS];
    xds_tape_attach_writer(&w, tape, 1, 1);
    while (!__atomic_load_n(&tape->slots[0].pid, __ATOMIC_ACQUIRE))
        sched_yield();
    for (uint64_t i = 1; i <= records;) {
        const uint64_t n = i % 3 ? 1 : records - i + 1 < 64 ? records - i + 1 : 64;
        for (uint64_t k = 0; k < n; k++)
            make(data + k * WORDS, i + k);
        xds_tape_write_many(&w, 7, data, WORDS * 8, n);
        i += n;
    }
    xds_tape_close(tape);
}

static int read_tape(struct xds_tape *tape)
{
    struct xds_tape_reader r;
    static uint64_t room[1 << 14];
    const uint64_t stride = WORDS + 2;
    uint64_t seen = 0, n;
    int64_t got;
    xds_tape_attach_reader(&r, tape, &tape->slots[0], XDS_TAPE_NEWEST);
    __atomic_store_n(&tape->slots[0].pid, 1, __ATOMIC_RELEASE);
    while ((got = xds_tape_read(&r, room, sizeof room, &n)) != -EPIPE) {
        if (got < 0)
            return fail("tape is broken", seen);
        for (uint64_t k = 0; k < n; k++)
            if (!whole(room + k * stride + 2, room[k * stride]))
                return fail("tape", room[k * stride]);
        seen += n;
        if (!got && !xdsi_tape_spin(&r, 1000))
            xds_tape_wait(&r, 10000000);
    }
    const uint64_t unseen = r.before ? records + 1 - r.before : 0; /* lapped, and then it was the end */
    printf("ok %llu seen %llu lost %llu\n", (unsigned long long)records, (unsigned long long)seen,
           (unsigned long long)(r.lost + unseen));
    return seen + r.lost + unseen != records;
}

int main(int argc, char **argv)
{
    void *memory;
    if (argc < 4)
        return 2;
    const int ring = !strcmp(argv[1], "ring");
    records = strtoull(argv[2], NULL, 0);
    bytes = strtoull(argv[3], NULL, 0);
    if (ring ? xds_ring_map_private(XDS_RING_HEADER, bytes, &memory) || xds_ring_init(memory, XDS_RING_HEADER, bytes, NULL)
             : 0)
        return 2;
    if (!ring) {
        const int fd = memfd_create("tape", 0);
        if (ftruncate(fd, (off_t)(XDS_TAPE_HEADER + bytes)) || xds_tape_map(fd, XDS_TAPE_HEADER, bytes, 2, &memory) ||
            xds_tape_init(memory, XDS_TAPE_HEADER, bytes, WORDS * 8, 0, ""))
            return 2;
    }
    const pid_t reader = fork();
    if (reader < 0)
        return 2;
    if (!reader)
        return ring ? read_ring(memory) : read_tape(memory);
    if (ring)
        write_ring(memory);
    else
        write_tape(memory);
    int status;
    waitpid(reader, &status, 0);
    return status != 0;
}
