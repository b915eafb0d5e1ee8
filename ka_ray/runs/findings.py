"""What a check of `ka-ray doctor` finds."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ka_ray.errors import InputError

ADVICE_BEGINS = re.compile(r"\. (?=[A-Z])|[;:,] (?=(?:or )?(?:set|give|install|send|write|start|leave) )")
"""Where the message of an error turns from what is wrong to what helps."""


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        name: What was checked.
        state: error: a run cannot work; warning: it may be slow, or fail later.
        found: What was found.
        advice: How to mend it; empty if nothing is wrong.
    """

    name: str
    state: Literal["ok", "warning", "error"]
    found: str
    advice: str = ""


Check = Callable[[], Finding]
"""A check; it takes at most some seconds."""


def finding_of_error(name: str, error: Exception) -> Finding:
    """Return the finding of a check whose error message says what is wrong, and then what helps.

    Args:
        name: What was checked.
        error: The error.

    Example:
        >>> finding_of_error("Ray", InputError("no cluster answers. Start it (`ray start --head`)"))
        Finding(name='Ray', state='error', found='no cluster answers', advice='Start it (`ray start --head`)')
    """
    found, *advice = ADVICE_BEGINS.split(str(error), maxsplit=1)
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return Finding(name, "error", kind + found, advice[0] if advice else "see the message")
