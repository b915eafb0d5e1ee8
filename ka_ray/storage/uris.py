"""Turn local names and URIs into paths, and refuse URIs that cannot work or that hold credentials."""

import re
from pathlib import Path
from typing import cast

from ka_ray.errors import InputError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocol -> the extra of this package that installs its file system."""

OBJECT_STORES = {*EXTRAS, "az", "abfs", "abfss", "adl", "oci", "memory"}
"""Protocols of object stores: they have no folders, and an upload appears at once and whole, even if it
replaces another object."""

CREDENTIALS_PATTERN = re.compile(
    r"""
    # A user name or token before the host: https://token@host. Azure's protocols have a container there.
    ^(?!abfss?:|wasbs?:)[^:/]+://[^/@]*@
    # A user name and a password, with any protocol.
    | ://[^/@]*:[^/@]*@
    # The same where the password has slashes, as secret keys of S3 can; an http URL may have such a path.
    | ^(?!https?:)[^:/]+://[^/@]*:[^@]*@
    # A parameter whose name says that its value is secret: ?access_token=..., ;password=...
    | [?&;][^=&;]*(key|secret|token|password|pwd|auth|sig|credential)[^=&;]*=
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Finds credentials in a URI. ``urllib.parse`` would not do: it splits a password at its first slash, and
does not know ``;`` as a separator of parameters."""

CREDENTIALS_ADVICE = "they are taken from the environment, in the same way as the store's own tools do"
"""What to do instead of writing credentials into the URI of a store."""


def has_credentials(uri: str) -> bool:
    """Whether a URI holds a password, a key or a token.

    Example:
        >>> has_credentials("http://me:secret@host:5000"), has_credentials("http://host:5000")
        (True, False)
    """
    return CREDENTIALS_PATTERN.search(uri) is not None


def refuse_credentials(uri: str, advice: str) -> None:
    """Refuse a URI that holds a password, a key or a token: it would be shown in reports and logs.

    Args:
        uri: The URI to check.
        advice: What the user should do instead, for the message.

    Raises:
        InputError: The URI holds credentials. The message does not repeat it.
    """
    if has_credentials(uri):
        raise InputError(f"credentials in the URI would end up in reports; {advice}")


def to_path(name: str | Path) -> Path:
    """Turn a local name or a URI into a path.

    Args:
        name: A file name, in which ``~`` is the home folder, or a URI such as ``s3://bucket/folder``.

    Returns:
        A ``pathlib.Path``, or a ``UPath`` for a URI; see :mod:`ka_ray.storage.files`.

    Raises:
        InputError: A URI holds credentials or wildcards, names nothing, or has a protocol that is unknown or
            needs a package that is not installed.
    """
    text = str(name)
    if "://" not in text:
        return Path(text).expanduser()
    refuse_credentials(text, CREDENTIALS_ADVICE)
    protocol, _, place = text.partition("://")
    if re.search(r"[*?\[\]]", text):
        raise InputError(f"{text}: a URI must name one place; *, ?, [ and ] are not accepted in it")
    if not place.strip("/"):
        raise InputError(f"{text}: the URI names no place; give a bucket or folder after {protocol}://")
    _check_protocol(protocol)
    from upath import UPath

    # Without fsspec's cache of listings: other processes write files, too, and they must be seen at once.
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def _check_protocol(protocol: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        # For protocols without an extra of this package, fsspec's own message names the package.
        install = f"pip install 'ka_ray[{extra}]'" if extra else str(error)
        raise InputError(f"{protocol}:// needs a package that is not installed: {install}") from None
    except ValueError:
        raise InputError(f"{protocol}:// is not a protocol that fsspec knows") from None
