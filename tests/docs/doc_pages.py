"""Read the documentation: its code blocks, inline code, headings and links."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

REPOSITORY = Path(__file__).parents[2]
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "jobs/README.md")] + DOCS
"""The pages whose code blocks are tested."""

FOLDERS = ("docs", "jobs", "cluster", "benchmarks", "ka_ray", "tests")
MARKDOWN = sorted(
    {*REPOSITORY.glob("*.md"), *(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.md"))}
)
"""Every Markdown file of the repository."""

PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: The page that contains it.
        line: Line number of its first line of code.
        language: The language named after the opening fence; may be empty.
        text: The code.
    """

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a shell block; comments are left out, and lines that end in a backslash are joined.

    Attributes:
        place: Page and line number.
        words: The command split into words as by a shell, with wildcards not expanded.
    """

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return self.place


@cache
def parse_tokens(page: Path) -> list[Token]:
    return PARSER.parse(page.read_text("utf-8"))


def find_blocks(page: Path) -> Iterator[Block]:
    for token in parse_tokens(page):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            yield Block(page, token.map[0] + 2, token.info.strip(), token.content)


def find_commands(block: Block) -> Iterator[Command]:
    start, text = block.line, ""
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        text += line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        if words := shlex.split(text, comments=True):
            yield Command(f"{block.page.relative_to(REPOSITORY)}:{start}", tuple(words))
        start, text = number + 1, ""
    assert not text, f"{block} ends in a backslash"


def inline_tokens(page: Path) -> Iterator[Token]:
    for token in parse_tokens(page):
        yield from token.children or ()


def inline_code(page: Path) -> list[str]:
    return [token.content for token in inline_tokens(page) if token.type == "code_inline"]


def find_links(page: Path) -> list[str]:
    """Return the targets of all links and images of a page."""
    attributes = {"link_open": "href", "image": "src"}
    return [str(t.attrs[attributes[t.type]]) for t in inline_tokens(page) if t.type in attributes]


def find_headings(page: Path) -> list[str]:
    found = parse_tokens(page)
    return [found[i + 1].content for i, token in enumerate(found) if token.type == "heading_open"]


def find_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in find_headings(page)]
    seen: Counter[str] = Counter()
    found = set()
    for slug in slugs:
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found
