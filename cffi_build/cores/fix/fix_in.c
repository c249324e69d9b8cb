/* fix_in.c: what a message that came means, in the order of the FIX session layer: what ends the session first,
 * then its number, then its form, then its type. Each message leaves by one reason.
 *
 * A message that is rejected has used its number; one that is ahead, or had come already, has not.
 */
#include "fix_int.h"

/* Session level reject reasons (373). */
enum {
    BAD_TAG = 0,
    MISSING = 1,
    NO_VALUE = 4,
    BAD_VALUE = 5,
    BAD_FORMAT = 6,
    COMP_ID = 9,
    TIME = 10,
    OTHER = 99
};

static int same(const uint8_t *value, uint32_t len, const char *text)
{
    return strlen(text) == len && !memcmp(value, text, len);
}

static const uint8_t *find(const struct xds_fix *f, const struct xdsi_fix_head *h, uint32_t tag,
                           uint32_t *len)
{
    const int i = xds_fix_find(f->fields, h->count, 3, tag);

    *len = i < 0 ? 0 : f->fields[i].len;
    return i < 0 ? NULL : h->message + f->fields[i].at;
}

/* A number that must be there: 0, MISSING, BAD_FORMAT. */
static uint32_t number(const struct xds_fix *f, const struct xdsi_fix_head *h, uint32_t tag, int64_t *out)
{
    uint32_t len;
    const uint8_t *value = find(f, h, tag, &len);

    if (!value)
        return MISSING;
    return xds_fix_integer(value, len, out) ? BAD_FORMAT : 0;
}

static int is_yes(const struct xds_fix *f, const struct xdsi_fix_head *h, uint32_t tag)
{
    uint32_t len;
    const uint8_t *value = find(f, h, tag, &len);

    return value && same(value, len, "Y");
}

/* Only the first field of each tag counts: header fields come before those of the body. */
static void header(const struct xds_fix *f, struct xdsi_fix_head *h)
{
    uint32_t seen = 0;
    int64_t n;

    h->seq_bad = h->sending_bad = h->orig_bad = 1;
    h->comp_bad = 3;
    h->version_bad = !same(h->message + f->fields[0].at, f->fields[0].len, f->begin_string);
    for (uint32_t i = 2; i < h->count && seen < 7; i++) {
        const struct xds_fix_field *d = &f->fields[i];
        const uint8_t *value = h->message + d->at;
        switch (d->tag) {
        case 35:
            if (!h->type[0])
                memcpy(h->type, value, d->len < 7 ? d->len : 7), seen++;
            break;
        case 34:
            if (h->seq_bad)
                h->seq_bad = xds_fix_integer(value, d->len, &n) || n < 1,
                h->seq = h->seq_bad ? 0 : (uint64_t)n;
            break;
        case 49:
            h->comp_bad &= same(value, d->len, f->c.target_comp_id) ? 2u : 3u;
            break;
        case 56:
            h->comp_bad &= same(value, d->len, f->c.sender_comp_id) ? 1u : 3u;
            break;
        case 52:
            if (h->sending_bad)
                h->sending_bad = xds_fix_time(value, d->len, f->c.leap_ns, &h->sending) ? 2 : 0;
            break;
        case 122:
            if (h->orig_bad)
                h->orig_bad = xds_fix_time(value, d->len, f->c.leap_ns, &h->orig) ? 2 : 0;
            break;
        case 43:
            h->flags |= same(value, d->len, "Y") ? XDS_FIX_POSS_DUP : 0;
            break;
        case 97:
            h->flags |= same(value, d->len, "Y") ? XDS_FIX_POSS_RESEND : 0;
            break;
        }
    }
}

/* Index over the message; where a field has no form, what stands before it is still of use. */
static void index_of(struct xds_fix *f, struct xdsi_fix_head *h)
{
    struct xdsi_fix_data data = {0, 0};
    uint32_t at = 0;

    while (at < h->len) {
        struct xds_fix_field *d = &f->fields[h->count];
        at = xdsi_fix_next(h->message, h->len, at, d, &data);
        if (!at) {
            h->fault = 1 + (d->tag ? NO_VALUE : BAD_TAG);
            h->fault_tag = d->tag;
            break;
        }
        h->count++;
    }
    header(f, h);
}

