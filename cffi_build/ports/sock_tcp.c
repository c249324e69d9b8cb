/* sock_tcp.c: what the kernel says of a TCP socket, in the words that our own stack has for it.
 *
 * The layout is struct tcp_info of linux/tcp.h, which only grows: a kernel writes as much as it has, and what the
 * headers at hand do not know yet is here all the same. The kernel counts windows and losses in segments of snd_mss.
 */
#define _GNU_SOURCE
#include "xds/sock.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* linux/sockios.h; the C library has them under other names for terminals. */
#define UNREAD   0x541B /* SIOCINQ */
#define UNSENT   0x5411 /* SIOCOUTQ: sent and not acknowledged as well */
#define NO_RTT   0xFFFFFFFFu
#define US       1000ll
#define MS       1000000ll
#define STAMPS   1u /* TCPI_OPT_ */
#define SACK     2u
#define ECN      8u
#define CA_LOSS  4u
#define N_STATES 12u

struct told {
    uint8_t state, ca_state, retransmits, probes, backoff, options, scales, limited;
    uint32_t rto, ato, snd_mss, rcv_mss;
    uint32_t unacked, sacked, lost, retrans, fackets;
    uint32_t last_data_sent, last_ack_sent, last_data_recv, last_ack_recv;
    uint32_t pmtu, rcv_ssthresh, rtt, rttvar, snd_ssthresh, snd_cwnd, advmss, reordering;
    uint32_t rcv_rtt, rcv_space, total_retrans;
    uint64_t pacing_rate, max_pacing_rate, bytes_acked, bytes_received;
    uint32_t segs_out, segs_in, notsent_bytes, min_rtt, data_segs_in, data_segs_out;
    uint64_t delivery_rate, busy_time, rwnd_limited, sndbuf_limited;
    uint32_t delivered, delivered_ce;
    uint64_t bytes_sent, bytes_retrans;
    uint32_t dsack_dups, reord_seen, rcv_ooopack, snd_wnd, rcv_wnd;
};

_Static_assert(offsetof(struct told, total_retrans) == 100, "as linux/tcp.h has it");
_Static_assert(offsetof(struct told, delivery_rate) == 160, "as linux/tcp.h has it");
_Static_assert(offsetof(struct told, snd_wnd) == 228, "as linux/tcp.h has it");

/* By the kernel's number: include/net/tcp_states.h. */
static const uint32_t states[N_STATES] = {
    XDS_TCP_CLOSED,     XDS_TCP_ESTABLISHED, XDS_TCP_SYN_SENT,  XDS_TCP_SYN_RECEIVED,
    XDS_TCP_FIN_WAIT_1, XDS_TCP_FIN_WAIT_2,  XDS_TCP_TIME_WAIT, XDS_TCP_CLOSED,
    XDS_TCP_CLOSE_WAIT, XDS_TCP_LAST_ACK,    XDS_TCP_LISTEN,    XDS_TCP_CLOSING,
};

/* TCP_CA_Open, Disorder, CWR, Recovery, Loss. */
static const uint32_t recoveries[CA_LOSS + 1] = {XDS_TCP_RECOVERY_NONE, XDS_TCP_RECOVERY_NONE,
                                                 XDS_TCP_RECOVERY_REDUCE, XDS_TCP_RECOVERY_FAST,
                                                 XDS_TCP_RECOVERY_TIMEOUT};

static void fill_info(struct xds_tcp_info *i, const struct told *k)
{
    const uint64_t mss = k->snd_mss;
    const int64_t flying = (int64_t)k->unacked - k->sacked - k->lost + k->retrans;

    i->state = k->state < N_STATES ? states[k->state] : XDS_TCP_CLOSED;
    i->mss = k->snd_mss;
    i->stamps = (k->options & STAMPS) != 0;
    i->sack = (k->options & SACK) != 0;
    i->ecn = (k->options & ECN) != 0;
    i->cwnd = k->snd_cwnd * mss;
    i->ssthresh = k->snd_ssthresh * mss;
    i->in_flight = flying > 0 ? (uint64_t)flying * mss : 0;
    i->send_window = k->snd_wnd;
    i->receive_window = k->rcv_wnd;
    i->unsent = k->notsent_bytes;
    i->srtt_ns = k->rtt * US;
    i->rttvar_ns = k->rttvar * US;
    i->rto_ns = k->rto * US;
    i->rtt_min_ns = k->min_rtt == NO_RTT ? 0 : k->min_rtt * US;
    i->sacked = k->sacked * mss;
    i->lost = k->lost * mss;
    i->recovery = recoveries[k->ca_state < CA_LOSS ? k->ca_state : CA_LOSS];
}

/* The peer's FIN is one of the kernel's received bytes. Once it is CLOSED, nobody knows whether one came. */
static bool had_fin(uint32_t state)
{
    return state == XDS_TCP_CLOSE_WAIT || state == XDS_TCP_LAST_ACK || state == XDS_TCP_CLOSING ||
           state == XDS_TCP_TIME_WAIT;
}

int xds_sock_tcp(int fd, struct xds_sock_tcp *out)
{
    struct told k;
    socklen_t len = sizeof k;
    int queued = 0, unread = 0, give_up_ms = 0;

    memset(out, 0, sizeof *out);
    memset(&k, 0, sizeof k);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &k, &len) < 0)
        return -errno;
    fill_info(&out->info, &k);
    out->stats.received = k.segs_in;
    out->stats.sent = k.segs_out;
    out->stats.received_bytes = k.bytes_received - (k.bytes_received && had_fin(out->info.state));
    out->stats.sent_bytes = k.bytes_sent - k.bytes_retrans;
    out->stats.retransmits = k.total_retrans;
    out->stats.dsacks = k.dsack_dups;
    out->stats.out_of_order = k.rcv_ooopack;
    out->delivery_rate = k.delivery_rate;
    out->tells_send_window = len >= offsetof(struct told, snd_wnd) + sizeof k.snd_wnd;
    out->tells_receive_window = len >= offsetof(struct told, rcv_wnd) + sizeof k.rcv_wnd;
    if (k.state >= N_STATES || states[k.state] == XDS_TCP_LISTEN)
        return 0; /* which has no bytes */
    if (!ioctl(fd, UNREAD, &unread) && unread > 0)
        out->info.unread = (uint64_t)unread;
    if (!ioctl(fd, UNSENT, &queued) && (uint64_t)queued > out->info.unsent)
        out->info.outstanding = (uint64_t)queued - out->info.unsent;
    len = sizeof give_up_ms;
    if (!getsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &give_up_ms, &len))
        out->info.give_up_ns = give_up_ms * MS;
    return 0;
}
