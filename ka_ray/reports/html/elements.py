"""Elements of HTML: text that brings no markup in, tables, bars, and images inside of the page."""

import base64
import html
import re
from collections.abc import Collection, Iterable

from ka_ray.errors import CONTROL_CHARACTERS
from ka_ray.reports.rows import Table

_MATH = re.compile(r"[$\\]")


def escape(text: str) -> str:
    r"""Return HTML that shows a text as it is.

    Notebooks read what stands between two ``$``, or between ``\(`` and ``\)``, as a formula. They search only
    within one element, so these characters get an element of their own.

    Args:
        text: Any text, such as the name of a class or of a file.

    Example:
        >>> print(escape("<b> & $x$"))
        &lt;b&gt; &amp; <span>$</span>x<span>$</span>
    """
    return _MATH.sub(r"<span>\g<0></span>", escape_attribute(text))


def escape_attribute(text: str) -> str:
    """Return HTML for a text as the value of an attribute, or as the title of a page."""
    return html.escape(text.translate(CONTROL_CHARACTERS))


def element(tag: str, *children: str, **attributes: str) -> str:
    """Return an element.

    Args:
        tag: Its name.
        children: What is in it, as HTML; see :func:`escape` for text.
        attributes: Attribute -> its value, as text. ``class_`` stands for ``class``, ``data_label`` for
            ``data-label``.

    Example:
        >>> element("p", escape("2 < 3"), class_="note")
        '<p class="note">2 &lt; 3</p>'
    """
    listed = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape_attribute(value)}"'
        for name, value in attributes.items()
    )
    return f"<{tag}{listed}>{''.join(children)}</{tag}>"


def sentence(text: str) -> str:
    """Return HTML for a sentence of ours: text in which parts between two single backticks are code."""
    parts = text.split("`")
    if len(parts) % 2 == 0 or "``" in text:  # no pairs of single backticks: none of them makes code
        return escape(text)
    return "".join(element("code", escape(part)) if i % 2 else escape(part) for i, part in enumerate(parts))


def paragraph(text: str, **attributes: str) -> str:
    """Return a sentence, see :func:`sentence`, as a paragraph; nothing if it is empty."""
    return element("p", sentence(text), **attributes) if text else ""


def unordered_list(items: Iterable[str], **attributes: str) -> str:
    """Return a list of sentences; nothing if there are none."""
    listed = [element("li", sentence(item)) for item in items]
    return element("ul", *listed, **attributes) if listed else ""


def section(title: str, *children: str) -> str:
    """Return a section of the page; nothing if it has no content."""
    return element("section", element("h2", escape(title)), *children) if any(children) else ""


def details(summary: str, *children: str) -> str:
    """Return a block that is closed until the reader opens it."""
    return element("details", element("summary", escape(summary)), *children)


def table(content: Table, shares: Collection[int] = (), kept: int | None = None) -> str:
    """Return a table.

    Args:
        content: The table as text.
        shares: Indices of columns with shares in [0, 1], which are drawn as bars, too.
        kept: Index of the row that was chosen among the others, which is marked; None for no row.
    """
    head = element("tr", *(element("th", escape(title), scope="col") for title in content.header))
    body = [
        element("tr", *_cells(content.header, row, shares), **({"class_": "kept"} if index == kept else {}))
        for index, row in enumerate(content.rows)
    ]
    return element("table", element("thead", head), element("tbody", *body))


def _cells(header: Iterable[str], row: Iterable[str], shares: Collection[int]) -> Iterable[str]:
    for column, (title, cell) in enumerate(zip(header, row, strict=True)):
        if column == 0:
            yield element("th", escape(cell), scope="row")
            continue
        drawn = share_bar(cell, title) if column in shares else ""
        # On a narrow screen each cell is a line of its own, which begins with the title of its column.
        yield element("td", element("span", escape(cell)), drawn, data_label=title)


def share_bar(share: str, kind: str) -> str:
    """Return a bar for a share; nothing if the text is no number, because it was not measured.

    Args:
        share: The share in [0, 1], as text.
        kind: What it is a share of; names the class of the bar in ``style.css``.
    """
    try:
        value = float(share)
    except ValueError:
        return ""
    return element("span", bar(0, value, kind), class_="track")


def bar(start: float, length: float, kind: str) -> str:
    """Return the filled part of a track.

    Args:
        start: Where it begins, as a share of the track.
        length: Its length, as a share of the track.
        kind: Its class in ``style.css``.
    """
    place = f"margin-left:{100 * start:.2f}%;width:{100 * length:.2f}%"
    return element("span", class_=f"bar {kind}", style=place)


def figure(png: bytes, title: str, description: str) -> str:
    """Return a picture, with its file inside of the page.

    Args:
        png: Content of the PNG file.
        title: What it shows, for readers who see no pictures.
        description: What is to be seen in it.
    """
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = f'<img src="{source}" alt="{escape_attribute(title)}">'
    return element("figure", image, element("figcaption", sentence(description)))