static int delivered(struct xds_fix *f, uint32_t kind, const struct xdsi_fix_head *h)
{
    xdsi_fix_tell(f, kind, h);
    return XDS_FIX_DELIVERED;
}

/* A gap may have become smaller, or have gone. */
static void progress(struct xds_fix *f, int64_t now)
{
    if (!f->gap_top)
        return;
    f->tries = 0;
    f->asked_ns = now;
    if (f->next_in > f->gap_top) {
        f->gap_top = 0;
        xdsi_fix_tell(f, XDS_FIX_EVENT_FILLED, NULL)->seq = f->next_in;
    } else if (f->asked_end && f->next_in > f->asked_end) {
        xdsi_fix_ask(f, now);
    }
}

static void used(struct xds_fix *f, int64_t now)
{
    f->next_in++;
    progress(f, now);
}

static void tell_rejected(struct xds_fix *f, const struct xdsi_fix_head *h, int reason, uint32_t why,
                          uint32_t tag, const char *text, int64_t now)
{
    struct xds_fix_event *e = xdsi_fix_tell(f, XDS_FIX_EVENT_REJECTED, h);

    e->reason = (uint32_t)reason, e->number = why, e->tag = tag, e->text = text;
    xdsi_fix_reject(f, h, why, tag, text, now);
}

/* Its number is used, where it was the expected one. */
static int reject(struct xds_fix *f, const struct xdsi_fix_head *h, int reason, uint32_t why, uint32_t tag,
                  const char *text, int64_t now)
{
    tell_rejected(f, h, reason, why, tag, text, now);
    if (h->seq == f->next_in)
        used(f, now);
    return reason;
}

static int fatal(struct xds_fix *f, const struct xdsi_fix_head *h, int reason, const char *text)
{
    xdsi_fix_end(f, (uint32_t)reason, h, text);
    return reason;
}

/* Ahead of what is expected: asked for once, and again where a new message shows that the answer is over. */
static int ahead(struct xds_fix *f, const struct xdsi_fix_head *h, int64_t now)
{
    const int over = f->next_in > f->asked_top && !(h->flags & XDS_FIX_POSS_DUP);

    if (!f->gap_top) {
        f->s.gaps++;
        f->gap_top = h->seq;
        f->tries = 0;
        struct xds_fix_event *e = xdsi_fix_tell(f, XDS_FIX_EVENT_GAP, h);
        e->seq = f->next_in, e->number = h->seq - 1;
        xdsi_fix_ask(f, now);
        return XDS_FIX_AHEAD;
    }
    if (h->seq > f->gap_top)
        f->gap_top = h->seq;
    if (over && !f->asked_end)
        xdsi_fix_ask(f, now);
    return XDS_FIX_AHEAD;
}

/* Test cases 2e, 2f, 2g: what the sender says about a possible duplicate; -1: nothing is wrong. SequenceReset
 * needs no OrigSendingTime: nothing was sent before. */
static int original(struct xds_fix *f, const struct xdsi_fix_head *h, int64_t now)
{
    if (!(h->flags & XDS_FIX_POSS_DUP) || !strcmp(h->type, "4"))
        return -1;
    if (h->orig_bad)
        return reject(f, h, h->orig_bad == 1 ? XDS_FIX_REQUIRED : XDS_FIX_VALUE,
                      h->orig_bad == 1 ? MISSING : BAD_FORMAT, 122, "OrigSendingTime missing or no time",
                      now);
    if (h->orig > h->sending) {
        reject(f, h, XDS_FIX_ORIG_TIME, TIME, 122, "OrigSendingTime is later than SendingTime", now);
        return fatal(f, h, XDS_FIX_ORIG_TIME, "OrigSendingTime is later than SendingTime");
    }
    return -1;
}

