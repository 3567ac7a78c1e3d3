"""`tools/summarize.py`: a table and a picture of several trainings."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from conftest import ROOT
from mmtok.classification.fingerprint import fingerprint
from mmtok.classification.images import ImageDataset
from mmtok.classification.results import config_hash
from mmtok.errors import ConfigError, DataError

sys.path.insert(0, str(ROOT / 'tools'))
import cifar10_study
import summarize
from train_classifier import load_config, parse_args


def write(folder, config, seed, top1, average=None, **changes):
    curve = [dict({'epoch': epoch, 'accuracy/top1': value, 'accuracy/top5': 2 * value}, **(
        {'ema/top1': average} if average else {})) for epoch, value in enumerate(top1, 1)]
    folder.mkdir()
    (folder / 'results.json').write_text(json.dumps({
        'config': config, 'config_hash': config, 'seed': seed, 'epochs': len(top1), 'processes': 1, 'parameters': 10,
        'metrics': curve[-1], 'curve': curve, 'device': 'a CPU', 'versions': {'torch': '2.1.2'}, **changes}))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return [write(tmp_path / 'a', 'plain', 0, [10, 20]), write(tmp_path / 'b', 'plain', 1, [12, 23]),
            write(tmp_path / 'c', 'plain', 2, [11, 23]), write(tmp_path / 'd', 'moto', 0, [30, 40], average=41)]


def test_table_picture_and_numbers(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['summarize.py', *runs, '--out', str(tmp_path / 'table.md'), '--plot',
                                      str(tmp_path / 'curves.png'), '--json', str(tmp_path / 'rows.json')])
    summarize.main()
    lines = (tmp_path / 'table.md').read_text().splitlines()
    assert lines[2] == '| plain | 2 | 3 | 22.00 ± 1.73 | 44.00 ± 3.46 | - | +0.00 |'
    assert lines[3] == '| moto | 2 | 1 | 40.00 | 80.00 | 41.00 | +18.00 |'
    assert capsys.readouterr().out.splitlines() == lines
    rows = json.loads((tmp_path / 'rows.json').read_text())
    assert rows[0]['devices'] == ['a CPU'] and rows[0]['torch'] == ['2.1.2']
    assert rows[0]['seeds'] == [0, 1, 2] and rows[0]['accuracy/top1'] == dict(mean=22.0, n=3, deviation=1.732)
    assert Image.open(tmp_path / 'curves.png').size == (800, 500)


def test_trainings_of_other_lengths(runs, tmp_path):
    rows = summarize.summarise(summarize.group([summarize.read(run) for run in runs]))
    assert 'not of one length' not in summarize.table(rows)
    longer = write(tmp_path / 'e', 'longer', 0, [1, 2, 3])
    rows = summarize.summarise(summarize.group([summarize.read(run) for run in (*runs, longer)]))
    assert summarize.table(rows).splitlines()[-1].startswith('These trainings are not of one length')


def test_the_study_knows_what_it_has_done(draw_folder, tmp_path):
    args = SimpleNamespace(out=tmp_path, epochs=1)
    config, (one, other) = cifar10_study.CONFIGS[0], (draw_folder(train=count, val=1) for count in (2, 3))
    command, work_dir = cifar10_study.arguments(config, 0, args), tmp_path / f'{config.stem}-seed0'
    data = [fingerprint(ImageDataset(str(root))) for root in (one, other)]
    assert not cifar10_study.is_done(work_dir, command, data[0])
    trained = config_hash(load_config(parse_args(command)))
    write(work_dir, config.stem, 0, [10], config_hash=trained, data=data[0])
    assert cifar10_study.is_done(work_dir, command, data[0])
    assert data[0] == fingerprint(ImageDataset(shutil.copytree(one, tmp_path / 'moved')))
    with pytest.raises(ConfigError, match='-seed0 holds a training on other images than those of --data: remove it'):
        cifar10_study.is_done(work_dir, command, data[1])
    write(tmp_path / 'old', config.stem, 0, [10], config_hash=trained)
    assert cifar10_study.is_done(tmp_path / 'old', command, data[1])


@pytest.mark.slow
def test_the_study_goes_on_where_it_was(draw_folder, tmp_path):
    command = [sys.executable, ROOT / 'tools' / 'cifar10_study.py', '--seeds', '1', '--jobs', '2', '--out',
               tmp_path / 'out', '--data', draw_folder(train=20, val=5), '--epochs']
    outputs = [subprocess.run([*command, '1'], text=True, check=True, capture_output=True).stdout for _ in range(2)]
    rows = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert len(rows) == 8 and all(row['epochs'] == row['accuracy/top1']['n'] == 1 for row in rows)
    assert outputs[0].count('-seed0') == 8 and '-seed0' not in outputs[1]
    assert Image.open(tmp_path / 'out' / 'curves.png').size == (800, 500)
    run = subprocess.run([*command, '2'], text=True, capture_output=True)
    assert run.returncode and re.search('^mmtok: .*-seed0 holds a training with other settings', run.stderr, re.M)
    command[command.index('--data') + 1] = draw_folder(train=21, val=5)
    run = subprocess.run([*command, '1'], text=True, capture_output=True)
    assert run.returncode and re.search('^mmtok: .*-seed0 holds a training on other images', run.stderr, re.M)


def test_what_does_not_belong_together(runs, tmp_path):
    read = summarize.read
    with pytest.raises(DataError, match='share a seed: give each once'):
        summarize.group([read(run) for run in (*runs, runs[0])])
    for name, changes in (('e', dict(config_hash='other')), ('f', dict(processes=8))):
        other = write(tmp_path / name, 'plain', 3, [1, 2], **changes)
        with pytest.raises(DataError, match='4 trainings of plain have different settings'):
            summarize.group([read(run) for run in (*runs, other)])
    data = dict(images=10, classes=2, hash='abc')
    known = [read(write(tmp_path / f'data{seed}', 'plain', seed, [1, 2], data=data)) for seed in (3, 4)]
    assert len(summarize.group([read(runs[0]), *known])['plain']) == 3  # the first was made before they were recorded
    other = read(write(tmp_path / 'other', 'plain', 5, [1, 2], data={**data, 'hash': 'abd'}))
    with pytest.raises(DataError, match=r'3 trainings of plain were made on different images: \S+/data4/results.json '
                                        r'\(.*"hash": "abc", "images": 10.*\), \S+other/results.json \(.*"abd"'):
        summarize.group([*known, other])
    with pytest.raises(DataError, match='ends with epoch 2 of 9: finish this training with --resume'):
        read(write(tmp_path / 'g', 'plain', 4, [1, 2], epochs=9))
    with pytest.raises(DataError, match='holds no results.json: a training writes it after its first validation'):
        read(str(tmp_path))
    for i, key in enumerate(('config_hash', 'seed', 'processes', 'curve', 'metrics')):
        path = Path(write(tmp_path / f'h{i}', 'plain', 5, [1, 2])) / 'results.json'
        found = json.loads(path.read_text())
        del found[key]
        path.write_text(json.dumps(found))
        with pytest.raises(DataError, match='is no results.json of tools/train_classifier.py'):
            read(str(path))
