"""Images in shards: webdataset, and where it is installed, Hugging Face's datasets."""

import contextlib
import io
import re
import shutil
import sys
import tarfile
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from timm.data.dataset import IterableImageDataset
from torch.utils.data import DataLoader

from classifiers import results
from conftest import ROOT, logged_steps
from mmtok.classification.fingerprint import fingerprint
from mmtok.classification.images import ImageDataset
from mmtok.classification.streams import ImageStream, check_count
from mmtok.engine.runner import Runner
from mmtok.errors import ConfigError, DataError

EVAL, TRAIN = dict(input_size=32, crop_pct=1.0), dict(input_size=32, is_training=True)
IMAGES = 48


@pytest.fixture(scope='module')
def folder(draw_folder):
    return draw_folder(train=12, val=3)


@pytest.fixture(scope='module')
def shards(folder, tmp_path_factory):
    """The drawn training images in 4 tar files of webdataset, and the others in one."""
    root = tmp_path_factory.mktemp('shards')
    for split, count in (('train', 4), ('val', 1)):
        images = ImageDataset(str(folder), split, EVAL)
        for shard in range(count):
            with tarfile.open(root / f'{split}-{shard:04d}.tar', 'w') as tar:
                for i in range(shard, len(images), count):
                    pixels, label = images[i]
                    buffer = io.BytesIO()
                    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, 'PNG')
                    for suffix, content in (('png', buffer.getvalue()), ('cls', str(label).encode())):
                        info = tarfile.TarInfo(f'{i:05d}.{suffix}')
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    return root


def stream(shards, split='train-{0000..0003}.tar|48', transform=TRAIN, workers=1, seed=0, **options):
    cfg = dict(
        batch_size=8, num_workers=workers, persistent_workers=workers > 0, sampler=None,
        collate_fn=dict(type='mmtok.stack_images'),
        dataset=dict(type='mmtok.ImageStream', name='wds/', data_root=str(shards), split=split, transform=transform,
                     **options))
    return Runner.build_dataloader(cfg, seed)


def epoch(loader, number):
    loader.dataset.set_epoch(number)
    return list(loader)


def same(a, b):
    return all(torch.equal(x, y) for pair in zip(a, b, strict=True) for x, y in zip(*pair, strict=True))


def test_evaluation_reads_every_image_once(shards, folder):
    images, labels = zip(*stream(shards, 'val-0000.tar|12', EVAL), strict=True)
    plain = ImageDataset(str(folder), 'val', EVAL)
    assert torch.equal(torch.cat(images), torch.stack([plain[i][0] for i in range(12)]))
    assert torch.cat(labels).tolist() == [plain[i][1] for i in range(12)]


@pytest.mark.parametrize('workers', [0, 2])
def test_training_shuffles_by_epoch_and_seed(shards, workers):
    torch.manual_seed(3)  # data workers are seeded from it
    transform = {**TRAIN, 'no_aug': True}
    loader = stream(shards, workers=workers, transform=transform)
    first, second = epoch(loader, 0), epoch(loader, 1)
    assert len(loader) == len(first) == len(second) == IMAGES // 8
    assert not same(first, second)
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == sorted(12 * [0, 1, 2, 3])
    torch.manual_seed(3)
    assert same(first, epoch(stream(shards, workers=workers, transform=transform), 0))
    torch.manual_seed(3)
    assert not same(first, epoch(stream(shards, workers=workers, transform=transform, seed=1), 0))


@pytest.mark.parametrize('workers', [0, 3])
def test_an_epoch_has_as_many_batches_as_it_says(workers, shards):
    training, evaluation = stream(shards, workers=workers), stream(shards, transform=EVAL, workers=workers)
    assert len(list(training)) == len(training)
    assert len(evaluation.dataset) == sum(len(labels) for _, labels in evaluation) == IMAGES


def test_more_data_workers_than_shards(shards):
    with pytest.raises(ConfigError, match='4 shards cannot be shared by 5 data workers of all processes: set'):
        stream(shards, workers=5)
    assert sum(len(labels) for _, labels in stream(shards, transform=EVAL, workers=5)) == IMAGES


