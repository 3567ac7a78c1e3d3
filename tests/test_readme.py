"""What the README says: its commands, its files, its config in five lines, its table, its measured numbers."""

import csv
import itertools
import json
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from conftest import ROOT
from mmtok.registry import MODELS
from test_configs import SHORT, SMALL

sys.path.insert(0, str(ROOT / 'tools'))
import summarize
from benchmarks.backbones import TRUNKS
from benchmarks.training import FRAMEWORKS, VARIANTS

README = (ROOT / 'README.md').read_text()
MMSEG = Path(mmseg.__file__).parent / '.mim'


def test_five_lines_work_on_mmseg_s_own_config(tmp_path):
    snippet = re.search(r'```python\n(.*?)```', README, re.S).group(1)
    assert len(snippet.strip().splitlines()) <= 5
    name = re.search(r"_base_ = './(.*)'", snippet).group(1)
    upstream = MMSEG / 'configs' / 'vit' / name
    (tmp_path / 'mine.py').write_text(snippet.replace(f'./{name}', str(upstream)))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    from mmengine.registry import init_default_scope
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    assert model.backbone.tokenizer.placement == 'stem' and model.backbone.token_prop is not None
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.keys() >= {'moto', 'norm'}


def test_swin_replaces_the_backbone_of_mmseg_s_config(tmp_path):
    name, = (MMSEG / 'configs' / 'swin').glob('swin-tiny-patch4-window7-in1k-pre_upernet_*512x512.py')
    (tmp_path / 'mine.py').write_text(f"""_base_ = {str(name)!r}
model = dict(pretrained=None, backbone=dict(
    _delete_=True, type='mmtok.Swin', tokenizer=dict(type='mmtok.MoToTokenizer')))
""")
    cfg = Config.fromfile(tmp_path / 'mine.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
    assert list(model.backbone.out_channels) == cfg.model.decode_head.in_channels
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 150, 16, 16)


def test_all_snippets_train_under_mmseg(drawn_ade, fork_tool, tmp_path):
    """As a user would add them to mmseg's own config, which brings its SyncBN, schedule and data."""
    first, decay, more = (textwrap.dedent(text) for text in re.findall(r'```python\n(.*?)```', README, re.S))
    name = re.search(r"_base_ = './(.*)'", first).group(1)
    (tmp_path / 'mine.py').write_text(first.replace(f'./{name}', str(MMSEG / 'configs' / 'vit' / name)) + more)
    (tmp_path / 'decay.py').write_text(f"_base_ = './mine.py'\n{decay}")
    roots = [f'{loader}_dataloader.dataset.data_root={drawn_ade}' for loader in ('train', 'val', 'test')]
    run = fork_tool('train', tmp_path / 'decay.py', '--work-dir', tmp_path / 'work', '--cfg-options', *SHORT, *SMALL,
                     *roots, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    assert 'loss_tokenprop' in run.stdout and 'Layer-wise decay: learning rates times 0.75' in run.stdout
    assert 'mmtok_rng' in torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=False)  # our hook saved it


def test_tensorboard_gets_what_the_scalars_file_gets(monkeypatch, tmp_path):
    """By the two lines of the README, with a stand-in for the package."""
    lines = re.findall(r'`(\S+ = [^`]*)`', re.search(r'\*\*TensorBoard\*\*.*?\n(?=- |\n)', README, re.S).group())
    base = ROOT / 'configs' / 'imagenet' / 'deit-s_8xb128-300e_in1k.py'
    (tmp_path / 'mine.py').write_text('\n'.join(lines).replace('CONFIG', str(base)))
    written = []
    writer = SimpleNamespace(add_scalar=lambda name, value, step: written.append((name, value, step)),
                             close=lambda: None)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', SimpleNamespace(SummaryWriter=lambda folder: writer))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert len(lines) == 2 and cfg.model == Config.fromfile(base).model
    visualizer = Visualizer('tensorboard', vis_backends=cfg.visualizer.vis_backends, save_dir=str(tmp_path))
    visualizer.add_scalars(dict(loss=0.5), step=3)
    visualizer.close()
    assert written == [('loss', 0.5, 3)]
    assert json.loads((tmp_path / 'vis_data' / 'scalars.json').read_text()) == dict(loss=0.5, step=3)


def test_every_linked_file_is_there():
    headings = {re.sub(r'[^\w-]', '', line.lstrip('# ').lower().replace(' ', '-'))
                for line in README.splitlines() if line.startswith('#')}
    for target in re.findall(r'\]\((?!http)([^)]+)\)', README):
        assert target[1:] in headings if target[0] == '#' else (ROOT / target).exists(), target


