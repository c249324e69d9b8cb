"""The demo's tables."""

from __future__ import annotations

from typing import Any

__all__ = ["show"]

_PERCENTILES = ("p50", "p90", "p99", "p999")


def _table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        first, *rest = row
        print(
            "  "
            + first.ljust(widths[0])
            + "".join("  " + cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        )


def _us(ns: int) -> str:
    return f"{ns / 1000:.2f}" if ns < 10_000_000 else f"{ns / 1000:.0f}"


def show(result: dict[str, Any]) -> None:
    """Everything a reader wants to see at a glance."""
    for transport, run in result["runs"].items():
        audit = result["audit"][transport]
        steer = f", XDP {run['xdp_mode'][0]}" if run["xdp_mode"] else ""
        print(f"\n== {transport} ({run['granted']}{steer}): {run['packets']:,} packets")
        _messages(run)
        _lines(run)
        _gaps(run, audit)
        _top(run)
    _latency(result)
    _audit(result)


def _messages(run: dict[str, Any]) -> None:
    print("\nmessages")
    for name, feed in run["feeds"].items():
        common = sorted(feed["messages"].items(), key=lambda item: -item[1])
        shown = ", ".join(f"{kind} {count:,}" for kind, count in common[:6])
        more = f", {len(common) - 6} more types" if len(common) > 6 else ""
        print(f"  {name:<10} {feed['messages_total']:>9,}  ({shown}{more})")


def _lines(run: dict[str, Any]) -> None:
    print("\nlines")
    rows = []
    for name, feed in run["feeds"].items():
        for line in feed["lines"]:
            if line["packets"]:
                keys = ("packets", "won", "duplicate", "late", "lost", "reordered", "heartbeat")
                rows.append([name, line["line"], *(f"{line[key]:,}" for key in keys)])
    _table(["feed", "line", "packets", "first", "duplicate", "late", "lost", "reordered", "heartbeats"], rows)


def _gaps(run: dict[str, Any], audit: dict[str, Any]) -> None:
    print("\ngaps (ranges; units are messages, CME packets)")
    rows = []
    for name, feed in run["feeds"].items():
        gaps, units = feed["gaps"], feed["gaps"]["units"]
        rows.append(
            [
                name,
                f"{gaps['found']:,}",
                f"{gaps['filled']:,}",
                f"{gaps['lost']:,}",
                f"{gaps['open']:,}",
                f"{units['units_missed']:,}",
                f"{units['units_lost']:,}",
                f"{feed['requests']:,}",
                f"{feed['restarts']:,}",
                f"{audit['delivery'][name]['delivered']:,}",
            ]
        )
    _table(
        [
            "feed",
            "found",
            "filled",
            "left open",
            "pending",
            "units",
            "units open",
            "requests",
            "restarts",
            "delivered",
        ],
        rows,
    )


def _top(run: dict[str, Any]) -> None:
    print("\ntop of book, busiest instruments")
    rows = []
    for name, tops in run["top"].items():
        for top in tops:
            sides = [
                f"{top[side][0]:,} @ {top[side][1]:,.4f}" if top[side] else "-" for side in ("bid", "ask")
            ]
            rows.append([name, top["symbol"], f"{top['updates']:,}", *sides, "stale" if top["stale"] else ""])
    _table(["feed", "symbol", "updates", "bid", "ask", ""], rows)


def _latency(result: dict[str, Any]) -> None:
    print("\nlatency, us: from the XDP hook (kernel sockets: the kernel's stamp) to decoded, to book")
    rows = []
    names = next(iter(result["runs"].values()))["feeds"]
    for name in names:
        for transport, run in result["runs"].items():
            for stage, word in (("decoded", "decoded"), ("applied", "book")):
                ages = run["stats"]["feeds"][name]["age_ns"][stage]
                rows.append(
                    [
                        name,
                        transport,
                        word,
                        *(_us(ages[p]) for p in _PERCENTILES),
                        _us(ages["max"]),
                        f"{ages['count']:,}",
                    ]
                )
    _table(["feed", "over", "to", *_PERCENTILES, "max", "packets"], rows)
    print("  tails: packets that waited behind a gap, for the other line, an answer or a final refusal")


def _audit(result: dict[str, Any]) -> None:
    print("\naudit")
    for transport, finding in result["audit"].items():
        for name, report in finding["delivery"].items():
            other = finding["undamaged"][name]
            books = (
                f"{other['compared']} books equal the undamaged stream's"
                if not other["faults"]
                else "books differ"
            )
            if other["behind_gap"]:
                books += f", {other['behind_gap']} are behind an open gap"
            print(
                f"  {transport:<5} {name:<10} {report['units']:>9,} sent = {report['delivered']:,} delivered"
                f" + {report['open']:,} in reported gaps + {report['silent']:,} silent; {books}"
            )
        cores = finding["cores"]
        both = "saw" if not cores["faults"] else "DID NOT SEE"
        total = sum(seen["updates"] for seen in result["runs"][transport]["seen"].values())
        print(
            f"  {transport:<5} two trading cores {both} all {total:,} updates that the engine published; "
            f"{cores['orders']} orders by the command ring, {cores['arrived']} arrived"
        )
        same = "equals" if not finding["recording"]["faults"] else "DIFFERS FROM"
        print(
            f"  {transport:<5} the recording's replay ({finding['recording']['packets']:,} packets) "
            f"{same} the run"
        )
        for fault in finding["faults"][:10]:
            print(f"  {transport:<5} FAULT: {fault}")
    print("\n" + ("every promise kept" if result["ok"] else "FAILED"))
