"""mmtok as a plain wheel in an existing environment."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from conftest import ROOT


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the project."""
    root = tmp_path_factory.mktemp('wheel')
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / 'mmtok', root / 'mmtok', ignore=shutil.ignore_patterns('__pycache__'))
    with (root / 'mmtok' / 'version.py').open('a') as file:
        file.write("__version__ += '.post1'\n")  # so that pip would install it over this environment's own
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w',
                    root / 'dist', root], check=True)
    return next((root / 'dist').glob('mmtok-*.whl'))


def test_wheel_holds_every_module(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / 'mmtok').rglob('*.py'):
        assert path.relative_to(ROOT).as_posix() in inside


def test_installing_changes_no_other_package(wheel):
    run = subprocess.run([sys.executable, '-m', 'pip', 'install', '--dry-run', '--report', '-', '-q', wheel],
                         check=True, text=True, capture_output=True)
    assert [item['metadata']['name'] for item in json.loads(run.stdout)['install']] == ['mmtok']
    metadata = zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if 'METADATA' in n))
    required = [line for line in metadata.decode().splitlines()
                if line.startswith('Requires-Dist') and 'extra ==' not in line]
    assert required == ['Requires-Dist: numpy']  # nothing that could pull another torch


def test_installed_wheel_works_from_another_folder(wheel, tmp_path):
    """The type name alone brings the package in, in mmseg's and in mmdet's scope."""
    target = tmp_path / 'site'
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', target, wheel],
                   check=True)
    code = ('import mmtok, sys; assert mmtok.__file__.startswith(sys.argv[1]); assert "torch" not in sys.modules\n'
            'from mmengine.registry import MODELS, init_default_scope\n'
            'for scope in ("mmseg", "mmdet"):\n'
            '    init_default_scope(scope)\n'
            '    MODELS.build(dict(type="mmtok.DeiT", arch=dict(embed_dims=8, depth=1, num_heads=1),\n'
            '                      tokenizer=dict(type="mmtok.MoToTokenizer")))\n')
    subprocess.run([sys.executable, '-c', code, str(target)], cwd=tmp_path, check=True,
                   env={**os.environ, 'PYTHONPATH': str(target)})