static int resend_request(struct xds_fix *f, const struct xdsi_fix_head *h, int64_t now)
{
    const int in_order = h->seq == f->next_in;
    int64_t first = 0, end = 0;
    uint32_t tag = 7, why = number(f, h, 7, &first);

    if (!why)
        tag = 16, why = number(f, h, 16, &end);
    if (!why && (first < 1 || (uint64_t)first >= f->next_out))
        tag = 7, why = BAD_VALUE;
    if (!why && (end < 0 || (end && end < first)))
        tag = 16, why = BAD_VALUE;
    if (why)
        return in_order ? reject(f, h, why == MISSING ? XDS_FIX_REQUIRED : XDS_FIX_VALUE, why, tag,
                                 "ResendRequest asks for what was not sent", now)
                        : ahead(f, h, now);
    const uint64_t last = !end || (uint64_t)end >= f->next_out ? f->next_out - 1 : (uint64_t)end;
    const int pending = f->resend_next <= f->resend_end;
    f->s.asked_of_us++;
    if (!pending || (uint64_t)first < f->resend_next)
        f->resend_next = (uint64_t)first;
    if (!pending || last > f->resend_end)
        f->resend_end = last;
    struct xds_fix_event *e = xdsi_fix_tell(f, XDS_FIX_EVENT_RESEND, h);
    e->seq = (uint64_t)first, e->number = last;
    xdsi_fix_pump(f, now);
    if (!in_order) /* test case 20: answered first, then what is missing here is asked for */
        return ahead(f, h, now);
    used(f, now);
    return XDS_FIX_DELIVERED;
}

/* fill: in its place in the order of numbers, which it has used; else (test cases 11) it counts whatever its number,
 * and where it would lead back nothing changes. */
static int sequence_reset(struct xds_fix *f, const struct xdsi_fix_head *h, int fill, int64_t now)
{
    int64_t next = 0;
    uint32_t why = number(f, h, 36, &next);

    if (!why && (next < 1 || (fill ? (uint64_t)next <= h->seq : (uint64_t)next < f->next_in)))
        why = BAD_VALUE;
    if (why) {
        const int reason = why == MISSING ? XDS_FIX_REQUIRED : XDS_FIX_VALUE;
        tell_rejected(f, h, reason, why, 36, "NewSeqNo is missing, no number, or leads back", now);
        if (fill)
            used(f, now);
        return reason;
    }
    f->next_in = (uint64_t)next;
    xdsi_fix_tell(f, XDS_FIX_EVENT_RESET, h)->number = (uint64_t)next;
    progress(f, now);
    return XDS_FIX_DELIVERED;
}

static int test_request(struct xds_fix *f, const struct xdsi_fix_head *h, int64_t now)
{
    uint32_t len;
    const uint8_t *id = find(f, h, 112, &len);

    if (!id)
        return reject(f, h, XDS_FIX_REQUIRED, MISSING, 112, "TestReqID", now);
    xdsi_fix_heartbeat(f, id, len, now);
    xdsi_fix_tell(f, XDS_FIX_EVENT_TEST_REQUEST, h);
    used(f, now);
    return XDS_FIX_DELIVERED;
}

static int heartbeat(struct xds_fix *f, const struct xdsi_fix_head *h, int was_tested, int64_t now)
{
    struct xds_fix_event *e = xdsi_fix_tell(f, XDS_FIX_EVENT_HEARTBEAT, h);
    int64_t id;

    if (was_tested && !number(f, h, 112, &id) && id == f->test_id) {
        f->rtt_ns = now - f->tested_ns > 0 ? now - f->tested_ns : 1;
        e->number = (uint64_t)f->rtt_ns;
        f->tested = 0;
    }
    used(f, now);
    return XDS_FIX_DELIVERED;
}

/* The peer's Logout: ours in answer, unless it is the answer. Its number is not waited for: what is missing comes
 * with the next session. */
static int logout(struct xds_fix *f, const struct xdsi_fix_head *h, int64_t now)
{
    if (h->seq == f->next_in)
        f->next_in++;
    xdsi_fix_tell(f, XDS_FIX_EVENT_LOGOUT, h);
    if (f->state != XDS_FIX_LOGOUT_SENT)
        xdsi_fix_logout(f, NULL, now);
    xdsi_fix_closed(f, h);
    return XDS_FIX_DELIVERED;
}

