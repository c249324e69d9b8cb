/* session_fix.c: the FIX core (xds/fix.h) as a session: its events in the words of all sessions, its counters less
 * those of the connections before.
 *
 * Numbers, and what was sent, are the profile's: a new connection goes on with them, once the session over the one
 * before has ended (its TCP connection may still linger). Who was overtaken so keeps what it had counted, and says
 * no more. */
#include "xds/fix.h"
#include "xds/session.h"

#include <stdbool.h>
#include <string.h>

#define WHY      256  /* bytes of a sentence about a failure */
#define TEXT_MAX 1024 /* bytes of a Logout's text */

/* Fields that an event is read from. */
enum { TEXT = 58, TEST_REQ_ID = 112, REF_TAG_ID = 371, REJECT_REASON = 373 };

_Static_assert((int)XDS_FIX_REASONS <= XDS_SESSION_REASONS, "each reason has its counter");
_Static_assert((int)XDS_SESSION_POSS_DUP == XDS_FIX_POSS_DUP, "flags are the same");
_Static_assert((int)XDS_SESSION_POSS_RESEND == XDS_FIX_POSS_RESEND, "flags are the same");

struct session {
    _Alignas(64) struct xds_session_fix *profile;
    struct xds_fix_stats before, last; /* counted by earlier connections; up to where it was overtaken */
    char why[WHY];
};

/* What the core says nothing about to the peer. */
static const char *sentence_of(uint32_t reason)
{
    switch (reason) {
    case XDS_FIX_LOGON_TIMEOUT:
        return "the Logon was not answered within open_timeout";
    case XDS_FIX_REFUSED:
        return "the Logon was refused: ";
    case XDS_FIX_SILENT:
        return "nothing came, not even in answer to a TestRequest";
    case XDS_FIX_LOGOUT_LATE:
        return "our Logout was not answered within close_timeout";
    default:
        return "the peer ended the connection, and not the session";
    }
}

static bool has_it(const struct session *s)
{
    return s->profile->user == s;
}

static size_t fix_size(const void *config)
{
    const struct xds_session_fix *p = config;

    return p->core && p->longest ? sizeof(struct session) : 0;
}

static int fix_init(void *mem, void *config, int64_t now, const uint8_t *seed)
{
    struct xds_session_fix *p = config;
    struct session *s = mem, *user = p->user;
    struct xds_fix_info info;

    (void)seed;
    xds_fix_info(p->core, &info);
    if (user && info.state != XDS_FIX_IDLE && info.state != XDS_FIX_ENDED)
        return XDS_ESTATE; /* whoever has it is not done */
    *s = (struct session){.profile = p};
    xds_fix_stats(p->core, &s->before);
    if (user)
        user->last = s->before;
    p->user = s;
    xds_fix_open(p->core, now);
    return 0;
}

static int fix_input(void *mem, const uint8_t *data, uint32_t len, int64_t now)
{
    struct session *s = mem;

    if (!has_it(s))
        return 0;
    if (data)
        return xds_fix_input(s->profile->core, data, len, now);
    xds_fix_hang_up(s->profile->core, now);
    return 0;
}

/* The first field with this tag in the event's message; out: where it is. 0: there is none. */
static uint32_t value_of(const struct xds_fix_event *e, uint32_t tag, const uint8_t **out)
{
    const int i = e->data ? xds_fix_find(e->fields, e->count, 3, tag) : -1;

    if (i < 0)
        return 0;
    *out = e->data + e->fields[i].at;
    return e->fields[i].len;
}

static uint32_t number_of(const struct xds_fix_event *e, uint32_t tag)
{
    const uint8_t *value;
    const uint32_t len = value_of(e, tag, &value);
    int64_t number = 0;

    return len && !xds_fix_integer(value, len, &number) && number > 0 && number <= UINT32_MAX
               ? (uint32_t)number
               : 0;
}

/* MsgType, which is the third field of every message. */
static void name_of(const struct xds_fix_event *e, char name[16])
{
    const struct xds_fix_field *type = &e->fields[2];

    memcpy(name, e->data + type->at, type->len < 16 ? type->len : 16);
}

