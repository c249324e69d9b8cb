/* tape_stress.c: a writer thread and three reader threads over one tape; every record is checked.
 *
 *   tape_stress RECORDS BYTES
 *
 * Compiled by test_tape.py, also with -fsanitize=thread. Readers take one by one, in batches, and in place.
 * Prints "ok RECORDS lost A B C", exits 1 on the first record that is not what the writer made, or when a
 * reader's records and losses are not all.
 */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "ground/tape_inl.h"

static struct xds_tape *tape;
static uint64_t records;
static int ready;

static uint64_t mix(uint64_t x) /* splitmix64's finaliser: record i's length and bytes from i alone */
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static uint32_t length_of(uint64_t i)
{
    return (uint32_t)(mix(i) % 25) * 8;
}

static int whole(const struct xds_tape_record *head, const uint64_t *data)
{
    if (head->kind != (uint32_t)head->stamp || head->len != length_of(head->stamp))
        return 0;
    for (uint32_t k = 0; k < head->len / 8; k++)
        if (data[k] != mix(head->stamp))
            return 0;
    return 1;
}

static void *write_all(void *arg)
{
    struct xds_tape_writer w;
    xds_tape_attach_writer(&w, tape, 1, 1);
    uint64_t data[32];
    while (__atomic_load_n(&ready, __ATOMIC_ACQUIRE) < 3)
        sched_yield();
    for (uint64_t i = 1; i <= records; i++) {
        for (uint32_t k = 0; k < length_of(i) / 8; k++)
            data[k] = mix(i);
        if (xds_tape_write(&w, (uint32_t)i, data, length_of(i)) != 1)
            return (void *)1;
        if (i % 64 == 0)
            sched_yield();
    }
    xds_tape_close(tape);
    return arg;
}

/* One record or several, by the way of this reader. Returns how many, -EPIPE at the end, -1 when one is broken. */
static int64_t some(struct xds_tape_reader *r, int way)
{
    static _Thread_local uint64_t room[1024];
    struct xds_tape_record head;
    const struct xds_tape_record *record;
    uint64_t n = 0;
    if (way == 0) {
        const int rc = xdsi_tape_take(r, &head, room, sizeof room);
        return rc == 1 && !whole(&head, room) ? -1 : rc;
    }
    if (way == 1) {
        const int64_t got = xds_tape_read(r, room, sizeof room, &n);
        for (int64_t at = 0; at < got;) {
            const struct xds_tape_record *h = (const struct xds_tape_record *)((uint8_t *)room + at);
            if (!whole(h, (const uint64_t *)(h + 1)))
                return -1;
            at += (int64_t)xdsi_tape_space(h->len);
        }
        return got < 0 ? got : (int64_t)n;
    }
    int rc = xdsi_tape_peek(r, &record);
    if (rc != 1)
        return rc;
    xdsi_tape_copy(&head, record, sizeof head);
    xdsi_tape_copy(room, record + 1, r->need - sizeof head);
    rc = xdsi_tape_done(r, head.stamp);
    return rc == 1 && !whole(&head, room) ? -1 : rc;
}

static void *read_all(void *arg)
{
    struct xds_tape_reader r;
    const int way = (int)(intptr_t)arg;
    xds_tape_attach_reader(&r, tape, &tape->slots[way], XDS_TAPE_NEWEST);
    __atomic_fetch_add(&ready, 1, __ATOMIC_RELEASE);
    uint64_t seen = 0, idle = 0;
    for (;;) {
        const int64_t n = some(&r, way);
        if (n == -EPIPE)
            break;
        if (n < 0) {
            printf("reader %d: broken (%ld) after %lu of record %lu\n", way, (long)n, seen, r.next);
            exit(1);
        }
        if (!n && ++idle % 64 == 0)
            xds_tape_wait(&r, 1000000);
        else if (!n)
            sched_yield();
        seen += (uint64_t)n;
    }
    const uint64_t unseen = r.before ? records + 1 - r.before : 0; /* lapped, and then it was the end */
    if (seen + r.lost + unseen != records) {
        printf("reader %d: %lu seen + %lu lost of %lu\n", way, seen, r.lost, records);
        exit(1);
    }
    return (void *)(uintptr_t)r.lost;
}

int main(int argc, char **argv)
{
    records = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000;
    const uint64_t bytes = argc > 2 ? strtoull(argv[2], NULL, 0) : 8192;
    const int fd = memfd_create("tape", 0);
    void *memory;
    if (ftruncate(fd, (off_t)(XDS_TAPE_HEADER + bytes)) || xds_tape_map(fd, XDS_TAPE_HEADER, bytes, 2, &memory) ||
        xds_tape_init(memory, XDS_TAPE_HEADER, bytes, 0, 0, ""))
        return 2;
    tape = memory;
    pthread_t writer, reader[3];
    for (intptr_t i = 0; i < 3; i++)
        pthread_create(&reader[i], NULL, read_all, (void *)i);
    pthread_create(&writer, NULL, write_all, NULL);
    void *failed, *lost[3];
    pthread_join(writer, &failed);
    for (int i = 0; i < 3; i++)
        pthread_join(reader[i], &lost[i]);
    printf("ok %lu lost %lu %lu %lu\n", records, (uintptr_t)lost[0], (uintptr_t)lost[1], (uintptr_t)lost[2]);
    return failed != NULL;
}
