"""The bench's table: plain text, at most 110 columns."""

from __future__ import annotations

from collections.abc import Mapping

Figures = Mapping[str, float]

OTHERS = ("haproxy", "haproxy-close", "go", "web")
HEADINGS = ("x haproxy", "x close", "x go", "x web")
COLUMNS = ("case", "target", "req/s", "p50 us", "p99 us", "CPU us/req", "load %", *HEADINGS)
WIDTHS = (20, 14, 7, 8, 8, 11, 7, 10, 8, 6, 6)
NAMES = {"keep": "keep-alive", "distinct": "distinct", "new": "new connections"}


def case_name(case: str) -> str:
    """Return "keep 8" as people read it."""
    mode, _, count = case.partition(" ")
    return f"{NAMES.get(mode, mode)}, {count}"


def ratio(figures: Figures, base: Figures | None) -> str:
    """Return requests per second relative to a base target, or a dash without one."""
    if base is None or not base["rps"]:
        return "-"
    return f"{figures['rps'] / base['rps']:.2f}"


def line(cells: tuple[str, ...]) -> str:
    """Align one row: the first two columns to the left, figures to the right."""
    left = "".join(cell.ljust(width) for cell, width in zip(cells[:2], WIDTHS[:2], strict=True))
    return (
        left + "".join(cell.rjust(width) for cell, width in zip(cells[2:], WIDTHS[2:], strict=True))
    ).rstrip()


def table(medians: Mapping[str, Mapping[str, Figures]]) -> str:
    """Lay out {case: {target: {"rps", "p50_us", "p99_us", "cpu_us", "load"}}}.

    CPU is the proxy's; load is how much of its core client and Engine used together (near 100: the proxy was
    not the limit, so compare CPU); ratios are of requests per second.
    """
    lines = [line(COLUMNS), "-" * sum(WIDTHS)]
    for case, targets in medians.items():
        for index, (name, figures) in enumerate(sorted(targets.items(), key=lambda item: -item[1]["rps"])):
            cells = (
                case_name(case) if index == 0 else "",
                name,
                f"{figures['rps']:.0f}",
                f"{figures['p50_us']:.0f}",
                f"{figures['p99_us']:.0f}",
                f"{figures['cpu_us']:.0f}",
                f"{figures['load']:.0f}",
                *(ratio(figures, targets.get(other)) for other in OTHERS),
            )
            lines.append(line(cells))
    return "\n".join(lines)
