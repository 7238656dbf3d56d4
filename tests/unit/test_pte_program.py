"""Pins the .pte format: what we state must be what the installed ExecuTorch reads back."""

from __future__ import annotations

import hashlib
import importlib.metadata
import struct

import pytest

pytest.importorskip("executorch", reason="the qnn extra is not installed")

from executorch.exir._serialize import _serialize_pte_binary
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import DelegateCall, Instruction, KernelCall, Operator

from exporter.targets.executorch.delegate_program import DelegatePayload, MethodCalls, read_calls, read_payloads
from exporter.targets.executorch.qnn.graph import Storage, Value
from exporter.targets.executorch.qnn.program import CompiledContext, GraphSignature, context_program

METHODS = [
    GraphSignature(
        name,
        (Value("hidden", (1, 1, chunk, 6)), Value("layers.0.keys", (1, 2, 4, 10), storage=Storage.UINT8)),
        (Value("layers.0.new_keys", (1, 2, 4, chunk), storage=Storage.UINT8), Value("logits", (1, 1, chunk, 9))),
    )
    for name, chunk in (("prefill", 5), ("decode", 1))
]


def test_the_pinned_executorch_is_installed() -> None:
    assert importlib.metadata.version("executorch") == "1.5.1"


def test_methods_that_share_a_context_store_it_once() -> None:
    binary = bytes(range(256)) * 64
    program = context_program(METHODS, [CompiledContext(binary, b"options")])
    assert program.count(binary) == 1
    plans = deserialize_pte_binary(program).program.execution_plan
    assert [plan.name for plan in plans] == ["prefill", "decode"]


def test_methods_with_contexts_of_their_own_store_both() -> None:
    first, second = b"first context" * 50, b"second context" * 50
    program = context_program(METHODS, [CompiledContext(first, b""), CompiledContext(second, b"")])
    assert first in program
    assert second in program


def test_every_method_is_exactly_one_delegate_call_on_all_its_tensors() -> None:
    program = deserialize_pte_binary(context_program(METHODS, [CompiledContext(b"binary", b"options")])).program
    for plan, method in zip(program.execution_plan, METHODS, strict=True):
        (chain,) = plan.chains
        (instruction,) = chain.instructions
        assert isinstance(instruction.instr_args, DelegateCall)
        assert instruction.instr_args.args == plan.inputs + plan.outputs
        assert plan.operators == []
        assert plan.delegates[0].id == "QnnBackend"
        shapes = [tuple(plan.values[index].val.sizes) for index in plan.inputs + plan.outputs]
        assert shapes == [value.shape for value in method.inputs + method.outputs]


def test_outputs_do_not_overlap_in_the_arena() -> None:
    program = deserialize_pte_binary(context_program(METHODS, [CompiledContext(b"binary", b"options")])).program
    plan = program.execution_plan[0]
    first, second = (plan.values[index].val.allocation_info.memory_offset for index in plan.outputs)
    assert second - first >= 2 * 4 * 5
    assert plan.non_const_buffer_sizes[1] >= second + 5 * 9 * 2


def test_equal_contexts_get_equal_signatures_whenever_they_were_made() -> None:
    pytest.importorskip("onnxruntime_qnn", reason="the qnn extra is not installed")
    from exporter.errors import ToolchainMissing
    from exporter.targets.executorch.qnn.compile import with_content_signature

    payload = b"context" * 9
    made = [struct.pack("<IQQ", 0x5678ABCD, moment, len(payload)) + payload for moment in (1, 2)]
    signed = [with_content_signature(binary) for binary in made]
    assert signed[0] == signed[1]
    assert signed[0].endswith(payload)
    assert struct.unpack_from("<Q", signed[0], 4)[0] == int.from_bytes(hashlib.sha256(payload).digest()[:8], "little")
    with pytest.raises(ToolchainMissing, match="header"):
        with_content_signature(b"another format" * 4)


def test_calls_are_read_back_from_the_file() -> None:
    program = context_program(METHODS, [CompiledContext(b"binary", b"options")])
    assert read_calls(program) == [MethodCalls("prefill", 1, ()), MethodCalls("decode", 1, ())]


def test_a_kernel_beside_the_delegate_is_found() -> None:
    written = deserialize_pte_binary(context_program(METHODS, [CompiledContext(b"binary", b"options")]))
    plan = written.program.execution_plan[1]
    plan.operators.append(Operator("aten::add", "out"))
    plan.chains[0].instructions.append(Instruction(KernelCall(op_index=0, args=[0])))
    spoiled = bytes(_serialize_pte_binary(written, extract_delegate_segments=True))
    assert read_calls(spoiled)[1] == MethodCalls("decode", 1, ("aten::add",))


def test_payloads_are_read_back_with_their_options() -> None:
    contexts = [CompiledContext(b"first", b"one"), CompiledContext(b"second" * 20, b"two")]
    assert read_payloads(context_program(METHODS, contexts)) == [
        DelegatePayload("QnnBackend", context.binary, (("qnn_compile_spec", context.options),)) for context in contexts
    ]
