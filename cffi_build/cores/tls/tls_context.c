/* tls_context.c: what the sessions of one profile share: the library, trust, the certificate, tickets.
 *
 * Everything that reads a file happens here, at set-up. The system's trust store is read as one file: OpenSSL's
 * default looks certificates up in a folder, one open() each, in the midst of a handshake. */
#include "cores/tls/tls_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#define NS                 1000000000LL
#define HANDSHAKE_NS       (10 * NS)
#define CLOSE_NS           (2 * NS)
#define OUT_BYTES          65536u
#define UPDATE_RECORDS     (1ull << 24) /* RFC 8446 5.5: 2^24.5 full records under one AES-GCM key */
#define SECURITY_LEVEL     2            /* 112 bits: RSA from 2048, SHA-2 */
#define SECONDS_A_DAY      86400
#define GROUPS             "X25519:P-256:P-384:P-521"
#define SUITES_AES         "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"
#define SUITES_CHACHA      "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"
#define ECDHE_AES128       "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
#define ECDHE_CHACHA       "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
#define ECDHE_AES256       "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
#define ECDHE_AES_FIRST    ECDHE_AES128 ":" ECDHE_CHACHA ":" ECDHE_AES256
#define ECDHE_CHACHA_FIRST ECDHE_CHACHA ":" ECDHE_AES128 ":" ECDHE_AES256

size_t xds_tls_context_size(void)
{
    return sizeof(struct xds_tls_context);
}

const char *xds_tls_context_error(const struct xds_tls_context *c)
{
    return c->error;
}

void xds_tls_context_stats(const struct xds_tls_context *c, struct xds_tls_context_stats *out)
{
    *out = c->stats;
    out->tickets_kept = c->tickets_len;
}

/* A sentence, with what OpenSSL or the system says about it; the code that init returns. */
static int refuse(struct xds_tls_context *c, const char *what, const char *name)
{
    unsigned long e = c->lib.ERR_peek_error ? c->lib.ERR_peek_error() : 0;
    int system = ERR_SYSTEM_ERROR(e) ? ERR_GET_REASON(e) : 0;
    const char *why = system ? strerror(system) : e ? c->lib.ERR_reason_error_string(e) : NULL;

    snprintf(c->error, sizeof(c->error), "%s%s%s%s%s", what, name ? " " : "", name ? name : "",
             why ? ": " : "", why ? why : "");
    return system ? -system : XDS_ECONFIG;
}

static int has_aes(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(__aarch64__)
    return (getauxval(AT_HWCAP) & (HWCAP_AES | HWCAP_PMULL)) == (HWCAP_AES | HWCAP_PMULL);
#else
    return 0;
#endif
}

/* A key that wants a passphrase would ask for it at the terminal. */
static int no_passphrase(char *room, int cap, int writing, void *arg)
{
    return -1;
}

static int check(struct xds_tls_context *c, const struct xds_tls_config *g)
{
    uint32_t least = g->version_min ? g->version_min : XDS_TLS_1_2;
    uint32_t most = g->version_max ? g->version_max : XDS_TLS_1_3;

    if (least < XDS_TLS_1_2 || most > XDS_TLS_1_3 || least > most)
        return refuse(c, "the versions of TLS are 1.2 and 1.3, and the least is not above the most", NULL);
    if (g->ciphers > XDS_TLS_CIPHERS_CHACHA)
        return refuse(c, "an order of ciphers that is not known", NULL);
    if (g->tickets > XDS_TLS_TICKETS_MAX)
        return refuse(c, "more tickets than a context keeps", NULL);
    if (g->out_bytes && (g->out_bytes < XDS_TLS_OUT_MIN || g->out_bytes > 1u << 30))
        return refuse(c, "out_bytes holds less than one record, or more than 1 GiB", NULL);
    if (g->handshake_ns < 0 || g->close_ns < 0)
        return refuse(c, "a time that is negative", NULL);
    if (!g->verify_off && (!g->server_name || !*g->server_name))
        return refuse(c, "a server's name is needed to verify it by", NULL);
    if (g->server_name && strlen(g->server_name) >= sizeof(c->server_name))
        return refuse(c, "a server's name that is too long", NULL);
    if (g->key_file && !g->cert_file)
        return refuse(c, "a key without a certificate:", g->key_file);
    c->out_bytes = g->out_bytes ? g->out_bytes : OUT_BYTES;
    c->update_records = g->update_records ? g->update_records : UPDATE_RECORDS;
    c->handshake_ns = g->handshake_ns ? g->handshake_ns : HANDSHAKE_NS;
    c->close_ns = g->close_ns ? g->close_ns : CLOSE_NS;
    c->utc_offset_ns = g->utc_offset_ns;
    c->verify_off = g->verify_off;
    c->tickets_max = g->tickets;
    if (g->server_name)
        memcpy(c->server_name, g->server_name, strlen(g->server_name) + 1);
    return 0;
}

