/* filter.c: the XDP program over libbpf: load, attach by BPF link, pin, publish tables, count.
 *
 * libbpf does not print: its first warning since the last call is kept for the error message.
 * Maps and their names are those of bpf/xds_rx.bpf.c; the pins carry the same names.
 */
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>
#include <linux/magic.h>
#include "ports/filter_int.h"
#include "ports/libbpf_words.h"
#include "xds/filter.h"

#ifndef BPF_F_XDP_DEV_BOUND_ONLY /* Linux 6.3, younger than Debian 12's headers */
#define BPF_F_XDP_DEV_BOUND_ONLY (1U << 6)
#endif
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

/* Attaching resets some devices, and a link that is going away still holds the hook. */
#define BUSY_TRIES    50
#define BUSY_PAUSE_NS 20000000

static const char *const map_names[XDSI_MAPS] = {"xds_tables", "xds_xsks", "xds_rules", "xds_reasons",
                                                 "xds_nosock"};
static const char *const pin_link = "xds_link", *const pin_prog = "xds_prog";
static const char *const pin_device = "xds_device"; /* instead of a link: in a dispatcher            */
static const char *const pin_owner_new = "owner-new";
static const char *const pin_owner = "owner"; /* a symbolic link: the process that it ends with */
/* The tables in force, under a name: by its id alone a map opens only to CAP_SYS_ADMIN. */
static const char *const pin_now = "xds_now", *const pin_next = "xds_next";

/* ---- libbpf's words ------------------------------------------------------------------------ */

static __thread char message[512];

int xdsi_keep_words(const char *format, va_list args)
{
    static const char *const prefixes[] = {"libbpf: ", "libxdp: "};
    if (message[0])
        return 0;
    vsnprintf(message, sizeof(message), format, args);
    size_t len = strlen(message);
    while (len && (message[len - 1] == '\n' || message[len - 1] == '.'))
        message[--len] = 0;
    for (int i = 0; i < 2; i++)
        if (!strncmp(message, prefixes[i], strlen(prefixes[i])))
            memmove(message, message + strlen(prefixes[i]), len + 1 - strlen(prefixes[i]));
    return 0;
}

static int keep_message(enum libbpf_print_level level, const char *format, va_list args)
{
    return level == LIBBPF_WARN ? xdsi_keep_words(format, args) : 0;
}

void xdsi_listen_to_libbpf(void)
{
    message[0] = 0;
    libbpf_set_print(keep_message);
}

const char *xds_filter_message(void)
{
    return message;
}

/* ---- Load ---------------------------------------------------------------------------------- */

static struct xds_filter *new_filter(void)
{
    struct xds_filter *f = calloc(1, sizeof(*f));
    if (!f)
        return NULL;
    f->prog_fd = f->link_fd = f->device_fd = -1;
    for (int i = 0; i < XDSI_MAPS; i++)
        f->map_fd[i] = -1;
    return f;
}

/* BPF memory has not counted against it since Linux 5.11, but a UMEM still does. */
static void raise_memlock(void)
{
    struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY}, have;
    if (!setrlimit(RLIMIT_MEMLOCK, &all) || getrlimit(RLIMIT_MEMLOCK, &have))
        return;
    have.rlim_cur = have.rlim_max;
    setrlimit(RLIMIT_MEMLOCK, &have);
}

/* The kernel keeps a pointer to a device-bound program as it was loaded. Where the verifier's rewriting made
 * it grow past its pages it was moved, the pointer is stale, and the end of the device ends the host (seen on
 * 6.18 and 7.3). A program with room to grow stays: xds_rx_meta is padded, and this is the proof. Sizes are
 * the kernel's: instructions of 8 bytes behind a head of 64 to 128, in whole pages. */
static int may_have_moved(const struct bpf_program *bound)
{
    struct bpf_prog_info info = {0};
    uint32_t len = sizeof info;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);

    if (bpf_obj_get_info_by_fd(bpf_program__fd(bound), &info, &len))
        return 1;
    const size_t had = (64 + 8 * bpf_program__insn_cnt(bound) + page - 1) / page;
    const size_t needs = (128 + info.xlated_prog_len + page - 1) / page;
    return info.xlated_prog_len == 0 || needs > had;
}