static int rejected(struct xds_fix *f, const struct xdsi_fix_head *h, int64_t now)
{
    int64_t seq = 0;
    const uint32_t why = number(f, h, 45, &seq);

    if (why)
        return reject(f, h, why == MISSING ? XDS_FIX_REQUIRED : XDS_FIX_VALUE, why, 45, "RefSeqNum", now);
    f->s.rejects++;
    xdsi_fix_tell(f, XDS_FIX_EVENT_REJECT, h)->number = (uint64_t)seq;
    used(f, now);
    return XDS_FIX_DELIVERED;
}

/* 98 and 108; NULL: right. */
static const char *logon_bad(const struct xds_fix *f, const struct xdsi_fix_head *h, int64_t *heartbeat_s)
{
    int64_t method = 0;

    if (number(f, h, 98, &method) || method)
        return "EncryptMethod must be 0";
    if (number(f, h, 108, heartbeat_s) || *heartbeat_s < 0 || *heartbeat_s > 86400)
        return "HeartBtInt must be 0 to 86400";
    return NULL;
}

static void reset_numbers(struct xds_fix *f)
{
    f->next_in = f->next_out = 1;
    f->gap_top = 0;
    f->resend_next = 1, f->resend_end = 0;
    xdsi_fix_store_clear(&f->store);
}

/* The first message of a connection: a Logon, or why not. */
static int first(struct xds_fix *f, const struct xdsi_fix_head *h, int64_t now)
{
    const int reset = is_yes(f, h, 141);
    int64_t heartbeat_s = 0;

    if (f->state == XDS_FIX_LOGON_SENT && (!strcmp(h->type, "5") || !strcmp(h->type, "3"))) {
        if (h->seq == f->next_in)
            f->next_in++;
        f->s.rejects += h->type[0] == '3';
        xdsi_fix_tell(f, h->type[0] == '5' ? XDS_FIX_EVENT_LOGOUT : XDS_FIX_EVENT_REJECT, h);
        xdsi_fix_end(f, XDS_FIX_REFUSED, h, NULL);
        return XDS_FIX_DELIVERED;
    }
    if (strcmp(h->type, "A"))
        return fatal(f, h, XDS_FIX_NO_LOGON, "the first message is no Logon");
    const char *bad = logon_bad(f, h, &heartbeat_s);
    if (!bad && reset && h->seq != 1)
        bad = "ResetSeqNumFlag with a MsgSeqNum other than 1";
    if (!bad && reset && !f->c.acceptor && f->next_out != 2)
        bad = "ResetSeqNumFlag was not asked for";
    if (bad)
        return fatal(f, h, XDS_FIX_LOGON_BAD, bad);
    if (reset && f->c.acceptor)
        reset_numbers(f);
    else if (reset)
        f->next_in = 1;
    if (h->seq < f->next_in)
        return fatal(f, h, XDS_FIX_SEQ_LOW, "MsgSeqNum too low");
    f->heartbeat_s = (uint32_t)heartbeat_s;
    if (f->c.acceptor)
        xdsi_fix_logon(f, reset, now);
    f->state = XDS_FIX_UP;
    xdsi_fix_tell(f, XDS_FIX_EVENT_LOGON, h)->number = f->heartbeat_s;
    if (h->seq > f->next_in)
        return ahead(f, h, now);
    used(f, now);
    return XDS_FIX_DELIVERED;
}

/* A Logon in a session: both begin at 1 again where it says so. */
static int logon_again(struct xds_fix *f, const struct xdsi_fix_head *h, int64_t now)
{
    int64_t heartbeat_s;

    if (!is_yes(f, h, 141) || h->seq != 1 || logon_bad(f, h, &heartbeat_s))
        return reject(f, h, XDS_FIX_LOGON_AGAIN, OTHER, 0, "Logon in a session", now);
    reset_numbers(f);
    f->next_in = 2;
    xdsi_fix_logon(f, 1, now);
    xdsi_fix_tell(f, XDS_FIX_EVENT_RESET, h)->number = 2;
    return XDS_FIX_DELIVERED;
}

