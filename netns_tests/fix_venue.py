"""A FIX venue of simplefix, to be run in a namespace: ``python -m netns_tests.fix_venue ADDRESS PORT``
and, over TLS, ``CERT KEY``.

At PORT it takes orders, at PORT + 1 it refuses every Logon, at PORT + 2 it answers in another's name, at
PORT + 3 it loses the first message behind its Logon. Numbers outlive connections. What it hears goes to its
standard output, a line each: MsgType, MsgSeqNum, and ClOrdID or Text."""

from __future__ import annotations

import asyncio
import ssl
import sys

from xdpstack.tests.fix_acceptor import Acceptor


class Venue:
    """One of the ports."""

    def __init__(self, kind: int) -> None:
        self.rules = Acceptor(me="SOMEBODY" if kind == 2 else "VENUE")
        self.rules.refuses = "market is closed" if kind == 1 else ""
        self.loses = kind == 3

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.rules.connected()
        try:
            while data := await reader.read(65536):
                before = len(self.rules.heard)
                self.rules.take(data)
                for one in self.rules.heard[before:]:
                    print(one[35], one[34], one.get(11) or one.get(58) or "", flush=True)
                    if self.loses and one[35] == "A":
                        self.rules.say("B", (148, "lost"), lost=True)
                        self.rules.say("B", (148, "next"))
                writer.write(bytes(self.rules.out))
                self.rules.out.clear()
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


async def main(address: str, port: int, *files: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if files else None
    if context is not None:
        context.load_cert_chain(*files)
    servers = [
        await asyncio.start_server(Venue(kind).talk, address, port + kind, ssl=context) for kind in range(4)
    ]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
