/* tls_bio.c: OpenSSL's wire and its eyes: cipher text in the caller's memory, and what OpenSSL tells of alerts,
 * records and key updates. */
#include "cores/tls/tls_int.h"

#include <stdatomic.h>
#include <string.h>

/* The one global of the cores that is not constant, and only tls has it: callbacks get the BIO or the SSL and
 * no word of ours, so the calls that lead from there to the session cannot lie in the session. Every context
 * writes the same addresses, for the library is loaded once. */
static struct {
    _Atomic(void *) bio_data, set_flags, clear_flags, ssl_data;
} calls;

void xdsi_tls_callbacks(const struct xdsi_tls_library *lib)
{
    atomic_store(&calls.bio_data, *(void *const *)&lib->BIO_get_data);
    atomic_store(&calls.set_flags, *(void *const *)&lib->BIO_set_flags);
    atomic_store(&calls.clear_flags, *(void *const *)&lib->BIO_clear_flags);
    atomic_store(&calls.ssl_data, *(void *const *)&lib->SSL_get_ex_data);
}

static struct xds_tls *begin(BIO *b)
{
    void *(*bio_data)(BIO *);
    void (*clear_flags)(BIO *, int);

    *(void **)&bio_data = atomic_load_explicit(&calls.bio_data, memory_order_relaxed);
    *(void **)&clear_flags = atomic_load_explicit(&calls.clear_flags, memory_order_relaxed);
    clear_flags(b, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY);
    return bio_data(b);
}

static int later(BIO *b, int flag)
{
    void (*set_flags)(BIO *, int);

    *(void **)&set_flags = atomic_load_explicit(&calls.set_flags, memory_order_relaxed);
    set_flags(b, flag | BIO_FLAGS_SHOULD_RETRY);
    return -1;
}

/* OpenSSL takes a record's head and its body as they are asked for: which of them are whole. */
static void frame(struct xds_tls *t, const uint8_t *p, uint32_t n)
{
    while (n) {
        uint32_t step = 1;
        if (t->head_have < sizeof(t->head)) {
            t->head[t->head_have++] = *p;
            t->body_left = (uint32_t)t->head[3] << 8 | t->head[4];
        } else {
            step = n < t->body_left ? n : t->body_left;
            t->body_left -= step;
        }
        p += step;
        n -= step;
        if (t->head_have == sizeof(t->head) && t->body_left == 0) {
            t->stats.records_in++;
            t->head_have = 0;
        }
    }
}

static int bio_read(BIO *b, char *room, int cap)
{
    struct xds_tls *t = begin(b);
    uint32_t n = cap > 0 ? (uint32_t)cap : 0;

    n = n < t->in_len ? n : t->in_len;
    if (n == 0)
        return later(b, BIO_FLAGS_READ);
    memcpy(room, t->in, n);
    frame(t, t->in, n);
    t->in += n;
    t->in_len -= n;
    return (int)n;
}

static int bio_write(BIO *b, const char *data, int len)
{
    struct xds_tls *t = begin(b);
    uint32_t held = t->out_tail - t->out_head, n = len > 0 ? (uint32_t)len : 0;

    if (t->out_cap - t->out_tail < n && t->out_head) {
        memmove(t->out, t->out + t->out_head, held);
        t->out_head = 0;
        t->out_tail = held;
    }
    n = n < t->out_cap - t->out_tail ? n : t->out_cap - t->out_tail;
    if (n == 0)
        return later(b, BIO_FLAGS_WRITE);
    memcpy(t->out + t->out_tail, data, n);
    t->out_tail += n;
    return (int)n;
}

static long bio_ctrl(BIO *b, int cmd, long num, void *ptr)
{
    return cmd == BIO_CTRL_FLUSH; /* nothing is held back; of all else (kTLS, pending) OpenSSL hears no */
}

BIO_METHOD *xdsi_tls_bio_method(const struct xdsi_tls_library *lib)
{
    BIO_METHOD *m = lib->BIO_meth_new(BIO_TYPE_SOURCE_SINK | 0xff, "caller's memory");

    if (!m || !lib->BIO_meth_set_read(m, bio_read) || !lib->BIO_meth_set_write(m, bio_write) ||
        !lib->BIO_meth_set_ctrl(m, bio_ctrl)) {
        lib->BIO_meth_free(m);
        return NULL;
    }
    return m;
}

static void saw_alert(struct xds_tls *t, int sent, unsigned level, unsigned alert)
{
    if (sent) {
        t->stats.alerts_out++;
        t->alert_out = (uint8_t)alert;
        return;
    }
    t->stats.alerts_in++;
    t->alert_in = (uint8_t)alert;
    if (level == SSL3_AL_WARNING && alert != SSL_AD_CLOSE_NOTIFY) {
        t->now.alert = (uint8_t)alert;
        t->pending |= 1u << XDS_TLS_ALERT;
    }
}

/* OpenSSL's message callback. Alerts come here too, as two bytes; arg: the session. */
void xdsi_tls_saw_message(int sent, int version, int type, const void *data, size_t len, SSL *ssl, void *arg)
{
    struct xds_tls *t = arg;
    const uint8_t *p = data;

    switch (type) {
    case SSL3_RT_HEADER:
        t->stats.records_out += sent != 0;
        return;
    case SSL3_RT_ALERT:
        if (len == 2)
            saw_alert(t, sent, p[0], p[1]);
        return;
    case SSL3_RT_HANDSHAKE:
        if (len == 0 || p[0] != SSL3_MT_KEY_UPDATE || t->state == XDSI_TLS_SHAKING)
            return; /* one that has no place yet is refused, not counted */
        *(sent ? &t->stats.key_updates_out : &t->stats.key_updates_in) += 1;
        if (!sent)
            t->pending |= 1u << XDS_TLS_KEY_UPDATE;
        return;
    default:
        return;
    }
}

/* OpenSSL's callback for a session that can be resumed. 1: we keep its reference. */
int xdsi_tls_saw_session(SSL *ssl, SSL_SESSION *session)
{
    void *(*ssl_data)(const SSL *, int);

    *(void **)&ssl_data = atomic_load_explicit(&calls.ssl_data, memory_order_relaxed);
    struct xds_tls *t = ssl_data(ssl, 0);
    t->stats.tickets++;
    t->c->stats.tickets++;
    t->pending |= 1u << XDS_TLS_TICKET;
    if (t->c->tickets_max == 0)
        return 0;
    xdsi_tls_ticket_keep(t->c, session);
    return 1;
}
