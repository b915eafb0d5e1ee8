"""How much of the stacked features codes of every width can keep."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ka_ray.reports.markdown import table
from ka_ray.storage.files import write_json, write_text

ENERGIES = (0.9, 0.99, 0.999)
"""Shares of the variance for which the table names the widths."""


class TapSpectrum(BaseModel):
    """One tap: ``relative_errors[C]`` is the least share of the variance that a code of width C loses.

    ``stacked`` channels, of which the student as configured keeps ``width``; no code is wider than ``most``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stacked: int
    width: int
    max_width: int
    relative_errors: list[float]

    def width_for_energy(self, energy: float) -> int:
        """Find the least width that keeps this share of the variance, or the widest there is.

        Args:
            energy: In (0, 1].

        Example:
            >>> tap = TapSpectrum(stacked=3, width=2, max_width=3, relative_errors=[1.0, 0.3, 0.01, 0.0])
            >>> tap.width_for_energy(0.5), tap.width_for_energy(0.99), tap.width_for_energy(0.995)
            (1, 2, 3)
        """
        enough = (c for c, lost in enumerate(self.relative_errors) if c and lost <= 1 - energy + 1e-12)
        return min(next(enough, self.stacked), self.max_width)


class Spectrum(BaseModel):
    """All taps, from the sums over one pass of images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    images: int
    positions_per_image: int
    seconds: float
    taps: dict[str, TapSpectrum]

    def widths(self, energy: float) -> dict[str, int]:
        """Give every tap's :meth:`TapSpectrum.width_for_energy`."""
        return {name: tap.width_for_energy(energy) for name, tap in self.taps.items()}

    def save(self, folder: Path) -> None:
        """Write ``spectrum.json`` and ``spectrum.md`` into a folder."""
        write_json(folder / "spectrum.json", self.model_dump(mode="json"))
        write_text(folder / "spectrum.md", self.to_markdown())

    def to_markdown(self) -> str:
        """Write the table for people."""
        energies = [f"width for {energy:.1%}".replace(".0%", "%") for energy in ENERGIES]
        header = ("tap", "stacked", "student's width", "least possible loss there", *energies)
        rows = [(name, *_cells(tap)) for name, tap in self.taps.items()]
        return (
            f"# {self.name}: what codes can keep\n\n{table(header, rows)}\n\n"
            f"Loss: share of the variance of the stacked features of {self.images:,} images, at most "
            f"{self.positions_per_image} positions of each map. A pass of {self.seconds:.1f} s.\n"
        )


def _cells(tap: TapSpectrum) -> tuple[str, ...]:
    widths = (str(tap.width_for_energy(energy)) for energy in ENERGIES)
    return str(tap.stacked), str(tap.width), f"{tap.relative_errors[tap.width]:.3g}", *widths
