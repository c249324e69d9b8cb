/* dispatcher.c: a filter beside other people's programs, in libxdp's dispatcher.
 *
 * libxdp attaches one program, the dispatcher, that calls up to ten others in the order of their priorities; each
 * takes the place of one of its functions (the kernel calls that freplace). Its protocol: whoever adds or removes
 * a program loads a new dispatcher, links every program into it, pins links and programs under
 * /sys/fs/bpf/xdp/dispatch-IFINDEX-ID and swaps it for the old one. So nothing of it ends with a process.
 *
 * libxdp falls back to a program without a dispatcher where the kernel has no freplace, and loads a program only
 * while it attaches it. Neither suits us: what is refused must leave nothing, and rules must be in force before
 * the first packet. So a filter is loaded twice: first in the place of a function of a dispatcher that is on no
 * interface, which shows what the kernel allows and makes the maps; then by libxdp, over the same maps.
 *
 * The kernel takes an interface out of a DEVMAP when it goes away, or into another namespace: such a map, with
 * the interface in it, stands for the link that a filter of its own has.
 */
#define _GNU_SOURCE /* secure_getenv */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <xdp/libxdp.h>
#include <xdp/prog_dispatcher.h>
#include "ports/filter_int.h"
#include "ports/libbpf_words.h"

#ifndef BPF_F_XDP_HAS_FRAGS
#define BPF_F_XDP_HAS_FRAGS (1U << 5)
#endif

#define OUR_NAME "xds_rx_chain"
#define PINS     "/sys/fs/bpf/xdp" /* libxdp's, where LIBXDP_BPFFS does not say otherwise */

/* ---- The trial ------------------------------------------------------------------------------- */

/* libxdp's dispatcher with one place, loaded and on no interface. Its descriptor, the object's in *out. */
static int load_dispatcher(struct xdp_program **out)
{
    DECLARE_LIBXDP_OPTS(xdp_program_opts, opts, .find_filename = "xdp-dispatcher.o",
                        .prog_name = "xdp_dispatcher");
    struct xdp_dispatcher_config config = {
        .magic = XDP_DISPATCHER_MAGIC,
        .dispatcher_version = XDP_DISPATCHER_VERSION,
        .num_progs_enabled = 1,
        .chain_call_actions = {1U << XDP_PASS | 1U << XDP_DISPATCHER_RETVAL}};
    struct xdp_program *dispatcher = xdp_program__create(&opts);
    if (libxdp_get_error(dispatcher))
        return (int)libxdp_get_error(dispatcher);
    struct bpf_object *object = xdp_program__bpf_obj(dispatcher);
    struct bpf_program *main_program = bpf_object__find_program_by_name(object, "xdp_dispatcher"), *p;
    struct bpf_map *map = bpf_object__next_map(object, NULL);
    int code = main_program && map ? bpf_map__set_initial_value(map, &config, sizeof(config)) : -EINVAL;
    bpf_object__for_each_program(p, object) bpf_program__set_autoload(p, p == main_program);
    if (!code)
        code = bpf_object__load(object);
    if (code) {
        xdp_program__close(dispatcher);
        return code;
    }
    *out = dispatcher;
    return bpf_program__fd(main_program);
}

static int function_of(int prog_fd, const char *name)
{
    struct bpf_prog_info info = {0};
    uint32_t len = sizeof(info);
    int code = bpf_obj_get_info_by_fd(prog_fd, &info, &len);
    struct btf *btf = code ? NULL : btf__load_from_kernel_by_id(info.btf_id);
    if (!btf)
        return code ? code : -errno;
    int id = btf__find_by_name_kind(btf, name, BTF_KIND_FUNC);
    btf__free(btf);
    return id;
}

/* The program that stands for us, alone to be loaded, its settings set. NULL: this object has none. */
static struct bpf_program *choose(struct bpf_object *object, int stamp)
{
    struct xds_settings settings = {.stamp = stamp != 0};
    struct bpf_program *ours = bpf_object__find_program_by_name(object, OUR_NAME), *p;
    struct bpf_map *map = bpf_object__find_map_by_name(object, ".rodata.settings");
    if (!ours || !map || bpf_map__set_initial_value(map, &settings, sizeof(settings)))
        return NULL;
    bpf_object__for_each_program(p, object) bpf_program__set_autoload(p, p == ours);
    return ours;
}

