/* dpdk_rx.c: the receive loop of bare_xsk.c over DPDK's af_xdp driver, for rx-rate.dpdk.
 *
 * One port, one queue, run to completion on one lcore, bursts of 64: touch, count, free. No huge pages
 * are needed (--no-huge); the driver is named by --vdev, so no PCI device is looked for. The driver
 * loads libxdp's default program and binds in copy mode on veth by itself; its rings are 2,048.
 */
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_version.h>

#include "bench.h"

#define BURST   64
#define MBUFS   16383
#define RX_DESC 2048

static void start_eal(const struct bench_options *o)
{
    char lcores[32], vdev[256];
    snprintf(lcores, sizeof lcores, "%d", (int)bench_number(o, "core", 0));
    snprintf(vdev, sizeof vdev, "net_af_xdp0,iface=%s,start_queue=0,queue_count=1%s%s",
             bench_text(o, "iface", ""), bench_text(o, "devargs", "")[0] ? "," : "",
             bench_text(o, "devargs", ""));
    char *args[] = {(char *)"dpdk_rx",
                    (char *)"-l",
                    lcores,
                    (char *)"--no-huge",
                    (char *)"-m",
                    (char *)"256",
                    (char *)"--no-pci",
                    (char *)"--no-telemetry",
                    (char *)"--no-shconf",
                    (char *)"--vdev",
                    vdev,
                    (char *)"--log-level",
                    (char *)"error"};
    if (rte_eal_init(sizeof args / sizeof *args, args) < 0)
        bench_die("DPDK's EAL does not start: %s", rte_strerror(rte_errno));
}

static uint16_t open_port(void)
{
    uint16_t port;
    if (rte_eth_dev_get_port_by_name("net_af_xdp0", &port))
        bench_die("DPDK made no af_xdp port (librte-net-af-xdp23 missing, or the interface is unknown)");
    struct rte_mempool *pool =
        rte_pktmbuf_pool_create("bench", MBUFS, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, (int)rte_socket_id());
    if (!pool)
        bench_die("no mbuf pool: %s", rte_strerror(rte_errno));
    const struct rte_eth_conf conf = {0};
    if (rte_eth_dev_configure(port, 1, 1, &conf) || rte_eth_rx_queue_setup(port, 0, RX_DESC, 0, NULL, pool) ||
        rte_eth_tx_queue_setup(port, 0, RX_DESC, 0, NULL) || rte_eth_dev_start(port))
        bench_die("DPDK does not start the port");
    return port;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    setenv("LIBXDP_SKIP_DISPATCHER", "1", 0); /* one program, the fastest that the driver can have */
    start_eal(&options);
    const uint16_t port = open_port();
    bench_start(&options);
    struct bench_account account = {0};
    bench_account_init(&account, &options);
    const uint64_t count = (uint64_t)bench_number(&options, "count", 1e18);
    const int64_t deadline = bench_clock_ns(CLOCK_MONOTONIC) + (int64_t)(bench_seconds(&options) * 1e9);
    bench_ready();
    struct rte_mbuf *burst[BURST];
    for (uint32_t spins = 0; !bench_stop && account.seen < count; spins++) {
        const uint64_t begin = bench_ticks();
        const uint16_t n = rte_eth_rx_burst(port, 0, burst, BURST);
        account.polls++;
        if (!n) {
            if ((spins & 0xfff) == 0xfff && bench_clock_ns(CLOCK_MONOTONIC) > deadline)
                break;
            continue;
        }
        uint64_t bytes = 0;
        for (uint16_t i = 0; i < n; i++) {
            const uint8_t *data = rte_pktmbuf_mtod(burst[i], const uint8_t *);
            account.sum += data[0] + data[42];
            bytes += burst[i]->pkt_len;
        }
        rte_pktmbuf_free_bulk(burst, n);
        bench_account_poll(&account, begin, n, bytes);
    }
    struct rte_eth_stats stats = {0};
    rte_eth_stats_get(port, &stats);
    printf("{\"peer\": \"%s af_xdp\", \"imissed\": %lu, ", rte_version(), stats.imissed);
    bench_print_account(&account);
    printf("}\n");
    fflush(stdout);
    rte_eth_dev_stop(port);
    rte_eth_dev_close(port);
    rte_eal_cleanup();
    return 0;
}
