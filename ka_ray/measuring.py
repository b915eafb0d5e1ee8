"""`ka-ray spectrum`: what codes of every width could keep, before any is learned."""

from ka_ray.config import Config
from ka_ray.figures import draw_spectrum
from ka_ray.output import claim_output
from ka_ray.passes import measure_taps
from ka_ray.plan import make_plan
from ka_ray.run import open_run
from ka_ray.spectrum import Spectrum
from ka_ray.split import split_images
from ka_ray.steps import teach_missing
from ka_ray.teachers import draft_teacher

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
    plan = make_plan(config, [draft_teacher(teacher) for teacher in config.teachers])
    learned_from, _ = split_images(config)
    folder = claim_output(config)
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