/* What ends a session whatever its number; -1: nothing. */
static int identity(struct xds_fix *f, const struct xdsi_fix_head *h, int64_t now)
{
    const int up = f->state != XDS_FIX_LOGON_SENT && f->state != XDS_FIX_LOGON_WAIT;
    const int64_t off = now - h->sending;

    if (h->version_bad)
        return fatal(f, h, XDS_FIX_VERSION, "BeginString is another version's");
    if (h->seq_bad)
        return h->fault ? XDS_FIX_FIELD : fatal(f, h, XDS_FIX_NO_SEQ, "MsgSeqNum missing or no number");
    if (h->comp_bad) {
        if (up)
            reject(f, h, XDS_FIX_COMP_ID, COMP_ID, h->comp_bad & 1 ? 49 : 56, "CompID problem", now);
        return fatal(f, h, XDS_FIX_COMP_ID, "CompID problem");
    }
    if (!h->sending_bad && !f->c.no_time_check &&
        (off > f->c.sending_time_ns || -off > f->c.sending_time_ns)) {
        if (up)
            reject(f, h, XDS_FIX_SENDING_TIME, TIME, 52, "SendingTime accuracy problem", now);
        return fatal(f, h, XDS_FIX_SENDING_TIME, "SendingTime accuracy problem");
    }
    return -1;
}

/* Form and type of a message in order. */
static int in_order(struct xds_fix *f, const struct xdsi_fix_head *h, int was_tested, int64_t now)
{
    int code;

    if (h->fault)
        return reject(f, h, XDS_FIX_FIELD, h->fault - 1, h->fault_tag, "a field without number or value",
                      now);
    if (h->sending_bad)
        return reject(f, h, h->sending_bad == 1 ? XDS_FIX_REQUIRED : XDS_FIX_VALUE,
                      h->sending_bad == 1 ? MISSING : BAD_FORMAT, 52, "SendingTime missing or no time", now);
    if ((code = original(f, h, now)) >= 0)
        return code;
    if (h->type[1] == 0)
        switch (h->type[0]) {
        case '0':
            return heartbeat(f, h, was_tested, now);
        case '1':
            return test_request(f, h, now);
        case '2':
            return resend_request(f, h, now);
        case '3':
            return rejected(f, h, now);
        case '4':
            return sequence_reset(f, h, 1, now);
        case 'A':
            return reject(f, h, XDS_FIX_LOGON_AGAIN, OTHER, 0, "Logon in a session", now);
        }
    delivered(f, XDS_FIX_EVENT_MESSAGE, h);
    used(f, now);
    return XDS_FIX_DELIVERED;
}

int xdsi_fix_take(struct xds_fix *f, const uint8_t *message, uint32_t len, int64_t now)
{
    struct xdsi_fix_head h = {.message = message, .len = len};
    const int was_tested = f->tested != 0;
    int code;

    index_of(f, &h);
    if ((code = identity(f, &h, now)) >= 0)
        return code;
    f->last_in = now;
    f->tested =
        f->tested == 2 ? 2 : 0; /* anything is a sign of life; a user's question waits for its answer */
    if (f->state == XDS_FIX_LOGON_SENT || f->state == XDS_FIX_LOGON_WAIT)
        return h.fault || h.sending_bad
                   ? fatal(f, &h, XDS_FIX_LOGON_BAD, "a field without form, or no SendingTime")
                   : first(f, &h, now);
    if (!h.fault && !strcmp(h.type, "4") && !is_yes(f, &h, 123))
        return sequence_reset(f, &h, 0, now); /* whatever its number */
    if (!h.fault && !strcmp(h.type, "A") && is_yes(f, &h, 141))
        return logon_again(f, &h, now);
    if (!h.fault && !strcmp(h.type, "5"))
        return logout(f, &h, now);
    if (h.seq > f->next_in)
        return !h.fault && !strcmp(h.type, "2") ? resend_request(f, &h, now) : ahead(f, &h, now);
    if (h.seq < f->next_in) {
        if (!(h.flags & XDS_FIX_POSS_DUP))
            return fatal(f, &h, XDS_FIX_SEQ_LOW, "MsgSeqNum too low");
        code = original(f, &h, now);
        return code >= 0 ? code : XDS_FIX_DUPLICATE;
    }
    return in_order(f, &h, was_tested, now);
}
