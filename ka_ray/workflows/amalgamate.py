"""`ka-ray run`: merge teachers into one student, and write its report and its figures."""

from ka_ray.config import Config
from ka_ray.reports.report import Report
from ka_ray.runs.context import Run
from ka_ray.runs.evaluation import evaluate_student
from ka_ray.runs.gates import learn_gates, with_gate
from ka_ray.runs.publish import publish
from ka_ray.runs.setup import plan_run, start_run
from ka_ray.runs.statistics import resolve_widths
from ka_ray.runs.steps import StudentJob, extract, learn
from ka_ray.runs.student_widths import resolve_student_widths


def amalgamate(config: Config) -> Report:
    """Merge the teachers into one student.

    Every stage writes its result into the output folder. Called again with the same config, the run resumes
    after the last stage that has finished.

    Args:
        config: The whole run; ``jobs/configs/folder.yaml`` explains every key.

    Returns:
        The report of the run; the output folder also holds it as ``report.json``, ``report.html`` and
        ``report.md``.

    Raises:
        InputError: Something in the config cannot work; raised before the first image is read where possible.
    """
    # Planning finds out what the teachers are, lists the images and checks the config. Starting prepares the
    # output folder, opens the tracker and trains missing teachers.
    with start_run(plan_run(config, students=[()])) as run:
        return learn_student(run)


def learn_student(run: Run) -> Report:
    """Merge the teachers of a run that has started; see :func:`amalgamate`.

    Args:
        run: The run.
    """
    run = resolve_widths(run)  # measures widths that are given as a share of the variance
    embeddings = extract(run, [run.config])  # stores stacked features and scores on disk
    gates = learn_gates(run, [run.config], embeddings)  # which teacher's scores count for an image
    run = resolve_student_widths(with_gate(run, gates))
    learn(run, [StudentJob("", run.config, run.plan, run.folder)])  # the stages codes, layers, joint
    evaluated = evaluate_student(run, gates)
    return publish(run, evaluated, gates.describe(run.config.scores.gate))
