"""NVIDIA's machine code (SASS) as `count` follows it: of what decides branches, the meaning.

Keys of a state: 'R4' and 'UR4' hold 32 bits, 'P4' and 'UP4' a bool, ('c', 0x210) a word of the constant bank, where a
launch leaves the size of its grid and the kernel's parameters.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from .count import WORD, Instruction, State, as_bits, as_float, places, signed

# Where the constant bank holds the size of the grid, and the first parameter.
GRID = {80: 0xC, 90: 0xC, 100: 0x370}
PARAMETERS = {80: 0x160, 90: 0x210, 100: 0x380}


def disassemble(cubin: bytes) -> list[Instruction]:
    """The instructions of a kernel, by the disassembler that comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'nvdisasm'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        return read(subprocess.run([tool, '-c', file.name], capture_output=True, text=True, check=True).stdout)


def read(text: str) -> list[Instruction]:
    """The instructions of a disassembly, without the padding behind its end."""
    labels: dict[str, int] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if label := re.match(r'^(\.L_x_\d+):', line):
            labels[label[1]] = len(lines)
        elif (found := re.search(r'^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;', line)) and not found[1].startswith('NOP'):
            lines.append(found[1])
    last = re.fullmatch(r'BRA\s+`\((\.L_x_\d+)\)', lines[-1])
    if last and labels[last[1]] == len(lines) - 1:  # a branch to itself, which nothing reaches
        lines.pop()
    return [_decode(line, labels, len(lines)) for line in lines]


def begin(arch: int, program: int, grid: Sequence[int], parameters: Sequence[tuple[int, int]]) -> State:
    """What a program finds: its place in the grid, the grid, the kernel's whole numbers as (offset, value)."""
    state: State = {}
    for axis, (place, size) in enumerate(places(program, grid)):
        state |= {f'SR_CTAID.{"XYZ"[axis]}': place, ('c', GRID[arch] + 4 * axis): size}
    for offset, value in parameters:
        for i in range(2 if abs(value) >> 31 else 1):
            state['c', PARAMETERS[arch] + offset + 4 * i] = value >> 32 * i & WORD
    return state


def kind(name: str) -> str:
    """What an instruction keeps busy: the units for products, for transcendental functions, for memory, or others."""
    for found, names in _KINDS.items():
        if re.match(names, name):
            return found
    return 'other'


# Conversions are made where transcendental functions are, which takes a warp 8 cycles.
_KINDS = {
    'tensor': r'(?:HMMA|HGMMA|IMMA|IGMMA|DMMA|QMMA|OMMA|UTC\w*MMA)\b',
    'special': r'(?:MUFU|I2F|F2I|F2F|POPC|FLO)\b',
    'memory': r'(?:LD|ST|LDG|STG|LDS|STS|LDSM|STSM|LDGSTS|SHFL|ATOM|ATOMG|ATOMS|RED|REDG|LDC|LDL|STL|LDT|STT)\b',
}