static int choose_program(struct xds_filter *f, uint32_t bound, uint32_t ask, int stamp, uint32_t row,
                          uint32_t frags)
{
    struct bpf_program *plain = bpf_object__find_program_by_name(f->object, "xds_rx");
    struct bpf_program *meta = bpf_object__find_program_by_name(f->object, "xds_rx_meta");
    struct bpf_map *map = bpf_object__find_map_by_name(f->object, ".rodata.settings");
    struct bpf_program *chosen = bound ? meta : plain;
    struct xds_settings settings = {.stamp = stamp != 0, .ask = ask, .row = row};
    if (!plain || !meta || !map || bpf_map__set_initial_value(map, &settings, sizeof(settings)))
        return -EINVAL;
    bpf_program__set_autoload(plain, chosen == plain);
    bpf_program__set_autoload(meta, chosen == meta);
    if (bound)
        bpf_program__set_ifindex(chosen, bound);
    bpf_program__set_flags(chosen, frags | (bound ? BPF_F_XDP_DEV_BOUND_ONLY : 0));
    int code = bpf_object__load(f->object);
    if (!code && bound && may_have_moved(chosen))
        code = -EUCLEAN;
    if (code)
        return code;
    f->prog_fd = bpf_program__fd(chosen);
    return xdsi_take_maps(f, f->object);
}

int xdsi_take_maps(struct xds_filter *f, struct bpf_object *object)
{
    for (int i = 0; i < XDSI_MAPS; i++) {
        f->map_fd[i] = bpf_object__find_map_fd_by_name(object, map_names[i]);
        if (f->map_fd[i] < 0)
            return -EINVAL;
    }
    return 0;
}

int xds_filter_load(const char *object, int kind, uint32_t bound, uint32_t ask, int stamp, uint32_t row,
                    struct xds_filter **out)
{
    xdsi_listen_to_libbpf();
    raise_memlock();
    struct xds_filter *f = new_filter();
    if (!f)
        return -ENOMEM;
    f->stamp = stamp != 0;
    f->bound = bound != 0;
    f->ask = ask;
    f->shared = kind == XDS_FILTER_SHARED;
    f->object = bpf_object__open_file(object, NULL);
    int code = f->object ? 0 : -errno;
    if (!code && (kind == XDS_FILTER_OWN || kind == XDS_FILTER_GENERIC))
        code = choose_program(f, bound, ask, stamp, row, kind == XDS_FILTER_OWN ? BPF_F_XDP_HAS_FRAGS : 0);
    else if (!code)
        code = xdsi_load_shared(f, kind == XDS_FILTER_SHARED_DRY, stamp);
    if (code) {
        xds_filter_close(f);
        return code;
    }
    *out = f;
    return 0;
}

void xds_filter_close(struct xds_filter *f)
{
    if (!f)
        return;
    if (f->link_fd >= 0)
        close(f->link_fd);
    if (f->device_fd >= 0)
        close(f->device_fd);
    if (f->object) {
        bpf_object__close(f->object); /* closes the program and the maps */
    } else {
        if (f->prog_fd >= 0)
            close(f->prog_fd);
        for (int i = 0; i < XDSI_MAPS; i++)
            if (f->map_fd[i] >= 0)
                close(f->map_fd[i]);
    }
    free(f);
}

/* ---- Attach -------------------------------------------------------------------------------- */

static int create_link(const struct xds_filter *f, uint32_t ifindex, uint32_t flags)
{
    LIBBPF_OPTS(bpf_link_create_opts, opts, .flags = flags);
    struct timespec pause = {0, BUSY_PAUSE_NS};
    for (int i = 0;; i++) {
        int fd = bpf_link_create(f->prog_fd, (int)ifindex, BPF_XDP, &opts);
        if (fd != -EBUSY || i == BUSY_TRIES)
            return fd;
        struct xds_attached there;
        if (!xds_attached_query(ifindex, &there) && there.prog_id)
            return fd;
        nanosleep(&pause, NULL);
    }
}

