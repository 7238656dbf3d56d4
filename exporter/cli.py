"""Commands and options only. `slm-export --recipe NAME` is the main one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from exporter.cli_bench import DeviceOption, RunnerOption, bench_command
from exporter.cli_profile import profile_command
from exporter.errors import ExitCode, SlmExportError, UsageError

if TYPE_CHECKING:  # torch is imported by the commands that need it alone
    from exporter.pipeline import ExportRequest
    from exporter.progress import StageDisplay
    from exporter.recipe import Recipe

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None)
recipes_app = typer.Typer(add_completion=False, help="List and show recipes.", rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")

RecipesOption = Annotated[
    list[str] | None,
    typer.Option("--recipe", "-r", help="Recipe name or YAML file; several share one quantization.", metavar="NAME"),
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", "-m", help="Hugging Face checkpoint folder; default: the bundled example.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a recipe value: section.field=value.", metavar="KEY=VALUE")
]
TextOnlyOption = Annotated[
    bool, typer.Option("--text-only", help="Of a checkpoint with image or sound towers, take the text decoder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.callback(invoke_without_command=True)
def main_command(
    context: typer.Context,
    recipe: RecipesOption = None,
    model: ModelOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output folder; default: out/<recipe>.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="PEFT LoRA adapter folder to merge.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="UTF-8 text that quantization listens to.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="UTF-8 text for parity and perplexity.")] = None,
    text_only: TextOnlyOption = False,
    overrides: SetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
    resume: Annotated[bool, typer.Option(help="Reuse finished stages of earlier runs.")] = True,
    device: DeviceOption = None,
    runner: RunnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a trained small language model for a phone, verified.

    slm-export --recipe android-npu --model ./my-model --output out
    """
    if context.invoked_subcommand is not None:
        return
    if not recipe:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)
    from exporter.pipeline import ExportRequest
    from exporter.progress import StageDisplay
    from exporter.recipe import load_recipe
    from exporter.report.text import several_lines, summary_lines

    console = Console(stderr=as_json)
    recipes = [load_recipe(name, tuple(overrides or ())) for name in recipe]
    destination = output or Path("out") / "+".join(loaded.name for loaded in recipes)
    request = ExportRequest(recipes[0], destination, model, adapter, calibration, evaluation, force, resume, text_only)
    if model is None and not as_json:
        example = f"No --model given: exporting the bundled example ({request.model_folder.name}, 5 M parameters)."
        console.print(example, highlight=False)
    display = StageDisplay(console, quiet=as_json)
    report = _export(request, recipes, tuple(device or ()), tuple(runner or ()), display)
    if as_json:
        typer.echo(json.dumps(report))
        return
    for line in (summary_lines if len(recipes) == 1 else several_lines)(report, request.output):
        console.print(line, highlight=False, soft_wrap=True)


def _export(
    request: ExportRequest,
    recipes: list[Recipe],
    devices: tuple[str, ...],
    runners: tuple[str, ...],
    display: StageDisplay,
) -> dict[str, Any]:
    """The report of the export, measured where devices are named."""
    from exporter.bench import BenchRequest, bench, ready_devices
    from exporter.pipeline import export
    from exporter.several import export_several
    from exporter.targets.base import find_target

    if not devices:
        return export(request, display) if len(recipes) == 1 else export_several(request, recipes, display)
    if len(recipes) > 1:
        raise UsageError("--device measures one export", "export first, then: slm-export bench FOLDER")
    measured = BenchRequest(request.output, devices, runners=runners)
    ready_devices(measured, find_target(recipes[0].target.kind))  # before minutes of work
    report = export(request, display)
    sections = bench(measured, display)
    return {**report, "latency": sections[0], "latency_devices": sections}


