/* tls.c: one session: the verbs over OpenSSL's state machine (see xds/tls.h).
 *
 * OpenSSL runs in step(), which ends at the first of: an event, no more input, no more room for output. It
 * reads ahead of nothing, so what input() did not lend past is the caller's still. What it may write is bounded
 * by send(), which takes no more than the output holds, so a write never waits half done. */
#include "cores/tls/tls_int.h"

#include <stdio.h>
#include <string.h>

#define NS 1000000000LL

size_t xds_tls_size(const struct xds_tls_context *c)
{
    return sizeof(struct xds_tls) + c->out_bytes;
}

static int live(const struct xds_tls *t)
{
    return t->ssl && t->state < XDSI_TLS_OVER;
}

static void over(struct xds_tls *t)
{
    t->state = XDSI_TLS_OVER;
    t->deadline = XDS_NEVER;
    t->wants_room = 0;
    t->c->stats.live--;
}

static int fail(struct xds_tls *t, uint32_t reason, const char *more)
{
    const char *name = reason == XDS_TLS_WRONG_NAME ? t->c->server_name : NULL;

    over(t);
    t->c->stats.reasons[reason]++;
    t->now.reason = reason;
    t->pending |= 1u << XDS_TLS_FAILED;
    snprintf(t->now.text, sizeof(t->now.text), "%s%s%s%s%s%s", xds_tls_reason_text(reason),
             name ? " than " : "", name ? name : "", more ? " (" : "", more ? more : "", more ? ")" : "");
    if (reason == XDS_TLS_TRUNCATED)
        return XDS_ETRUNC;
    return reason >= XDS_TLS_EXPIRED && reason <= XDS_TLS_CERTIFICATE ? XDS_EFOREIGN : XDS_EMALFORMED;
}

/* OpenSSL gave up: why, by the first thing that it noted. */
static int fault(struct xds_tls *t)
{
    const struct xdsi_tls_library *lib = &t->c->lib;
    unsigned long e = lib->ERR_peek_error();
    int code = ERR_GET_LIB(e) == ERR_LIB_SSL ? ERR_GET_REASON(e) : 0;
    const char *why = e ? lib->ERR_reason_error_string(e) : NULL;

    if (code == SSL_R_CERTIFICATE_VERIFY_FAILED) {
        long verify = lib->SSL_get_verify_result(t->ssl);
        uint32_t reason = xdsi_tls_reason_of_verify(verify);
        t->now.verify = (uint32_t)verify;
        t->now.alert = t->alert_out;
        return fail(t, reason,
                    reason == XDS_TLS_CERTIFICATE ? lib->X509_verify_cert_error_string(verify) : NULL);
    }
    if (code >= SSL_AD_REASON_OFFSET) {
        t->now.alert = t->alert_in;
        return fail(t, XDS_TLS_PEER_ALERT, xds_tls_alert_name(t->alert_in));
    }
    t->now.alert = t->alert_out;
    if (code == SSL_R_WRONG_VERSION_NUMBER) /* the alert says version; it is mostly no TLS at all */
        return fail(t, XDS_TLS_MALFORMED, "no TLS record");
    if (ERR_GET_REASON(e) == ERR_R_MALLOC_FAILURE)
        return fail(t, XDS_TLS_INTERNAL, "no memory");
    return fail(t, xdsi_tls_reason_of_alert(t->alert_out), why);
}

