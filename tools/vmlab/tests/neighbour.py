"""Somebody else on the host: attaches, counts and detaches a program by libxdp, and knows nothing of us."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

OBJECT = Path(__file__).resolve().parents[3] / "build" / "tests" / "neighbour.bpf.o"
NATIVE, GENERIC = 1, 2  # enum xdp_attach_mode
_maps: dict[int, int] = {}  # of each program, where it counts


def _libxdp() -> ctypes.CDLL:
    lib = ctypes.CDLL("libxdp.so.1")
    for name in ("xdp_program__open_file", "xdp_program__from_id", "xdp_program__bpf_obj"):
        getattr(lib, name).restype = ctypes.c_void_p
    return lib


def join(index: int, *, priority: int = 50, mode: int = NATIVE) -> int:
    """Attach the counting program to the dispatcher of an interface here, or to a new one; its id."""
    lib = _libxdp()
    program = ctypes.c_void_p(lib.xdp_program__open_file(bytes(OBJECT), b"xdp", None))
    assert lib.libxdp_get_error(program) == 0
    assert lib.xdp_program__set_run_prio(program, priority) == 0
    assert lib.xdp_program__attach(program, index, mode, 0) == 0
    found: int = lib.xdp_program__id(program)
    told = ctypes.c_void_p(lib.xdp_program__bpf_obj(program))
    _maps[found] = os.dup(ctypes.CDLL("libbpf.so.1").bpf_object__find_map_fd_by_name(told, b"neighbour_seen"))
    lib.xdp_program__close(program)
    return found


def leave(index: int, number: int, mode: int = NATIVE) -> None:
    """Detach it again."""
    lib = _libxdp()
    program = ctypes.c_void_p(lib.xdp_program__from_id(number))
    assert lib.xdp_program__detach(program, index, mode, 0) == 0
    lib.xdp_program__close(program)
    os.close(_maps.pop(number))


def seen(number: int) -> int:
    """Packets that it saw, of a program that this process attached."""
    key, value = ctypes.c_uint32(0), ctypes.c_uint64(0)
    code = ctypes.CDLL("libbpf.so.1").bpf_map_lookup_elem(
        _maps[number], ctypes.byref(key), ctypes.byref(value)
    )
    assert code == 0
    return value.value
