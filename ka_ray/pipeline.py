"""The mission, top-down: from images and teachers to one student, its report and its figures."""

from ka_ray.config import Config, flatten
from ka_ray.display import Display
from ka_ray.distributed.cluster import check_fits, connect
from ka_ray.output import claim_output, known_run, remember_run
from ka_ray.plan import make_plan
from ka_ray.report import Report
from ka_ray.run import Run
from ka_ray.split import split_images
from ka_ray.steps import evaluate_student, extract, learn, publish, teach_missing
from ka_ray.teachers import draft_teacher
from ka_ray.tracking import open_tracker


def amalgamate(config: Config) -> Report:
    """Merge the teachers into one student.

    Every stage leaves its result in the output folder; called again with the same config, the run goes on
    after the last stage that stands.

    Args:
        config: The whole run; see ``jobs/configs/folder.yaml`` for a commented one.

    Returns:
        What came out; also in the output folder as ``report.json`` and ``report.md``.

    Raises:
        InputError: Something given cannot work; raised before the first image is read where that is possible.
    """
    plan = make_plan(config, [draft_teacher(teacher) for teacher in config.teachers])
    learned_from, judged_on = split_images(config)
    folder = claim_output(config)
    with (
        Display() as display,
        connect(config.ray) as cluster,
        open_tracker(config.tracking, config.name, folder, known_run(folder)) as tracker,
    ):
        check_fits(config, cluster)
        remember_run(folder, tracker.run_id)
        tracker.log_params(flatten(config))
        run = Run(config, folder, cluster, tracker, display)
        taught = teach_missing(run, learned_from)  # teachers without a checkpoint
        extract(taught, plan, learned_from)  # images -> stacked features and scores, on disk
        learn(taught, plan)  # codes, layers, joint: one group of workers
        counts = evaluate_student(taught, plan, judged_on)
        return publish(taught, plan, counts)
