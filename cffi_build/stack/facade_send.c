/* facade_send.c: sendto() and sendmsg(): pieces in one message, and what is said beside it, as udp_sendmsg() with
 * ip_cmsg_send(), udpv6_sendmsg() with ip6_datagram_send_ctl(), and tcp_sendmsg() with sock_cmsg_send() do. */
#include "facade_int.h"

/* They would change what a call does; a datagram that waits for more is one of them, bytes of a stream are not. */
#define REFUSED (MSG_OOB | MSG_FASTOPEN | MSG_DONTROUTE)

static int may_send(const struct xdsi_sock *s, int flags)
{
    return flags & (REFUSED | (s->kind == SOCK_DGRAM ? MSG_MORE : 0)) ? -EOPNOTSUPP : 0;
}

int xds_sendto(struct xds_socks *n, int fd, const void *data, uint32_t bytes, int flags, const void *address,
               uint32_t len)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);

    if (!s)
        return -EBADF;
    const int code = may_send(s, flags);
    if (code)
        return code;
    bytes = bytes < 0x7fffffff ? bytes : 0x7fffffff;
    return s->kind == SOCK_STREAM ? xdsi_stream_write(n, s, data, bytes)
                                  : xdsi_dgram_send(n, s, data, bytes, address, len, NULL);
}

/* ---- control --------------------------------------------------------------------------------------- */

/* One message of control; data lies as the caller has it, not aligned. */
struct word {
    int level, type;
    const uint8_t *data;
    size_t len;
};

/* The next one, or what is left: 1, 0, -EINVAL. */
static int next_word(const struct msghdr *m, size_t *at, struct word *out)
{
    struct cmsghdr head;

    if (!m->msg_control || m->msg_controllen < *at || m->msg_controllen - *at < sizeof head)
        return 0;
    const size_t room = m->msg_controllen - *at;
    memcpy(&head, (const uint8_t *)m->msg_control + *at, sizeof head);
    if (head.cmsg_len < sizeof head || head.cmsg_len > room)
        return -EINVAL;
    *out = (struct word){.level = head.cmsg_level,
                         .type = head.cmsg_type,
                         .data = (const uint8_t *)m->msg_control + *at + sizeof head,
                         .len = head.cmsg_len - sizeof head};
    *at += CMSG_ALIGN(head.cmsg_len);
    return 1;
}

/* An int, nothing else, within bounds. */
static int number(const struct word *w, int least, int16_t *out)
{
    int v;

    if (w->len != sizeof v)
        return -EINVAL;
    memcpy(&v, w->data, sizeof v);
    if (v < least || v > 255)
        return -EINVAL;
    *out = (int16_t)v;
    return 0;
}

/* Descriptors and credentials go with sockets of another kind, and are not looked at; marks and times are not ours. */
static int of_socket(const struct word *w)
{
    return w->type == 1 || w->type == 2 ? 0
                                        : -EINVAL; /* SCM_RIGHTS; SCM_CREDENTIALS, which _GNU_SOURCE has */
}

static int of_ip(const struct word *w, struct xdsi_words *out)
{
    struct in_pktinfo info;

    switch (w->type) {
    case IP_PKTINFO:
        if (w->len != sizeof info)
            return -EINVAL;
        memcpy(&info, w->data, sizeof info);
        out->link = info.ipi_ifindex ? (uint32_t)info.ipi_ifindex : out->link;
        out->from = true;
        memset(out->here.ip, 0, 16);
        if (info.ipi_spec_dst.s_addr)
            xdsi_map4(out->here.ip, info.ipi_spec_dst.s_addr);
        return 0;
    case IP_TTL:
        return number(w, 1, &out->ttl);
    case IP_TOS:
        if (w->len == 1) {
            out->tos = *w->data;
            return 0;
        }
        return number(w, 0, &out->tos);
    default:
        return -EINVAL;
    }
}

/* IPv6's own word for what goes over IPv4 after all. */
static int of_mapped(const struct word *w, struct xdsi_words *out)
{
    struct xdsi_pktinfo6 info;

    if (w->len < sizeof info)
        return -EINVAL;
    memcpy(&info, w->data, sizeof info);
    if (!xdsi_is_ip4((const uint8_t *)&info.address))
        return -EINVAL;
    out->link = info.link ? info.link : out->link;
    out->from = true;
    memcpy(out->here.ip, &info.address, 16);
    return 0;
}

static int of_ip6(const struct xds_socks *n, const struct xdsi_sock *s, const struct word *w,
                  struct xdsi_words *out)
{
    struct xdsi_pktinfo6 info;
    int16_t v;

