"""Which operations may work in memory that exists: reads of a state without a copy, updates of a slice in place.

In MIL every operation makes a new value, so a step that writes one token into a cache of L layers copies the cache L times. Here a state
is read where it lies, and `slice_update` overwrites its operand, wherever no later operation could see the difference.

Each register is given the memory it may lie in. Memory of a state is numbered anew with every write; memory that is overwritten must
have no reader left. The search starts with everything shared and takes back what breaks that rule, until nothing does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from exporter.targets.coreml.interpreter.operators.base import Effect


class Role(Enum):
    """What an operation does to states."""

    COMPUTE = auto()
    UPDATE = auto()
    READ = auto()
    WRITE = auto()


@dataclass(frozen=True)
class Node:
    """One operation over numbered registers. An UPDATE overwrites its first operand; a READ has the register of a state as operand, a
    WRITE that and the new value."""

    role: Role
    effect: Effect
    operands: tuple[int, ...]
    results: tuple[int, ...]


class Memory(NamedTuple):
    """Memory of the state in register `owner` after `version` writes; or, without a version, what node `owner` allocated."""

    owner: int
    version: int | None = None


FIXED = Memory(-1)
"""Constants and inputs: never overwritten."""


@dataclass
class Sharing:
    """Nodes that deviate from full sharing, and what follows from them."""

    copied_reads: set[int] = field(default_factory=set)
    copied_updates: set[int] = field(default_factory=set)
    finished_writes: set[int] = field(default_factory=set)
    """Writes whose value is already in place."""
    memory: dict[int, frozenset[Memory]] = field(default_factory=dict)

    def is_private(self, register: int) -> bool:
        """Whether a register lies in memory that belongs to this run alone."""
        return all(place.version is None and place is not FIXED for place in self.memory.get(register, {FIXED}))


def find_sharing(nodes: Sequence[Node], outputs: Iterable[int]) -> Sharing:
    """Settles every READ and UPDATE of a function whose results are the registers `outputs`."""
    last_use = _last_uses(nodes, outputs)
    sharing = Sharing()
    while True:
        walk = _Walk(nodes, last_use, sharing)
        walk.run()
        if not walk.conflicts:
            return sharing


def _last_uses(nodes: Sequence[Node], outputs: Iterable[int]) -> dict[int, int]:
    last_use = {register: index for index, node in enumerate(nodes) for register in node.operands}
    return last_use | {register: len(nodes) for register in outputs}


class _Walk:
    """One pass in the order of execution under the decisions so far; what breaks the rule is added to the decisions."""

    def __init__(self, nodes: Sequence[Node], last_use: dict[int, int], sharing: Sharing) -> None:
        self.nodes, self.last_use, self.sharing = nodes, last_use, sharing
        self.memory: dict[int, frozenset[Memory]] = {}
        self.members: dict[Memory, list[int]] = defaultdict(list)
        self.version: dict[int, int] = defaultdict(int)
        self.source: dict[Memory, list[int]] = defaultdict(list)
        self.whole: set[int] = set()
        self.ahead: dict[int, int] = {}
        self.conflicts = False
        self.next_touch = _next_touches(nodes)

    def run(self) -> None:
        self.sharing.finished_writes.clear()
        for index, node in enumerate(self.nodes):
            if node.role is Role.READ:
                self._read(index, node)
            elif node.role is Role.WRITE:
                self._write(index, node)
            elif node.role is Role.UPDATE and index not in self.sharing.copied_updates:
                self._update(index, node)
            else:
                self._compute(index, node)
        self.sharing.memory = self.memory

    def _place(self, register: int, places: Iterable[Memory]) -> None:
        self.memory[register] = frozenset(places)
        for place in self.memory[register]:
            self.members[place].append(register)

    def _compute(self, index: int, node: Node) -> None:
        copies = node.effect is not Effect.VIEWS or node.role is Role.UPDATE
        shared = set() if copies else {place for item in node.operands for place in self.memory.get(item, {FIXED})}
        for result in node.results:
            self._place(result, {Memory(index)} if copies else shared)

    def _read(self, index: int, node: Node) -> None:
        (state,) = node.operands
        place = Memory(state, self.version[state])
        copied = index in self.sharing.copied_reads
        if not copied:
            self.source[place].append(index)
            self.whole.add(node.results[0])
        self._place(node.results[0], {Memory(index) if copied else place})

    def _write(self, index: int, node: Node) -> None:
        state, value = node.operands
        if self.ahead.get(state) == value:
            del self.ahead[state]
            self.sharing.finished_writes.add(index)
        else:
            self._overwrite(Memory(state, self.version[state]), index, None)
        self.version[state] += 1

    def _update(self, index: int, node: Node) -> None:
        target, *others = node.operands
        places = self.memory.get(target, frozenset({FIXED}))
        result = node.results[0]
        if any(places & self.memory.get(item, frozenset()) for item in others):
            self._take_back(index)
        elif all(place.version is None and place != FIXED for place in places):
            if any(self.last_use.get(item, -1) > index for place in places for item in self.members[place]):
                self._take_back(index)
        elif not self._update_state(index, target, places, result):
            self._take_back(index)
        if index in self.sharing.copied_updates or not self.memory.get(result):
            self._place(result, {Memory(index)})

    def _update_state(self, index: int, target: int, places: frozenset[Memory], result: int) -> bool:
        """In place in a state: only of the whole state, and only when the very next thing done to it is to write the result."""
        (place, *more) = places
        state = place.owner
        if more or target not in self.whole:
            return False
        touch = next((item for item in self.next_touch[state] if item > index), None)
        if touch is None or self.nodes[touch].role is not Role.WRITE or self.nodes[touch].operands[1] != result:
            return False
        if any(self.last_use.get(item, -1) > index for item in self.members[place]):
            return False
        self.ahead[state] = result
        self.whole.add(result)
        after = Memory(state, self.version[state] + 1)
        self.source[after].append(index)
        self._place(result, {after})
        return True

    def _overwrite(self, place: Memory, index: int, target: int | None) -> None:
        """A write copies over `place`: whoever still reads it must have a copy of its own."""
        if any(self.last_use.get(item, -1) >= index for item in self.members[place] if item != target):
            for origin in self.source[place]:
                reads = self.nodes[origin].role is Role.READ
                (self.sharing.copied_reads if reads else self.sharing.copied_updates).add(origin)
                self.conflicts = True

    def _take_back(self, index: int) -> None:
        self.sharing.copied_updates.add(index)
        self.conflicts = True


def _next_touches(nodes: Sequence[Node]) -> dict[int, list[int]]:
    touches: dict[int, list[int]] = defaultdict(list)
    for index, node in enumerate(nodes):
        if node.role in (Role.READ, Role.WRITE):
            touches[node.operands[0]].append(index)
    return touches
