"""`ka-ray spectrum`: what codes of every width could keep, before any is learned."""

from ka_ray.config import Config
from ka_ray.images.split import split_images
from ka_ray.reports.figures import draw_spectrum
from ka_ray.reports.spectrum import Spectrum
from ka_ray.runs.context import open_run
from ka_ray.runs.output_folder import prepare_output_dir
from ka_ray.runs.statistics import measure_taps
from ka_ray.runs.steps import teach_missing
from ka_ray.student.plan import make_plan
from ka_ray.teachers import build_teacher

SPECTRUM_RUN = "mlflow_spectrum.json"


def measure_spectrum(config: Config) -> Spectrum:
    """Measure, in one pass over ``extract.images`` images, the least error of a code of every width.

    Args:
        config: The run that it is for; a later ``amalgamate`` in the same output folder uses the pass again
            where ``codes.widths`` is a share of the variance.

    Returns:
        The spectrum of every tap; also in the output folder: ``spectrum.json``, ``spectrum.md`` and a figure.

    Raises:
        InputError: Something given cannot work.
    """
    plan = make_plan(config, [build_teacher(teacher) for teacher in config.teachers])
    learned_from, _ = split_images(config)
    folder = prepare_output_dir(config)
    with open_run(config, folder, f"{config.name}_spectrum", SPECTRUM_RUN) as run:
        taught = teach_missing(run, learned_from)
        spectrum = measure_taps(taught, plan, learned_from)
        spectrum.save(folder)
        figures = draw_spectrum(spectrum.model_dump(), folder / "figures")
        for path in (folder / "spectrum.json", folder / "spectrum.md", *figures):
            run.tracker.log_artifact(path)
        lost = {
            f"spectrum/lost_{name}": tap.relative_errors[tap.width] for name, tap in spectrum.taps.items()
        }
        run.tracker.log_metrics(lost | {"spectrum/seconds": spectrum.seconds})
        return spectrum