/* Load it in the place of the dispatcher's first function and link it there for a moment. */
static int try_in(struct xds_filter *f, struct bpf_program *ours, int dispatcher)
{
    int code = bpf_program__set_attach_target(ours, dispatcher, "prog0");
    if (code)
        return code;
    bpf_program__set_type(ours, BPF_PROG_TYPE_EXT);
    bpf_program__set_expected_attach_type(ours, 0);
    bpf_program__set_flags(ours, bpf_program__flags(ours) & ~BPF_F_XDP_HAS_FRAGS); /* the dispatcher has it */
    code = bpf_object__load(f->object);
    if (code)
        return code;
    int function = function_of(dispatcher, "prog0");
    if (function < 0)
        return function;
    LIBBPF_OPTS(bpf_link_create_opts, opts, .target_btf_id = (uint32_t)function);
    int link = bpf_link_create(bpf_program__fd(ours), dispatcher, 0, &opts);
    if (link < 0)
        return link;
    close(link);
    return 0;
}

/* libxdp's words go where libbpf's go. */
static int keep_words(enum libxdp_print_level level, const char *format, va_list args)
{
    return level == LIBXDP_WARN ? xdsi_keep_words(format, args) : 0;
}

int xdsi_load_shared(struct xds_filter *f, int dry, int stamp)
{
    struct xdp_program *dispatcher = NULL;
    struct bpf_program *ours = choose(f->object, stamp);
    libxdp_set_print(keep_words);
    if (!ours)
        return -EINVAL;
    int code = dry ? bpf_object__load(f->object) : load_dispatcher(&dispatcher);
    if (code >= 0 && !dry)
        code = try_in(f, ours, code);
    xdp_program__close(dispatcher);
    if (code)
        return code;
    f->prog_fd = bpf_program__fd(ours);
    return xdsi_take_maps(f, f->object);
}

/* ---- What is there ----------------------------------------------------------------------------- */

static struct xdp_multiprog *dispatcher_on(uint32_t ifindex)
{
    libxdp_set_print(keep_words);
    struct xdp_multiprog *all = xdp_multiprog__get_from_ifindex((int)ifindex);
    if (libxdp_get_error(all))
        return NULL;
    if (!xdp_multiprog__is_legacy(all))
        return all;
    xdp_multiprog__close(all);
    return NULL;
}

int xds_chain_list(uint32_t ifindex, struct xds_chained *out, unsigned cap)
{
    xdsi_listen_to_libbpf();
    struct xds_attached there;
    int code = xds_attached_query(ifindex, &there);
    if (code || strcmp(there.name, "xdp_dispatcher")) /* libxdp makes its folder even to look */
        return code;
    struct xdp_multiprog *all = dispatcher_on(ifindex);
    unsigned n = 0;
    for (struct xdp_program *p = NULL; all && n < cap && (p = xdp_multiprog__next_prog(p, all)); n++) {
        out[n] = (struct xds_chained){.prog_id = xdp_program__id(p), .priority = xdp_program__run_prio(p)};
        for (uint32_t action = 0; action <= XDP_REDIRECT; action++)
            if (xdp_program__chain_call_enabled(p, (enum xdp_action)action))
                out[n].goes_on |= 1U << action;
        snprintf(out[n].name, sizeof(out[n].name), "%s", xdp_program__name(p));
        out[n].ours = !strcmp(out[n].name, OUR_NAME);
    }
    xdp_multiprog__close(all);
    return (int)n;
}

/* The mode of the dispatcher that is there, XDP_MODE_UNSPEC: there is none. */
static enum xdp_attach_mode mode_of(uint32_t ifindex)
{
    struct xdp_multiprog *all = dispatcher_on(ifindex);
    enum xdp_attach_mode mode = all ? xdp_multiprog__attach_mode(all) : XDP_MODE_UNSPEC;
    xdp_multiprog__close(all);
    return mode;
}

/* 1 where a program is one of the dispatcher's, 0 where it is not. */
static int is_in(uint32_t ifindex, uint32_t prog_id)
{
    struct xds_chained all[XDS_CHAIN_MAX];
    int n = xds_chain_list(ifindex, all, XDS_CHAIN_MAX);
    for (int i = 0; i < n; i++)
        if (all[i].prog_id == prog_id)
            return 1;
    return 0;
}

static uint32_t id_of(int prog_fd)
{
    struct bpf_prog_info info = {0};
    uint32_t len = sizeof(info);
    return bpf_obj_get_info_by_fd(prog_fd, &info, &len) ? 0 : info.id;
}