static int protocols(struct xds_tls_context *c, const struct xds_tls_config *g)
{
    int aes = g->ciphers == XDS_TLS_CIPHERS_AUTO ? has_aes() : g->ciphers == XDS_TLS_CIPHERS_AES;
    long least = g->version_min ? g->version_min : XDS_TLS_1_2;
    long most = g->version_max ? g->version_max : XDS_TLS_1_3;
    const struct xdsi_tls_library *lib = &c->lib;

    lib->SSL_CTX_set_options(c->ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    lib->SSL_CTX_set_security_level(c->ctx, SECURITY_LEVEL);
    if (!lib->SSL_CTX_ctrl(c->ctx, SSL_CTRL_SET_MIN_PROTO_VERSION, least, NULL) ||
        !lib->SSL_CTX_ctrl(c->ctx, SSL_CTRL_SET_MAX_PROTO_VERSION, most, NULL) ||
        !lib->SSL_CTX_set_ciphersuites(c->ctx, aes ? SUITES_AES : SUITES_CHACHA) ||
        !lib->SSL_CTX_set_cipher_list(c->ctx, aes ? ECDHE_AES_FIRST : ECDHE_CHACHA_FIRST) ||
        !lib->SSL_CTX_ctrl(c->ctx, SSL_CTRL_SET_GROUPS_LIST, 0, (char *)GROUPS))
        return refuse(c, "this OpenSSL does not offer the versions, ciphers or groups that are wanted", NULL);
    return 0;
}

static int alpn(struct xds_tls_context *c, const char *names)
{
    uint8_t wire[256];
    size_t len = 0;

    for (const char *p = names; p && *p;) {
        size_t n = strcspn(p, ",");
        if (n == 0 || n > sizeof(((struct xds_tls_event *)0)->alpn) || len + 1 + n > sizeof(wire))
            return refuse(c, "alpn is names of 1 to 32 characters, comma between, 256 in all:", names);
        wire[len++] = (uint8_t)n;
        memcpy(wire + len, p, n);
        len += n;
        p += n + (p[n] == ',');
    }
    if (len &&
        c->lib.SSL_CTX_set_alpn_protos(c->ctx, wire, (unsigned)len) != 0) /* 0 is success, of this one */
        return refuse(c, "alpn is not taken:", names);
    return 0;
}

static int trust(struct xds_tls_context *c, const struct xds_tls_config *g)
{
    static const char *const systems[] = {
        "/etc/ssl/certs/ca-certificates.crt", /* Debian */
        "/etc/pki/tls/certs/ca-bundle.crt",   /* Fedora, RHEL */
        "/etc/ssl/ca-bundle.pem",             /* SUSE */
        "/etc/ssl/cert.pem",                  /* Alpine */
    };
    const struct xdsi_tls_library *lib = &c->lib;
    X509_VERIFY_PARAM *param = lib->SSL_CTX_get0_param(c->ctx);

    lib->SSL_CTX_set_verify(c->ctx, c->verify_off ? SSL_VERIFY_NONE : SSL_VERIFY_PEER, NULL);
    lib->X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    c->by_address = *c->server_name && lib->X509_VERIFY_PARAM_set1_ip_asc(param, c->server_name);
    lib->ERR_clear_error();
    if (*c->server_name && !c->by_address && !lib->X509_VERIFY_PARAM_set1_host(param, c->server_name, 0))
        return refuse(c, "no name to verify by:", c->server_name);
    if (g->ca_file)
        return lib->SSL_CTX_load_verify_file(c->ctx, g->ca_file) ? 0 : refuse(c, "trust store", g->ca_file);
    if (c->verify_off)
        return 0;
    for (size_t i = 0; i < sizeof(systems) / sizeof(systems[0]); i++)
        if (lib->SSL_CTX_load_verify_file(c->ctx, systems[i]))
            return 0;
    return refuse(c, "no trust store of the system (Debian: ca-certificates); name one with ca_file", NULL);
}

static int certificate(struct xds_tls_context *c, const struct xds_tls_config *g)
{
    const char *key = g->key_file ? g->key_file : g->cert_file;

    c->lib.SSL_CTX_set_default_passwd_cb(c->ctx, no_passphrase);
    if (!g->cert_file)
        return 0;
    if (!c->lib.SSL_CTX_use_certificate_chain_file(c->ctx, g->cert_file))
        return refuse(c, "client certificate", g->cert_file);
    if (!c->lib.SSL_CTX_use_PrivateKey_file(c->ctx, key, SSL_FILETYPE_PEM))
        return refuse(c, "private key", key);
    if (!c->lib.SSL_CTX_check_private_key(c->ctx))
        return refuse(c, "the private key is not the certificate's:", key);
    return 0;
}

int xds_tls_context_init(void *mem, const struct xds_tls_config *g)
{
    struct xds_tls_context *c = mem;
    const struct xdsi_tls_library *lib = &c->lib;
    int rc;

    memset(c, 0, sizeof(*c));
    rc = check(c, g);
    if (rc < 0)
        return rc;
    rc = xdsi_tls_library_load(&c->lib, c->error, sizeof(c->error));
    if (rc < 0)
        return rc;
    lib->ERR_clear_error();
    xdsi_tls_callbacks(lib);
    c->bio = xdsi_tls_bio_method(lib);
    c->ctx = lib->SSL_CTX_new(lib->TLS_client_method());
    if (!c->bio || !c->ctx)
        return refuse(c, "OpenSSL does not start", NULL);
    lib->SSL_CTX_ctrl(c->ctx, SSL_CTRL_SET_SESS_CACHE_MODE,
                      SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL, NULL);
    lib->SSL_CTX_sess_set_new_cb(c->ctx, xdsi_tls_saw_session);
    rc = protocols(c, g);
    if (rc == 0)
        rc = alpn(c, g->alpn);
    if (rc == 0)
        rc = trust(c, g);
    if (rc == 0)
        rc = certificate(c, g);
    lib->ERR_clear_error();
    return rc;
}

void xds_tls_context_forget(struct xds_tls_context *c)
{
    while (c->tickets_len)
        c->lib.SSL_SESSION_free(c->tickets[--c->tickets_len].session);
}

void xds_tls_context_close(struct xds_tls_context *c)
{
    xds_tls_context_forget(c);
    if (c->ctx)
        c->lib.SSL_CTX_free(c->ctx);
    if (c->bio)
        c->lib.BIO_meth_free(c->bio);
    c->ctx = NULL;
    c->bio = NULL;
}

static void drop(struct xds_tls_context *c, uint32_t index)
{
    memmove(&c->tickets[index], &c->tickets[index + 1], (--c->tickets_len - index) * sizeof(c->tickets[0]));
}

/* When a certificate ends, in ns of UTC; INT64_MAX where it has no peer's certificate to judge by. */
static int64_t end_of(const struct xdsi_tls_library *lib, SSL_SESSION *session)
{
    X509 *peer = lib->SSL_SESSION_get0_peer(session);
    ASN1_TIME *epoch = peer ? lib->ASN1_TIME_set(NULL, 0) : NULL;
    int days, seconds, known;

    if (!epoch)
        return INT64_MAX;
    known = lib->ASN1_TIME_diff(&days, &seconds, epoch, lib->X509_get0_notAfter(peer));
    lib->ASN1_STRING_free(epoch);
    if (!known)
        return INT64_MIN; /* a date that cannot be read vouches for nothing */
    return days > INT64_MAX / NS / SECONDS_A_DAY - 1 ? INT64_MAX
                                                     : ((int64_t)days * SECONDS_A_DAY + seconds) * NS;
}

void xdsi_tls_ticket_keep(struct xds_tls_context *c, SSL_SESSION *session)
{
    if (c->tickets_len == c->tickets_max) {
        c->lib.SSL_SESSION_free(c->tickets[0].session);
        drop(c, 0);
    }
    c->tickets[c->tickets_len].session = session;
    c->tickets[c->tickets_len++].not_after_ns = end_of(&c->lib, session);
}

/* The newest first. Of 1.3 each is used once (RFC 8446 C.4); of 1.2 it stays, for the server gives no new one.
 * A resumed session is not verified again: so none outlives the certificate that it was verified by. */
SSL_SESSION *xdsi_tls_ticket_take(struct xds_tls_context *c, int64_t now_ns)
{
    const struct xdsi_tls_library *lib = &c->lib;

    while (c->tickets_len) {
        struct xdsi_tls_ticket *k = &c->tickets[c->tickets_len - 1];
        int good = lib->SSL_SESSION_is_resumable(k->session) &&
                   (c->verify_off || k->not_after_ns > now_ns - c->utc_offset_ns);
        if (good && lib->SSL_SESSION_get_protocol_version(k->session) != XDS_TLS_1_3) {
            lib->SSL_SESSION_up_ref(k->session);
            return k->session;
        }
        c->tickets_len--;
        if (good)
            return k->session;
        lib->SSL_SESSION_free(k->session);
    }
    return NULL;
}
