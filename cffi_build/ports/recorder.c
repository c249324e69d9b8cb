/* recorder.c: from the engine's turn into a file, without making the turn wait.
 *
 * The turn copies into a private ring; a thread writes the file. When the ring is full the turn's
 * records are dropped and counted: a recording that lost a record cannot be replayed bit for bit, and
 * xds_recorder_stop() says so. Order in the ring is the order in the file.
 */
#define _GNU_SOURCE /* CPU_SET, pthread_attr_setaffinity_np */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "recorder_inl.h"
#include "ground/csum_inl.h"
#include "ground/ring_inl.h"

#define DGRAM_HEADERS  42 /* Ethernet 14, IPv4 20, UDP 8 */
#define DGRAM6_HEADERS 62 /* IPv6 40 */

/* A record in the ring: this, then `len` bytes. */
struct tapped {
    int64_t ns;
    uint32_t len;
    uint32_t interface;
};

struct xds_recorder {
    struct xds_ring *ring;
    struct xds_pcap_writer *writer;
    uint32_t ports;
    uint64_t lost; /* the turn's side */
    _Alignas(64) atomic_uint_fast64_t written;
    atomic_int stop, failed;
    pthread_t thread;
    int running;
};

size_t xds_recorder_size(void)
{
    return sizeof(struct xds_recorder);
}

int xds_recorder_init(void *mem, struct xds_ring *ring, struct xds_pcap_writer *w, uint32_t ports)
{
    struct xds_recorder *r = mem;
    memset(r, 0, sizeof *r);
    r->ring = ring;
    r->writer = w;
    r->ports = ports;
    return 0;
}

/* ---- the turn's side ------------------------------------------------------------------------- */

static uint8_t *claim(struct xds_recorder *r, unsigned interface, int64_t ns, uint32_t len)
{
    void *room;
    if (xdsi_ring_claim(r->ring, (uint32_t)sizeof(struct tapped) + len, &room) != 1) {
        r->lost++;
        return NULL;
    }
    struct tapped *t = room;
    *t = (struct tapped){.ns = ns, .len = len, .interface = interface};
    return (uint8_t *)(t + 1);
}

static void commit(struct xds_recorder *r, uint32_t len)
{
    xdsi_ring_commit(r->ring, 0, (uint32_t)sizeof(struct tapped) + len);
}

void xdsi_recorder_turn(struct xds_recorder *r, uint64_t turn, int64_t now_ns, uint32_t frames,
                        bool timers_wait)
{
    const struct xdsi_turn_block block = {.magic = XDS_TURN_MAGIC,
                                          .frames = frames,
                                          .now_ns = now_ns,
                                          .turn = turn,
                                          .timers_wait = timers_wait};
    uint8_t *room = claim(r, r->ports, now_ns, sizeof block);
    if (!room)
        return;
    memcpy(room, &block, sizeof block);
    commit(r, sizeof block);
}

void xdsi_recorder_frame(struct xds_recorder *r, unsigned port, const struct xds_frame *f)
{
    uint8_t *room = claim(r, port, f->rx_ns, f->len);
    if (!room)
        return;
    memcpy(room, f->data, f->len);
    commit(r, f->len);
}

static uint16_t header_sum(const uint8_t *header)
{
    uint32_t sum = 0;
    for (int i = 0; i < 20; i += 2)
        sum += (uint32_t)header[i] << 8 | header[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t) ~(sum + (sum >> 16));
}

static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

/* As below, over IPv6: where UDP has a checksum always (RFC 8200 8.1). */
static void record6(struct xds_recorder *r, unsigned port, const struct xds_dgram *d)
{
    const uint32_t udp_len = 8 + d->len;
    uint8_t *h = claim(r, port, d->rx_ns, DGRAM6_HEADERS + d->len);
    if (!h)
        return;
    memset(h, 0, DGRAM6_HEADERS);
    h[0] = h[6] = 0x02;
    put16(h + 12, 0x86dd);
    uint8_t *ip = h + 14, *udp = h + 54;
    ip[0] = 0x60;
    put16(ip + 4, udp_len);
    ip[6] = 17; /* UDP */
    ip[7] = 64; /* hop limit */
    memcpy(ip + 8, d->src6, 16);
    memcpy(ip + 24, d->dst6, 16);
    put16(udp, d->sport);
    put16(udp + 2, d->dport);
    put16(udp + 4, udp_len);
    memcpy(h + DGRAM6_HEADERS, d->data, d->len);
    const uint64_t pseudo =
        xdsi_csum_add(((uint64_t)17 << 8) + __builtin_bswap16((uint16_t)udp_len), ip + 8, 32);
    const uint16_t sum = (uint16_t)~xdsi_csum_fold(xdsi_csum_add(pseudo, udp, udp_len));
    const uint16_t given = sum ? sum : 0xffff;
    memcpy(udp + 6, &given, 2);
    commit(r, DGRAM6_HEADERS + d->len);
}