static void shaken(struct xds_tls *t, int64_t now_ns)
{
    const struct xdsi_tls_library *lib = &t->c->lib;
    struct xds_tls_event *e = &t->now;
    const unsigned char *name;
    unsigned len;

    t->state = XDSI_TLS_OPEN;
    t->deadline = XDS_NEVER;
    t->update_at = t->stats.records_out + t->c->update_records;
    e->handshake_ns = now_ns - t->started_ns;
    e->version = (uint16_t)lib->SSL_version(t->ssl);
    e->cipher = lib->SSL_CIPHER_get_protocol_id(lib->SSL_get_current_cipher(t->ssl));
    e->resumed = (uint8_t)lib->SSL_session_reused(t->ssl);
    e->group = xdsi_tls_group_of_nid(lib->SSL_ctrl(t->ssl, SSL_CTRL_GET_NEGOTIATED_GROUP, 0, NULL));
    if (e->resumed && e->version == XDS_TLS_1_2)
        e->group = 0; /* OpenSSL tells the one of the session's first handshake */
    e->verify = (uint32_t)lib->SSL_get_verify_result(t->ssl);
    e->verified = !t->c->verify_off && e->verify == X509_V_OK;
    lib->SSL_get0_alpn_selected(t->ssl, &name, &len);
    e->alpn_len = (uint8_t)(len < sizeof(e->alpn) ? len : sizeof(e->alpn)); /* one of ours, which fit */
    memcpy(e->alpn, name ? (const char *)name : "", e->alpn_len);
    *(e->resumed ? &t->c->stats.resumed : &t->c->stats.full) += 1;
    t->c->stats.unverified += !e->verified;
    t->pending |= 1u << XDS_TLS_HANDSHAKE;
}

static void closed(struct xds_tls *t, int clean)
{
    over(t);
    t->now.clean = (uint8_t)clean;
    t->c->stats.closed++;
    t->pending |= 1u << XDS_TLS_CLOSED;
}