/* The last event has the numbers that the next connection begins with. */
static void ended(const struct session *s, struct xds_session_event *out)
{
    struct xds_fix_info info;

    xds_fix_info(s->profile->core, &info);
    out->seq = info.next_in;
    out->until = info.next_out;
}

static void failed(struct session *s, const struct xds_fix_event *e, struct xds_session_event *out)
{
    const char *sentence = e->text ? e->text : sentence_of(e->reason);
    const size_t n = strlen(sentence);
    const uint8_t *said = NULL;
    uint32_t more = e->reason == XDS_FIX_REFUSED ? value_of(e, TEXT, &said) : 0;

    if (e->reason == XDS_FIX_REFUSED && !more) {
        said = (const uint8_t *)"no reason given";
        more = 15;
    }
    if (more > WHY - n)
        more = (uint32_t)(WHY - n);
    memcpy(s->why, sentence, n);
    if (more)
        memcpy(s->why + n, said, more);
    out->what = XDS_SESSION_FAILED;
    out->code = e->reason;
    out->data = (const uint8_t *)s->why;
    out->len = (uint32_t)(n + more);
    ended(s, out);
}

/* Those that tell of a Reject, in either direction. */
static void rejected(const struct xds_fix_event *e, struct xds_session_event *out)
{
    out->what = XDS_SESSION_FIX_REJECT;
    if (e->kind == XDS_FIX_EVENT_REJECTED) {
        out->flags = XDS_SESSION_SENT;
        out->code = (uint32_t)e->number;
        out->detail = e->tag;
        out->seq = e->seq;
        out->data = (const uint8_t *)e->text;
        out->len = e->text ? (uint32_t)strlen(e->text) : 0;
        return;
    }
    out->code = number_of(e, REJECT_REASON);
    out->detail = number_of(e, REF_TAG_ID);
    out->seq = e->number;
    out->len = value_of(e, TEXT, &out->data);
}

static void message(const struct xds_fix_event *e, uint32_t what, struct xds_session_event *out)
{
    out->what = what;
    out->seq = e->seq;
    out->flags = e->flags;
    out->data = e->data;
    out->len = e->len;
    name_of(e, out->name);
}

static void translate(struct session *s, const struct xds_fix_event *e, struct xds_session_event *out)
{
    switch ((enum xds_fix_event_kind)e->kind) {
    case XDS_FIX_EVENT_LOGON:
        message(e, XDS_SESSION_OPEN, out);
        out->code = (uint32_t)e->number;
        return;
    case XDS_FIX_EVENT_MESSAGE:
        message(e, XDS_SESSION_MESSAGE, out);
        return;
    case XDS_FIX_EVENT_GAP:
    case XDS_FIX_EVENT_RESEND:
        out->what = e->kind == XDS_FIX_EVENT_GAP ? XDS_SESSION_FIX_GAP : XDS_SESSION_FIX_RESEND;
        out->seq = e->seq;
        out->until = e->number;
        return;
    case XDS_FIX_EVENT_FILLED:
        out->what = XDS_SESSION_FIX_FILLED;
        out->seq = e->seq;
        return;
    case XDS_FIX_EVENT_RESET:
        out->what = XDS_SESSION_FIX_RESET;
        out->seq = e->number;
        return;
    case XDS_FIX_EVENT_REJECT:
    case XDS_FIX_EVENT_REJECTED:
        rejected(e, out);
        return;
    case XDS_FIX_EVENT_HEARTBEAT:
        out->what = XDS_SESSION_FIX_HEARTBEAT;
        out->seq = e->seq;
        out->until = e->number;
        return;
    case XDS_FIX_EVENT_TEST_REQUEST:
        out->what = XDS_SESSION_FIX_TEST;
        out->seq = e->seq;
        out->len = value_of(e, TEST_REQ_ID, &out->data);
        return;
    case XDS_FIX_EVENT_TESTED:
        out->what = XDS_SESSION_FIX_TESTED;
        return;
    case XDS_FIX_EVENT_LOGOUT:
        out->what = XDS_SESSION_FIX_LOGOUT;
        out->seq = e->seq;
        out->len = value_of(e, TEXT, &out->data);
        return;
    case XDS_FIX_EVENT_CLOSED:
        out->what = XDS_SESSION_CLOSED;
        ended(s, out);
        return;
    case XDS_FIX_EVENT_FAILED:
        failed(s, e, out);
        return;
    }
}

