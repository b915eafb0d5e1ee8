"""From a local name or a URI to a path; what a URI must not hold."""

import re
from pathlib import Path
from typing import cast

from ka_ray.errors import InputError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocol -> the extra of this package that brings it."""

OBJECT_STORES = {*EXTRAS, "az", "abfs", "abfss", "adl", "oci", "memory"}
"""Stores without folders, where an upload is there whole or not at all, even over another object."""

CREDENTIALS_PATTERN = re.compile(
    r"^(?!abfss?:|wasbs?:)[^:/]+://[^/@]*@"  # in these alone a container stands before an @
    r"|://[^/@]*:[^/@]*@|^(?!https?:)[^:/]+://[^/@]*:[^@]*@"
    r"|[?&;][^=&;]*(key|secret|token|password|pwd|auth|sig|credential)[^=&;]*=",
    re.IGNORECASE,
)

CREDENTIALS_ADVICE = "they are taken from the environment, as the store's own tools take them"


def has_credentials(uri: str) -> bool:
    """Whether a URI holds a password, a key or a token.

    Example:
        >>> has_credentials("http://me:secret@host:5000"), has_credentials("http://host:5000")
        (True, False)
    """
    return CREDENTIALS_PATTERN.search(uri) is not None


def refuse_credentials(uri: str, instead: str) -> None:
    """Refuse a URI that holds a password, a key or a token: it would end up in reports.

    Raises:
        InputError: Which does not repeat the URI, but says what to do instead.
    """
    if has_credentials(uri):
        raise InputError(f"credentials in the URI would end up in reports; {instead}")


def to_path(where: str | Path) -> Path:
    """Make a path of a local name or of a URI.

    Raises:
        InputError: A URI with credentials, with wildcards, of no known protocol, or of one that needs a
            package that is not installed.
    """
    text = str(where)
    if "://" not in text:
        return Path(text).expanduser()
    refuse_credentials(text, CREDENTIALS_ADVICE)
    protocol, _, place = text.partition("://")
    if re.search(r"[*?\[\]]", text):
        raise InputError(f"{text}: a URI must name one place; *, ?, [ and ] are not accepted in it")
    if not place.strip("/"):
        raise InputError(f"{text}: the URI names no place")
    _check_protocol(protocol)
    from upath import UPath

    # Other processes write, too: what was listed before must not hide what is there now.
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def _check_protocol(protocol: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        install = f"pip install 'ka_ray[{extra}]'" if extra else str(error)
        raise InputError(f"{protocol}:// needs a package that is not installed: {install}") from None
    except ValueError:
        raise InputError(f"{protocol}:// is no protocol that fsspec knows") from None
