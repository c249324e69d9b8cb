"""Other people's programs over our TCP: curl, nginx, iperf3, ssh, and an HTTP client and a server from PyPI.

`make setup` installs them; where one is missing its test is skipped, aloud.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from netns_tests.test_tcp_linux6 import KERNEL as KERNEL6
from netns_tests.test_tcp_linux6 import OWN as OWN6
from netns_tests.test_tcp_linux6 import SHARED as SHARED6
from netns_tests.test_tcp_linux6 import pair6 as pair6
from xdpstack import aio
from xdpstack import node as nodes

KERNEL, SHARED, OWN = "10.77.0.1", "10.77.0.2", "10.77.0.9"
PATIENCE = 240.0
FILES = {"nothing": 0, "one": 1, "page": 65_536, "large": 4 << 20}


def program(name: str) -> str:
    """Its path; skips where it is not there."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: make setup")
    return found


own_too = pytest.mark.parametrize(
    "wired", [SHARED, OWN, SHARED6, OWN6], ids=["shared", "own", "shared-v6", "own-v6"], indirect=True
)
six_too = pytest.mark.parametrize("wired", [SHARED, SHARED6], ids=["v4", "v6"], indirect=True)


@pytest.fixture
def wired(request):
    """(the kernel's namespace, a node beside it, the node's address); ``theirs(address)`` is the kernel's."""
    address = getattr(request, "param", SHARED)
    kernel, us = request.getfixturevalue("pair6" if ":" in address else "lab_pair")
    own = {OWN: {"address": f"{OWN}/24"}, OWN6: {"address": f"{OWN6}/64"}}.get(address, {})
    with us.enter(), nodes.open("xsk:t0", **own) as node:
        node.streams(connections=64, msl_ns=1_000_000)
        yield kernel, node, address


def theirs(address: str) -> str:
    return KERNEL6 if ":" in address else KERNEL


def in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.fixture
def files(tmp_path):
    """(a folder, its files' SHA-256 by name)."""
    folder = tmp_path / "files"
    folder.mkdir()
    tmp_path.chmod(0o755)
    chance, sums = random.Random(1), {}
    for name, size in FILES.items():
        data = chance.randbytes(size)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.sha256(data).hexdigest()
    return folder, sums


def run(node, main) -> None:
    """In an event loop whose TCP is the node's."""
    with asyncio.Runner(loop_factory=lambda: aio.Loop(node)) as runner:
        runner.run(asyncio.wait_for(main, PATIENCE))
    streams = node.streams()
    streams.wait(lambda: streams.unfinished == 0, PATIENCE, "the end of all connections")
    stats = node.stats()["tcp"]["main"]
    assert stats["received"] == stats["taken"] + sum(stats["reasons"].values())


async def ended(child) -> str:
    """What a program of the kernel's namespace printed, once it has ended well; the loop goes on."""
    out, err = await asyncio.to_thread(child.communicate, timeout=PATIENCE)
    assert child.returncode == 0, f"{child.args}: {child.returncode}\n{out}\n{err}"
    return str(out)


def accepts(address: str, port: int, kernel, child) -> None:
    """Wait until a program in the kernel's namespace accepts connections."""
    end = time.monotonic() + PATIENCE
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        with kernel.socket(family, socket.SOCK_STREAM) as sock, contextlib.suppress(ConnectionRefusedError):
            sock.connect((address, port))
            return
        assert child.poll() is None, f"{child.args} ended: {child.communicate()}"
        assert time.monotonic() < end
        time.sleep(0.01)


def started(kernel, command: list[str], address: str, port: int, undo: contextlib.ExitStack):
    """A server in the kernel's namespace, until the test ends."""
    child = kernel.popen(command, stdout=-1, stderr=-1, text=True)

    def end() -> None:
        child.kill()
        child.communicate(timeout=PATIENCE)

    undo.callback(end)
    accepts(address, port, kernel, child)
    return child


