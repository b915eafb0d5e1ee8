"""Test that a run does not execute a function that only a file in its output folder names."""

from dataclasses import asdict, replace

import pytest

from ka_ray.errors import InputError
from ka_ray.runs.steps import refuse_other_function
from ka_ray.stages.inputs import epoch_students_folder
from ka_ray.stages.start import start_student_folder
from ka_ray.storage.files import write_json
from ka_ray.student import Student, StudentSpec, save_student


@pytest.fixture
def spec(make_spec) -> StudentSpec:
    return make_spec("plain", {"conv1": 4}, widths=[4])


@pytest.mark.parametrize("place", ["student", "start", "epoch"])
def test_a_student_of_another_function_is_refused(spec, tmp_path, place):
    places = {"student": tmp_path, "start": start_student_folder(tmp_path)}
    folder = places.get(place, epoch_students_folder(tmp_path) / "003")
    save_student(Student(spec), folder)
    refuse_other_function(tmp_path, spec)
    other = replace(spec, network="pip:main", arguments={})
    save_spec(other, folder)
    with pytest.raises(InputError, match=r"student\.json: .*'pip:main', which the config .* does not name"):
        refuse_other_function(tmp_path, spec)
    refuse_other_function(tmp_path, replace(spec, network="pip:main"))  # the config itself names it


def test_a_folder_without_a_student_is_not_refused(spec, tmp_path):
    refuse_other_function(tmp_path / "nowhere", spec)


def save_spec(spec, folder):
    write_json(folder / "student.json", asdict(spec) | {"classes": spec.classes})