@pytest.mark.parametrize('shard', [4, 1])
def test_two_processes_evaluate_every_image_once(shard, shards, monkeypatch):
    """Whether there are enough shards for all of them or not."""
    monkeypatch.setattr('torch.distributed.is_initialized', lambda: True)
    monkeypatch.setattr('torch.distributed.get_world_size', lambda *_: 2)
    seen = []
    for rank in range(2):
        monkeypatch.setattr('torch.distributed.get_rank', lambda *_, rank=rank: rank)
        split = f'train-{{0000..{shard - 1:04d}}}.tar|{12 * shard}'
        data = ImageStream('wds/', str(shards), split, EVAL)
        data.follow(8, 0, 0)
        assert len(data) == 12 * shard
        seen.append([image for image, _ in data])
    images = torch.stack(seen[0] + seen[1])
    assert len(images) == len(images.unique(dim=0)) == 12 * shard
    assert bool(seen[1]) == (shard > 1)


def test_what_is_known_of_the_images_of_a_stream(shards, stand_in):
    for workers in (1, 3):
        assert fingerprint(stream(shards, workers=workers).dataset) == dict(images=48, root=shards.name)
    assert fingerprint(stand_in(TRAIN)) == dict(images=8, root='set')


def test_a_training_by_the_tool(shards, fork_tool, tmp_path):
    config = stream_config(tmp_path / 'streams.py', shards)
    run = fork_tool(ROOT / 'tools' / 'train_classifier.py', config, '--work-dir', tmp_path / 'work', cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    assert len(logged_steps(tmp_path / 'work')) == 12
    assert results(tmp_path / 'work')['data'] == dict(images=48, root=shards.name)


@pytest.mark.parametrize('options, sentence', [
    (dict(name='', split='train'), "name='' is no stream; mmtok.ImageStream takes wds/, hfids/, tfds/"),
    (dict(name='wds/', split='train'), r'wds/ with data_root=.* and split=.train. cannot be read \(.*\)$'),
    (dict(name='wds/', split='train-{0000..0003}.tar|48'), '4 of the 4 shards that .* are not there, such as '),
    (dict(name='wds/', split='train-{0000..0003}.tar'), 'Invalid split definition, num_samples not specified'),
    (dict(name='tfds/cifar10', split='train'), 'tfds/cifar10 .* it needs the package tensorflow_datasets')])
def test_what_is_wrong_is_said(options, sentence, tmp_path):
    with pytest.raises(ConfigError) as caught:
        ImageStream(data_root=str(tmp_path), transform=TRAIN, **options)
    assert re.search(sentence, str(caught.value)) and '\n' not in str(caught.value)


def test_a_package_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'webdataset', None)
    monkeypatch.setattr('timm.data.readers.reader_wds.wds', None)
    with pytest.raises(ConfigError, match=r'; it needs the package webdataset$'):
        ImageStream('wds/', str(tmp_path), 'train-0.tar|8', EVAL)


def test_an_evaluation_without_the_number_of_images(shards):
    with pytest.raises(ConfigError, match='does not tell its number of images: write it behind the shards'):
        ImageStream('wds/', str(shards), 'val-0000.tar', EVAL)


def stream_config(path, shards, train='train-{0000..0003}.tar|48', val='val-0000.tar|12'):
    path.write_text(f"""_base_ = {str(ROOT / 'tests' / 'configs' / 'classifier_tiny.py')!r}
train_dataloader = dict(sampler=None, drop_last=False, dataset=dict(
    _delete_=True, type='mmtok.ImageStream', name='wds/', data_root={str(shards)!r},
    split={train!r}, transform=dict(input_size=32, is_training=True)))
val_dataloader = dict(dataset=dict(
    _delete_=True, type='mmtok.ImageStream', name='wds/', data_root={str(shards)!r}, split={val!r},
    transform=dict(input_size=32, crop_pct=1.0)), sampler=None)
train_cfg = dict(max_epochs=2)
""")
    return path


