/* xsk_live.c: the second way to send of an AF_XDP port in copy mode: bursts leave as live XDP frames.
 *
 * In copy mode the kernel makes a packet buffer (skb) of every frame, by sendto, and the driver takes it as if it
 * came from its own stack. BPF_PROG_TEST_RUN with live frames hands XDP frames to the interface's ndo_xdp_xmit
 * instead: one run costs some 14 us and a frame 250 ns, where a kick costs 1 us and a frame 900 ns (veth, 64 bytes).
 * So short bursts still go by the socket. The program (bpf/xds_send.bpf.c) finds a burst in mapped memory.
 *
 * With it, what is committed is held: its descriptors are written behind the TX ring's producer index, which is not
 * moved. Flush copies the bytes of the first ones into the mapped memory and runs the program; they are free again
 * when that returns. All that it did not take, whatever the reason (one too long, the interface down, nobody at the
 * far end who takes XDP frames), is put onto the socket's ring and kicked. Both ways end in the same call, so what
 * is sent keeps its order; and as long as something waits in the socket's ring everything goes there.
 *
 * The kernel asks for no capability to run a program that one has a descriptor of: it goes to unprivileged workers.
 */
#include "ports/libbpf_words.h"
#include "ports/xsk_inl.h"
#include "xds_send.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEAST     24u   /* frames of a burst that is cheaper this way */
#define PAUSE     1024u /* bursts that go by the socket after the kernel took none     */
#define LINE      64u   /* bytes: each frame begins a cache line                       */
#define MAP_BYTES ((sizeof(struct xds_send_burst) + 4095) / 4096 * 4096)

static int map_burst(struct xdsi_live *v)
{
    void *at =
        mmap(NULL, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, v->fds[XDSI_LIVE_MAP], 0);

    if (at == MAP_FAILED)
        return -errno;
    v->burst = at;
    v->pause = 0;
    return 0;
}

/* Every entry of every map of devices: this interface, and the program for what leaves by it. */
static int name_interface(struct bpf_object *object, uint32_t ifindex)
{
    const struct bpf_program *fill = bpf_object__find_program_by_name(object, "xds_send_fill");
    const struct bpf_devmap_val value = {.ifindex = ifindex, .bpf_prog.fd = bpf_program__fd(fill)};
    struct bpf_map *map;

    bpf_object__for_each_map(map, object)
    {
        if (bpf_map__type(map) != BPF_MAP_TYPE_DEVMAP)
            continue;
        for (uint32_t key = 0; key < bpf_map__max_entries(map); key++)
            if (bpf_map_update_elem(bpf_map__fd(map), &key, &value, BPF_ANY))
                return -errno;
    }
    return 0;
}

static int keep(struct bpf_object *object, struct xdsi_live *v)
{
    const int from[XDSI_LIVE_FDS] = {
        [XDSI_LIVE_PROGRAM] = bpf_program__fd(bpf_object__find_program_by_name(object, "xds_send")),
        [XDSI_LIVE_MAP] = bpf_object__find_map_fd_by_name(object, ".bss"),
    };
    for (int i = 0; i < XDSI_LIVE_FDS; i++) {
        v->fds[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 0);
        if (v->fds[i] < 0)
            return -errno;
    }
    return map_burst(v);
}

static bool possible(const struct xds_link *l)
{
    const struct xsk *x = (const struct xsk *)l;
    return l->ops == &xdsi_xsk_ops && x->granted == XDS_XSK_COPY && !x->raw && x->tx.frames && !x->tx.meta &&
           !x->tx.live.burst;
}

int xds_xsk_live_open(struct xds_link *l, const char *object_path, uint32_t ifindex)
{
    struct xsk *x = (struct xsk *)l;

    if (!possible(l))
        return XDS_ESTATE;
    xdsi_listen_to_libbpf();
    struct bpf_object *object = bpf_object__open_file(object_path, NULL);
    if (!object)
        return -errno;
    int r = bpf_object__load(object);
    if (r == 0)
        r = name_interface(object, ifindex);
    if (r == 0)
        r = keep(object, &x->tx.live);
    bpf_object__close(object);
    if (r < 0)
        xdsi_live_close(&x->tx.live);
    return r;
}

int xds_xsk_live_part(const struct xds_link *l, int32_t *fds)
{
    const struct xdsi_live *v = &((const struct xsk *)l)->tx.live;

    if (l->closed || !v->burst)
        return XDS_ESTATE;
    for (int i = 0; i < XDSI_LIVE_FDS; i++) {
        fds[i] = fcntl(v->fds[i], F_DUPFD_CLOEXEC, 0);
        if (fds[i] < 0) {
            int code = -errno;
            while (i--)
                close(fds[i]);
            return code;
        }
    }
    return XDSI_LIVE_FDS;
}

