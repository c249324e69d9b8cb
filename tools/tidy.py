"""The house rules that a machine remembers: prints what breaks them, exit 1 when anything does.

The tables below are data: change one with the reason in the commit. `test_tidy.py` runs this, and also
shows each rule a file that breaks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Which folder may include what of ours. The longest matching folder decides; a folder may always include
# itself. Lines point down: neighbours on a floor do not know each other.
LAYERS: dict[str, tuple[str, ...]] = {
    "cffi_build/xds": ("bpf",),  # xds_shared.h: the contract with the XDP program
    "cffi_build/ground": ("xds",),
    "cffi_build/cores/host": ("xds", "ground"),
    "cffi_build/cores/feed": ("xds", "ground"),
    "cffi_build/cores/tcp": ("xds", "ground"),
    "cffi_build/cores/fix": ("xds", "ground"),
    "cffi_build/cores/book": ("xds", "ground"),
    "cffi_build/cores/tls": ("xds", "ground"),
    "cffi_build/cores/ws": ("xds", "ground"),
    "cffi_build/stack": ("xds", "ground", "cores"),
    "cffi_build/ports": ("xds", "ground", "bpf"),
    "cffi_build/engine": ("xds", "ground", "stack", "ports"),
    "bpf": (),
}

# Pure folders: what they may not call, and who is excused, for what.
PURE = ("cffi_build/ground", "cffi_build/cores", "cffi_build/stack")
IMPURE_CALLS = re.compile(
    r"\b(malloc|calloc|realloc|free|printf|fprintf|vprintf|puts|perror|getenv|setenv|time|gettimeofday|"
    r"clock_gettime|nanosleep|usleep|sleep|rand|random|getrandom|open|openat|close|read|write|pread|pwrite|"
    r"fopen|fclose|fread|fwrite|socket|bind|sendto|recvfrom|sendmsg|recvmsg|poll|ioctl|setsockopt|getsockopt|"
    r"mmap|munmap|memfd_create|ftruncate|syscall|pthread_\w+|abort|exit)\s*\("
)
EXCUSED = {
    "cffi_build/ground/clock.c": {"clock_gettime"},  # this is where time comes from
    "cffi_build/ground/ring.c": {
        "munmap",
        "memfd_create",
        "ftruncate",
        "close",
        "syscall",
    },  # set-up; syscall: waking a reader that sleeps
    "cffi_build/ground/tape.c": {"munmap", "syscall"},  # set-up; syscall: waking a reader that sleeps
}

MAX_LINES = 800  # of a file
MAX_FUNCTION = 70  # lines of a function
# Functions that were longer when the rule came, or are one flat table or switch: they may shrink.
LONG_FUNCTIONS: dict[str, int] = {
    "cffi_build/cores/feed/decode_inl.h:xdsi_fixed_block": 78,
}

# A source file has a test file of its own stem (or of its stem's first words, or of its folder). What
# has another one, or none, says so: a test file's name, or a reason in words.
TWINS: dict[str, str] = {
    "cffi_build/cores/feed/decoders.c": "test_decode.py",
    "cffi_build/cores/feed/session.c": "test_channel.py",
    "cffi_build/cores/feed/symtab.c": "test_decode.py",
    "cffi_build/ground/base.c": "one constant, read by every test",
    "cffi_build/ground/stat.c": "test_stats.py",
    "cffi_build/engine/gather.c": "test_publish.py",
    "cffi_build/engine/refused.c": "test_dropped.py",
    "cffi_build/engine/slow.c": "test_engine_alerts.py",
    "cffi_build/engine/turn.c": "test_engine.py",
    "cffi_build/engine/streams.c": "test_tcp_linux.py",
    "cffi_build/stack/world.c": "test_cores.py",
    "cffi_build/ports/link.c": "test_port.py",
    "cffi_build/ports/plugin.c": "test_decode.py",
    "cffi_build/ports/privilege.c": "test_opener.py",
    "xdpstack/__init__.py": "names only",
    "xdpstack/connecting.py": "test_tcp_linux.py",
    "xdpstack/sessions.py": "test_publish_sessions.py",
    "xdpstack/spoken.py": "declarations only",
    "xdpstack/ws.py": "test_session_ws.py",
    "xdpstack/describe.py": "test_tape.py",
    "xdpstack/streams.py": "test_tcp_linux.py",
    "xdpstack/sock_streams.py": "test_streams.py",
    "xdpstack/testing_streams.py": "test_streams.py",
    "xdpstack/cli/__init__.py": "test_cli.py",
    "xdpstack/cli/_numbers.py": "test_cli.py",
    "cffi_build/ports/drops.c": "test_dropped.py",
    "xdpstack/cli/demo.py": "test_demo.py",
    "xdpstack/cli/feed.py": "test_cli.py",
    "xdpstack/cli/run.py": "test_cli.py",
    "xdpstack/cli/steer.py": "test_cli.py",
    "xdpstack/__main__.py": "three lines, run by every test of a command",
    "xdpstack/_ffi.py": "test_stats.py",
    "xdpstack/_pytest.py": "test_pytest_report.py",
    "xdpstack/feed.py": "test_engine.py",
    "xdpstack/linklife.py": "test_links.py",
    "xdpstack/returning.py": "test_links.py",
    "xdpstack/node.py": "test_engine.py",
    "xdpstack/opening.py": "test_node.py",
    "xdpstack/interface.py": "test_node.py",
    "xdpstack/steering.py": "test_node.py",
    "xdpstack/pins.py": "test_filter_live.py",
    "xdpstack/rulestate.py": "test_filter_live.py",
    "xdpstack/waking.py": "test_ring_sides.py",
    "xdpstack/venues/__init__.py": "test_venue_player.py",
    "xdpstack/errors.py": "declarations only",
    "xdpstack/strategies/__init__.py": "one sentence",
    "xdpstack/strategies/lift.py": "test_hooks.py",
}

# Sources that owe a test of their own: named by lint, and the list may only shrink.
OWED: set[str] = set()

TEXT = {".py", ".c", ".h", ".toml", ".md", ".sh", "", ".cfg", ".txt", ".xml"}
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:root|home|work|Users|mnt)/[\w.-]+")
GENERATED = ("build/", ".venv", "xdpstack/_bpf/")


def files(root: Path = ROOT) -> list[Path]:
    """What belongs to the project: what git tracks or would track, else everything that is not generated."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        names = listing.stdout.splitlines()
    else:
        names = [str(p.relative_to(root)) for p in root.rglob("*")]
    return sorted(root / n for n in set(names) if not n.startswith(GENERATED) and (root / n).is_file())


