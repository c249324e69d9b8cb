/* ws_http.c: the opening handshake (RFC 6455 4.1): the request, and what may be an answer. Lines are read
 * strictly (RFC 9112 2 to 5): CR LF, no folding, names of token characters. */
#include "cores/ws/ws_int.h"
#include "ground/sha1_inl.h"

static const char GUID[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; /* 1.3 */
static const char START[] = "HTTP/1.1 ";
enum { START_LEN = sizeof START - 1, REQUEST_MAX = 1 << 20 };

static void base64(const uint8_t *from, uint32_t len, char *to)
{
    static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (uint32_t at = 0; at < len; at += 3, to += 4) {
        const uint32_t n = len - at;
        const uint32_t v =
            (uint32_t)from[at] << 16 | (n > 1 ? (uint32_t)from[at + 1] << 8 : 0) | (n > 2 ? from[at + 2] : 0);

        to[0] = set[v >> 18];
        to[1] = set[v >> 12 & 63];
        to[2] = n > 1 ? set[v >> 6 & 63] : '=';
        to[3] = n > 2 ? set[v & 63] : '=';
    }
}

static int is_token_char(char c) /* RFC 9110 5.6.2 */
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

static int is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static int is_value_char(char c) /* RFC 9110 5.5 */
{
    return is_blank(c) || ((uint8_t)c > 32 && c != 127);
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

struct piece { /* of a line: not NUL-terminated */
    const char *at;
    uint32_t len;
};

static int same(struct piece p, const char *word) /* word: lower case */
{
    for (uint32_t i = 0; i < p.len; i++)
        if (!word[i] || lower(p.at[i]) != word[i])
            return 0;
    return !word[p.len];
}

static int begins(struct piece p, const char *word)
{
    const uint32_t n = (uint32_t)strlen(word);

    return p.len >= n && same((struct piece){p.at, n}, word);
}

/* The next element of a list with commas, without the blanks around it; 0: no more. */
static int next_element(struct piece *list, struct piece *out)
{
    if (!list->at)
        return 0;
    const char *comma = memchr(list->at, ',', list->len);
    const uint32_t n = comma ? (uint32_t)(comma - list->at) : list->len;

    *out = (struct piece){list->at, n};
    *list = comma ? (struct piece){comma + 1, list->len - n - 1} : (struct piece){0, 0};
    while (out->len && is_blank(out->at[0]))
        out->at++, out->len--;
    while (out->len && is_blank(out->at[out->len - 1]))
        out->len--;
    return 1;
}

/* One `Name: value` line at *at, which ends before end; *at: behind it. 1, or 0: it cannot be. */
static int field(const char **at, const char *end, struct piece *name, struct piece *value)
{
    const char *p = *at;

    while (p < end && is_token_char(*p))
        p++;
    *name = (struct piece){*at, (uint32_t)(p - *at)};
    if (!name->len || p == end || *p++ != ':')
        return 0;
    while (p < end && is_blank(*p))
        p++;
    value->at = p;
    while (p < end && is_value_char(*p))
        p++;
    value->len = (uint32_t)(p - value->at);
    while (value->len && is_blank(value->at[value->len - 1]))
        value->len--;
    if (end - p < 2 || p[0] != '\r' || p[1] != '\n')
        return 0;
    *at = p + 2;
    return 1;
}

static int all_visible(const char *text)
{
    for (; *text; text++)
        if ((uint8_t)*text <= 32 || (uint8_t)*text >= 127)
            return 0;
    return 1;
}

/* Whether a list names a token: exactly, as subprotocols are compared (4.1, 10). */
static int lists(const char *list, uint32_t len, struct piece token)
{
    struct piece rest = {list, len}, e;

    while (next_element(&rest, &e))
        if (e.len == token.len && !memcmp(e.at, token.at, e.len))
            return 1;
    return 0;
}

static int are_subprotocols(const char *text)
{
    struct piece rest = {text, (uint32_t)strlen(text)}, e;

    if (!rest.len)
        return 1;
    while (next_element(&rest, &e)) {
        for (uint32_t i = 0; i < e.len; i++)
            if (!is_token_char(e.at[i]))
                return 0;
        if (!e.len || (rest.at && lists(rest.at, rest.len, e))) /* each once */
            return 0;
    }
    return 1;
}

static int are_headers(const char *text)
{
    const char *const end = text + strlen(text);
    struct piece name, value;

    while (text < end)
        if (!field(&text, end, &name, &value) || same(name, "host") || same(name, "upgrade") ||
            same(name, "connection") || same(name, "content-length") || same(name, "transfer-encoding") ||
            begins(name, "sec-websocket-"))
            return 0;
    return 1;
}

static const char *or_text(const char *text, const char *usual)
{
    return text && *text ? text : usual;
}

/* The pieces of the request, in order; 4 and 5 lie around the key. */
static int request_pieces(const struct xds_ws_config *cfg, const char *key, const char *out[14])
{
    const char *protocols = or_text(cfg->subprotocols, "");
    const char *all[] = {"GET ",
                         or_text(cfg->path, "/"),
                         " HTTP/1.1\r\nHost: ",
                         or_text(cfg->host, ""),
                         "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ",
                         key,
                         "\r\nSec-WebSocket-Version: 13\r\n",
                         *protocols ? "Sec-WebSocket-Protocol: " : "",
                         protocols,
                         *protocols ? "\r\n" : "",
                         or_text(cfg->headers, ""),
                         "\r\n"};
    memcpy(out, all, sizeof all);
    return sizeof all / sizeof *all;
}

uint32_t xdsi_ws_request_len(const struct xds_ws_config *cfg)
{
    const char *path = or_text(cfg->path, "/"), *pieces[14];
    const int n = request_pieces(cfg, "", pieces);
    size_t len = XDSI_WS_KEY_BYTES;

    if (!cfg->host || !*cfg->host || !all_visible(cfg->host) || strpbrk(cfg->host, "/?#@"))
        return 0;
    if (*path != '/' || !all_visible(path) || strchr(path, '#')) /* 3: no fragment */
        return 0;
    if (!are_subprotocols(or_text(cfg->subprotocols, "")) || !are_headers(or_text(cfg->headers, "")))
        return 0;
    for (int i = 0; i < n; i++)
        len += strlen(pieces[i]);
    return len <= REQUEST_MAX ? (uint32_t)len : 0;
}

void xdsi_ws_request(struct xds_ws *w, const struct xds_ws_config *cfg)
{
    const uint64_t nonce[2] = {xdsi_ws_random(w), xdsi_ws_random(w)};
    char key[XDSI_WS_KEY_BYTES + sizeof GUID] = {0}; /* the key, NUL; then the key and GUID, for the hash */
    const char *pieces[14];
    uint8_t digest[20];

    base64((const uint8_t *)nonce, sizeof nonce, key);
    const int n = request_pieces(cfg, key, pieces);
    for (int i = 0; i < n; i++) {
        const uint32_t len = (uint32_t)strlen(pieces[i]);
        memcpy(w->out + w->out_tail, pieces[i], len);
        w->out_tail += len;
    }
    memcpy(key + XDSI_WS_KEY_BYTES, GUID, sizeof GUID);
    xdsi_sha1((const uint8_t *)key, XDSI_WS_KEY_BYTES + sizeof GUID - 1, digest);
    base64(digest, sizeof digest, w->accept);
}

struct answer { /* what the fields said, 4.1: the numbers of its list */
    uint32_t upgrade, connection, accepts, accept_right, extensions, protocols;
    struct piece protocol;
};

static void read_field(const struct xds_ws *w, struct answer *a, struct piece name, struct piece value)
{
    struct piece rest = value, e;

    if (same(name, "upgrade")) {
        while (next_element(&rest, &e))
            a->upgrade |= (uint32_t)same(e, "websocket");
    } else if (same(name, "connection")) {
        while (next_element(&rest, &e))
            a->connection |= (uint32_t)same(e, "upgrade");
    } else if (same(name, "sec-websocket-accept")) {
        a->accepts++;
        a->accept_right = value.len == XDSI_WS_ACCEPT_BYTES && !memcmp(value.at, w->accept, value.len);
    } else if (same(name, "sec-websocket-extensions")) {
        a->extensions |= value.len != 0;
    } else if (same(name, "sec-websocket-protocol")) {
        a->protocols++;
        a->protocol = value;
    }
}

/* The status line, behind START: three digits, then a blank and words, or nothing. 0: it is none. */
static uint32_t status(const char **at, const char *end)
{
    const char *p = *at + START_LEN;
    uint32_t code = 0;

    if (end - p < 5)
        return 0;
    for (int i = 0; i < 3; i++, p++) {
        if (*p < '0' || *p > '9')
            return 0;
        code = code * 10 + (uint32_t)(*p - '0');
    }
    if (*p == ' ')
        while (p < end && is_value_char(*p))
            p++;
    if (end - p < 2 || p[0] != '\r' || p[1] != '\n' || code < 100 || code > 599)
        return 0;
    *at = p + 2;
    return code;
}

/* The whole head, with its empty line, lies in assembly. 0 or a fault. */
static int read_answer(struct xds_ws *w, uint32_t len, int64_t now)
{
    const char *at = (const char *)w->assembly, *const end = at + len - 2; /* before the empty line */
    const uint32_t code = status(&at, end);
    struct answer a = {0};
    struct piece name, value;

    if (!code)
        return xdsi_ws_fail(w, XDS_WS_HTTP, now);
    if (code != 101) {
        const int fault = xdsi_ws_fail(w, XDS_WS_STATUS, now);

        w->events[0].code = (uint16_t)code;
        w->events[0].data = w->assembly;
        w->events[0].len = (uint32_t)(at - 2 - (const char *)w->assembly);
        return fault;
    }
    while (at < end) {
        if (!field(&at, end, &name, &value))
            return xdsi_ws_fail(w, XDS_WS_HTTP, now);
        read_field(w, &a, name, value);
    }
    if (!a.upgrade)
        return xdsi_ws_fail(w, XDS_WS_UPGRADE, now);
    if (!a.connection)
        return xdsi_ws_fail(w, XDS_WS_CONNECTION, now);
    if (a.accepts != 1 || !a.accept_right)
        return xdsi_ws_fail(w, XDS_WS_ACCEPT, now);
    if (a.extensions)
        return xdsi_ws_fail(w, XDS_WS_EXTENSION, now);
    if (a.protocols > 1 ||
        (a.protocols && (!a.protocol.len || !lists(w->offered, (uint32_t)strlen(w->offered), a.protocol))))
        return xdsi_ws_fail(w, XDS_WS_SUBPROTOCOL, now);
    w->state = XDS_WS_OPEN;
    w->handshake_at = XDS_NEVER;
    if (w->ping_ns)
        w->ping_at = now + w->ping_ns;
    xdsi_ws_tell(w, XDS_WS_EVENT_OPEN, (const uint8_t *)a.protocol.at, a.protocol.len, now);
    return 0;
}

/* Bytes of the answer's head up to its empty line; the head is in assembly from message_len 0 on. */
int xdsi_ws_answer(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now)
{
    for (uint32_t used = 0; used < len;) {
        uint32_t at = w->message_len;

        if (at == w->head_max)
            return xdsi_ws_fail(w, XDS_WS_HTTP_LONG, now);
        w->assembly[at++] = data[used++];
        w->message_len = at;
        if (at <= START_LEN && w->assembly[at - 1] != (uint8_t)START[at - 1])
            return xdsi_ws_fail(w, XDS_WS_HTTP, now);
        if (at >= START_LEN + 4 && !memcmp(w->assembly + at - 4, "\r\n\r\n", 4)) {
            w->message_len = 0;
            const int fault = read_answer(w, at, now);
            return fault < 0 ? fault : (int)used;
        }
    }
    return (int)len;
}
