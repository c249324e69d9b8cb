/* fuzz_tls.c: libFuzzer over a client's session, with OpenSSL as its server in the same process.
 *
 * The first byte picks version, memory and tickets; then records {u8 what, u8 argument} are played: carry
 * bytes in pieces, damage one, put in bytes of the fuzzer's, let either side write, update keys, close, let
 * time pass. Besides what the sanitizers see (leaks, too): plain text is what the server wrote, in order; an
 * undamaged wire never fails; counters add up; what is over stays over. Handshakes draw randomness, so a find
 * may need a second run.
 */
#include "xds/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

#define PIECE 4096

static SSL_CTX *peer;

static void check(int holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();

    check(key && x);
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), -3600);
    X509_gmtime_adj(X509_getm_notAfter(x), 86400);
    X509_set_pubkey(x, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, (const uint8_t *)"x", 1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(x));
    check(X509_sign(x, key, EVP_sha256()) > 0);
    peer = SSL_CTX_new(TLS_server_method());
    check(SSL_CTX_use_certificate(peer, x) == 1 && SSL_CTX_use_PrivateKey(peer, key) == 1);
    X509_free(x);
    EVP_PKEY_free(key);
    return 0;
}

struct play {
    struct xds_tls_context *c;
    struct xds_tls *t;
    SSL *server;
    BIO *to, *from; /* the server's wire */
    uint64_t said, heard;
    int64_t now;
    int damaged, last; /* last: the kind that ended it */
};

static void take(struct play *p)
{
    struct xds_tls_event e;
    unsigned n = 0;

    while (xds_tls_event(p->t, &e)) {
        check(++n <= 8 && !p->last);
        check(e.kind > XDS_TLS_NONE && e.kind <= XDS_TLS_FAILED);
        check(e.kind == XDS_TLS_DATA || e.len == 0);
        for (uint32_t i = 0; i < e.len; i++)
            check(e.data[i] == (uint8_t)(p->heard++ * 7));
        if (e.kind == XDS_TLS_FAILED) {
            check(e.reason > XDS_TLS_OK && e.reason < XDS_TLS_REASONS && e.text[0]);
            check(p->damaged || e.reason == XDS_TLS_TRUNCATED || e.reason == XDS_TLS_TIMEOUT);
        }
        if (e.kind >= XDS_TLS_CLOSED)
            p->last = (int)e.kind;
    }
    check(p->heard <= p->said);
    check(xds_tls_over(p->t) == (p->last != 0));
}

/* Give bytes from memory of exactly their size; what an event left over comes again. */
static void give(struct play *p, const uint8_t *data, uint32_t len)
{
    while (len) {
        uint8_t *copy = malloc(len);
        memcpy(copy, data, len);
        int rc = xds_tls_input(p->t, copy, len, p->now);
        free(copy); /* nothing may lie in it any more */
        check(rc <= (int)len && (!p->last || rc == XDS_ESTATE));
        take(p);
        if (rc < 0)
            return;
        if (rc == 0) {
            uint8_t room[PIECE];
            int n = xds_tls_output(p->t, room, sizeof(room), p->now);
            take(p);
            if (n <= 0 && p->last)
                return;
            check(n > 0); /* it stops for its output alone */
            BIO_write(p->to, room, n);
            continue;
        }
        data += rc;
        len -= (uint32_t)rc;
    }
}

static void turn_server(struct play *p)
{
    uint8_t room[PIECE];

    if (!SSL_is_init_finished(p->server))
        SSL_do_handshake(p->server);
    else
        while (SSL_read(p->server, room, sizeof(room)) > 0)
            ;
    ERR_clear_error();
}

static void carry(struct play *p, unsigned argument, int damage)
{
    uint8_t room[PIECE];
    int n = xds_tls_output(p->t, room, argument + 1, p->now);

    take(p);
    if (n > 0)
        BIO_write(p->to, room, n);
    turn_server(p);
    n = BIO_read(p->from, room, (int)(argument * 16 + 1));
    if (n <= 0)
        return;
    if (damage) {
        room[argument % (unsigned)n] ^= (uint8_t)(1 + argument % 255);
        p->damaged = 1;
    }
    give(p, room, (uint32_t)n);
}

