"""Ten thousand idle TLS connections to a defender that may have 20,000 open files."""

from __future__ import annotations

import ssl
import statistics
import time
from collections.abc import Callable

from deploy.processes import wait_until
from tests.engine.guarded import certificates
from tests.soak.crowd import Crowd, RefusedError, connect_tls, many_files, most_files, use
from tests.soak.mixed import Result
from tests.soak.samples import KIB, quantiles
from tests.soak.stage import EXACT, Stage
from tests.soak.verdict import Check, nothing_in

COUNT = 10_000
FILES = 20_000
MOST = 48.0
"""KiB of anonymous memory that an idle connection may cost."""

STEP = 500
PROBES = 200
MORE = 0.1
"""Part of the connections' memory that as many connections again may take beside it.

The C library keeps what was freed for the next ones, so that it is no leak if a process stays as large.
"""


def connections(say: Callable[[str], None]) -> Result:
    """Open them, look at what they cost and at how the others are served, and close them."""
    settings = {
        "limits": f"connections = {COUNT + 1}\nconnections_per_user = 0\nidle_timeout = 3600",
    }
    if most_files() < COUNT + 1000:
        found = f"this shell may have {most_files()} open files: ulimit -Hn {COUNT + 1000}"
        return Result([Check("descriptors", False, found)])
    stage = Stage(settings=settings, wrapper=("prlimit", f"--nofile={FILES}:{FILES}"))
    with many_files():
        try:
            return _idle(stage.open(), say)
        finally:
            stage.close()


def _context(user: str) -> ssl.SSLContext:
    files = certificates(user)
    context = ssl.create_default_context(cafile=str(files / "ca.pem"))
    context.load_cert_chain(files / "cert.pem", files / "key.pem")
    return context


def _probe(sock: ssl.SSLSocket) -> dict[str, float]:
    times = []
    for _ in range(PROBES):
        began = time.perf_counter()
        use(sock)
        times.append((time.perf_counter() - began) * 1000)
    return quantiles(times)


def _idle(stage: Stage, say: Callable[[str], None]) -> Result:
    defender = stage.defender
    context, known = _context("admin"), _context(EXACT[0])
    crowd = Crowd()

    def connect() -> ssl.SSLSocket:
        return connect_tls(defender.port, context)

    def fill() -> list[float]:
        seconds = []
        while len(crowd) < COUNT:
            since = time.monotonic()
            crowd.open(connect, STEP)
            seconds.append(time.monotonic() - since)
            say(f"{len(crowd)} connections, {STEP / seconds[-1]:.0f} a second")
        return seconds

    def empty() -> bool:
        crowd.close()
        return wait_until(lambda: bool(stage.status()["clients"]["connections"] == 1), 60, 0.2)

    began = time.monotonic()
    crowd.open(connect, 100)
    crowd.close()
    stage.drain()
    with connect_tls(defender.port, known) as inside:
        use(inside)
        before, alone = stage.sample(began), _probe(inside)
        seconds = fill()
        full, among = stage.sample(began), _probe(inside)
        beyond = []
        for _ in range(10):
            try:
                with connect() as late:
                    beyond.append(f"answered with {use(late)}")
            except (RefusedError, OSError):
                continue
        over = int(stage.status()["listener"]["over_limit"])
        lost = crowd.lost()
        gone = empty()
        after, later = stage.sample(began), _probe(inside)
        fill()
        again, among_them = stage.sample(began), _probe(inside)
        lost += crowd.lost()
        gone = empty() and gone
        end, last = stage.sample(began), _probe(inside)
    cost = full.rss_anon - before.rss_anon
    more = (again.rss_anon - full.rss_anon) / cost
    samples, probes = (before, full, after, again, end), (alone, among, later, among_them, last)
    checks = [
        Check(
            "memory", cost / COUNT <= MOST, f"{cost / COUNT:.1f} KiB by idle connection, at most {MOST:.0f}"
        ),
        Check("memory, again", more <= MORE, f"{more:+.1%} for as many again, at most {MORE:.0%}"),
        Check("connections", lost == 0 and gone, f"{lost} of {2 * COUNT} ended before they were closed"),
        Check(
            "beyond the limit", not beyond and over == 10, f"{over} of 10 refused {'; '.join(beyond)}".strip()
        ),
        Check(
            "descriptors",
            before.steady == after.steady == end.steady,
            f"{sum(full.descriptors.values())} of {FILES}, then {sum(end.steady.values())} again",
        ),
        nothing_in("log", stage.complaints(), "no traceback"),
    ]
    rows = [
        "| | before | 10,000 idle | all gone | 10,000 again | all gone |",
        "| --- | --: | --: | --: | --: | --: |",
        "| RssAnon, MiB | " + " | ".join(f"{s.rss_anon / KIB:.1f}" for s in samples) + " |",
        "| descriptors | " + " | ".join(str(sum(s.descriptors.values())) for s in samples) + " |",
        *(
            f"| probe {figure}, ms | " + " | ".join(f"{probe[figure]:.2f}" for probe in probes) + " |"
            for figure in ("p50", "p99")
        ),
    ]
    figures = {
        "kib": cost / COUNT,
        "a_second": STEP / statistics.median(seconds),
        "samples": [sample.plain() for sample in samples],
        "probes": probes,
    }
    return Result(checks, "\n".join(rows), figures)
