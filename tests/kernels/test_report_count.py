"""What a warp issues is counted as often as its loops run, however the compiler turned them."""

import re

import pytest

triton = pytest.importorskip('triton')

import triton.language as tl  # noqa: E402  (Triton may be missing)

from attnzoo.kernels._report import gcn, sass  # noqa: E402
from attnzoo.kernels._report.count import Instruction, count  # noqa: E402


@triton.jit
def sum_of_powers(x, out, rounds, limit, INNER: tl.constexpr, UNTIL_LOADED: tl.constexpr):
    place = tl.arange(0, 128)
    total = tl.zeros([128], tl.float32)
    if UNTIL_LOADED:
        rounds = tl.load(limit)
    for row in tl.range(tl.program_id(0), rounds, tl.num_programs(0)):
        for column in range(INNER):
            total += tl.exp2(tl.load(x + (row * INNER + column) * 128 + place))
    tl.store(out + tl.program_id(0) * 128 + place, total)


def compiled(backend: str, arch: int | str, inner: int, until_loaded: bool = False):
    source = triton.compiler.ASTSource(
        sum_of_powers,
        {
            'x': '*fp32',
            'out': '*fp32',
            'rounds': 'i32',
            'limit': '*i32',
            'INNER': 'constexpr',
            'UNTIL_LOADED': 'constexpr',
        },
        {(4,): inner, (5,): until_loaded},
        {(i,): [['tt.divisibility', 16]] for i in (0, 1, 3)},
    )
    lanes = 64 if backend == 'hip' else 32
    target = triton.backends.compiler.GPUTarget(backend, arch, lanes)
    return triton.compile(source, target=target, options={'num_warps': 128 // lanes, 'num_stages': 1}).asm


@pytest.mark.parametrize('inner', [1, 3, 40])
@pytest.mark.parametrize('arch', [80, 90, 100])
def test_loops_count_as_often_as_they_run_on_nvidia(arch: int, inner: int) -> None:
    code = sass.disassemble(compiled('cuda', arch, inner)['cubin'])
    for program, programs, rounds in ((0, 1, 1), (0, 7, 100), (6, 7, 100), (3, 7, 2)):
        trips = len(range(program, rounds, programs)) * inner
        found = count(code, [sass.begin(arch, program, (programs,), [(16, rounds)])])
        assert found.data_loops == 0
        for kind, expected in (('MUFU.EX2', trips), ('LDG', trips), ('STG', 1)):
            assert sum(n for name, n in found.by_name.items() if name.startswith(kind)) == expected, (kind, rounds)
        assert 4 * trips < sum(found.by_name.values()) < 12 * trips + 120
        assert sum(n * sass.access_bytes(name) for name, n in found.by_name.items()) == 32 * 4 * (trips + 1)


@pytest.mark.parametrize('inner', [1, 40])
def test_loops_count_as_often_as_they_run_on_amd(inner: int) -> None:
    text = compiled('hip', 'gfx942', inner)['amdgcn']
    code = gcn.read(text)
    for program, programs, rounds in ((0, 1, 1), (0, 7, 100), (6, 7, 100), (3, 7, 2)):
        trips = len(range(program, rounds, programs)) * inner
        found = count(code, [gcn.begin(text, program, (programs,), [(16, rounds)])])
        assert found.data_loops == 0
        for kind, expected in (('v_exp_f32', trips), ('(buffer|global)_load', trips), ('(buffer|global)_store', 1)):
            assert sum(n for name, n in found.by_name.items() if re.match(kind, name)) == expected, (kind, rounds)
        assert sum(n * gcn.access_bytes(name) for name, n in found.by_name.items()) == 64 * 4 * (trips + 1)


def test_numbers_that_are_kept_in_the_lanes_of_a_vector_register_are_followed() -> None:
    code = gcn.read(
        """
\ts_mov_b32 s4, 7
\tv_writelane_b32 v9, s4, 3
\ts_mov_b32 s4, 0
.LBB0_1:
\ts_add_i32 s4, s4, 1
\tv_writelane_b32 v9, s4, 0
\ts_mov_b32 s4, 0
\tv_readlane_b32 s5, v9, 3
\tv_readlane_b32 s4, v9, 0
\ts_cmp_lt_i32 s4, s5
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
"""
    )
    found = count(code, [{}])
    assert found.data_loops == 0
    assert found.by_name['s_add_i32'] == 7


def sass_of(*lines: str) -> list[Instruction]:
    return sass.read('\n'.join(x if x.startswith('.') else f'        /*0000*/    {x} ;' for x in lines))


def test_a_call_to_a_place_in_the_kernel_is_a_far_jump() -> None:
    code = sass_of(
        'MOV R2, RZ',
        '.L_x_0:',
        'IADD3 R2, R2, 0x1, RZ',
        'ISETP.GE.AND P0, PT, R2, 0x5, PT',
        '@P0 CALL.REL.NOINC `(.L_x_1)',
        'BRA `(.L_x_0)',
        '.L_x_1:',
        'EXIT',
    )
    found = count(code, [{}])
    assert found.by_name['IADD3'] == 5 and found.data_loops == 0


def test_numbers_on_the_stack_are_followed() -> None:
    code = sass_of(
        'STL [R1], RZ',
        'MOV R4, 0x6',
        'MOV R5, 0x1',
        'STL.64 [R1+0x10], R4',
        '.L_x_0:',
        'LDL R2, [R1]',
        'LDL.64 R8, [R1+0x10]',
        'IADD3 R2, R2, R9, RZ',
        'STL [R1], R2',
        'ISETP.GE.AND P0, PT, R2, R8, PT',
        '@!P0 BRA `(.L_x_0)',
        'EXIT',
    )
    found = count(code, [{}])
    assert found.by_name['IADD3'] == 6 and found.data_loops == 0


def test_a_walk_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('attnzoo.kernels._report.count.MAX_STEPS', 100)
    code = gcn.read('.LBB0_1:\n\ts_nop 0\n\ts_branch .LBB0_1\n')
    with pytest.raises(RuntimeError, match='followed for 100 steps'):
        count(code, [{}])


def test_a_loop_that_the_data_decide_is_told() -> None:
    code = sass.disassemble(compiled('cuda', 90, 1, until_loaded=True)['cubin'])
    once, often = (count(code, [sass.begin(90, 0, (1,), [(16, 5)])], trips) for trips in (1, 10))
    assert once.data_loops == often.data_loops > 0
    assert 0 < once.by_name['MUFU.EX2'] < often.by_name['MUFU.EX2'] <= 10 * once.by_name['MUFU.EX2']


def test_counts_are_the_average_of_the_programs() -> None:
    code = sass.disassemble(compiled('cuda', 90, 1)['cubin'])
    found = count(code, [sass.begin(90, program, (2,), [(16, 5)]) for program in (0, 1)])
    assert found.by_name['MUFU.EX2'] == 2.5


def test_a_place_in_a_grid_counts_along_its_first_axis() -> None:
    state = sass.begin(90, 17, (5, 3, 4), [])
    assert [state[f'SR_CTAID.{axis}'] for axis in 'XYZ'] == [2, 0, 1]
    assert [state['c', 0xC + 4 * i] for i in range(3)] == [5, 3, 4]


def test_kinds_of_instructions() -> None:
    names = {
        'HGMMA.64x64x16.F32.BF16': 'tensor',
        'UTCHMMA': 'tensor',
        'MUFU.EX2': 'special',
        'LDG.E.128': 'memory',
        'SHFL.BFLY': 'memory',
        'FADD': 'other',
    }
    assert {name: sass.kind(name) for name in names} == names
    asked = {'LDG.E.128': 512, 'LDG.E.U16': 64, 'STG.E': 128, 'LDS.128': 0, 'LDGSTS.E.BYPASS.128': 512}
    assert {name: sass.access_bytes(name) for name in asked} == asked
    asked = {'global_load_dwordx4': 1024, 'buffer_load_dword': 256, 'global_load_ushort': 128, 'ds_read_b128': 0}
    assert {name: gcn.access_bytes(name) for name in asked} == asked
