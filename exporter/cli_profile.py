"""The command `profile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def profile_command(
    folder: Annotated[Path, typer.Argument(help="Output folder of an export.")],
    position: Annotated[int, typer.Option(min=0, help="Tokens in the cache before those that are profiled.")] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to profile, one by one.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say where the time of a token goes: per operator, and bytes read against the bandwidth of this machine."""
    from exporter.profile.run import ProfileRequest, profile
    from exporter.profile.text import print_profile
    from exporter.progress import StageDisplay

    console = Console(stderr=as_json)
    found = profile(ProfileRequest(folder, position, tokens), StageDisplay(console, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(found))
        return
    print_profile(found, console)
