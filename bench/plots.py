"""Draw bars and lines as SVG, in colours for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from bench.spread import Spread, number

#: Colours by class: in light, in dark.
FILLS = {
    "text": ("1f2328", "e6edf3"),
    ".axis": ("57606a", "8b949e"),
    ".bar": ("8c959f", "6e7681"),
    ".own": ("0969da", "58a6ff"),
}
STROKES = {
    ".line": ("57606a", "8b949e"),
    ".series0": ("0969da", "58a6ff"),
    ".series1": ("bf8700", "d29922"),
    ".series2": ("1a7f37", "3fb950"),
}


def _style() -> str:
    light, dark = (
        [f"{name} {{ fill: #{colours[which]}; }}" for name, colours in FILLS.items()]
        + [
            f"{name} {{ stroke: #{colours[which]}; fill: none; }}"
            for name, colours in STROKES.items()
        ]
        for which in (0, 1)
    )
    return (
        "<style>\n    path { stroke-width: 1.5; } .axis { font-size: 12px; }\n"
        f"    {' '.join(light)}\n"
        f"    @media (prefers-color-scheme: dark) {{ {' '.join(dark)} }}\n  </style>"
    )


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height:g}" '
        'font-family="system-ui, sans-serif" font-size="14" role="img" aria-labelledby="t">\n'
        f'  <title id="t">{escape(title)}</title>\n  {_style()}\n  {body}\n</svg>\n'
    )


def bars(title: str, rows: Sequence[tuple[str, Spread, bool]]) -> str:
    """Draw bars with a whisker from least to greatest; the third item of a row marks our own."""
    left, width = 250, 420
    scale = width / max(spread.greatest for _, spread, _ in rows)
    parts = [f'<text x="10" y="22" font-weight="600">{escape(title)}</text>']
    for index, (name, spread, own) in enumerate(rows):
        y = 40 + 26 * index
        end = left + spread.greatest * scale
        parts += [
            f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{"own" if own else "bar"}" x="{left}" y="{y}" height="18" '
            f'width="{max(spread.median * scale, 1):.1f}"/>',
            f'<path class="line" d="M{left + spread.least * scale:.1f} {y + 9} H{end:.1f}"/>',
            f'<text class="axis" x="{end + 8:.1f}" y="{y + 14}">{number(spread.median)}</text>',
        ]
    return _svg(title, 50 + 26 * len(rows), parts)


def lines(
    title: str, x_title: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]]
) -> str:
    """Draw lines over a logarithmic x axis; the y axis begins at 0."""
    left, top, width, height = 70, 50, 520, 230
    points = [point for _, line in series for point in line]
    low, high = (math.log10(f(x for x, _ in points)) for f in (min, max))
    highest = max(y for _, y in points) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(x) - low) / ((high - low) or 1)
        return left + share * width, top + height - y / highest * height

    parts = [
        f'<text x="10" y="22" font-weight="600">{escape(title)}</text>',
        f'<path class="line" d="M{left} {top} V{top + height} H{left + width}"/>',
        f'<text class="axis" x="{left + width / 2}" y="{top + height + 40}" '
        f'text-anchor="middle">{escape(x_title)}</text>',
    ]
    parts += [
        f'<text class="axis" x="{place(x, 0)[0]:.1f}" y="{top + height + 20}" '
        f'text-anchor="middle">{x:,.0f}</text>'
        for x in sorted({x for x, _ in points})
    ]
    for share in (0.25, 0.5, 0.75, 1):
        value = highest / 1.1 * share
        parts.append(
            f'<text class="axis" x="{left - 8}" y="{place(10**low, value)[1] + 4:.1f}" '
            f'text-anchor="end">{number(value)}</text>'
        )
    # From the lowest up, each name at least one line above the last.
    ends = [
        (index, name, [place(*p) for p in sorted(line)])
        for index, (name, line) in enumerate(series)
    ]
    above = top + height + 18.0
    for index, name, placed in sorted(ends, key=lambda end: -end[2][-1][1]):
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        x, y = placed[-1]
        above = min(y + 4, above - 14)
        parts += [
            f'<path class="series{index % 3}" d="M{path}"/>',
            f'<text class="axis" x="{x + 8:.1f}" y="{above:.1f}">{escape(name)}</text>',
        ]
    return _svg(title, top + height + 55, parts)
