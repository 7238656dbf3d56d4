"""The stage cache: keys that follow their inputs, stages that resume, and no half-written output."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from exporter import stage_cache
from exporter.errors import UsageError
from exporter.stage_cache import CACHE_VARIABLE, StageCache, cache_root, content_key


class Counter:
    """A stage that counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, folder: Path) -> None:
        self.runs += 1
        (folder / "output.txt").write_text(f"run {self.runs}", encoding="utf-8")


class Method(Enum):
    GPTQ = "gptq"


def test_the_root_is_the_one_that_the_variable_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"


def test_the_root_is_in_the_users_cache_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "slm-export"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home/.cache/slm-export"


def test_equal_inputs_have_equal_keys_whatever_their_order() -> None:
    assert content_key({"a": 1, "b": {"c": 2, "d": 3}}) == content_key({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"a": "1"}, {"a": 1, "b": None}, {"b": 1}, {}, {"a": [1]}, {"a": 1.5}], ids=str
)
def test_other_inputs_have_other_keys(other: dict[str, Any]) -> None:
    assert content_key(other) != content_key({"a": 1})


def test_values_that_json_lacks_take_part_in_the_key() -> None:
    assert content_key({"a": Path("x")}) != content_key({"a": Path("y")})
    assert content_key({"a": Method.GPTQ}) != content_key({"a": None})


def test_a_key_is_a_plain_file_name() -> None:
    assert content_key({"a": 1}).isalnum()


def test_a_new_version_of_the_code_has_new_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_key({"a": 1})
    monkeypatch.setattr(stage_cache, "code_digest", lambda: "another version")
    assert content_key({"a": 1}) != before


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    cache, stage = StageCache(tmp_path, resume=True), Counter()
    first, first_resumed = cache.produce("quantized", "key", stage)
    second, second_resumed = cache.produce("quantized", "key", stage)
    assert (first_resumed, second_resumed, stage.runs) == (False, True, 1)
    assert first == second
    assert (second / "output.txt").read_text(encoding="utf-8") == "run 1"


def test_a_later_process_resumes_too(tmp_path: Path) -> None:
    stage = Counter()
    StageCache(tmp_path, resume=True).produce("quantized", "key", stage)
    assert StageCache(tmp_path, resume=True).produce("quantized", "key", stage)[1]


@pytest.mark.parametrize(("stage", "key"), [("quantized", "other"), ("lowered", "key")])
def test_another_stage_or_key_is_run(tmp_path: Path, stage: str, key: str) -> None:
    cache, counter = StageCache(tmp_path, resume=True), Counter()
    first, _ = cache.produce("quantized", "key", counter)
    second, resumed = cache.produce(stage, key, counter)
    assert not resumed
    assert counter.runs == 2
    assert first != second


def test_without_resume_a_stage_runs_again_and_replaces_its_output(tmp_path: Path) -> None:
    cache, stage = StageCache(tmp_path, resume=False), Counter()
    cache.produce("quantized", "key", stage)
    folder, resumed = cache.produce("quantized", "key", stage)
    assert not resumed
    assert (folder / "output.txt").read_text(encoding="utf-8") == "run 2"


def failing(kind: type[BaseException]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "half.bin").touch()
        raise kind

    return write


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failed_stage_leaves_nothing_to_resume_from(tmp_path: Path, kind: type[BaseException]) -> None:
    cache, stage = StageCache(tmp_path, resume=True), Counter()
    with pytest.raises(kind):
        cache.produce("quantized", "key", failing(kind))
    assert list((tmp_path / "quantized").iterdir()) == []
    _, resumed = cache.produce("quantized", "key", stage)
    assert not resumed
    assert stage.runs == 1


def test_a_failed_repetition_keeps_the_earlier_output(tmp_path: Path) -> None:
    folder, _ = StageCache(tmp_path, resume=True).produce("quantized", "key", Counter())
    with pytest.raises(RuntimeError):
        StageCache(tmp_path, resume=False).produce("quantized", "key", failing(RuntimeError))
    assert (folder / "output.txt").read_text(encoding="utf-8") == "run 1"


def test_logs_of_one_run_start_empty_and_stay(tmp_path: Path) -> None:
    cache = StageCache(tmp_path, resume=True)
    (cache.logs("key") / "lower.log").write_text("old", encoding="utf-8")
    (cache.logs("other") / "lower.log").write_text("kept", encoding="utf-8")
    assert list(cache.logs("key").iterdir()) == []
    assert (tmp_path / "logs/other/lower.log").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_a_root_that_cannot_be_made_names_itself_and_the_variable(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError) as caught:
        StageCache(tmp_path / root, resume=True)
    assert str(tmp_path / root) in caught.value.message
    assert CACHE_VARIABLE in caught.value.next_step
