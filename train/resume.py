"""Which checkpoint a run goes on from, and whether it is still the same run."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import load_state
from .config import FREE_TO_CHANGE, Config, flatten
from .errors import UserError
from .run_folder import RunFolder

MISSING = 'not there'
PARTS = {'model', 'ema', 'optimizer', 'scaler', 'progress', 'bad_images', 'processes', 'data', 'config'}


@dataclass(frozen=True)
class Origin:
    """A run folder to go on from, and the state in it."""

    folder: Path
    state: dict[str, Any]

    @property
    def epochs_done(self) -> int:
        return self.state['progress']['epoch']

    @property
    def planned(self) -> int:
        return self.state['config']['train']['epochs']

    @property
    def root(self) -> str:
        return self.state['config']['data']['root']


def find_origin(config: Config, folder: RunFolder, processes: int) -> Origin | None:
    """The checkpoint that `resume` asks to go on from; None where the run starts anew.

    Raises:
        UserError: there is none, or its settings are others in what the numbers depend on.
    """
    if config.resume == 'never':
        return None
    path = folder.path if config.resume == 'auto' else Path(config.resume)
    state = path / folder.state.name
    if not state.is_file():
        if config.resume != 'auto':
            raise UserError(f'resume={config.resume}: no {state.name} in it; expected auto, never or a run folder')
        if left := folder.leftovers():
            names = ', '.join(item.name for item in left)
            raise UserError(
                f'{path} holds {names}, but no {state.name} to go on from: output=DIR leaves it alone, '
                'resume=never starts it over'
            )
        return None
    content = load_state(state)
    if not isinstance(content, dict) or not content.keys() >= PARTS:
        raise UserError(
            f'{state} is of another version of attnzoo: output=DIR leaves it alone, resume=never starts it over'
        )
    origin = Origin(path, content)
    _check_settings(config, origin, processes)
    return origin


def check_data(facts: dict[str, Any], origin: Origin, root: str) -> None:
    """Check that the data is what the run was begun with. Where it lies may change.

    Args:
        facts: what the data is now: its format, class names, images in each split.
    """
    before = origin.state['data']
    changed = [_difference(name, before.get(name), now) for name, now in facts.items() if before.get(name) != now]
    if changed:
        raise UserError(
            f'{origin.folder} was begun with other data than data.root={root!r}: {"; ".join(changed)}; '
            'output=DIR leaves it alone, resume=never starts it over'
        )


def _difference(name: str, before: Any, now: Any) -> str:
    if not isinstance(before, list) or not isinstance(now, list):
        return f'{name} {before}, now {now}'
    lists = {'gone': [item for item in before if item not in now], 'new': [item for item in now if item not in before]}
    apart = [
        f'{", ".join(items[:3])}{", ..." if len(items) > 3 else ""} {"is" if len(items) == 1 else "are"} {how}'
        for how, items in lists.items()
        if items
    ]
    return f'{len(before)} {name}, now {len(now)}: {" and ".join(apart) or "in another order"}'


def _check_settings(config: Config, origin: Origin, processes: int) -> None:
    # What the version that began it did not have is as it was then: the default.
    before = flatten(dataclasses.asdict(Config())) | flatten(origin.state['config'])
    now = flatten(dataclasses.asdict(config))
    free: tuple[str, ...] = FREE_TO_CHANGE
    if origin.epochs_done == origin.planned < config.train.epochs:
        free += ('train.epochs',)  # a run that has ended can be made longer
    changed = [
        f'{key}={before.get(key, MISSING)} (now {now.get(key, MISSING)})'
        for key in before | now
        if before.get(key, MISSING) != now.get(key, MISSING) and not key.startswith(free)
    ]
    if origin.state['processes'] != processes:
        changed.append(f'{origin.state["processes"]} processes (now {processes})')
    if changed:
        raise UserError(
            f'{origin.folder} was begun with {", ".join(changed)}: output=DIR leaves it alone, '
            'resume=never starts it over'
        )
