"""Show names that users or files give as text in Markdown: they bring no markup, links or HTML in."""

import re

from ka_ray.errors import CONTROL_CHARACTERS

_SPECIAL = re.compile(
    r"""
    [\\<>\[\]&~$]                               # HTML, links, entities, strike-through, formulas
    | \*(?!(?<=\s\*)(?:\s|$))                   # emphasis; a star between spaces is none
    | (?<![^\W_])_ | _(?![^\W_])                # emphasis; an underscore inside of a word is none
    """,
    re.VERBOSE,
)
_START_OF_LINE = re.compile(r"^([-+#=]|\d+(?=[.)]))")


class Markdown(str):
    """Text that is Markdown on purpose, so that :func:`escape_markdown` leaves it as it is."""


def escape_markdown(text: str, starts_line: bool = False) -> str:
    """Return Markdown that shows a text as it is, on one line.

    Parts of the text between two single backticks stay what they are in our own messages: code, in which
    nothing else has a meaning.

    Args:
        text: Any text, such as the name of a class or of a file.
        starts_line: Whether it comes first in its line or item of a list, where ``#`` or ``-`` have a
            meaning.

    Example:
        >>> print(escape_markdown("<b>cat</b> [x](y) 2*3 snow_owl `a*b`"))
        \\<b\\>cat\\</b\\> \\[x\\](y) 2\\*3 snow_owl `a*b`
    """
    if isinstance(text, Markdown):
        return text
    text = " ".join(text.split()).translate(CONTROL_CHARACTERS)
    parts = text.split("`")
    if len(parts) % 2 == 0 or "``" in text:  # no pairs of single backticks: none of them makes code
        escaped = r"\`".join(map(_escape, parts))
    else:
        escaped = "`".join(part if i % 2 else _escape(part) for i, part in enumerate(parts))
    if starts_line:
        escaped = _START_OF_LINE.sub(_escape_start, escaped)
    return escaped


def format_code(text: str) -> str:
    """Return a text as code in a line of Markdown; backticks in it, which would end the code, become ``'``.

    Args:
        text: Any text, such as a path.
    """
    return f"`{' '.join(text.split()).translate(CONTROL_CHARACTERS).replace('`', chr(39))}`"


def _escape(text: str) -> str:
    # A part that ends in a backslash cannot escape the backtick behind it: backslashes are escaped, too.
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", text)


def _escape_start(found: re.Match[str]) -> str:
    return f"{found[0]}\\" if found[0].isdecimal() else f"\\{found[0]}"
