/* tls.h: TLS 1.3 and 1.2 for one stream, as a client (RFC 8446, 5246, 6066, 7301, 5077), by OpenSSL 3.
 *
 * No sockets and no clock of ours: cipher text goes in by input(), comes out by output(), plain text comes by
 * event() and goes by send(). Two things, both in the caller's memory:
 *   context   what all sessions of one profile share: name, trust, certificate, tickets. Made at set-up: it
 *             reads the trust store, which takes milliseconds.
 *   session   one connection. done() when it ends: OpenSSL holds memory of its own for it.
 * A context and its sessions belong to one thread.
 *
 * OpenSSL is the one foreign engine in the cores. libssl.so.3 is loaded when the first context is made, and
 * never before: who uses no TLS pays nothing. It allocates (handshake, records), draws randomness, and uses
 * its own clock for the age of tickets alone: certificates are judged by now_ns.
 *
 * The server's chain and name are verified unless the config says otherwise aloud. Renegotiation is refused.
 * input() stops behind what made an event. A session that failed may still have an alert to send.
 *
 * At all times, over a context: started = live + closed + aborted + the sum of reasons[1..]. */
#ifndef XDS_TLS_H
#define XDS_TLS_H

#include "base.h"

#define XDS_TLS_1_2         0x0303
#define XDS_TLS_1_3         0x0304
#define XDS_TLS_RECORD      16384 /* plain text of one record at most: RFC 8446 5.1           */
#define XDS_TLS_OUT_MIN     20480 /* least out_bytes: one record, and an alert behind it      */
#define XDS_TLS_TICKETS_MAX 8
#define XDS_TLS_TEXT_MAX    384 /* a sentence, with the longest name in it */
#define XDS_TLS_NAME_MAX    256

enum xds_tls_ciphers {
    XDS_TLS_CIPHERS_AUTO = 0,   /* AES first where the CPU has AES instructions                        */
    XDS_TLS_CIPHERS_AES = 1,    /* AES-128-GCM, ChaCha20-Poly1305, AES-256-GCM                         */
    XDS_TLS_CIPHERS_CHACHA = 2, /* ChaCha20-Poly1305, AES-128-GCM, AES-256-GCM                         */
};

/* In the order in which events are given that one input made. */
enum xds_tls_kind {
    XDS_TLS_NONE = 0,
    XDS_TLS_HANDSHAKE = 1,  /* done: everything that was negotiated is filled                       */
    XDS_TLS_TICKET = 2,     /* the server gave tickets: the next session may resume                 */
    XDS_TLS_KEY_UPDATE = 3, /* the peer changed its keys (1.3)                                      */
    XDS_TLS_ALERT = 4,      /* alert: a warning of the peer, which ended nothing                    */
    XDS_TLS_DATA = 5,       /* data, len: plain text                                                */
    XDS_TLS_CLOSED = 6,     /* close_notify came, and was answered or asked for: nothing was cut off */
    XDS_TLS_FAILED = 7,     /* reason, text: the session is over                                    */
};

/* Why a session failed; xds_tls_reason_text() has a sentence for each. */
enum xds_tls_reason {
    XDS_TLS_OK = 0,
    XDS_TLS_TRUNCATED = 1,      /* the transport ended without close_notify                         */
    XDS_TLS_TIMEOUT = 2,        /* no handshake within handshake_ns                                 */
    XDS_TLS_EXPIRED = 3,        /* a certificate of the chain is past its time                      */
    XDS_TLS_NOT_YET = 4,        /* ... or its time has not begun                                    */
    XDS_TLS_SELF_SIGNED = 5,    /* it vouches for itself, and is not trusted                        */
    XDS_TLS_UNKNOWN_CA = 6,     /* its issuer is not in the trust store                             */
    XDS_TLS_WRONG_NAME = 7,     /* it is for other names                                            */
    XDS_TLS_WEAK = 8,           /* a key too short or a digest too weak for the security level      */
    XDS_TLS_CERTIFICATE = 9,    /* another fault of the chain                                       */
    XDS_TLS_VERSION = 10,       /* no version in common                                             */
    XDS_TLS_CIPHER = 11,        /* no cipher, group or signature in common                          */
    XDS_TLS_RECORD_BAD = 12,    /* a record that does not decrypt                                   */
    XDS_TLS_RECORD_LENGTH = 13, /* a record longer than allowed                                     */
    XDS_TLS_MALFORMED = 14,     /* a message that is not built as it should be; not TLS at all      */
    XDS_TLS_UNEXPECTED = 15,    /* a message that has no place here                                 */
    XDS_TLS_PEER_ALERT = 16,    /* alert: the peer's fatal one                                      */
    XDS_TLS_PROTOCOL = 17,      /* another fault that OpenSSL names in text                         */
    XDS_TLS_INTERNAL = 18,      /* OpenSSL failed on its own: memory                                */
    XDS_TLS_REASONS = 19,
};

