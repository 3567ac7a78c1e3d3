"""Fixtures shared by all tests: the data beside the project, and the tools of mmseg and mmdet."""

import importlib
import itertools
import json
import logging
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'
if not Path('/dev/nvidia0').exists():
    os.environ['TRITON_INTERPRET'] = '1'  # read when Triton is imported: its kernels run on this machine's CPU


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws the same numbers, whichever ran before it."""
    import torch
    torch.manual_seed(0)


@pytest.fixture
def log():
    """What mmengine's logger says."""
    from mmengine.logging import MMLogger
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append((record.levelname, record.getMessage()))
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def plain_attention():
    """On torch 2.1 no fused attention: it corrupts memory on CPUs in bf16 unless 16 divides the tokens."""
    import torch
    from timm.layers import set_fused_attn, use_fused_attn
    before = use_fused_attn()
    if torch.__version__ < '2.2':
        set_fused_attn(False)
    yield
    set_fused_attn(before)


@pytest.fixture(scope='session')
def ade_layout(tmp_path_factory) -> Path:
    """`../shared/data/ade_layout` with images that open: a checkout may hold its links as small text files."""
    source = SHARED / 'ade_layout'
    if not source.is_dir():
        pytest.skip(f'{source} is not here')
    root = tmp_path_factory.mktemp('ade_layout')
    (root / 'annotations').symlink_to(source / 'annotations')
    for image in sorted((source / 'images').glob('*/*.jpg')):
        link = root / image.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not image.is_symlink() and image.stat().st_size < 200:
            image = image.parent / image.read_text()
        link.symlink_to(image.resolve())
    return root


@pytest.fixture(scope='session')
def draw_folder(tmp_path_factory) -> Callable[..., Path]:
    """Draws an image folder of 4 classes in a folder of its own; options are `draw_image_folder`'s."""
    sys.path.insert(0, str(ROOT / 'tools' / 'demo'))
    from scenes import draw_image_folder

    def draw(**options) -> Path:
        root = tmp_path_factory.mktemp('folder') / 'data'
        draw_image_folder(root, **options)
        return root
    return draw


@pytest.fixture(scope='session')
def cifar10(tmp_path_factory) -> Path:
    """The CIFAR-10 of `../shared/data`, unpacked."""
    packed = SHARED / 'cifar10_imagefolder.tar.xz'
    if not packed.is_file():
        pytest.skip(f'{packed} is not here')
    root = tmp_path_factory.mktemp('cifar10')
    with tarfile.open(packed) as tar:
        tar.extractall(root)
    return root / 'cifar10'


@pytest.fixture(scope='session')
def coco() -> Path:
    """The part of COCO 2017 in `../shared/data`."""
    if not (SHARED / 'coco').is_dir():
        pytest.skip(f'{SHARED / "coco"} is not here')
    return SHARED / 'coco'


@pytest.fixture(scope='session')
def drawn_coco(tmp_path_factory) -> Path:
    """A few drawn images in COCO's layout, for tests that must run anywhere."""
    sys.path.insert(0, str(ROOT / 'tools' / 'demo'))
    from objects import draw_coco_folder
    root = tmp_path_factory.mktemp('drawn_coco') / 'data'
    draw_coco_folder(root, train=8, val=3)
    return root


def coco_object(number: int, image: int, x: int, y: int, width: int, height: int) -> dict:
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return dict(id=number, image_id=image, category_id=number % 5 + 1, bbox=[x, y, width, height], iscrowd=0,
                area=width * height, segmentation=[polygon])


@pytest.fixture(scope='session')
def starting_point(tmp_path_factory) -> Callable[..., dict[str, str]]:
    """Random weights for a leaf, where it looks for them from the folder `cwd`; returns environment variables.

    A public file stands in torch.hub's cache, under timm's names in it; our own classifier's is as it writes it.
    """
    import timm
    import torch
    from mmengine.config import Config

    from mmtok.checkpoint.reading import cache_of, get_cache_dir
    from mmtok.registry import MODELS
    root = tmp_path_factory.mktemp('starting')

    def lay(leaf: Path, cwd: Path) -> dict[str, str]:
        env, name = {'TORCH_HOME': str(root / 'torch')}, Config.fromfile(leaf).model.backbone.init_cfg.checkpoint
        if name.startswith('https://'):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv('TORCH_HOME', env['TORCH_HOME'])
                file = Path(cache_of(name) or get_cache_dir()) / Path(name).name
            make = partial(timm.create_model, file.stem)
        else:
            file = root / name
            (cwd / 'work_dirs').symlink_to(root / 'work_dirs')
            make = partial(MODELS.build, Config.fromfile(
                ROOT / 'configs' / 'imagenet' / f'{file.parent.name}.py').model)
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(dict(state_dict=make().state_dict(), meta=dict(epoch=300)), file)
        return env
    return lay


