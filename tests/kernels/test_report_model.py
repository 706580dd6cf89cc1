"""The model of a launch's time agrees with the figures that it was made from."""

import pytest

from attnzoo.kernels._report.model import DEVICES, Work, issue_seconds, programs_resident, seconds

H100 = DEVICES['sm_90']


def test_budget_of_a_window() -> None:
    """A window of 49 tokens and 32 channels, q, k, v and the map: 969 instructions for each of four warps."""
    moved = 4 * 49 * 32 * 2
    work = Work(programs=12288, warps=4, instructions=969, special=57, bytes=12288 * moved, access_bytes=0)
    assert H100.bytes_per_cycle == pytest.approx(12.95, abs=0.005)
    assert issue_seconds(work, H100) / (work.bytes / H100.bandwidth) == pytest.approx(1.0, abs=0.001)
    assert seconds(work, H100) == pytest.approx(work.bytes / H100.bandwidth / 0.75, rel=0.001)
    assert seconds(work._replace(instructions=100), H100) == pytest.approx(1.1 * work.bytes / H100.bandwidth)
    assert seconds(work._replace(access_bytes=3 * work.bytes), H100) == pytest.approx(
        1.65 * work.bytes / H100.bandwidth
    )
    many = work._replace(instructions=969 / 4, special=969 / 8)
    assert seconds(many, H100) == pytest.approx(work.bytes / H100.bandwidth / 0.85, rel=0.001)


@pytest.mark.parametrize(
    ('registers', 'shared', 'warps', 'expected'),
    [
        (128, 0, 4, 4),  # registers
        (135, 0, 4, 3),
        (246, 46 << 10, 4, 2),
        (32, 100 << 10, 4, 2),  # shared memory
        (16, 0, 4, 16),  # warps
        (16, 0, 1, 32),  # programs
        (192, 10 << 10, 1, 8),  # each issuing unit has its quarter of the registers
        (128, 0, 32, 0),
    ],
)
def test_how_many_programs_a_multiprocessor_holds(registers: int, shared: int, warps: int, expected: int) -> None:
    assert programs_resident(registers, shared, warps, H100) == expected


def test_amd_waves_share_the_registers_of_their_unit() -> None:
    assert programs_resident(128, 0, 4, DEVICES['gfx942']) == 4
    assert programs_resident(64, 24 << 10, 4, DEVICES['gfx942']) == 2