uint32_t xdsi_device(const struct xds_filter *f)
{
    uint32_t zero = 0, ifindex = 0;
    if (f->device_fd < 0 || bpf_map_lookup_elem(f->device_fd, &zero, &ifindex))
        return 0;
    return ifindex;
}

/* ---- Joining ------------------------------------------------------------------------------------- */

static int share_map(void *object, int fd, const struct bpf_map_info *map)
{
    struct bpf_map *same = bpf_object__find_map_by_name(object, map->name);
    return same && !bpf_map__is_internal(same) ? bpf_map__reuse_fd(same, fd) : 0;
}

/* Let every map of `object` that a filter has be that filter's: those of the program prog_fd, by their names. */
static int share_maps(struct bpf_object *object, int prog_fd)
{
    return xdsi_each_map(prog_fd, share_map, object);
}

static int attach(struct xdp_program *program, uint32_t ifindex, int mode)
{
    enum xdp_attach_mode there = mode_of(ifindex);
    if (there != XDP_MODE_UNSPEC) { /* one hook, one mode: that of who came first */
        int is_other = (mode == XDS_ATTACH_NATIVE && there != XDP_MODE_NATIVE) ||
                       (mode == XDS_ATTACH_GENERIC && there != XDP_MODE_SKB);
        return is_other ? -EADDRINUSE : xdp_program__attach(program, (int)ifindex, there, 0);
    }
    int code = -EINVAL;
    if (mode != XDS_ATTACH_GENERIC)
        code = xdp_program__attach(program, (int)ifindex, XDP_MODE_NATIVE, 0);
    if (mode == XDS_ATTACH_GENERIC || (mode == XDS_ATTACH_AUTO && code == -EOPNOTSUPP))
        code = xdp_program__attach(program, (int)ifindex, XDP_MODE_SKB, 0);
    return code;
}

static int watch_device(struct xds_filter *f, uint32_t ifindex)
{
    uint32_t zero = 0;
    f->device_fd =
        bpf_map_create(BPF_MAP_TYPE_DEVMAP_HASH, "xds_device", sizeof(zero), sizeof(ifindex), 1, NULL);
    return f->device_fd < 0 ? f->device_fd : bpf_map_update_elem(f->device_fd, &zero, &ifindex, BPF_ANY);
}

/* The filter is now `program`, loaded from `object`, whose maps are those that it had. */
static int become(struct xds_filter *f, const struct xdp_program *program)
{
    int prog_fd = fcntl(xdp_program__fd(program), F_DUPFD_CLOEXEC, 3);
    if (prog_fd < 0)
        return -errno;
    if (f->object) {
        for (int i = 0; i < XDSI_MAPS; i++)
            f->map_fd[i] = fcntl(f->map_fd[i], F_DUPFD_CLOEXEC, 3); /* the object closes its own */
        bpf_object__close(f->object);
        f->object = NULL;
    } else {
        close(f->prog_fd);
    }
    f->prog_fd = prog_fd;
    return 0;
}

static int take_out(int prog_fd, uint32_t ifindex)
{
    enum xdp_attach_mode mode = mode_of(ifindex);
    struct xdp_program *program = xdp_program__from_fd(prog_fd);
    if (libxdp_get_error(program))
        return (int)libxdp_get_error(program);
    int code = xdp_program__detach(program, (int)ifindex, mode, 0);
    xdp_program__close(program);
    return code;
}

/* Undo what attach() did: out of the dispatcher, or libxdp's fall-back off the hook. */
static void undo(struct xdp_program *program, uint32_t ifindex)
{
    struct xds_attached there;
    if (is_in(ifindex, xdp_program__id(program)))
        take_out(xdp_program__fd(program), ifindex);
    else if (!xds_attached_query(ifindex, &there) && there.prog_id == xdp_program__id(program))
        xds_attached_remove(ifindex);
}

/* Attach, and see that it was the dispatcher by which libxdp did it. */
static int join(struct xds_filter *f, struct xdp_program *program, uint32_t ifindex, int mode,
                uint32_t priority)
{
    int code = xdp_program__set_run_prio(program, priority);
    if (!code)
        code = xdp_program__set_chain_call_enabled(program, XDP_PASS, true);
    if (!code)
        code = watch_device(f, ifindex);
    if (!code)
        code = attach(program, ifindex, mode);
    if (code)
        return code;
    code = is_in(ifindex, xdp_program__id(program)) ? become(f, program) : -EOPNOTSUPP;
    if (code)
        undo(program, ifindex);
    return code;
}