static int fix_event(void *mem, struct xds_session_event *out)
{
    struct session *s = mem;
    struct xds_fix_event e;

    if (!has_it(s) || !xds_fix_event(s->profile->core, &e))
        return 0;
    *out = (struct xds_session_event){0};
    translate(s, &e, out);
    return 1;
}

static int fix_output(void *mem, uint8_t *room, uint32_t cap, int64_t now)
{
    struct session *s = mem;

    return has_it(s) ? xds_fix_output(s->profile->core, room, cap, now) : 0;
}

static int64_t fix_deadline(const void *mem)
{
    const struct session *s = mem;

    return has_it(s) ? xds_fix_deadline(s->profile->core) : XDS_NEVER;
}

static void fix_tick(void *mem, int64_t now)
{
    struct session *s = mem;

    if (has_it(s))
        xds_fix_tick(s->profile->core, now);
}

static bool is_up(const struct session *s)
{
    struct xds_fix_info info;

    xds_fix_info(s->profile->core, &info);
    return has_it(s) && info.state == XDS_FIX_UP;
}

static int fix_send(void *mem, const struct xds_session_message *m, int64_t now)
{
    struct session *s = mem;

    if (!is_up(s))
        return XDS_ESTATE;
    if (m->flags & XDS_SESSION_PING) /* its TestReqID is the core's, so that the answer is known */
        return m->len ? XDS_EMALFORMED : xds_fix_test_request(s->profile->core, now);
    if (m->len > s->profile->longest) /* it will never have room */
        return XDS_EMALFORMED;
    return xds_fix_send(s->profile->core, m->data, m->len, now);
}

/* A Logout has a text, and no code in any of these versions. */
static int fix_close(void *mem, uint32_t code, const uint8_t *reason, uint32_t len, int64_t now)
{
    struct session *s = mem;
    char text[TEXT_MAX + 1];

    if (!is_up(s))
        return XDS_ESTATE;
    if (code || len > TEXT_MAX)
        return XDS_EMALFORMED;
    for (uint32_t i = 0; i < len; i++) {
        if (reason[i] < ' ')
            return XDS_EMALFORMED;
        text[i] = (char)reason[i];
    }
    text[len] = 0;
    return xds_fix_close(s->profile->core, text, now);
}

static void fix_stats(const void *mem, struct xds_session_stats *out)
{
    const struct session *s = mem;
    struct xds_fix_stats now = s->last;

    if (has_it(s))
        xds_fix_stats(s->profile->core, &now);
    *out = (struct xds_session_stats){.received = now.received - s->before.received,
                                      .delivered = now.reasons[0] - s->before.reasons[0],
                                      .sent = now.sent - s->before.sent};
    for (unsigned r = 1; r < XDS_FIX_REASONS; r++)
        out->reasons[r] = now.reasons[r] - s->before.reasons[r];
}

/* Its connection is gone, whatever the session thought: the next one may begin. */
static void fix_end(void *mem)
{
    struct session *s = mem;

    if (has_it(s))
        s->profile->user = NULL;
}

static const struct xds_session_ops ops = {
    .kind = XDS_SESSION_FIX,
    .size = fix_size,
    .init = fix_init,
    .input = fix_input,
    .event = fix_event,
    .output = fix_output,
    .deadline = fix_deadline,
    .tick = fix_tick,
    .send = fix_send,
    .close = fix_close,
    .stats = fix_stats,
    .end = fix_end,
};

const struct xds_session_ops *xds_session_fix(void)
{
    return &ops;
}
