"""The command `bench`, and the options that it shares with an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from exporter.errors import UsageError

if TYPE_CHECKING:  # torch is imported by the command itself
    from exporter.bench import BenchRequest
    from exporter.progress import StageDisplay

DeviceOption = Annotated[
    list[str] | None,
    typer.Option("--device", "-d", help="Measure on KIND or KIND:NAME; see slm-export devices.", metavar="KIND"),
]
RunnerOption = Annotated[
    list[str] | None,
    typer.Option(help="Folder of a C++ runner, for devices without Python; DEVICE=FOLDER for one.", metavar="FOLDER"),
]


def bench_command(
    folder: Annotated[Path, typer.Argument(help="Output folder of an export.")],
    device: DeviceOption = None,
    prompt_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Length of a prompt; default: 32 and 256, or what fits.")
    ] = None,
    generate: Annotated[int, typer.Option(min=2, help="Tokens to generate after each prompt.")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, help="Timed runs of each prompt.")] = 5,
    warm_up: Annotated[int, typer.Option(min=0, help="Runs of each prompt before those that count.")] = 1,
    runner: RunnerOption = None,
    parser: Annotated[
        str | None,
        typer.Option(help="The runner is another project's tool, and prints as NAME does.", metavar="NAME"),
    ] = None,
    runner_arguments: Annotated[
        str | None, typer.Option(help="With --parser: what the tool is started with; $PROMPT and others are filled in.")
    ] = None,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that one device may take.")] = 600.0,
    accept_near_ties: Annotated[
        bool, typer.Option("--accept-near-ties", help="Let a token differ where the oracle sees a near-tie.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure an export on devices: time to first token, time per token, memory, and what they depend on."""
    from exporter.bench import BenchRequest
    from exporter.progress import StageDisplay

    request = BenchRequest(
        folder,
        tuple(device or ("local",)),
        tuple(prompt_tokens or ()),
        generate,
        warm_up,
        repetitions,
        tuple(runner or ()),
        time_limit,
        accept_near_ties,
    )
    display = StageDisplay(Console(stderr=as_json), quiet=as_json)
    sections, lines = _measure(request, parser, runner_arguments, display)
    for line in [json.dumps(sections)] if as_json else lines:
        typer.echo(line)


def _measure(
    request: BenchRequest, parser: str | None, arguments: str | None, display: StageDisplay
) -> tuple[list[dict[str, Any]], list[str]]:
    """Sections, and their lines for a terminal."""
    from exporter.bench import bench
    from exporter.official_bench import OfficialRequest, bench_official
    from exporter.report.latency import latency_lines
    from exporter.report.official import official_lines

    if parser is None:
        if arguments is not None:
            raise UsageError("--runner-arguments are those of another project's tool", "name it with --parser")
        sections = bench(request, display)
        return sections, [line for section in sections for line in latency_lines(section)]
    if request.accept_near_ties:
        raise UsageError("--accept-near-ties: tools of others print no token ids", "leave it out with --parser")
    sections = bench_official(OfficialRequest(request, parser, arguments), display)
    return sections, [line for section in sections for line in official_lines(section)]
