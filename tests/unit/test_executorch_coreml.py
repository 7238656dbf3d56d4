"""A Core ML package inside an ExecuTorch program: what is written, what comes out again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("executorch", reason="the executorch extra is not installed")
pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from executorch.backends.apple.coreml import executorchcoreml
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.scalar_type import ScalarType
from helpers import TinyModel, quantized_decoder

from exporter.decoder.cache import CacheSettings
from exporter.errors import GateFailed, UsageError
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.quantized_checkpoint import save_quantized
from exporter.targets.coreml.inspect import inspect_package
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.profile import Profile
from exporter.targets.executorch.coreml.inside import package_at
from exporter.targets.executorch.coreml.lower import lower_in_child
from exporter.targets.executorch.coreml.payload import extract
from exporter.targets.executorch.delegate_program import (
    DelegatedMethod,
    DelegatePayload,
    TensorType,
    delegate_program,
    read_payloads,
)

CHUNK = 8


def lowered(folder: Path, profile: Profile = Profile.GPU) -> tuple[Path, dict]:
    """The program of a tiny decoder, and what its lowering says."""
    folder.mkdir()
    cache, slots = CacheSettings(96, CHUNK), profile.slot_multiple(CHUNK)
    decoder = quantized_decoder(TinyModel(), cache, KvFormat(16, KvScaling.NONE), slot_multiple=slots)
    save_quantized(decoder, folder)
    arguments = {"quantized": str(folder), "artifact": str(folder), "profile": profile.value}
    return folder / "model.pte", lower_in_child(arguments, lambda event: None)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lowered(tmp_path_factory.mktemp("program") / "out")[0]


@pytest.mark.parametrize(("profile", "units"), [(Profile.GPU, b"cpu_and_gpu"), (Profile.NEURAL_ENGINE, b"cpu_and_ne")])
def test_one_method_is_one_delegate_call_and_nothing_else(profile: Profile, units: bytes, tmp_path: Path) -> None:
    program, outcome = lowered(tmp_path / "out", profile)
    assert outcome["delegation"]["fraction"] == 1.0
    assert outcome["delegation"]["delegates_per_method"] == {"forward": 1}
    assert outcome["shipped_files"] == ("host.json", "model.pte")
    (payload,) = read_payloads(program.read_bytes())
    assert (payload.backend, payload.options) == ("CoreMLBackend", (("compute_units", units),))
    assert not list(program.parent.rglob("*.mlpackage"))


def test_the_method_takes_a_chunk_and_its_position_and_gives_fp16_logits(program: Path) -> None:
    plan = deserialize_pte_binary(program.read_bytes()).program.execution_plan[0]
    tensors = [plan.values[index].val for index in plan.inputs + plan.outputs]
    vocab_size = inspect_vocab_size(program)
    assert [(tensor.scalar_type, list(tensor.sizes)) for tensor in tensors] == [
        (ScalarType.INT, [1, CHUNK]),
        (ScalarType.INT, [1]),
        (ScalarType.HALF, [1, CHUNK, vocab_size]),
    ]


def inspect_vocab_size(program: Path) -> int:
    return int(json.loads((program.parent / "host.json").read_text())["vocab_size"])


def test_the_description_names_arguments_in_the_methods_order(program: Path, tmp_path: Path) -> None:
    package = extract(program, tmp_path)
    description = json.loads((package.parent / "metadata.json").read_text())
    assert description["inputNames"] == ["input_ids", "position"]
    assert description["outputNames"] == ["logits"]
    assert description["identifier"].startswith("executorch_")
    assert list(Package.open(package).program.functions) == ["main"]


def test_a_second_export_has_the_same_bytes(program: Path, tmp_path: Path) -> None:
    again, _ = lowered(tmp_path / "again")
    assert again.read_bytes() == program.read_bytes()


def test_a_package_inside_a_program_is_inspected_like_any_other(program: Path) -> None:
    with package_at(program) as package:
        facts = inspect_package(package)
        assert facts["functions"]["main"]["states"]["layers_0_keys"]["writes"] == 1
    assert not package.exists()


def stated(folder: Path, *payloads: DelegatePayload) -> Path:
    tensor = TensorType(ScalarType.INT, (1,))
    methods = [DelegatedMethod(f"method_{index}", (tensor,), (tensor,)) for index in range(len(payloads))]
    path = folder / "other.pte"
    path.write_bytes(delegate_program(methods, list(payloads)))
    return path


def test_what_is_no_core_ml_delegate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="holds QnnBackend, not one CoreMLBackend"):
        extract(stated(tmp_path, DelegatePayload("QnnBackend", b"context")), tmp_path)
    (tmp_path / "lowered_module").mkdir()
    (tmp_path / "lowered_module" / "metadata.json").write_text("{}")
    empty = bytes(executorchcoreml.flatten_directory_contents(str(tmp_path / "lowered_module")))
    for binary in (empty, empty[:20], b"noise" * 50):
        (tmp_path / "to").mkdir(exist_ok=True)
        with pytest.raises(GateFailed, match="payload is damaged"):
            extract(stated(tmp_path, DelegatePayload("CoreMLBackend", binary)), tmp_path / "to")


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.pte: does not exist"), package_at(tmp_path / "absent.pte"):
        pass