@app.command("plan")
def plan_command(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Recipe name or YAML file.")],
    model: ModelOption = None,
    config: Annotated[
        Path | None, typer.Option(help="A config.json instead of a checkpoint folder; no weights needed.")
    ] = None,
    text_only: TextOnlyOption = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse or estimate an export in under a second, reading no weight."""
    from exporter.plan import plan_config, plan_export
    from exporter.recipe import load_recipe
    from exporter.report.text import plan_lines
    from exporter.resources import example_folder

    loaded = load_recipe(recipe, tuple(overrides or ()))
    if config is not None and model is not None:
        raise UsageError("--config and --model both name a model", "give one of them")
    if config is not None:
        plan = plan_config(config, loaded, text_only)
    else:
        plan = plan_export(model or example_folder() / "model", loaded, text_only)
    if as_json:
        typer.echo(json.dumps(plan.to_json()))
        return
    for line in plan_lines(plan):
        typer.echo(line)


@app.command("verify")
def verify_command(
    folder: Annotated[
        Path, typer.Argument(help="Output folder of an export, any .mlpackage, or a .pte with one in it.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Repeat every check of an export from its files alone; of a Core ML package, check blobs and run every function."""
    from exporter.progress import StageDisplay
    from exporter.report.package_text import package_verification_lines
    from exporter.report.text import verification_lines
    from exporter.targets.coreml.interpreter.package import is_package
    from exporter.targets.executorch.coreml.inside import holds_package, package_at

    display, foreign = StageDisplay(Console(), quiet=as_json), is_package(folder) or holds_package(folder)
    if foreign:
        from exporter.targets.coreml.verify import verify_package

        with package_at(folder) as package:
            result = {**verify_package(package, display), "package": str(folder)}
    else:
        from exporter.pipeline import verify_export

        result = verify_export(folder, display)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for line in package_verification_lines(result) if foreign else verification_lines(result):
        typer.echo(line)


@app.command("inspect")
def inspect_command(
    package: Annotated[
        Path, typer.Argument(help="A .mlpackage folder, from this program or any other, or a .pte with one in it.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what is in a Core ML package: functions, states, operators, blobs, and what is stored twice."""
    from exporter.report.package_text import package_lines
    from exporter.targets.coreml.inspect import inspect_package
    from exporter.targets.executorch.coreml.inside import package_at

    with package_at(package) as folder:
        facts = {**inspect_package(folder), "package": str(package)}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for line in package_lines(facts):
        typer.echo(line)


@app.command("generate")
def generate_command(
    folder: Annotated[Path, typer.Argument(help="Output folder of an export.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
) -> None:
    """Continue a text with the artifact itself."""
    from exporter.runtime.generate import generate
    from exporter.runtime.sampling import SamplingSettings

    for piece in generate(folder, prompt, max_tokens, SamplingSettings(temperature, top_k, top_p, seed)):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


app.command("bench")(bench_command)
app.command("profile")(profile_command)


@app.command("compare")
def compare_command(
    old: Annotated[Path, typer.Argument(help="report.json of before, or the folder of its export.")],
    new: Annotated[Path, typer.Argument(help="report.json of now, or the folder of its export.")],
    budget: Annotated[Path | None, typer.Option(help="YAML file with limits; exit code 5 when one breaks.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a pull request.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the budgets as JUnit XML.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two reports: what changed beyond noise, and which budgets broke."""
    from exporter.errors import BudgetExceeded
    from exporter.report.budget import read_budgets
    from exporter.report.compare import Report, compare
    from exporter.report.compare_text import comparison_junit, comparison_lines, comparison_markdown

    comparison = compare(Report.read(old), Report.read(new), read_budgets(budget) if budget else [])
    for path, text in ((markdown, comparison_markdown), (junit, comparison_junit)):
        if path is not None:
            path.write_text(text(comparison), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(comparison.to_json()))
    else:
        for line in comparison_lines(comparison):
            typer.echo(line)
    if comparison.broken:
        broken = "; ".join(verdict.text for verdict in comparison.broken)
        raise BudgetExceeded(
            f"{len(comparison.broken)} budgets broken: {broken}", "make it smaller or faster, or change the budget"
        )


@app.command("devices")
def devices_command(as_json: JsonOption = False) -> None:
    """List devices to measure on, and what each lacks."""
    from exporter.bench import list_devices

    found = list_devices()
    if as_json:
        typer.echo(json.dumps(found))
        return
    for entry in found:
        typer.echo(
            f"{'ready   ' if entry['ready'] else 'missing '} {entry['device']:<28} {entry['lacks'] or ''}".rstrip()
        )
    typer.echo("any      ssh:HOST                     a host of your ssh configuration")


@app.command("doctor")
def doctor_command(as_json: JsonOption = False) -> None:
    """Check what is installed and what each target lacks."""
    from exporter.doctor import diagnose

    findings = diagnose()
    if as_json:
        typer.echo(json.dumps([finding.__dict__ for finding in findings]))
    else:
        for finding in findings:
            typer.echo(f"{'ok      ' if finding.present else 'missing '} {finding.name:<28} {finding.detail}")
    if not all(finding.present for finding in findings if finding.required):
        raise typer.Exit(ExitCode.TOOLCHAIN_MISSING)


@recipes_app.callback(invoke_without_command=True)
def recipes_command(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is not None:
        return
    from exporter.recipe import load_recipe, recipe_names

    for name in recipe_names():
        typer.echo(f"{name:<20} {load_recipe(name).description}")


@recipes_app.command("show")
def show_recipe(name: str, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Print a recipe with everything it inherits."""
    import yaml

    from exporter.recipe import load_recipe

    values: dict[str, Any] = load_recipe(name, tuple(overrides or ())).model_dump(mode="json")
    typer.echo(json.dumps(values) if as_json else yaml.safe_dump(values, sort_keys=False).rstrip())


@recipes_app.command("schema")
def show_schema() -> None:
    """Print the JSON Schema of recipe files, for editors."""
    from exporter.recipe import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2))


def main() -> None:
    """Console entry point: maps every error to its exit code and one line on standard error."""
    try:
        code = app(standalone_mode=False)  # typer returns the code of typer.Exit, and turns Ctrl-C into one of 130
    except SlmExportError as fault:
        _fail(str(fault), fault.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except OSError as fault:
        _fail(
            f"{fault.filename or 'file system'}: {fault.strerror}; "
            "free space, or choose another --output or SLM_EXPORT_CACHE",
            ExitCode.USAGE,
        )
    except Exception as fault:
        if type(fault).__module__.startswith(("click", "typer")) and hasattr(fault, "format_message"):
            _fail(f"{fault.format_message()}; see: slm-export --help", ExitCode.USAGE)
        raise
    if code == ExitCode.INTERRUPTED:
        _fail("interrupted; nothing was left in place", ExitCode.INTERRUPTED)
    if code:
        sys.exit(int(code))


def _fail(message: str, code: ExitCode) -> NoReturn:
    print(f"slm-export: error: {message}", file=sys.stderr)
    sys.exit(int(code))


if __name__ == "__main__":
    main()
