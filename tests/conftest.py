"""Fixtures shared by all tests: the data beside the project, and mmseg's own tools."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'


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
def drawn_ade(tmp_path_factory) -> Path:
    """A few drawn images in ADE20K's layout, for tests that must run anywhere."""
    sys.path.insert(0, str(ROOT / 'tools' / 'demo'))
    from scenes import draw_ade_folder
    root = tmp_path_factory.mktemp('drawn_ade') / 'data'
    draw_ade_folder(root, train=8, val=2)
    return root


def mmseg_tool(name: str) -> Path:
    """mmseg's own `tools/<name>.py`, as installed."""
    import mmseg
    return Path(mmseg.__file__).parent / '.mim' / 'tools' / f'{name}.py'


def logged_steps(work_dir: Path) -> dict[int, dict]:
    """What the newest training in a work directory logged, by iteration."""
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    return {line['step']: line for line in lines if 'loss' in line}


@pytest.fixture(scope='session')
def run_mmseg():
    """Run mmseg's own `tools/<name>.py` as a user would: from another folder and without PYTHONPATH."""
    def run(name, *arguments, cwd, env=None, timeout=900) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
        return subprocess.run([sys.executable, str(mmseg_tool(name)), *map(str, arguments)], cwd=cwd, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
                              env={**environment, **(env or {})})
    return run