int xds_filter_attach(struct xds_filter *f, uint32_t ifindex, int mode)
{
    xdsi_listen_to_libbpf();
    if (f->link_fd >= 0)
        return -EALREADY;
    int fd = -EINVAL;
    if (mode == XDS_ATTACH_NATIVE || mode == XDS_ATTACH_AUTO)
        fd = create_link(f, ifindex, XDP_FLAGS_DRV_MODE);
    if (mode == XDS_ATTACH_GENERIC ||
        (mode == XDS_ATTACH_AUTO && fd < 0 && fd != -EBUSY && fd != -EEXIST && fd != -ENODEV && fd != -EPERM))
        fd = create_link(f, ifindex, XDP_FLAGS_SKB_MODE);
    if (fd < 0)
        return fd == -EEXIST ? -EBUSY : fd;
    f->link_fd = fd;
    struct xds_attached there;
    int code = xds_attached_query(ifindex, &there);
    return code ? code : (int)there.mode;
}

int xds_filter_detach(struct xds_filter *f)
{
    xdsi_listen_to_libbpf();
    if (f->shared)
        return xdsi_leave(f);
    if (f->link_fd < 0)
        return 0;
    int code = bpf_link_detach(f->link_fd); /* the pin holds the link as well: closing is not enough */
    close(f->link_fd);
    f->link_fd = -1;
    return code;
}

/* ---- Pins ---------------------------------------------------------------------------------- */

static const char *pin_path(char *path, size_t room, const char *dir, const char *name)
{
    return snprintf(path, room, "%s/%s", dir, name) < (int)room ? path : "";
}

int xds_bpffs_prepare(const char *path)
{
    struct statfs where;
    if (!statfs(path, &where) && where.f_type == BPF_FS_MAGIC)
        return 0;
    if (mkdir(path, 0700) && errno != EEXIST)
        return -errno;
    return mount("bpf", path, "bpf", 0, "mode=0700") ? -errno : 1;
}

int xds_bpffs_forget(const char *path)
{
    return umount2(path, MNT_DETACH) ? -errno : 0;
}

int xds_filter_unpin(const char *dir)
{
    const char *const names[] = {pin_link, pin_device, pin_prog, pin_now, pin_next, pin_owner_new};
    char path[256];
    int code = 0;
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (unlink(pin_path(path, sizeof(path), dir, names[i])) && errno != ENOENT)
            code = -errno;
    for (int i = 0; i < XDSI_MAPS; i++)
        if (unlink(pin_path(path, sizeof(path), dir, map_names[i])) && errno != ENOENT)
            code = -errno;
    if (unlink(pin_path(path, sizeof(path), dir, pin_owner)) &&
        errno != ENOENT) /* last: who is killed in between */
        code = -errno;   /* leaves an owner that is dead   */
    if (rmdir(dir) && errno != ENOENT)
        code = -errno;
    return code;
}

static int pin_tables(const struct xds_filter *f, const char *dir)
{
    char path[256];
    uint32_t zero = 0, id = 0;
    if (bpf_map_lookup_elem(f->map_fd[XDSI_MAP_TABLES], &zero, &id))
        return errno == ENOENT ? 0 : -errno; /* none were published */
    int fd = bpf_map_get_fd_by_id(id);       /* CAP_SYS_ADMIN */
    if (fd < 0 && f->dir[0])
        fd = bpf_obj_get(pin_path(path, sizeof(path), f->dir, pin_now)); /* where it was pinned before */
    if (fd < 0)
        return fd;
    int code = bpf_obj_pin(fd, pin_path(path, sizeof(path), dir, pin_now));
    close(fd);
    return code;
}

int xds_filter_pin(struct xds_filter *f, const char *dir)
{
    char path[256];
    xdsi_listen_to_libbpf();
    if ((f->link_fd < 0 && f->device_fd < 0) || strlen(dir) >= sizeof(f->dir))
        return -EINVAL;
    if (mkdir(dir, 0700) && !(f->shared && errno == EEXIST)) /* its owner is there already */
        return -errno;
    int code = 0;
    for (int i = 0; i < XDSI_MAPS && !code; i++)
        code = bpf_obj_pin(f->map_fd[i], pin_path(path, sizeof(path), dir, map_names[i]));
    if (!code)
        code = pin_tables(f, dir);
    if (!code)
        code = bpf_obj_pin(f->prog_fd, pin_path(path, sizeof(path), dir, pin_prog));
    if (!code) /* last: who finds the link finds the rest */
        code = f->link_fd >= 0 ? bpf_obj_pin(f->link_fd, pin_path(path, sizeof(path), dir, pin_link))
                               : bpf_obj_pin(f->device_fd, pin_path(path, sizeof(path), dir, pin_device));
    if (code)
        xds_filter_unpin(dir);
    else
        snprintf(f->dir, sizeof(f->dir), "%s", dir);
    return code;
}

