"""The `ka-ray` command.

Torch, Ray and MLflow take seconds to import, so each command imports what it needs itself, and
`ka-ray --help` answers at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ka_ray import __version__, cli_models, cli_student
from ka_ray.cli_models import Overrides
from ka_ray.errors import InputError, run_with_exit_code
from ka_ray.terminal import summary
from ka_ray.terminal.options import Debug, Json, Quiet, refuse_quiet_and_json, with_shared_options
from ka_ray.terminal.results import describe_teacher, print_result, print_table
from ka_ray.verbosity import Verbosity, choose_verbosity, verbosity_of_command

app = typer.Typer(
    help="Merge trained image classifiers into one network, without labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[
    str, typer.Argument(help="YAML file that describes the run; jobs/configs/folder.yaml explains every key.")
]
Output = Annotated[str | None, typer.Option(help="Output folder or URI; by default the config's `output`.")]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated: direct, incremental, common_features, start, start+layers, start+joint, "
        "start+layers+joint, distill, scratch, ensemble."
    ),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=V1,V2", help="Run every method with each value, e.g. scores.rule=mean,max."),
]
Extend = Annotated[
    str | None, typer.Option(help="Output folder of a finished run, whose teachers this run extends by more.")
]


def print_version(wanted: bool) -> None:
    """Print the version and exit, if ``--version`` is given."""
    if wanted:
        typer.echo(f"ka-ray {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Declare the options that `ka-ray` takes before a command."""
    choose_verbosity(quiet, as_json, debug)


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function a command of `ka-ray`, with the options that every command takes."""
    app.command()(with_shared_options(function))
    return function


for of_models in (cli_models.inspect, cli_models.init, cli_models.merge):
    command(of_models)


@command
def demo(output: Output = "runs/demo", overrides: Overrides = None) -> None:
    """Train two small teachers of handwritten digits and merge them; takes about a minute."""
    from ka_ray import Config
    from ka_ray.workflows.demo import demo_config, save_samples

    config = Config.load(demo_config(), with_output(overrides, output))
    from ka_ray import amalgamate  # here, so that a wrong override is refused before torch and Ray are loaded

    report = amalgamate(config)
    samples = save_samples(config.evaluation.images or config.images, config.output_dir / "samples")
    summary.show_report(report, config.output_dir, samples)


@command
def run(
    config: ConfigPath, overrides: Overrides = None, output: Output = None, extend: Extend = None
) -> None:
    """Merge teachers into one student."""
    from ka_ray import Config

    extended = [f"extend={extend}"] if extend is not None else []
    loaded = Config.load(config, [*with_output(overrides, output), *extended])
    from ka_ray import amalgamate  # here, as in all commands: a wrong config is refused before it is loaded

    summary.show_report(amalgamate(loaded), loaded.output_dir)


@command
def compare(
    config: ConfigPath,
    methods: Methods = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds per method.")] = 1,
    vary: Vary = None,
    overrides: Overrides = None,
    output: Output = None,
) -> None:
    """Compare methods that produce the student, with the same teachers, images, budget and seeds."""
    from ka_ray import Config
    from ka_ray.runs.variants import check_variants

    loaded = Config.load(config, with_output(overrides, output))
    named = [] if methods is None else methods.split(",")
    check_variants(loaded, named, vary or [])
    from ka_ray import compare as compare_methods

    print_table(compare_methods(loaded, named, seeds, vary or []), loaded.output_dir, "compare")


@command
def spectrum(config: ConfigPath, overrides: Overrides = None, output: Output = None) -> None:
    """Show how much of the teachers' features a code of each width can keep, before anything is trained."""
    from ka_ray import Config

    loaded = Config.load(config, with_output(overrides, output))
    from ka_ray import measure_spectrum

    print_table(measure_spectrum(loaded), loaded.output_dir, "spectrum")


@command
def tune(config: ConfigPath, overrides: Overrides = None, output: Output = None) -> None:
    """Search for the widths with the best trade-off between agreement with the teachers and cost."""
    from ka_ray import Config

    loaded = Config.load(config, with_output(overrides, output))
    from ka_ray import search_widths

    result = search_widths(loaded)
    best = loaded.output_dir / "best.yaml"
    print_table(
        result,
        loaded.output_dir,
        "tune",
        **({} if result.chosen is None else {"next": summary.next_command(best)}),
    )


@command
def teach(config: ConfigPath, overrides: Overrides = None, output: Output = None) -> None:
    """Train one teacher on the labelled images of its classes."""
    from ka_ray import TeachConfig

    loaded = TeachConfig.load(config, with_output(overrides, output))
    from ka_ray import teach as teach_one

    result = teach_one(loaded)
    text = describe_teacher(result.teacher, result.accuracy, result.images, sum(result.left_out.values()))
    print_result(text, result.model_dump(mode="json"), {"checkpoint": result.checkpoint})


@command
def submit(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file on this machine that describes the run.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Job server of the cluster, http://HOST:8265; by default RAY_ADDRESS.")
    ] = None,
    verb: Annotated[str, typer.Option(help="Command to run: run, tune, spectrum, compare or teach.")] = "run",
    overrides: Overrides = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Output folder that all nodes can access, or a URI; by default the config's `output`."
        ),
    ] = None,
    extend: Extend = None,
    methods: Methods = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Same as in `compare`.")] = None,
    vary: Vary = None,
    wait: Annotated[
        bool, typer.Option(help="Follow the job to its end; otherwise return as soon as it is sent.")
    ] = True,
    follow: Annotated[
        str | None, typer.Option(metavar="JOB", help="Follow a job that was sent before.")
    ] = None,
) -> None:
    """Run a command on a remote cluster as a Ray job: check the config, send the files, show the log."""
    from ka_ray.submission import submit as submission

    refuse_quiet_and_json("submit shows the log of the job as it is")
    if (config is None) == (follow is None):
        raise InputError("give either a CONFIG to send, or --follow JOB to follow a job that was sent before")
    if config is None:
        raise typer.Exit(submission.follow(follow or "", address))
    options = {"extend": extend, "methods": methods, "seeds": seeds, "vary": vary}
    request = submission.JobRequest(verb, config, overrides or [], output, options)
    raise typer.Exit(submission.submit(request, address, wait))


for of_student in (cli_models.browse, cli_student.evaluate, cli_student.predict, cli_student.export):
    command(of_student)


@command
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="Also check the servers and the output folder of this config.")
    ] = None,
    overrides: Overrides = None,
    output: Output = None,
) -> None:
    """Check this machine, its GPUs, Ray and MLflow, and say how to mend what is wrong."""
    from ka_ray.workflows.doctor import diagnose, read_config, show_findings

    loaded = None if config is None else read_config(config, with_output(overrides, output))
    raise typer.Exit(show_findings(diagnose(loaded)))


def with_output(overrides: list[str] | None, output: str | None) -> list[str]:
    """Add `--output` to the overrides of the config.

    Args:
        overrides: The values of `--set`; None if there are none.
        output: The value of `--output`; None if it is not given.
    """
    return [*(overrides or []), *([f"output={output}"] if output is not None else [])]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error that the user can correct becomes one message and an exit code.

    Args:
        arguments: The arguments after the program's name; None means ``sys.argv[1:]``.
    """
    with verbosity_of_command(Verbosity(diverts=True)):
        code = run_with_exit_code(lambda: app(arguments, prog_name="ka-ray"))
    sys.exit(code)


if __name__ == "__main__":
    main()
