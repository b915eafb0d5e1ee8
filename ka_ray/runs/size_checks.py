"""Notice teachers of one network that get images of different sizes: one of them may be a wrong guess."""

from collections.abc import Iterator, Sequence

from ka_ray.config import TeacherConfig


def compare_sizes(teachers: Sequence[TeacherConfig]) -> Iterator[str]:
    """Yield which teachers of one network get images of different sizes.

    A file often does not say the size that its network was fine-tuned at. Then it is that of the published
    weights, while people fine-tune at others.

    Args:
        teachers: The teachers, described key by key.
    """
    by_network: dict[str, dict[str, int]] = {}
    for teacher in teachers:
        size = teacher.preprocessing.crop or teacher.preprocessing.size
        if size is not None:
            by_network.setdefault(teacher.network, {})[teacher.name] = size
    for network, sizes in by_network.items():
        if len({*sizes.values()}) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            yield (
                f"teachers of one network, {network}, get images of different sizes in pixels: "
                f"{listed}; a teacher sees worse at a size that it was not trained at; if one is wrong, set "
                "teachers.NAME.preprocessing.size and .crop"
            )
