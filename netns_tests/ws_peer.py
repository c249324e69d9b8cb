"""A WebSocket server by `websockets`: ``python -m netns_tests.ws_peer ADDRESS PORT [CERT KEY]``.

What it does is in the path: ``/echo`` sends everything back, ``/bye`` greets and closes with 1001,
``/refuse`` answers 403, ``/liar`` a wrong Accept. What it hears goes to its standard output, a line each.
"""

from __future__ import annotations

import asyncio
import http
import ssl
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response


def say(*words: object) -> None:
    print(*words, flush=True)


async def talk(connection: ServerConnection) -> None:
    assert connection.request is not None
    say("open", connection.request.path, connection.subprotocol)
    try:
        if connection.request.path == "/bye":
            await connection.send("welcome")
            await connection.close(1001, "going")
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass
    say("end", connection.close_code, connection.close_reason)


def asked(connection: ServerConnection, request: Request) -> Response | None:
    if request.path == "/refuse":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not you\n")
    return None


def answered(connection: ServerConnection, request: Request, response: Response) -> None:
    if request.path == "/liar":
        del response.headers["Sec-WebSocket-Accept"]
        response.headers["Sec-WebSocket-Accept"] = "AAAAAAAAAAAAAAAAAAAAAAAAAAA="


async def main(address: str, port: int, *certificate: str) -> None:
    """``certificate``: files of its chain and its key, where it is to be wss."""
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
    if secure:
        secure.load_cert_chain(*certificate)
    async with serve(
        talk, address, port, subprotocols=["v1"], process_request=asked, process_response=answered,
        ping_interval=None, ssl=secure,
    ):  # fmt: skip
        say("ready")
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
