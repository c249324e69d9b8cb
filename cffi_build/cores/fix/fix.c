/* fix.c: the life of a session: memory, connections, bytes in, events out, time.
 *
 * Bytes are taken message by message. A message that lies whole in what the caller gave is read in place; of
 * one that does not, the beginning is kept until the rest has come. What lies kept behind a garbled message is
 * gone on with by event().
 */
#include "fix_int.h"

#define SECOND 1000000000

static const char *const BEGIN_STRINGS[XDS_FIX_VERSIONS] = {"FIX.4.2", "FIX.4.4", "FIXT.1.1"};

static int64_t or64(int64_t value, int64_t otherwise)
{
    return value ? value : otherwise;
}

static uint32_t or32(uint32_t value, uint32_t otherwise)
{
    return value ? value : otherwise;
}

/* Texts of a config: NUL-terminated, and no control bytes that would end a field. */
static int texts_are_good(const struct xds_fix_config *c)
{
    const char *texts[] = {c->sender_comp_id, c->target_comp_id, c->sender_sub_id,      c->target_sub_id,
                           c->username,       c->password,       c->default_appl_ver_id};

    for (uint32_t i = 0; i < 7; i++) {
        const size_t cap = i == 6 ? sizeof c->default_appl_ver_id : sizeof c->sender_comp_id;
        if (!memchr(texts[i], 0, cap) || (i < 2 && !texts[i][0]))
            return 0;
        for (const char *p = texts[i]; *p; p++)
            if ((uint8_t)*p < 32)
                return 0;
    }
    return 1;
}

/* The config with its defaults; 0: it contradicts itself. */
static int filled(const struct xds_fix_config *from, struct xds_fix_config *c)
{
    *c = *from;
    if (!texts_are_good(c) || c->version >= XDS_FIX_VERSIONS || c->acceptor > 1 || c->reset > 1)
        return 0;
    if (!c->default_appl_ver_id[0])
        c->default_appl_ver_id[0] = '9';
    c->time_digits = (uint8_t)or32(c->time_digits, 3);
    c->next_out = c->next_out ? c->next_out : 1;
    c->next_in = c->next_in ? c->next_in : 1;
    c->heartbeat_s = or32(c->heartbeat_s, 30);
    c->message_max = or32(c->message_max, 16384);
    if (c->message_max < 1024 || c->message_max > 1u << 20)
        return 0;
    c->output_bytes = or32(c->output_bytes, 4 * c->message_max);
    c->store_bytes = or32(c->store_bytes, 65536);
    c->store_messages = or32(c->store_messages, 1024);
    c->resend_tries = or32(c->resend_tries, 3);
    c->sending_time_ns = or64(c->sending_time_ns, 120 * (int64_t)SECOND);
    c->logon_ns = or64(c->logon_ns, 10 * (int64_t)SECOND);
    c->logout_ns = or64(c->logout_ns, 10 * (int64_t)SECOND);
    c->resend_ns = or64(c->resend_ns, 10 * (int64_t)SECOND);
    return (c->time_digits == 3 || c->time_digits == 6 || c->time_digits == 9) && c->heartbeat_s <= 86400 &&
           c->output_bytes >= 2 * c->message_max + ADMIN && c->output_bytes <= 1u << 30 &&
           c->store_bytes <= 1u << 30 && (!c->resend_max || c->resend_max >= 8) &&
           c->store_messages <= 1u << 20 && c->next_out <= INT64_MAX / 4 && c->next_in <= INT64_MAX / 4 &&
           c->sending_time_ns > 0 && c->logon_ns > 0 && c->logout_ns > 0 && c->resend_ns > 0 &&
           c->leap_ns > -3600 * (int64_t)SECOND && c->leap_ns < 3600 * (int64_t)SECOND;
}

