"""What the HTML tables share: great_tables draws them, a page of their own or a place in the report."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import pandas as pd
from great_tables import GT, loc, style

#: Grounds and inks of rows; ink on ground has a contrast of at least 4.5.
ROW_STYLES = {
    "ours": {"fill": "#fdf1e7"},
    "control": {"ink": "#555555"},
    "oracle": {"ink": "#555555"},
    "holds": {"ink": "#00543d"},
    "fails": {"ink": "#8f3b00"},
    "partly": {"ink": "#004f80"},
    "open": {"ink": "#555555"},
}
#: A number, an interval, a dash or nothing, and after it a unit or more numbers; "10x" is a word.
NUMBER = r"[\[–<+−\-∞]*\s?[\d.,]*(?:$|[\s\])])"


def great_table(
    text: pd.DataFrame,
    id: str,
    title: str = "",
    caption: str = "",
    classes: Sequence[str] = (),
) -> GT:
    """Turn a table of text into one of great_tables; a ``Note`` stands below the name in the first column.

    Parameters
    ----------
    text
        Strings. Columns whose every value is a number, a dash or nothing stand at the right.
    id
        Where the ids of the table begin; unique on a page.
    title, caption
        Words above the table; none where the page has a heading of its own.
    classes
        A key of ``ROW_STYLES`` for each row, or any other word.
    """
    names = [column for column in text.columns if column != "Note"]
    first = names[0]
    shown = text[names].copy()
    notes = text["Note"] if "Note" in text else [""] * len(text)
    # what great_tables formats it does not escape, so the cell with a line of its own is escaped here
    shown[first] = [
        html.escape(str(name)) + (f"<br><small>{html.escape(str(note))}</small>" if note else "")
        for name, note in zip(shown[first], notes, strict=True)
    ]
    gt = GT(shown.reset_index(drop=True), rowname_col=first, id=id)
    gt = gt.fmt(lambda cell: cell, columns=first).tab_stubhead(first)
    numeric = [c for c in names[1:] if shown[c].astype(str).str.match(NUMBER).all()]
    gt = gt.cols_align("left").cols_align("right", numeric)
    for i, name in enumerate(classes):
        look = ROW_STYLES.get(name, {})
        if "fill" in look:
            gt = gt.tab_style(style.fill(look["fill"]), [loc.body(rows=[i]), loc.stub([i])])
        if "ink" in look:
            gt = gt.tab_style(style.text(color=look["ink"]), [loc.body(rows=[i]), loc.stub([i])])
    return gt.tab_header(title, caption) if title else gt


def page(gt: GT, title: str) -> str:
    """Return a self-contained page that holds one table."""
    gt = gt.tab_options(
        table_margin_left="0", heading_align="left", table_font_size="14px", data_row_padding="5px"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title></head>\n<body>\n{gt.as_raw_html()}\n</body>\n</html>\n"
    )


def bare(gt: GT) -> str:
    """Return the table alone, for a page that has a style sheet of its own."""
    found = re.search(r"<table.*</table>", gt.as_raw_html(), re.S)
    if found is None:
        raise ValueError("great_tables returned no <table>")
    return found[0]


def region(table: str, label: str) -> str:
    """Wrap a table so that a wide one scrolls by itself, by touch and by keyboard."""
    name = html.escape(label, quote=True)
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{name}">{table}</div>'
