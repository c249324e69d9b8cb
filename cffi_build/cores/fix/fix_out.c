/* fix_out.c: what leaves. Each message is built where it waits to be sent; a number is used only once it is
 * there. What the peer asked for again is built as output makes room, before anything newer.
 */
#include "fix_int.h"

static int is_own(const uint8_t *type, uint32_t len)
{
    return len == 1 && ((*type >= '0' && *type <= '5') || *type == 'A');
}

/* The builder over the free end of the output; header behind MsgType. */
static void begin(struct xds_fix *f, struct xds_fix_builder *b, const char *type, uint64_t seq, int64_t now)
{
    uint32_t free = f->c.output_bytes - f->out_at - f->out_len;

    if (f->out_at && free < f->c.message_max + AROUND) {
        memmove(f->out, f->out + f->out_at, f->out_len);
        f->out_at = 0;
        free = f->c.output_bytes - f->out_len;
    }
    xds_fix_begin(b, f->out + f->out_at + f->out_len, free, f->begin_string, type);
    if (b->fault || b->cap - b->at < f->prefix_len + AROUND / 4) {
        b->fault = XDS_ECAPACITY;
        return;
    }
    memcpy(b->room + b->at, f->prefix, f->prefix_len);
    b->at += f->prefix_len;
    xds_fix_put_integer(b, 34, (int64_t)seq);
    xds_fix_put_time(b, 52, now, f->c.leap_ns, f->c.time_digits);
}

static int finish(struct xds_fix *f, struct xds_fix_builder *b, int64_t now)
{
    uint32_t start;
    const int len = xds_fix_finish(b, &start);

    if (len < 0)
        return len;
    memmove(b->room, b->room + start, (uint32_t)len);
    f->out_len += (uint32_t)len;
    f->last_out = now;
    f->s.sent++;
    f->s.sent_bytes += (uint32_t)len;
    return 0;
}

static int finish_next(struct xds_fix *f, struct xds_fix_builder *b, int64_t now)
{
    const int code = finish(f, b, now);

    if (!code)
        f->next_out++;
    return code;
}

static void put_text(struct xds_fix_builder *b, uint32_t tag, const char *text)
{
    if (text && *text)
        xds_fix_put(b, tag, (const uint8_t *)text, (uint32_t)strlen(text));
}

int xdsi_fix_logon(struct xds_fix *f, int reset, int64_t now)
{
    struct xds_fix_builder b;

    begin(f, &b, "A", f->next_out, now);
    xds_fix_put_integer(&b, 98, 0);
    xds_fix_put_integer(&b, 108, f->heartbeat_s);
    if (reset)
        put_text(&b, 141, "Y");
    put_text(&b, 553, f->c.username);
    put_text(&b, 554, f->c.password);
    if (f->c.version == XDS_FIXT_11)
        put_text(&b, 1137, f->c.default_appl_ver_id);
    return finish_next(f, &b, now);
}

int xdsi_fix_logout(struct xds_fix *f, const char *text, int64_t now)
{
    struct xds_fix_builder b;

    begin(f, &b, "5", f->next_out, now);
    put_text(&b, 58, text);
    return finish_next(f, &b, now);
}

int xdsi_fix_heartbeat(struct xds_fix *f, const uint8_t *id, uint32_t len, int64_t now)
{
    struct xds_fix_builder b;

    begin(f, &b, "0", f->next_out, now);
    if (id)
        xds_fix_put(&b, 112, id, len);
    return finish_next(f, &b, now);
}

int xdsi_fix_test(struct xds_fix *f, int64_t now)
{
    struct xds_fix_builder b;

    begin(f, &b, "1", f->next_out, now);
    xds_fix_put_integer(&b, 112, f->test_id + 1);
    const int code = finish_next(f, &b, now);
    if (!code)
        f->test_id++;
    return code;
}

int xdsi_fix_resend_request(struct xds_fix *f, uint64_t first, uint64_t end, int64_t now)
{
    struct xds_fix_builder b;

    begin(f, &b, "2", f->next_out, now);
    xds_fix_put_integer(&b, 7, (int64_t)first);
    xds_fix_put_integer(&b, 16, (int64_t)end);
    const int code = finish_next(f, &b, now);
    f->s.asked += !code;
    return code;
}

int xdsi_fix_reject(struct xds_fix *f, const struct xdsi_fix_head *h, uint32_t why, uint32_t tag,
                    const char *text, int64_t now)
{
    struct xds_fix_builder b;

    begin(f, &b, "3", f->next_out, now);
    xds_fix_put_integer(&b, 45, (int64_t)h->seq);
    if (tag)
        xds_fix_put_integer(&b, 371, tag);
    put_text(&b, 372, h->type);
    if (f->c.version != XDS_FIX_42 || why <= 11) /* 4.2 knows no more */
        xds_fix_put_integer(&b, 373, why);
    put_text(&b, 58, text);
    const int code = finish_next(f, &b, now);
    f->s.rejected += !code;
    return code;
}