int xds_filter_join(struct xds_filter *f, const char *path, uint32_t ifindex, int mode, uint32_t priority)
{
    xdsi_listen_to_libbpf();
    libxdp_set_print(keep_words);
    if (!f->shared || f->device_fd >= 0)
        return -EALREADY;
    struct bpf_object *object = bpf_object__open_file(path, NULL);
    if (!object)
        return -errno;
    int code = choose(object, (int)f->stamp) ? share_maps(object, f->prog_fd) : -EINVAL;
    if (!code) {
        DECLARE_LIBXDP_OPTS(xdp_program_opts, opts, .obj = object, .prog_name = OUR_NAME);
        struct xdp_program *program = xdp_program__create(&opts);
        code = (int)libxdp_get_error(program);
        if (!code) {
            code = join(f, program, ifindex, mode, priority);
            xdp_program__close(program);
        }
    }
    bpf_object__close(object);
    if (code) {
        if (f->device_fd >= 0)
            close(f->device_fd);
        f->device_fd = -1;
        return code;
    }
    struct xds_attached there;
    code = xds_attached_query(ifindex, &there);
    return code ? code : (int)there.mode;
}

/* ---- Leaving ------------------------------------------------------------------------------------ */

/* Where the interface is gone its dispatcher's pins are left, and nobody else looks for them: remove ours. */
static void drop_pins_in(const char *folder, uint32_t prog_id)
{
    for (int i = 0; i < XDS_CHAIN_MAX; i++) {
        char program[320], link[320];
        snprintf(program, sizeof(program), "%s/prog%d-prog", folder, i);
        snprintf(link, sizeof(link), "%s/prog%d-link", folder, i);
        int fd = bpf_obj_get(program);
        if (fd < 0)
            continue;
        if (id_of(fd) == prog_id) {
            unlink(link);
            unlink(program);
        }
        close(fd);
    }
    rmdir(folder); /* stays while others' pins are in it */
}

static void drop_pins(uint32_t prog_id)
{
    char root[128];
    const char *bpffs = secure_getenv(XDP_BPFFS_ENVVAR);
    if (bpffs)
        snprintf(root, sizeof(root), "%s/xdp", bpffs);
    else
        snprintf(root, sizeof(root), PINS);
    DIR *folder = opendir(root);
    if (!folder)
        return;
    if (!flock(dirfd(folder), LOCK_EX)) { /* libxdp's lock */
        for (struct dirent *entry; (entry = readdir(folder));) {
            char path[288];
            if (!strncmp(entry->d_name, "dispatch-", 9) && strlen(entry->d_name) < 128) {
                snprintf(path, sizeof(path), "%s/%.127s", root, entry->d_name);
                drop_pins_in(path, prog_id);
            }
        }
    }
    closedir(folder);
}

int xdsi_leave(struct xds_filter *f)
{
    if (f->device_fd < 0)
        return 0;
    uint32_t ifindex = xdsi_device(f), prog_id = id_of(f->prog_fd);
    int code = 0;
    libxdp_set_print(keep_words);
    if (ifindex && is_in(ifindex, prog_id))
        code = take_out(f->prog_fd, ifindex);
    else
        drop_pins(prog_id);
    if (code)
        return code;
    close(f->device_fd);
    f->device_fd = -1;
    return 0;
}

int xds_chain_evict(uint32_t ifindex)
{
    struct xds_chained all[XDS_CHAIN_MAX];
    int n = xds_chain_list(ifindex, all, XDS_CHAIN_MAX), gone = 0;
    for (int i = 0; i < n; i++) {
        if (!all[i].ours)
            continue;
        int fd = bpf_prog_get_fd_by_id(all[i].prog_id);
        int code = fd < 0 ? fd : take_out(fd, ifindex);
        if (fd >= 0)
            close(fd);
        if (code)
            return code;
        gone++;
    }
    return n < 0 ? n : gone;
}

int xds_chain_remove(uint32_t ifindex)
{
    xdsi_listen_to_libbpf();
    struct xdp_multiprog *all = dispatcher_on(ifindex);
    if (!all)
        return -ENOENT;
    int code = xdp_multiprog__detach(all);
    xdp_multiprog__close(all);
    return code;
}
