// ring_reader.cc: a reader in C++ of nothing but cffi_build/xds; prints a line a record until the end;
// with a second argument also when its writer has died, and when there is another.
#include <stdio.h>

#include "ring_reader_inl.h"

int main(int argc, char **argv)
{
    xds_ring *ring = nullptr;
    int rc = argc > 1 ? xdsi_ring_open(&ring, argv[1]) : -EINVAL;
    if (rc)
        return fprintf(stderr, "open: %d\n", rc), 1;
    printf("ready\n");
    fflush(stdout);
    bool alive = true;
    const auto look = [&] {
        if (argc > 2 && (xdsi_ring_writer(ring) != 0) != alive) {
            alive = !alive;
            printf(alive ? "back\n" : "gone\n");
        }
        fflush(stdout);
    };
    const xds_ring_record *record;
    while ((rc = xdsi_ring_peek(ring, &record)) >= 0)
        if (rc) {
            printf("%u %.*s\n", record->kind, (int)record->len, reinterpret_cast<const char *>(record + 1));
            xdsi_ring_release(ring);
        } else if (!xdsi_ring_spin(ring, 1000)) {
            look();
            xdsi_ring_wait(ring, 10000000);
        }
    xdsi_ring_leave(ring);
    return rc == -EPIPE ? 0 : 2;
}
