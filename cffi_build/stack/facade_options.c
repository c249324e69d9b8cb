/* facade_options.c: getsockopt() and setsockopt(): what can be kept, in Linux's units and bounds. */
#include "facade_int.h"

#define SECOND      1000000000ll
#define MILLISECOND 1000000ll
#define NAME_MAX_   16                 /* of a congestion control, TCP_CA_NAME_MAX */
#define CORKED      2                  /* of xds_tcp_config.nagle */
#define QUICK_NS    (40 * MILLISECOND) /* TCP_DELACK_MIN: the longest wait of an ACK that may wait */

static const char *const congestion[] = {
    [XDS_TCP_CUBIC] = "cubic", [XDS_TCP_NEWRENO] = "reno", [XDS_TCP_NO_CONGESTION] = "none"};

static bool is_open(const struct xdsi_sock *s)
{
    return s->id && !s->listening;
}

/* A connection that is there changes now; a later one has it from the start. */
static int change(struct xds_socks *n, struct xdsi_sock *s, uint32_t setting, int64_t value)
{
    if (is_open(s) && xds_stack_set(n->stack, s->id, setting, value, n->now))
        return -EINVAL;
    if (s->listening)
        xdsi_listener(n->stack, s->id)->how = s->how;
    return 0;
}

/* SO_RCVTIMEO, SO_SNDTIMEO, by either of their numbers: 0, 1, or -1. */
static int wait_of(int option)
{
    return option == 20 || option == 66 ? 0 : option == 21 || option == 67 ? 1 : -1;
}

/* ---- set ----------------------------------------------------------------------------------------- */

/* It is there to be read back: a call that does not wait asks neither. */
static int set_wait(struct timeval *to, const void *value, uint32_t len)
{
    struct timeval t;

    if (len < sizeof t)
        return -EINVAL;
    memcpy(&t, value, sizeof t);
    if (t.tv_usec < 0 || t.tv_usec >= 1000000)
        return -EDOM;
    *to = t.tv_sec < 0 ? (struct timeval){.tv_sec = 0} : t;
    return 0;
}

static int set_socket(struct xds_socks *n, struct xdsi_sock *s, int option, int v, const void *value,
                      uint32_t len)
{
    struct linger l;

    switch (option) {
    case SO_REUSEADDR:
        s->reuse = v != 0;
        return 0;
    case SO_BROADCAST:
        s->broadcast = v != 0;
        return 0;
    case SO_KEEPALIVE:
        s->how.keepalive = v != 0;
        return s->kind == SOCK_STREAM ? change(n, s, XDS_TCP_SET_KEEPALIVE, v != 0) : 0;
    case SO_SNDBUF: /* memory is laid out at start: what is asked for is no more than a wish, as Linux takes it */
    case SO_RCVBUF:
        return 0;
    case SO_LINGER:
        if (len < sizeof l)
            return -EINVAL;
        memcpy(&l, value, sizeof l);
        s->lingers = l.l_onoff != 0;
        s->linger = s->lingers ? l.l_linger : s->linger;
        return 0;
    default:
        return wait_of(option) < 0 ? -ENOPROTOOPT : set_wait(&s->waits[wait_of(option)], value, len);
    }
}

static int set_congestion(struct xds_socks *n, struct xdsi_sock *s, const char *value, uint32_t len)
{
    char name[NAME_MAX_] = {0};

    if (!len)
        return -EINVAL;
    memcpy(name, value, len < NAME_MAX_ - 1 ? len : NAME_MAX_ - 1);
    for (uint8_t i = 0; i < sizeof congestion / sizeof congestion[0]; i++) {
        if (strcmp(name, congestion[i]))
            continue;
        if (is_open(s))
            return s->how.congestion == i ? 0 : -EISCONN;
        s->how.congestion = i;
        return s->listening ? change(n, s, 0, 0) : 0;
    }
    return -ENOENT;
}

static bool keeps(int option, int v)
{
    const int most = option == TCP_KEEPCNT ? 127 : 32767;
    return v >= 1 && v <= most;
}