async def application(folder: Path, scope, receive, send) -> None:
    """ASGI: GET gives a file of the folder, POST the SHA-256 of what was sent."""
    assert scope["type"] == "http"
    sha, more = hashlib.sha256(), True
    while more:
        message = await receive()
        sha.update(message.get("body", b""))
        more = message.get("more_body", False)
    status, body = 200, sha.hexdigest().encode()
    if scope["method"] == "GET":
        path = folder / scope["path"].lstrip("/")
        status, body = (200, path.read_bytes()) if path.is_file() else (404, b"no such file")
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving(folder: Path, port: int):
    """uvicorn as it is, in the running loop."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: make setup")

    async def app(scope, receive, send):
        await application(folder, scope, receive, send)

    config = uvicorn.Config(app, host="0.0.0.0", port=port, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not task.done()
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await task


@own_too
def test_curl_fetches_and_sends_over_one_connection_to_a_server_from_pypi(wired, files, tmp_path):
    kernel, node, address = wired
    folder, sums = files
    curl = program("curl")

    async def main() -> None:
        async with serving(folder, 8000):
            fetched = [
                part
                for name in FILES
                for part in ("-o", str(tmp_path / f"got-{name}"), f"http://{in_url(address)}:8000/{name}")
            ]
            quick = [curl, "-sS", "--fail", "--max-time", str(PATIENCE), "-w", "%{num_connects} "]
            counts = await ended(kernel.popen([*quick, *fetched], stdout=-1, stderr=-1, text=True))
            assert sum(map(int, counts.split())) == 1, "one connection for all of them"
            upload = [
                curl,
                "-sS",
                "--fail",
                "--data-binary",
                f"@{folder}/large",
                f"http://{in_url(address)}:8000/sum",
            ]
            assert await ended(kernel.popen(upload, stdout=-1, stderr=-1, text=True)) == sums["large"]
            lost = kernel.popen(
                [curl, "-sS", "--fail", f"http://{in_url(address)}:8000/none"],
                stdout=-1,
                stderr=-1,
                text=True,
            )
            _, said = await asyncio.to_thread(lost.communicate, timeout=PATIENCE)
            assert "404" in said

    run(node, main())
    for name, expected in sums.items():
        assert hashlib.sha256((tmp_path / f"got-{name}").read_bytes()).hexdigest() == expected


NGINX = """\
daemon off; master_process off; pid {run}/pid; error_log stderr warn; user root;
events {{ worker_connections 256; }}
http {{
    access_log off; root {folder}; keepalive_timeout 60;
    client_body_temp_path {run}; proxy_temp_path {run}; fastcgi_temp_path {run}; uwsgi_temp_path {run};
    scgi_temp_path {run};
    server {{ listen {address}:{port}; }}
}}
"""


@own_too
def test_a_client_from_pypi_fetches_from_nginx(wired, files, tmp_path):
    kernel, node, address = wired
    folder, sums = files
    nginx = program("nginx")
    httpx = pytest.importorskip("httpx", reason="httpx is not installed: make setup")
    place = tmp_path / "nginx"
    place.mkdir()
    config = place / "nginx.conf"
    server = in_url(theirs(address))
    config.write_text(NGINX.format(run=place, folder=folder, address=server, port=8080))

    async def main() -> None:
        async with httpx.AsyncClient(
            base_url=f"http://{server}:8080", timeout=PATIENCE, trust_env=False
        ) as client:
            answers = await asyncio.gather(*(client.get(f"/{name}") for name in [*FILES] * 5))
            for name, answer in zip([*FILES] * 5, answers, strict=True):
                assert answer.status_code == 200
                assert answer.headers["server"].startswith("nginx")
                assert hashlib.sha256(answer.content).hexdigest() == sums[name]
            assert (await client.get("/none")).status_code == 404

    with contextlib.ExitStack() as undo:
        started(kernel, [nginx, "-p", str(place), "-c", str(config)], theirs(address), 8080, undo)
        run(node, main())
    assert node.streams().stats()["opened"] >= 20


@six_too
def test_a_client_from_pypi_and_a_server_from_pypi_each_with_ours_and_the_kernels_at_the_other_end(
    wired, files
):
    kernel, node, address = wired
    folder, sums = files
    httpx = pytest.importorskip("httpx", reason="httpx is not installed: make setup")

    def visit() -> None:
        async def fetch() -> None:
            async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
                for name, expected in sums.items():
                    answer = await client.get(f"http://{in_url(address)}:8000/{name}")
                    assert hashlib.sha256(answer.content).hexdigest() == expected
                answer = await client.post(
                    f"http://{in_url(address)}:8000/", content=(folder / "large").read_bytes()
                )
                assert answer.text == sums["large"]

        asyncio.run(fetch())

    async def main() -> None:
        async with serving(folder, 8000):
            child = kernel.fork(visit)
            assert await asyncio.to_thread(child.wait, PATIENCE) == 0

    run(node, main())


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@contextlib.asynccontextmanager
async def proxy(node, port: int, to: tuple[str, int]):
    """Whoever comes to our port is joined with the kernel's: both legs are ours."""
    tasks: set[asyncio.Task] = set()

    async def joined(reader, writer) -> None:
        tasks.add(asyncio.current_task())
        there, back = await aio.open_connection(node, *to)
        await asyncio.gather(pipe(reader, back), pipe(there, writer))
        for one in (back, writer):
            one.close()

    async with await aio.start_server(node, joined, port):
        yield
        await asyncio.gather(*tasks, return_exceptions=True)