/* Where the pins are those of a filter in a dispatcher. */
static void find_device(struct xds_filter *f, const char *dir)
{
    char path[256];
    f->device_fd = bpf_obj_get(pin_path(path, sizeof(path), dir, pin_device));
    f->shared = f->device_fd >= 0;
    f->stamp = f->shared ? 1 : f->stamp; /* asked for; see xdsi_load_shared() */
}

int xds_filter_reopen(const char *dir, struct xds_filter **out)
{
    char path[256];
    xdsi_listen_to_libbpf();
    struct xds_filter *f = new_filter();
    if (!f)
        return -ENOMEM;
    int code = 0;
    f->link_fd = bpf_obj_get(pin_path(path, sizeof(path), dir, pin_link));
    if (f->link_fd == -ENOENT)
        find_device(f, dir);
    if (f->link_fd >= 0 || f->shared)
        f->prog_fd = bpf_obj_get(pin_path(path, sizeof(path), dir, pin_prog));
    if (f->prog_fd < 0)
        code = -errno;
    for (int i = 0; i < XDSI_MAPS && !code; i++) {
        f->map_fd[i] = bpf_obj_get(pin_path(path, sizeof(path), dir, map_names[i]));
        if (f->map_fd[i] < 0)
            code = -errno;
    }
    if (code) {
        xds_filter_close(f);
        return code;
    }
    snprintf(f->dir, sizeof(f->dir), "%s", dir);
    *out = f;
    return 0;
}

/* ---- From process to process ----------------------------------------------------------------- */

int xds_filter_fds(const struct xds_filter *f, int32_t *out)
{
    out[0] = f->link_fd;
    out[1] = f->prog_fd;
    for (int i = 0; i < XDSI_MAPS; i++)
        out[2 + i] = f->map_fd[i];
    return XDS_FILTER_FDS;
}

int xds_filter_adopt(const int32_t *fds, const char *dir, struct xds_filter **out)
{
    struct xds_filter *f = new_filter();
    if (!f)
        return -ENOMEM;
    f->link_fd = fds[0];
    f->prog_fd = fds[1];
    for (int i = 0; i < XDSI_MAPS; i++)
        f->map_fd[i] = fds[2 + i];
    snprintf(f->dir, sizeof(f->dir), "%s", dir);
    if (dir[0] && f->link_fd < 0)
        find_device(f, dir);
    *out = f;
    return 0;
}

enum { MAPS_SEEN = 16 };

int xdsi_each_map(int prog_fd, xdsi_see_map *see, void *arg)
{
    uint32_t ids[MAPS_SEEN], len = sizeof(struct bpf_prog_info);
    struct bpf_prog_info info = {.nr_map_ids = MAPS_SEEN, .map_ids = (uintptr_t)ids};
    int code = bpf_obj_get_info_by_fd(prog_fd, &info, &len);
    for (uint32_t i = 0; !code && i < info.nr_map_ids && i < MAPS_SEEN; i++) {
        struct bpf_map_info map = {0};
        uint32_t size = sizeof(map);
        int fd = bpf_map_get_fd_by_id(ids[i]);
        if (fd < 0)
            return fd;
        code = bpf_obj_get_info_by_fd(fd, &map, &size);
        if (!code)
            code = see(arg, fd, &map);
        close(fd);
    }
    return code;
}

/* 1: it was the map, and is read. */
static int see_settings(void *settings, int fd, const struct bpf_map_info *map)
{
    uint32_t zero = 0;
    if (strncmp(map->name, ".rodata.setting", sizeof(map->name) - 1) ||
        map->value_size != sizeof(struct xds_settings))
        return 0;
    int code = bpf_map_lookup_elem(fd, &zero, settings);
    return code ? code : 1;
}

/* What was chosen before a program was loaded: the value of its map of that name, whoever loaded it. */
static int read_settings(int prog_fd, struct xds_settings *out)
{
    int code = xdsi_each_map(prog_fd, see_settings, out);
    return code > 0 ? 0 : code ? code : -ENOENT;
}