@pytest.mark.parametrize('spoilt, sentence', [
    ('val-0000.tar', "11 images were evaluated, but wds/ with split='val-0000.tar|12' states 12: correct this number "
                     '(behind the shards, or reader.num_samples); or mend what the log above names, which wds/ leaves'),
    ('train-*.tar', 'epoch 1 had no iteration: of the images of train_dataloader.dataset none could be read')])
def test_images_that_cannot_be_read(spoilt, sentence, shards, fork_tool, tmp_path):
    copy = shutil.copytree(shards, tmp_path / 'shards')
    for path in copy.glob(spoilt):
        content = path.read_bytes()
        if spoilt == 'val-0000.tar':
            content = content.replace(b'\x89PNG', b'none', 1)
        path.write_bytes(content if spoilt == 'val-0000.tar' else b'no tar file' * 100)
    run = fork_tool(ROOT / 'tools' / 'train_classifier.py', stream_config(tmp_path / 'streams.py', copy),
                     '--work-dir', tmp_path / 'work', cwd=tmp_path)
    assert run.returncode != 0 and f'mmtok: {sentence}' in run.stdout and 'Traceback' not in run.stdout


def test_more_images_than_the_stream_states(shards, fork_tool, tmp_path):
    config = stream_config(tmp_path / 'streams.py', shards, val='val-0000.tar|10')
    run = fork_tool(ROOT / 'tools' / 'train_classifier.py', config, '--work-dir', tmp_path / 'work', cwd=tmp_path)
    assert run.returncode != 0 and run.stdout.endswith(
        "mmtok: 12 images were evaluated, but wds/ with split='val-0000.tar|10' states 10: correct this number (behind "
        'the shards, or reader.num_samples)\n') and 'Traceback' not in run.stdout


@pytest.mark.parametrize('others, fits', [(4, False), (5, True), (6, False)])
def test_the_images_of_all_processes_are_counted(others, fits, shards, monkeypatch):
    monkeypatch.setattr('mmtok.classification.streams.all_reduce', lambda count: count.add_(others))
    data = ImageStream('wds/', str(shards), 'val-0000.tar|12', EVAL)
    with contextlib.nullcontext() if fits else pytest.raises(DataError, match=f'{7 + others} images were evaluated'):
        check_count(data, 7, len(data))


class StandIn:
    """As much of timm's reader of hfids/ as ImageStream uses: images, and how its data set is cut into shards."""

    def __init__(self, images=(), shards=1, processes=1):
        self.images, self.num_samples, self.dist_num_replicas = images, 8, processes
        self.name, self.download, self.ds = 'set', False, images
        self.builder = SimpleNamespace(as_streaming_dataset=lambda split: SimpleNamespace(num_shards=shards))

    def set_loader_cfg(self, num_workers):
        pass

    def __len__(self):
        return self.num_samples

    def __iter__(self):
        for image in self.images:
            yield Image.open(io.BytesIO(image)).convert('RGB'), 0


@pytest.fixture
def stand_in(monkeypatch):
    def make(transform, *args, **options) -> ImageStream:
        images = IterableImageDataset(None, reader=StandIn(*args, **options))
        monkeypatch.setattr('mmtok.classification.streams.create_dataset', lambda *_, **__: images)
        return ImageStream('hfids/set', None, 'train', transform)
    return make


@pytest.mark.parametrize('shards, processes, workers, sentence', [
    (4, 1, 4, None), (4, 2, 2, None), (3, 2, 3, None), (1, 4, 1, None), (1, 1, 0, None),
    (4, 1, 5, '4 shards cannot be shared by 5 data workers of all processes: set train_dataloader.num_workers to less'),
    (4, 2, 3, '4 shards cannot be shared by 6 data workers of all processes'),
    (3, 2, 4, '3 shards cannot be shared by 4 data workers of each process')])
