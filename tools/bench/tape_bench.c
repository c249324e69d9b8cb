/* tape_bench.c: what a tape costs between two pinned processes. Linked with cffi_build/ground/tape.c.
 *
 *   tape_bench --mode hop  --core A --other B    one way of a ping-pong of 64-byte records, ns
 *   tape_bench --mode rate --core A --other B --batch N --seconds S    records a second that are delivered
 *
 * Every record is copied out and checked. A reader that is lapped counts what it lost, which is not delivered.
 */
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "bench.h"
#include "ground/tape_inl.h"

#define TRIPS 200000
#define WARM  20000

struct record {
    uint64_t word[8];
};

static struct xds_tape *make(uint64_t bytes)
{
    void *memory;
    const int fd = memfd_create("tape", 0);
    if (fd < 0 || ftruncate(fd, (off_t)(XDS_TAPE_HEADER + bytes)) ||
        xds_tape_map(fd, XDS_TAPE_HEADER, bytes, 2, &memory) ||
        xds_tape_init(memory, XDS_TAPE_HEADER, bytes, sizeof(struct record), 0, ""))
        bench_die("cannot make a tape");
    close(fd);
    return memory;
}

/* The other side: a process on its own core that goes when this one does. It is moved from here: this one
 * spins with priority on the core where it was made. */
static pid_t fork_to(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((unsigned)core, &set);
    const pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        bench_die("cannot start the other process");
    if (pid) {
        if (sched_setaffinity(pid, sizeof set, &set)) {
            kill(pid, SIGKILL);
            bench_die("cannot pin the other process");
        }
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    alarm(BENCH_SECONDS_MAX + 5);
    return 0;
}

static void take(struct xds_tape_reader *r, struct record *to)
{
    struct xds_tape_record head;
    int rc;
    for (uint64_t spins = 1; !(rc = xdsi_tape_take(r, &head, to, sizeof *to)); spins++)
        if (!(spins & 0xffffff) && bench_stop)
            exit(1);
    if (rc < 0)
        bench_die("the tape broke: %d", rc);
}

static int hop(const struct bench_options *options)
{
    struct xds_tape *there = make(1 << 16), *back = make(1 << 16);
    struct xds_tape_writer w;
    struct xds_tape_reader r;
    struct record data = {{0}}, got;
    const pid_t other = fork_to((int)bench_number(options, "other", 1));
    if (!other) {
        xds_tape_attach_writer(&w, back, 2, 1);
        xds_tape_attach_reader(&r, there, &there->slots[0], XDS_TAPE_OLDEST);
        for (int i = 0; i < TRIPS + WARM; i++) {
            take(&r, &got);
            xdsi_tape_write(&w, 0, &got, sizeof got);
        }
        _exit(0);
    }
    xds_tape_attach_writer(&w, there, 1, 1);
    xds_tape_attach_reader(&r, back, &back->slots[0], XDS_TAPE_OLDEST);
    struct bench_samples samples;
    bench_samples_init(&samples, TRIPS);
    const double ns_per_tick = bench_calibrate();
    for (uint64_t i = 0; i < TRIPS + WARM; i++) {
        data.word[0] = data.word[7] = i;
        const uint64_t begin = bench_ticks();
        xdsi_tape_write(&w, 0, &data, sizeof data);
        take(&r, &got);
        const uint64_t end = bench_ticks_end();
        if (got.word[0] != i || got.word[7] != i)
            bench_die("record %lu came back as %lu", i, got.word[0]);
        if (i >= WARM)
            bench_sample(&samples, (double)(end - begin) * ns_per_tick / 2);
    }
    waitpid(other, NULL, 0);
    printf("{");
    bench_print_samples(&samples);
    printf("}\n");
    return 0;
}

/* Write until told to stop, then finish: the reader sees the end. */
static void write_on(struct xds_tape *tape, size_t batch, int64_t until)
{
    static struct record data[4096];
    struct xds_tape_writer w;
    xds_tape_attach_writer(&w, tape, 2, 1);
    uint64_t n = 0;
    while (bench_clock_ns(CLOCK_MONOTONIC) < until)
        for (int turn = 0; turn < 64; turn++) {
            for (size_t i = 0; i < batch; i++)
                data[i].word[0] = data[i].word[7] = ++n;
            if (batch == 1)
                xdsi_tape_write(&w, 0, data, sizeof *data);
            else
                xds_tape_write_many(&w, 0, data, sizeof *data, batch);
        }
    xds_tape_close(tape);
    _exit(0);
}

static int rate(const struct bench_options *options)
{
    const size_t batch = (size_t)bench_number(options, "batch", 64);
    if (batch < 1 || batch > 4096)
        bench_die("--batch is from 1 to 4096");
    struct xds_tape *tape = make((uint64_t)bench_number(options, "bytes", 1 << 20));
    struct xds_tape_reader r;
    static uint64_t room[1 << 15];
    xds_tape_attach_reader(&r, tape, &tape->slots[0], XDS_TAPE_OLDEST);
    const int64_t begin = bench_clock_ns(CLOCK_MONOTONIC);
    const pid_t other = fork_to((int)bench_number(options, "other", 1));
    if (!other)
        write_on(tape, batch, begin + (int64_t)(bench_seconds(options) * 1e9));
    uint64_t seen = 0, n, sum = 0;
    int64_t got;
    while ((got = xds_tape_read(&r, room, sizeof room, &n)) >= 0) {
        const uint64_t stride = 2 + sizeof(struct record) / 8;
        for (uint64_t i = 0; i < n; i++) {
            const uint64_t *record = room + i * stride;
            if (record[2] != record[0] || record[9] != record[0])
                bench_die("record %lu holds %lu", record[0], record[2]);
            sum += record[2];
        }
        seen += n;
    }
    const int64_t end = bench_clock_ns(CLOCK_MONOTONIC);
    waitpid(other, NULL, 0);
    if (got != -EPIPE)
        bench_die("the tape broke: %ld", (long)got);
    printf("{\"n\": %lu, \"lost\": %lu, \"laps\": %lu, \"ns\": %ld, \"sum\": %lu}\n", seen, r.lost, r.laps,
           (long)(end - begin), sum);
    return 0;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    const char *mode = bench_text(&options, "mode", "hop");
    if (!strcmp(mode, "hop"))
        return hop(&options);
    if (!strcmp(mode, "rate"))
        return rate(&options);
    bench_die("--mode is hop or rate, not '%s'", mode);
}
