"""`ka-ray spectrum`: measure how much variance codes of every width can keep, before any code is learned."""

from ka_ray.config import Config, with_overrides
from ka_ray.reports.figures import draw_spectrum
from ka_ray.reports.spectrum import Spectrum
from ka_ray.runs.figures import draw_or_notify
from ka_ray.runs.setup import plan_run, start_run
from ka_ray.runs.statistics import measure_spectrum_of_taps

SPECTRUM_RUN = "mlflow_spectrum.json"
"""The file in the output folder with the id of the MLflow run of `ka-ray spectrum`."""


def measure_spectrum(config: Config) -> Spectrum:
    """Measure the least error that codes of every width can have, in one pass over ``extract.images`` images.

    Args:
        config: The run that the codes are for. A later ``amalgamate`` in the same output folder reuses the
            pass if ``codes.widths`` is a share of the variance.

    Returns:
        The spectrum of every tap; the output folder also holds ``spectrum.json``, ``spectrum.md`` and a
        figure.

    Raises:
        InputError: Something in the config cannot work.
    """
    # Codes are what a student that starts from random weights learns.
    config = with_overrides(config, ["student.start=random", "baseline=null"])
    with start_run(plan_run(config), "_spectrum", SPECTRUM_RUN) as run:
        spectrum = measure_spectrum_of_taps(run)
        spectrum.save(run.folder)
        folder = run.folder / "figures"
        figures = draw_or_notify(lambda: draw_spectrum(spectrum.model_dump(), folder), folder, run.warn)
        for path in (run.folder / "spectrum.json", run.folder / "spectrum.md", *figures):
            run.tracker.log_artifact(path)
        lost = {
            f"spectrum/lost_{name}": tap.relative_errors[tap.width] for name, tap in spectrum.taps.items()
        }
        run.tracker.log_metrics(lost | {"spectrum/seconds": spectrum.seconds})
        return spectrum