def access_bytes(name: str) -> int:
    """Bytes of global memory that a warp's instruction asks for, all threads counted."""
    if not re.match(r'(?:LDG|STG|LDGSTS|RED|REDG|ATOMG)\b', name):
        return 0
    width = re.search(r'\.[US]?(128|64|16|8)\b', name)
    return 32 * (int(width[1]) // 8 if width else 4)


_Read = tuple[tuple[Hashable, ...], Callable[[State], Any]]  # the keys that an operand reads, and its value
_SLOT = re.compile(r'\[R1(?:\+(0x[0-9a-f]+))?\]')  # of the stack
_NOTHING = {'RZ', 'URZ', 'SRZ', 'PT', 'UPT'}
_PREDICATE = re.compile(r'(!?)(U?P(?:\d|T))')
_VALUE = re.compile(r'([-~]?)\|?(?:(U?R\d+|U?RZ|SRZ)(?:\.reuse|\.64)*|c\[0x0\]\[(0x[0-9a-f]+)\]|(0x[0-9a-f]+|\d+))\|?')


def _decode(line: str, labels: dict[str, int], end: int) -> Instruction:
    parsed = re.match(r'(?:@(!?U?P\w+)\s+)?([A-Z]\w*)((?:\.\w+)*)\s*(.*)', line)
    assert parsed, line
    guard, opcode, modifiers, rest = parsed.groups()
    name = opcode + modifiers
    texts = [text.strip() for text in rest.split(',')] if rest else []
    guards = [] if guard is None else [_operand(guard)]
    target = re.search(r'\.L_x_\d+', rest)
    # A far jump out of a loop is a CALL that no one comes back from. All threads of a warp go the same way.
    if opcode == 'EXIT' or (target and (opcode == 'CALL' or (opcode == 'BRA' and '.DIV' not in modifiers))):
        guards += [_operand(text) for text in texts if _PREDICATE.fullmatch(text)]
        tests = tuple(key for keys, _ in guards for key in keys)
        jump = labels[target[0]] if target else end
        return Instruction(name, reads=tests, jump=jump, taken=_all([get for _, get in guards]) if guards else None)

    if opcode in ('STL', 'LDL') and (slot := _SLOT.fullmatch(texts[opcode == 'LDL'])):
        return _spill(name, int(slot[1] or '0', 16), texts[opcode == 'STL'], guards)

    written = _written(opcode, texts)
    texts, results = texts[written:], texts[:written]
    if opcode in ('LOP3', 'ULOP3') and _PREDICATE.fullmatch(results[0]):  # whose predicate is written first
        results.reverse()
    meaning = _MEANINGS.get(opcode)
    if meaning is None:
        return Instruction(name, writes=_overwritten(name, results))
    words = set(modifiers.split('.')[1:])
    double = bool(words & {'WIDE', '64'}) or (opcode == 'CS2R' and '32' not in words)
    # Of a product that is 64 bits wide, or of which the upper half is wanted, the summand is a pair.
    summand = 2 if words & {'WIDE', 'HI'} and opcode.endswith('MAD') else None
    sources = [_operand(text, i == summand or '64' in words) for i, text in enumerate(texts)]
    targets = [_pair(result) if double and i == 0 else (result,) for i, result in enumerate(results)]
    writes = tuple(key for target in targets for key in target if key not in _NOTHING)
    reads = {key for keys, _ in (*guards, *sources) for key in keys} | (set(writes) if guards else set())
    runs = _all([get for _, get in guards])

    def run(state: State) -> None:
        running = runs(state)
        if running is False:
            return
        values = meaning([get(state) for _, get in sources], words)
        for target, value in zip(targets, values if isinstance(values, tuple) else (values,), strict=False):
            for i, key in enumerate(target):
                word = value if value is None or isinstance(value, bool) else value >> 32 * i & WORD
                if running is None and state.get(key) != word:
                    word = None  # only some threads have it
                _put(state, key, word)
        for target in targets[len(values) if isinstance(values, tuple) else 1 :]:
            for key in target:
                _put(state, key, None)

    return Instruction(name, writes, tuple(reads), run)


def _spill(name: str, slot: int, register: str, guards: list[_Read]) -> Instruction:
    """Registers that there is no room for go to a slot of the stack, and come back."""
    width = re.search(r'\.(64|128)\b', name)
    count = int(width[1]) // 32 if width else 1
    registers = [register] * count if register == 'RZ' else [f'R{int(register[1:]) + i}' for i in range(count)]
    slots = [('stack', slot + 4 * i) for i in range(count)]
    sources: list[Hashable] = [*registers] if name.startswith('STL') else [*slots]
    targets: list[Hashable] = [*slots] if name.startswith('STL') else [*registers]
    runs = _all([get for _, get in guards])

    def run(state: State) -> None:
        running = runs(state)
        if running is False:
            return
        for source, target in zip(sources, targets, strict=True):
            _put(state, target, None if running is None else 0 if source == 'RZ' else state.get(source))

    return Instruction(name, tuple(targets), (*sources, *(key for keys, _ in guards for key in keys)), run)


def _put(state: State, key: Hashable, value: Any) -> None:
    if value is None:
        state.pop(key, None)
    elif key not in _NOTHING:
        state[key] = value


def _all(conditions: list[Callable[[State], bool | None]]) -> Callable[[State], bool | None]:
    def hold(state: State) -> bool | None:
        found = [condition(state) for condition in conditions]
        return False if False in found else None if None in found else True

    return hold


def _written(opcode: str, texts: list[str]) -> int:
    """How many of the operands are results: a register, predicates around it, or two predicates."""
    if opcode in ('ISETP', 'UISETP', 'PLOP3', 'UPLOP3'):
        return 2
    registers = 0
    for i, text in enumerate(texts):
        if _PREDICATE.fullmatch(text) and not text.startswith('!') and not (registers and opcode in ('SEL', 'VOTE')):
            continue
        if registers or not re.fullmatch(r'U?R(?:\d+|Z)', text):
            return i
        registers += 1
    return len(texts)


def _overwritten(name: str, results: list[str]) -> tuple[str, ...]:
    """Registers whose content is unknown after an instruction that is not followed."""
    width = re.search(r'\.(64|96|128)\b', name)
    count = int(width[1]) // 32 if width else 1
    if group := re.match(r'[HIQ]GMMA\.64x(\d+)', name):
        count = int(group[1]) // 2
    elif re.match(r'[HIDQO]MMA|LDSM', name):
        count = 4
    found: list[str] = []
    for result in results:
        register = re.fullmatch(r'(U?R)(\d+)', result)
        found += [f'{register[1]}{int(register[2]) + i}' for i in range(count)] if register else [result]
    return tuple(key for key in found if key not in _NOTHING)


def _pair(register: str) -> tuple[str, ...]:
    found = re.fullmatch(r'(U?R)(\d+)', register)
    return (register, f'{found[1]}{int(found[2]) + 1}') if found else (register,)


def _operand(text: str, pair: bool = False) -> _Read:
    """The keys that an operand reads, and its value in a state: unknown where its form is."""
    if predicate := _PREDICATE.fullmatch(text):
        negated, key = bool(predicate[1]), predicate[2]
        if key in _NOTHING:
            return (), lambda state: not negated
        return (key,), lambda state: None if (value := state.get(key)) is None else value != negated
    if text.startswith('SR_'):
        return (text,), lambda state: state.get(text)
    found = _VALUE.fullmatch(text)
    if found is None:
        return (), lambda state: None
    sign, register, constant, number = found.groups()
    keys: tuple[Hashable, ...] = ()
    if constant:
        keys = tuple(('c', int(constant, 16) + 4 * i) for i in range(2 if pair else 1))
    elif register and register not in _NOTHING:
        keys = _pair(register) if pair else (register,)

    def get(state: State) -> int | None:
        words = [state.get(key) for key in keys]
        if any(word is None for word in words):
            return None
        value = int(number, 0) if number else sum(word << 32 * i for i, word in enumerate(words) if word is not None)
        if '|' in text:
            value = abs(signed(value))
        # Not zero for -0: as hardware has it, taking zero away carries.
        return (1 << 32 * max(1, len(keys))) - value if sign == '-' else value ^ WORD if sign == '~' else value

    return keys, get


_Meaning = Callable[[list[Any], set[str]], Any]


def _known(meaning: _Meaning) -> _Meaning:
    """Unknown where any operand is."""
    return lambda values, words: None if None in values else meaning(values, words)


def _add(values: list[Any], words: set[str]) -> Any:
    total = sum(values)  # two or three terms, and carries where it is the upper half of 64 bits
    return total if '64' in words else (total & WORD, total > WORD, total >> 33 > 0)


def _multiply(values: list[Any], words: set[str]) -> Any:
    a, b, c, *carry = values
    a, b = (value & WORD if 'U32' in words else signed(value) for value in (a, b))
    total = a * b + c + sum(carry)
    return total >> 32 & WORD if 'HI' in words else total & (1 << 64) - 1


def _shift_add(values: list[Any], words: set[str]) -> Any:
    if 'HI' in words:
        if len(values) != 4:  # with a carry or a sign: parts of addresses
            return None
        low, addend, high, shift = values
        return (((high & WORD) << 32 | low & WORD) << shift >> 32) + addend & WORD
    return None if len(values) != 3 else ((values[0] & WORD) << values[2]) + values[1] & WORD


def _shift(values: list[Any], words: set[str]) -> Any:
    low, by, high = (value & WORD for value in values)
    by = min(by, 63)
    pair = signed(high << 32 | low, 64) if 'S32' in words or 'S64' in words else high << 32 | low
    pair = pair << by if 'L' in words else pair >> by
    return pair >> 32 & WORD if 'HI' in words else pair & WORD


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    'LT': lambda a, b: a < b,
    'LE': lambda a, b: a <= b,
    'GT': lambda a, b: a > b,
    'GE': lambda a, b: a >= b,
    'EQ': lambda a, b: a == b,
    'NE': lambda a, b: a != b,
}


