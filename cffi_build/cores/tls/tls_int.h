/* tls_int.h: what the files of the TLS core share. */
#ifndef XDSI_TLS_INT_H
#define XDSI_TLS_INT_H

#include "cores/tls/tls_library.h"
#include "xds/tls.h"

/* What a record may have beside its plain text: header 5, nonce 8 (1.2), type 1 (1.3), tag 16; rounded up. */
#define XDSI_TLS_OVERHEAD 32
/* Of out_bytes, for what OpenSSL adds of its own behind a full output: alerts, KeyUpdate, close_notify. */
#define XDSI_TLS_SLACK 512

enum xdsi_tls_state {
    XDSI_TLS_SHAKING = 1,
    XDSI_TLS_OPEN = 2,
    XDSI_TLS_CLOSING = 3, /* our close_notify is out, the peer's is not here */
    XDSI_TLS_OVER = 4,
};

struct xdsi_tls_ticket {
    SSL_SESSION *session;
    int64_t not_after_ns; /* UTC: when the certificate that vouched for it ends */
};

struct xds_tls_context {
    struct xdsi_tls_library lib;
    SSL_CTX *ctx;
    BIO_METHOD *bio;
    uint32_t out_bytes, verify_off, tickets_max, by_address;
    uint64_t update_records;
    int64_t handshake_ns, close_ns, utc_offset_ns;
    struct xdsi_tls_ticket tickets[XDS_TLS_TICKETS_MAX]; /* oldest first */
    uint32_t tickets_len;
    char server_name[XDS_TLS_NAME_MAX];
    char error[XDS_TLS_TEXT_MAX + XDS_TLS_NAME_MAX];
    struct xds_tls_context_stats stats;
};

struct xds_tls {
    struct xds_tls_context *c;
    SSL *ssl;
    int64_t deadline, started_ns;
    const uint8_t *in; /* what input() lends to OpenSSL, until it returns */
    uint32_t in_len;
    uint32_t head_have,
        body_left; /* of the record that comes: bytes of its head, bytes that its body lacks */
    uint8_t head[5];
    uint32_t out_head, out_tail, out_cap;
    uint32_t state;      /* enum xdsi_tls_state */
    uint32_t wants_room; /* OpenSSL waits for output() to be taken */
    uint32_t pending;    /* 1 << enum xds_tls_kind: events that wait, given in the enum's order but
                               * for DATA, which comes first: a close or a fault lies behind it     */
    uint8_t alert_in, alert_out;
    uint64_t update_at;       /* records_out where our keys change next */
    struct xds_tls_event now; /* what every event says; the fields of those that wait */
    struct xds_tls_stats stats;
    uint8_t plain[XDS_TLS_RECORD];
    uint8_t out[];
};

/* tls_context.c. take: the session to resume with, NULL: none; given: its reference is the caller's. */
SSL_SESSION *xdsi_tls_ticket_take(struct xds_tls_context *c, int64_t now_ns);
void xdsi_tls_ticket_keep(struct xds_tls_context *c, SSL_SESSION *session);

/* tls_bio.c */
void xdsi_tls_callbacks(const struct xdsi_tls_library *lib);
BIO_METHOD *xdsi_tls_bio_method(const struct xdsi_tls_library *lib);
void xdsi_tls_saw_message(int sent, int version, int type, const void *data, size_t len, SSL *ssl, void *arg);
int xdsi_tls_saw_session(SSL *ssl, SSL_SESSION *session);

/* tls_words.c */
uint32_t xdsi_tls_reason_of_verify(long verify);
uint32_t xdsi_tls_reason_of_alert(unsigned alert);
uint16_t xdsi_tls_group_of_nid(long nid);

#endif
