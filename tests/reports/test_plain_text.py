"""Test that names are shown as they are in Markdown, and bring no markup, links or HTML in."""

import html
import re

import pytest
from markdown_it import MarkdownIt

from ka_ray.reports.plain_text import Markdown, escape_markdown, format_code
from ka_ray.reports.tables import format_table

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![image](http://evil/x.png)",
    "**bold** and __bold__ and _it_ and *it*",
    "a_b_c __init__ _x_",
    "$\\frac{1}{2}$",
    "a|b",
    "back\\slash",
    "ends in \\",
    "one ` backtick <b>",
    "two ``backticks`` <b>",
    "<http://evil>",
    "&lt;b&gt; &amp; &#60;",
    "~~gone~~",
    "*",
    "# no heading",
    "- no item",
    "+ no item",
    "1. no item",
    "> no quote",
    "=====",
    "line\nbreak\n\n# heading",
    "Schwarzwälder_Kirschtorte 100%",
]
RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def render(markdown: str) -> tuple[str, set[str]]:
    """Return the text that a reader sees, and the names of the HTML elements."""
    page = RENDERER.render(markdown)
    text = html.unescape(re.sub(r"</?[a-z][^>]*>", "", page))
    return " ".join(text.split()), set(re.findall(r"<([a-z0-9]+)", page))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_reader_sees_the_text_itself_at_every_place(text):
    shown = " ".join(text.split())
    assert render(f"Name: {escape_markdown(text)}") == (f"Name: {shown}", {"p"})
    assert render(escape_markdown(text, starts_line=True)) == (shown, {"p"})
    assert render(f"- {escape_markdown(text, starts_line=True)}") == (shown, {"ul", "li"})
    seen, elements = render(format_table([text, "x"], [(text, "1")]))
    assert (seen, elements) == (f"{shown} x {shown} 1", {"table", "thead", "tbody", "tr", "th", "td"})


@pytest.mark.parametrize("text", HOSTILE)
def test_code_holds_any_text(text):
    seen, elements = render(f"path {format_code(text)} end")
    assert elements == {"p", "code"}
    assert seen == "path " + " ".join(text.replace("`", "'").split()) + " end"


def test_code_in_our_own_sentences_stays_code_and_everything_else_text():
    seen, elements = render(escape_markdown("set `student.start` for <b>: a `b_c` *d*"))
    assert (seen, elements) == ("set student.start for <b>: a b_c *d*", {"p", "code"})


def test_control_characters_are_visible_and_markdown_on_purpose_stays():
    assert render(escape_markdown("a\x1b[2Jb\x07"))[0] == "a\\x1b[2Jb\\x07"
    assert escape_markdown(Markdown("**student**")) == "**student**"
