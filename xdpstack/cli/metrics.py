"""``xdpstack metrics``: running engines for Prometheus, over HTTP on loopback, in a process of its own.

``curl http://127.0.0.1:9752/metrics`` shows them; tools/grafana/xdpstack.json is a dashboard. With ``--alerts
FILE`` the rules of its ``[[alert]]`` tables are judged here, for engines that are killed, too.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import threading
from typing import Any

from xdpstack.cli._numbers import some_seconds
from xdpstack.errors import ConfigError, SetupError

__all__ = ["register"]

PORT = 9752


def register(commands: Any) -> None:
    """Add ``metrics``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "metrics", help="running engines for Prometheus, over HTTP", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("engine", nargs="?", help="only this engine: its name or its process id")
    parser.add_argument(
        "--listen", default=f"127.0.0.1:{PORT}", metavar="ADDRESS:PORT",
        help=f"where (127.0.0.1:{PORT}); port 0: any, which is said",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="print them and end, without HTTP")
    parser.add_argument("--alerts", metavar="FILE", help="judge the [[alert]] rules of a TOML file")
    parser.add_argument(
        "--interval", type=some_seconds, default=1.0, metavar="S", help="seconds between two judgements (1)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    from xdpstack.alerts import Alerts, load
    from xdpstack.watch import Watch, look

    address, port = _address(args.listen)
    try:
        from prometheus_client import CollectorRegistry, start_http_server

        from xdpstack.metrics import Collector, expose
    except ImportError:
        remedy = "pip install 'xdpstack[metrics]'"
        raise SetupError("export metrics", "prometheus_client is not installed", remedy) from None
    alerts = Alerts(load(args.alerts)) if args.alerts else None
    collector, watch = Collector(lambda: look(only=args.engine), alerts), Watch(only=args.engine)
    if args.once:
        if alerts:
            watch.look()
            alerts.look(watch)
        print(expose(collector), end="")
        return 0
    logging.basicConfig(format="xdpstack: %(message)s", level=logging.WARNING)
    logging.getLogger("xdpstack.alerts").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        why = error.strerror or str(error)
        raise SetupError(f"listen at {args.listen}", why, "another --listen", error.errno) from None
    try:
        host = f"[{address}]" if ":" in address else address
        print(f"metrics: http://{host}:{server.server_port}/metrics", file=sys.stderr, flush=True)
        while not stop.wait(args.interval):
            if alerts:
                watch.look()
                alerts.look(watch)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    return 0


def _address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):(\d{1,5})", text)
    if not match or int(match[2]) > 65535:
        raise ConfigError(f"metrics: --listen {text}: wanted ADDRESS:PORT")
    return match[1].strip("[]"), int(match[2])
