"""AMD's machine code (GCN assembly, as Triton emits it) as `count` follows it: of what decides branches, the meaning.

Keys of a state: 's4' and 'v4' hold 32 bits (a vector register those that all threads have in common), ('v4', '7') those
of thread 7, 'scc' a bool, ('k', 264) a word of the segment that holds the kernel's parameters. Some thread is taken to
be active everywhere.
"""

import operator
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from .count import WORD, Instruction, State, as_bits, as_float, places, signed

_SEGMENT = 0x7EA00000  # an address, in its upper half, that stands for the segment of parameters


def read(text: str) -> list[Instruction]:
    """The instructions of the one kernel in an assembly."""
    labels: dict[str, int] = {}
    lines: list[str] = []
    for line in text.partition('.Lfunc_end0:')[0].splitlines():
        if label := re.match(r'(\.L\w+):', line):
            labels[label[1]] = len(lines)
        elif found := re.match(r'\t([a-z][^;]*)', line):
            lines.append(found[1].strip())
    return [_decode(line, labels, len(lines)) for line in lines]


def begin(text: str, program: int, grid: Sequence[int], parameters: Sequence[tuple[int, int]]) -> State:
    """What a program finds: its place in the grid, the grid, the kernel's whole numbers as (offset, value)."""
    user = re.search(r'\.amdhsa_user_sgpr_count (\d+)', text)
    assert user, 'the assembly does not say how many registers a program finds filled'
    state: State = {'s0': 0, 's1': _SEGMENT, 'exec': (1 << 64) - 1}
    for axis, (place, size) in enumerate(places(program, grid)):
        state[f's{int(user[1]) + axis}'] = place
        count = re.search(rf'\.offset:\s+(\d+)\s+\.size:\s+4\s+\.value_kind:\s+hidden_block_count_{"xyz"[axis]}', text)
        if count:
            state['k', int(count[1])] = size
    for offset, value in parameters:
        for i in range(2 if abs(value) >> 31 else 1):
            state['k', offset + 4 * i] = value >> 32 * i & WORD
    return state


def kind(name: str) -> str:
    """What an instruction keeps busy: the units for products, for transcendental functions, for memory, or others.

    'scalar' are those that are issued beside the others.
    """
    if re.match(r'v_s?mfma', name):
        return 'tensor'
    if re.match(r'v_(?:exp|log|rcp|rsq|sqrt|sin|cos)_', name):
        return 'special'
    if re.match(r'(?:ds|global|buffer|flat|scratch)_', name):
        return 'memory'
    return 'scalar' if name.startswith('s_') else 'other'


def access_bytes(name: str) -> int:
    """Bytes of global memory that a warp's instruction asks for, all threads counted."""
    found = re.match(r'(?:global|buffer|flat)_(?:load|store|atomic)_(?:.*?)(?:dword(?:x(\d))?|(short)|(byte))', name)
    if found is None:
        return 0
    return 64 * (2 if found[2] else 1 if found[3] else 4 * int(found[1] or 1))


def _decode(line: str, labels: dict[str, int], end: int) -> Instruction:
    name, _, rest = line.partition(' ')
    texts = [text.strip() for text in rest.split(',')]
    if name == 's_endpgm':
        return Instruction(name, jump=end)
    if name == 's_branch':
        return Instruction(name, jump=labels[texts[0]])
    if name.startswith('s_cbranch_'):
        keys, taken = _BRANCHES[name.removeprefix('s_cbranch_')]
        return Instruction(name, reads=keys, jump=labels[texts[0]], taken=taken)

    opcode = re.sub(r'_e(?:32|64)$', '', name)
    if re.fullmatch(r's_(?:mov|add|mul)k_i32|s_cmpk_\w+_i32', opcode):  # a constant of 16 bits, with its sign
        texts[-1] = str(signed(int(texts[-1], 0), 16))
    if opcode in ('v_writelane_b32', 'v_readlane_b32'):
        return _lane(name, texts)
    compares = opcode.startswith(('s_cmp', 's_bitcmp'))
    in_place = compares or opcode in ('s_addk_i32', 's_mulk_i32')
    results = () if compares else _registers(texts[0])
    operands = [_operand(text) for text in (texts if in_place else texts[1:])]
    writes: tuple[Hashable, ...] = (*results, 'scc') if compares or _FLAGGED.fullmatch(opcode) else results
    meaning = _load if opcode.startswith('s_load_dword') else _MEANINGS.get(opcode)
    if meaning is None:
        return Instruction(name, writes=writes)
    reads = {key for keys, _ in operands for key in keys} | {'scc'}

    def run(state: State) -> None:
        values = [get(state) for _, get in operands]
        words, flag = (None, None) if None in values else meaning(values, state)
        if isinstance(words, int):
            words = [words >> 32 * i & WORD for i in range(len(results))]
        for key, word in zip(writes, [*(words or [None] * len(results)), flag], strict=False):
            if word is None:
                state.pop(key, None)
            else:
                state[key] = word

    return Instruction(name, writes, tuple(reads), run)


