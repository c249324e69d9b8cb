/* tcp_settings.c: what may be set, before a connection and during one: keepalive (RFC 9293 3.8.4) and the user
 * timeout (RFC 5482) with what follows from them.
 *
 * The keepalive timer is lazy: an arriving segment notes its time and nothing else; the timer finds out when
 * it runs. Only a peer that answers none of keep_count probes is gone, not one that misses some.
 */
#include "tcp_int.h"

#define KEEP_MIN    10000000 /* 10 ms */
#define KEEP_MAX    (30ll * 86400 * XDSI_SECOND)
#define GIVE_UP_MIN (100ll * XDSI_SECOND) /* of what a peer may ask for: RFC 9293 3.8.3, RFC 5482 3.1 */
#define GIVE_UP_MAX (3600ll * XDSI_SECOND)
#define UTO_BITS    0x7fff

static bool good_keepalive(const struct xds_tcp_config *c)
{
    return (!c->keep_idle_ns || (c->keep_idle_ns >= KEEP_MIN && c->keep_idle_ns <= KEEP_MAX)) &&
           (!c->keep_interval_ns || (c->keep_interval_ns >= KEEP_MIN && c->keep_interval_ns <= KEEP_MAX)) &&
           c->keep_count <= 127;
}

bool xdsi_tcp_good(const struct xds_tcp_config *c)
{
    return c->local_port && (c->passive || c->remote_port) && c->congestion <= XDS_TCP_NO_CONGESTION &&
           c->nagle <= 3 && (!c->mss || c->mss >= 64) && c->delayed_ack_ns >= 0 &&
           c->delayed_ack_ns <= XDSI_SECOND / 2 && c->rto_min_ns >= 0 && c->rto_min_ns <= XDSI_RTO_MAX &&
           c->give_up_ns >= 0 && c->msl_ns >= 0 && c->pieces <= XDSI_TCP_BOARD && c->dscp <= 63 &&
           good_keepalive(c);
}

void xdsi_tcp_defaults(struct xds_tcp_config *c)
{
    c->give_up_fixed |= c->give_up_ns != 0; /* RFC 5482 3.1: CHANGEABLE until the user has said something */
    c->give_up_ns = c->give_up_ns ? c->give_up_ns : 180ll * XDSI_SECOND;
    c->keep_idle_ns = c->keep_idle_ns ? c->keep_idle_ns : 7200ll * XDSI_SECOND;
    c->keep_interval_ns = c->keep_interval_ns ? c->keep_interval_ns : 75ll * XDSI_SECOND;
    c->keep_count = c->keep_count ? c->keep_count : 9;
}

void xdsi_keep_arm(struct xds_tcp *t, int64_t now)
{
    const bool open = t->state >= XDS_TCP_ESTABLISHED && t->state != XDS_TCP_TIME_WAIT;

    t->keep_tried = 0;
    t->keep_now = false;
    t->keep_due = t->cfg.keepalive && open ? now + t->cfg.keep_idle_ns : XDS_NEVER;
}

/* MUST-26: nothing is out, and nothing has come for so long. What is out, or waits, has timers of its own. */
void xdsi_keep_timeout(struct xds_tcp *t, int64_t now)
{
    const int64_t quiet_until = t->heard_ns + t->cfg.keep_idle_ns;

    if (!t->cfg.keepalive || t->state < XDS_TCP_ESTABLISHED || t->state == XDS_TCP_TIME_WAIT) {
        t->keep_due = XDS_NEVER;
        return;
    }
    if (t->heard_ns >= t->keep_ns)
        t->keep_tried = 0;
    if (xdsi_tcp_flight(t) || xdsi_tcp_total(t) != t->snd_nxt || (!t->keep_tried && quiet_until > now)) {
        xdsi_keep_arm(t, now);
        if (quiet_until > now)
            t->keep_due = quiet_until;
        return;
    }
    if (t->keep_tried >= t->cfg.keep_count) {
        xds_tcp_abort(t); /* a reset: it may be there after all, and deaf */
        xdsi_tcp_event(t, XDS_TCP_EVENT_TIMEOUT, now);
        return;
    }
    t->keep_tried++;
    t->keep_now = true;
    t->keep_ns = now;
    t->keep_due = now + t->cfg.keep_interval_ns;
}

