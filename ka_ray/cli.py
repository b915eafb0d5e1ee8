"""The `ka-ray` command. Everything heavy is imported inside the commands: `ka-ray --help` answers at once."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ka_ray.errors import InputError

if TYPE_CHECKING:
    from ka_ray.report import Report

app = typer.Typer(
    help="Merge trained image classifiers into one network, without labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[
    str, typer.Argument(help="YAML run description; jobs/configs/folder.yaml explains it.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key, e.g. joint.epochs=5."),
]
Output = Annotated[str | None, typer.Option(help="Output folder or URI; default runs/NAME.")]
RunFolder = Annotated[str, typer.Argument(help="Output folder or URI of a finished run.")]


@app.command()
def demo(output: Output = "runs/demo", overrides: Overrides = None) -> None:
    """Merge two small teachers of handwritten digits, trained on the spot; about two minutes."""
    from ka_ray import Config, amalgamate
    from ka_ray.api import save_samples

    config = Config.load(demo_config(), with_output(overrides, output))
    report = amalgamate(config)
    samples = save_samples(config.evaluation.images or config.images, config.output_dir / "samples")
    show_report(report, config.output_dir, " ".join(str(sample) for sample in samples))


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    output: Output = None,
    extend: Annotated[
        str | None, typer.Option(help="Output folder of a finished run to which this one adds teachers.")
    ] = None,
) -> None:
    """Merge teachers into one student."""
    from ka_ray import Config, amalgamate

    extended = [f"extend={extend}"] if extend is not None else []
    loaded = Config.load(config, [*with_output(overrides, output), *extended])
    show_report(amalgamate(loaded), loaded.output_dir)


@app.command()
def compare(
    config: ConfigPath,
    methods: Annotated[
        str,
        typer.Option(help="Of direct, incremental, common_features, distill, scratch, ensemble; by commas."),
    ] = "direct,distill",
    seeds: Annotated[int, typer.Option(min=1, help="Students a method.")] = 1,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Each method with each value, e.g. scores.rule=mean,max."),
    ] = None,
    overrides: Overrides = None,
    output: Output = None,
) -> None:
    """Make the student in several ways, on the same teachers, images, budget and seeds."""
    from ka_ray import Config
    from ka_ray import compare as compare_methods

    loaded = Config.load(config, with_output(overrides, output))
    result = compare_methods(loaded, methods.split(","), seeds, vary or [])
    typer.echo(result.to_markdown())
    typer.echo(f"table:   {loaded.output_dir / 'compare.md'}")
    typer.echo(f"figure:  {loaded.output_dir / 'figures' / 'compare.png'}")


@app.command()
def spectrum(config: ConfigPath, overrides: Overrides = None, output: Output = None) -> None:
    """Measure what codes of every width could keep of the teachers' features, before any is learned."""
    from ka_ray import Config, measure_spectrum

    loaded = Config.load(config, with_output(overrides, output))
    typer.echo(measure_spectrum(loaded).to_markdown())
    typer.echo(f"table:   {loaded.output_dir / 'spectrum.md'}")
    typer.echo(f"figure:  {loaded.output_dir / 'figures' / 'spectrum.png'}")


@app.command()
def tune(config: ConfigPath, overrides: Overrides = None, output: Output = None) -> None:
    """Search for the widths that are worth it: agreement on held-out images against cost."""
    from ka_ray import Config, search_widths

    loaded = Config.load(config, with_output(overrides, output))
    sweep = search_widths(loaded)
    typer.echo(sweep.to_markdown())
    typer.echo(f"table:   {loaded.output_dir / 'tune.md'}")
    typer.echo(f"figure:  {loaded.output_dir / 'figures' / 'tune.png'}")
    if sweep.chosen is not None:
        typer.echo(f"next:    {program('ka-ray')} run {loaded.output_dir / 'best.yaml'}")


@app.command()
def teach(config: ConfigPath, overrides: Overrides = None, output: Output = None) -> None:
    """Train one teacher on chosen classes of a labelled source."""
    from ka_ray import TeachConfig
    from ka_ray import teach as teach_one

    result = teach_one(TeachConfig.load(config, with_output(overrides, output)))
    typer.echo(f"teacher {result['teacher']}: accuracy {percent(result['accuracy'])}")
    typer.echo(f"checkpoint: {result['checkpoint']}")