int xds_filter_info(struct xds_filter *f, struct xds_filter_info *out)
{
    struct xds_settings settings = {.ask = f->ask};
    struct bpf_prog_info prog = {0};
    struct bpf_link_info link = {0};
    uint32_t prog_len = sizeof(prog), link_len = sizeof(link);
    memset(out, 0, sizeof(*out));
    int code = bpf_obj_get_info_by_fd(f->prog_fd, &prog, &prog_len);
    if (code)
        return code;
    out->prog_id = prog.id;
    out->verified = prog.verified_insns;
    out->jited_len = prog.jited_prog_len;
    out->device_bound = !strncmp(prog.name, "xds_rx_meta", 11);
    out->stamp = f->stamp;
    if (out->device_bound)
        out->ask = (f->object || !read_settings(f->prog_fd, &settings)) ? (int32_t)settings.ask : -1;
    out->ifindex = xdsi_device(f);
    out->shared = f->shared;
    if (f->link_fd < 0)
        return 0;
    code = bpf_obj_get_info_by_fd(f->link_fd, &link, &link_len);
    if (code)
        return code;
    out->link_id = link.id;
    out->ifindex = link.xdp.ifindex;
    return 0;
}

/* ---- Tables, sockets, counters ------------------------------------------------------------- */

/* A pinned filter's tables are pinned before they are in force, so that at any moment those in force
 * are under one of the two names. The kernel waits in the swap until no program holds the old ones. */
static int swap_tables(struct xds_filter *f, int fd)
{
    char next[256], now[256];
    uint32_t zero = 0;

    if (!f->dir[0])
        return bpf_map_update_elem(f->map_fd[XDSI_MAP_TABLES], &zero, &fd, BPF_ANY);
    pin_path(next, sizeof(next), f->dir, pin_next);
    pin_path(now, sizeof(now), f->dir, pin_now);
    if (unlink(next) && errno != ENOENT)
        return -errno;
    int code = bpf_obj_pin(fd, next);
    if (code)
        return code;
    code = bpf_map_update_elem(f->map_fd[XDSI_MAP_TABLES], &zero, &fd, BPF_ANY);
    if (code)
        unlink(next);
    else if (rename(next, now))
        code = -errno;
    return code;
}

int xds_filter_publish(struct xds_filter *f, const struct xds_tables *tables)
{
    uint32_t zero = 0;
    xdsi_listen_to_libbpf();
    int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, "xds_table", sizeof(zero), sizeof(*tables), 1, NULL);
    if (fd < 0)
        return fd;
    int code = bpf_map_update_elem(fd, &zero, tables, BPF_ANY);
    if (!code)
        code = swap_tables(f, fd);
    close(fd);
    return code;
}

int xds_filter_version(struct xds_filter *f, uint32_t *out)
{
    uint32_t zero = 0;
    return bpf_map_lookup_elem(f->map_fd[XDSI_MAP_TABLES], &zero, out);
}

/* The map with this id: by the names of a pinned filter's tables, else by the id itself. */
static int open_tables(const struct xds_filter *f, uint32_t id)
{
    const char *const names[] = {pin_now, pin_next};
    char path[256];

    for (unsigned i = 0; f->dir[0] && i < 2; i++) {
        struct bpf_map_info info = {0};
        uint32_t len = sizeof(info);
        int fd = bpf_obj_get(pin_path(path, sizeof(path), f->dir, names[i]));
        if (fd < 0)
            continue;
        if (!bpf_obj_get_info_by_fd(fd, &info, &len) && info.id == id)
            return fd;
        close(fd);
    }
    return bpf_map_get_fd_by_id(id);
}

int xds_filter_current(struct xds_filter *f, struct xds_tables *out)
{
    uint32_t zero = 0, id = 0;
    for (int i = 0;; i++) {
        int code = bpf_map_lookup_elem(f->map_fd[XDSI_MAP_TABLES], &zero, &id);
        if (code)
            return code;
        int fd = open_tables(f, id);
        if ((fd == -ENOENT || fd == -EPERM) && i < BUSY_TRIES)
            continue; /* replaced between the two calls */
        if (fd < 0)
            return fd;
        code = bpf_map_lookup_elem(fd, &zero, out);
        close(fd);
        return code;
    }
}

