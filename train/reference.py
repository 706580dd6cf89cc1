"""What the settings take and mean, from the schema: `attnzoo config` and docs/settings.md; and the recipes."""

import dataclasses
import json
from fnmatch import fnmatch

from rich.table import Column, Table

from .config import default, expected, fields, load, recipes, sections
from .console import console, say
from .errors import UserError, near

_INTRODUCTION = """# Settings

Any of these can follow `attnzoo train CONFIG` as `key=value`, or stand in a YAML file: `data.batch_size=64` is
`data: {batch_size: 64}` there. Values are YAML: `true`, `null`, `[0.5, 0.5, 0.5]`. A recipe sets some of them
(`attnzoo list --recipes`); the rest have the defaults below. `attnzoo config KEY` prints one of them, or a section.

This page is written by `attnzoo config --markdown > docs/settings.md`.
"""
_RUN = 'The run: its task, its folder and the machine.'


def show_reference(key: str = '') -> None:
    """Print the defaults of a setting, a section or all, with what they mean and take."""
    found = [(name, item) for name, item in fields() if not key or name == key or name.startswith(f'{key}.')]
    if not found:
        raise UserError(f'no setting {key!r}{near(key, [*dict(fields()), *dict(sections())])}')
    for name, item in found:
        say(f'{name}={_default(item)}\n    {item.metadata["about"]}\n    takes {expected(item)}')


def as_markdown() -> str:
    """The page of all settings."""
    page = [_INTRODUCTION]
    for section, about in [('', _RUN), *((name, item.metadata['about']) for name, item in sections())]:
        page.append(f'\n## {section or "Top level"}\n\n{about}\n')
        page.append('| Setting | Default | Meaning | Takes |\n| --- | --- | --- | --- |')
        for name, item in fields():
            if name.rpartition('.')[0] == section:
                page.append(f'| `{name}` | `{_default(item)}` | {item.metadata["about"]} | {expected(item)} |')
    return '\n'.join(page) + '\n'


def show_recipes(pattern: str = '*') -> None:
    """Print the packaged recipes that match a pattern with wildcards: name, model, and what their first line says."""
    found = {name: path for name, path in recipes().items() if fnmatch(name, f'*{pattern}')}
    if not found:
        raise UserError(
            f'no recipe matches {pattern!r}{near(pattern.strip("*"), [path.stem for path in recipes().values()])}'
        )
    table = Table(Column('recipe', no_wrap=True), Column('model', no_wrap=True), 'what it does')
    for name, path in found.items():
        first, *_ = path.read_text(encoding='utf-8').splitlines()
        table.add_row(name, load(name).model.name, first.removeprefix('# '))
    console.print(table)


def _default(item: dataclasses.Field) -> str:
    """The default as YAML."""
    value = default(item)
    return value if isinstance(value, str) and value else json.dumps(value)