static size_t aligned(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

/* A field takes four bytes at least: no message has more of them. */
static uint32_t field_cap(const struct xds_fix_config *c)
{
    return c->message_max / 4 + 2;
}

size_t xds_fix_size(const struct xds_fix_config *cfg)
{
    struct xds_fix_config c;

    if (!filled(cfg, &c))
        return 0;
    return aligned(sizeof(struct xds_fix)) + aligned(field_cap(&c) * sizeof(struct xds_fix_field)) +
           aligned(c.store_messages * sizeof(struct xdsi_fix_held)) + aligned(c.message_max) +
           aligned(c.output_bytes) + aligned(c.store_bytes);
}

static void put_prefix(struct xds_fix *f, const char *tag, const char *value)
{
    const size_t n = strlen(value);

    if (!n)
        return;
    memcpy(f->prefix + f->prefix_len, tag, 3);
    memcpy(f->prefix + f->prefix_len + 3, value, n);
    f->prefix_len += 3 + (uint32_t)n;
    f->prefix[f->prefix_len++] = SOH;
}

int xds_fix_init(void *mem, const struct xds_fix_config *cfg)
{
    struct xds_fix *f = mem;
    struct xds_fix_config c;
    uint8_t *at = (uint8_t *)mem + aligned(sizeof *f);

    if (!filled(cfg, &c))
        return XDS_ECONFIG;
    memset(f, 0, sizeof *f);
    f->c = c;
    f->begin_string = BEGIN_STRINGS[c.version];
    f->field_cap = field_cap(&c);
    f->fields = (void *)at, at += aligned(f->field_cap * sizeof *f->fields);
    f->store.held = (void *)at, at += aligned(c.store_messages * sizeof *f->store.held);
    f->store.cap = c.store_messages, f->store.size = c.store_bytes;
    f->in = at, at += aligned(c.message_max);
    f->out = at, at += aligned(c.output_bytes);
    f->store.bytes = at;
    f->next_in = c.next_in, f->next_out = c.next_out;
    f->resend_next = 1;
    put_prefix(f, "49=", c.sender_comp_id);
    put_prefix(f, "56=", c.target_comp_id);
    put_prefix(f, "50=", c.sender_sub_id);
    put_prefix(f, "57=", c.target_sub_id);
    return 0;
}

void xds_fix_open(struct xds_fix *f, int64_t now)
{
    f->now = f->since = f->last_in = f->last_out = now;
    f->heartbeat_s = f->c.heartbeat_s;
    f->tested = 0;
    f->gap_top = f->asked_top = f->asked_end = 0;
    f->resend_next = 1, f->resend_end = 0;
    f->in_at = f->in_len = f->need = f->out_at = f->out_len = 0;
    f->event_first = f->event_count = 0;
    f->state = f->c.acceptor ? XDS_FIX_LOGON_WAIT : XDS_FIX_LOGON_SENT;
    if (f->c.acceptor)
        return;
    if (f->c.reset) {
        f->next_in = f->next_out = 1;
        xdsi_fix_store_clear(&f->store);
    }
    xdsi_fix_logon(f, f->c.reset, now);
}

struct xds_fix_event *xdsi_fix_tell(struct xds_fix *f, uint32_t kind, const struct xdsi_fix_head *h)
{
    /* One message makes at most four, and is only taken where none waits: the last place is never overrun. */
    struct xds_fix_event *e = &f->events[(f->event_first + f->event_count) % EVENTS];

    f->event_count += f->event_count < EVENTS;
    memset(e, 0, sizeof *e);
    e->ns = f->now;
    e->kind = kind;
    if (h) {
        e->seq = h->seq;
        e->data = h->message, e->len = h->len;
        e->fields = f->fields, e->count = h->count;
        e->flags = h->flags;
        memcpy(e->msg_type, h->type, sizeof e->msg_type);
    }
    return e;
}

/* The session is over for a fault: what it says goes out, if there is room, and nothing is waited for. */
void xdsi_fix_end(struct xds_fix *f, uint32_t reason, const struct xdsi_fix_head *h, const char *text)
{
    if (text && f->state != XDS_FIX_LOGOUT_SENT)
        xdsi_fix_logout(f, text, f->now);
    struct xds_fix_event *e = xdsi_fix_tell(f, XDS_FIX_EVENT_FAILED, h);
    e->reason = reason;
    e->text = text;
    f->state = XDS_FIX_ENDED;
}

void xdsi_fix_closed(struct xds_fix *f, const struct xdsi_fix_head *h)
{
    xdsi_fix_tell(f, XDS_FIX_EVENT_CLOSED, h);
    f->state = XDS_FIX_ENDED;
}

static int is_live(const struct xds_fix *f)
{
    return f->state != XDS_FIX_IDLE && f->state != XDS_FIX_ENDED;
}

/* One message, or what is none: bytes that are done with; 0: more are needed, f->need in all. */
static uint32_t step(struct xds_fix *f, const uint8_t *data, uint32_t len, int64_t now)
{
    uint32_t reason = 0, skip = 0;
    const int n = xds_fix_frame(data, len, f->c.message_max, &reason, &skip);

    if (!n) {
        f->need = skip > len ? skip : len + 1;
        return 0;
    }
    if (n > 0) {
        f->s.received++;
        f->s.received_bytes += (uint32_t)n;
        reason = (uint32_t)xdsi_fix_take(f, data, (uint32_t)n, now);
        f->s.reasons[reason]++;
        return (uint32_t)n;
    }
    if (reason) {
        f->s.received++;
        f->s.reasons[reason]++;
    }
    f->s.received_bytes += skip;
    f->s.skipped_bytes += skip;
    return skip;
}

static int may_take(const struct xds_fix *f)
{
    return is_live(f) && !f->event_count && xdsi_fix_room(f);
}

/* What is kept, as far as it goes. */
static void go_on(struct xds_fix *f, int64_t now)
{
    while (f->in_len && may_take(f)) {
        const uint32_t n = step(f, f->in + f->in_at, f->in_len, now);
        if (!n)
            return;
        f->in_at += n, f->in_len -= n;
    }
}

/* Bytes of data behind what is kept, no more than its message needs. */
static uint32_t keep(struct xds_fix *f, const uint8_t *data, uint32_t len)
{
    const uint32_t want = f->need - f->in_len, n = want < len ? want : len;

    if (f->in_at)
        memmove(f->in, f->in + f->in_at, f->in_len);
    f->in_at = 0;
    memcpy(f->in + f->in_len, data, n);
    f->in_len += n;
    return n;
}

int xds_fix_input(struct xds_fix *f, const uint8_t *data, uint32_t len, int64_t now)
{
    uint32_t taken = 0;

    if (!is_live(f) && !f->event_count)
        return XDS_ESTATE;
    f->now = now;
    xdsi_fix_pump(f, now);
    go_on(f, now);
    while (taken < len && may_take(f)) {
        if (!f->in_len) {
            const uint32_t n = step(f, data + taken, len - taken, now);
            taken += n;
            if (n)
                continue;
        }
        taken += keep(f, data + taken, len - taken);
        go_on(f, now);
    }
    return (int)taken;
}

void xds_fix_hang_up(struct xds_fix *f, int64_t now)
{
    f->now = now;
    if (is_live(f))
        xdsi_fix_end(f, XDS_FIX_HUNG_UP, NULL, NULL);
}

int xds_fix_event(struct xds_fix *f, struct xds_fix_event *out)
{
    if (!f->event_count) {
        xdsi_fix_pump(f, f->now);
        go_on(f, f->now);
    }
    if (!f->event_count)
        return 0;
    *out = f->events[f->event_first];
    f->event_first = (f->event_first + 1) % EVENTS;
    f->event_count--;
    return 1;
}

static int64_t interval(const struct xds_fix *f)
{
    return f->heartbeat_s * (int64_t)SECOND;
}

static int64_t patience(const struct xds_fix *f)
{
    return interval(f) + interval(f) / DUE;
}

/* When silence is to be asked about, or has lasted too long. */
static int64_t silence_ns(const struct xds_fix *f)
{
    return (f->tested && f->tested_ns > f->last_in ? f->tested_ns : f->last_in) + patience(f);
}

int64_t xds_fix_deadline(const struct xds_fix *f)
{
    int64_t at = XDS_NEVER;

    if (f->state == XDS_FIX_LOGON_SENT || f->state == XDS_FIX_LOGON_WAIT)
        return f->since + f->c.logon_ns;
    if (f->state == XDS_FIX_LOGOUT_SENT)
        return f->since + f->c.logout_ns;
    if (f->state != XDS_FIX_UP)
        return XDS_NEVER;
    if (f->heartbeat_s)
        at = silence_ns(f) < f->last_out + interval(f) ? silence_ns(f) : f->last_out + interval(f);
    if (f->gap_top && f->asked_ns + f->c.resend_ns < at)
        at = f->asked_ns + f->c.resend_ns;
    return at;
}

void xdsi_fix_ask(struct xds_fix *f, int64_t now)
{
    const uint64_t last = f->next_in + f->c.resend_max - 1;

    f->asked_end = f->c.resend_max && last < f->gap_top ? last : 0;
    f->asked_top = f->gap_top;
    f->asked_ns = now;
    xdsi_fix_resend_request(f, f->next_in, f->asked_end, now);
}

static void silence(struct xds_fix *f, int64_t now)
{
    if (f->tested) {
        xdsi_fix_end(f, XDS_FIX_SILENT, NULL, NULL);
        return;
    }
    xdsi_fix_test(f, now);
    f->tested = 1;
    f->tested_ns = now;
    xdsi_fix_tell(f, XDS_FIX_EVENT_TESTED, NULL);
}

void xds_fix_tick(struct xds_fix *f, int64_t now)
{
    f->now = now;
    if (f->state == XDS_FIX_LOGON_SENT || f->state == XDS_FIX_LOGON_WAIT) {
        if (now >= f->since + f->c.logon_ns)
            xdsi_fix_end(f, XDS_FIX_LOGON_TIMEOUT, NULL, NULL);
        return;
    }
    if (f->state == XDS_FIX_LOGOUT_SENT) {
        if (now >= f->since + f->c.logout_ns)
            xdsi_fix_end(f, XDS_FIX_LOGOUT_LATE, NULL, NULL);
        return;
    }
    if (f->state != XDS_FIX_UP)
        return;
    if (f->gap_top && now >= f->asked_ns + f->c.resend_ns) {
        if (f->tries >= f->c.resend_tries) {
            xdsi_fix_end(f, XDS_FIX_UNANSWERED, NULL, "ResendRequests brought nothing");
            return;
        }
        f->tries++;
        xdsi_fix_ask(f, now);
    }
    if (!f->heartbeat_s)
        return;
    if (now >= silence_ns(f))
        silence(f, now);
    else if (now >= f->last_out + interval(f) && xdsi_fix_heartbeat(f, NULL, 0, now))
        f->last_out = now; /* no room: what waits to be sent is a sign of life itself */
}

int xds_fix_test_request(struct xds_fix *f, int64_t now)
{
    if (f->state != XDS_FIX_UP)
        return XDS_ESTATE;
    const int code = xdsi_fix_test(f, now);
    if (code)
        return code;
    f->tested = 2;
    f->tested_ns = now;
    return 0;
}

int xds_fix_close(struct xds_fix *f, const char *text, int64_t now)
{
    f->now = now;
    if (!is_live(f) || f->state == XDS_FIX_LOGOUT_SENT)
        return XDS_ESTATE;
    if (f->state != XDS_FIX_UP) {
        xdsi_fix_closed(f, NULL);
        return 0;
    }
    const int code = xdsi_fix_logout(f, text, now);
    if (code)
        return code;
    f->since = now;
    f->state = XDS_FIX_LOGOUT_SENT;
    return 0;
}

void xds_fix_stats(const struct xds_fix *f, struct xds_fix_stats *out)
{
    *out = f->s;
}

void xds_fix_info(const struct xds_fix *f, struct xds_fix_info *out)
{
    *out = (struct xds_fix_info){.next_out = f->next_out,
                                 .next_in = f->next_in,
                                 .gap_top = f->gap_top,
                                 .rtt_ns = f->rtt_ns,
                                 .state = f->state,
                                 .heartbeat_s = f->heartbeat_s,
                                 .unsent = f->out_len,
                                 .held = f->store.count};
}