def without_comments(text: str) -> str:
    """C text with comments and string literals blanked, line numbers kept."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.S)


def folder_of(name: str) -> str | None:
    """The folder of the layer table that a file belongs to."""
    return max((f for f in LAYERS if name.startswith(f + "/")), key=len, default=None)


def check_includes(name: str, text: str) -> Iterator[str]:
    """Layers: who may include whom."""
    folder = folder_of(name)
    if folder is None:
        if name.startswith("cffi_build/") and name.endswith((".c", ".h")):
            yield f"{name}: its folder is not in the layer table"
        return
    own = folder.removeprefix("cffi_build/")
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if not match:
            continue
        target = re.sub(r"^(\.\./)+", "", match[1])
        if "/" not in target:  # beside it, or found by -Icffi_build/xds or -Ibpf
            beside = (ROOT / name).parent / target
            target = (
                f"{own}/{target}"
                if beside.exists()
                else f"bpf/{target}"
                if (ROOT / "bpf" / target).exists()
                else f"xds/{target}"
            )
        allowed = (own, *LAYERS[folder])
        if not any(target.startswith(f"{part}/") for part in allowed):
            yield f"{name}:{number}: {own} may not include {match[1]}"


def check_pure(name: str, text: str) -> Iterator[str]:
    """No I/O, clock, allocation or changing globals in ground, cores and stack."""
    if not name.startswith(PURE) or not name.endswith((".c", ".h")):
        return
    code = without_comments(text)
    for number, line in enumerate(code.splitlines(), 1):
        for match in IMPURE_CALLS.finditer(line):
            before = line[: match.start()].rstrip()
            if before.endswith(("->", ".")) or match[1] in EXCUSED.get(name, ()):
                continue
            yield f"{name}:{number}: {match[1]}() in a pure layer"
        if is_changing_global(line):
            yield f"{name}:{number}: a global that can change: {line.strip()}"


def is_changing_global(line: str) -> bool:
    """Whether a line at column 0 defines a variable without const."""
    if not re.match(r"[A-Za-z_]", line) or "(" in line or re.search(r"\bconst\b", line):
        return False
    if re.match(r"(struct|union) \w+;", line):
        return False
    if re.match(r"(typedef|extern|struct \w+ \{|enum|union|#|return|goto|else|default|case)\b", line):
        return False
    return bool(re.match(r"(?:static\s+|_Thread_local\s+)*[\w ]+[\s*]+\w+(\[[^\]]*\])*\s*(=.*|;)\s*$", line))


def check_comments(name: str, text: str) -> Iterator[str]:
    """Every prototype in a public header stands in a block, between empty lines, that has a comment."""
    if not name.startswith("cffi_build/xds/"):
        return
    line = 1
    for block in re.split(r"(\n\s*\n)", text):
        for match in re.finditer(r"^(?!typedef|#)[\w ]+[\s*]+(xds_\w+)\s*\([^{]*?\)\s*;", block, re.M):
            if "*/" not in block:
                yield f"{name}:{line + block.count(chr(10), 0, match.start())}: {match[1]}() has no comment"
        line += block.count("\n")


def c_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length of every function of a C file in our brace style."""
    lines = text.splitlines()
    start, name = 0, ""
    for number, line in enumerate(lines, 1):
        if line == "{":
            start = number
            head = " ".join(lines[max(0, number - 6) : number - 1])
            names = re.findall(r"\b(\w+)\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*$", head)
            name = names[-1] if names else "?"
        elif line.startswith("}") and start:
            yield name, start, number - start - 1
            start = 0


