"""Sharing memory never changes a result: hand-made cases, and random programs against one that copies everything."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.targets.coreml.interpreter.operators.base import Effect
from exporter.targets.coreml.interpreter.sharing import Node, Role, Sharing, find_sharing

STATE, INPUT = 1, 2
"""Registers of the state and of an input; operations make the others."""


def read(result: int) -> Node:
    return Node(Role.READ, Effect.VIEWS, (STATE,), (result,))


def write(value: int) -> Node:
    return Node(Role.WRITE, Effect.VIEWS, (STATE, value), ())


def update(target: int, value: int, result: int) -> Node:
    return Node(Role.UPDATE, Effect.COPIES, (target, value), (result,))


def view(source: int, result: int) -> Node:
    return Node(Role.COMPUTE, Effect.VIEWS, (source,), (result,))


def compute(result: int, *operands: int) -> Node:
    return Node(Role.COMPUTE, Effect.COMPUTES, operands, (result,))


def test_a_cache_of_several_layers_is_updated_where_it_lies() -> None:
    nodes = [read(3), update(3, INPUT, 4), write(4), read(5), view(5, 6), compute(7, 6)]
    nodes += [update(5, 7, 8), write(8), read(9), compute(10, 9)]
    sharing = find_sharing(nodes, [10])
    assert (sharing.copied_reads, sharing.copied_updates, sharing.finished_writes) == (set(), set(), {2, 7})


def test_a_value_that_is_read_after_the_update_forces_a_copy() -> None:
    nodes = [read(3), view(3, 4), update(3, INPUT, 5), write(5), compute(6, 4)]
    sharing = find_sharing(nodes, [6])
    assert 2 in sharing.copied_updates
    assert 0 in sharing.copied_reads
    assert sharing.finished_writes == set()


def test_updates_that_are_written_once_at_the_end_copy_once() -> None:
    nodes = [read(3), update(3, INPUT, 4), update(4, INPUT, 5), write(5)]
    sharing = find_sharing(nodes, [])
    assert (sharing.copied_updates, sharing.finished_writes) == ({1}, set())


def test_an_update_with_a_slice_of_its_own_target_copies() -> None:
    nodes = [read(3), view(3, 4), update(3, 4, 5), write(5)]
    assert find_sharing(nodes, []).copied_updates == {2}


def test_an_update_of_a_part_of_a_state_that_replaces_the_whole_copies() -> None:
    nodes = [read(3), view(3, 4), update(4, INPUT, 5), write(5)]
    sharing = find_sharing(nodes, [])
    assert sharing.copied_updates == {2}
    assert simulate(nodes, [], sharing) == simulate(nodes, [], None) == [[140, 1]]


def test_an_input_is_never_overwritten() -> None:
    assert find_sharing([update(INPUT, INPUT, 3)], [3]).copied_updates == {0}


def test_an_output_that_lies_in_a_state_is_not_private() -> None:
    sharing = find_sharing([read(3), view(3, 4), compute(5, 4)], [4, 5])
    assert (sharing.is_private(4), sharing.is_private(5)) == (False, True)


class Value(NamedTuple):
    """A register in the simulation: which cells of which buffer it shows."""

    buffer: list[int]
    cells: tuple[int, ...]

    def show(self) -> list[int]:
        return [self.buffer[cell] for cell in self.cells]


def simulate(nodes: list[Node], outputs: list[int], sharing: Sharing | None) -> list[list[int]]:
    """Runs the nodes on buffers of two cells: values are numbers that depend on all that went into them. Without `sharing` everything
    is copied. Gives the outputs and what is left in the state."""
    state = Value([1, 2], (0, 1))
    values = {STATE: state, INPUT: Value([30, 40], (0, 1))}
    for index, node in enumerate(nodes):
        operands = [values[number] for number in node.operands]
        if node.role is Role.READ:
            copied = sharing is None or index in sharing.copied_reads
            values[node.results[0]] = fresh(operands[0].show()) if copied else operands[0]
        elif node.role is Role.WRITE:
            if sharing is None or index not in sharing.finished_writes:
                state.buffer[:] = operands[1].show()
        elif node.role is Role.UPDATE:
            target = (
                operands[0]
                if sharing is not None and index not in sharing.copied_updates
                else fresh(operands[0].show())
            )
            target.buffer[target.cells[0]] = operands[1].show()[1] + 100
            values[node.results[0]] = target
        elif node.effect is Effect.VIEWS:
            values[node.results[0]] = Value(operands[0].buffer, operands[0].cells[::-1])
        else:
            values[node.results[0]] = fresh([1000 * index + sum(sum(each.show()) for each in operands) % 1000, index])
    return [*(values[number].show() for number in outputs), state.show()]


def fresh(numbers: list[int]) -> Value:
    return Value(list(numbers), (0, 1))


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Node], list[int]]:
    nodes: list[Node] = []
    registers = [INPUT]
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["read", "write", "write", "update", "update", "view", "compute"]))
        some = lambda: draw(st.sampled_from([*registers[-4:], *[registers[-1]] * 4]))  # noqa: E731
        result = len(nodes) + 3
        if kind == "write":
            nodes.append(write(some()))
            continue
        made = {
            "read": lambda: read(result),  # noqa: B023
            "update": lambda: update(some(), some(), result),  # noqa: B023
            "view": lambda: view(some(), result),  # noqa: B023
            "compute": lambda: compute(result, some(), some()),  # noqa: B023
        }[kind]()
        nodes.append(made)
        registers.append(result)
    return nodes, draw(st.lists(st.sampled_from(registers), max_size=2))


@settings(max_examples=1500, deadline=None)
@given(programs())
def test_sharing_gives_what_copying_gives(program: tuple[list[Node], list[int]]) -> None:
    nodes, outputs = program
    sharing = find_sharing(nodes, outputs)
    assert simulate(nodes, outputs, sharing) == simulate(nodes, outputs, None)
