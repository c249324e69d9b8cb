/* stack_error.c: ICMP errors about segments that were sent (RFC 1122 4.2.3.9, RFC 9293 3.9.2.2, RFC 5927).
 *
 * Anybody can send one, so it must name a sequence number that is in flight. Then: a path that takes less is noted
 * (and what does not fit is sent again by output()); before a connection is established, what cannot get better
 * by waiting ends it; everything else is kept to be told, and ends nothing.
 */
#include "stack_int.h"

/* Of ICMPv6: unreachable by a rule, or the port; a protocol that nobody knows there (as in Linux). */
#define HARD_CODES6 (1u << 1 | 1u << 4 | 1u << 5 | 1u << 6)

/* Unreachable: protocol, port, unknown, isolated or forbidden; as in Linux. Networks and hosts may come back. */
#define HARD_CODES (1u << 2 | 1u << 3 | 1u << 6 | 1u << 7 | 1u << 8 | 1u << 9 | 1u << 10 | 7u << 13)

static bool is_hard(const struct xds_host_error *e)
{
    if (!xdsi_is_ip4(e->dst))
        return e->type == XDSI_ICMP6_UNREACHABLE ? e->code < 16 && HARD_CODES6 >> e->code & 1
                                                 : e->type == XDSI_ICMP6_PARAMETER;
    return e->type == 3 && e->code < 16 && HARD_CODES >> e->code & 1;
}

/* Nobody is there to talk to: the port or the protocol. */
static bool refuses(const struct xds_host_error *e)
{
    if (xdsi_is_ip4(e->dst))
        return e->code == 2 || e->code == 3;
    return e->type == XDSI_ICMP6_PARAMETER ? e->code == 1 : e->code == 4;
}

/* RFC 5927 4.1. */
static bool in_flight(const struct xds_tcp *t, uint32_t seq)
{
    const int32_t off = (int32_t)(seq - (t->cfg.iss + (uint32_t)t->snd_una));
    return off >= 0 && t->snd_una + off < t->snd_max;
}

/* Everybody on the same path looks at it anew, so that what is out of theirs goes again too. */
static void shrink(struct xds_stack *s, const struct xds_host_error *e, int64_t now)
{
    if (!xds_host_path_learn(s->host, e->dst, e->mtu, now))
        return;
    for (uint32_t i = 0; i < s->fresh; i++) {
        struct xdsi_conn *c = &s->conns[i];
        if (c->id && !memcmp(c->ends.remote, e->dst, 16))
            xdsi_ready(s, c);
    }
}

static void note(struct xdsi_conn *c, const struct xds_host_error *e, int64_t now)
{
    c->trouble = (struct xds_stack_trouble){.ns = now, .type = e->type, .code = e->code};
    memcpy(c->trouble.from, e->from, 16);
}

int xds_stack_error(struct xds_stack *s, const struct xds_host_error *e, int64_t now)
{
    struct xdsi_ends ends = {.remote_port = e->dport, .local_port = e->sport};

    memcpy(ends.remote, e->dst, 16);
    memcpy(ends.local, e->src, 16);
    if (e->protocol != XDSI_IPPROTO_TCP)
        return XDS_EFOREIGN;
    struct xdsi_conn *c = xdsi_conn_find(s, &ends);
    if (!c) {
        s->stats.errors_stray++;
        return XDS_EFOREIGN;
    }
    struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));
    if (t->state == XDS_TCP_CLOSED || !in_flight(t, e->seq)) {
        s->stats.errors_forged++;
        return XDS_EFOREIGN;
    }
    s->stats.errors++;
    if (e->mtu)
        shrink(s, e, now);
    else if (e->type != 5) /* a redirect is the business of routes, and not taken from strangers */
        note(c, e, now);
    if (t->state != XDS_TCP_SYN_SENT || !is_hard(e))
        return 0;
    xds_tcp_abort(t);
    xdsi_tell(s, c, refuses(e) ? XDS_STACK_REFUSED : XDS_STACK_UNREACHABLE, now);
    xdsi_look(s, c, now);
    return 0;
}
