"""A file that a machine could not read is read again by another pass, and its error reaches the user."""

import pytest
from ray.exceptions import RayTaskError

from ka_ray.distributed.failures import lost, unwrap
from ka_ray.errors import ClusterError, InputError, ReadError

WORDS = "/mnt/a.png cannot be read, after 3 attempts: the network file system has lost it"


@pytest.mark.parametrize(
    "error",
    [
        ReadError(WORDS),
        RayTaskError("read", "Traceback ...", ReadError(WORDS)),
        RuntimeError(f"Traceback ...\nka_ray.errors.ReadError: {WORDS}"),  # passed on twice, it is only text
    ],
)
def test_another_pass_is_tried_and_the_words_are_kept(error: Exception) -> None:
    assert lost(error)
    told = unwrap(error)
    assert type(told) is ReadError
    assert str(told) == WORDS
    assert isinstance(told, ClusterError)


def test_missing_permissions_are_not_tried_on_another_node() -> None:
    assert not lost(InputError("/mnt/a.png cannot be read: permission denied"))