def test_table_shows_the_score_of_each_config():
    rows = re.findall(r'\]\((configs/[^)]+)\).*\| (\d\d\.\d) \|', README)
    assert len(rows) == 14
    for path, score in rows:
        assert (ROOT / path).read_text().startswith(f'# paper: mIoU {score}\n')


def test_the_imagenet_table_is_that_of_the_configs():
    """Each number is the paper's in the config that it links to; a row has all four variants of its trunk."""
    rows = re.findall(r'^\| (\S+) \| (.*configs/imagenet.*) \|$', README, re.M)
    assert len(rows) == 10
    for trunk, cells in rows:
        found = re.findall(r'\[(\S+)\]\((configs/imagenet/\S+)\)', cells)
        assert [re.match(rf'{trunk}_?([a-z-]*)_8xb', Path(path).name)[1] for _, path in found] == [
            '', 'moto', 'tokenprop', 'moto-tokenprop']
        for said, path in found:
            headline = (ROOT / path).read_text().splitlines()[0]
            number = re.match(r'# paper: top-1 (\d\d\.\d)', headline)
            assert said == (number[1] if number else 'config'), path


def test_make_targets_exist():
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'make (?:[A-Z]+=\S+ )*([a-z-]+)', README):
        assert re.search(rf'^{target}:', makefile, re.M), target


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_mmseg_tools_are_where_the_readme_says(tool):
    assert (MMSEG / 'tools' / f'{tool}.py').is_file()


def test_measured_demo_comes_from_the_file():
    results = json.loads((ROOT / 'docs' / 'demo.json').read_text())
    text = ' '.join(README.split())
    said = re.search(r'after ([\d.]+) minutes, mIoU ([\d.]+) .* single pixels gets ([\d.]+), the majority class '
                     r'([\d.]+)\.', text).groups()
    scores = results['mIoU']
    assert said == (f'{results["seconds"] / 60:.1f}', f'{scores["ours"]:.2f}',
                    f'{scores["per-pixel RGB classifier"]:.2f}', f'{scores["majority class"]:.2f}')


def test_measured_detection_demo_comes_from_the_file():
    results = json.loads((ROOT / 'docs' / 'demo-det.json').read_text())
    said = re.search(r'after ([\d.]+) minutes, box AP (\S+) and mask AP (\S+) on 60', ' '.join(README.split())).groups()
    assert said == (f'{results["seconds"] / 60:.1f}', f'{results["box_AP"]:.3f}', f'{results["mask_AP"]:.3f}')
    assert results['seconds'] <= 600


def test_measured_study_comes_from_the_files(monkeypatch, capsys):
    files = sorted((ROOT / 'docs' / 'benchmarks' / 'cifar10_study').glob('*.json'))
    trainings = [json.loads(path.read_text()) for path in files]
    assert sorted((found['config'], found['seed']) for found in trainings) == sorted(
        itertools.product((path.stem for path in (ROOT / 'configs' / 'cifar10').glob('*.py')), range(3)))
    assert {found['epochs'] for found in trainings} == {12}
    monkeypatch.setattr(sys, 'argv', ['summarize.py', *map(str, files)])
    summarize.main()
    assert capsys.readouterr().out in README


def moto_csv(name: str) -> list[dict]:
    with (ROOT / 'docs' / 'benchmarks' / name).open() as file:
        return list(csv.DictReader(file))


