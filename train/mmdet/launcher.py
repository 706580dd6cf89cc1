"""`python -m attnzoo.mmdet`: mmdet's own programs, with what they need to run beside a current torch."""

import pickle
import runpy
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ..download import is_url
from ..errors import UserError, complain, near, one_line

app = typer.Typer(
    name='python -m attnzoo.mmdet',
    help="mmdet's detectors on backbones of attnzoo and timm, without compiled code.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PASSED_ON = {'allow_extra_args': True, 'ignore_unknown_options': True}
ConfigName = Annotated[
    str, typer.Argument(metavar='CONFIG', help="A .py file, a name of `list`, or mmdet's own as mmdet::FOLDER/FILE.")
]
Checkpoint = Annotated[str, typer.Argument(metavar='CHECKPOINT', help='A .pth file of a run.')]
DataRoot = Annotated[str, typer.Option(metavar='DIR', help='Where the data lies; the config says data/coco/.')]


def main() -> None:
    """Run the command line. What a user can put right is one line on stderr, and exit status 1."""
    try:
        app()
    except UserError as error:
        complain(str(error))
        sys.exit(1)


@app.command('list')
def show_list() -> None:
    """List the packaged configs."""
    for name in packaged():
        print(name)


@app.command(context_settings=_PASSED_ON)
def train(context: typer.Context, config: ConfigName, data_root: DataRoot = '') -> None:
    """Train. Further options are mmdet's: --work-dir DIR, --resume, --amp, --cfg-options KEY=VALUE..."""
    _run_tool('train', config, context.args, data_root)


@app.command(context_settings=_PASSED_ON)
def test(context: typer.Context, config: ConfigName, checkpoint: Checkpoint, data_root: DataRoot = '') -> None:
    """Score a checkpoint. Further options are mmdet's: --show-dir DIR, --out FILE, --cfg-options KEY=VALUE..."""
    _check_files(checkpoint)
    _run_tool('test', config, [checkpoint, *context.args], data_root)


@app.command()
def infer(
    config: ConfigName,
    checkpoint: Checkpoint,
    images: Annotated[list[str], typer.Argument(metavar='IMAGE...', help='Files or folders of images.')],
    out: Annotated[str, typer.Option(metavar='DIR', help='Where pictures and lists of boxes go.')] = 'detections',
    score: Annotated[float, typer.Option(help='The least score of what is drawn.')] = 0.3,
) -> None:
    """Detect objects in images: a picture and a .json file for each."""
    _prepare()
    from mmdet.apis import DetInferencer
    from mmengine.device import get_device

    _check_files(checkpoint, *images)
    try:
        inferencer = DetInferencer(str(find_config(config)), checkpoint, get_device(), show_progress=False)
    except pickle.UnpicklingError as error:
        raise _not_plain(checkpoint, error) from error
    for image in images:
        inferencer(image, out_dir=out, pred_score_thr=score, no_save_pred=False, print_result=False)
    print(f'wrote {out}')


@app.command(context_settings=_PASSED_ON)
def dist(
    context: typer.Context,
    processes: Annotated[int, typer.Argument(min=1, help='Processes on this machine, one a GPU.')],
    verb: Annotated[str, typer.Argument(metavar='train|test', help='What they do; its arguments follow.')],
) -> None:
    """Train or test in several processes: NCCL on GPUs, gloo on CPUs.

    On several machines: `torchrun ... -m attnzoo.mmdet train ... --launcher pytorch` on each.
    """
    if verb not in ('train', 'test'):
        raise UserError(f'dist {processes} {verb}: expected train or test')
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    command = [*torchrun, '-m', 'attnzoo.mmdet', verb, *context.args, '--launcher', 'pytorch']
    raise typer.Exit(subprocess.run(command).returncode)


def packaged() -> dict[str, Path]:
    """The packaged configs by name."""
    folder = Path(str(files('attnzoo.configs'))) / 'detection' / 'mmdet'
    return {path.stem: path for path in sorted(folder.glob('[!_]*.py'))}


def find_config(name: str) -> Path:
    """The file of a config.

    Raises:
        UserError: There is none.
    """
    if name.startswith('mmdet::'):
        import mmdet

        path = Path(mmdet.__file__).parent / '.mim' / 'configs' / name.removeprefix('mmdet::')
    else:
        path = Path(name)
    if path.is_file():
        return path
    configs = packaged()
    if path.stem not in configs or name.startswith('mmdet::'):
        raise UserError(f'no config {name}{near(path.stem, configs)}; `python -m attnzoo.mmdet list` shows all')
    return configs[path.stem]


def _check_files(*paths: str) -> None:
    for path in paths:
        if not (Path(path).exists() or is_url(path)):
            raise UserError(f'{path}: no such file')


def _run_tool(name: str, config: str, arguments: list[str], data_root: str) -> None:
    """Run a program that comes with mmdet."""
    _prepare()
    import mmdet

    own = ['runner_type=ZooRunner', *([f'attnzoo_data_root={data_root}'] if data_root else [])]
    # Of several --cfg-options mmdet would read the last alone.
    place = arguments.index('--cfg-options') + 1 if '--cfg-options' in arguments else len(arguments)
    own = own if '--cfg-options' in arguments else ['--cfg-options', *own]
    tool = Path(mmdet.__file__).parent / '.mim' / 'tools' / f'{name}.py'
    sys.argv = [str(tool), str(find_config(config)), *arguments[:place], *own, *arguments[place:]]
    try:
        runpy.run_path(str(tool), run_name='__main__')
    except pickle.UnpicklingError as error:
        raise _not_plain('a checkpoint', error) from error
    except FileNotFoundError as error:
        raise UserError(f'{one_line(error)}; --data-root DIR says where the data lies') from error


def _prepare() -> None:
    import attnzoo.mmdet  # noqa: F401


def _not_plain(checkpoint: str, error: Exception) -> UserError:
    reason = one_line(error).partition('. ')[0]
    return UserError(
        f'{checkpoint} holds more than weights and plain values ({reason}): if you trust it, set '
        'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1'
    )
