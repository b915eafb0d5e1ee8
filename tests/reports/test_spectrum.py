"""Test the widths and the table of a spectrum against known errors."""

import json

import pytest

from ka_ray.reports.spectrum import Spectrum, TapSpectrum


def make_tap_spectrum(max_width: int = 3) -> TapSpectrum:
    return TapSpectrum(stacked=3, width=1, max_width=max_width, relative_errors=[1.0, 0.3, 0.01, 0.0])


@pytest.mark.parametrize(
    ("energy", "width"), [(0.5, 1), (0.7, 1), (0.71, 2), (0.99, 2), (0.995, 3), (1.0, 3)]
)
def test_width_for_energy_is_the_smallest_width_that_keeps_the_energy(energy, width):
    assert make_tap_spectrum().width_for_energy(energy) == width
    assert make_tap_spectrum(max_width=2).width_for_energy(energy) == min(width, 2)


def test_markdown_and_json_show_the_same_spectrum(tmp_path):
    spectrum = Spectrum(
        name="run", images=1200, positions_per_image=16, seconds=1.5, taps={"conv1": make_tap_spectrum()}
    )
    assert spectrum.widths(0.99) == {"conv1": 2}
    spectrum.save(tmp_path)
    assert Spectrum.model_validate(json.loads((tmp_path / "spectrum.json").read_text())) == spectrum
    text = (tmp_path / "spectrum.md").read_text()
    assert "| conv1 | 3 | 1 | 0.3 | 2 | 2 | 3 |" in text
    assert "1,200 images" in text