int xds_filter_set_socket(struct xds_filter *f, uint32_t group, uint32_t queue, int fd)
{
    if (group >= XDS_GROUPS_MAX || queue >= XDS_QUEUES_MAX)
        return -ERANGE;
    uint32_t index = group * XDS_QUEUES_MAX + queue;
    if (fd >= 0)
        return bpf_map_update_elem(f->map_fd[XDSI_MAP_XSKS], &index, &fd, BPF_ANY);
    int code = bpf_map_delete_elem(f->map_fd[XDSI_MAP_XSKS], &index);
    return code == -ENOENT ? 0 : code;
}

static int sum_reasons(struct xds_filter *f, struct xds_count *out, unsigned cap, int cpus)
{
    uint32_t zero = 0;
    struct xds_reason_counts *each = calloc((size_t)cpus, sizeof(*each));
    if (!each)
        return -ENOMEM;
    unsigned n = cap < XDS_REASONS ? cap : XDS_REASONS;
    int code = bpf_map_lookup_elem(f->map_fd[XDSI_MAP_REASONS], &zero, each);
    for (unsigned i = 0; i < n; i++) {
        out[i] = (struct xds_count){0, 0};
        for (int cpu = 0; cpu < cpus && !code; cpu++) {
            out[i].packets += each[cpu].by_reason[i].packets;
            out[i].bytes += each[cpu].by_reason[i].bytes;
        }
    }
    free(each);
    return code ? code : (int)n;
}

int xds_filter_counters(struct xds_filter *f, int which, struct xds_count *out, unsigned cap)
{
    enum { CHUNK = 256 };
    int cpus = libbpf_num_possible_cpus();
    if (cpus < 0)
        return cpus;
    if (which == XDS_COUNT_REASONS)
        return sum_reasons(f, out, cap, cpus);
    unsigned n = which == XDS_COUNT_RULES ? XDS_RULE_IDS : XDS_SOCKETS_MAX;
    int fd = f->map_fd[which == XDS_COUNT_RULES ? XDSI_MAP_RULES : XDSI_MAP_NOSOCK];
    if (cap < n)
        n = cap;
    struct xds_count *each = calloc((size_t)CHUNK * (size_t)cpus, sizeof(*each));
    uint32_t *keys = calloc(CHUNK, sizeof(*keys));
    int code = each && keys ? 0 : -ENOMEM;
    uint32_t next = 0;
    for (unsigned done = 0; done < n && !code;) {
        uint32_t got = CHUNK < n - done ? CHUNK : n - done;
        code = bpf_map_lookup_batch(fd, done ? &next : NULL, &next, keys, each, &got, NULL);
        if (code && code != -ENOENT) /* -ENOENT: that was the last chunk */
            break;
        for (uint32_t i = 0; i < got; i++) {
            struct xds_count *sum = &out[done + i];
            *sum = (struct xds_count){0, 0};
            for (int cpu = 0; cpu < cpus; cpu++) {
                sum->packets += each[i * (uint32_t)cpus + (uint32_t)cpu].packets;
                sum->bytes += each[i * (uint32_t)cpus + (uint32_t)cpu].bytes;
            }
        }
        done += got;
        if (code == -ENOENT)
            code = 0, n = done;
    }
    free(each);
    free(keys);
    return code ? code : (int)n;
}

int xds_filter_clear_rule(struct xds_filter *f, uint32_t id)
{
    int cpus = libbpf_num_possible_cpus();
    if (cpus < 0 || id >= XDS_RULE_IDS)
        return cpus < 0 ? cpus : -ERANGE;
    struct xds_count *zeros = calloc((size_t)cpus, sizeof(*zeros));
    if (!zeros)
        return -ENOMEM;
    int code = bpf_map_update_elem(f->map_fd[XDSI_MAP_RULES], &id, zeros, BPF_ANY);
    free(zeros);
    return code;
}

int xds_filter_test(struct xds_filter *f, const uint8_t *frame, uint32_t len, uint32_t repeat,
                    uint32_t *verdict, uint32_t *ns)
{
    LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = len, .repeat = (int)repeat);
    int code = bpf_prog_test_run_opts(f->prog_fd, &opts);
    *verdict = opts.retval;
    *ns = opts.duration;
    return code;
}

int xds_netns_cookie(uint64_t *out)
{
    socklen_t len = sizeof(*out);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int code = getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, out, &len) ? -errno : 0;
    close(fd);
    return code;
}
