"""Operators of a token from ExecuTorch's ETDump.

Every instruction of a program leaves one event with its whole time; which operator it was is read from the program itself. A delegate
that traces leaves events of its own inside: those are named, and what is left of the call is the delegate's way in and out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.child import Emit
from exporter.profile.recording import Recording, by_operator, timed_tokens, warm_up

OPERATOR_CALL, DELEGATE_CALL = "OPERATOR_CALL", "DELEGATE_CALL"
EXECUTE = "Execute"


@dataclass(frozen=True)
class TraceEvent:
    """One event of the trace: the instruction that it belongs to, whether a delegate reported it, milliseconds in each run."""

    name: str
    instruction: int
    by_delegate: bool
    ms: Sequence[float]


def record_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """See `recording.Profiler`."""
    from exporter.targets.executorch.xnnpack.driver import open_driver, open_traced

    folder, token_ids, scratch = Path(arguments["folder"]), arguments["token_ids"], Path(arguments["scratch"])
    span = arguments["position"], arguments["tokens"]
    driver = open_driver(folder)
    warm_up(driver, token_ids)
    times = timed_tokens(driver, token_ids, *span)
    traced_driver, write_trace = open_traced(folder)
    warm_up(traced_driver, token_ids)
    traced = timed_tokens(traced_driver, token_ids, *span)
    write_trace(scratch / "trace.etdp")
    tokens = token_events(_read_trace(scratch / "trace.etdp"), _instructions(folder), len(traced))
    return asdict(Recording(driver.engine, driver.threads, times, traced, by_operator(tokens)))


def token_events(
    events: Sequence[TraceEvent], instructions: Sequence[str], count: int
) -> list[list[tuple[str, float]]]:
    """Operators with milliseconds of each of the last `count` runs. `instructions` names what each instruction calls."""
    named: list[tuple[str, Sequence[float]]] = []
    for call in events:
        if call.name not in (OPERATOR_CALL, DELEGATE_CALL):
            continue
        inner = [event for event in events if event.by_delegate and event.instruction == call.instruction]
        own = call.name == DELEGATE_CALL
        left = [ms - sum(event.ms[run] for event in inner) for run, ms in enumerate(call.ms)] if own else call.ms
        named += [(re.sub(r" #\d+$", "", event.name), event.ms) for event in inner if own]
        named.append((instructions[call.instruction], left))
    runs = len(named[0][1]) if named else 0
    return [[(name, ms[run]) for name, ms in named] for run in range(runs - count, runs)]


def _read_trace(path: Path) -> list[TraceEvent]:
    from executorch.devtools import Inspector

    block = next(block for block in Inspector(etdump_path=str(path)).event_blocks if block.name == EXECUTE)
    return [
        TraceEvent(event.name, event._instruction_id, event.is_delegated_op, event.perf_data.raw)
        for event in block.events
        if event.perf_data is not None
    ]


def _instructions(folder: Path) -> list[str]:
    """What each instruction of the method calls, in order."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall

    from exporter.targets.executorch.xnnpack.names import METHOD, PROGRAM_FILE

    plans = deserialize_pte_binary((folder / PROGRAM_FILE).read_bytes()).program.execution_plan
    plan = next(plan for plan in plans if plan.name == METHOD)
    names = []
    for call in (instruction.instr_args for instruction in plan.chains[0].instructions):
        if isinstance(call, KernelCall):
            operator = plan.operators[call.op_index]
            names.append(f"{operator.name}.{operator.overload}".rstrip("."))
        elif isinstance(call, DelegateCall):
            names.append(f"{plan.delegates[call.delegate_index].id}, around its operators")
        else:
            names.append(type(call).__name__)
    return names
