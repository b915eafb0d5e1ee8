"""Test that widths by a share of the variance are the numbers of principal components that hold it."""

import numpy as np
import pytest
import torch
from test_block_solver import build_resnet, make_images, make_preprocess, make_strangers
from test_resized_exact import resized

from ka_ray.errors import InputError
from ka_ray.student.stacked_networks import StackedNetworks
from ka_ray.student.width_spectra import GroupSpectrum, measure_group_spectra


def stack(teachers, student) -> StackedNetworks:
    example = make_preprocess()(make_images(2))
    with torch.no_grad():
        return StackedNetworks(student.eval(), {t.name: t.network for t in teachers}, example)


def record_inputs(network, path: str, images: torch.Tensor) -> np.ndarray:
    """Return the input of a module as rows `[n, C]`, in float64."""
    rows = []
    handle = network.get_submodule(path).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].clone())
    )
    with torch.no_grad():
        network(images)
    handle.remove()
    return rows[0].movedim(1, -1).flatten(0, -2).double().numpy()


def test_the_spectrum_is_that_of_the_covariance_in_float64(randomised, monkeypatch):
    monkeypatch.setattr("ka_ray.student.width_spectra.POSITIONS_PER_IMAGE", 10**6)
    teachers, images = make_strangers(build_resnet, randomised), make_preprocess()(make_images(60))
    networks = stack(teachers, build_resnet(5))
    spectra = measure_group_spectra(networks, [[part, part] for part in images.split(25)])
    # The inner channels of the second block: the input of the activation in the middle of its body.
    stacked = np.concatenate([record_inputs(t.network, "3.body.1", images) for t in teachers], axis=1)
    variances = np.linalg.eigvalsh(np.cov(stacked.T))[::-1]
    index = next(
        index
        for index, group in enumerate(networks.groups)
        if any(place.name == "3.body.0.0.weight" and place.axis == 0 for place in group.weights)
    )
    expected = variances / variances.sum()
    np.testing.assert_allclose(spectra[index].variances.numpy(), expected, rtol=1e-4, atol=1e-7)
    for share in (0.5, 0.9, 0.99):
        assert spectra[index].count_components(share) == 1 + int((expected.cumsum() < share).sum())


def test_the_places_of_a_stream_count_alike(randomised):
    teachers, images = make_strangers(build_resnet, randomised), make_preprocess()(make_images(60))
    networks = stack(teachers, build_resnet(5))
    spectra = measure_group_spectra(networks, [[images, images]])
    assert all(float(spectrum.variances.sum()) == pytest.approx(1) for spectrum in spectra.values())
    # Eight channels a teacher; the last block adds to the stream, so that it is measured twice.
    assert {len(spectrum.variances) for spectrum in spectra.values()} == {8, 16}


def test_other_widths_of_the_student_change_nothing(randomised):
    teachers, images = make_strangers(build_resnet, randomised), make_preprocess()(make_images(20))
    found = [
        measure_group_spectra(stack(teachers, resized(build_resnet(5), factor)), [[images, images]])
        for factor in (0.5, 1)
    ]
    for index, spectrum in found[0].items():
        assert torch.equal(spectrum.variances, found[1][index].variances)


def test_all_of_the_variance_takes_only_components_that_have_some():
    spectrum = GroupSpectrum(torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64))
    assert [spectrum.count_components(share) for share in (0.5, 0.6, 0.9, 0.91, 1)] == [1, 1, 2, 3, 3]


def test_no_images_and_constant_features_are_refused(randomised):
    teachers, images = make_strangers(build_resnet, randomised), make_preprocess()(make_images(20))
    networks = stack(teachers, build_resnet(5))
    with pytest.raises(InputError, match="there are no images; give more images"):
        measure_group_spectra(networks, [])
    convs = [m for t in teachers for m in t.network.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in convs:
        torch.nn.init.zeros_(conv.weight)
    with pytest.raises(InputError, match=r"student\.widths\.energy: the teachers' features at"):
        measure_group_spectra(networks, [[images, images]])
