"""Open connections follow what the kernel learns: neighbours, gateways, routes, interfaces that go."""

from __future__ import annotations

import contextlib
import errno
import socket
import time

import pytest

from netns_tests.test_path_mtu import GATEWAY, SERVER, WAYS, routed
from netns_tests.test_tcp_linux import KERNEL, PATIENCE, accept_and
from netns_tests.test_tcp_linux import listener as kernels_listener
from netns_tests.test_tcp_linux6 import KERNEL as KERNEL6
from netns_tests.test_tcp_linux6 import SHARED as SHARED6
from netns_tests.test_tcp_linux6 import listener as kernels_listener6
from netns_tests.test_tcp_linux6 import own, pair6
from xdpstack import node as nodes
from xdpstack.connecting import RouteWatch, SharedAddress

router_between, pair6 = routed, pair6  # fixtures
OTHER, ELSEWHERE = "10.77.0.3", "02:00:00:00:00:77"
OTHER6, SERVER6 = "2001:db8:77::3", "2001:db8:78::1"


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def answers(connection, text: bytes) -> None:
    connection.timeout = PATIENCE
    connection.write(text)
    assert connection.read_exactly(len(text)) == text


@pytest.fixture
def served(router_between):
    """(our namespace, the router's, the port of an echo behind it)."""
    us, router, server = router_between
    with server.enter():
        sock = socket.create_server((SERVER, 0))
    with sock:
        child = server.fork(accept_and, echo, sock)
        yield us, router, sock.getsockname()[1]
        child.kill()


class Far:
    """A server behind a router, by one family: ``name`` is who it is, ``ways`` whom the routes may go by."""

    def __init__(self, us, router, port: int, six: bool) -> None:
        self.us, self.router, self.port = us, router, port
        self.name, self.gateway, self.other = (SERVER6, KERNEL6, OTHER6) if six else (SERVER, GATEWAY, OTHER)
        self.ip = ["ip", "-6" if six else "-4"]


@pytest.fixture(params=["v4", "v6"])
def far(request, make_lab):
    """The router forwards; the server echoes."""
    if request.param == "v4":
        us, router, port = request.getfixturevalue("served")
        yield Far(us, router, port, False)
        return
    lab = make_lab(ipv6=True)
    us, router, server = (lab.namespace(name) for name in ("us", "router", "server"))
    lab.veth(router, "r0", None, us, "t0", None)
    lab.veth(router, "r1", None, server, "s0", None)
    router.sysctl("net.ipv6.conf.all.forwarding", 1)
    for space, link, address in (
        (router, "r0", KERNEL6),
        (us, "t0", SHARED6),
        (router, "r1", "2001:db8:78::fe"),
        (server, "s0", SERVER6),
    ):
        own(space, link, address)
    us.run(["ip", "-6", "route", "add", "default", "via", KERNEL6])
    server.run(["ip", "-6", "route", "add", "default", "via", "2001:db8:78::fe"])
    with kernels_listener6(server, SERVER6) as sock:
        child = server.fork(accept_and, echo, sock)
        yield Far(us, router, sock.getsockname()[1], True)
        child.kill()


def test_a_neighbour_that_moves_is_followed(make_pair):
    kernel, ours = make_pair(neighbours=False)
    with kernels_listener(kernel) as server:
        child = kernel.fork(accept_and, echo, server)
        with ours.enter(), nodes.open("xsk:t0") as node:
            connection = node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE)
            answers(connection, b"before")
            kernel.run(["ip", "link", "set", "v0", "address", ELSEWHERE])
            ours.run(["ip", "neigh", "replace", KERNEL, "lladdr", ELSEWHERE, "dev", "t0"])
            answers(connection, b"after")
            assert connection.info()["state"] == "established"
            connection.close()
        child.kill()


@pytest.fixture(params=["v4", "v6"])
def silent(request, make_pair, monkeypatch):
    """(the kernel's namespace, ours, its address, its listener, what was doubted): neither end's neighbours
    are fixed, and nobody is told when the kernel's end moves."""
    doubted = []
    before = SharedAddress.doubt

    def doubt(self, remotes):
        doubted.append(set(remotes))
        before(self, remotes)

    monkeypatch.setattr(SharedAddress, "doubt", doubt)
    if request.param == "v4":
        kernel, ours = make_pair(neighbours=False)
        address, server = KERNEL, kernels_listener(kernel)
    else:
        kernel, ours = request.getfixturevalue("pair6")
        address, server = KERNEL6, kernels_listener6(kernel)
    with server:
        yield kernel, ours, address, server, doubted


def lladdr(space, address: str) -> str:
    """What the kernel has of a neighbour."""
    said = space.run(["ip", "-6" if ":" in address else "-4", "neigh", "show", address]).stdout.split()
    return said[said.index("lladdr") + 1] if "lladdr" in said else ""


@contextlib.contextmanager
def talking(silent):
    """(node, a connection that works, what the kernel has of the neighbour)."""
    kernel, ours, address, server, _doubted = silent
    child = kernel.fork(accept_and, echo, server)
    with ours.enter(), nodes.open("xsk:t0") as node:
        connection = node.connect(address, server.getsockname()[1], timeout=PATIENCE)
        answers(connection, b"before")
        yield node, connection, lladdr(ours, address)
        connection.close()
    child.kill()


