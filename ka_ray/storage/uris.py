"""Turn local file names and URIs into paths, and refuse URIs that cannot work or that hold credentials."""

import re
from pathlib import Path
from typing import cast

from ka_ray.errors import InputError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""URI protocol -> the extra of this package that installs its fsspec file system."""

OBJECT_STORES = {*EXTRAS, "az", "abfs", "abfss", "adl", "oci", "memory"}
"""URI protocols of object stores: they have no folders, and an upload is atomic, even if it replaces an
object."""

CREDENTIALS_PATTERN = re.compile(
    r"""
    # A user name or token before the host: https://token@host. In Azure's protocols, a container is there.
    ^(?!abfss?:|wasbs?:)[^:/]+://[^/@]*@
    # A user name and a password, with any protocol.
    | ://[^/@]*:[^/@]*@
    # The same if the password has slashes, as secret keys of S3 may. Not for http: a URL's path may look so.
    | ^(?!https?:)[^:/]+://[^/@]*:[^@]*@
    # A parameter whose name says that its value is secret: ?access_token=..., ;password=...
    | [?&;][^=&;]*(key|secret|token|password|pwd|auth|sig|credential)[^=&;]*=
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Finds credentials in a URI. ``urllib.parse`` is not enough: it cuts a password at its first slash, and it
does not split parameters at ``;``."""

CREDENTIALS_ADVICE = "set them in the environment, as for the storage provider's own tools"
"""What to do instead of writing credentials into the URI of a store."""


def has_credentials(uri: str) -> bool:
    """Return whether a URI holds a password, a key or a token.

    Example:
        >>> has_credentials("http://me:secret@host:5000"), has_credentials("http://host:5000")
        (True, False)
    """
    return CREDENTIALS_PATTERN.search(uri) is not None


def refuse_credentials(uri: str, advice: str) -> None:
    """Refuse a URI that holds a password, a key or a token, because reports and logs would show it.

    Args:
        uri: The URI to check.
        advice: What the user should do instead; the end of the error message.

    Raises:
        InputError: The URI holds credentials. The message does not show the URI.
    """
    if has_credentials(uri):
        raise InputError(f"credentials in the URI would be shown in reports and logs; {advice}")


def to_path(name: str | Path) -> Path:
    """Turn a local name or a URI into a path.

    Args:
        name: A local file name (``~`` is the home folder), or a URI such as ``s3://bucket/folder``.

    Returns:
        A ``pathlib.Path``, or a ``UPath`` for a URI; see :mod:`ka_ray.storage.files`.

    Raises:
        InputError: A URI holds credentials or wildcards, has nothing after its protocol, or has a protocol
            that is unknown or needs a package that is not installed; or a local name is no path.
    """
    text = str(name)
    if "\0" in text:
        raise InputError(f"{text!r} is no path: it holds a null character")
    if "://" not in text:
        try:
            return Path(text).expanduser()
        except RuntimeError as error:  # the home folder of a user that does not exist
            raise InputError(f"{text}: {error}") from None
    refuse_credentials(text, CREDENTIALS_ADVICE)
    protocol, _, place = text.partition("://")
    if re.search(r"[*?\[\]]", text):
        raise InputError(f"{text}: a URI must name one file or folder, without the wildcards *, ?, [ and ]")
    if not place.strip("/"):
        raise InputError(f"{text}: the URI is incomplete; write a bucket or folder after {protocol}://")
    _check_protocol(protocol)
    from upath import UPath

    # No cache of folder listings: this process must see at once which files other processes have written.
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def _check_protocol(protocol: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        # If this package has no extra for the protocol, fsspec's message says which package to install.
        install = f"pip install 'ka_ray[{extra}]'" if extra else str(error)
        raise InputError(f"{protocol}:// needs a package that is not installed: {install}") from None
    except ValueError:
        raise InputError(f"{protocol}:// is not a protocol that fsspec knows") from None
