"""The documentation says nothing that the code does not do: commands, links, paths, keys and codes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from exporter.cli import app
from exporter.errors import ExitCode
from exporter.recipe import load_recipe, recipe_names

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "examples").glob("*.md")]
)
REPORT_PAGE = REPOSITORY / "docs" / "reference" / "report.md"
WRITTEN = [path for path in PAGES if path.name not in ("recipe.md", "cli.md")]
"""Pages that a person keeps up to date."""

FILE_ENDINGS = (".pte", ".py", ".json", ".yaml", ".md", ".txt", ".safetensors")
ROOM = re.compile(r"(?:exporter|docs|tests|recipes|examples|benchmarks|device_tests)/[\w./-]+")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The script that writes the generated pages."""
    specification = importlib.util.spec_from_file_location(
        "generate_reference", REPOSITORY / "docs/generate_reference.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sources() -> str:
    """All code of the package, and the project file."""
    files = [*(REPOSITORY / "exporter").rglob("*.py"), REPOSITORY / "Makefile", REPOSITORY / "pyproject.toml"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def page_name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """The text without code blocks."""
    return re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    """Inline code, each span on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


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


# Commands


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
        extra = re.search(r"\[(\w+)\]", requirement)
        assert f"{extra[1]} = [" in project if extra else requirement in makefile, requirement


# Links and paths


def slugs(path: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_internal_links_resolve(path: Path) -> None:
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8")))
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in slugs(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", WRITTEN, ids=page_name)
def test_names_of_classes_and_constants_are_in_the_sources(path: Path, sources: str) -> None:
    spans = code_spans(path.read_text(encoding="utf-8"))
    names = [span for span in spans if re.fullmatch(r"[A-Z][A-Za-z]+[A-Z_a-z]*", span)]
    assert [name for name in names if not re.search(rf"\b{name}\b", sources)] == []


@pytest.mark.parametrize("path", WRITTEN, ids=page_name)
def test_keys_of_recipe_and_report_are_real(path: Path) -> None:
    known = known_keys()
    sections = {key.split(".")[0] for key in known if "." in key}
    spans = [span.partition("=")[0] for span in code_spans(path.read_text(encoding="utf-8"))]
    dotted = [
        span for span in spans if re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)+", span) and not span.endswith(FILE_ENDINGS)
    ]
    assert [span for span in dotted if span.split(".")[0] in sections and span not in known] == []


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_files_that_are_named_exist(path: Path) -> None:
    spans = code_spans(path.read_text(encoding="utf-8"))
    named = [span for span in spans if ROOM.fullmatch(span)]
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for link in re.findall(r"\]\(([^)\s#]+\.md)", path.read_text(encoding="utf-8")):
            if "://" not in link:
                waiting.append((path.parent / link).resolve())
    assert [page_name(path) for path in PAGES if path not in reached] == []


# Facts that are stated twice


def test_generated_pages_are_up_to_date(generator: ModuleType) -> None:
    assert generator.stale_pages() == [], f"run: {generator.COMMAND}"


def test_the_check_notices_a_page_that_is_missing_or_changed(generator: ModuleType, tmp_path: Path) -> None:
    generator.REFERENCE = tmp_path / "reference"
    assert generator.main([]) == 0
    assert generator.stale_pages(generator.REFERENCE) == []
    page = generator.REFERENCE / "recipe.md"
    page.write_text(page.read_text(encoding="utf-8").replace("group_size", "groupsize"), encoding="utf-8")
    assert generator.stale_pages(generator.REFERENCE) == ["recipe.md"]


@pytest.mark.parametrize("name", ["README.md", "docs/reference/exit-codes.md"])
def test_exit_codes_are_those_of_the_program(name: str) -> None:
    rows = re.findall(r"^\| (\d+) \|", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(row) for row in rows] == [code.value for code in ExitCode]


def test_names_of_exit_codes_are_those_of_the_program() -> None:
    text = (REPOSITORY / "docs/reference/exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE)
    assert rows == [(str(code.value), code.name) for code in ExitCode]


def test_recipes_in_the_guide_are_valid(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/guides/write-a-recipe.md").read_text(encoding="utf-8")
    recipes = [content for language, content in blocks(text) if language == "yaml" and yaml.safe_load(content)]
    assert recipes
    for content in recipes:
        path = tmp_path / "chat.yaml"
        path.write_text(content, encoding="utf-8")
        assert load_recipe(str(path)).name == "chat"


def test_the_family_of_the_guide_defines_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    from exporter.checkpoint import family
    from exporter.checkpoint.config import Config
    from exporter.registry import Registry

    families: Registry[family.Family] = Registry("model_type")
    monkeypatch.setattr(family, "FAMILIES", families)
    text = (REPOSITORY / "docs/guides/add-a-family.md").read_text(encoding="utf-8")
    (content,) = [content for language, content in blocks(text) if language == "python"]
    exec(compile(content, "add-a-family.md", "exec"), {})
    (name,) = families.names()
    config = Config.read(REPOSITORY / "examples/model/config.json")
    assert families.get(name).decoder_spec(config).family == name


def test_the_readme_lists_every_family() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    families = {path.stem for path in (REPOSITORY / "exporter/checkpoint/families").glob("[a-z]*.py")}
    assert [name for name in sorted(families) if f"`{name}`" not in readme] == []


def test_the_readme_fits_in_120_lines() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) < 120


# The report


@functools.cache
def example_report() -> dict[str, Any]:
    """A report with every key, without an export."""
    from exporter.plan import plan_export
    from exporter.progress import StageFigures
    from exporter.report.build import build_report, export_section, parity_section, quality_section
    from exporter.targets.base import Delegation, LowerOutcome, find_target
    from exporter.verify.gates import Gate
    from exporter.verify.parity import ParityFigures
    from exporter.verify.verification import EvaluationSet, VerificationResult

    def zeros(kind: Any, **given: Any) -> Any:
        return kind(**{field.name: given.get(field.name, 0) for field in dataclasses.fields(kind)})

    recipe = load_recipe("android-npu", ("kv_cache.bits=4",))
    target = find_target(recipe.target.kind)
    plan = plan_export(REPOSITORY / "examples" / "model", recipe)
    result = zeros(
        VerificationResult, parity=zeros(ParityFigures), ring_wraps=(0.0,), gates=[Gate("parity.mean_kl", 0.0, None)]
    )
    evaluation = EvaluationSet("text.txt", [], 0, 0, 1.0, 1.0)
    outcome = LowerOutcome((), 0, Delegation(1.0, {"prefill": 1, "decode": 1}, ()), 0, plan.slots_per_layer, {})
    sections = {
        "parity": parity_section(target, result),
        "quality": quality_section(target, evaluation, result),
        "export": export_section([StageFigures("plan", 0.0, 0.0)], 0),
    }
    return build_report(recipe, target, plan, "", outcome, 0, sections)


def flat_keys(value: Any, prefix: str = "") -> set[str]:
    """Dotted keys of all leaves; `[]` stands for each entry of a list."""
    if isinstance(value, dict):
        return {key for name, part in value.items() for key in flat_keys(part, f"{prefix}.{name}".lstrip("."))}
    if isinstance(value, list | tuple):
        return {key for part in value for key in flat_keys(part, f"{prefix}[]")}
    return {prefix}


def documented_keys(text: str) -> set[str]:
    """Keys in the first column of every table."""
    cells = re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


def target_notes() -> set[str]:
    """Names of the figures that the Qualcomm target adds to the section `artifact`."""
    from exporter.targets.executorch.qnn.lower import QnnFigures

    return {field.name for field in dataclasses.fields(QnnFigures)}


@functools.cache
def known_keys() -> set[str]:
    """Every key of recipe and report, and every section that holds some."""
    recipe = flat_keys(load_recipe("android-npu").model_dump(mode="json"))
    keys = recipe | flat_keys(example_report()) | documented_keys(REPORT_PAGE.read_text(encoding="utf-8"))
    return keys | {key[: match.start()] for key in keys for match in re.finditer(r"[.\[]", key)}


def test_every_key_of_the_report_is_documented_and_no_other() -> None:
    text = REPORT_PAGE.read_text(encoding="utf-8").split("## report.json")[1].split("## manifest.json")[0]
    documented, found, notes = documented_keys(text), flat_keys(example_report()), target_notes()
    assert found - documented == set()
    extra = {key.split(".")[1] for key in documented - found if key.startswith("artifact.")}
    assert extra == notes
    assert [key for key in documented - found if not key.startswith("artifact.")] == []


def test_every_key_of_the_manifest_is_documented_and_no_other(tmp_path: Path) -> None:
    from exporter.manifest import read_manifest, write_manifest

    write_manifest(tmp_path, load_recipe("android-npu"), {}, {}, "")
    text = REPORT_PAGE.read_text(encoding="utf-8").split("## manifest.json")[1]
    assert documented_keys(text) == set(read_manifest(tmp_path))