@six_too
@pytest.mark.parametrize(
    "more", [(), ("-R",), ("-P", "4"), ("--bidir",)], ids=["there", "back", "four", "both"]
)
def test_iperf3_at_both_ends_of_a_proxy_counts_every_byte(wired, more):
    kernel, node, address = wired
    iperf3 = program("iperf3")

    async def main() -> dict:
        async with proxy(node, 5201, (theirs(address), 5202)):
            command = [iperf3, "-c", address, "-p", "5201", "-n", "8M", "-J", *more]
            said = await ended(kernel.popen(command, stdout=-1, stderr=-1, text=True))
        report = json.loads(said)
        assert "error" not in report, report["error"]
        sums = report["end"]
        assert sums["sum_sent"]["bytes"] >= 8 << 20
        return sums

    with contextlib.ExitStack() as undo:
        started(kernel, [iperf3, "-s", "-B", theirs(address), "-p", "5202"], theirs(address), 5202, undo)
        run(node, main())


SSHD = """\
Port 2222
ListenAddress {address}
HostKey {place}/host
PidFile none
AuthorizedKeysFile {place}/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
"""


@pytest.fixture
def keys(tmp_path) -> Path:
    """A folder with a host's key and a user's."""
    keygen = program("ssh-keygen")
    for name in ("host", "key"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    return tmp_path


@six_too
def test_a_session_of_ssh_with_many_small_writes(wired, keys):
    kernel, node, address = wired
    sshd, ssh = program("sshd"), program("ssh")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd drops its privileges there
    (keys / "sshd.conf").write_text(SSHD.format(address=theirs(address), place=keys))
    quiet = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-q"]

    async def main() -> None:
        async with proxy(node, 22, (theirs(address), 2222)):
            command = [ssh, *quiet, "-i", str(keys / "key"), f"root@{address}", "cat"]
            child = kernel.popen(command, stdin=-1, stdout=-1, stderr=-1, bufsize=0)

            def talk() -> None:
                for number in range(300):
                    line = b"line %d\n" % number
                    child.stdin.write(line)
                    got = b""
                    while len(got) < len(line):
                        piece = child.stdout.read(len(line) - len(got))
                        assert piece, child.stderr.read()
                        got += piece
                    assert got == line
                child.stdin.close()
                assert child.wait(PATIENCE) == 0

            await asyncio.to_thread(talk)
            child.stdout.close()
            child.stderr.close()

    with contextlib.ExitStack() as undo:
        started(kernel, [sshd, "-D", "-e", "-f", str(keys / "sshd.conf")], theirs(address), 2222, undo)
        run(node, main())