/* RFC 5482 2: 15 bits of seconds, or of minutes. */
uint16_t xdsi_uto_word(const struct xds_tcp *t)
{
    const int64_t seconds = (t->cfg.give_up_ns + XDSI_SECOND - 1) / XDSI_SECOND;

    if (seconds <= UTO_BITS)
        return (uint16_t)seconds;
    return (uint16_t)(0x8000 | xdsi_min64((seconds + 59) / 60, UTO_BITS));
}

/* RFC 5482 3.1: as long as the longer of both wishes, within bounds. Bad words (0) change nothing. */
void xdsi_uto_heard(struct xds_tcp *t, uint16_t word)
{
    const int64_t theirs = (word & UTO_BITS) * (word & 0x8000 ? 60ll : 1ll) * XDSI_SECOND;

    if (!t->cfg.user_timeout || t->cfg.give_up_fixed || !theirs)
        return;
    t->give_up = xdsi_min64(GIVE_UP_MAX, xdsi_max64(xdsi_max64(t->cfg.give_up_ns, theirs), GIVE_UP_MIN));
}

int xds_tcp_set(struct xds_tcp *t, uint32_t setting, int64_t value, int64_t now)
{
    struct xds_tcp_config c = t->cfg;

    if (value < 0)
        return XDS_ECONFIG;
    switch (setting) {
    case XDS_TCP_SET_NAGLE:
        c.nagle = (uint8_t)xdsi_min64(value, 4);
        break;
    case XDS_TCP_SET_DELAYED_ACK_NS:
        c.delayed_ack_ns = value;
        break;
    case XDS_TCP_SET_GIVE_UP_NS:
        c.give_up_ns = value ? value : 180ll * XDSI_SECOND;
        c.give_up_fixed = value != 0;
        break;
    case XDS_TCP_SET_KEEPALIVE:
        c.keepalive = value != 0;
        break;
    case XDS_TCP_SET_KEEP_IDLE_NS:
        c.keep_idle_ns = value ? value : 7200ll * XDSI_SECOND;
        break;
    case XDS_TCP_SET_KEEP_INTERVAL_NS:
        c.keep_interval_ns = value ? value : 75ll * XDSI_SECOND;
        break;
    case XDS_TCP_SET_KEEP_COUNT:
        c.keep_count = (uint32_t)xdsi_min64(value ? value : 9, 1000);
        break;
    case XDS_TCP_SET_DSCP:
        c.dscp = (uint8_t)xdsi_min64(value, 255);
        break;
    default:
        return XDS_ECONFIG;
    }
    if (!xdsi_tcp_good(&c))
        return XDS_ECONFIG;
    if (setting == XDS_TCP_SET_NAGLE && c.nagle == 2 && t->cfg.nagle & 2)
        t->push_now |= t->snd_end > t->snd_nxt && t->snd_end - t->snd_nxt < t->mss;
    t->cfg = c;
    if (setting == XDS_TCP_SET_GIVE_UP_NS)
        t->give_up = c.give_up_ns;
    if (setting == XDS_TCP_SET_DELAYED_ACK_NS && t->ack_due != XDS_NEVER && !value)
        t->ack_now = true; /* the one that waits, waits no more */
    if (setting >= XDS_TCP_SET_KEEPALIVE && setting <= XDS_TCP_SET_KEEP_COUNT)
        xdsi_keep_arm(t, xdsi_max64(t->heard_ns, now - c.keep_idle_ns));
    if (setting == XDS_TCP_SET_GIVE_UP_NS && c.user_timeout && t->state >= XDS_TCP_ESTABLISHED)
        t->uto_due = t->ack_now = true;
    return 0;
}