def _compare(values: list[Any], words: set[str]) -> Any:
    a, b, other, *lower = values
    if a is None or b is None or None in lower:
        found = None
    else:
        a, b = (value & WORD if 'U32' in words else signed(value) for value in (a, b))
        # Of the upper halves of 64 bits, if there is the result of the lower ones.
        found = lower[0] if lower and a == b else _COMPARE[next(iter(words & _COMPARE.keys()))](a, b)
    return _combine(found, other, words), _combine(None if found is None else not found, other, words)


def _combine(a: bool | None, b: bool | None, words: set[str]) -> bool | None:
    if 'XOR' in words:
        return None if a is None or b is None else a != b
    decisive = 'OR' in words
    return decisive if decisive in (a, b) else None if a is None or b is None else not decisive


def _choose(values: list[Any], words: set[str]) -> Any:
    a, b, first = values
    return None if first is None else a if first else b


def _table(bits: list[int], table: int) -> int:
    """A function of three bits."""
    return table >> (bits[0] << 2 | bits[1] << 1 | bits[2]) & 1


def _logic(values: list[Any], words: set[str]) -> Any:
    *terms, table, _predicate = values
    result = sum(_table([value >> i & 1 for value in terms], table) << i for i in range(32))
    return result, result != 0


def _logic_of_predicates(values: list[Any], words: set[str]) -> Any:
    *terms, first, second = values
    cases = [[False, True] if value is None else [value] for value in terms]
    results = []
    for table in (first, second):
        found = {_table([a, b, c], table) == 1 for a in cases[0] for b in cases[1] for c in cases[2]}
        results.append(found.pop() if len(found) == 1 else None)
    return tuple(results)