/* One call of OpenSSL. 1: call again, 0: it waits or made an event, < 0: the session is over. */
static int step(struct xds_tls *t, int64_t now_ns)
{
    const struct xdsi_tls_library *lib = &t->c->lib;
    size_t len = 0;
    int rc;

    lib->ERR_clear_error();
    t->wants_room = 0;
    if (t->state == XDSI_TLS_SHAKING) {
        rc = lib->SSL_do_handshake(t->ssl);
        if (rc == 1) {
            shaken(t, now_ns);
            return 0;
        }
    } else {
        rc = lib->SSL_read_ex(t->ssl, t->plain, sizeof(t->plain), &len);
        if (rc == 1) {
            t->now.data = t->plain;
            t->now.len = (uint32_t)len;
            t->stats.plain_in += len;
            t->pending |= 1u << XDS_TLS_DATA;
            return 0;
        }
    }
    switch (lib->SSL_get_error(t->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        return t->in_len > 0 && t->pending == 0;
    case SSL_ERROR_WANT_WRITE:
        t->wants_room = 1;
        return 0;
    case SSL_ERROR_ZERO_RETURN:
        if (t->state == XDSI_TLS_OPEN)
            lib->SSL_shutdown(t->ssl); /* RFC 8446 6.1, 5246 7.2.1: answered */
        closed(t, 1);
        return 0;
    default:
        return fault(t);
    }
}

int xds_tls_init(void *mem, struct xds_tls_context *c, int64_t now_ns)
{
    const struct xdsi_tls_library *lib = &c->lib;
    struct xds_tls *t = mem;
    SSL_SESSION *session;
    BIO *bio;

    memset(t, 0, sizeof(*t));
    t->c = c;
    t->out_cap = c->out_bytes;
    t->started_ns = now_ns;
    lib->ERR_clear_error();
    t->ssl = lib->SSL_new(c->ctx);
    bio = t->ssl ? lib->BIO_new(c->bio) : NULL;
    if (!bio || !lib->SSL_set_ex_data(t->ssl, 0, t)) {
        xds_tls_done(t);
        return XDS_ECAPACITY;
    }
    lib->BIO_set_data(bio, t);
    lib->BIO_set_init(bio, 1);
    lib->SSL_set_bio(t->ssl, bio, bio);
    lib->SSL_set_connect_state(t->ssl);
    lib->SSL_set_msg_callback(t->ssl, xdsi_tls_saw_message);
    lib->SSL_ctrl(t->ssl, SSL_CTRL_SET_MSG_CALLBACK_ARG, 0, t);
    lib->X509_VERIFY_PARAM_set_time(lib->SSL_get0_param(t->ssl), (now_ns - c->utc_offset_ns) / NS);
    if (*c->server_name && !c->by_address)
        lib->SSL_ctrl(t->ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, c->server_name);
    session = xdsi_tls_ticket_take(c, now_ns);
    if (session) {
        lib->SSL_set_session(t->ssl, session);
        lib->SSL_SESSION_free(session);
    }
    t->state = XDSI_TLS_SHAKING;
    t->deadline = now_ns + c->handshake_ns;
    c->stats.started++;
    c->stats.live++;
    step(t, now_ns);
    return 0;
}

/* Run OpenSSL over what `in` lends, until it waits or has something to tell. */
static int run(struct xds_tls *t, int64_t now_ns)
{
    int rc;

    do {
        uint32_t before = t->in_len;
        rc = step(t, now_ns);
        if (rc == 1 && t->in_len == before)
            rc = 0; /* it asked for more and took nothing: never twice */
    } while (rc == 1);
    return rc;
}

int xds_tls_input(struct xds_tls *t, const uint8_t *data, uint32_t len, int64_t now_ns)
{
    uint32_t most = len < INT32_MAX ? len : INT32_MAX;
    int rc;

    if (!live(t) || t->pending & 1u << XDS_TLS_DATA)
        return XDS_ESTATE;
    t->in = data;
    t->in_len = most;
    rc = run(t, now_ns);
    uint32_t taken = most - t->in_len;
    t->in = NULL;
    t->in_len = 0;
    t->stats.cipher_in += taken;
    return rc < 0 ? rc : (int)taken;
}

int xds_tls_end(struct xds_tls *t, int64_t now_ns)
{
    if (!live(t))
        return 0;
    return fail(t, XDS_TLS_TRUNCATED, t->state == XDSI_TLS_SHAKING ? "during the handshake" : NULL);
}

int xds_tls_event(struct xds_tls *t, struct xds_tls_event *out)
{
    if (!t->pending)
        return 0;
    uint32_t kind = (uint32_t)__builtin_ctz(t->pending);
    t->pending &= t->pending - 1;
    memcpy(out, &t->now, offsetof(struct xds_tls_event, text)); /* text is long, and FAILED's alone */
    out->text[0] = 0;
    out->kind = kind;
    if (kind != XDS_TLS_DATA) {
        out->data = NULL;
        out->len = 0;
    }
    if (kind == XDS_TLS_FAILED)
        memcpy(out->text, t->now.text, sizeof(out->text));
    else
        out->reason = XDS_TLS_OK;
    if (kind != XDS_TLS_FAILED && kind != XDS_TLS_ALERT)
        out->alert = 0;
    return 1;
}

int xds_tls_output(struct xds_tls *t, uint8_t *room, uint32_t cap, int64_t now_ns)
{
    uint32_t n = t->out_tail - t->out_head;

    n = n < cap ? n : cap;
    n = n < INT32_MAX ? n : INT32_MAX;
    if (n == 0)
        return 0;
    memcpy(room, t->out + t->out_head, n);
    t->out_head += n;
    if (t->out_head == t->out_tail)
        t->out_head = t->out_tail = 0;
    t->stats.cipher_out += n;
    if (t->wants_room && live(t) && !(t->pending & 1u << XDS_TLS_DATA))
        run(t, now_ns);
    return (int)n;
}

int xds_tls_over(const struct xds_tls *t)
{
    return !live(t);
}

int64_t xds_tls_deadline(const struct xds_tls *t)
{
    return t->deadline;
}

void xds_tls_tick(struct xds_tls *t, int64_t now_ns)
{
    if (!live(t) || now_ns < t->deadline)
        return;
    if (t->state == XDSI_TLS_CLOSING)
        closed(t, 0);
    else
        fail(t, XDS_TLS_TIMEOUT, NULL);
}

/* Plain text whose records fit into so many bytes. */
static uint32_t plain_of(uint32_t open)
{
    const uint32_t record = XDS_TLS_RECORD + XDSI_TLS_OVERHEAD;

    if (open <= XDSI_TLS_SLACK)
        return 0;
    open -= XDSI_TLS_SLACK;
    uint32_t rest = open % record;
    return open / record * XDS_TLS_RECORD + (rest > XDSI_TLS_OVERHEAD ? rest - XDSI_TLS_OVERHEAD : 0);
}

uint32_t xds_tls_room(const struct xds_tls *t)
{
    return t->state == XDSI_TLS_OPEN ? plain_of(t->out_cap - (t->out_tail - t->out_head)) : 0;
}

uint32_t xds_tls_most(const struct xds_tls_context *c)
{
    return plain_of(c->out_bytes);
}

int xds_tls_send(struct xds_tls *t, const uint8_t *data, uint32_t len, int64_t now_ns)
{
    const struct xdsi_tls_library *lib = &t->c->lib;
    uint32_t n = xds_tls_room(t);
    size_t sent;

    if (t->state != XDSI_TLS_OPEN || !t->ssl)
        return XDS_ESTATE;
    n = n < len ? n : len;
    if (n == 0 || t->wants_room) /* OpenSSL has something of its own to write first */
        return 0;
    lib->ERR_clear_error();
    if (t->stats.records_out >= t->update_at && t->now.version == XDS_TLS_1_3) {
        lib->SSL_key_update(t->ssl, SSL_KEY_UPDATE_NOT_REQUESTED); /* goes before what is written next */
        t->update_at = t->stats.records_out + t->c->update_records;
    }
    if (lib->SSL_write_ex(t->ssl, data, n, &sent) != 1)
        return fail(t, XDS_TLS_INTERNAL, lib->ERR_reason_error_string(lib->ERR_peek_error()));
    t->stats.plain_out += sent;
    return (int)sent;
}

int xds_tls_update(struct xds_tls *t, int both, int64_t now_ns)
{
    const struct xdsi_tls_library *lib = &t->c->lib;

    if (t->state != XDSI_TLS_OPEN || !t->ssl || t->now.version != XDS_TLS_1_3)
        return XDS_ESTATE;
    if (t->wants_room || xds_tls_room(t) == 0)
        return XDS_ECAPACITY;
    lib->ERR_clear_error();
    if (!lib->SSL_key_update(t->ssl, both ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED) ||
        lib->SSL_do_handshake(t->ssl) != 1)
        return XDS_ECAPACITY;
    t->update_at = t->stats.records_out + t->c->update_records;
    return 0;
}

int xds_tls_close(struct xds_tls *t, int64_t now_ns)
{
    if (!live(t) || t->state == XDSI_TLS_CLOSING)
        return XDS_ESTATE;
    if (t->state == XDSI_TLS_SHAKING) {
        closed(t, 0);
        return 0;
    }
    if (t->wants_room || xds_tls_room(t) == 0)
        return XDS_ECAPACITY;
    t->c->lib.ERR_clear_error();
    t->c->lib.SSL_shutdown(t->ssl);
    t->state = XDSI_TLS_CLOSING;
    t->deadline = now_ns + t->c->close_ns;
    return 0;
}

void xds_tls_stats(const struct xds_tls *t, struct xds_tls_stats *out)
{
    *out = t->stats;
    out->out_bytes = t->out_tail - t->out_head;
    out->part_in = t->head_have > 0;
}

void xds_tls_done(struct xds_tls *t)
{
    const struct xdsi_tls_library *lib = &t->c->lib;

    if (!t->ssl)
        return;
    if (t->state && t->state != XDSI_TLS_OVER) {
        over(t);
        t->c->stats.aborted++;
    }
    /* Else OpenSSL takes a connection that was cut for a reason to forget its ticket. */
    lib->SSL_set_shutdown(t->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    lib->SSL_free(t->ssl);
    t->ssl = NULL;
}
