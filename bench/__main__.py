"""`python -m bench [NAME…]`: measure, keep every sample in bench/out/, print tables of them."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from pathlib import Path

import click

from bench.samples import BenchSetup, Measurement, NotMeasuredError, ResultsFile, WrongError, load
from bench.tables import report, verdicts

MODULES = (
    "rank_killed",
    "torch_gloo",
    "node_off",
    "torch_cuda",
    "torchtitan",
    "many_nodes",
    "help_text",
    "diagnose",
    "health_checks",
    "demo",
    "step_costs",
)


def measurements() -> dict[str, Measurement]:
    found = [importlib.import_module(f"bench.{module}").MEASUREMENT for module in MODULES]
    return {measurement.name: measurement for measurement in found}


def say(text: str) -> None:
    click.secho(f"{time.strftime('%H:%M:%S', time.localtime())} {text}", err=True)


def python_of(variable: str) -> Path | None:
    text = os.environ.get(variable, "")
    if text and not os.access(text, os.X_OK):
        raise click.UsageError(f"{variable}={text}: not an interpreter")
    return Path(text).absolute() if text else None


def measure(book: ResultsFile, measurement: Measurement, setup: BenchSetup) -> bool:
    """All samples of one measurement; False where it broke or is not what it is called."""
    say(f"{measurement.name}: {measurement.about}")
    book.begin(measurement)
    try:
        for sample in measurement.run(setup):
            book.add(measurement, sample)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in sample.values.items())
            say(f"  {sample.case}: {shown} (load {sample.load:.1f})")
    except NotMeasuredError as why:
        book.end(measurement, not_measured=str(why))
    except WrongError as why:
        book.end(measurement, wrong=str(why))
        return False
    except Exception as why:  # also a bug: what was measured before is kept, the rest goes on
        traceback.print_exc()
        book.end(measurement, broken=f"{type(why).__name__}: {why}")
        return False
    return True


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--repeat", type=click.IntRange(min=1), help="Samples of each case.")
@click.option("--list", "listed", is_flag=True, help="Name the measurements.")
@click.option("--check", is_flag=True, help="Exit with 1 unless every target is met.")
@click.option("--show", type=click.Path(path_type=Path), help="Only print the tables of a file.")
def main(
    names: tuple[str, ...], repeat: int | None, listed: bool, check: bool, show: Path | None
) -> None:
    """Measure superv on a lab of this machine (needs root and Slurm's packages).

    SUPERV_BASELINE names a checkout to compare steps with. SUPERV_TITAN names a Python with
    TorchTitan, SUPERV_FT one with torch and
    nvidia-resiliency-ext; what needs an absent one is not measured.
    """
    there = measurements()
    if listed:
        for name, measurement in there.items():
            click.echo(f"{name:<14} {measurement.about}")
        return
    if show is not None:
        document = load(show)
        click.echo("\n".join(report(document)))
        sys.exit(1 if check and not all(met for *_, met in verdicts(document)) else 0)
    if wrong := [name for name in names if name not in there]:
        raise click.UsageError(f"no measurement {wrong[0]!r}; valid: {', '.join(there)}")
    if os.geteuid() != 0:
        raise click.UsageError("a lab needs root; run it with sudo")
    chosen = [there[name] for name in names or there]
    titan, ft = python_of("SUPERV_TITAN"), python_of("SUPERV_FT")
    book = ResultsFile(BenchSetup(repeat=0, titan=titan, ft=ft, say=say), sys.argv[1:])
    sound = True
    for one in chosen:
        setup = BenchSetup(repeat=repeat or one.repeat, titan=titan, ft=ft, say=say)
        sound = measure(book, one, setup) and sound
    click.echo("\n".join(report(book.document)))
    click.echo(f"samples: {book.path}")
    met = all(met for *_, met in verdicts(book.document))
    sys.exit(0 if sound and (met or not check) else 1)


if __name__ == "__main__":
    main()
