/* filter.h: load, attach, pin and feed the XDP program (bpf/xds_rx.bpf.c). Control plane: these
 * calls allocate and sleep; none belongs into a turn.
 *
 * A filter that is attached and not pinned is detached by the kernel when its process ends, however
 * it ends. A pinned one stays until xds_filter_unpin(). All return 0 or a count, or -errno; what
 * libbpf had to say is then in xds_filter_message().
 */
#ifndef XDS_FILTER_H
#define XDS_FILTER_H

#include <stddef.h>
#include <stdint.h>
#include "xds_shared.h"

#define XDS_FILTER_FDS 7   /* descriptors of a filter: link, program, five maps */
#define XDS_FILTER_DIR 192 /* bytes of a pin directory's name, the last one 0   */

struct xds_filter;

enum xds_attach_mode {
    XDS_ATTACH_NONE = 0,
    XDS_ATTACH_NATIVE = 1,
    XDS_ATTACH_GENERIC = 2,
    XDS_ATTACH_OFFLOAD = 3, /* only ever somebody else's */
    XDS_ATTACH_AUTO = 4,    /* asked for: native, else generic */
};

enum xds_filter_counter {
    XDS_COUNT_RULES = 0,     /* by rule id, XDS_RULE_IDS of them                       */
    XDS_COUNT_REASONS = 1,   /* by enum xds_reason, XDS_REASONS of them                */
    XDS_COUNT_NO_SOCKET = 2, /* by group * XDS_QUEUES_MAX + queue, XDS_SOCKETS_MAX     */
};

#define XDS_ATTACHED_MAX 3  /* native, generic, offload */
#define XDS_CHAIN_MAX    10 /* programs of a dispatcher */

/* How a filter comes onto the hook. */
enum xds_filter_kind {
    XDS_FILTER_OWN = 0,        /* by a link of its own                                              */
    XDS_FILTER_SHARED = 1,     /* with others in libxdp's dispatcher: xds_filter_join(); no stamps  */
    XDS_FILTER_SHARED_DRY = 2, /* the same program on no interface, for xds_filter_test()           */
    XDS_FILTER_GENERIC = 3,    /* as OWN, for generic mode alone: the kernel makes frames whole for it,
                                * and a small one needs no page of a pool to be shown to it         */
};

/* A program of libxdp's dispatcher, in the order in which they run. */
struct xds_chained {
    uint32_t prog_id;
    uint32_t priority; /* lower ones run first                                               */
    uint32_t goes_on;  /* bit a: after enum xdp_action a the next program runs, else it ends */
    uint32_t ours;     /* 1: by its name, a filter of ours                                   */
    char name[16];
};

/* A program on an interface's XDP hook, whoever attached it. */
struct xds_attached {
    uint32_t prog_id;   /* 0: nothing                                  */
    uint32_t link_id;   /* 0: attached over netlink, not by a BPF link */
    uint32_t mode;      /* enum xds_attach_mode                        */
    uint32_t uid;       /* of who loaded it                            */
    uint64_t loaded_ns; /* CLOCK_BOOTTIME; 0: not known                */
    char name[16];
};

struct xds_filter_info {
    uint32_t prog_id, link_id; /* link_id 0: not attached                */
    uint32_t ifindex;          /* 0: not attached, or its device is gone */
    uint32_t verified;         /* instructions the verifier walked       */
    uint32_t jited_len;        /* bytes of machine code                  */
    uint32_t device_bound;     /* 1: asks the driver                      */
    uint32_t stamp;            /* 1: writes metadata                     */
    int32_t ask;               /* enum xds_meta_flag, or-ed: what it asks the driver for. -1: not told, as to
                                * a process without CAP_SYS_ADMIN about a filter that another one loaded */
    uint32_t shared;           /* 1: for libxdp's dispatcher           */
};

/* object: path of xds_rx.bpf.o. kind: enum xds_filter_kind; a shared one is tried in the place of a function of
 * a dispatcher that is on no interface. bound: 0, or, of kind OWN, the interface whose driver is asked for `ask`
 * (enum xds_meta_flag, or-ed). stamp: 0 writes no metadata. row: bytes of a
 * frame in each chunk of the sockets that it redirects to, where those lie in a row (XDS_XSK_IN_A_ROW); else 0, and of
 * kind SHARED always. *out: given, until xds_filter_close().
 * -ENOENT no object, -EPERM capabilities, -EOPNOTSUPP no program can be bound to `bound`; of kind SHARED any
 * error is the kernel's refusal (-ENOENT also: libxdp's xdp-dispatcher.o is not installed). */
