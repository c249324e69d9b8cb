"""The house rules: the tree keeps them, and each rule notices a file that does not."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("tidy", ROOT / "tools" / "tidy.py")
tidy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tidy)


def test_the_tree_is_tidy():
    assert tidy.complaints() == []


LONG = "int f(void)\n{\n" + "    x();\n" * 71 + "}\n"
CASES = [
    (
        "check_includes",
        "cffi_build/cores/book/x.c",
        '#include "cores/feed/decode_inl.h"\n',
        "may not include",
    ),
    ("check_includes", "cffi_build/ground/x.c", '#include "ports/link.h"\n', "may not include"),
    ("check_includes", "cffi_build/xds/x.h", '#include "ground/clock_inl.h"\n', "may not include"),
    ("check_includes", "cffi_build/elsewhere/x.c", "", "not in the layer table"),
    (
        "check_pure",
        "cffi_build/cores/book/x.c",
        "void f(void)\n{\n    p = malloc(4);\n}\n",
        "malloc() in a pure layer",
    ),
    ("check_pure", "cffi_build/ground/ring.c", "    clock_gettime(0, &t);\n", "clock_gettime()"),
    ("check_pure", "cffi_build/stack/x.c", "static int calls;\n", "a global that can change"),
    ("check_pure", "cffi_build/stack/x.c", "uint64_t table[4] = {1};\n", "a global that can change"),
    ("check_comments", "cffi_build/xds/x.h", "/* x.h */\n\nint xds_f(void);\n", "xds_f() has no comment"),
    ("check_size", "cffi_build/engine/x.c", LONG, "f() has 71 lines"),
    ("check_size", "xdpstack/x.py", "def f():\n" + "    pass\n" * 71, "f() has 71 lines"),
    ("check_size", "xdpstack/x.py", "x = 1\n" * 801, "801 lines"),
    ("check_door", "xdpstack/x.py", "from xdpstack._xds import lib\n", "only _ffi"),
    ("check_door", "xdpstack/x.py", "from xdpstack import _xds\n", "only _ffi"),
    ("check_paths", "README.md", "see /home/" + "me/notes\n", "a path of one machine"),
]


@pytest.mark.parametrize(("check", "name", "text", "words"), CASES)
def test_a_broken_rule_is_noticed(check, name, text, words):
    found = list(getattr(tidy, check)(name, text))
    assert len(found) == 1
    assert words in found[0]


FINE = [
    ("check_includes", "cffi_build/engine/x.c", '#include "xds/engine.h"\n#include "ground/clock_inl.h"\n'),
    (
        "check_pure",
        "cffi_build/cores/book/x.c",
        "/* malloc() is what we do not do */\nstatic const int sizes[] = {1};\n",
    ),
    ("check_pure", "cffi_build/cores/book/x.c", "    link->ops->close(link);\n    x = d.read(y);\n"),
    ("check_pure", "cffi_build/ports/x.c", "void f(void)\n{\n    p = malloc(4);\n}\n"),
    (
        "check_pure",
        "cffi_build/cores/book/x.c",
        "struct xds_books;\nenum kind { A };\nstatic int f(int a)\n{\n    int b;\n}\n",
    ),
    (
        "check_comments",
        "cffi_build/xds/x.h",
        "/* What f does. */\nint xds_f(int a,\n          int b);\nint xds_g(void);\n",
    ),
    ("check_paths", "README.md", "/usr/bin/python3 and ./root/x and /sys/class/net\n"),
]


@pytest.mark.parametrize(("check", "name", "text"), FINE)
def test_what_is_allowed_is_left_alone(check, name, text):
    assert list(getattr(tidy, check)(name, text)) == []


def test_a_source_without_a_test_is_noticed():
    names = ["xdpstack/thing.py", "xdpstack/other.py", "xdpstack/tests/test_other.py", *tidy.TWINS]
    tests = [f"xdpstack/tests/{told}" for told in tidy.TWINS.values() if told.endswith(".py")]
    assert list(tidy.check_twins([*names, *tests])) == ["xdpstack/thing.py: no test file test_thing*.py"]