/* A datagram of a kernel socket gets the headers it had, as far as the kernel tells: no VLAN, no
 * options, checksum 0 ("none") since the kernel has verified it. */
void xdsi_recorder_dgram(struct xds_recorder *r, unsigned port, const struct xds_dgram *d)
{
    if (d->six) {
        record6(r, port, d);
        return;
    }
    uint8_t *h = claim(r, port, d->rx_ns, DGRAM_HEADERS + d->len);
    if (!h)
        return;
    const uint32_t ip_len = 28 + d->len, udp_len = 8 + d->len;
    memset(h, 0, DGRAM_HEADERS);
    h[0] = h[6] = 0x02; /* locally administered: nobody's */
    h[12] = 0x08;       /* EtherType IPv4 */
    uint8_t *ip = h + 14, *udp = h + 34;
    ip[0] = 0x45;
    ip[2] = (uint8_t)(ip_len >> 8);
    ip[3] = (uint8_t)ip_len;
    ip[8] = 64; /* TTL */
    ip[9] = 17; /* UDP */
    memcpy(ip + 12, &d->src, 4);
    memcpy(ip + 16, &d->dst, 4);
    const uint16_t sum = header_sum(ip);
    ip[10] = (uint8_t)(sum >> 8);
    ip[11] = (uint8_t)sum;
    udp[0] = (uint8_t)(d->sport >> 8);
    udp[1] = (uint8_t)d->sport;
    udp[2] = (uint8_t)(d->dport >> 8);
    udp[3] = (uint8_t)d->dport;
    udp[4] = (uint8_t)(udp_len >> 8);
    udp[5] = (uint8_t)udp_len;
    memcpy(h + DGRAM_HEADERS, d->data, d->len);
    commit(r, DGRAM_HEADERS + d->len);
}

int xdsi_recorder_parse(const struct xds_frame *f, struct xdsi_turn_block *out)
{
    if (f->len != sizeof *out)
        return XDS_EMALFORMED;
    memcpy(out, f->data, sizeof *out);
    return out->magic == XDS_TURN_MAGIC ? 0 : XDS_EMALFORMED;
}

/* ---- the thread's side ----------------------------------------------------------------------- */

static unsigned write_some(struct xds_recorder *r)
{
    unsigned n = 0;
    const struct xds_ring_record *record;
    while (n < 256 && xdsi_ring_peek(r->ring, &record) == 1) {
        const struct tapped *t = (const struct tapped *)(record + 1);
        const int rc =
            xds_pcap_writer_write(r->writer, t->interface, t->ns, (const uint8_t *)(t + 1), t->len, t->len);
        if (rc < 0 && !atomic_load_explicit(&r->failed, memory_order_relaxed))
            atomic_store_explicit(&r->failed, rc, memory_order_relaxed);
        n++;
    }
    xdsi_ring_release(r->ring);
    atomic_fetch_add_explicit(&r->written, n, memory_order_relaxed);
    return n;
}

static void *writer_main(void *arg)
{
    struct xds_recorder *r = arg;
    const struct timespec nap = {.tv_nsec = 500 * 1000}; /* 8 MiB last 6 ms at 10 Gbit/s */
    for (;;) {
        const int stop = atomic_load_explicit(&r->stop, memory_order_acquire);
        if (write_some(r))
            continue;
        if (stop)
            return NULL;
        nanosleep(&nap, NULL);
    }
}

int xds_recorder_start(struct xds_recorder *r, int cpu)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((unsigned)cpu, &set);
        pthread_attr_setaffinity_np(&attr, sizeof set, &set);
    }
    const int rc = pthread_create(&r->thread, &attr, writer_main, r);
    pthread_attr_destroy(&attr);
    r->running = rc == 0;
    if (rc == 0)
        pthread_setname_np(r->thread, "xds-recorder");
    return -rc;
}

int xds_recorder_stop(struct xds_recorder *r)
{
    if (r->running) {
        atomic_store_explicit(&r->stop, 1, memory_order_release);
        pthread_join(r->thread, NULL);
        r->running = 0;
    }
    const int failed = atomic_load(&r->failed);
    if (failed)
        return failed;
    return r->lost ? XDS_ECAPACITY : 0;
}

uint64_t xds_recorder_written(const struct xds_recorder *r)
{
    return atomic_load_explicit(&((struct xds_recorder *)r)->written, memory_order_relaxed);
}

uint64_t xds_recorder_lost(const struct xds_recorder *r)
{
    return r->lost;
}
