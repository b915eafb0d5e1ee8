"""The result of `ka-ray spectrum`: how much of the stacked features a code of each width can keep."""

from pathlib import Path

from ka_ray.reports.choices import ReportSection
from ka_ray.reports.tables import format_table
from ka_ray.storage.files import write_json, write_text

ENERGIES = (0.9, 0.99, 0.999)
"""Shares of the variance for which the table lists the smallest width that keeps them."""


class TapSpectrum(ReportSection):
    """The spectrum of one tap."""

    stacked: int
    """Number of stacked channels, which is the sum over the teachers."""
    width: int
    """Number of channels that the student keeps with the current config."""
    max_width: int
    """Largest width that a code may have with the current method."""
    relative_errors: list[float]
    """At index C the lowest share of the variance that a code of width C can lose, for C = 0 ... stacked."""

    def width_for_energy(self, energy: float) -> int:
        """Return the smallest width that keeps a share of the variance, at most ``max_width``.

        Args:
            energy: The share of the variance to keep, in (0, 1].

        Example:
            >>> tap = TapSpectrum(stacked=3, width=2, max_width=3, relative_errors=[1.0, 0.3, 0.01, 0.0])
            >>> tap.width_for_energy(0.5), tap.width_for_energy(0.99), tap.width_for_energy(0.995)
            (1, 2, 3)
        """
        # 1e-12 absorbs rounding: 1 - 0.99 is slightly less than 0.01.
        enough = (c for c, lost in enumerate(self.relative_errors) if c and lost <= 1 - energy + 1e-12)
        return min(next(enough, self.stacked), self.max_width)


class Spectrum(ReportSection):
    """The spectra of all taps, computed from one pass over the images."""

    name: str
    """Name of the run, from the config."""
    images: int
    """Number of images in the pass."""
    positions_per_image: int
    """Maximum number of positions that were sampled from each feature map."""
    seconds: float
    """Duration of the pass, in seconds."""
    taps: dict[str, TapSpectrum]
    """Tap -> its spectrum."""

    def widths(self, energy: float) -> dict[str, int]:
        """Return the smallest width per tap that keeps a share ``energy`` of the variance, in (0, 1]."""
        return {name: tap.width_for_energy(energy) for name, tap in self.taps.items()}

    def save(self, folder: Path) -> None:
        """Write ``spectrum.json`` and ``spectrum.md`` into a folder."""
        write_json(folder / "spectrum.json", self.model_dump(mode="json"))
        write_text(folder / "spectrum.md", self.to_markdown())

    def to_markdown(self) -> str:
        """Return the table as Markdown, for people."""
        energies = [f"width to keep {energy:.1%}".replace(".0%", "%") for energy in ENERGIES]
        header = ("tap", "stacked channels", "student's width", "lowest loss at that width", *energies)
        rows = [(name, *_format_cells(tap)) for name, tap in self.taps.items()]
        return (
            f"# {self.name}: lowest possible loss of the codes\n\n{format_table(header, rows)}\n\n"
            f"The loss is the share of the variance of the stacked features that a code cannot keep. It was "
            f"measured in one pass of {self.seconds:.1f} s over {self.images:,} images, at up to "
            f"{self.positions_per_image} positions per feature map.\n"
        )


def _format_cells(tap: TapSpectrum) -> tuple[str, ...]:
    widths = (str(tap.width_for_energy(energy)) for energy in ENERGIES)
    return str(tap.stacked), str(tap.width), f"{tap.relative_errors[tap.width]:.3g}", *widths
