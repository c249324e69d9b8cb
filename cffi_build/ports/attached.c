/* attached.c: what is on an interface's XDP hook, whoever attached it, and taking it off.
 *
 * An interface has three places for a program: native, generic and offload. The kernel lets native and
 * generic exclude each other, offload stand beside either; all three are asked for.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>
#include "ports/libbpf_words.h"
#include "xds/filter.h"

static void describe(struct xds_attached *a)
{
    struct bpf_prog_info info = {0};
    uint32_t len = sizeof(info);
    int fd = bpf_prog_get_fd_by_id(a->prog_id);
    if (fd < 0)
        return;
    if (!bpf_obj_get_info_by_fd(fd, &info, &len)) {
        snprintf(a->name, sizeof(a->name), "%s", info.name);
        a->uid = info.created_by_uid;
        a->loaded_ns = info.load_time;
    }
    close(fd);
}

/* The BPF link that holds prog_id on ifindex, as a descriptor in *fd. Returns its id, 0 none. */
static uint32_t find_link(uint32_t prog_id, uint32_t ifindex, int *fd)
{
    for (uint32_t id = 0; !bpf_link_get_next_id(id, &id);) {
        struct bpf_link_info info = {0};
        uint32_t len = sizeof(info);
        *fd = bpf_link_get_fd_by_id(id);
        if (*fd < 0)
            continue;
        if (!bpf_obj_get_info_by_fd(*fd, &info, &len) && info.type == BPF_LINK_TYPE_XDP &&
            info.prog_id == prog_id && info.xdp.ifindex == ifindex)
            return id;
        close(*fd);
    }
    *fd = -1;
    return 0;
}

int xds_attached_list(uint32_t ifindex, struct xds_attached *out, unsigned cap)
{
    LIBBPF_OPTS(bpf_xdp_query_opts, opts);
    unsigned n = 0;
    xdsi_listen_to_libbpf();
    int code = bpf_xdp_query((int)ifindex, 0, &opts);
    if (code)
        return code;
    const struct {
        uint32_t prog_id, mode;
        uint8_t alone; /* attach_mode when it is the only one: prog_id then names it */
    } slots[XDS_ATTACHED_MAX] = {
        {opts.drv_prog_id, XDS_ATTACH_NATIVE, XDP_ATTACHED_DRV},
        {opts.skb_prog_id, XDS_ATTACH_GENERIC, XDP_ATTACHED_SKB},
        {opts.hw_prog_id, XDS_ATTACH_OFFLOAD, XDP_ATTACHED_HW},
    };
    for (unsigned i = 0; i < XDS_ATTACHED_MAX && n < cap; i++) {
        uint32_t id = slots[i].prog_id;
        int fd;
        if (!id && opts.attach_mode == slots[i].alone)
            id = opts.prog_id;
        if (!id)
            continue;
        out[n] = (struct xds_attached){.prog_id = id, .mode = slots[i].mode};
        describe(&out[n]);
        out[n].link_id = find_link(id, ifindex, &fd);
        if (fd >= 0)
            close(fd);
        n++;
    }
    return (int)n;
}

int xds_attached_query(uint32_t ifindex, struct xds_attached *out)
{
    memset(out, 0, sizeof(*out));
    int n = xds_attached_list(ifindex, out, 1);
    return n < 0 ? n : 0;
}

static int take_off(uint32_t ifindex, const struct xds_attached *there)
{
    int fd;
    if (find_link(there->prog_id, ifindex, &fd)) {
        int code = bpf_link_detach(fd);
        close(fd);
        return code;
    }
    uint32_t flags = there->mode == XDS_ATTACH_GENERIC   ? XDP_FLAGS_SKB_MODE
                     : there->mode == XDS_ATTACH_OFFLOAD ? XDP_FLAGS_HW_MODE
                                                         : XDP_FLAGS_DRV_MODE;
    return bpf_xdp_detach((int)ifindex, flags, NULL);
}

int xds_attached_remove(uint32_t ifindex)
{
    struct xds_attached there[XDS_ATTACHED_MAX];
    int n = xds_attached_list(ifindex, there, XDS_ATTACHED_MAX);
    int code = n < 0 ? n : 0;
    for (int i = 0; i < n && !code; i++)
        code = take_off(ifindex, &there[i]);
    return code;
}