/* Strings are borrowed by xds_tls_context_init, NULL where there is none. */
struct xds_tls_config {
    const char *server_name; /* asked for and verified; an IP address is verified as one             */
    const char *ca_file;     /* PEM, the only roots that are trusted; NULL: the system's             */
    const char *cert_file;   /* PEM, the client's chain, own certificate first                       */
    const char *key_file;    /* PEM, its key; NULL: in cert_file                                     */
    const char *alpn;        /* protocols by preference, comma between: "fix,http/1.1"               */
    uint32_t version_min;    /* XDS_TLS_1_2, XDS_TLS_1_3; 0: 1.2                                     */
    uint32_t version_max;    /* 0: 1.3                                                               */
    uint32_t ciphers;        /* enum xds_tls_ciphers                                                 */
    uint32_t verify_off;     /* 1: trusts whoever answers; events and stats show it                  */
    uint32_t tickets;        /* sessions kept for resumption, at most XDS_TLS_TICKETS_MAX; 0: none   */
    uint32_t out_bytes;      /* cipher text that waits for output(), at least XDS_TLS_OUT_MIN; 0: 64 KiB */
    uint64_t update_records; /* own keys change after so many records (1.3); 0: 2^24 (RFC 8446 5.5)  */
    int64_t handshake_ns;    /* 0: 10 s                                                              */
    int64_t close_ns;        /* how long the peer's close_notify is waited for; 0: 2 s               */
    int64_t utc_offset_ns;   /* of now_ns: TAI - UTC, for certificates' dates                        */
};

/* One event. What was negotiated is filled in every event behind the handshake. */
struct xds_tls_event {
    const uint8_t *data; /* DATA: borrowed until the next input                                      */
    uint32_t len;        /* DATA                                                                     */
    uint32_t kind;       /* enum xds_tls_kind                                                        */
    uint32_t reason;     /* FAILED: enum xds_tls_reason                                              */
    uint32_t verify;     /* X509_V_...: 0 the chain and name hold, else why not (with verify_off)    */
    uint16_t version;    /* XDS_TLS_1_2, XDS_TLS_1_3                                                 */
    uint16_t cipher;     /* IANA's number: xds_tls_cipher_name()                                     */
    uint16_t group;      /* IANA's number: xds_tls_group_name(); 0: no exchange (resumed 1.2)        */
    uint8_t alert;       /* ALERT, FAILED: RFC 8446 6; 0 may be close_notify                         */
    uint8_t resumed;     /* by a ticket                                                              */
    uint8_t verified;    /* 1: chain and name hold, now or when the ticket's session was made        */
    uint8_t alpn_len;    /* 0: none was chosen                                                       */
    uint8_t clean;       /* CLOSED: the peer's close_notify came; 0: we gave up waiting for it        */
    uint8_t pad;
    char alpn[32];               /* without NUL where it fills the field                            */
    int64_t handshake_ns;        /* from init to the end of the handshake                           */
    char text[XDS_TLS_TEXT_MAX]; /* FAILED: a sentence; else ""                                     */
};

struct xds_tls_stats {
    uint64_t cipher_in, cipher_out;   /* bytes given to input(), bytes that output() gave            */
    uint64_t plain_in, plain_out;     /* bytes of DATA events, bytes that send() took                */
    uint64_t records_in, records_out; /* whole ones that OpenSSL read; that it wrote                */
    uint64_t part_in;                 /* 1: of another, it read a part                              */
    uint64_t tickets;                 /* that the server gave                               */
    uint64_t key_updates_in, key_updates_out; /* of the peer, ours                                 */
    uint64_t alerts_in, alerts_out;
    uint64_t out_bytes; /* waiting for output() now                                                */
};

struct xds_tls_context_stats {
    uint64_t started;                  /* sessions: = live + closed + aborted + sum of reasons       */
    uint64_t live;                     /* in handshake, open or closing                              */
    uint64_t closed;                   /* by close_notify, or close() before there was a handshake   */
    uint64_t aborted;                  /* done() while it was live                                   */
    uint64_t reasons[XDS_TLS_REASONS]; /* by enum xds_tls_reason                                     */
    uint64_t full, resumed;            /* handshakes                                                 */
    uint64_t unverified;               /* handshakes that only verify_off let pass                   */
    uint64_t tickets, tickets_kept;    /* given by the server; in memory now                         */
};