static void say(struct play *p, unsigned argument)
{
    uint8_t room[PIECE];
    int n = (int)(argument * 16 + 1);

    for (int i = 0; i < n; i++)
        room[i] = (uint8_t)((p->said + (unsigned)i) * 7);
    if (SSL_is_init_finished(p->server) && SSL_write(p->server, room, n) == n)
        p->said += (unsigned)n;
    ERR_clear_error();
}

static void act(struct play *p, unsigned what, unsigned argument)
{
    uint8_t room[PIECE] = {0};

    switch (what & 15) {
    case 0:
        say(p, argument);
        break;
    case 1:
        xds_tls_send(p->t, room, argument * 16, p->now);
        break;
    case 2:
        xds_tls_update(p->t, argument & 1, p->now);
        break;
    case 3:
        if (SSL_is_init_finished(p->server))
            SSL_key_update(p->server, argument & 1 ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
        ERR_clear_error();
        break;
    case 4:
        xds_tls_close(p->t, p->now);
        break;
    case 5:
        if (SSL_is_init_finished(p->server))
            SSL_shutdown(p->server);
        ERR_clear_error();
        break;
    case 6:
        p->now += (int64_t)argument * 100000000;
        xds_tls_tick(p->t, p->now);
        break;
    case 7:
        xds_tls_end(p->t, p->now);
        break;
    case 8:
        carry(p, argument, 1);
        break;
    default:
        carry(p, argument, 0);
        break;
    }
    take(p);
}

static void session(struct play *p, const uint8_t *data, size_t size)
{
    p->t = malloc(xds_tls_size(p->c));
    p->server = SSL_new(peer);
    p->to = BIO_new(BIO_s_mem());
    p->from = BIO_new(BIO_s_mem());
    p->said = p->heard = 0;
    p->damaged = p->last = 0;
    SSL_set_bio(p->server, p->to, p->from);
    SSL_set_accept_state(p->server);
    check(xds_tls_init(p->t, p->c, p->now) == 0);
    for (size_t at = 0; at + 2 <= size; at += 2) {
        if (data[at] >= 0xf0) { /* bytes of the fuzzer's own */
            uint32_t len = data[at + 1] < size - at - 2 ? data[at + 1] : (uint32_t)(size - at - 2);
            p->damaged = 1;
            give(p, data + at + 2, len);
            at += len;
        } else {
            act(p, data[at], data[at + 1]);
        }
        check(xds_tls_room(p->t) == 0 || !xds_tls_over(p->t));
    }
    struct xds_tls_stats s;
    xds_tls_stats(p->t, &s);
    check(s.plain_in == p->heard);
    xds_tls_done(p->t);
    xds_tls_done(p->t);
    free(p->t);
    SSL_free(p->server);
}

/* One context a setting, made once: that is set-up, and slow. */
static struct xds_tls_context *context_of(unsigned byte)
{
    static struct xds_tls_context *contexts[32];
    struct xds_tls_config g = {.server_name = "x",
                               .verify_off = 1,
                               .tickets = byte >> 2 & 3,
                               .out_bytes = byte & 2 ? XDS_TLS_OUT_MIN : 0,
                               .update_records = byte & 16 ? 3 : 0,
                               .version_max = byte & 1 ? XDS_TLS_1_2 : XDS_TLS_1_3};

    if (!contexts[byte]) {
        contexts[byte] = malloc(xds_tls_context_size());
        check(xds_tls_context_init(contexts[byte], &g) == 0);
    }
    return contexts[byte];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct play p = {.now = 1000000000};
    struct xds_tls_context_stats s;
    uint64_t sum;

    if (size < 2)
        return 0;
    p.c = context_of(data[0] & 31);
    /* Twice, so that the second may resume. */
    session(&p, data + 1, (size - 1) / 2);
    session(&p, data + 1 + (size - 1) / 2, size - 1 - (size - 1) / 2);
    xds_tls_context_stats(p.c, &s);
    check(s.live == 0 && s.tickets_kept <= (data[0] >> 2 & 3));
    sum = s.closed + s.aborted;
    for (unsigned i = 0; i < XDS_TLS_REASONS; i++)
        sum += s.reasons[i];
    check(s.started == sum);
    xds_tls_context_forget(p.c);
    return 0;
}