int xds_filter_load(const char *object, int kind, uint32_t bound, uint32_t ask, int stamp, uint32_t row,
                    struct xds_filter **out);
/* Take up a filter that xds_filter_pin() left in dir. -ENOENT there is none. */
int xds_filter_reopen(const char *dir, struct xds_filter **out);
/* Free it. An unpinned link is detached. */
void xds_filter_close(struct xds_filter *f);

/* mode: AUTO, NATIVE or GENERIC. Returns the mode granted (enum xds_attach_mode).
 * -EBUSY another program is attached (see xds_attached_query), -ENODEV no such interface. */
int xds_filter_attach(struct xds_filter *f, uint32_t ifindex, int mode);
/* A filter of kind SHARED: into the dispatcher that is on the interface, or into a new one. priority: where in
 * the order. Returns the mode granted. libxdp pins it: it stays, however this process ends.
 * -EBUSY what is attached is no dispatcher, -E2BIG its places are taken, -EOPNOTSUPP refused. Needs a bpffs. */
int xds_filter_join(struct xds_filter *f, const char *object, uint32_t ifindex, int mode, uint32_t priority);
/* Detach, pinned or not; out of a dispatcher, whose other programs stay. Calm when it is not attached. */
int xds_filter_detach(struct xds_filter *f);
/* All or nothing; makes dir where it is not there. */
int xds_filter_pin(struct xds_filter *f, const char *dir);
int xds_filter_unpin(const char *dir); /* removes our pins and dir        */
int xds_filter_info(struct xds_filter *f, struct xds_filter_info *out);

/* From process to process. Descriptors stay the filter's; -1: none. Returns how many. */
int xds_filter_fds(const struct xds_filter *f, int32_t *out);
/* A filter over such descriptors, given. dir: of its pins, or "". */
int xds_filter_adopt(const int32_t *fds, const char *dir, struct xds_filter **out);

/* Put new tables in force by one write; returns when no packet uses the old ones any more. */
int xds_filter_publish(struct xds_filter *f, const struct xds_tables *tables);
/* Copy the tables in force. -ENOENT none were published. */
int xds_filter_current(struct xds_filter *f, struct xds_tables *out);
/* A number that changes with every publish: the id of the inner map. -ENOENT none. */
int xds_filter_version(struct xds_filter *f, uint32_t *out);
/* Sum over CPUs into out[0 .. cap). Returns how many. which: enum xds_filter_counter. */
int xds_filter_counters(struct xds_filter *f, int which, struct xds_count *out, unsigned cap);
int xds_filter_clear_rule(struct xds_filter *f, uint32_t id); /* zero the counters of an id  */
/* fd: an AF_XDP socket bound to this interface and queue; -1 removes the entry. */
int xds_filter_set_socket(struct xds_filter *f, uint32_t group, uint32_t queue, int fd);
/* BPF_PROG_TEST_RUN. *verdict: enum xdp_action of the last run (a redirect without a socket shows as
 * pass: read the counters); *ns: mean time of a run. len >= 14. */
int xds_filter_test(struct xds_filter *f, const uint8_t *frame, uint32_t len, uint32_t repeat,
                    uint32_t *verdict, uint32_t *ns);

/* Every program on the hook. Returns how many, -errno. query: the first of them, or prog_id 0. */
int xds_attached_list(uint32_t ifindex, struct xds_attached *out, unsigned cap);
int xds_attached_query(uint32_t ifindex, struct xds_attached *out);
int xds_attached_remove(uint32_t ifindex); /* whatever is there, whoever attached it */
/* The programs of the dispatcher on an interface, in their order. Returns how many; 0: there is none. */
int xds_chain_list(uint32_t ifindex, struct xds_chained *out, unsigned cap);
/* Take filters of ours out of the dispatcher, by their name. Returns how many. */
int xds_chain_evict(uint32_t ifindex);
/* Take the whole dispatcher off, with libxdp's pins. */
int xds_chain_remove(uint32_t ifindex);
int xds_bpffs_prepare(const char *path); /* 1: mounted now, 0: was a bpffs already */
int xds_bpffs_forget(const char *path);  /* unmount it again, where nothing is in use */
int xds_netns_cookie(uint64_t *out);
const char *xds_filter_message(void); /* this thread's last words of libbpf, "" when it was silent */

#endif
