/* facade_message.c: recvfrom() and recvmsg(): what was read, whence, by which address of ours, and whether it was
 * cut, as udp_recvmsg(), tcp_recvmsg() and put_cmsg() do. */
#include "facade_int.h"

#define IOV_MOST 1024 /* UIO_MAXIOV */

/* Nothing waits here: no error in a queue of its own, no byte that is urgent. What Linux does not look at is not
 * looked at. */
static int may_read(const struct xds_socks *n, const struct xdsi_sock *s, int flags)
{
    if (flags & MSG_ERRQUEUE)
        return -EAGAIN;
    if (flags & MSG_OOB && s->kind == SOCK_STREAM)
        return xdsi_sock_state(n, s) == XDS_TCP_LISTEN ? -ENOTCONN : -EINVAL;
    return 0;
}

/* TCP: bytes that nobody wants to see go the way of those that were seen. */
static int stream(struct xds_socks *n, struct xdsi_sock *s, void *data, uint32_t room, int flags)
{
    const bool drop = flags & MSG_TRUNC;
    const uint32_t most = drop && room > 65536 ? 65536 : room;

    return xdsi_stream_read(n, s, drop ? n->stack->scratch : data, most, flags & MSG_PEEK);
}

int xds_recvfrom(struct xds_socks *n, int fd, void *data, uint32_t room, int flags, void *address,
                 uint32_t *len)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);
    struct xdsi_letter letter;

    if (!s)
        return -EBADF;
    const int code = may_read(n, s, flags);
    if (code)
        return code;
    room = room < 0x7fffffff ? room : 0x7fffffff;
    if (s->kind == SOCK_STREAM) { /* whose address goes without saying */
        const int got = stream(n, s, data, room, flags);
        if (got >= 0 && address && len)
            *len = 0;
        return got;
    }
    if (address && (!len || *len > 0x7fffffff))
        return -EINVAL;
    const int got = xdsi_dgram_read(s, data, room, flags & MSG_PEEK, &letter);
    if (got < 0)
        return got;
    xdsi_name_out(n, s, &letter.there, address, len);
    return flags & MSG_TRUNC ? (int)letter.len : got;
}

/* ---- control -------------------------------------------------------------------------------------- */

/* used: bytes that are filled. What does not fit is cut, and said to be. */
static void put(struct msghdr *m, size_t *used, int level, int type, const void *data, size_t bytes)
{
    const size_t room = m->msg_control && m->msg_controllen > *used ? m->msg_controllen - *used : 0;
    struct cmsghdr head = {.cmsg_len = CMSG_LEN(bytes), .cmsg_level = level, .cmsg_type = type};

    if (room < sizeof head) {
        m->msg_flags |= MSG_CTRUNC;
        return;
    }
    if (room < head.cmsg_len) {
        m->msg_flags |= MSG_CTRUNC;
        head.cmsg_len = room;
    }
    uint8_t *to = (uint8_t *)m->msg_control + *used;
    memcpy(to, &head, sizeof head);
    memcpy(to + CMSG_LEN(0), data, head.cmsg_len - CMSG_LEN(0));
    *used += CMSG_SPACE(bytes) < room ? CMSG_SPACE(bytes) : room;
}

/* How far it came, and its mark: each family has words of its own. */
static void tell_marks(const struct xdsi_sock *s, const struct xdsi_letter *l, struct msghdr *m, size_t *used)
{
    const bool four = xdsi_is_ip4(l->here.ip);
    const int hops = l->ttl, mark = l->tos;

    if (four && s->tells_ttl)
        put(m, used, IPPROTO_IP, IP_TTL, &hops, sizeof hops);
    if (four && s->tells_tos)
        put(m, used, IPPROTO_IP, IP_TOS, &l->tos, 1);
    if (!four && s->tells_hops)
        put(m, used, IPPROTO_IPV6, IPV6_HOPLIMIT, &hops, sizeof hops);
    if (!four && s->tells_class)
        put(m, used, IPPROTO_IPV6, IPV6_TCLASS, &mark, sizeof mark);
}

