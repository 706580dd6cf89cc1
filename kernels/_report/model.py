"""How near a launch can come to the time that its bytes take: predicted from its machine code, nothing is timed.

A multiprocessor issues a fixed number of instructions in the cycles that its share of the bytes takes. With P programs
of W warps that issue I instructions each, over B bytes:

    issue_over_bytes = (P * W * I / issue rate) / (B / bytes a cycle)

per multiprocessor and cycle; 4 and 12.95 on an H100. What was assumed:

- Kernels reach at most 0.75 of the issue rate, 0.85 of the rate of transcendental functions and 1 / 1.1 of the rate at
  which a copy moves bytes. The slowest of them, or the second-level cache, sets a launch's time: they overlap wholly.
- A launch moves each tensor that it is given once. What its loads and stores ask for, masked threads included, comes
  from the second-level cache: nothing hits the first level, which is too much where the programs of a multiprocessor
  share what they read.
- Launches follow one another without a gap. Not in it: PyTorch's kernels around ours, the latency of loads (too few
  warps on a multiprocessor), a last wave that is not full, maps that stay in the second-level cache between launches.
- Bandwidths other than the H100's are 0.9 of what is published, and the second-level cache is as much faster than
  memory as it is there.
"""

import math
from typing import NamedTuple

from attnzoo.kernels._launch import Target

ISSUED = 0.75  # of the issue rate
SPECIAL = 0.85  # of the rate of transcendental functions
COPY = 1.1  # times as long as a copy takes a kernel at best
CACHE = 0.55  # of memory's time for the same bytes, in the second-level cache


class Device(NamedTuple):
    """What a GPU moves, and what its multiprocessors issue and hold."""

    name: str
    target: Target
    clock: float  # cycles a second
    bandwidth: float  # bytes a second that a copy reads and writes
    shared: int  # bytes of shared memory of a multiprocessor
    program_shared: int  # of them a program can have
    cycles: int = 1  # that an instruction of a warp takes one of a multiprocessor's four issuing units
    special_cycles: int = 8  # that one of a transcendental function takes

    @property
    def bytes_per_cycle(self) -> float:
        """Of each multiprocessor."""
        return self.bandwidth / self.clock / self.target.multiprocessors


DEVICES = {
    'sm_80': Device('A100 80 GB', Target('cuda', 80, 108), 1.41e9, 1.83e12, 164 << 10, 163 << 10),
    'sm_90': Device('H100', Target('cuda', 90, 132), 1.755e9, 3.0e12, 228 << 10, 227 << 10),
    'sm_100': Device('B200', Target('cuda', 100, 148), 1.965e9, 7.2e12, 228 << 10, 227 << 10),
    'gfx942': Device('MI300X', Target('hip', 'gfx942', 304), 2.1e9, 4.77e12, 64 << 10, 64 << 10, 4, 16),
}
_UNITS = 4  # that issue, in a multiprocessor


class Work(NamedTuple):
    """What a launch does."""

    programs: int
    warps: int  # of a program
    instructions: float  # of a warp, as its programs issue on average
    special: float  # of these, transcendental functions
    bytes: int  # of the tensors that it is given
    access_bytes: float  # that its loads and stores ask for


def issue_seconds(work: Work, device: Device) -> float:
    """The time that issuing the instructions takes, on all multiprocessors."""
    return work.programs * work.warps * work.instructions * device.cycles / _UNITS / _cycles_a_second(device)


def seconds(work: Work, device: Device) -> float:
    """The predicted time of a launch."""
    special = work.programs * work.warps * work.special * device.special_cycles / _UNITS / _cycles_a_second(device)
    return max(
        COPY * work.bytes / device.bandwidth,
        issue_seconds(work, device) / ISSUED,
        special / SPECIAL,
        CACHE * work.access_bytes / device.bandwidth,
    )


def _cycles_a_second(device: Device) -> float:
    return device.clock * device.target.multiprocessors


def programs_resident(registers: int, shared: int, warps: int, device: Device) -> int:
    """How many programs a multiprocessor holds at a time, by their registers a thread, shared memory and warps."""
    if device.target.backend == 'hip':
        waves = min(8, 512 // _rounded(registers, 8)) * _UNITS
        return min(waves // warps, device.shared // shared if shared else 32)
    # Registers are given out to warps in units of 256, from a file for each issuing unit; a program's own KiB of
    # shared memory is the driver's.
    held = (16 << 10) // _rounded(registers * 32, 256) * _UNITS
    return min(held // warps, 64 // warps, 32, device.shared // (_rounded(shared, 128) + 1024))


def _rounded(value: int, unit: int) -> int:
    return max(1, math.ceil(value / unit)) * unit