def test_shards_of_hugging_face(shards, processes, workers, sentence, stand_in):
    """datasets gives each process as many, or if it cannot, all of them with a part of the images."""
    stream = stand_in(TRAIN, shards=shards, processes=processes)
    with pytest.raises(ConfigError, match=sentence) if sentence else contextlib.nullcontext():
        stream.follow(8, workers, 0)
    stand_in(EVAL, shards=shards, processes=processes).follow(8, workers, 0)


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('spoilt', [b'no image', 'half'])
def test_an_image_that_a_stream_cannot_decode(spoilt, workers, stand_in, folder):
    good = next(folder.glob('val/*/*.png')).read_bytes()
    stream = stand_in(EVAL, [good, good, good[:len(good) // 2] if spoilt == 'half' else spoilt, good])
    with pytest.raises(DataError) as caught:
        list(DataLoader(stream, num_workers=workers))
    sentence = str(caught.value)
    assert '\n' not in sentence and re.match(
        r"hfids/set with split='train': an image cannot be decoded \((Pillow knows no|OSError).*\), the next after "
        '2 that this data worker has read: replace it', sentence)


def parquet(path, images, labels, names):
    """Images as bytes alone, without names of files."""
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = dict(image=[dict(bytes=image, path=None) for image in images], label=labels)
    path.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_a_damaged_image_without_a_name(folder, tmp_path):
    paths = sorted(folder.glob('val/*/*.png'))
    images = [path.read_bytes() for path in paths]
    images[3] = b'no image'
    parquet(tmp_path / 'set' / 'train.parquet', images, [i // 3 for i in range(12)], list('abcd'))
    plain = ImageDataset(str(tmp_path / 'cache'), 'train', EVAL, name=f'hfds/{tmp_path}/set')
    with pytest.raises(DataError, match=f'^image 3 of {tmp_path}/cache cannot be decoded'):
        plain[3]
    options = dict(name=f'hfids/{tmp_path}/set', data_root=str(tmp_path / 'cache'), split='train')
    stream = ImageStream(**options, transform=EVAL, reader=dict(num_samples=12))
    with pytest.raises(DataError, match='an image cannot be decoded .*, the next after 3 that this data worker has'):
        list(stream)
    stream = ImageStream(**options, transform=TRAIN, reader=dict(num_samples=12))
    with pytest.raises(ConfigError, match='1 shards cannot be shared by 2 data workers'):
        stream.follow(4, 2, 0)


def test_a_data_set_of_hugging_face(folder, fork_tool, tmp_path):
    datasets = pytest.importorskip('datasets')
    plain = ImageDataset(str(folder), 'val', EVAL)
    names = list(plain.metainfo['classes'])
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = dict(image=[plain.filename(i) for i in range(12)], label=[plain[i][1] for i in range(12)])
    (tmp_path / 'set').mkdir()
    for split in ('train', 'validation'):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / 'set' / f'{split}.parquet')
    theirs = ImageDataset(str(tmp_path / 'cache'), 'train', EVAL, name=f'hfds/{tmp_path}/set')
    assert theirs.metainfo['classes'] == plain.metainfo['classes'] and len(theirs) == 12
    assert all(torch.equal(theirs[i][0], plain[i][0]) and theirs[i][1] == plain[i][1] for i in range(12))
    stream = Runner.build_dataloader(dict(
        batch_size=5, num_workers=1, sampler=None, collate_fn=dict(type='mmtok.stack_images'), dataset=dict(
            type='mmtok.ImageStream', name=f'hfids/{tmp_path}/set', data_root=str(tmp_path / 'cache'), split='train',
            transform=EVAL, reader=dict(num_samples=12))), 0)
    images, labels = (torch.cat(part) for part in zip(*stream, strict=True))
    assert torch.equal(images, torch.stack([plain[i][0] for i in range(12)]))
    assert labels.tolist() == rows['label']
    run = fork_tool(
        ROOT / 'tools' / 'train_classifier.py', ROOT / 'tests' / 'configs' / 'classifier_tiny.py', '--work-dir',
        tmp_path / 'work', '--epochs', '1', '--cfg-options', *(
            f'{loader}_dataloader.dataset.{option}' for loader, split in (('train', 'train'), ('val', 'validation'))
            for option in (f'name=hfds/{tmp_path}/set', f'data_root={tmp_path}/cache', f'split={split}')), cwd=tmp_path)
    assert run.returncode == 0 and 'accuracy/top1' in run.stdout, run.stdout[-3000:]