def _lane(name: str, texts: list[str]) -> Instruction:
    """One thread's part of a vector register: where scalar registers are kept that there is no room for."""
    target, source, lane = texts
    writes: Hashable = target
    reads, get = _operand(source)
    if name.startswith('v_writelane'):
        writes = (target, lane)
    else:
        reads = (*reads, (source, lane))

    def run(state: State) -> None:
        word = state.get((source, lane), get(state))
        if word is None:
            state.pop(writes, None)
        else:
            state[writes] = word

    return Instruction(name, (writes,), reads, run)


def _registers(text: str) -> tuple[str, ...]:
    """The 32-bit registers of an operand; none for the mask of active threads, which is not followed."""
    if found := re.fullmatch(r'([sva])\[(\d+):(\d+)\]', text):
        return tuple(f'{found[1]}{i}' for i in range(int(found[2]), int(found[3]) + 1))
    if text == 'vcc':
        return 'vcc_lo', 'vcc_hi'
    return (text,) if re.fullmatch(r'[sva]\d+|vcc_lo|vcc_hi|m0', text) else ()


def _operand(text: str) -> tuple[tuple[Hashable, ...], Callable[[State], Any]]:
    """The keys that an operand reads, and its value in a state: unknown where its form is."""
    if re.fullmatch(r'-?(?:0x[0-9a-f]+|\d+)', text):
        return (), lambda state: int(text, 0)
    if text in ('exec', 'scc'):
        return (text,), lambda state: state.get(text)
    keys = _registers(text)

    def get(state: State) -> int | None:
        value = 0
        for i, key in enumerate(keys):
            word = state.get(key)
            if word is None:
                return None
            value |= word << 32 * i
        return value if keys else None

    return keys, get


_Meaning = Callable[[list[Any], State], tuple[Any, bool | None]]  # the result, or its words, and the flag


def _load(values: list[Any], state: State) -> tuple[Any, None]:
    base, offset = values
    if base >> 32 != _SEGMENT:
        return None, None
    return [state.get(('k', (base & WORD) + offset + 4 * i)) for i in range(16)], None


def _bits(bits: int, function: Callable[[int, int], int]) -> _Meaning:
    """A function of the bits of two numbers, whose flag says that the result is not zero."""

    def meaning(values: list[Any], state: State) -> tuple[int, bool]:
        result = function(*(value & (1 << bits) - 1 for value in values)) & (1 << bits) - 1
        return result, result != 0

    return meaning


def _signed_result(function: Callable[..., int]) -> _Meaning:
    """A function of signed numbers; the flag is not followed where it tells of an overflow."""
    return lambda values, state: (function(*map(signed, values)) & WORD, None)


def _unsigned(function: Callable[..., int]) -> _Meaning:
    return lambda values, state: (function(*(value & WORD for value in values)) & WORD, None)


def _with_carry(sign: int, takes: bool) -> _Meaning:
    def meaning(values: list[Any], state: State) -> tuple[Any, bool | None]:
        carry = state.get('scc') if takes else False
        if carry is None:
            return None, None
        total = (values[0] & WORD) + sign * ((values[1] & WORD) + carry)
        return total & WORD, not 0 <= total <= WORD

    return meaning


def _compare(function: Callable[[int, int], bool], kind: str) -> _Meaning:
    def meaning(values: list[Any], state: State) -> tuple[None, bool]:
        a, b = ((signed(value) if kind == 'i32' else value & ((1 << int(kind[1:])) - 1)) for value in values)
        return None, function(a, b)

    return meaning


def _select(values: list[Any], state: State) -> tuple[Any, None]:
    first = state.get('scc')
    return None if first is None else values[0] if first else values[1], None


def _field(with_sign: bool) -> _Meaning:
    def meaning(values: list[Any], state: State) -> tuple[int, bool]:
        first, width = values[1] & 31, values[1] >> 16 & 127
        field = (values[0] & WORD) >> first & (1 << width) - 1
        result = (signed(field, width) if with_sign and width else field) & WORD
        return result, result != 0

    return meaning


def _reciprocal(value: int) -> int:
    return as_bits(1 / as_float(value)) if as_float(value) else 0x7F800000


