"""The command line. Each verb imports what it needs inside itself, so that `--help` starts in no time."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from .errors import DISK_IS_FULL, NOT_ALLOWED, UserError, complain

app = typer.Typer(
    name='attnzoo',
    help='Attention backbones for timm: train, score and use them.',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar='[KEY=VALUE]...', show_default=False)]
Target = Annotated[
    str, typer.Argument(metavar='RUN|NAME', help='A run folder, a .safetensors file or its URL, or a model name.')
]


def main() -> None:
    """Run the command line. What a user can put right is one line on stderr, and exit status 1."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            _fail(f'cannot write {error.filename or "a file"}: {error.strerror}; what was saved before is intact')
        if error.errno not in NOT_ALLOWED:
            raise
        _fail(f'{error.filename or "a file"}: {error.strerror}')


def _fail(message: str) -> NoReturn:
    complain(message)
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


def _show_version(wanted: bool) -> None:
    if wanted:
        from attnzoo import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option('--version', help='Show the version.', callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Attention backbones for timm: train, score and use them."""


@app.command()
def train(
    config: Annotated[str, typer.Argument(help='A YAML file, or a packaged recipe: classification/digits_biformer.')],
    overrides: Overrides = None,
) -> None:
    """Train a model as CONFIG says; KEY=VALUE changes a setting: seed=1 output=runs/mine data.root=PATH."""
    with _extra('train'):
        from .classification.task import train as run
        from .config import load
    settings = load(config, overrides or [])
    if settings.task == 'detection':
        with _extra('detect'):
            from .detection.task import train as run_detector

            raise typer.Exit(run_detector(settings))
    raise typer.Exit(run(settings))


@app.command('eval')
def evaluate(
    target: Target,
    overrides: Overrides = None,
    json: Annotated[
        str, typer.Option(metavar='FILE', help='Write the detections there in COCO result format; - is stdout.')
    ] = '',
    draw: Annotated[str, typer.Option(metavar='DIR', help='Draw the detections in that folder.')] = '',
) -> None:
    """Score a model on held-out images: those of its run, or those of data.root=PATH."""
    if _is_detector(target):
        with _extra('detect'):
            from .detection.scoring import score as score_detector

            score_detector(target, overrides or [], json, draw)
        return
    with _extra('train'):
        from .classification.scoring import score
    if json or draw:
        raise UserError(f'{target}: --json and --draw are for detectors')
    score(target, overrides or [])


@app.command()
def predict(
    target: Target,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar='IMAGE...', show_default=False, help='Files, folders (all images below), wildcards, URLs.'
        ),
    ],
    top: Annotated[
        int | None,
        typer.Option(metavar='N', min=1, help='How many classes (5), or objects (all), of each image.'),
    ] = None,
    score: Annotated[
        float, typer.Option(metavar='P', min=0, max=1, help='Objects below it are neither printed nor drawn.')
    ] = 0.3,
    device: Annotated[str, typer.Option(help='auto, cpu, cuda or mps.')] = 'auto',
    batch_size: Annotated[
        int | None, typer.Option(metavar='N', min=1, help='Images that are computed at once (32; by a detector 4).')
    ] = None,
    json: Annotated[
        str,
        typer.Option(metavar='FILE', help='Write a JSON list there, of objects as COCO results; - is stdout.'),
    ] = '',
    csv: Annotated[str, typer.Option(metavar='FILE', help='Write a CSV table of classes there; - is stdout.')] = '',
    draw: Annotated[str, typer.Option(metavar='DIR', help='Draw the objects in that folder.')] = '',
) -> None:
    """Print the likeliest classes of each image, with their probabilities, or the objects that a detector finds.

    The exit status is 1 where an image could not be read.
    """
    if _is_detector(target):
        from .detection.predict import predict as find

        if csv:
            raise UserError(f'--csv {csv}: for classes; of objects --json writes a list')
        with _extra('detect'):
            raise typer.Exit(find(target, images, top, score, device, batch_size or 4, json, draw))
    from .classification.predict import predict as run

    if draw:
        raise UserError(f'--draw {draw}: for detectors, and {target} is a classifier')
    raise typer.Exit(run(target, images, top or 5, device, batch_size or 32, json, csv))


def _is_detector(target: str) -> bool:
    from .models import task_of

    return task_of(target) == 'detection'


@app.command('list')
def list_models(
    pattern: Annotated[str, typer.Argument(help='A name with wildcards: "biformer*".')] = '*',
    recipes: Annotated[bool, typer.Option('--recipes', help='List what `attnzoo train` takes instead.')] = False,
) -> None:
    """List the models that attnzoo adds to timm, or the packaged recipes."""
    if recipes:
        with _extra('train'):
            from .reference import show_recipes

        show_recipes(pattern)
    else:
        from .inspect import show_list

        show_list(pattern)


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar='NAME|RUN', help='A model of timm, a run folder or a file.')],
) -> None:
    """Show a model's parameters, GMACs, input size, weights, paper and licence, or what a run left."""
    from .inspect import show_info

    with _extra('detect'):  # of a run of RT-DETR
        show_info(name)


@app.command('config')
def show_settings(
    key: Annotated[str, typer.Argument(metavar='[KEY]', help='A setting or a section: data, data.augment.')] = '',
    markdown: Annotated[bool, typer.Option('--markdown', help='Print docs/settings.md.')] = False,
) -> None:
    """Show what the settings of `attnzoo train` take and mean, with their defaults."""
    with _extra('train'):
        from .reference import as_markdown, show_reference

    if markdown:
        print(as_markdown(), end='')
    else:
        show_reference(key)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar='SRC', help='An official .pth or .safetensors file.')],
    destination: Annotated[str, typer.Argument(metavar='DST', help='The .safetensors file to write.')],
    model: Annotated[str, typer.Option(metavar='NAME', help='The model that the file is of.')],
    force: Annotated[bool, typer.Option('--force', help='Write DST over a file that is there.')] = False,
) -> None:
    """Turn an official checkpoint into one that attnzoo and timm load by themselves. Nothing in SRC is run."""
    from .convert import convert as run

    run(source, destination, model, force=force)


@app.command()
def verify(
    names: Annotated[
        list[str],
        typer.Argument(metavar='NAME... [KEY=VALUE]...', show_default=False, help='Models of attnzoo; wildcards work.'),
    ],
    report: Annotated[str, typer.Option('--json', metavar='FILE', help='Where to write the report.')] = 'verify.json',
) -> None:
    """Download published weights, check their hash, load them strictly and, with data.root=PATH, score them.

    The exit status is 1 where one of them cannot be had, does not fit, or is off its published top-1.
    """
    with _extra('train'):
        from .verify import verify as run

    settings = [word for word in names if '=' in word]
    raise typer.Exit(run([word for word in names if '=' not in word], settings, report))
