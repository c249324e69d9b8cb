"""Proof that a thread neither allocates nor makes system calls other than those it is allowed.

    with counted_allocations() as counted:                  # before the process is started
        process = subprocess.Popen(command, env=counted.env)
        ...
        assert_quiet(tid, 2.0, allowed={"sendto", "recvfrom"})
        before = counted.calls(tid); ...; assert counted.calls(tid) == before

System calls are counted by strace, attached to the one thread; allocations by a small library that is
preloaded. Both look from outside: the process under test is the real one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from xdpstack.errors import SetupError

__all__ = ["CountedAllocations", "assert_quiet", "counted_allocations", "system_calls"]

# The kick of a port, its wake-up, and how a port may sleep.
KICKS = frozenset({"sendto", "recvfrom", "recvmsg", "poll"})


def system_calls(tid: int, seconds: float) -> dict[str, int]:
    """How often a thread makes each system call within ``seconds``, by strace. SetupError: it cannot tell."""
    strace = shutil.which("strace")
    if strace is None:
        raise SetupError("count system calls", "there is no strace", "apt install strace")
    with tempfile.TemporaryDirectory(prefix="xdpstack-quiet-") as folder:
        table, log = Path(folder, "table"), Path(folder, "log")
        with log.open("w") as messages:
            tracer = subprocess.Popen([strace, "-c", "-o", str(table), "-p", str(tid)], stderr=messages)
        try:
            _wait_attached(tracer, tid, log)
            time.sleep(seconds)
        finally:
            if tracer.poll() is None:
                tracer.send_signal(signal.SIGINT)
            tracer.wait(timeout=10)
        return _parse(table.read_text() if table.exists() else "")


def _wait_attached(tracer: subprocess.Popen[bytes], tid: int, log: Path) -> None:
    deadline = time.monotonic() + 10
    while f"\nTracerPid:\t{tracer.pid}\n" not in _status(tid):
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise SetupError(f"attach strace to thread {tid}", log.read_text().strip() or "it did not attach")
        time.sleep(0.01)


def _status(tid: int) -> str:
    try:
        return Path(f"/proc/{tid}/status").read_text()
    except OSError:
        return ""


def _parse(table: str) -> dict[str, int]:
    """The summary of ``strace -c``: % time, seconds, usecs/call, calls, errors (may be blank), syscall."""
    calls = {}
    for line in table.splitlines():
        match = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line)
        if match and match[2] != "total":
            calls[match[2]] = int(match[1])
    return calls


def assert_quiet(tid: int, seconds: float = 1.0, allowed: Collection[str] = KICKS) -> dict[str, int]:
    """Fail when a thread makes a system call that is not allowed; returns those it made.

    ``restart_syscall`` is strace's own doing (a sleep that it interrupted) and is let pass.
    """
    calls = system_calls(tid, seconds)
    loud = {name: count for name, count in calls.items() if name not in {*allowed, "restart_syscall"}}
    if loud:
        raise AssertionError(f"thread {tid} made system calls that are not allowed in {seconds} s: {loud}")
    return calls


# -- allocations ---------------------------------------------------------------------------------------

_SLOTS = 1024
# Counts malloc, calloc, realloc, free and their kin by thread, in a file that others may map. glibc's
# __libc_ names are called directly: no dlsym, which allocates by itself.
_SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#define SLOTS 1024
struct slot { int64_t tid; uint64_t calls; };
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
static struct slot *slots;
static __thread struct slot *mine __attribute__((tls_model("initial-exec")));
__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("XDPSTACK_COUNT_ALLOC");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *at = mmap(0, SLOTS * sizeof(struct slot), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        slots = at;
}
static void count(void)
{
    if (!slots)
        return;
    if (!mine) {
        const int64_t tid = syscall(SYS_gettid);
        for (int i = 0; i < SLOTS && !mine; i++) {
            int64_t none = 0;
            if (slots[i].tid == tid || __atomic_compare_exchange_n(&slots[i].tid, &none, tid, 0, 5, 5))
                mine = &slots[i];
        }
        if (!mine)
            return;
    }
    __atomic_fetch_add(&mine->calls, 1, __ATOMIC_RELAXED);
}
void *malloc(size_t n) { count(); return __libc_malloc(n); }
void *calloc(size_t a, size_t b) { count(); return __libc_calloc(a, b); }
void *realloc(void *p, size_t n) { count(); return __libc_realloc(p, n); }
void free(void *p) { if (p) count(); __libc_free(p); }
void *memalign(size_t a, size_t n) { count(); return __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { count(); return __libc_memalign(a, n); }
int posix_memalign(void **out, size_t a, size_t n)
{
    count();
    return (*out = __libc_memalign(a, n)) ? 0 : ENOMEM;
}
"""


class CountedAllocations:
    """Calls of the allocator by thread, of processes that were started with ``env``."""

    def __init__(self, folder: Path) -> None:
        source, library, self._file = folder / "count.c", folder / "count.so", folder / "counts"
        source.write_text(_SOURCE)
        command = ["gcc", "-shared", "-fPIC", "-O2", "-fno-builtin", "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SetupError(
                "compile the allocation counter", done.stderr.strip(), "apt install gcc libc6-dev"
            )
        self._file.write_bytes(bytes(_SLOTS * 16))
        self.env = {**os.environ, "LD_PRELOAD": str(library), "XDPSTACK_COUNT_ALLOC": str(self._file)}

    def calls(self, tid: int) -> int:
        """How often a thread has called the allocator (malloc, free and kin) since it started."""
        return self.by_thread().get(tid, 0)

    def by_thread(self) -> dict[int, int]:
        """The same for every thread that called it at all."""
        return {tid: calls for tid, calls in struct.iter_unpack("qQ", self._file.read_bytes()) if tid}

    def assert_quiet(self, tid: int, seconds: float = 1.0) -> None:
        """Fail when a thread calls the allocator within ``seconds``."""
        before = self.calls(tid)
        time.sleep(seconds)
        made = self.calls(tid) - before
        if made:
            raise AssertionError(f"thread {tid} called the allocator {made} times in {seconds} s")


@contextlib.contextmanager
def counted_allocations() -> Iterator[CountedAllocations]:
    """Compile the counter; start the process under test with its ``env``."""
    with tempfile.TemporaryDirectory(prefix="xdpstack-quiet-") as folder:
        yield CountedAllocations(Path(folder))