static int set_tcp(struct xds_socks *n, struct xdsi_sock *s, int option, int v)
{
    switch (option) {
    case TCP_NODELAY: /* where it is corked, what waits goes now, as on Linux */
        s->how.nagle = (uint8_t)((s->how.nagle & CORKED) | !v);
        return change(n, s, XDS_TCP_SET_NAGLE, s->how.nagle);
    case TCP_CORK:
        s->how.nagle = (uint8_t)((s->how.nagle & 1) | (v ? CORKED : 0));
        return change(n, s, XDS_TCP_SET_NAGLE, s->how.nagle);
    case TCP_QUICKACK: /* for good, where Linux may change its mind */
        s->how.delayed_ack_ns = v ? 0 : s->how.delayed_ack_ns ? s->how.delayed_ack_ns : QUICK_NS;
        return change(n, s, XDS_TCP_SET_DELAYED_ACK_NS, s->how.delayed_ack_ns);
    case TCP_MAXSEG:
        if (v && (v < 88 || v > 32767))
            return -EINVAL;
        if (is_open(s))
            return -EISCONN;
        s->how.mss = (uint16_t)v;
        return change(n, s, 0, 0);
    case TCP_KEEPIDLE:
        if (!keeps(option, v))
            return -EINVAL;
        s->how.keep_idle_ns = v * SECOND;
        return change(n, s, XDS_TCP_SET_KEEP_IDLE_NS, v * SECOND);
    case TCP_KEEPINTVL:
        if (!keeps(option, v))
            return -EINVAL;
        s->how.keep_interval_ns = v * SECOND;
        return change(n, s, XDS_TCP_SET_KEEP_INTERVAL_NS, v * SECOND);
    case TCP_KEEPCNT:
        if (!keeps(option, v))
            return -EINVAL;
        s->how.keep_count = (uint32_t)v;
        return change(n, s, XDS_TCP_SET_KEEP_COUNT, v);
    case TCP_USER_TIMEOUT:
        if (v < 0)
            return -EINVAL;
        s->how.give_up_ns = v * MILLISECOND;
        return change(n, s, XDS_TCP_SET_GIVE_UP_NS, v * MILLISECOND);
    default:
        return -ENOPROTOOPT;
    }
}

int xds_setsockopt(struct xds_socks *n, int fd, int level, int option, const void *value, uint32_t len)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);
    int v;

    if (!s)
        return -EBADF;
    if (len > 0x7fffffff)
        return -EINVAL;
    if (level == IPPROTO_IP)
        return xdsi_set_ip(n, s, option, value, len);
    if (level == IPPROTO_IPV6 && s->six)
        return xdsi_set_ip6(n, s, option, value, len);
    if (level == IPPROTO_TCP && s->kind == SOCK_STREAM && option == TCP_CONGESTION)
        return set_congestion(n, s, value, len);
    if (level != SOL_SOCKET && (level != IPPROTO_TCP || s->kind != SOCK_STREAM))
        return -ENOPROTOOPT;
    if (level == SOL_SOCKET && option == SO_BINDTODEVICE) /* there are no names here */
        return len && *(const char *)value ? -ENODEV : 0;
    if (len < sizeof v)
        return -EINVAL;
    memcpy(&v, value, sizeof v);
    return level == SOL_SOCKET ? set_socket(n, s, option, v, value, len) : set_tcp(n, s, option, v);
}

/* ---- get ----------------------------------------------------------------------------------------- */

static int get_socket(struct xds_socks *n, struct xdsi_sock *s, int option, int *v)
{
    const struct xds_stack_config *c = &n->stack->cfg;
    const bool stream = s->kind == SOCK_STREAM;

    switch (option) {
    case SO_TYPE:
        *v = s->kind;
        return 0;
    case SO_DOMAIN:
        *v = s->six ? AF_INET6 : AF_INET;
        return 0;
    case SO_PROTOCOL:
        *v = stream ? IPPROTO_TCP : IPPROTO_UDP;
        return 0;
    case SO_ERROR:
        *v = -xdsi_sock_error(s);
        return 0;
    case SO_ACCEPTCONN:
        *v = s->listening;
        return 0;
    case SO_REUSEADDR:
        *v = s->reuse;
        return 0;
    case SO_BROADCAST:
        *v = s->broadcast;
        return 0;
    case SO_KEEPALIVE:
        *v = s->how.keepalive;
        return 0;
    case SO_SNDBUF:
        *v = (int)(stream ? c->send_bytes : n->cfg.send_bytes);
        return 0;
    case SO_RCVBUF:
        *v = (int)(stream ? c->receive_bytes : n->cfg.receive_bytes);
        return 0;
    default:
        return -ENOPROTOOPT;
    }
}

