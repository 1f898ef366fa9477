"""Text tables, for a terminal, in Markdown and in HTML."""

import html as html_text
from collections.abc import Sequence


def percent(mean: float | None, deviation: float | None = None) -> str:
    """Renders a fraction in percent, with its deviation if given; "" for None."""
    if mean is None:
        return ""
    text = f"{100 * mean:.2f}"
    return text if deviation is None else f"{text} ± {100 * deviation:.2f}"


def plain(rows: Sequence[Sequence[str]], left: int = 0, width: int = 10) -> list[str]:
    """Renders rows, a header first, as lines for a terminal.

    The first column is left-aligned and at least `left` wide. The others are
    right-aligned and as wide as their widest cell needs, but at least `width`.
    """
    left = max([left, *(len(row[0]) for row in rows)])
    width = max([width, *(len(cell) + 2 for row in rows for cell in row[1:])])
    return [
        f"{row[0]:<{left}}{''.join(f'{cell:>{width}}' for cell in row[1:])}".rstrip()
        for row in rows
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Renders rows in Markdown; all columns except the first hold numbers."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows))


def html(rows: Sequence[Sequence[str]], caption: str) -> str:
    """Renders rows, a header first, as an HTML table for a notebook."""

    def line(cells: Sequence[str], tag: str) -> str:
        written = (f"<{tag}>{html_text.escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{''.join(written)}</tr>"

    lines = [line(rows[0], "th"), *(line(row, "td") for row in rows[1:])]
    title = f"<caption>{html_text.escape(caption)}</caption>"
    return f"<table>{title}{''.join(lines)}</table>"
