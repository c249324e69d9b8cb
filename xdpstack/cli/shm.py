"""``xdpstack shm``: tapes and rings in shared memory: made, listed, followed, recorded, removed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from xdpstack.cli._numbers import count, seconds, speed

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add ``shm`` and its verbs."""
    parser = commands.add_parser("shm", help="tapes and rings that processes share", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verb = verbs.add_parser(
        "init", help="make the segments of a TOML file; what is there must be as declared"
    )
    verb.add_argument("file", help="with [segments.NAME]; see xdpstack/shm.py")
    verb.set_defaults(run=_init)
    verb = verbs.add_parser("list", help="segments, who writes and reads them, each reader's lag")
    verb.add_argument("folder", nargs="?", default="/dev/shm", help="(/dev/shm)")
    verb.set_defaults(run=_list)
    verb = verbs.add_parser("tail", help="the records of a tape as they come; the writer does not notice")
    verb.add_argument("segment", help="a path, or a name in /dev/shm")
    verb.add_argument("--oldest", action="store_true", help="begin with the oldest that is whole")
    verb.add_argument("-n", type=count, default=0, metavar="N", help="end after N records")
    verb.add_argument("--seconds", type=seconds, default=None, metavar="S", help="end after S seconds")
    verb.set_defaults(run=_tail)
    verb = verbs.add_parser("record", help="the records of a tape or a ring into a file, until SIGINT")
    verb.add_argument("segment", help="a path, or a name in /dev/shm; of a ring this becomes the reader")
    verb.add_argument("file", help="*.pcapng, *.pcapng.zst or *.pcapng.gz")
    verb.add_argument("--oldest", action="store_true", help="of a tape: begin with the oldest that is whole")
    verb.add_argument("-n", type=count, default=0, metavar="N", help="end after N records")
    verb.add_argument("--seconds", type=seconds, default=None, metavar="S", help="end after S seconds")
    verb.set_defaults(run=_record)
    verb = verbs.add_parser("play", help="a recorded file into a tape or a ring, which is finished then")
    verb.add_argument("file", help="what shm record wrote")
    verb.add_argument("segment", nargs="?", help="a path (as recorded); made as it was where there is none")
    verb.add_argument("--speed", type=speed, default=1.0, metavar="X", help="1 as recorded (1), 0 flat out")
    verb.set_defaults(run=_play)
    verb = verbs.add_parser("rm", help="remove segments: readers see their end")
    verb.add_argument("segments", nargs="+", metavar="SEGMENT", help="a path, a name, or the TOML file")
    verb.add_argument("--force", action="store_true", help="although a live process has it")
    verb.set_defaults(run=_remove)
    for verb in verbs.choices.values():
        verb.add_argument("--json", action="store_true", help="one object; tail: one a line")


def _init(args: argparse.Namespace) -> int:
    from xdpstack import shm

    done = shm.initialise(shm.load(args.file))
    if args.json:
        print(json.dumps({"segments": [{"path": str(path), "made": made} for path, made in done]}))
    else:
        print("\n".join(f"{path}: {'made' if made else 'was there'}" for path, made in done))
    return 0


def _list(args: argparse.Namespace) -> int:
    from xdpstack import shm
    from xdpstack.tape import behind

    segments = list(shm.found(Path(args.folder)))
    if args.json:
        print(json.dumps({"segments": segments}))
        return 0
    for s in segments:
        writer = f"writer {s['writer']}" if s["writer"] else f"writer {s['state']}"
        print(
            f"{s['path']}: {s['kind']}, {s['bytes']:,} bytes, {s['mode']}, {writer}, {s['written']:,} records"
        )
        if s["dtype"]:
            print(f"  {s['record_len']} bytes a record: {s['dtype']}")
        for r in s["readers"]:
            lost = f"lost {r['lost']:,} in {r['laps']:,} laps"
            print(f"  reader {r['pid']} {r['name']}: {behind(r)}, {lost}")
    if not segments:
        print(f"no tape and no ring in {args.folder}")
    return 0


def _tail(args: argparse.Namespace) -> int:
    import time

    from xdpstack import shm
    from xdpstack.errors import SetupError
    from xdpstack.publish import Subscriber, told
    from xdpstack.tape import TapeReader

    path = shm.locate(args.segment)
    if shm.look(path)["kind"] == "ring":
        raise SetupError(f"follow {path}", "a ring has one reader, and reading takes records away from it")
    end = None if args.seconds is None else time.monotonic() + args.seconds
    left = args.n or None
    with TapeReader.open(path, "shm tail", oldest=args.oldest) as reader:
        engine = Subscriber(reader) if told(reader) is not None else None
        while left != 0:
            try:
                batch = reader.read()  # what is there is told, however late it is
            except EOFError:
                break
            if batch.lost:
                print(json.dumps({"lost": batch.lost}) if args.json else f"(lost {batch.lost:,} records)")
            for number, kind, values in _rows(reader, engine, batch, left):
                print(
                    json.dumps({"number": number, "kind": kind, "data": values})
                    if args.json
                    else f"{number} kind {kind} {values}",
                    flush=True,
                )
                left = left - 1 if left else left
            if end is not None and time.monotonic() >= end:
                break
            if not len(batch):
                reader.wait(0.05 if end is None else max(0.0, min(0.05, end - time.monotonic())))
    return 0


def _rows(reader: Any, engine: Any, batch: Any, most: int | None) -> list[tuple[int, int | str, Any]]:
    """Numbers, kinds and data: of an engine's tape in its words, else by field where the tape has a dtype,
    else in hex."""
    from xdpstack.news import as_plain

    rows: list[tuple[int, int | str, Any]] = []
    for record in batch:
        if most is not None and len(rows) == most:
            break
        kind: int | str = record.kind
        values: Any = record.data.tobytes().hex()
        if engine is not None:
            news = engine.news_of(record)
            kind, values = news.kind, as_plain(news)
        elif reader.dtype is not None:
            value = record.data.view(reader.dtype)[0]
            names = reader.dtype.names
            values = {name: _plain(value[name]) for name in names} if names else _plain(value)
        rows.append((record.number, kind, values))
    return rows


def _plain(value: Any) -> Any:
    """A numpy scalar as JSON has it."""
    plain = value.tolist()
    return plain.decode(errors="replace") if isinstance(plain, bytes) else plain


def _interrupted() -> Any:
    """True once SIGINT or SIGTERM came: the file is whole then."""
    import signal
    import threading

    ends = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ends.set())
    return ends.is_set