@pytest.fixture
def odd_coco(drawn_coco, tmp_path) -> Path:
    """An image without objects, one with a box of 1 pixel's width, a grey one, and one of 1000x20 pixels."""
    import numpy as np
    from PIL import Image

    import objects
    rng, root = np.random.default_rng(0), tmp_path / 'odd'
    for folder in ('train2017', 'annotations'):
        (root / folder).mkdir(parents=True)
    (root / 'val2017').symlink_to(drawn_coco / 'val2017')
    (root / 'annotations' / 'instances_val2017.json').symlink_to(
        drawn_coco / 'annotations' / 'instances_val2017.json')
    shapes = [(96, 128, 3), (96, 128, 3), (96, 128), (20, 1000, 3)]
    for number, shape in enumerate(shapes, 1):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / 'train2017' / f'{number}.jpg')
    boxes = [coco_object(1, 2, 40, 20, 1, 50), coco_object(2, 3, 10, 10, 60, 40), coco_object(3, 4, 300, 2, 200, 15)]
    images = [dict(id=i, file_name=f'{i}.jpg', height=shape[0], width=shape[1]) for i, shape in enumerate(shapes, 1)]
    categories = [dict(id=i, name=name) for i, name in enumerate(objects.CLASSES, 1)]
    (root / 'annotations' / 'instances_train2017.json').write_text(
        json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return root


@pytest.fixture(scope='session')
def drawn_ade(tmp_path_factory) -> Path:
    """A few drawn images in ADE20K's layout, for tests that must run anywhere."""
    sys.path.insert(0, str(ROOT / 'tools' / 'demo'))
    from scenes import draw_ade_folder
    root = tmp_path_factory.mktemp('drawn_ade') / 'data'
    draw_ade_folder(root, train=8, val=2)
    return root


def tool(name: str | Path) -> Path:
    """A tool of mmseg by its name, 'train', of any package as 'mmdet/train', as installed; or a script by its path."""
    if isinstance(name, Path):
        return name
    package, _, script = name.partition('/') if '/' in name else ('mmseg', '', name)
    return Path(importlib.import_module(package).__file__).parent / '.mim' / 'tools' / f'{script}.py'


def logged_steps(work_dir: Path) -> dict[int, dict]:
    """What the newest training in a work directory logged, by iteration."""
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    return {line['step']: line for line in lines if 'loss' in line}


@pytest.fixture(scope='session')
def run_tool():
    """Run a tool (see `tool`) as a user would: from another folder and without PYTHONPATH."""
    def run(name, *arguments, cwd, env=None, timeout=900) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
        return subprocess.run([sys.executable, str(tool(name)), *map(str, arguments)], cwd=cwd, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
                              env={**environment, **(env or {})})
    return run


def die_at(event: int) -> None:
    """SIGKILL this process just before the `event`-th time, from 0, that it flushes, renames or deletes a file."""
    count = itertools.count()

    def deadly(function):
        def call(*args, **kwargs):
            if next(count) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    os.fsync, os.replace, os.remove = deadly(os.fsync), deadly(os.replace), deadly(os.remove)


def call_tool(script: Path, arguments: list[str], cwd: Path, env: dict, log: Path, file_limit: int | None,
              fatal_event: int | None) -> None:
    """Run a script in this process as the interpreter would, its output in a file."""
    import torch
    if fatal_event is not None:
        die_at(fatal_event)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    os.chdir(cwd)
    os.environ.update(env)
    torch.set_num_threads(1)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


@pytest.fixture(scope='session')
def start_tool(tmp_path_factory) -> Callable:
    """Start a tool (see `tool`) in a process forked where everything is imported already.

    What it returns has `process`, `output()` and `finish()`, the last with `returncode` and `stdout` as of `run_tool`.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmseg.apis', 'mmdet.apis', 'mmtok.backbones', 'mmtok.engine.runner', 'conftest'])

    def start(name, *arguments, cwd, env=None, file_limit=None, fatal_event=None):
        log = tmp_path_factory.mktemp('log') / 'output.txt'
        process = context.Process(target=call_tool, args=(tool(name), list(map(str, arguments)), cwd, env or {},
                                                          log, file_limit, fatal_event))
        process.start()

        def output() -> str:
            return log.read_text() if log.exists() else ''

        def finish(timeout: float = 600) -> SimpleNamespace:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                raise TimeoutError(f'still running after {timeout} s: {output()[-2000:]}')
            return SimpleNamespace(returncode=process.exitcode, stdout=output())
        return SimpleNamespace(process=process, output=output, finish=finish)
    return start


@pytest.fixture(scope='session')
def fork_tool(start_tool) -> Callable:
    """`run_tool` without the seconds of its imports, for the many runs in which the tool itself is not in question."""
    def run(*arguments, **options):
        return start_tool(*arguments, **options).finish()
    return run


@pytest.fixture(scope='session')
def class_folder(draw_folder) -> Path:
    """A drawn image folder: 6 iterations an epoch."""
    return draw_folder(train=12, val=3)


@pytest.fixture(scope='session')
def train_classifier(fork_tool, class_folder) -> Callable[..., str]:
    """Train in a work directory with config options; returns the output."""
    from classifiers import CONFIG, TRAIN

    def run(work_dir, *options, resume=False, root=class_folder, config=CONFIG, fails=False) -> str:
        arguments = [*['--resume'][:resume], *['--cfg-options'][:bool(options)], *options]
        run = fork_tool(TRAIN, config, '--work-dir', work_dir, *arguments, cwd=work_dir.parent,
                        env=dict(CIFAR10_ROOT=str(root)))
        assert (run.returncode != 0) == fails, run.stdout[-3000:]
        return run.stdout
    return run


@pytest.fixture(scope='session')
def trained(train_classifier, tmp_path_factory) -> Path:
    """The work directory of a classifier that was trained for 4 epochs; not to be written to."""
    work_dir = tmp_path_factory.mktemp('trained') / 'work'
    train_classifier(work_dir)
    return work_dir
