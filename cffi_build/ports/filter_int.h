/* filter_int.h: what filter.c and dispatcher.c know of each other. */
#ifndef XDSI_FILTER_INT_H
#define XDSI_FILTER_INT_H

#include <bpf/libbpf.h>
#include "xds/filter.h"

enum { XDSI_MAP_TABLES, XDSI_MAP_XSKS, XDSI_MAP_RULES, XDSI_MAP_REASONS, XDSI_MAP_NOSOCK, XDSI_MAPS };
_Static_assert(XDS_FILTER_FDS == 2 + XDSI_MAPS, "link, program, maps");

struct xds_filter {
    struct bpf_object *object; /* none when reopened from pins, or once in a dispatcher        */
    char dir[XDS_FILTER_DIR];  /* of its pins, "" when it has none                             */
    int map_fd[XDSI_MAPS];
    int prog_fd, link_fd; /* link_fd -1: no link of its own                                    */
    int device_fd;        /* in a dispatcher: a map that holds the interface while it is there */
    uint32_t shared;      /* 1: for libxdp's dispatcher                                        */
    uint32_t stamp, bound;
    uint32_t ask; /* as it was loaded with */
};

/* Call see() for the maps of a program, whoever loaded it, until it answers other than 0: that, or a negative
 * errno; 0 after the last. The descriptor is closed behind it. */
typedef int xdsi_see_map(void *arg, int fd, const struct bpf_map_info *map);
int xdsi_each_map(int prog_fd, xdsi_see_map *see, void *arg);

/* The descriptors of every map, -EINVAL: one is missing. */
int xdsi_take_maps(struct xds_filter *f, struct bpf_object *object);

/* The rest is dispatcher.c's; see xds_filter_load(), xds_filter_detach() and xds_filter_info(). */
int xdsi_load_shared(struct xds_filter *f, int dry, int stamp);
int xdsi_leave(struct xds_filter *f);
uint32_t xdsi_device(const struct xds_filter *f); /* 0: it is gone, or in another namespace */

#endif