int xds_xsk_live_adopt(struct xds_link *l, const int32_t *fds)
{
    struct xdsi_live *v = &((struct xsk *)l)->tx.live;

    if (!possible(l)) {
        for (int i = 0; i < XDSI_LIVE_FDS; i++)
            close(fds[i]);
        return XDS_ESTATE;
    }
    memcpy(v->fds, fds, sizeof(v->fds));
    int r = map_burst(v);
    if (r < 0)
        xdsi_live_close(v);
    return r;
}

void xdsi_live_close(struct xdsi_live *v)
{
    if (v->burst)
        munmap(v->burst, MAP_BYTES);
    v->burst = NULL;
    for (int i = 0; i < XDSI_LIVE_FDS; i++) {
        if (v->fds[i] >= 0)
            close(v->fds[i]);
        v->fds[i] = -1;
    }
}

/* Copy the first of `n` held frames, from descriptor `at` on, into the mapped memory: as many as are short enough
 * and fit. */
static uint32_t gather(const struct sender *t, uint32_t at, uint32_t n)
{
    struct xds_send_burst *burst = t->live.burst;
    uint32_t used = 0, i = 0;

    for (; i < n && i < XDS_SEND_FRAMES; i++) {
        const struct xdp_desc *d = &((const struct xdp_desc *)t->ring.ring)[(at + i) & t->ring.mask];
        if (d->options || d->len < XDS_SEND_LEAST || d->len > XDS_SEND_LONGEST ||
            used + d->len > XDS_SEND_BYTES)
            break;
        memcpy(burst->bytes + used, t->area + xdsi_offset(d->addr), d->len);
        burst->slot[i] = (struct xds_send_slot){.at = used, .len = d->len};
        used += (d->len + LINE - 1) / LINE * LINE;
    }
    burst->count = i;
    burst->taken = 0;
    return i;
}

/* One run of the program. Returns how many frames left, of `n`. */
static uint32_t run(struct xsk *x, uint32_t n)
{
    struct xdsi_live *v = &x->tx.live;
    const uint8_t frame[XDS_SEND_LEAST] = {0};
    union bpf_attr attr;

    memset(&attr, 0, sizeof(attr));
    attr.test.prog_fd = (uint32_t)v->fds[XDSI_LIVE_PROGRAM];
    attr.test.data_in = (uintptr_t)frame;
    attr.test.data_size_in = sizeof(frame);
    attr.test.repeat = 1;
    attr.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    attr.test.batch_size = 1;
    x->link.stats.tx_live_runs++;
    (void)syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr)); /* what failed is not taken */
    const uint32_t taken = __atomic_load_n(&v->burst->taken, __ATOMIC_RELAXED);
    return taken < n ? taken : n;
}

/* Held frames that left, from descriptor `at` on, are free again. */
static void left(struct xsk *x, uint32_t at, uint32_t n)
{
    struct sender *t = &x->tx;

    for (uint32_t i = 0; i < n; i++)
        xdsi_xsk_back(x, xsk_ring_prod__tx_desc(&t->ring, at + i)->addr);
    t->descs -= n;
    t->flying -= n;
    x->link.stats.tx_completed += n;
    x->link.stats.tx_live += n;
}

/* Held frames are the socket's: what has left before them is taken out of their row. */
static void submit(struct sender *t, uint32_t gone)
{
    const uint32_t begin = *t->ring.producer, rest = t->ring.cached_prod - begin - gone;

    for (uint32_t i = 0; gone && i < rest; i++)
        *xsk_ring_prod__tx_desc(&t->ring, begin + i) = *xsk_ring_prod__tx_desc(&t->ring, begin + gone + i);
    t->ring.cached_prod = begin + rest;
    if (rest)
        xsk_ring_prod__submit(&t->ring, rest);
}

void xdsi_live_submit(struct xsk *x)
{
    submit(&x->tx, 0);
}

void xdsi_live_send(struct xsk *x)
{
    struct sender *t = &x->tx;
    const uint32_t begin = *t->ring.producer;
    uint32_t held = t->ring.cached_prod - begin, gone = 0;

    if (held < LEAST || begin != __atomic_load_n(t->ring.consumer, __ATOMIC_ACQUIRE)) {
        submit(t, 0);
        return;
    }
    if (t->live.pause) {
        t->live.pause--;
        submit(t, 0);
        return;
    }
    while (held - gone >= LEAST) {
        const uint32_t n = gather(t, begin + gone, held - gone);
        if (n < LEAST)
            break;
        const uint32_t taken = run(x, n);
        left(x, begin + gone, taken);
        gone += taken;
        if (taken < n) {
            x->link.stats.tx_live_refused += n - taken;
            t->live.pause = taken ? 0 : PAUSE;
            break;
        }
    }
    submit(t, gone);
}