/* The address of ours that it came to, and the one that an answer would come from. */
static void tell_where(const struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_letter *l,
                       struct msghdr *m)
{
    size_t used = 0;

    if (s->six && s->tells6) {
        struct xdsi_pktinfo6 info = {.link = n->cfg.scope};
        memcpy(&info.address, l->here.ip, 16);
        put(m, &used, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
    }
    if (s->tells4 && xdsi_is_ip4(l->here.ip)) {
        struct in_pktinfo info = {.ipi_ifindex = (int)n->cfg.scope};
        uint8_t src[16];
        memcpy(&info.ipi_addr, l->here.ip + 12, 4);
        info.ipi_spec_dst = info.ipi_addr;
        if (xdsi_name_group(&l->here) && !xdsi_name_source(n, &l->there, src))
            memcpy(&info.ipi_spec_dst, src + 12, 4);
        put(m, &used, IPPROTO_IP, IP_PKTINFO, &info, sizeof info);
    }
    tell_marks(s, l, m, &used);
    m->msg_controllen = used;
}

/* ---- vectors -------------------------------------------------------------------------------------- */

int64_t xdsi_vector_bytes(const struct msghdr *m)
{
    int64_t room = 0;

    if (m->msg_iovlen > IOV_MOST)
        return -EMSGSIZE;
    for (size_t i = 0; i < m->msg_iovlen; i++) {
        if (m->msg_iov[i].iov_len > 0x7fffffffffffffff)
            return -EINVAL;
        const int64_t left = 0x7fffffff - room;
        room += (int64_t)m->msg_iov[i].iov_len < left ? (int64_t)m->msg_iov[i].iov_len : left;
    }
    return room;
}

static void scatter(const struct msghdr *m, const uint8_t *data, uint32_t bytes)
{
    for (size_t i = 0; bytes; i++) {
        const uint32_t piece = m->msg_iov[i].iov_len < bytes ? (uint32_t)m->msg_iov[i].iov_len : bytes;
        if (piece)
            memcpy(m->msg_iov[i].iov_base, data, piece);
        data += piece;
        bytes -= piece;
    }
}

int xds_recvmsg(struct xds_socks *n, int fd, struct msghdr *m, int flags)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);
    uint8_t *scratch = n->stack->scratch; /* 64 KiB: no datagram is longer, and of a stream that is enough */
    struct xdsi_letter letter = {.len = 0};
    uint32_t len = m->msg_namelen;

    if (!s)
        return -EBADF;
    const int64_t room = xdsi_vector_bytes(m);
    if (room < 0 || len > 0x7fffffff)
        return room < 0 ? (int)room : -EINVAL;
    const int code = may_read(n, s, flags);
    if (code)
        return code;
    const uint32_t most = room < 65536 ? (uint32_t)room : 65536;
    const bool is_stream = s->kind == SOCK_STREAM;
    const int got = is_stream ? stream(n, s, scratch, most, flags)
                              : xdsi_dgram_read(s, scratch, most, flags & MSG_PEEK, &letter);
    if (got < 0)
        return got;
    if (!(is_stream && flags & MSG_TRUNC))
        scatter(m, scratch, (uint32_t)got);
    m->msg_flags = flags & MSG_CMSG_CLOEXEC; /* it comes back, as from Linux */
    if (is_stream) {
        m->msg_namelen = m->msg_name ? 0 : m->msg_namelen;
        m->msg_controllen = 0;
        return got;
    }
    if (m->msg_name) {
        xdsi_name_out(n, s, &letter.there, m->msg_name, &len);
        m->msg_namelen = len;
    }
    tell_where(n, s, &letter, m);
    if ((uint32_t)got < letter.len)
        m->msg_flags |= MSG_TRUNC;
    return flags & MSG_TRUNC ? (int)letter.len : got;
}
