/* xsk.h: one AF_XDP socket for the peers, the plain way that libxdp's examples show.
 *
 * Copy mode on veth is what the benches compare, so nothing here is tuned beyond what every example
 * does; frames are 2 KiB, rings 2,048 (settable), need_wakeup on. The XDP program is six
 * instructions: redirect into the map by receive queue, else pass to the kernel.
 */
#ifndef BENCH_XSK_H
#define BENCH_XSK_H

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xdp/xsk.h>

#include "bench.h"

#define BENCH_FRAME 2048

struct bench_xsk {
    struct xsk_ring_cons rx, comp;
    struct xsk_ring_prod tx, fill;
    struct xsk_umem *umem;
    struct xsk_socket *socket;
    uint8_t *area;
    uint32_t frames, ring;
    int fd, map_fd, prog_fd, link_fd, ifindex;
};

/* int prog(ctx) { return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS); } */
static inline void bench_xsk_attach(struct bench_xsk *x, uint32_t queue, bool generic)
{
    x->map_fd = bpf_map_create(BPF_MAP_TYPE_XSKMAP, "bench_xsks", 4, 4, 64, NULL);
    if (x->map_fd < 0)
        bench_die("cannot make an XSKMAP: %s", strerror(errno));
    const struct bpf_insn code[] = {
        {.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = 2, .src_reg = 1, .off = 16},
        {.code = BPF_LD | BPF_IMM | BPF_DW, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = x->map_fd},
        {0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = 2 /* XDP_PASS */},
        {.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
        {.code = BPF_JMP | BPF_EXIT},
    };
    x->prog_fd = bpf_prog_load(BPF_PROG_TYPE_XDP, "bench_xsk", "GPL", code, sizeof code / sizeof *code, NULL);
    if (x->prog_fd < 0)
        bench_die("cannot load the XDP program: %s", strerror(errno));
    LIBBPF_OPTS(bpf_link_create_opts, options, .flags = generic ? XDP_FLAGS_SKB_MODE : XDP_FLAGS_DRV_MODE);
    x->link_fd = bpf_link_create(x->prog_fd, x->ifindex, BPF_XDP, &options);
    if (x->link_fd < 0)
        bench_die("cannot attach the XDP program: %s", strerror(errno));
    if (bpf_map_update_elem(x->map_fd, &queue, &x->fd, BPF_ANY))
        bench_die("cannot enter the socket in the map: %s", strerror(errno));
}

/* receive: with a program, the first --ring frames in the fill ring; send: frames behind those are free. */
static inline void bench_xsk_open(struct bench_xsk *x, const struct bench_options *o, bool receive,
                                  uint32_t queue, bool send)
{
    const char *iface = bench_text(o, "iface", NULL);
    if (!iface || !(x->ifindex = (int)if_nametoindex(iface)))
        bench_die("--iface: no such interface");
    x->ring = (uint32_t)bench_number(o, "ring", 2048);
    x->frames = (uint32_t)bench_number(o, "frames", 2 * x->ring);
    const struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_MEMLOCK, &unlimited); /* may be refused; then the next call says so */
    const size_t size = (size_t)x->frames * BENCH_FRAME;
    x->area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (x->area == MAP_FAILED)
        bench_die("cannot map %zu bytes", size);
    const struct xsk_umem_config umem = {
        .fill_size = x->ring, .comp_size = x->ring, .frame_size = BENCH_FRAME, .frame_headroom = 0};
    int rc = xsk_umem__create(&x->umem, x->area, size, &x->fill, &x->comp, &umem);
    if (rc)
        bench_die("cannot register the UMEM: %s", strerror(-rc));
    struct xsk_socket_config config = {
        .rx_size = x->ring, .tx_size = x->ring, .libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD};
    config.bind_flags = XDP_COPY | (bench_number(o, "wakeup", 1) != 0 ? XDP_USE_NEED_WAKEUP : 0);
    rc = xsk_socket__create(&x->socket, iface, queue, x->umem, receive ? &x->rx : NULL, send ? &x->tx : NULL,
                            &config);
    if (rc)
        bench_die("cannot open an AF_XDP socket on %s queue %u: %s", iface, queue, strerror(-rc));
    x->fd = xsk_socket__fd(x->socket);
    if (!receive)
        return;
    uint32_t index;
    const uint32_t filled = x->frames < x->ring ? x->frames : x->ring;
    if (xsk_ring_prod__reserve(&x->fill, filled, &index) != filled)
        bench_die("cannot fill the fill ring");
    for (uint32_t i = 0; i < filled; i++)
        *xsk_ring_prod__fill_addr(&x->fill, index + i) = (uint64_t)i * BENCH_FRAME;
    xsk_ring_prod__submit(&x->fill, filled);
    bench_xsk_attach(x, queue, !strcmp(bench_text(o, "xdp", "native"), "generic"));
}

static inline void bench_xsk_print_statistics(const struct bench_xsk *x)
{
    struct xdp_statistics s = {0};
    socklen_t len = sizeof s;
    getsockopt(x->fd, SOL_XDP, XDP_STATISTICS, &s, &len);
    printf("\"rx_dropped\": %llu, \"rx_ring_full\": %llu, \"rx_fill_empty\": %llu", s.rx_dropped,
           s.rx_ring_full, s.rx_fill_ring_empty_descs);
}

static inline void bench_xsk_close(struct bench_xsk *x)
{
    xsk_socket__delete(x->socket);
    xsk_umem__delete(x->umem);
    munmap(x->area, (size_t)x->frames * BENCH_FRAME);
}

#endif
