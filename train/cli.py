"""The command line. Each verb imports what it needs inside itself, so that `--help` starts in no time."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from .errors import DISK_IS_FULL, UserError

app = typer.Typer(
    name='attnzoo',
    help='Attention backbones for timm: train, score and use them.',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar='[KEY=VALUE]...', show_default=False)]
Target = Annotated[str, typer.Argument(metavar='RUN|NAME', help='A run folder, a .safetensors file, or a model name.')]


def main() -> None:
    """Run the command line. What a user can put right is one line on stderr, and exit status 1."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        _fail(f'cannot write {error.filename or "a file"}: {error.strerror}; what was saved before is intact')


def _fail(message: str) -> NoReturn:
    print(f'attnzoo: {message}', file=sys.stderr)
    sys.exit(1)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Import the packages of an extra, or say how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or '').split('.')[0] == 'attnzoo':
            raise
        raise UserError(f"this needs {error.name}, which is not installed: pip install 'attnzoo[{name}]'") from error


@app.command()
def train(
    config: Annotated[str, typer.Argument(help='A YAML file, or a packaged recipe: classification/digits_biformer.')],
    overrides: Overrides = None,
) -> None:
    """Train a model as CONFIG says; KEY=VALUE changes a setting: seed=1 output=runs/mine data.root=PATH."""
    with _extra('train'):
        from .classification import train as run
        from .config import load
    raise typer.Exit(run(load(config, overrides or [])))


@app.command('eval')
def evaluate(target: Target, overrides: Overrides = None) -> None:
    """Score a model on held-out images: those of its run, or those of data.root=PATH."""
    with _extra('train'):
        from accelerate import PartialState

        from .classification import score
        from .config import load, resolve
    from pathlib import Path

    from .console import show_table
    from .models import load as load_model

    settings = Path(target) / 'config.yaml'
    run = settings.is_file()
    config = load(str(settings), overrides or []) if run else resolve({}, overrides or [])
    model, spec, source = load_model(target)
    scores = score(config, model, spec, spec.classes if run else None)
    rows = {
        'top-1': f'{scores.top1:.2f} %',
        'top-5': f'{scores.top5:.2f} %',
        'loss': f'{scores.loss:.4f}',
        'images': f'{scores.images:,}',
        'speed': f'{scores.images_per_second:,.0f} images/s',
    }
    if PartialState().is_main_process:
        show_table(source, rows)


@app.command()
def predict(
    target: Target,
    images: Annotated[list[str], typer.Argument(metavar='IMAGE...', show_default=False)],
) -> None:
    """Print the five likeliest classes of each image, with their probabilities."""
    from .predict import predict as run

    run(target, images)


@app.command('list')
def list_models(
    pattern: Annotated[str, typer.Argument(help='A name with wildcards: "biformer*".')] = '*',
) -> None:
    """List the models that attnzoo adds to timm."""
    from .inspect import show_list

    show_list(pattern)


@app.command()
def info(name: Annotated[str, typer.Argument(help='Any model name that timm knows.')]) -> None:
    """Show a model's parameters, GMACs, input size, weights, paper and licence."""
    from .inspect import show_info

    show_info(name)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar='SRC', help='An official .pth or .safetensors file.')],
    destination: Annotated[str, typer.Argument(metavar='DST', help='The .safetensors file to write.')],
    model: Annotated[str, typer.Option(metavar='NAME', help='The model that the file is of.')],
) -> None:
    """Turn an official checkpoint into one that attnzoo and timm load by themselves. Nothing in SRC is run."""
    from .convert import convert as run

    run(source, destination, model)
