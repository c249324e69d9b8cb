/* tap.c: copies of one connection's frames, both directions, into a recorder's ring: "in" is its interface 0, "out" 1.
 *
 * A tap knows the connection by its ends, so it also sees the last segments, after everybody has let go. Where there
 * is none, a segment costs one comparison. Of an incoming packet in fragments the frame that completed it is copied.
 */
#include "engine_inl.h"
#include "ground/wire_inl.h"
#include "ports/recorder_inl.h"

int xds_engine_tap(struct xds_engine *e, unsigned port, int id, struct xds_recorder *r)
{
    if (port >= e->n_ports || !e->ports[port].stack || !r)
        return XDS_ECONFIG;
    struct xdsi_port *p = &e->ports[port];
    if (p->n_taps == XDS_TAPS)
        return XDS_ECAPACITY;
    const int code = xds_stack_ends(p->stack, id, &p->taps[p->n_taps].ends);
    if (code)
        return code;
    p->taps[p->n_taps++].recorder = r;
    return 0;
}

void xds_engine_untap(struct xds_engine *e, unsigned port, const struct xds_recorder *r)
{
    struct xdsi_port *p = port < e->n_ports ? &e->ports[port] : NULL;

    for (unsigned i = 0; p && i < p->n_taps; i++)
        if (p->taps[i].recorder == r)
            p->taps[i--] = p->taps[--p->n_taps];
}

static void copy(const struct xds_engine *e, struct xds_recorder *r, unsigned way, const struct xds_frame *f)
{
    struct xds_frame stamped = *f;

    if (way || !f->rx_ns)
        stamped.rx_ns = e->now;
    xdsi_recorder_frame(r, way, &stamped);
}

static bool is(const struct xds_stack_ends *a, const struct xds_stack_ends *b)
{
    return a->local_port == b->local_port && a->remote_port == b->remote_port &&
           !memcmp(a->local, b->local, 16) && !memcmp(a->remote, b->remote, 16);
}

static void give(const struct xds_engine *e, const struct xdsi_port *p, const struct xds_stack_ends *ends,
                 unsigned way, const struct xds_frame *f)
{
    for (unsigned i = 0; i < p->n_taps; i++)
        if (is(&p->taps[i].ends, ends))
            copy(e, p->taps[i].recorder, way, f);
}

void xdsi_tap_in(const struct xds_engine *e, const struct xdsi_port *p, const struct xds_frame *f)
{
    const struct xds_packet *packet = xds_host_packet(p->host);
    struct xds_stack_ends ends = {.pad = 0};

    if (packet->protocol != 6 || packet->len < 4)
        return;
    memcpy(ends.remote, packet->src, 16);
    memcpy(ends.local, packet->dst, 16);
    ends.remote_port = xdsi_be16(packet->data);
    ends.local_port = xdsi_be16(packet->data + 2);
    give(e, p, &ends, 0, f);
}

static void mapped(uint8_t to[16], const uint8_t ip[4])
{
    memset(to, 0, 10);
    memset(to + 10, 0xff, 2);
    memcpy(to + 12, ip, 4);
}

/* What the stack wrote is well formed: an Ethernet header, a tag perhaps, IP without options. */
void xdsi_tap_out(const struct xds_engine *e, const struct xdsi_port *p, const struct xds_frame *f)
{
    const uint32_t l2 = f->len > 18 && xdsi_be16(f->data + 12) == XDSI_ETH_VLAN ? 18 : 14;
    const uint8_t *ip = f->data + l2, *tcp = ip + XDSI_IPV4_BYTES;
    struct xds_stack_ends ends = {.pad = 0};

    if (f->len >= l2 + XDSI_IPV4_BYTES + 4 && ip[0] == 0x45 && ip[9] == 6) {
        mapped(ends.local, ip + 12);
        mapped(ends.remote, ip + 16);
    } else if (f->len >= l2 + 44 && ip[0] >> 4 == 6 && ip[6] == 6) {
        memcpy(ends.local, ip + 8, 16);
        memcpy(ends.remote, ip + 24, 16);
        tcp = ip + 40;
    } else {
        return;
    }
    ends.local_port = xdsi_be16(tcp);
    ends.remote_port = xdsi_be16(tcp + 2);
    give(e, p, &ends, 1, f);
}
