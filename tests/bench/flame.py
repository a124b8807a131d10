"""Collapsed stacks, ``outer;inner COUNT``, as shares and as a flame graph: an SVG without scripts."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

WIDTH = 1400
ROW = 17
LETTER = 6.6
"""Pixels: of the picture, of a frame's height, of a letter's width."""

NARROWEST = 0.4
"""Frames that would be narrower are left out."""


@dataclass(slots=True)
class Frame:
    """A function in one place of the graph: samples in it and what it calls, and what that is."""

    count: int = 0
    calls: dict[str, Frame] = field(default_factory=dict)

    def depth(self) -> int:
        """How many frames are above each other, this one included."""
        return 1 + max((frame.depth() for frame in self.calls.values()), default=0)


def parse(stacks: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """Yield (names from the outermost, count); other lines are passed over."""
    for line in stacks:
        frames, _, count = line.rstrip().rpartition(" ")
        if frames and count.isdigit():
            yield frames.split(";"), int(count)


def shares(stacks: Iterable[str]) -> list[tuple[str, float, float]]:
    """Sum the stacks up.

    Returns:
        (function, percent of samples in itself, percent in it and what it calls), most in itself first.
    """
    inside: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for names, count in parse(stacks):
        inside[names[-1]] += count
        for name in set(names):
            below[name] += count
    total = sum(inside.values()) or 1
    order = sorted(below, key=lambda name: (-inside[name], -below[name], name))
    return [(name, inside[name] * 100 / total, below[name] * 100 / total) for name in order]


def tree(stacks: Iterable[str]) -> Frame:
    """Join stacks that begin alike."""
    root = Frame()
    for names, count in parse(stacks):
        root.count += count
        frame = root
        for name in names:
            frame = frame.calls.setdefault(name, Frame())
            frame.count += count
    return root


def flame_graph(title: str, stacks: Iterable[str]) -> str:
    """Draw the stacks, callers below, each as wide as its share; a browser shows what the pointer is on."""
    root = tree(stacks)
    height = (root.depth() + 2) * ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">',
        f'<rect width="100%" height="100%" fill="#fffdf5"/><text x="6" y="13">{escape(title)}</text>',
        *_draw("all", root, 0.0, height - ROW, WIDTH / (root.count or 1), root.count or 1),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _draw(name: str, frame: Frame, x: float, y: int, scale: float, total: int) -> Iterator[str]:
    width = frame.count * scale
    if width < NARROWEST:
        return
    letters = int((width - 4) / LETTER)
    label = name if len(name) <= letters else name[: letters - 1] + "\u2026" if letters > 2 else ""
    said = f"{name}: {frame.count * 100 / total:.1f} %, {frame.count} samples"
    yield (
        f"<g><title>{escape(said)}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" fill={quoteattr(_color(name))}/>'
        f'<text x="{x + 2:.1f}" y="{y + 12}">{escape(label)}</text></g>'
    )
    for called, inner in sorted(frame.calls.items()):
        yield from _draw(called, inner, x, y - ROW, scale, total)
        x += inner.count * scale


def _color(name: str) -> str:
    """One hue for each file, so that the parts of the program can be told apart."""
    place = name.partition("(")[2].partition(":")[0] or name
    return f"hsl({zlib.crc32(place.encode()) % 360}, 65%, 78%)"
