"""Publish the files outside of docs/ that pages link to, and point the links at them.

On GitHub, a page links to any file of the repository. In the site, such a file is published under
``repository/``: a Markdown file as a page, a picture or JSON file as it is, and every other file as a page
that shows its text. A link to a folder becomes plain text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import relpath

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
AS_THEY_ARE = {".png", ".json"}
LANGUAGES = {".yaml": "yaml", ".sh": "bash", ".py": "python"}

FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s#]+)(?P<anchor>#[^()\s]*)?\)")


def find_target(page: Path, link: str) -> Path | None:
    """Return the file or folder of the repository that a link leads to.

    Args:
        page: The Markdown file that contains the link.
        link: Target of the link, without an anchor.

    Returns:
        The absolute path; None for an address on the web.
    """
    return None if re.match(r"[a-z]+:", link) else (page.parent / link).resolve()


def published_path(path: Path) -> str:
    """Return the path of a file among the sources of the site.

    Args:
        path: Absolute path of a file of the repository.
    """
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    shown = "" if path.suffix in {".md", *AS_THEY_ARE} else ".md"
    return f"repository/{path.relative_to(REPOSITORY).as_posix()}{shown}"


def find_outside_files() -> list[Path]:
    """Return the files outside of docs/ that pages link to, also those linked from such files; sorted."""
    waiting = sorted(DOCS.glob("*.md"))
    found = set(waiting)
    while waiting:
        page = waiting.pop()
        for target in _linked_files(page):
            if target not in found:
                found.add(target)
                waiting += [target] if target.suffix == ".md" else []
    return sorted(path for path in found if not path.is_relative_to(DOCS))


def _linked_files(page: Path) -> Iterator[Path]:
    for part in FENCE.split(page.read_text("utf-8"))[::2]:
        for match in LINK.finditer(part):
            target = find_target(page, match["target"])
            if target is not None and target.is_file():
                yield target


def show_text(path: Path) -> str:
    """Return a page that shows a text file.

    Args:
        path: Absolute path of the file.
    """
    name = path.relative_to(REPOSITORY).as_posix()
    return f"# {name}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text('utf-8')}\n````\n"


def rewrite_links(markdown: str, page: Path) -> str:
    """Return the text of a page with its links pointing at where their targets are published.

    Args:
        markdown: Text of the page.
        page: Absolute path of its file.
    """
    own_folder = published_path(page).rpartition("/")[0]

    def rewrite(match: re.Match[str]) -> str:
        target = find_target(page, match["target"])
        if target is None:
            return match[0]
        if target.is_dir():
            return match["text"]
        return (
            f"[{match['text']}]({relpath(published_path(target), own_folder or '.')}{match['anchor'] or ''})"
        )

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(rewrite, part) for part in parts[::2]]
    return "".join(parts)