@app.command()
def evaluate(
    folder: RunFolder,
    images: Annotated[str, typer.Option(help="A folder per class, a Parquet file or folder, or `digits`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A key of the image source, e.g. label_column=label."
        ),
    ] = None,
) -> None:
    """Judge a finished student on labelled images; needs its folder alone."""
    from ka_ray.api import evaluate as evaluate_folder
    from ka_ray.api import images_for

    accuracy = evaluate_folder(folder, images_for(folder, images, overrides or []))
    typer.echo(f"union {percent(accuracy['union'])} on {accuracy['labelled']} labelled images")
    for name, pair in accuracy["per_teacher"].items():
        typer.echo(f"classes of {name}: {percent(pair['student'])}")


@app.command()
def predict(
    folder: RunFolder, images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.")]
) -> None:
    """Name the class of image files."""
    from ka_ray.api import predict as predict_images

    for prediction in predict_images(folder, images):
        typer.echo(f"{prediction.path}\t{prediction.class_name}\t{prediction.probability:.3f}")


@app.command()
def doctor() -> None:
    """Say what this machine has: Python, libraries, CPUs, GPUs, disk."""
    import platform
    from importlib.metadata import version

    import torch

    libraries = " ".join(
        f"{name}={version(name)}" for name in ("ka_ray", "ray", "torch", "torchvision", "mlflow")
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    typer.echo(f"python={platform.python_version()} {libraries}")
    typer.echo(f"cpus={os.cpu_count()} gpus={gpus or 'none'}")
    typer.echo(f"disk_free_gib={shutil.disk_usage(Path.cwd()).free / 1024**3:.1f} ({Path.cwd()})")
    typer.echo(f"ray_address={os.environ.get('RAY_ADDRESS', 'none: Ray starts on this machine')}")


def demo_config() -> Path:
    """Find the demo's config: packaged in a wheel, in `jobs/` of a checkout."""
    package = Path(__file__).parent
    places = (package / "configs" / "digits.yaml", package.parent / "jobs" / "configs" / "digits.yaml")
    return next(place for place in places if place.exists())


def with_output(overrides: list[str] | None, output: str | None) -> list[str]:
    """Turn `--output` into an override."""
    return [*(overrides or []), *([f"output={output}"] if output is not None else [])]


def percent(share: float | None) -> str:
    """Write a share for people; what was not measured is a dash.

    Example:
        >>> percent(0.9375), percent(None)
        ('93.8 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def program(name: str) -> str:
    """Write how to call an installed program from here: its name, or its path where PATH lacks it."""
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else os.path.relpath(beside)


def show_report(report: "Report", folder: Path, images: str = "IMAGE...") -> None:
    """Print what came out, and what to do with it."""
    from rich.console import Console
    from rich.table import Table

    console, accuracy = Console(soft_wrap=True), report.accuracy
    table = Table(title=f"{report.name}: {len(report.classes)} classes, {accuracy.images} images")
    for column in ("", "teachers", "student"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("all classes (ensemble, union)", percent(accuracy.ensemble), percent(accuracy.union))
    for name, pair in accuracy.per_teacher.items():
        table.add_row(f"classes of {name}", percent(pair.teacher), percent(pair.student))
    table.add_row("student says what the ensemble says", "", percent(accuracy.agreement))
    sizes: list[tuple[str, Any, Any]] = [
        (key, getattr(report.size.teachers, key), getattr(report.size.student, key))
        for key in ("parameters", "macs", "bytes")
    ]
    for key, teachers, student in sizes:
        table.add_row(key, f"{teachers:,}", f"{student:,}")
    console.print(table)
    if accuracy.union is None:
        console.print("The images have no labels: agreement is all that can be said.")
    console.print(f"report:  {folder / 'report.md'}")
    for figure in sorted((folder / "figures").glob("*.png")):
        console.print(f"figure:  {figure}")
    if report.mlflow.tracking_uri is not None:
        uri = shlex.quote(report.mlflow.tracking_uri)
        console.print(f"browse:  {program('mlflow')} ui --backend-store-uri {uri}")
    console.print(f"try:     {program('ka-ray')} predict {folder} {images}")


def main() -> None:
    """Run the command line; what the user can mend is one clear message and exit code 2."""
    try:
        app()
    except (InputError, FloatingPointError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