def _least(values: list[Any], words: set[str]) -> Any:
    a, b, least = values
    a, b = (value & WORD if 'U32' in words else signed(value) for value in (a, b))
    return (min(a, b) if least else max(a, b)) & WORD


def _permute(values: list[Any], words: set[str]) -> Any:
    if words:
        return None
    a, selector, b = (value & WORD for value in values)
    source = (b << 32 | a).to_bytes(8, 'little')
    taken = [source[selector >> 4 * i & 7] for i in range(4)]
    signs = [selector >> 4 * i & 8 for i in range(4)]
    taken = [255 * (byte >> 7) if sign else byte for byte, sign in zip(taken, signs, strict=True)]
    return int.from_bytes(bytes(taken), 'little')


# Divisions of whole numbers start from a reciprocal in float32, whose last bits do not matter.
def _to_float(values: list[Any], words: set[str]) -> Any:
    value = values[0] & WORD if 'U32' in words else signed(values[0])
    return as_bits(value)


def _reciprocal(values: list[Any], words: set[str]) -> Any:
    value = as_float(values[0])
    return as_bits(1 / value) if 'RCP' in words and value else None


def _to_whole(values: list[Any], words: set[str]) -> Any:
    value = as_float(values[0])
    return min(int(value), WORD) & WORD if 'TRUNC' in words and value == value else None


_MEANINGS: dict[str, _Meaning] = {}
for _opcodes, _meaning in {
    'MOV UMOV S2R S2UR LDC ULDC LDCU R2UR CS2R': lambda values, words: values[0],
    'IADD3 UIADD3 IADD VIADD UVIADD': _add,
    'IMAD UIMAD': _multiply,
    'LEA ULEA': _shift_add,
    'SHF USHF': _shift,
    'LOP3 ULOP3': _logic,
    'IMNMX VIMNMX UIMNMX UVIMNMX': _least,
    'IABS UIABS': lambda values, words: abs(signed(values[0])),
    'PRMT UPRMT': _permute,
    'I2F UI2F': _to_float,
    'MUFU': _reciprocal,
    'F2I UF2I': _to_whole,
}.items():
    _MEANINGS |= dict.fromkeys(_opcodes.split(), _known(_meaning))
# What waits, for memory or a place in it, tries again until it is told that it is over.
_MEANINGS |= dict.fromkeys(('SYNCS', 'UTCATOMSWS'), lambda values, words: True)
_MEANINGS |= dict.fromkeys(('ISETP', 'UISETP'), _compare)
_MEANINGS |= dict.fromkeys(('SEL', 'USEL'), _choose)
_MEANINGS |= dict.fromkeys(('PLOP3', 'UPLOP3'), _logic_of_predicates)
