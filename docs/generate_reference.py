"""Writes docs/reference/recipe.md and docs/reference/cli.md from the recipe schema and the command line itself.

python docs/generate_reference.py            write both pages
python docs/generate_reference.py --check    write nothing; exit with 1 when a page is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import typer

from exporter.cli import app
from exporter.recipe import recipe_json_schema
from exporter.support import Support, support_matrix

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTICE = "<!-- Written by docs/generate_reference.py; change the code and run it again, not this page. -->"
COMMAND = "python docs/generate_reference.py"


def pages() -> dict[str, str]:
    """File name -> what the page must hold."""
    return {
        "recipe.md": recipe_page(recipe_json_schema()),
        "cli.md": cli_page(typer.main.get_command(app)),
        "support.md": support_page(support_matrix()),
    }


def stale_pages(folder: Path = REFERENCE) -> list[str]:
    """Names of the pages that are missing or differ from the code."""
    return [name for name, text in pages().items() if _read(folder / name) != text]


def recipe_page(schema: dict[str, Any]) -> str:
    """Every key of a recipe: type, default and description, section by section."""
    sections = {key: entry for key, entry in schema["properties"].items() if _section(entry, schema)}
    plain = {key: entry for key, entry in schema["properties"].items() if key not in sections}
    blocks = [
        "# Recipe",
        NOTICE,
        "A recipe is a YAML file. Every key has a default, so a recipe states only what differs; the name defaults to "
        "that of the file. Unknown keys are refused. How to write one: "
        "[Write a recipe](../guides/write-a-recipe.md). The same schema for editors: `slm-export recipes schema`.",
        "## Top level",
        _key_table(plain, schema),
    ]
    for key, entry in sections.items():
        section = _section(entry, schema)
        blocks += [f"## {key}", section["description"], _key_table(section["properties"], schema)]
    return "\n\n".join(blocks) + "\n"


def cli_page(command: Any) -> str:
    """Every command with its arguments and options."""
    blocks = [
        "# Command line",
        NOTICE,
        "Exit codes: [exit-codes.md](exit-codes.md). Every command also takes `--help`.",
    ]
    for name, entry in _commands(command, "slm-export"):
        blocks += [f"## {name}", f"    {_usage(name, entry)}", *_paragraphs(entry.help or "", name)]
        if _visible(entry):
            blocks.append(_option_table(entry))
    return "\n\n".join(blocks) + "\n"


def support_page(matrix: list[Support]) -> str:
    """Families by rows, targets by columns, and below every reason."""
    recipes = list(dict.fromkeys(entry.recipe for entry in matrix))
    reasons = list(dict.fromkeys(str(refusal) for entry in matrix for refusal in entry.refusals))
    rows: dict[str, list[str]] = {}
    for entry in matrix:
        row = rows.setdefault(entry.family, [f"`{entry.family}`", entry.published])
        notes = ", ".join(str(reasons.index(str(refusal)) + 1) for refusal in entry.refusals)
        row.append(f"no: {notes}" if notes else "yes")
    head = ("`model_type`", "Judged by", *(f"`{name}`" for name in recipes))
    blocks = [
        "# Families and targets",
        NOTICE,
        "What `slm-export plan` says of a well-known member of each family, by the numbers in its `config.json`, with the "
        "recipe of each target. Another member may have a switch that this one leaves off; the plan of your own checkpoint "
        "is what counts. A number stands for a reason below.",
        _table(head, [tuple(row) for row in rows.values()]),
        "\n".join(f"{number}. {reason}." for number, reason in enumerate(reasons, 1)),
        "Encoders, and the vision or audio towers of checkpoints that have them, are refused for every target.",
    ]
    return "\n\n".join(blocks) + "\n"


def _section(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The object that a property refers to, or an empty dictionary for a plain value."""
    target = _resolve(entry, schema)
    return target if target.get("type") == "object" else {}


def _resolve(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = entry.get("$ref") or next((part["$ref"] for part in entry.get("allOf", []) if "$ref" in part), None)
    return schema["$defs"][reference.rsplit("/", 1)[-1]] if reference else entry


def _key_table(properties: dict[str, Any], schema: dict[str, Any]) -> str:
    rows = [
        (f"`{key}`", _type(entry, schema), _default(entry), _line(entry.get("description", "")))
        for key, entry in properties.items()
    ]
    return _table(("Key", "Type", "Default", "Meaning"), rows)


def _type(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_type(part, schema) for part in entry["anyOf"])
    entry = _resolve(entry, schema)
    choices = entry.get("enum") or ([entry["const"]] if "const" in entry else [])
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    kind = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "null": "`null`"}
    bounds = (
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    )
    limits = [f"{word} {entry[name]:g}" for name, word in bounds if name in entry]
    return " ".join([kind.get(entry["type"], "text"), ", ".join(limits)]).strip()


def _default(entry: dict[str, Any]) -> str:
    if "default" not in entry or entry["default"] == "":
        return "none"
    return f"`{json.dumps(entry['default'])}`" if not isinstance(entry["default"], str) else f"`{entry['default']}`"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, entry in getattr(command, "commands", {}).items():
        yield from _commands(entry, f"{name} {child}")


def _usage(name: str, command: Any) -> str:
    arguments = [_placeholder(entry) for entry in _visible(command) if entry.param_type_name == "argument"]
    required = [
        f"{entry.opts[0]} {_placeholder(entry)}"
        for entry in _visible(command)
        if entry.param_type_name == "option" and entry.required
    ]
    rest = ["[OPTIONS]"] if any(entry.param_type_name == "option" for entry in _visible(command)) else []
    return " ".join([name, *arguments, *required, *rest])


def _visible(command: Any) -> list[Any]:
    return [entry for entry in command.params if not getattr(entry, "hidden", False) and entry.name != "help"]


def _placeholder(entry: Any) -> str:
    return str(entry.metavar or entry.name.upper())


def _paragraphs(text: str, name: str) -> list[str]:
    """Paragraphs of a help text; one that is a command line becomes a code block."""
    parts = [_line(part) for part in text.split("\n\n")]
    return [f"    {part}" if part.startswith("slm-export ") else part for part in parts if part]


def _option_table(command: Any) -> str:
    rows = []
    for entry in _visible(command):
        if entry.param_type_name == "argument":
            rows.append((f"`{_placeholder(entry)}`", "required" if entry.required else "", _line(entry.help or "")))
            continue
        names = ", ".join(f"`{option}`" for option in (*entry.opts, *entry.secondary_opts))
        if not entry.is_flag:
            names += f" `{_placeholder(entry)}`"
        rows.append((names, _option_default(entry), _line(entry.help or "")))
    return _table(("Option", "Default", "Meaning"), rows)


def _option_default(entry: Any) -> str:
    if entry.required:
        return "required"
    if entry.is_flag:
        return f"`{(entry.opts if entry.default else entry.secondary_opts)[0]}`" if entry.secondary_opts else "off"
    if getattr(entry, "multiple", False):
        return "none; may be repeated"
    return "none" if entry.default is None else f"`{entry.default}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _line(text: str) -> str:
    """One line of Markdown; angle brackets would be taken for HTML."""
    return " ".join(text.split()).replace("<", "\\<")


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated pages of docs/reference.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is out of date")
    if parser.parse_args(arguments).check:
        stale = stale_pages()
        for name in stale:
            print(f"docs/reference/{name} is out of date; run: {COMMAND}", file=sys.stderr)
        return 1 if stale else 0
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
