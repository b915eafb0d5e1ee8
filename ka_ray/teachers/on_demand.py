"""Teachers of a run that are loaded one at a time: all of them may need more memory than the driver has."""

from collections.abc import Callable, Sequence
from typing import overload

from ka_ray.config import TeacherConfig
from ka_ray.teachers.teacher import Teacher, load_teacher


class TeachersOnDemand(Sequence[Teacher]):
    """The teachers of a config, each of which is loaded whenever it is asked for, and kept nowhere.

    A ``for`` loop holds the teacher of the last round while it loads the next one. To hold only one, pass
    ``teachers[i]`` to a function.

    Args:
        configs: Sections of the teachers in the config.
        load: Loads one.
    """

    def __init__(
        self, configs: Sequence[TeacherConfig], load: Callable[[TeacherConfig], Teacher] = load_teacher
    ) -> None:
        self._configs, self._load = configs, load

    def __len__(self) -> int:
        return len(self._configs)

    @overload
    def __getitem__(self, index: int) -> Teacher: ...
    @overload
    def __getitem__(self, index: slice) -> "TeachersOnDemand": ...
    def __getitem__(self, index: int | slice) -> "Teacher | TeachersOnDemand":
        if isinstance(index, slice):
            return TeachersOnDemand(self._configs[index], self._load)
        return self._load(self._configs[index])