    switch (w->type) {
    case IPV6_PKTINFO:
        if (w->len < sizeof info)
            return -EINVAL;
        memcpy(&info, w->data, sizeof info);
        if (info.link && s->sticky && info.link != s->sticky)
            return -EINVAL;
        out->link = info.link ? info.link : s->sticky ? s->sticky : out->link;
        if (out->link && out->link != n->cfg.scope)
            return -ENODEV;
        const struct xdsi_addr a = xdsi_addr_of((const uint8_t *)&info.address);
        if (xdsi_addr_none(a))
            return 0;
        if ((!out->link && xdsi_addr_link_local(a)) || xdsi_addr_is4(a) || !xdsi_host_own(n->host, a))
            return -EINVAL;
        out->from = true;
        memcpy(out->here.ip, &info.address, 16);
        return 0;
    case IPV6_HOPLIMIT:
        return number(w, -1, &out->ttl);
    case IPV6_TCLASS:
        return number(w, -1, &out->tos);
    case IPV6_DONTFRAG: /* nothing is ever cut */
        return number(w, 0, &v) || v > 1 ? -EINVAL : 0;
    default:
        return -EINVAL;
    }
}

int xdsi_words_of(const struct xds_socks *n, const struct xdsi_sock *s, const struct msghdr *m, bool four,
                  struct xdsi_words *out)
{
    struct word w;
    size_t at = 0;
    int code = 0, more;

    for (; m && (more = next_word(m, &at, &w)) && !code;) {
        if (more < 0)
            return more;
        if (w.level == SOL_SOCKET)
            code = of_socket(&w);
        else if (w.level == IPPROTO_UDP && s->kind == SOCK_DGRAM)
            code = -EINVAL; /* UDP_SEGMENT: nothing is cut */
        else if (s->kind == SOCK_DGRAM && four && w.level == IPPROTO_IP)
            code = of_ip(&w, out);
        else if (s->kind == SOCK_DGRAM && four && s->six && w.level == IPPROTO_IPV6 && w.type == IPV6_PKTINFO)
            code = of_mapped(&w, out);
        else if (s->kind == SOCK_DGRAM && !four && w.level == IPPROTO_IPV6)
            code = of_ip6(n, s, &w, out);
    }
    return code;
}

/* ---- messages -------------------------------------------------------------------------------------- */

/* Piece by piece, as far as there is room. */
static int send_stream(struct xds_socks *n, struct xdsi_sock *s, const struct msghdr *m, int64_t bytes)
{
    int done = 0, code = 0;

    if (!bytes)
        code = xdsi_stream_write(n, s, NULL, 0);
    for (size_t i = 0; i < m->msg_iovlen && done < bytes && code >= 0; i++) {
        const size_t left = (size_t)(bytes - done), len = m->msg_iov[i].iov_len;
        const uint32_t piece = (uint32_t)(len < left ? len : left);
        if (!piece)
            continue;
        code = xdsi_stream_write(n, s, m->msg_iov[i].iov_base, piece);
        if (code > 0)
            done += code;
        if (code != (int)piece)
            break;
    }
    return done ? done : code;
}

static int send_datagram(struct xds_socks *n, struct xdsi_sock *s, const struct msghdr *m, int64_t bytes)
{
    uint8_t *whole = n->stack->scratch; /* 64 KiB: what is longer goes nowhere */
    uint32_t filled = 0;

    for (size_t i = 0; i < m->msg_iovlen && filled < 65536; i++) {
        const size_t len = m->msg_iov[i].iov_len, room = 65536 - filled;
        const uint32_t piece = (uint32_t)(len < room ? len : room);
        if (piece)
            memcpy(whole + filled, m->msg_iov[i].iov_base, piece);
        filled += piece;
    }
    return xdsi_dgram_send(n, s, whole, (uint32_t)bytes, m->msg_name, m->msg_namelen, m);
}

int xds_sendmsg(struct xds_socks *n, int fd, const struct msghdr *m, int flags)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);
    struct xdsi_words words;

    if (!s)
        return -EBADF;
    const int64_t bytes = xdsi_vector_bytes(m);
    if (bytes < 0 || (m->msg_name && m->msg_namelen > 0x7fffffff))
        return bytes < 0 ? (int)bytes : -EINVAL;
    if (m->msg_controllen > 0x7fffffff)
        return -ENOBUFS;
    int code = may_send(s, flags);
    if (!code && s->kind == SOCK_DGRAM)
        return send_datagram(n, s, m, bytes);
    if (!code)
        code = xdsi_words_of(n, s, m, false, &words);
    return code ? code : send_stream(n, s, m, bytes);
}
