/* tape_bench.c: what a tape costs between two pinned processes. Linked with cffi_build/ground/tape.c.
 *
 *   tape_bench --mode hop  --core A --other B    one way of a ping-pong: one bare cache line, and 64-byte records
 *                                                through a tape each way, in turns
 *   tape_bench --mode rate --core A --other B --batch N --seconds S    records a second that are delivered
 *   tape_bench --mode feed --core A --path FILE --batch N --gap NS --seconds S    writes on somebody's tape
 *
 * Every record is copied out and checked. A reader that is lapped counts what it lost, which is not delivered.
 */
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "bench.h"
#include "ground/tape_inl.h"

#define TRIPS 100 /* a turn, which is one sample */
#define WARM  200 /* turns that are not counted   */

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
    while (!(rc = xdsi_tape_take(r, &head, to, sizeof *to)))
        if (!xdsi_tape_spin(r, 1 << 24) && bench_stop)
            exit(1);
    if (rc < 0)
        bench_die("the tape broke: %d", rc);
}

/* One line that goes to and fro, what these cores can do at best: first to `first`, answered by first + 1. */
static void bare(volatile uint64_t *ball, uint64_t first, bool asks)
{
    for (uint64_t i = first; i < first + 2 * TRIPS; i += 2) {
        if (asks)
            *ball = i + 1;
        const uint64_t wanted = asks ? i + 2 : i + 1;
        for (uint64_t looks = 1; *ball != wanted; looks++)
            if (!(looks & 0xffffff) && bench_stop)
                exit(1);
        if (!asks)
            *ball = i + 2;
    }
}

/* The same with a record of 64 bytes and a tape each way. */
static void hop(struct xds_tape_writer *w, struct xds_tape_reader *r, uint64_t first, bool asks)
{
    struct record data = {{0}}, got;
    for (uint64_t i = first; i < first + TRIPS; i++) {
        data.word[0] = data.word[7] = i;
        if (asks)
            xdsi_tape_write(w, 0, &data, sizeof data);
        take(r, &got);
        if (got.word[0] != i || got.word[7] != i)
            bench_die("record %lu came back as %lu", i, got.word[0]);
        if (!asks)
            xdsi_tape_write(w, 0, &got, sizeof got);
    }
}

/* Bare and ours in turns of TRIPS, some ten microseconds each: the host moves a guest's cores between states in
 * which a line takes 45 ns and 210, and of two turns in a row both see the same. */
static int hops(const struct bench_options *options)
{
    struct xds_tape *there = make(1 << 18), *back = make(1 << 18);
    volatile uint64_t *ball = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ball == MAP_FAILED)
        bench_die("cannot map a page");
    const uint64_t turns = (uint64_t)bench_number(options, "turns", 4000) + WARM;
    const pid_t other = fork_to((int)bench_number(options, "other", 1));
    struct xds_tape_writer w;
    struct xds_tape_reader r;
    xds_tape_attach_writer(&w, other ? there : back, 1, 1);
    xds_tape_attach_reader(&r, other ? back : there, &(other ? back : there)->slots[0], XDS_TAPE_OLDEST);
    struct bench_samples floor, ours, ratio;
    bench_samples_init(&floor, turns);
    bench_samples_init(&ours, turns);
    bench_samples_init(&ratio, turns);
    const double ps_per_tick = bench_calibrate() * 1000 / 2 / TRIPS;
    for (uint64_t turn = 0; turn < turns; turn++) {
        const uint64_t begin = bench_ticks_end();
        bare(ball, turn * 2 * TRIPS, other);
        const uint64_t middle = bench_ticks_end();
        hop(&w, &r, turn * TRIPS, other);
        const uint64_t end = bench_ticks_end();
        if (turn < WARM)
            continue;
        bench_sample(&floor, (double)(middle - begin) * ps_per_tick);
        bench_sample(&ours, (double)(end - middle) * ps_per_tick);
        bench_sample(&ratio, (double)(end - middle) * 1000 / (double)(middle - begin));
    }
    if (!other)
        _exit(0);
    waitpid(other, NULL, 0);
    printf("{\"bare_ps\": {");
    bench_print_samples(&floor);
    printf("}, \"hop_ps\": {");
    bench_print_samples(&ours);
    printf("}, \"ratio_permille\": {");
    bench_print_samples(&ratio);
    printf("}}\n");
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
    static uint64_t room[1 << 12];
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

/* Write numbered records on a tape of another program, `batch` each `gap` ns, then finish it. */
static int feed(const struct bench_options *options)
{
    static struct record data[4096];
    const size_t batch = (size_t)bench_number(options, "batch", 64);
    const int64_t gap = (int64_t)bench_number(options, "gap", 4000);
    const char *path = bench_text(options, "path", "");
    struct stat file;
    struct xds_tape_writer w;
    void *memory;
    const int fd = open(path, O_RDWR);
    if (batch < 1 || batch > 4096 || fd < 0 || fstat(fd, &file) || file.st_size <= XDS_TAPE_HEADER ||
        xds_tape_map(fd, XDS_TAPE_HEADER, (uint64_t)file.st_size - XDS_TAPE_HEADER, 2, &memory) ||
        xds_tape_check(memory, (uint64_t)file.st_size) || xds_tape_attach_writer(&w, memory, 1, 1))
        bench_die("cannot write to '%s', batches of 1 to 4096", path);
    const int64_t end = bench_clock_ns(CLOCK_MONOTONIC) + (int64_t)(bench_seconds(options) * 1e9);
    uint64_t n = 0;
    for (int64_t at = bench_clock_ns(CLOCK_MONOTONIC); at < end && !bench_stop; at += gap) {
        for (size_t i = 0; i < batch; i++)
            for (int word = 0; word < 8; word += 7)
                data[i].word[word] = n + i;
        n += batch;
        while (bench_clock_ns(CLOCK_MONOTONIC) < at)
            bench_pause();
        if (xds_tape_write_many(&w, 0, data, sizeof *data, batch) != 1)
            bench_die("'%s' has no records of %zu bytes", path, sizeof *data);
    }
    xds_tape_close(memory);
    printf("{\"n\": %lu}\n", n);
    return 0;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    const char *mode = bench_text(&options, "mode", "hop");
    if (!strcmp(mode, "hop"))
        return hops(&options);
    if (!strcmp(mode, "rate"))
        return rate(&options);
    if (!strcmp(mode, "feed"))
        return feed(&options);
    bench_die("--mode is hop, rate or feed, not '%s'", mode);
}
