"""What a warp of a compiled kernel issues: its machine code is read, and followed for as long as a program runs.

Branches of a Triton kernel are decided by whole numbers that all threads have in common: sizes, a program's number, and
what follows from them. These are worked out instruction by instruction; all else (threads, memory, floats) is unknown.
So a loop counts as often as it runs, however the compiler unrolled, rotated or split it. A branch that hangs on
something unknown is a test that some threads pass: it is not taken, and what it guards counts. If it goes back, its
loop ends after as many rounds as were asked for and is told of in `data_loops`.
"""

import collections
import itertools
import struct
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

State = dict[Hashable, Any]  # whole numbers by register or address of a constant; what is not there is unknown
WORD = 0xFFFFFFFF
MAX_STEPS = 10_000_000  # blocks of instructions: a walk that takes more has lost its way


class Instruction(NamedTuple):
    """One instruction: what it is called, and as much of what it does as decides branches."""

    name: str  # with its modifiers, for example LDG.E.128
    writes: tuple[Hashable, ...] = ()
    reads: tuple[Hashable, ...] = ()
    run: Callable[[State], None] | None = None  # None: what it writes is unknown
    jump: int | None = None  # the instruction it goes to; the number of instructions: it ends the program
    taken: Callable[[State], bool | None] | None = None  # whether it goes there; None: always


class Count(NamedTuple):
    """How often each instruction is issued, by its name: the average of some programs."""

    by_name: dict[str, float]
    data_loops: int  # loops whose trips are unknown


def count(code: Sequence[Instruction], starts: Sequence[State], data_trips: int = 1) -> Count:
    """Follows programs from the first instruction to the end, each from its own registers and constants.

    Loops whose trips are unknown make `data_trips` of them.
    """
    leaders = {0, len(code)}
    for i, instruction in enumerate(code):
        if instruction.jump is not None:
            leaders |= {instruction.jump, i + 1}
    relevant = _relevant(code)
    blocks = {
        first: _Block(last, [x for x in code[first:last] if relevant & set(x.writes)])
        for first, last in itertools.pairwise(sorted(leaders))
    }
    back = [(x.jump, i) for i, x in enumerate(code) if x.jump is not None and x.jump <= i]
    ways_out = {  # of loops, forward
        i
        for i, x in enumerate(code)
        if x.taken and x.jump is not None and any(first <= i <= last < x.jump for first, last in back)
    }
    visits: collections.Counter[int] = collections.Counter()
    unknown: set[int] = set()
    for start in starts:
        _follow(code, blocks, dict(start), ways_out, data_trips, visits, unknown)
    by_name: dict[str, float] = collections.defaultdict(float)
    for first, times in visits.items():
        for instruction in code[first : blocks[first].last]:
            by_name[instruction.name] += times / len(starts)
    return Count(dict(by_name), len(unknown))


class _Block(NamedTuple):
    """Instructions that are issued one after another, by the first."""

    last: int  # the one behind it
    steps: list[Instruction]  # those that branches hang on


def _follow(
    code: Sequence[Instruction],
    blocks: Mapping[int, _Block],
    state: State,
    ways_out: set[int],
    data_trips: int,
    visits: collections.Counter[int],
    unknown: set[int],
) -> None:
    place = 0
    rounds: collections.Counter[int] = collections.Counter()
    for _ in range(MAX_STEPS):
        if place == len(code):
            return
        visits[place] += 1
        last, steps = blocks[place]
        for step in steps:
            if step.run is None:
                for register in step.writes:
                    state.pop(register, None)
            else:
                step.run(state)
        end = code[last - 1]
        place, taken = last, end.jump is not None and (end.taken is None or end.taken(state))
        if end.jump is not None and taken is None and end.jump < last:
            unknown.add(end.jump)
            rounds[last] += 1
            if rounds[last] < data_trips:
                place = end.jump
            else:
                rounds[last] = 0
        elif end.jump is not None and taken is None and last - 1 in ways_out:
            unknown.add(last)
            rounds[last] += 1
            if rounds[last] >= data_trips:
                place, rounds[last] = end.jump, 0
        elif end.jump is not None and taken:
            place = end.jump
    raise RuntimeError(f'the code was followed for {MAX_STEPS} steps and did not end')


def places(program: int, grid: Sequence[int]) -> list[tuple[int, int]]:
    """For each of three axes, where a program lies in a grid of that size; programs are counted along the first."""
    found = []
    for size in (*grid, 1, 1)[:3]:
        found.append((program % size, size))
        program //= size
    return found


def signed(value: int, bits: int = 32) -> int:
    """The number that so many bits stand for."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def as_float(bits: int) -> float:
    """The float32 of a word."""
    return struct.unpack('<f', struct.pack('<I', bits & WORD))[0]


def as_bits(value: float) -> int:
    """The word of a float32."""
    return struct.unpack('<I', struct.pack('<f', value))[0]


def _relevant(code: Sequence[Instruction]) -> set[Hashable]:
    """Registers that branches hang on, directly or through others."""
    found = {register for x in code if x.jump is not None for register in x.reads}
    writers: dict[Hashable, list[Instruction]] = {}
    for instruction in code:
        if instruction.run is not None:
            for register in instruction.writes:
                writers.setdefault(register, []).append(instruction)
    new = set(found)
    while new:
        new = {read for register in new for writer in writers.get(register, ()) for read in writer.reads} - found
        found |= new
    return found