def _record(args: argparse.Namespace) -> int:
    from xdpstack import shm, shmrec

    said = shmrec.record(
        shm.locate(args.segment), args.file,
        oldest=args.oldest, most=args.n or None, seconds=args.seconds, stop=_interrupted(),
    )  # fmt: skip
    print(
        json.dumps(said) if args.json else f"{args.file}: {said['records']:,} records, {said['lost']:,} lost"
    )
    return 0


def _play(args: argparse.Namespace) -> int:
    from xdpstack import shmrec

    where = Path(args.segment) if args.segment else None
    said = shmrec.play(args.file, where, speed=args.speed, stop=_interrupted())
    text = (
        f"{where or args.file}: {said['records']:,} records, {said['lost']:,} were lost when it was recorded"
    )
    print(json.dumps(said) if args.json else text)
    return 0


def _remove(args: argparse.Namespace) -> int:
    from xdpstack import shm

    paths: list[Path] = []
    for word in args.segments:
        if word.endswith(".toml"):
            paths += [segment.file for segment in shm.load(word) if segment.file.exists()]
        else:
            paths.append(shm.locate(word))
    for path in paths:
        shm.remove(path, force=args.force)
    removed = [str(path) for path in paths]
    print(json.dumps({"removed": removed}) if args.json else "\n".join(removed) or "nothing to remove")
    return 0