static int get_tcp(struct xds_socks *n, struct xdsi_sock *s, int option, int *v)
{
    const struct xds_tcp_config *c = &s->how;
    struct xds_tcp_info info;

    switch (option) {
    case TCP_NODELAY:
        *v = !(c->nagle & 1);
        return 0;
    case TCP_CORK:
        *v = (c->nagle & CORKED) != 0;
        return 0;
    case TCP_QUICKACK:
        *v = !c->delayed_ack_ns;
        return 0;
    case TCP_KEEPIDLE:
        *v = (int)(c->keep_idle_ns ? c->keep_idle_ns / SECOND : 7200);
        return 0;
    case TCP_KEEPINTVL:
        *v = (int)(c->keep_interval_ns ? c->keep_interval_ns / SECOND : 75);
        return 0;
    case TCP_KEEPCNT:
        *v = c->keep_count ? (int)c->keep_count : 9;
        return 0;
    case TCP_USER_TIMEOUT:
        *v = (int)(c->give_up_ns / MILLISECOND);
        return 0;
    case TCP_MAXSEG:
        *v = c->mss;
        if (is_open(s)) {
            xds_tcp_info(xds_stack_tcp(n->stack, s->id), &info);
            *v = (int)info.mss;
        }
        return 0;
    default:
        return -ENOPROTOOPT;
    }
}

/* Linux's numbers of states, and its units: microseconds, segments. */
static struct tcp_info info_of(const struct xds_socks *n, const struct xdsi_sock *s)
{
    static const uint8_t states[] = {
        [XDS_TCP_CLOSED] = TCP_CLOSE,
        [XDS_TCP_LISTEN] = TCP_LISTEN,
        [XDS_TCP_SYN_SENT] = TCP_SYN_SENT,
        [XDS_TCP_SYN_RECEIVED] = TCP_SYN_RECV,
        [XDS_TCP_ESTABLISHED] = TCP_ESTABLISHED,
        [XDS_TCP_FIN_WAIT_1] = TCP_FIN_WAIT1,
        [XDS_TCP_FIN_WAIT_2] = TCP_FIN_WAIT2,
        [XDS_TCP_CLOSE_WAIT] = TCP_CLOSE_WAIT,
        [XDS_TCP_CLOSING] = TCP_CLOSING,
        [XDS_TCP_LAST_ACK] = TCP_LAST_ACK,
        [XDS_TCP_TIME_WAIT] = TCP_TIME_WAIT,
    };
    struct tcp_info out = {.tcpi_state = states[xdsi_sock_state(n, s)]};
    struct xds_tcp *t = is_open(s) ? xds_stack_tcp(n->stack, s->id) : NULL;
    struct xds_tcp_stats stats;
    struct xds_tcp_info i;

