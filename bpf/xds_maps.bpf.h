/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * xds_maps.bpf.h: the maps of the program. Their names are those that user space looks for and pins.
 */
#ifndef XDS_MAPS_BPF_H
#define XDS_MAPS_BPF_H

struct xds_table_map {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(key_size, sizeof(uint32_t));
    __uint(value_size, sizeof(struct xds_tables)); /* clang 14 forgets the struct's body as __type() */
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
    __uint(max_entries, 1);
    __type(key, uint32_t);
    __array(values, struct xds_table_map);
} xds_tables SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, XDS_SOCKETS_MAX);
    __type(key, uint32_t);
    __type(value, uint32_t);
} xds_xsks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, XDS_RULE_IDS);
    __type(key, uint32_t);
    __type(value, struct xds_count);
} xds_rules SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, uint32_t);
    __type(value, struct xds_reason_counts);
} xds_reasons SEC(".maps");

struct { /* redirects that found no socket, by XSKMAP index */
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, XDS_SOCKETS_MAX);
    __type(key, uint32_t);
    __type(value, struct xds_count);
} xds_nosock SEC(".maps");

struct { /* whether somebody wants to see what is refused */
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, uint32_t);
    __type(value, struct xds_tap);
} xds_tap SEC(".maps");

struct { /* where to: perf buffers, which exist as long as somebody reads them */
    __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
    __uint(key_size, sizeof(uint32_t));
    __uint(value_size, sizeof(uint32_t));
} xds_dropped SEC(".maps");

/* What a driver can be asked: time and hash since Linux 6.3, tag since 6.8. A driver that cannot answer says
 * -EOPNOTSUPP, and -ENODATA for a frame of which it knows nothing. */
enum xdp_rss_hash_type { XDP_RSS_TYPE_NONE = 0 };
extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym __weak;
extern int bpf_xdp_metadata_rx_hash(const struct xdp_md *ctx, __u32 *hash,
                                    enum xdp_rss_hash_type *type) __ksym __weak;
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __be16 *tpid, __u16 *tci) __ksym __weak;

#endif
