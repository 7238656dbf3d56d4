"""Output folders: whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.errors import ExitCode, UsageError
from exporter.folder import OutputFolder

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = tmp_path / "parent"
    folder.mkdir()
    return folder


@pytest.fixture
def dead_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def write(destination: Path, text: str, force: bool = False) -> None:
    with OutputFolder(destination, force) as folder:
        (folder / "file.txt").write_text(text, encoding="utf-8")


def write_and_fail(destination: Path, kind: type[BaseException], force: bool = False) -> None:
    with OutputFolder(destination, force) as folder:
        (folder / "sub").mkdir()
        (folder / "sub/half.bin").touch()
        (folder / "file.txt").write_text("new", encoding="utf-8")
        raise kind


def write_while_another_appears(destination: Path) -> None:
    with OutputFolder(destination, force=False) as folder:
        (folder / "file.txt").touch()
        destination.mkdir()
        (destination / "precious.txt").touch()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leftover(parent: Path, name: str, process: int) -> Path:
    folder = parent / f".{name}-{process}-abc123.partial"
    folder.mkdir()
    (folder / "half.bin").touch()
    return folder


def test_the_folder_appears_with_everything_in_it_and_nothing_beside_it(parent: Path) -> None:
    write(parent / "out", "new")
    assert names(parent) == ["out"]
    assert (parent / "out/file.txt").read_text(encoding="utf-8") == "new"


def test_missing_parents_are_made(parent: Path) -> None:
    write(parent / "a/b/out", "new")
    assert (parent / "a/b/out/file.txt").is_file()


def test_the_destination_does_not_exist_while_it_is_written(parent: Path) -> None:
    with OutputFolder(parent / "out", force=False) as folder:
        assert not (parent / "out").exists()
        assert folder.parent == parent
        assert folder.name.startswith(".")


def test_others_may_read_the_finished_folder(parent: Path) -> None:
    write(parent / "out", "new")
    assert stat.S_IMODE((parent / "out").stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_nothing_is_left_when_writing_fails(parent: Path, kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        write_and_fail(parent / "out", kind)
    assert names(parent) == []


def test_an_existing_folder_is_refused_without_force(parent: Path) -> None:
    write(parent / "out", "old")
    with pytest.raises(UsageError, match="exists") as caught:
        write(parent / "out", "new")
    assert str(parent / "out") in caught.value.message
    assert "--force" in caught.value.next_step
    assert caught.value.exit_code == ExitCode.USAGE
    assert (parent / "out/file.txt").read_text(encoding="utf-8") == "old"


def test_force_replaces_the_whole_folder(parent: Path) -> None:
    write(parent / "out", "old")
    (parent / "out/stale.bin").touch()
    write(parent / "out", "new", force=True)
    assert names(parent) == ["out"]
    assert names(parent / "out") == ["file.txt"]
    assert (parent / "out/file.txt").read_text(encoding="utf-8") == "new"


def test_force_keeps_the_old_folder_until_the_new_one_is_whole(parent: Path) -> None:
    write(parent / "out", "old")
    with OutputFolder(parent / "out", force=True):
        assert (parent / "out/file.txt").read_text(encoding="utf-8") == "old"


def test_a_failed_replacement_leaves_the_old_folder_as_it_was(parent: Path) -> None:
    write(parent / "out", "old")
    with pytest.raises(RuntimeError):
        write_and_fail(parent / "out", RuntimeError, force=True)
    assert names(parent) == ["out"]
    assert (parent / "out/file.txt").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_at_the_destination_is_never_replaced(parent: Path, force: bool) -> None:
    (parent / "out").write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        write(parent / "out", "new", force)
    assert str(parent / "out") in caught.value.message
    assert (parent / "out").read_text(encoding="utf-8") == "precious"


def test_a_folder_that_appears_during_the_work_is_not_replaced_without_force(parent: Path) -> None:
    with pytest.raises(UsageError):
        write_while_another_appears(parent / "out")
    assert names(parent / "out") == ["precious.txt"]
    assert names(parent) == ["out"]


def test_leftovers_of_a_dead_process_are_removed(parent: Path, dead_process: int) -> None:
    leftover(parent, "out", dead_process)
    write(parent / "out", "new")
    assert names(parent) == ["out"]


def test_leftovers_of_a_dead_process_are_removed_when_the_name_has_glob_characters(
    parent: Path, dead_process: int
) -> None:
    leftover(parent, "out[1]", dead_process)
    write(parent / "out[1]", "new")
    assert names(parent) == ["out[1]"]


def test_a_retired_folder_of_a_dead_process_is_removed(parent: Path, dead_process: int) -> None:
    write(parent / "out", "newer")
    leftover(parent, "out", dead_process).rename(parent / f".out-{dead_process}-abc123.replaced")
    write(parent / "out", "newest", force=True)
    assert names(parent) == ["out"]
    assert (parent / "out/file.txt").read_text(encoding="utf-8") == "newest"


def die_between_the_renames(destination: Path, action: str) -> int:
    """Runs a replacement in another process that does `action` when the old folder has just been moved aside."""
    program = (
        "import os, signal, sys; from pathlib import Path; from exporter.folder import OutputFolder\n"
        "rename = Path.rename\n"
        "def rename_and_die(self, target):\n"
        "    result = rename(self, target)\n"
        f"    if str(target).endswith('.replaced'): {action}\n"
        "    return result\n"
        "Path.rename = rename_and_die\n"
        "with OutputFolder(Path(sys.argv[1]), True) as folder:\n"
        "    (folder / 'file.txt').write_text('new')"
    )
    command = [sys.executable, "-c", program, str(destination)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode


def test_a_writer_killed_between_its_two_renames_loses_nothing(parent: Path) -> None:
    write(parent / "out", "old")
    assert die_between_the_renames(parent / "out", "os.kill(os.getpid(), signal.SIGKILL)") == -9
    assert not (parent / "out").exists()
    with pytest.raises(UsageError, match="exists"):
        write(parent / "out", "newer")
    assert (parent / "out/file.txt").read_text(encoding="utf-8") == "old"
    write(parent / "out", "newest", force=True)
    assert names(parent) == ["out"]
    assert (parent / "out/file.txt").read_text(encoding="utf-8") == "newest"


def test_an_interrupt_between_the_two_renames_puts_the_old_folder_back(parent: Path) -> None:
    write(parent / "out", "old")
    assert die_between_the_renames(parent / "out", "raise KeyboardInterrupt") != 0
    assert names(parent) == ["out"]
    assert (parent / "out/file.txt").read_text(encoding="utf-8") == "old"


def test_a_file_that_appears_during_the_work_is_not_replaced(parent: Path) -> None:
    output = OutputFolder(parent / "out", force=True)
    (output.__enter__() / "file.txt").touch()
    (parent / "out").write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError, match="is a file"):
        output.__exit__(None, None, None)
    assert names(parent) == ["out"]
    assert (parent / "out").read_text(encoding="utf-8") == "precious"


def test_leftovers_that_only_resemble_ours_are_kept(parent: Path, dead_process: int) -> None:
    kept = [leftover(parent, f"out-{dead_process}", dead_process), leftover(parent, "oXt", dead_process)]
    kept.append(parent / ".out-99999999999999999999-abc123.partial")
    kept[-1].mkdir()
    write(parent / "out", "new")
    assert names(parent) == sorted(["out", *(folder.name for folder in kept)])


def test_the_partial_folder_of_a_live_process_is_kept(parent: Path) -> None:
    kept = leftover(parent, "out", os.getpid())
    write(parent / "out", "new")
    assert names(parent) == sorted([kept.name, "out"])


def test_the_partial_folder_of_another_destination_is_kept(parent: Path, dead_process: int) -> None:
    kept = leftover(parent, "other", dead_process)
    write(parent / "out", "new")
    assert names(parent) == sorted([kept.name, "out"])


def test_the_live_partial_folder_of_a_destination_whose_name_continues_ours_is_kept(
    parent: Path, dead_process: int
) -> None:
    with OutputFolder(parent / f"out-{dead_process}", force=False) as live:
        write(parent / "out", "new")
        assert live.is_dir()


def test_a_killed_writer_leaves_no_result_and_the_next_one_cleans_up(parent: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from exporter.folder import OutputFolder\n"
        "with OutputFolder(Path(sys.argv[1]), False) as folder:\n"
        "    (folder / 'half.bin').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(parent / "out")], cwd=REPOSITORY, check=False)
    assert killed.returncode == -9
    assert len(names(parent)) == 1
    assert not (parent / "out").exists()
    write(parent / "out", "new")
    assert names(parent) == ["out"]


def test_a_parent_that_is_a_file_is_refused(parent: Path) -> None:
    (parent / "file").touch()
    with pytest.raises(UsageError) as caught:
        OutputFolder(parent / "file/out", force=False).check()
    assert str(parent / "file") in caught.value.message
    assert "--output" in caught.value.next_step


def test_a_parent_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        OutputFolder(Path("/proc/none/out"), force=False).check()
    assert "/proc/none" in caught.value.message
    assert "--output" in caught.value.next_step


def test_a_parent_that_is_not_writable_is_refused(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent.chmod(0o555)
    if os.access(parent, os.W_OK):  # the superuser may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == parent and mode & os.W_OK))
    with pytest.raises(UsageError, match="not writable") as caught:
        OutputFolder(parent / "out", force=False).check()
    parent.chmod(0o755)
    assert str(parent) in caught.value.message
    assert "--output" in caught.value.next_step


def test_check_makes_no_folder_at_the_destination(parent: Path) -> None:
    OutputFolder(parent / "out", force=False).check()
    assert names(parent) == []
