/* What `xdpstack trace` counts, compiled by bcc for the running kernel.
 *
 * Tracepoints only: their fields are read as this kernel describes them in tracefs, so that the headers of
 * another kernel serve. The one field that no tracepoint has, a NAPI instance's id, is read at an offset that
 * comes from this kernel's BTF (NAPI_ID_OFFSET, -1 where there is none). Sums are atomic adds: a probe may run
 * on every CPU at once. */

struct verdict {
    u32 ifindex;
    u32 program;
    u32 act;  /* enum xdp_action */
    s32 error; /* 0: it went */
    u32 map;
    u32 kind; /* 0 redirect, 1 exception */
};
BPF_HASH(verdicts, struct verdict, u64, 4096);

static inline void count_verdict(u32 ifindex, u32 program, u32 act, s32 error, u32 map, u32 kind)
{
    struct verdict key = {ifindex, program, act, error, map, kind};
    verdicts.atomic_increment(key);
}

TRACEPOINT_PROBE(xdp, xdp_redirect)
{
    count_verdict(args->ifindex, args->prog_id, args->act, args->err, args->map_id, 0);
    return 0;
}

TRACEPOINT_PROBE(xdp, xdp_redirect_err)
{
    count_verdict(args->ifindex, args->prog_id, args->act, args->err, args->map_id, 0);
    return 0;
}

TRACEPOINT_PROBE(xdp, xdp_exception)
{
    count_verdict(args->ifindex, args->prog_id, args->act, 0, 0, 1);
    return 0;
}

/* Frames that XDP sends in bulk: by XDP_TX (from is 0) or by a redirect to a device. */
struct path {
    u32 ifindex;
    u32 from;
    s32 error;
};
struct bulk {
    u64 sent;
    u64 dropped;
};
BPF_HASH(sends, struct path, struct bulk, 1024);

static inline void count_send(u32 ifindex, u32 from, s32 error, s32 sent, s32 dropped)
{
    struct path key = {ifindex, from, error};
    struct bulk zero = {}, *bulk = sends.lookup_or_try_init(&key, &zero);
    if (bulk) {
        lock_xadd(&bulk->sent, sent > 0 ? sent : 0);
        lock_xadd(&bulk->dropped, dropped > 0 ? dropped : 0);
    }
}

TRACEPOINT_PROBE(xdp, xdp_bulk_tx)
{
    count_send(args->ifindex, 0, args->err, args->sent, args->drops);
    return 0;
}

TRACEPOINT_PROBE(xdp, xdp_devmap_xmit)
{
    count_send(args->to_ifindex, args->from_ifindex, args->err, args->sent, args->drops);
    return 0;
}

struct instance {
    char device[16];
    u32 napi;
    u32 pad;
};
struct polls {
    u64 polls;
    u64 packets;
    u64 full;  /* the whole budget was used: there is more than a poll takes */
    u64 empty; /* nothing was there */
};
BPF_HASH(napis, struct instance, struct polls, 4096);

TRACEPOINT_PROBE(napi, napi_poll)
{
    struct instance key = {};
    TP_DATA_LOC_READ_STR(&key.device, dev_name, sizeof(key.device));
#if NAPI_ID_OFFSET >= 0
    bpf_probe_read_kernel(&key.napi, sizeof(key.napi), (char *)args->napi + NAPI_ID_OFFSET);
#endif
    struct polls zero = {}, *sum = napis.lookup_or_try_init(&key, &zero);
    if (sum) {
        lock_xadd(&sum->polls, 1);
        lock_xadd(&sum->packets, args->work);
        if (args->work == 0)
            lock_xadd(&sum->empty, 1);
        else if (args->work >= args->budget)
            lock_xadd(&sum->full, 1);
    }
    return 0;
}

/* Softirqs do not nest on a CPU, so one start a CPU is enough. */
struct vector {
    u32 cpu;
    u32 number;
};
struct spent {
    u64 runs;
    u64 ns;
    u64 longest_ns;
};
BPF_PERCPU_ARRAY(started, u64, 1);
BPF_HASH(softirqs, struct vector, struct spent, 8192);

TRACEPOINT_PROBE(irq, softirq_entry)
{
    int first = 0;
    u64 *start = started.lookup(&first);
    if (start)
        *start = bpf_ktime_get_ns();
    return 0;
}

TRACEPOINT_PROBE(irq, softirq_exit)
{
    int first = 0;
    u64 *start = started.lookup(&first);
    if (!start || !*start) /* it began before we did */
        return 0;
    u64 ns = bpf_ktime_get_ns() - *start;
    struct vector key = {bpf_get_smp_processor_id(), args->vec};
    struct spent zero = {}, *sum = softirqs.lookup_or_try_init(&key, &zero);
    *start = 0;
    if (sum) { /* one CPU's own: nobody else writes it */
        sum->runs++;
        sum->ns += ns;
        if (ns > sum->longest_ns)
            sum->longest_ns = ns;
    }
    return 0;
}

/* An AF_XDP socket is kicked by a sendto or recvfrom without any data; user space asks whose socket it is. */
struct call {
    u32 process;
    s32 fd;
    u32 sends;
    s32 error;
};
struct pending {
    s32 fd;
    u32 sends;
};
BPF_HASH(kicks, struct call, u64, 4096);
BPF_HASH(inside, u64, struct pending, 4096);

static inline int kick_begins(s32 fd, u32 sends, const void *data, u64 len)
{
    if (!data && len == 0) {
        u64 thread = bpf_get_current_pid_tgid();
        struct pending now = {fd, sends};
        inside.update(&thread, &now);
    }
    return 0;
}

static inline int kick_ends(long result)
{
    u64 thread = bpf_get_current_pid_tgid();
    struct pending *began = inside.lookup(&thread);
    if (began) {
        struct call key = {thread >> 32, began->fd, began->sends, result < 0 ? (s32)result : 0};
        inside.delete(&thread);
        kicks.atomic_increment(key);
    }
    return 0;
}

TRACEPOINT_PROBE(syscalls, sys_enter_sendto)
{
    return kick_begins(args->fd, 1, args->buff, args->len);
}

TRACEPOINT_PROBE(syscalls, sys_exit_sendto)
{
    return kick_ends(args->ret);
}

TRACEPOINT_PROBE(syscalls, sys_enter_recvfrom)
{
    return kick_begins(args->fd, 0, args->ubuf, args->size);
}

TRACEPOINT_PROBE(syscalls, sys_exit_recvfrom)
{
    return kick_ends(args->ret);
}

#ifdef SK_DATA_READY /* Linux 6.3 */
#define AF_XDP_FAMILY 44
BPF_HASH(wakeups, u64, u64, 1024);

TRACEPOINT_PROBE(sock, sk_data_ready)
{
    if (args->family == AF_XDP_FAMILY) {
        u64 socket = (u64)args->skaddr;
        wakeups.atomic_increment(socket);
    }
    return 0;
}
#endif