_MEANINGS: dict[str, _Meaning] = {
    's_add_u32': _with_carry(1, False),
    's_addc_u32': _with_carry(1, True),
    's_sub_u32': _with_carry(-1, False),
    's_subb_u32': _with_carry(-1, True),
    's_cselect_b32': _select,
    's_cselect_b64': _select,
    's_bfe_u32': _field(False),
    's_bfe_i32': _field(True),
    's_abs_i32': lambda values, state: (abs(signed(values[0])), signed(values[0]) != 0),
    's_ashr_i64': lambda values, state: (signed(values[0], 64) >> (values[1] & 63), None),
    's_ashr_i32': lambda values, state: (
        signed(values[0]) >> (values[1] & 31) & WORD,
        signed(values[0]) >> (values[1] & 31) != 0,
    ),
    's_bitcmp0_b32': lambda values, state: (None, not values[0] >> (values[1] & 31) & 1),
    's_bitcmp1_b32': lambda values, state: (None, bool(values[0] >> (values[1] & 31) & 1)),
    # Divisions of whole numbers start from a reciprocal in float32, whose last bits do not matter.
    'v_cvt_f32_u32': _unsigned(lambda a: as_bits(float(a))),
    'v_rcp_f32': _unsigned(_reciprocal),
    'v_rcp_iflag_f32': _unsigned(_reciprocal),
    'v_mul_f32': _unsigned(lambda a, b: as_bits(as_float(a) * as_float(b))),
    'v_cvt_u32_f32': _unsigned(lambda a: int(min(max(as_float(a), 0.0), 4294967040.0))),
    'v_readfirstlane_b32': _unsigned(lambda a: a),
    'v_mov_b32': _unsigned(lambda a: a),
    's_mul_hi_u32': _unsigned(lambda a, b: a * b >> 32),
}
for _name in ('s_mov_b32', 's_mov_b64', 's_movk_i32'):
    _MEANINGS[_name] = lambda values, state: (values[0], None)
_ARITHMETIC: dict[str, Callable[..., int]] = {
    's_add_i32': lambda a, b: a + b,
    's_addk_i32': lambda a, b: a + b,
    's_sub_i32': lambda a, b: a - b,
    's_mul_i32': lambda a, b: a * b,
    's_mulk_i32': lambda a, b: a * b,
    's_mul_hi_i32': lambda a, b: a * b >> 32,
    's_min_i32': min,
    's_max_i32': max,
    's_sext_i32_i16': lambda a: signed(a, 16),
}
for _name, _function in _ARITHMETIC.items():
    _MEANINGS[_name] = _signed_result(_function)
for _name, _function in {'s_min_u32': min, 's_max_u32': max}.items():
    _MEANINGS[_name] = _unsigned(_function)
for _shift in range(1, 5):
    _MEANINGS[f's_lshl{_shift}_add_u32'] = _unsigned(lambda a, b, shift=_shift: (a << shift) + b)
for _width in (32, 64):
    _logic: dict[str, Callable[..., int]] = {
        'and': lambda a, b: a & b,
        'or': lambda a, b: a | b,
        'xor': lambda a, b: a ^ b,
        'andn2': lambda a, b: a & ~b,
        'orn2': lambda a, b: a | ~b,
        'not': lambda a: ~a,
        'lshl': lambda a, b, width=_width: a << (b & width - 1),
        'lshr': lambda a, b, width=_width: a >> (b & width - 1),
    }
    for _name, _function in _logic.items():
        _MEANINGS[f's_{_name}_b{_width}'] = _bits(_width, _function)
for _name, _compares in {
    'eq': operator.eq,
    'lg': operator.ne,
    'lt': operator.lt,
    'le': operator.le,
    'gt': operator.gt,
    'ge': operator.ge,
}.items():
    for _type in ('i32', 'u32', 'u64'):
        _MEANINGS[f's_cmp_{_name}_{_type}'] = _MEANINGS[f's_cmpk_{_name}_{_type}'] = _compare(_compares, _type)

# These set the flag too. Where it is not followed, it is unknown behind them.
_FLAGGED = re.compile(
    r's_(?:add|addc|sub|subb|addk|abs|min|max|and|or|xor|andn2|orn2|not|lshl|lshr|ashr|bfe|lshl[1-4]_add)_\w+'
)

_BRANCHES: dict[str, tuple[tuple[str, ...], Callable[[State], bool | None]]] = {
    'scc0': (('scc',), lambda state: None if 'scc' not in state else not state['scc']),
    'scc1': (('scc',), lambda state: state.get('scc')),
    'vccz': (('vcc_lo', 'vcc_hi'), lambda state: _vcc(state, False)),
    'vccnz': (('vcc_lo', 'vcc_hi'), lambda state: _vcc(state, True)),
    'execz': ((), lambda state: False),
    'execnz': ((), lambda state: None),
}


def _vcc(state: State, any_set: bool) -> bool | None:
    words = state.get('vcc_lo'), state.get('vcc_hi')
    return None if None in words else any(words) == any_set
