/* frame.h: the one frame that every generator sends: Ethernet, IPv4, UDP, sequence and stamp.
 *
 * Payload: u64 sequence from 0, int64 CLOCK_TAI ns of sending (both host order), then zeros. The UDP
 * check sum is 0 (none), so that a generator may write into the payload and every receiver does the
 * same work; IPv4 allows that (RFC 768).
 */
#ifndef BENCH_FRAME_H
#define BENCH_FRAME_H

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include "bench.h"

#define BENCH_HEADERS (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr))

static inline void bench_mac(const struct bench_options *o, const char *name, uint8_t *out)
{
    const char *text = bench_text(o, name, "02:00:00:00:00:02");
    unsigned m[6];
    if (sscanf(text, "%x:%x:%x:%x:%x:%x", m, m + 1, m + 2, m + 3, m + 4, m + 5) != 6)
        bench_die("--%s takes a MAC address, not '%s'", name, text);
    for (int i = 0; i < 6; i++)
        out[i] = (uint8_t)m[i];
}

static inline uint32_t bench_ip(const struct bench_options *o, const char *name, const char *otherwise)
{
    struct in_addr address;
    if (inet_pton(AF_INET, bench_text(o, name, otherwise), &address) != 1)
        bench_die("--%s takes an IPv4 address", name);
    return address.s_addr;
}

/* Fill `frame` (--size bytes of UDP payload, default 64); returns its length. */
static inline uint32_t bench_frame(const struct bench_options *o, uint8_t *frame, uint32_t cap)
{
    const uint32_t payload = (uint32_t)bench_number(o, "size", 64);
    const uint32_t len = (uint32_t)BENCH_HEADERS + payload;
    if (payload < 16 || len > cap)
        bench_die("--size must be 16 to %zu", cap - BENCH_HEADERS);
    memset(frame, 0, len);
    struct ethhdr eth = {.h_proto = htons(ETH_P_IP)};
    bench_mac(o, "dmac", eth.h_dest);
    bench_mac(o, "smac", eth.h_source);
    struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP};
    ip.tot_len = htons((uint16_t)(len - ETH_HLEN));
    ip.saddr = bench_ip(o, "src", "10.0.0.1");
    ip.daddr = bench_ip(o, "dst", "10.0.0.2");
    uint16_t words[10];
    uint32_t sum = 0;
    memcpy(words, &ip, sizeof words);
    for (int i = 0; i < 10; i++)
        sum += words[i];
    sum = (sum & 0xffff) + (sum >> 16);
    ip.check = (uint16_t) ~(sum + (sum >> 16));
    struct udphdr udp = {.len = htons((uint16_t)(sizeof udp + payload))};
    udp.source = htons((uint16_t)bench_number(o, "sport", 9000));
    udp.dest = htons((uint16_t)bench_number(o, "port", 9001));
    memcpy(frame, &eth, sizeof eth);
    memcpy(frame + ETH_HLEN, &ip, sizeof ip);
    memcpy(frame + ETH_HLEN + sizeof ip, &udp, sizeof udp);
    return len;
}

/* The number alone, for a peer that is compared with one that reads no clock. */
static inline void bench_number_frame(uint8_t *frame, uint64_t sequence)
{
    memcpy(frame + BENCH_HEADERS, &sequence, 8);
}

static inline void bench_stamp(uint8_t *frame, uint64_t sequence)
{
    const int64_t now = bench_clock_ns(CLOCK_TAI);
    memcpy(frame + BENCH_HEADERS, &sequence, 8);
    memcpy(frame + BENCH_HEADERS + 8, &now, 8);
}

/* ---- pacing: batches at --rate packets a second (0: flat out), open loop, by the TSC ---- */

struct bench_pace {
    uint64_t begin;
    double ticks_per_packet;
};

static inline void bench_pace_start(struct bench_pace *p, double rate, double ns_per_tick)
{
    p->begin = bench_ticks();
    p->ticks_per_packet = rate > 0 ? 1e9 / rate / ns_per_tick : 0;
}

/* Wait until packet number `sequence` is due. A late sender does not slow down: it catches up. */
static inline void bench_pace_wait(const struct bench_pace *p, uint64_t sequence)
{
    const uint64_t due = p->begin + (uint64_t)((double)sequence * p->ticks_per_packet);
    while ((int64_t)(due - bench_ticks()) > 0 && !bench_stop)
        bench_pause();
}

#endif
