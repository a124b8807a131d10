"""The bench's tables: plain text, at most 110 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Figures = Mapping[str, float]
Medians = Mapping[str, Mapping[str, Figures]]
"""{case: {target: figures}}."""

TITLES = {"keep": "keep-alive", "distinct": "distinct", "new": "new connections"}
SHORT = {"haproxy-close": "close"}


@dataclass(frozen=True, slots=True)
class Column:
    """One figure: its heading, its key, digits after the point."""

    heading: str
    key: str
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """A table of comparisons.

    Attributes:
        title: above it.
        groups: first words of the cases that belong to it.
        columns: what is shown of each target.
        compared: the key of the ratios.
        bases: targets that the ratios are of.
        rising: whether more is better, for the order of the rows.
    """

    title: str
    groups: tuple[str, ...]
    columns: tuple[Column, ...]
    compared: str
    bases: tuple[str, ...] = ("haproxy", "haproxy-close", "go", "web")
    rising: bool = False


LOAD = Column("load %", "load")
LATENCY = (Column("p50 us", "p50_us"), Column("p99 us", "p99_us"))
RATE = Column("req/s", "rps")

KINDS = (
    Kind(
        "small requests; ratios of req/s",
        ("keep", "distinct", "new"),
        (RATE, *LATENCY, Column("CPU us/req", "cpu_us"), LOAD),
        "rps",
        rising=True,
    ),
    Kind(
        "small requests; ratios of the proxy's CPU time by request",
        ("keep", "distinct", "new"),
        (Column("CPU us/req", "cpu_us"),),
        "cpu_us",
    ),
    Kind(
        "bulk; ratios of the proxy's CPU time by byte",
        ("get", "put", "echo"),
        (Column("MB/s", "mb_s"), Column("CPU s/GB", "cpu_gb", 2), LOAD),
        "cpu_gb",
    ),
    Kind(
        "64 bytes there and back on a tunnel; ratios of p50",
        ("rtt",),
        (
            RATE,
            Column("p50 us", "p50_us", 1),
            Column("p99 us", "p99_us", 1),
            Column("CPU us", "cpu_us", 1),
            LOAD,
        ),
        "p50_us",
    ),
    Kind("memory by idle connection", ("idle",), (Column("KiB", "kib", 1),), "kib"),
    Kind(
        "a real Engine; ratios of p50",
        ("/containers/json", "/info", "/_ping"),
        (RATE, *LATENCY),
        "p50_us",
        ("dockerd", "haproxy"),
    ),
)


def case_name(case: str) -> str:
    """Return "keep 8" as people read it."""
    mode, _, count = case.partition(" ")
    title = TITLES.get(mode, mode)
    return f"{title}, {count}" if count else title


def ratio(figures: Figures, base: Figures | None, key: str) -> str:
    """Return a figure relative to a base target's, or a dash without one."""
    if base is None or not base.get(key):
        return "-"
    return f"{figures[key] / base[key]:.2f}"


def layout(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Align a table: the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[index]) for row in [headings, *rows]) for index in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([line(headings), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, rows)])


def comparison(kind: Kind, medians: Medians) -> str:
    """Lay out one kind's cases, or return "" when none was measured.

    CPU is the proxy's; load is how much of its core client and Engine used together (near 100: the proxy was
    not the limit, so compare CPU).
    """
    headings = ["case", "target", *(column.heading for column in kind.columns)]
    headings += [f"x {SHORT.get(base, base)}" for base in kind.bases]
    rows = []
    for case, targets in medians.items():
        if case.partition(" ")[0] not in kind.groups:
            continue
        ranked = sorted(targets.items(), key=lambda item: item[1][kind.compared], reverse=kind.rising)
        for index, (name, figures) in enumerate(ranked):
            rows.append(
                [
                    "" if index else case_name(case),
                    name,
                    *(f"{figures[column.key]:.{column.digits}f}" for column in kind.columns),
                    *(ratio(figures, targets.get(base), kind.compared) for base in kind.bases),
                ]
            )
    return f"{kind.title}\n\n{layout(headings, rows)}" if rows else ""


def tables(medians: Medians) -> str:
    """All tables of comparisons that have something to show."""
    return "\n\n".join(filter(None, (comparison(kind, medians) for kind in KINDS)))


def listing(title: str, values: Mapping[str, str]) -> str:
    """A table of names and values, or "" without any."""
    if not values:
        return ""
    width = max(map(len, values)) + 2
    return "\n".join([title, "", *(f"{name.ljust(width)}{value}" for name, value in values.items())])
