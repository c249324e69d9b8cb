/* session_tls.c: the TLS core (xds/tls.h) as a session, alone or as the layer under another: its events in the
 * words of all sessions, its records counted. A profile's configuration is its struct xds_tls_context. */
#include "xds/session.h"
#include "xds/tls.h"

#include <stdbool.h>
#include <string.h>

_Static_assert((int)XDS_TLS_REASONS <= XDS_SESSION_REASONS, "each reason has its counter");
_Static_assert(XDS_SESSION_CHUNK <= XDS_TLS_RECORD, "what a layer takes at once is one record");

struct session {
    _Alignas(64) struct xds_tls *core; /* behind this struct */
    uint32_t most;                     /* bytes of a message of ours */
    uint32_t reason;                   /* of the failure */
    bool refused;                      /* it failed by a record that it read */
    struct xds_tls_event last;         /* what an event's data may lie in */
};

static size_t tls_size(const void *config)
{
    return config ? sizeof(struct session) + xds_tls_size(config) : 0;
}

/* OpenSSL draws what is random by itself. */
static int tls_init(void *mem, void *config, int64_t now, const uint8_t *seed)
{
    struct session *s = mem;

    (void)seed;
    memset(s, 0, sizeof *s);
    s->core = (struct xds_tls *)(s + 1);
    s->most = xds_tls_most(config);
    return xds_tls_init(s->core, config, now);
}

static int tls_input(void *mem, const uint8_t *data, uint32_t len, int64_t now)
{
    struct session *s = mem;

    if (!data) {
        xds_tls_end(s->core, now);
        return 0;
    }
    const int rc = xds_tls_input(s->core, data, len, now);
    s->refused |= rc < 0 && rc != XDS_ESTATE;
    return rc;
}

static void say(struct xds_session_event *out, const char *text, size_t len)
{
    out->data = (const uint8_t *)text;
    out->len = (uint32_t)len;
}

static void translate(struct session *s, struct xds_session_event *out)
{
    const struct xds_tls_event *from = &s->last;
    const char *name;
    size_t length;

    switch ((enum xds_tls_kind)from->kind) {
    case XDS_TLS_HANDSHAKE:
        out->what = XDS_SESSION_OPEN;
        out->flags =
            (from->resumed ? XDS_SESSION_RESUMED : 0u) | (from->verified ? XDS_SESSION_VERIFIED : 0u);
        out->code = from->version;
        out->detail = from->cipher;
        out->verify = from->verify;
        out->until = (uint64_t)from->handshake_ns;
        name = xds_tls_group_name(from->group);
        length = strlen(name);
        memcpy(out->name, name, length < sizeof out->name ? length : sizeof out->name);
        say(out, from->alpn, from->alpn_len);
        break;
    case XDS_TLS_TICKET:
        out->what = XDS_SESSION_TLS_TICKET;
        break;
    case XDS_TLS_KEY_UPDATE:
        out->what = XDS_SESSION_TLS_KEY_UPDATE;
        break;
    case XDS_TLS_ALERT:
        out->what = XDS_SESSION_TLS_ALERT;
        out->code = from->alert;
        name = xds_tls_alert_name(from->alert);
        say(out, name, strlen(name));
        break;
    case XDS_TLS_DATA:
        out->what = XDS_SESSION_MESSAGE;
        out->data = from->data;
        out->len = from->len;
        break;
    case XDS_TLS_CLOSED:
        out->what = XDS_SESSION_CLOSED;
        out->flags = from->clean ? 0u : XDS_SESSION_UNANSWERED;
        break;
    case XDS_TLS_FAILED:
    case XDS_TLS_NONE:
        out->what = XDS_SESSION_FAILED;
        out->code = s->reason = from->reason;
        out->detail = from->alert;
        out->verify = from->verify;
        say(out, from->text, strlen(from->text));
        break;
    }
}

static int tls_event(void *mem, struct xds_session_event *out)
{
    struct session *s = mem;

    if (!xds_tls_event(s->core, &s->last))
        return 0;
    *out = (struct xds_session_event){0};
    translate(s, out);
    return 1;
}

static int tls_output(void *mem, uint8_t *room, uint32_t cap, int64_t now)
{
    return xds_tls_output(((struct session *)mem)->core, room, cap, now);
}

static int64_t tls_deadline(const void *mem)
{
    return xds_tls_deadline(((const struct session *)mem)->core);
}

static void tls_tick(void *mem, int64_t now)
{
    xds_tls_tick(((struct session *)mem)->core, now);
}

/* The core takes what fits; a session takes all or nothing. */
static int tls_send(void *mem, const struct xds_session_message *m, int64_t now)
{
    struct session *s = mem;
    int rc = xds_tls_send(s->core, m->data, 0, now); /* whether it is open */

    if (rc < 0 || (m->len == 0 && !(m->flags & XDS_SESSION_PING)))
        return rc;
    if (m->flags & XDS_SESSION_PING || m->len > s->most) /* it has none; it will never have room */
        return XDS_EMALFORMED;
    if (m->len > xds_tls_room(s->core))
        return XDS_ECAPACITY;
    rc = xds_tls_send(s->core, m->data, m->len, now);
    return rc < 0 ? rc : rc ? 0 : XDS_ECAPACITY; /* 0: OpenSSL has something of its own to write first */
}

/* close_notify has neither a code nor a reason. */
static int tls_close(void *mem, uint32_t code, const uint8_t *reason, uint32_t len, int64_t now)
{
    (void)code;
    (void)reason;
    (void)len;
    return xds_tls_close(((struct session *)mem)->core, now);
}

/* Records. The one that it failed by, or that its end cut, has the failure's reason. */
static void tls_stats(const void *mem, struct xds_session_stats *out)
{
    const struct session *s = mem;
    struct xds_tls_stats st;

    xds_tls_stats(s->core, &st);
    const bool cut = s->reason && st.part_in, lost = s->reason && (s->refused || cut);
    *out = (struct xds_session_stats){.received = st.records_in + cut, .sent = st.records_out};
    out->delivered = out->received - lost;
    out->reasons[s->reason] = lost;
}

static void tls_end(void *mem)
{
    xds_tls_done(((struct session *)mem)->core);
}

static const struct xds_session_ops ops = {
    .kind = XDS_SESSION_TLS,
    .size = tls_size,
    .init = tls_init,
    .input = tls_input,
    .event = tls_event,
    .output = tls_output,
    .deadline = tls_deadline,
    .tick = tls_tick,
    .send = tls_send,
    .close = tls_close,
    .stats = tls_stats,
    .end = tls_end,
};

const struct xds_session_ops *xds_session_tls(void)
{
    return &ops;
}
