"""The other side of TLS: certificates by the openssl command, and Python's ssl as a server over memory."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
import subprocess
from pathlib import Path

from xdpstack.tls import TlsContext, TlsEvent, TlsSession, TlsSettings

NAME = "exchange.test"


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=60)


def _key(path: Path, kind: str) -> None:
    words = (
        ("RSA", "-pkeyopt", "rsa_keygen_bits:1024")
        if kind == "weak"
        else ("EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    )
    _openssl("genpkey", "-algorithm", *words, "-out", path)


def _authority(at: Path, name: str) -> None:
    _key(at / f"{name}.key", "ec")
    _openssl("req", "-x509", "-new", "-key", at / f"{name}.key", "-out", at / f"{name}.pem", "-days", "365",
             "-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE")  # fmt: skip


def _leaf(
    at: Path, name: str, *, authority: str = "ca", kind: str = "ec", names: str = f"DNS:{NAME},IP:127.0.0.1"
) -> None:
    _key(at / f"{name}.key", kind)
    _openssl("req", "-new", "-key", at / f"{name}.key", "-out", at / f"{name}.csr", "-subj", f"/CN={name}")
    (at / f"{name}.ext").write_text(f"subjectAltName={names}\n")
    signer = ("-CA", at / f"{authority}.pem", "-CAkey", at / f"{authority}.key", "-CAcreateserial")
    files = ("-in", at / f"{name}.csr", "-extfile", at / f"{name}.ext", "-out", at / f"{name}.pem")
    _openssl("x509", "-req", "-days", "30", *signer, *files)


def make_certificates(at: Path) -> Path:
    """Two authorities and what they sign, as NAME.pem and NAME.key."""
    _authority(at, "ca")
    _authority(at, "other")
    _leaf(at, "server")
    _leaf(at, "client", names="DNS:trader.test")
    _leaf(at, "stranger", authority="other")
    _leaf(at, "elsewhere", names="DNS:elsewhere.test,DNS:*.wild.test,IP:10.9.9.9")
    _leaf(at, "weak", kind="weak")
    _key(at / "alone.key", "ec")
    _openssl("req", "-x509", "-new", "-key", at / "alone.key", "-out", at / "alone.pem", "-days", "30",
             "-subj", "/CN=alone", "-addext", f"subjectAltName=DNS:{NAME}")  # fmt: skip
    return at


def settings(at: Path, **changes: object) -> TlsSettings:
    """A client that trusts `ca` and wants NAME."""
    return dataclasses.replace(TlsSettings(server_name=NAME, ca_file=str(at / "ca.pem")), **changes)  # type: ignore[arg-type]


def server_context(at: Path, name: str = "server", *, alpn: tuple[str, ...] = (), client_ca: str = "",
                   version: str = "", weak: bool = False) -> ssl.SSLContext:  # fmt: skip
    """A server's side with a certificate by name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if weak:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(at / f"{name}.pem", at / f"{name}.key")
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(at / f"{client_ca}.pem")
    if version:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv1_{version[-1]}"]
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE  # it takes what the client likes best
    return context


class Server:
    """One connection of a server, over memory: `take` what it says, `put` what it hears."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)
        self.open = self.shut = False
        self.heard = b""
        self.error: ssl.SSLError | None = None

    def put(self, data: bytes) -> None:
        self._in.write(data)
        if self.error or self.shut:
            return
        try:
            if not self.open:
                self.tls.do_handshake()
                self.open = True
            while piece := self.tls.read(65536):
                self.heard += piece
            self.shut = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.shut = True
        except ssl.SSLError as error:
            self.error = error

    def take(self) -> bytes:
        return self._out.read()

    def say(self, data: bytes) -> None:
        while data:
            data = data[self.tls.write(data) :]

    def bye(self) -> None:
        """close_notify, once."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()


def meet(
    context: TlsContext, peer: ssl.SSLContext, *, now: int | None = None
) -> tuple[TlsSession, Server, list[TlsEvent]]:
    """A client and a server that have said all that they say of their own."""
    client, server = TlsSession(context, now=now), Server(peer)
    return client, server, carry(client, server, now=now)


def carry(client: TlsSession, server: Server, *, now: int | None = None) -> list[TlsEvent]:
    """Bytes both ways until nobody has any; the client's events."""
    events = client.events()
    for _ in range(1000):
        out = client.output(now=now)
        server.put(out) if out else None
        back = server.take()
        if back and not client.over:
            events += client.input(back, now=now)
        if not out and not back:
            return events
    raise AssertionError("they never come to an end")


def of(events: list[TlsEvent], kind: str) -> TlsEvent:
    """The one event of a kind."""
    (one,) = [e for e in events if e.kind == kind]
    return one


def data(events: list[TlsEvent]) -> bytes:
    """All plain text."""
    return b"".join(e.data for e in events)