/* Numbers first .. until - 1 hold nothing that is sent again. */
static int fill(struct xds_fix *f, uint64_t first, uint64_t until, int64_t now)
{
    struct xds_fix_builder b;

    begin(f, &b, "4", first, now);
    put_text(&b, 43, "Y");
    xds_fix_put_time(&b, 122, now, f->c.leap_ns, f->c.time_digits);
    put_text(&b, 123, "Y");
    xds_fix_put_integer(&b, 36, (int64_t)until);
    const int code = finish(f, &b, now);
    f->s.filled += !code;
    return code;
}

/* MsgType of a message that begins with 35=, NUL-terminated; its length, 0: too long for us. */
static uint32_t type_of(const uint8_t *message, uint32_t len, char type[32])
{
    const uint32_t end = xdsi_fix_soh(message, 3, len), n = end - 3;

    if (n > 31)
        return 0;
    memcpy(type, message + 3, n);
    type[n] = 0;
    return n;
}

/* The fields behind MsgType, as they are. */
static void put_body(struct xds_fix_builder *b, const uint8_t *body, uint32_t len)
{
    if (b->fault || b->cap - b->at < len + 16) {
        b->fault = XDS_ECAPACITY;
        return;
    }
    memcpy(b->room + b->at, body, len);
    b->at += len;
}

static int resend(struct xds_fix *f, const struct xdsi_fix_held *m, int64_t now)
{
    const uint8_t *data = f->store.bytes + m->at;
    struct xds_fix_builder b;
    char type[32];
    const uint32_t n = type_of(data, m->len, type);

    begin(f, &b, type, m->seq, now);
    put_text(&b, 43, "Y");
    xds_fix_put_time(&b, 122, m->sent_ns, f->c.leap_ns, f->c.time_digits);
    put_body(&b, data + 4 + n, m->len - 4 - n);
    const int code = finish(f, &b, now);
    f->s.resent += !code;
    return code;
}

void xdsi_fix_pump(struct xds_fix *f, int64_t now)
{
    while (f->resend_next <= f->resend_end) {
        const struct xdsi_fix_held *m = xdsi_fix_store_at(&f->store, f->resend_next);
        const uint64_t end = f->resend_end + 1, next = m && m->seq < end ? m->seq : end;
        if (f->c.output_bytes - f->out_len < f->c.message_max + AROUND)
            return;
        if (next > f->resend_next) {
            if (fill(f, f->resend_next, next, now))
                return;
            f->resend_next = next;
        } else if (resend(f, m, now)) {
            return;
        } else {
            f->resend_next++;
        }
    }
}

/* Only fields that the caller may set: not those of header and trailer that are made here. */
static int is_reserved(const struct xds_fix *f, uint32_t tag)
{
    switch (tag) {
    case 8:
    case 9:
    case 10:
    case 34:
    case 35:
    case 43:
    case 49:
    case 52:
    case 56:
    case 122:
        return 1;
    case 50:
        return f->c.sender_sub_id[0] != 0;
    case 57:
        return f->c.target_sub_id[0] != 0;
    }
    return 0;
}

static int check_body(const struct xds_fix *f, const uint8_t *message, uint32_t len, uint32_t at)
{
    struct xdsi_fix_data data = {0, 0};
    struct xds_fix_field field;

    while (at < len) {
        at = xdsi_fix_next(message, len, at, &field, &data);
        if (!at || is_reserved(f, field.tag))
            return XDS_EMALFORMED;
    }
    return data.tag ? XDS_EMALFORMED : 0; /* a length, and no data behind it */
}

int xds_fix_send(struct xds_fix *f, const uint8_t *message, uint32_t len, int64_t now)
{
    struct xds_fix_builder b;
    char type[32];

    if (f->state != XDS_FIX_UP)
        return XDS_ESTATE;
    if (len > f->c.message_max - AROUND)
        return XDS_ECAPACITY;
    if (len < 5 || memcmp(message, "35=", 3) || message[len - 1] != SOH || message[3] == SOH)
        return XDS_EMALFORMED;
    const uint32_t n = type_of(message, len, type);
    if (!n || is_own(message + 3, n) || check_body(f, message, len, 4 + n))
        return XDS_EMALFORMED;
    xdsi_fix_pump(f, now);
    if (f->resend_next <= f->resend_end)
        return XDS_ECAPACITY;
    const uint64_t seq = f->next_out;
    begin(f, &b, type, seq, now);
    put_body(&b, message + 4 + n, len - 4 - n);
    const int code = finish_next(f, &b, now);
    if (code)
        return code;
    f->s.sent_messages++;
    f->s.forgotten += xdsi_fix_store_put(&f->store, seq, now, message, len);
    return 0;
}

int xds_fix_output(struct xds_fix *f, uint8_t *room, uint32_t cap, int64_t now)
{
    uint32_t n = 0;

    for (;;) {
        const uint32_t part = f->out_len < cap - n ? f->out_len : cap - n;
        memcpy(room + n, f->out + f->out_at, part);
        n += part;
        f->out_at += part, f->out_len -= part;
        if (!f->out_len)
            f->out_at = 0;
        if (f->resend_next > f->resend_end || f->state == XDS_FIX_ENDED)
            return (int)n;
        const uint32_t before = f->out_len;
        xdsi_fix_pump(f, now);
        if (n == cap || f->out_len == before)
            return (int)n;
    }
}