    if (!t)
        return out;
    xds_tcp_info(t, &i);
    xds_tcp_stats(t, &stats);
    const uint32_t mss = i.mss ? i.mss : 1;
    out.tcpi_options = (uint8_t)((i.stamps ? TCPI_OPT_TIMESTAMPS : 0) | (i.sack ? TCPI_OPT_SACK : 0) |
                                 (t->peer_scales ? TCPI_OPT_WSCALE : 0) | (i.ecn ? TCPI_OPT_ECN : 0));
    out.tcpi_rto = (uint32_t)(i.rto_ns / 1000);
    out.tcpi_snd_mss = mss;
    out.tcpi_unacked = (uint32_t)((i.outstanding + mss - 1) / mss);
    out.tcpi_sacked = (uint32_t)((i.sacked + mss - 1) / mss);
    out.tcpi_lost = (uint32_t)((i.lost + mss - 1) / mss);
    out.tcpi_rtt = (uint32_t)(i.srtt_ns / 1000);
    out.tcpi_rttvar = (uint32_t)(i.rttvar_ns / 1000);
    out.tcpi_snd_cwnd = (uint32_t)(i.cwnd / mss);
    out.tcpi_snd_ssthresh = i.ssthresh / mss < 0x7fffffff ? (uint32_t)(i.ssthresh / mss) : 0x7fffffff;
    out.tcpi_pmtu = (uint32_t)xds_host_path_mtu(n->host, s->peer.ip, n->now);
    out.tcpi_rcv_space = (uint32_t)i.receive_window;
    out.tcpi_total_retrans = (uint32_t)stats.retransmits;
    return out;
}

static int give(void *value, uint32_t *len, const void *found, uint32_t bytes)
{
    *len = *len < bytes ? *len : bytes;
    if (*len)
        memcpy(value, found, *len);
    return 0;
}

/* What is no int: whether it was one of them. */
static bool get_other(struct xds_socks *n, struct xdsi_sock *s, int level, int option, void *value,
                      uint32_t *len, int *code)
{
    const bool stream = level == IPPROTO_TCP && s->kind == SOCK_STREAM;

    if (level == SOL_SOCKET && option == SO_LINGER) {
        const struct linger l = {.l_onoff = s->lingers, .l_linger = s->linger};
        *code = give(value, len, &l, sizeof l);
    } else if (level == SOL_SOCKET && wait_of(option) >= 0) {
        *code = give(value, len, &s->waits[wait_of(option)], sizeof s->waits[0]);
    } else if (stream && option == TCP_CONGESTION) {
        char name[NAME_MAX_] = {0};
        memcpy(name, congestion[s->how.congestion], strlen(congestion[s->how.congestion]));
        *code = give(value, len, name, sizeof name);
    } else if (stream && option == TCP_INFO) {
        const struct tcp_info info = info_of(n, s);
        *code = give(value, len, &info, sizeof info);
    } else if ((level == IPPROTO_IP && (option == IP_MSFILTER || option == MCAST_MSFILTER)) ||
               (level == IPPROTO_IPV6 && s->six && option == MCAST_MSFILTER)) {
        *code = xdsi_get_filter(n, s, level == IPPROTO_IPV6, option, value, len);
    } else if (level == IPPROTO_IP && option == IP_MULTICAST_IF) {
        *code = give(value, len, &s->many_from, sizeof s->many_from);
    } else if ((level == IPPROTO_IP && option == IP_OPTIONS) ||
               (level == SOL_SOCKET && option == SO_BINDTODEVICE)) {
        *code = give(value, len, NULL, 0); /* none */
    } else {
        return false;
    }
    return true;
}

int xds_getsockopt(struct xds_socks *n, int fd, int level, int option, void *value, uint32_t *len)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);
    int v = 0, code = -ENOPROTOOPT;

    if (!s)
        return -EBADF;
    if (*len > 0x7fffffff)
        return -EINVAL;
    if (get_other(n, s, level, option, value, len, &code))
        return code;
    if (level == SOL_SOCKET) {
        code = get_socket(n, s, option, &v);
    } else if (level == IPPROTO_TCP && s->kind == SOCK_STREAM) {
        code = get_tcp(n, s, option, &v);
    } else if (level == IPPROTO_IP) {
        code = xdsi_get_ip(n, s, option, &v);
        if (!code && *len && *len < sizeof v)
            return give(value, len, &(uint8_t){(uint8_t)v}, 1);
    } else if (level == IPPROTO_IPV6 && s->six) {
        code = xdsi_get_ip6(n, s, option, &v);
    } else {
        code = s->six ? -ENOPROTOOPT : -EOPNOTSUPP; /* where setsockopt() has ENOPROTOOPT */
    }
    return code ? code : give(value, len, &v, sizeof v);
}