def rows_of_moto() -> list[str]:
    """A line of the README for each map and direction of the committed CSV; times of others over mmtok's."""
    rows = moto_csv('moto_cpu.csv')
    assert {(row['device'], row['torch'].split('+')[0]) for row in rows} == {('AMD EPYC', '2.8.0')}  # as the text says
    lines = []
    for shape, direction in dict.fromkeys((row['shape'], row['direction']) for row in rows):
        found = {row['method']: row for row in rows if (row['shape'], row['direction']) == (shape, direction)}
        ms = {method: float(row['ms_median'] or 'nan') for method, row in found.items()}
        ours = found['mmtok']
        others = [other / ms['mmtok'] for other in (
            min(ms['formula, loop'], ms['formula, broadcast']),
            *(ms[name] for name in ('formula, compiled', 'instance norm', 'self-attention, fused')))]
        cells = [shape, direction, f"{ms['mmtok']:.1f}", f"{ms['mmtok, from logits']:.1f}",
                 f"{float(ours['over_floor']):.1f}", f"{float(ours['peak_mib']):.0f}",
                 *('-' if other != other else f'{other:.{0 if other >= 10 else 2}f}' for other in others)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def growth_of_moto(rows: list[dict], column: str, per_map: bool) -> str:
    """How far the time a pixel changes with the size of a map, by a column of a committed CSV, of pixels or of maps."""
    factors = []
    for method in ('mmtok', 'mmtok, from logits'):
        for direction in ('forward', 'forward + backward'):
            each = [float(row[column]) / (int(row['shape'].split('x')[-1])**2 if per_map else 1) for row in rows
                    if row['shape'].startswith('1x16x') and (row['method'], row['direction']) == (method, direction)]
            assert len(each) == 5
            factors.append(f'{max(each) / min(each):.2f}')
    return 'within a factor of {} forward, and of {} with backward (from logits {} and {})'.format(*factors)


def moto_on_the_xeon() -> list[str]:
    """What the README says of the CSV of the slower machine."""
    rows = moto_csv('moto_xeon_cpu.csv')
    said = [growth_of_moto(rows, 'ns_per_pixel', per_map=False)]
    for direction in ('forward', 'forward + backward'):
        ms = {row['method']: float(row['ms_median'] or 'nan') for row in rows
              if (row['shape'], row['direction']) == ('1x16x1024x1024', direction)}
        formula = min(ms['formula, loop'], ms['formula, broadcast'])
        said.append(f"{direction} {formula / ms['mmtok']:.0f} times as long as mmtok, and compiled "
                    f"{ms['formula, compiled'] / ms['mmtok']:.1f} times")
    return said


def test_measured_speed_comes_from_the_files():
    assert '\n'.join(rows_of_moto()) in README
    text = ' '.join(README.split())
    assert growth_of_moto(moto_csv('moto_cpu.csv'), 'ms_median', per_map=True) in text
    for words in moto_on_the_xeon():
        assert words in text, words


def test_measured_backbones_come_from_the_file():
    """One row of the README for each trunk, size and direction of the committed CSV: ratios of times."""
    with (ROOT / 'docs' / 'benchmarks' / 'backbones_cpu.csv').open() as file:
        rows = list(csv.DictReader(file))
    ratio = {(f"{row['trunk']}, {row['size']}", row['direction'], row['method']): float(row['mmtok_over_it'])
             for row in rows}
    table = re.findall(r'^\| (\S+, \d+) \| (.+?) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) % \|', README, re.M)
    assert len(table) == len({key[:2] for key in ratio}) == 4 * len(TRUNKS)
    for trunk, direction, *peers, added in table:
        for said, method in zip(peers, ('timm', 'mmdet', 'mmseg', 'mmpretrain'), strict=True):
            measured = ratio.get((trunk, direction, method))
            assert said == ('-' if measured is None else f'{measured:.2f}'), (trunk, direction, method)
        assert added == f"{100 / ratio[trunk, direction, 'mmtok + MoTo'] - 100:.1f}", (trunk, direction)


def test_measured_images_per_second_come_from_the_file():
    rows = []
    for name in ('classifier_cpu', 'classifier_cifar10_cpu', 'classifier_two_threads_cpu'):
        with (ROOT / 'docs' / 'benchmarks' / f'{name}.csv').open() as file:
            rows += [row for row in csv.DictReader(file) if row['threads'] == '1' or row['what'] == 'training']
    # As the text says
    assert {(row['device'], row['threads'], row['processes']) for row in rows} == {
        ('AMD EPYC', '1', '5'), ('AMD EPYC', '2', '21')}
    table = re.findall(r'^\| (.+), (\d+) px \| (\d+) \| (.+) (\d+) ' + 2 * r'\| (\S+) \((\S+) to (\S+)\) ' + r'\|$',
                       README, re.M)
    assert table == [
        (peer['what'] + ', 2 threads' * (peer['threads'] == '2'), peer['size'],
         f"{float(ours['images_per_second']):.0f}", peer['method'],
         f"{float(peer['images_per_second']):.0f}",
         *(f'{float(peer[key]):.3f}' for key in ('mmtok_over_it', 'ratio_p20', 'ratio_p80', 'cpu_over_it',
                                                 'cpu_ratio_p20', 'cpu_ratio_p80')))
        for ours, peer in zip(rows[::2], rows[1::2], strict=True)]


def test_the_other_machine_s_images_per_second_come_from_the_file():
    with (ROOT / 'docs' / 'benchmarks' / 'classifier_xeon_cpu.csv').open() as file:
        peers = list(csv.DictReader(file))[1::2]
    assert {(row['device'], row['threads'], row['processes']) for row in peers} == {
        ('Intel(R) Xeon(R) Processor', '1', '15')}
    *first, last = ('{:.3f} ({:.3f} to {:.3f})'.format(*(float(row[key]) for key in (
        'mmtok_over_it', 'ratio_p20', 'ratio_p80'))) for row in peers)
    assert f"the first six rows were {', '.join(first)} and {last} over 15 processes (" in ' '.join(README.split())


def test_memorised_scores_come_from_the_files():
    said = re.search(r'50 times the 8, .* has box AP (\S+) and mask AP (\S+) on .* RetinaNet .* box AP (\S+) .* '
                     r'in (\d+) and (\d+) minutes on 2 cores of an Intel Xeon', ' '.join(README.split())).groups()
    detector, retinanet = (json.loads((ROOT / 'docs' / 'curves' / f'overfit_{name}.json').read_text())
                           for name in ('mask-rcnn_swin-nano', 'retinanet_pvtv2-nano'))
    scores = (*detector['epochs'][-1].values(), *retinanet['epochs'][-1].values())  # box, mask; box
    assert said == (*(f'{score:.3f}' for score in scores),
                    *(f'{found["seconds"] / 60:.0f}' for found in (detector, retinanet)))
    for found in (detector, retinanet):
        assert found['images'] == 8 and len(found['epochs']) == 10 and 'Xeon' in found['device']


def test_measured_training_comes_from_the_file():
    """One row for each framework of the committed CSV."""
    with (ROOT / 'docs' / 'benchmarks' / 'training_cpu.csv').open() as file:
        rows = {(row['framework'], row['variant']): row for row in csv.DictReader(file)}
    pattern = (r'^\| (\S+) \| (\d+) ' + 3 * r'\| (\S+) % \((\S+) to (\S+)\) ' + 4 * r'\| (\d+) \((\d+) to (\d+)\) '
               + r'\|$')
    table = re.findall(pattern, README, re.M)
    assert [row[0] for row in table] == list(FRAMEWORKS)
    for framework, milliseconds, *figures in table:
        plain, *variants = (rows[framework, name] for name in VARIANTS)
        assert milliseconds == f'{float(plain["ms_median"]):.0f}'
        over = [f'{float(row[key]):.1f}' for row in variants for key in ('over_plain_percent', 'over_p20', 'over_p80')]
        memory = [f'{float(rows[framework, name][key]):.0f}' for name in VARIANTS
                  for key in ('peak_mib', 'peak_p20', 'peak_p80')]
        assert figures == over + memory, framework


def test_the_other_machine_s_training_comes_from_the_file():
    with (ROOT / 'docs' / 'benchmarks' / 'training_xeon_cpu.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert {row['device'] for row in rows} == {'Intel(R) Xeon(R) Processor'}
    assert [(row['framework'], row['variant']) for row in rows] == list(itertools.product(FRAMEWORKS, VARIANTS))
    added = [float(row['over_plain_percent']) for row in rows if row['variant'] != 'plain']
    assert f'medians lie between {min(added):.1f} and {max(added):.1f} % (' in ' '.join(README.split())


def test_measured_sizes_come_from_the_file():
    with (ROOT / 'docs' / 'benchmarks' / 'size.csv').open() as file:
        rows = {row.pop('model'): {key: float(value) for key, value in row.items() if key != 'torch'}
                for row in csv.DictReader(file)}
    table = re.findall(r'^\| (\S+) \| (.+ \([\d.]+\)) \|$', README, re.M)
    assert [name for name, _ in table] == list(rows)
    for name, cells in table:
        row = rows[name]
        said = [tuple(map(float, re.fullmatch(r'(\S+) \((\S+)\)', cell).groups())) for cell in cells.split(' | ')]
        sizes = [(row[f'{what}_{kind}'], row[f'paper_{what}_{kind}'])
                 for kind in ('plain', 'moto') for what in ('params', 'gmacs')]
        added = [tuple(m - p for m, p in zip(sizes[2 + i], sizes[i], strict=True)) for i in range(2)]
        assert said == [(round(ours, digits), round(paper, 1)) for pairs, digits in ((sizes, 1), (added, 3))
                        for ours, paper in pairs]
