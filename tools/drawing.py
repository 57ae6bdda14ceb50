"""Draw boxes, text, and arrows as SVG that follows the reader's color scheme and needs no font of its own."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

LIGHT: Final = {
    "paper": "#ffffff",
    "panel": "#f6f8fa",
    "ink": "#1f2328",
    "soft": "#59636e",
    "line": "#848d97",
    "edge": "#d1d9e0",
    "good": "#1a7f37",
    "other": "#0969da",
    "bad": "#bc4c00",
}
DARK: Final = {
    "paper": "#0d1117",
    "panel": "#151b23",
    "ink": "#f0f6fc",
    "soft": "#9198a1",
    "line": "#656c76",
    "edge": "#3d444d",
    "good": "#3fb950",
    "other": "#58a6ff",
    "bad": "#f0883e",
}
COLORED: Final = ("good", "other", "bad", "soft")
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_MONOSPACED: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace"


def _rules(colors: Mapping[str, str]) -> list[str]:
    rules = [
        f".paper {{ fill: {colors['paper']}; stroke: {colors['edge']} }}",
        f"text {{ fill: {colors['ink']} }}",
        f".box {{ fill: {colors['panel']}; stroke: {colors['line']} }}",
        f".frame, .rule {{ stroke: {colors['line']} }}",
    ]
    for name in COLORED:
        rules.append(f"text.{name}, .tip.{name} {{ fill: {colors[name]} }}")
        rules.append(f".edge.{name}, .box.{name} {{ stroke: {colors[name]} }}")
    return rules


def _style(theme: str | None) -> str:
    fixed = [
        f"text {{ font: 14px {_FONT} }}",
        f".code {{ font: 13px {_MONOSPACED} }}",
        ".strong { font-weight: 600 } .small { font-size: 13px }",
        ".frame { fill: none; stroke-dasharray: 2 3 } .edge { fill: none; stroke-width: 2 }",
        ".edge.bad { stroke-dasharray: 5 4 } .edge.other { stroke-dasharray: 10 4 } .edge.soft { stroke-width: 1.5 }",
    ]
    if theme is not None:
        return "\n".join([*fixed, *_rules(DARK if theme == "dark" else LIGHT)])
    dark = ["@media (prefers-color-scheme: dark) {", *_rules(DARK), "}"]
    return "\n".join([*fixed, *_rules(LIGHT), *dark])


class Drawing:
    """A picture.

    Args:
        title: A short description of the picture.
        description: A complete description for readers who cannot see the picture.
        theme: ``light`` or ``dark``; ``None`` for a picture that follows the reader's color scheme.
    """

    def __init__(self, width: int, height: int, title: str, description: str, theme: str | None = None) -> None:
        self.width, self.height = width, height
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' role="img" aria-labelledby="title description">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="description">{escape(description)}</desc>',
            f"<style>\n{_style(theme)}\n</style>",
            f'<rect class="paper" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box") -> None:
        """Add a rectangle of the ``box`` or ``frame`` kind, with an optional color after ``box``."""
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>')

    def text(self, x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> None:
        """Add one line of text in the ``strong``, ``small``, or ``code`` style or in a color."""
        self._parts.append(f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>')

    def labeled_box(self, x: float, y: float, width: float, height: float, *lines: str, kind: str = "box") -> None:
        """Add a box with centered lines, the first of which is bold."""
        self.box(x, y, width, height, kind)
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 18 * number, line, "small" if number else "strong", anchor="middle")

    def columns(self, x: float, y: float, text: str, kind: str, advance: float) -> None:
        """Add text whose characters are all *advance* wide in every font."""
        self._parts.append(
            f'<text class="code {kind}" x="{x:.1f}" y="{y}" textLength="{advance * len(text):.1f}"'
            f' lengthAdjust="spacingAndGlyphs" xml:space="preserve">{escape(text)}</text>'
        )

    def rule(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Add a thin line."""
        self._parts.append(f'<line class="rule" x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}"/>')

    def arrow(self, kind: str, *points: tuple[float, float], has_tip: bool = True) -> None:
        """Add a line through *points* that ends in a triangle, or in a cross if nothing arrives (``bad``)."""
        path = " L".join(f"{x} {y}" for x, y in points)
        self._parts.append(f'<path class="edge {kind}" d="M{path}"/>')
        if not has_tip:
            return
        (x0, y0), (x, y) = points[-2:]
        turn = (0 if x > x0 else 180) if y == y0 else (90 if y > y0 else -90)
        shape = "M-10 -5 L0 5 M-10 5 L0 -5" if kind == "bad" else "M-10 -5 L0 0 L-10 5 Z"
        tip = f"edge {kind}" if kind == "bad" else f"tip {kind}"
        solid = ' style="stroke-dasharray: none"' if kind == "bad" else ""
        self._parts.append(f'<path class="{tip}"{solid} transform="translate({x} {y}) rotate({turn})" d="{shape}"/>')

    def render(self) -> str:
        """Return the picture."""
        return "\n".join([*self._parts, "</svg>"]) + "\n"