def python_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length of every function of a Python file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno


def check_size(name: str, text: str) -> Iterator[str]:
    """Files and functions that one can hold in mind."""
    if not name.endswith((".c", ".h", ".py")):
        return
    count = text.count("\n")
    if count > MAX_LINES:
        yield f"{name}: {count} lines, at most {MAX_LINES}"
    functions = python_functions(text) if name.endswith(".py") else c_functions(text)
    for function, line, length in functions:
        if length > max(MAX_FUNCTION, LONG_FUNCTIONS.get(f"{name}:{function}", 0)):
            yield f"{name}:{line}: {function}() has {length} lines, at most {MAX_FUNCTION}"


def check_door(name: str, text: str) -> Iterator[str]:
    """Only _ffi imports the native module."""
    if name.startswith("xdpstack/") and name.endswith(".py") and name != "xdpstack/_ffi.py":
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(
                r"\s*(from\s+xdpstack\._xds\b|import\s+xdpstack\._xds\b|from\s+xdpstack\s+import\s+.*\b_xds\b)",
                line,
            ):
                yield f"{name}:{number}: only _ffi imports _xds"


def check_paths(name: str, text: str) -> Iterator[str]:
    """No path of one machine."""
    for number, line in enumerate(text.splitlines(), 1):
        match = MACHINE_PATH.search(line)
        if match and "tidy" not in name:
            yield f"{name}:{number}: a path of one machine: {match[0]}"


def check_twins(names: list[str]) -> Iterator[str]:
    """Every source file has a test file, or a reason."""
    tests = {Path(n).name for n in names if re.match(r"(xdpstack/tests|netns_tests)/test_\w+\.py$", n)}
    for name in names:
        path = Path(name)
        source = (name.startswith("cffi_build/") and name.endswith(".c")) or (
            name.startswith("xdpstack/") and name.endswith(".py") and "/tests/" not in name
        )
        if not source or has_test(path, tests):
            continue
        told = TWINS.get(name)
        if told is None and name in OWED:
            continue
        if told is None:
            yield f"{name}: no test file test_{path.stem}*.py"
        elif told.endswith(".py") and told not in tests:
            yield f"{name}: its test file {told} is not there"
    for name in sorted(set(TWINS) - set(names)):
        yield f"tools/tidy.py: TWINS names {name}, which is not there"


def has_test(path: Path, tests: set[str]) -> bool:
    """A test file named after the file, its first words, or its folder."""
    stem = "xdpstack" if path.name == "__init__.py" else path.stem
    words = stem.strip("_").split("_")
    candidates = ["_".join(words[:n]) for n in range(len(words), 0, -1)]
    if path.parent.name not in ("xdpstack", "cli", "ground", "feed", "ports", "engine"):
        candidates.append(path.parent.name)
    return any(
        test == f"test_{c}.py" or test.startswith((f"test_{c}_", f"test_{c}s"))
        for c in candidates
        for test in tests
    )


def complaints(root: Path = ROOT) -> list[str]:
    """Everything that breaks a rule, one line each."""
    names = [str(path.relative_to(root)) for path in files(root)]
    found: list[str] = []
    for name in names:
        path = root / name
        if path.suffix not in TEXT or "captures" in path.parts:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for check in (check_includes, check_pure, check_comments, check_size, check_door, check_paths):
            found += check(name, text)
    return found + list(check_twins(names))


def main() -> int:
    """Print complaints."""
    found = complaints()
    if OWED:
        print(f"{len(OWED)} sources owe a test of their own: see OWED in tools/tidy.py")
    print("\n".join(found) or "tidy")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
