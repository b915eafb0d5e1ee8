"""Test the folders of the students of a comparison: all file systems take their names, each is another."""

import json

from ka_ray.runs.variants import MAX_FOLDER_BYTES, expand_variants, name_folders
from ka_ray.student.families import find_family

LONGEST_NAME_BYTES = 255


def test_the_widths_of_all_taps_of_vgg19_fit_into_the_name_of_a_folder(tmp_path):
    taps = [layer.name for layer in find_family("vgg19_bn", {})[:-1]]
    assert len(taps) == 18
    widths = [json.dumps(dict.fromkeys(taps, width)) for width in (16, 32)]
    variants = expand_variants(["direct"], [f"codes.widths={','.join(widths)}"])
    assert all(len(label) > LONGEST_NAME_BYTES for label in variants)
    names = name_folders(list(variants))
    assert len({*names.values()}) == 2
    for name in names.values():
        (tmp_path / name / "seed_0").mkdir(parents=True)


def test_short_labels_keep_the_names_that_finished_comparisons_have():
    labels = ["direct", "direct codes.widths.conv1=4", "start+joint joint.loss=kl"]
    expected = ["direct", "direct_codes.widths.conv1=4", "start_joint_joint.loss=kl"]
    assert list(name_folders(labels).values()) == expected


def test_labels_that_differ_only_in_other_characters_have_folders_of_their_own():
    names = name_folders(["direct a=1/2", "direct a=1 2", "direct a=3"])
    assert len({*names.values()}) == 3
    assert names["direct a=3"] == "direct_a=3"
    assert all("/" not in name for name in names.values())


def test_the_limit_counts_bytes_and_not_letters():
    names = name_folders([letter * 90 for letter in ("a", "\u00e9", "\u4e00")])
    assert names["a" * 90] == "a" * 90
    assert all(len(name.encode()) <= MAX_FOLDER_BYTES + 13 for name in names.values())