def test_a_neighbour_that_moves_in_silence_is_asked_for_anew_by_the_kernel(silent):
    """Three timeouts say that what the kernel knows leads nowhere (RFC 1122 2.3.2.1, RFC 9293 3.8.3)."""
    kernel, ours, address, _server, doubted = silent
    with talking(silent) as (_node, connection, old):
        assert not doubted
        kernel.run(["ip", "link", "set", "v0", "address", ELSEWHERE])
        assert lladdr(ours, address) == old != ELSEWHERE, "nobody was told"
        answers(connection, b"after")
        assert doubted
        assert set().union(*doubted) == {address}
        assert lladdr(ours, address) == ELSEWHERE
        assert connection.info()["timeouts"] >= 3


def test_a_neighbour_that_somebody_fixed_is_doubted_and_stays(silent):
    kernel, ours, address, _server, doubted = silent
    with talking(silent) as (node, connection, old):
        fixed = ["lladdr", old, "nud", "permanent", "dev", "t0"]
        ours.run(["ip", "neigh", "replace", address, *fixed])
        kernel.run(["ip", "link", "set", "v0", "address", ELSEWHERE])
        connection.put(b"into the void")
        end = time.monotonic() + PATIENCE
        while not doubted:
            node.streams().turn(100)
            assert time.monotonic() < end, "it is doubted"
        for _ in range(3):
            node.streams().turn(100)
        assert lladdr(ours, address) == old
        ours.run(["ip", "neigh", "replace", address, "lladdr", ELSEWHERE, "nud", "permanent", "dev", "t0"])
        connection.timeout = PATIENCE
        assert connection.read_exactly(13) == b"into the void"


def test_another_gateway_is_followed_there_and_back(far):
    us, router, port = far.us, far.router, far.port
    with us.enter(), nodes.open("xsk:t0") as node:
        connection = node.connect(far.name, port, timeout=PATIENCE)
        answers(connection, b"before")
        us.run([*far.ip, "neigh", "replace", far.other, "lladdr", ELSEWHERE, "nud", "permanent", "dev", "t0"])
        us.run([*far.ip, "route", "replace", "default", "via", far.other])
        with router.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
            raw.bind(("r0", 3))
            raw.setblocking(False)

            def went_elsewhere() -> bool:
                try:
                    return raw.recv(2048)[:6] == bytes.fromhex(ELSEWHERE.replace(":", ""))
                except BlockingIOError:
                    return False

            end = time.monotonic() + PATIENCE
            while not went_elsewhere():
                connection.put(b"x")
                node.streams().turn(100)
                assert time.monotonic() < end, "nothing goes to the new gateway"
        us.run([*far.ip, "route", "replace", "default", "via", far.gateway])
        connection.timeout = PATIENCE
        assert connection.read(1) == b"x", "what went elsewhere is sent again"
        connection.abort()
        connection.close()


def test_a_route_that_is_put_back_is_no_end_and_one_that_stays_away_is(far, monkeypatch):
    us, port = far.us, far.port
    monkeypatch.setattr(SharedAddress, "withdrawn", 3600.0)
    with us.enter(), nodes.open("xsk:t0") as node:
        connection = node.connect(far.name, port, timeout=PATIENCE)
        us.run([*far.ip, "route", "del", "default"])
        connection.timeout = 0.2
        with pytest.raises(TimeoutError):
            connection.read()
        us.run([*far.ip, "route", "add", "default", "via", far.gateway])
        answers(connection, b"it is back")
        monkeypatch.setattr(SharedAddress, "withdrawn", 0.1)
        us.run([*far.ip, "route", "del", "default"])
        said = f"connection to {far.name}:{port}: no way to {far.name}"
        with pytest.raises(OSError, match=said) as caught:
            connection.read()
        assert caught.value.errno == errno.ENETUNREACH
        with pytest.raises(OSError, match="no way to"):
            connection.write(b"x")
        connection.close()


@pytest.mark.parametrize("way", WAYS)
def test_an_interface_that_goes_away_under_a_connection(served, monkeypatch, way):
    us, _, port = served
    monkeypatch.setattr(SharedAddress, "withdrawn", 3600.0)
    with us.enter(), nodes.open("xsk:t0", link_wait=0.2, **WAYS[way]) as node:
        connection = node.connect(SERVER, port, timeout=PATIENCE)
        door = node.listen(7000)
        us.run(["ip", "link", "del", "t0"])
        connection.timeout = PATIENCE
        with pytest.raises(OSError, match=r"t0 was deleted and did not come back within 0\.2 s") as caught:
            connection.read()
        assert caught.value.errno == errno.ENETDOWN
        with pytest.raises(OSError, match="t0 was deleted"):
            connection.write(b"x" * (1 << 20))
        with pytest.raises(OSError, match="t0 was deleted"):
            door.accept(PATIENCE)


def test_the_watch_tells_neighbours_from_routes_and_makes_up_for_what_it_missed(lab_pair):
    _, ours = lab_pair
    with ours.enter(), RouteWatch() as watch:
        watch.read()
        ours.run(["ip", "neigh", "replace", "10.77.0.50", "lladdr", ELSEWHERE, "dev", "t0"])
        assert watch.read() == {"neighbours"}
        ours.run(["ip", "route", "add", "10.99.0.0/16", "via", KERNEL])
        assert watch.read() == {"routes"}
        watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        ours.run(["sh", "-c", f"for n in $(seq 50); do ip route add 10.98.$n.0/24 via {KERNEL}; done"])
        assert watch.read() == {"neighbours", "routes"}
        watch.close()
        watch.close()