struct xds_tls_context;
struct xds_tls;

/* Bytes to provide for a context. */
size_t xds_tls_context_size(void);
/* Load OpenSSL, the trust store and the certificate. mem: kept until close. 0, or XDS_ECONFIG, -ENOENT,
 * -ENOEXEC (no libssl.so.3): then context_error() has a sentence, and close() is still to be called. */
int xds_tls_context_init(void *mem, const struct xds_tls_config *cfg);
/* The sentence of what init refused, "" where it did not. */
const char *xds_tls_context_error(const struct xds_tls_context *c);
/* Its counters, over all sessions. */
void xds_tls_context_stats(const struct xds_tls_context *c, struct xds_tls_context_stats *out);
/* Forget the tickets: the next handshakes are full. */
void xds_tls_context_forget(struct xds_tls_context *c);
/* Give back what OpenSSL holds. Every session is done before. Calm when repeated. */
void xds_tls_context_close(struct xds_tls_context *c);

/* Bytes to provide for one session. */
size_t xds_tls_size(const struct xds_tls_context *c);
/* Begin: output() has a ClientHello then. mem: kept until done. 0, or XDS_ECAPACITY: OpenSSL has no memory. */
int xds_tls_init(void *mem, struct xds_tls_context *c, int64_t now_ns);
/* Take cipher text. data: borrowed until return. Returns the bytes consumed: all, or up to the end of the
 * record that made an event (take events, give the rest), or fewer because output() is full (take that first).
 * XDS_EFOREIGN: the certificate was refused; XDS_EMALFORMED: another reason: a FAILED event follows, the
 * session is over; XDS_ESTATE: it was over, or a DATA event was not taken yet. */
int xds_tls_input(struct xds_tls *t, const uint8_t *data, uint32_t len, int64_t now_ns);
/* The transport ended. XDS_ETRUNC: no close_notify had come, a FAILED event follows; else 0. */
int xds_tls_end(struct xds_tls *t, int64_t now_ns);
/* The next event. 1 filled, 0 none. */
int xds_tls_event(struct xds_tls *t, struct xds_tls_event *out);
/* Write at most cap bytes of cipher text. Returns how many, 0 none. */
int xds_tls_output(struct xds_tls *t, uint8_t *room, uint32_t cap, int64_t now_ns);
/* When tick() wants to be called, XDS_NEVER: not at all. */
int64_t xds_tls_deadline(const struct xds_tls *t);
/* Time passed: ends a handshake or a close that takes too long. */
void xds_tls_tick(struct xds_tls *t, int64_t now_ns);
/* Encrypt. data: borrowed until return. Returns the bytes taken: as many as output's memory holds, 0 when it
 * is full; XDS_ESTATE before the handshake is done or after close. */
int xds_tls_send(struct xds_tls *t, const uint8_t *data, uint32_t len, int64_t now_ns);
/* How many bytes send() would take now: 16,384 at least whenever output() was taken whole. */
uint32_t xds_tls_room(const struct xds_tls *t);
/* The most bytes that send() takes at once, in any session of this context. */
uint32_t xds_tls_most(const struct xds_tls_context *c);
/* Change our keys, with `both` ask the peer to change its own (1.3). 0; XDS_ESTATE: not open, or 1.2;
 * XDS_ECAPACITY: output is full. */
int xds_tls_update(struct xds_tls *t, int both, int64_t now_ns);
/* Send close_notify; CLOSED follows when the peer's came. During the handshake: CLOSED at once, nothing is
 * sent. 0; XDS_ESTATE: it was over or closing; XDS_ECAPACITY: output is full. */
int xds_tls_close(struct xds_tls *t, int64_t now_ns);
/* 1: closed or failed; it takes nothing more, but output() may have something yet. */
int xds_tls_over(const struct xds_tls *t);
/* Its counters. */
void xds_tls_stats(const struct xds_tls *t, struct xds_tls_stats *out);
/* Give back what OpenSSL holds. Calm when repeated. */
void xds_tls_done(struct xds_tls *t);

/* A sentence for a reason, "" for OK and unknown ones. */
const char *xds_tls_reason_text(uint32_t reason);
/* RFC 8446's name of an alert, e.g. "bad_certificate"; "unknown" for others. */
const char *xds_tls_alert_name(uint32_t alert);
/* IANA's name of a cipher that we offer, e.g. "TLS_AES_128_GCM_SHA256"; "unknown" for others. */
const char *xds_tls_cipher_name(uint32_t cipher);
/* IANA's name of a group, e.g. "x25519"; "none" for 0, "unknown" for others. */
const char *xds_tls_group_name(uint32_t group);

#endif
