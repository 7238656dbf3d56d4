"""Every command of the documentation is one that the program, the Makefile or the project file knows."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from doc_pages import PAGES, REPOSITORY, blocks, code_spans, page_name, prose

from exporter.cli import app
from exporter.recipe import load_recipe, recipe_names


def shell_commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a shell script as lists of words."""
    command: list[str] = []
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        for word in [*words, ";"]:
            if not set(word) <= set("();<>|&"):
                command.append(word)
                continue
            if command:
                yield command
            command = []


def named_commands(program: str) -> list[tuple[str, list[str], bool]]:
    """Page, words after the program's name, and whether the command stands in a code block, which must be complete."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        scripts = [(content, True) for language, content in blocks(text) if language in ("", "sh")]
        scripts += [(span, False) for span in code_spans(text) if span.split()[0] == program]
        scripts += [(line, True) for line in re.findall(r"^    (slm-export [^\[\n]*)$", prose(text), re.MULTILINE)]
        for script, complete in scripts:
            found += [(page_name(path), words, complete) for words in shell_commands(script) if words[0] == program]
    for path in sorted((REPOSITORY / "recipes").glob("*.yaml")):
        comments = re.findall(r"^#\s+(slm-export .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        found += [(page_name(path), shlex.split(comment), True) for comment in comments if program == "slm-export"]
    return found


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A command line as the command tree reads it: options with their values, and what is wrong."""

    options: list[tuple[str, str]]
    faults: list[str]


def parse(words: list[str], complete: bool) -> Parsed:
    """Follows typer's command tree through the words of one command line."""
    command: Any = typer.main.get_command(app)
    options: list[tuple[str, str]] = []
    faults: list[str] = []
    given: set[str] = set()
    rest, positions = list(words[1:]), 0
    while rest:
        word = rest.pop(0)
        if word == "--help":
            return Parsed(options, faults)
        if word.startswith("-"):
            name, separator, value = word.partition("=")
            entry = next((item for item in command.params if name in (*item.opts, *item.secondary_opts)), None)
            if entry is None:
                faults.append(f"{name} is no option of {command.name}")
            elif not entry.is_flag and not separator:
                if not rest:
                    faults.append(f"{name} lacks its value")
                value = rest.pop(0) if rest else ""
            if entry is not None:
                given.add(entry.name)
                options.append((entry.opts[0], value))
        elif word in getattr(command, "commands", {}):
            command, given, positions = command.commands[word], set(), 0
        else:
            arguments = [item for item in command.params if item.param_type_name == "argument"]
            if positions < len(arguments):
                given.add(arguments[positions].name)
            else:
                faults.append(f"{word} is no command and no argument of {command.name}")
            positions += 1
    if complete:
        faults += [f"{item.name} is missing" for item in command.params if item.required and item.name not in given]
    return Parsed(options, faults)


def test_every_slm_export_command_is_one_that_the_command_line_takes() -> None:
    commands = named_commands("slm-export")
    assert len(commands) > 20, "the search for commands finds nothing any more"
    faults = [(page, " ".join(words), parse(words, complete).faults) for page, words, complete in commands]
    assert [fault for fault in faults if fault[2]] == []


def test_every_recipe_and_override_of_a_command_is_valid() -> None:
    for page, words, complete in named_commands("slm-export"):
        options = parse(words, complete).options
        named = [value for name, value in options if name == "--recipe" and value.endswith(".yaml")]
        shipped = [value for name, value in options if name == "--recipe" and value not in (*named, "NAME")]
        assert set(shipped) <= set(recipe_names()), f"{page}: {shipped}"
        load_recipe([*shipped, "android-npu"][0], tuple(value for name, value in options if name == "--set"))


def test_every_override_that_is_mentioned_alone_is_valid() -> None:
    spans = [
        span for path in PAGES for span in code_spans(path.read_text(encoding="utf-8")) if span.startswith("--set ")
    ]
    assert spans
    for span in spans:
        words = span.split()
        assert words[::2] == ["--set"] * (len(words) // 2), span
        load_recipe("android-npu", tuple(words[1::2]))


@pytest.mark.parametrize(
    "line",
    [
        "slm-export --recipi android-npu",
        "slm-export plan --recipe android-npu --force",
        "slm-export plan",
        "slm-export check out",
        "slm-export generate out",
        "slm-export doctor now",
        "slm-export --recipe",
    ],
)
def test_a_command_that_does_not_exist_would_be_found(line: str) -> None:
    assert parse(shlex.split(line), complete=True).faults


def test_every_make_command_is_a_target_of_the_makefile() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    commands = named_commands("make")
    assert commands
    assert {words[1] for _, words, _ in commands} <= targets
    readme = {words[1] for page, words, _ in commands if page == "README.md"}
    assert {"demo", "test"} <= readme


def test_commands_of_the_makefile_are_ones_that_the_command_line_takes() -> None:
    lines = re.findall(r"^\t\$\(BIN\)/(slm-export .*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert lines
    assert [parse(shlex.split(line), complete=True).faults for line in lines] == [[]] * len(lines)


def test_python_scripts_that_are_named_exist() -> None:
    commands = named_commands("python")
    assert commands
    assert [
        words for _, words, _ in commands if words[1].endswith(".py") and not (REPOSITORY / words[1]).is_file()
    ] == []


def test_every_extra_and_pin_of_an_install_command_is_in_the_project_file() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    installed = [words[2:] for _, words, _ in named_commands("pip") if words[1] == "install"]
    assert installed
    for requirement in [word for words in installed for word in words if not word.startswith("-")]:
        extras = re.search(r"\[([\w,]+)\]", requirement)
        if extras is None:
            assert requirement in makefile, requirement
        for extra in extras[1].split(",") if extras else ():
            assert f"{extra} = [" in project, requirement
