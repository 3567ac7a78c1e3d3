"""Image folders, tar files and streams: what they hold, in which order, and what they say of what is wrong."""

import copy
import platform
import random
import re
import shutil
import sys
import tarfile

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS
from PIL import Image
from timm.data import create_transform

from conftest import SHARED
from mmtok.classification.fingerprint import fingerprint
from mmtok.classification.images import ImageDataset, make_transform, to_tensor
from mmtok.classification.preprocessor import stack_images
from mmtok.classification.sampler import Draw, EpochSampler
from mmtok.engine.runner import Runner
from mmtok.errors import ConfigError, DataError
from mmtok.machine import processor_name

CLASSES = ('blotches', 'checks', 'dots', 'stripes')
EVAL = dict(input_size=32, crop_pct=1.0)
TRAIN = dict(input_size=32, is_training=True, auto_augment='rand-m9-mstd0.5-inc1', interpolation='bicubic')


@pytest.fixture(scope='session')
def drawn_folder(draw_folder):
    return draw_folder(train=10, val=3)


@pytest.fixture
def folder(drawn_folder, tmp_path):
    """One that a test may spoil."""
    return shutil.copytree(drawn_folder, tmp_path / 'data')


def loader(root, workers=0, seed=0, transform=TRAIN, sampler=(), **dataset):
    cfg = dict(
        batch_size=8, num_workers=workers, drop_last=True, collate_fn=dict(type='mmtok.stack_images'),
        sampler=dict(type='mmtok.EpochSampler', **dict(sampler)),
        dataset=dict(type='mmtok.ImageDataset', data_root=str(root), transform=transform, **dataset))
    return Runner.build_dataloader(cfg, seed)


def batches(*args, epoch=0, **kwargs):
    found = loader(*args, **kwargs)
    found.sampler.set_epoch(epoch)
    return list(found)


def same(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for pair in zip(a, b, strict=True)
                                    for x, y in zip(*pair, strict=True))


def pack(folder, path):
    with tarfile.open(path, 'w') as tar:
        for child in sorted(folder.iterdir()):
            tar.add(child, child.name)


def test_images_and_labels_are_those_of_the_folders(drawn_folder):
    data = ImageDataset(str(drawn_folder), 'val', EVAL)
    assert data.metainfo['classes'] == CLASSES and len(data) == 12
    for i in range(len(data)):
        image, label = data[i]
        path = data.filename(i)
        assert path.startswith(f'{drawn_folder}/val/{CLASSES[label]}/')
        pixels = np.asarray(Image.open(path))
        assert image.dtype == torch.uint8 and (image.permute(1, 2, 0).numpy() == pixels).all()


def test_the_transform_is_timms(drawn_folder):
    data = ImageDataset(str(drawn_folder), 'train', TRAIN)
    theirs = create_transform(**TRAIN, use_prefetcher=True)
    for i in range(8):
        ours = data[Draw(i, seed=i)][0]
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(i)
        assert torch.equal(ours, theirs(Image.open(data.filename(i)).convert('RGB')))


def test_batches_need_no_reordering(drawn_folder):
    """Their pixels lie as those of timm's loader do, whatever the height and width."""
    wide = Image.open(drawn_folder / 'val' / 'dots' / '0000.png').convert('RGB').resize((7, 5))
    assert (to_tensor(wide).permute(1, 2, 0).numpy() == np.asarray(wide)).all()
    images, labels = stack_images([(to_tensor(wide), 3), (to_tensor(wide), 1)])
    assert images.is_contiguous() and images.shape == (2, 3, 5, 7) and labels.tolist() == [3, 1]
    assert to_tensor(wide.convert('L')).shape == (1, 5, 7)


def test_no_bits_at_all_are_black_with_every_pillow(drawn_folder):
    transform = make_transform({**TRAIN, 'auto_augment': 'rand-m10-mstd0-inc1'})
    augment = next(step for step in transform.transforms if hasattr(step, 'ops'))
    op = next(op for op in augment.ops if op.name.startswith('Posterize'))
    op.prob = 1.0
    image = Image.open(drawn_folder / 'val' / 'dots' / '0000.png')
    assert not np.asarray(op(image)).any()
    op.magnitude = 5
    assert (np.asarray(op(image)) == np.asarray(image) // 64 * 64).all()


def test_a_tar_file_gives_the_batches_of_its_folder(drawn_folder, tmp_path):
    for split in ('train', 'val'):
        pack(drawn_folder / split, tmp_path / f'{split}.tar')
    folder, tar = batches(drawn_folder), batches(tmp_path)
    assert same(folder, tar) and len(folder) == 5
    assert ImageDataset(str(tmp_path / 'val.tar'), 'val', EVAL).filename(0).startswith(f'{tmp_path}/val.tar: blotches/')


@pytest.mark.skipif(not SHARED.is_dir(), reason=f'{SHARED} is not here')
def test_cifar10_unpacked_and_as_a_tar_file(cifar10, tmp_path):
    for split in ('train', 'val'):
        pack(cifar10 / split, tmp_path / f'{split}.tar')
    with tarfile.open(tmp_path / 'both.tar', 'w') as tar:  # as the archive, unpacked by xz alone
        tar.add(cifar10, cifar10.name)
    roots = (cifar10, tmp_path, tmp_path / 'both.tar')
    first = [next(iter(loader(root, seed=3))) for root in roots]
    assert same(first[:1], first[1:2]) and same(first[:1], first[2:])
    assert [len(ImageDataset(str(root), 'val', EVAL)) for root in roots] == 3 * [5000]


def test_one_tar_file_of_all_splits(drawn_folder, tmp_path):
    pack(drawn_folder, tmp_path / 'data.tar')
    assert same(batches(drawn_folder), batches(tmp_path / 'data.tar'))
    assert len(ImageDataset(str(tmp_path / 'data.tar'), 'val', EVAL)) == 12
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/data.tar has the split 'train', 'val', but not 'test': put "):
        ImageDataset(str(tmp_path / 'data.tar'), 'test', EVAL)


@pytest.mark.parametrize('split, other', [('train', 'val'), ('val', 'train')])
def test_classes_that_are_called_like_splits(split, other, folder):
    """CIFAR-100 has a class `train`; here `data_root` is the folder of a split itself."""
    (folder / split / 'dots').rename(folder / split / other)
    (folder / split / 'stripes').rename(folder / split / split)
    data = ImageDataset(str(folder / split), split, EVAL)
    assert set(data.metainfo['classes']) == {'blotches', 'checks', 'train', 'val'} and not data.chose_split
    assert ImageDataset(str(folder), split, EVAL).metainfo == data.metainfo


@pytest.mark.parametrize('workers', [1, 3])
def test_an_epoch_does_not_depend_on_the_workers(workers, drawn_folder):
    assert same(batches(drawn_folder, epoch=2), batches(drawn_folder, workers=workers, epoch=2))


@pytest.mark.parametrize('kind', [dict, ConfigDict])
def test_no_data_workers(kind, drawn_folder):
    """Where the config has options for them: they are without effect, and stay in the config."""
    cfg = kind(batch_size=8, num_workers=0, persistent_workers=True, prefetch_factor=2,
               sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='mmtok.stack_images'),
               dataset=dict(type='mmtok.ImageDataset', data_root=str(drawn_folder), transform=EVAL))
    before = copy.deepcopy(cfg)
    built = Runner.build_dataloader(cfg)
    assert len(list(built)) == 5 and not built.persistent_workers
    assert cfg == before and type(cfg) is kind


def test_epochs_and_seeds_differ(drawn_folder):
    first = batches(drawn_folder)
    assert same(first, batches(drawn_folder))
    assert not same(first, batches(drawn_folder, epoch=1))
    assert not same(first, batches(drawn_folder, seed=1))


def test_reading_in_the_main_process_leaves_its_random_numbers(drawn_folder):
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    wanted = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    ImageDataset(str(drawn_folder), 'train', TRAIN)[Draw(0, 7)]
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == wanted


@pytest.mark.parametrize('repeats', [1, 3])
def test_processes_share_the_epoch_of_one(repeats, monkeypatch):
    data = range(600)

    def draws(rank, processes):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (rank, processes))
        sampler = EpochSampler(data, seed=1, num_repeats=repeats)
        sampler.set_epoch(4)
        found = list(sampler)
        assert len(found) == len(sampler)
        return found
    alone, (first, second) = draws(0, 1), (draws(0, 2), draws(1, 2))
    together = [draw for pair in zip(first, second, strict=True) for draw in pair]
    assert together == alone[:len(together)] and len(alone) - len(together) < 256
    assert len({draw.seed for draw in alone}) == len(alone)
    if repeats == 3:
        assert [draw.index for draw in alone[:6:3]] == [draw.index for draw in alone[2:6:3]]  # in a row


@pytest.mark.parametrize('fraction, count', [(0.5, 20), (0.4, 16), (0.2, 8), (0.1, 4)])
def test_fractions_are_balanced_and_nested(fraction, count, drawn_folder):
    def names(fraction, seed=0):
        data = ImageDataset(str(drawn_folder), 'train', EVAL, fraction=fraction, fraction_seed=seed)
        return {data.filename(i) for i in range(len(data))}
    taken = names(fraction)
    assert len(taken) == count == 4 * sum('/dots/' in name for name in taken)
    assert taken == names(fraction) and taken < names(0.6) and taken != names(fraction, seed=1)


def test_a_fingerprint_knows_the_images_and_not_their_place(folder, tmp_path):
    def of(root, **options):
        return fingerprint(ImageDataset(str(root), 'train', EVAL, **options))
    first = of(folder)
    assert first['images'] == 40 and first['classes'] == 4 and re.fullmatch('[0-9a-f]{12}', first['hash'])
    pack(folder, tmp_path / 'data.tar')
    pack(folder / 'train', tmp_path / 'train.tar')
    assert first == of(shutil.move(folder, tmp_path / 'moved')) == of(tmp_path / 'data.tar') == of(tmp_path)
    train = tmp_path / 'moved' / 'train'
    others = [first, of(tmp_path / 'moved', fraction=0.5), of(tmp_path / 'moved', fraction=0.5, fraction_seed=1)]
    (train / 'dots' / '0000.png').rename(train / 'dots' / 'zero.png')
    others.append(of(tmp_path / 'moved'))
    (train / 'dots' / 'zero.png').rename(train / 'checks' / 'zero.png')
    others.append(of(tmp_path / 'moved'))
    (train / 'dots').rename(train / 'dotted')
    others.append(of(tmp_path / 'moved'))
    assert len({found['hash'] for found in others}) == len(others)
    assert fingerprint(range(7)) == dict(images=7, classes=0)


def test_the_processor_of_this_machine(tmp_path):
    (tmp_path / 'cpuinfo').write_text('processor\t: 0\nmodel name\t: A CPU: fast\nmodel name\t: another\n')
    assert processor_name(tmp_path / 'cpuinfo') == 'A CPU: fast'
    assert processor_name(tmp_path / 'none') == (platform.processor() or platform.machine())


def spoil_empty_class(folder):
    (folder / 'val' / 'lines').mkdir()


def spoil_by_a_note(folder):
    (folder / 'val' / 'lines').mkdir()
    (folder / 'val' / 'lines' / 'readme.txt').touch()


def spoil_one_class(folder):
    for name in CLASSES[1:]:
        shutil.rmtree(folder / 'val' / name)


def spoil_flat(folder):
    (folder / 'val' / 'dots' / '0000.png').rename(folder / 'val' / '0000.png')
    spoil_all(folder)


def spoil_all(folder):
    for name in CLASSES:
        shutil.rmtree(folder / 'val' / name)


def spoil_split(folder):
    shutil.rmtree(folder / 'val')


WRONG = {
    'empty class folder': (spoil_empty_class, {}, r'.*/val/lines holds no images \(.jpeg, .jpg, .png\): put'),
    'class folder without images': (spoil_by_a_note, {}, r'.*/val/lines holds no images \(.jpeg'),
    'one class': (spoil_one_class, {}, r".*/val has one class only, 'blotches': a classifier needs two"),
    'no images': (spoil_all, {}, r'.*/val holds no images: it should hold one folder'),
    'no split': (spoil_split, {}, r".* has the split 'train', but not 'val': put its folders of classes below val"),
    'no class folders': (spoil_flat, {}, r'.*/val holds images, but no folders of them'),
    'no folder': (shutil.rmtree, {}, r"data_root='.*' is not there"),
    'labels without images': (lambda folder: (folder / 'classes.txt').write_text('\n'.join([*CLASSES, 'waves'])),
                              dict(class_map='../classes.txt'),
                              r"1 of 5 classes have no image in .*/val, such as 'waves'"),
    'unknown option': (lambda folder: None, dict(transform=dict(size=3)), r'dataset.transform has no option size; it'),
    'normalisation': (lambda folder: None, dict(transform=dict(re_prob=0.2, mean=(0, 0, 0))),
                      r'dataset.transform has re_prob, mean, but normalisation'),
    'fraction': (lambda folder: None, dict(fraction=1.5), r'fraction=1.5 must be'),
    'no reader': (lambda folder: None, dict(name='torch/nothing'), '.* cannot be read as a data set'),
    'reader option': (lambda folder: None, dict(reader=dict(foo=1)), '.* cannot be read as a data set .*foo'),
    'stream': (lambda folder: None, dict(name='wds/x'), r"name='wds/x' is read as a stream: use mmtok.ImageStream"),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said_in_one_sentence(case, folder):
    spoil, options, sentence = WRONG[case]
    spoil(folder)
    with pytest.raises((ConfigError, DataError)) as caught:
        ImageDataset(str(folder), 'val', **{'transform': EVAL, **options})
    assert re.match(sentence, str(caught.value)) and '\n' not in str(caught.value)


def test_a_reader_without_its_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    monkeypatch.delitem(sys.modules, 'timm.data.readers.reader_hfds', raising=False)
    with pytest.raises(ConfigError, match='needs a package that is not .* pip install datasets'):
        ImageDataset(str(folder), 'val', EVAL, name='hfds/x')


def test_a_compressed_tar_file(tmp_path):
    (tmp_path / 'images.tar.xz').touch()
    with pytest.raises(ConfigError, match='is compressed, .*: unpack it'):
        ImageDataset(str(tmp_path / 'images.tar.xz'))


@pytest.mark.parametrize('content', [b'', b'a page' * 200, 'half'])
def test_a_damaged_tar_file(content, drawn_folder, tmp_path):
    pack(drawn_folder / 'val', tmp_path / 'val.tar')
    (tmp_path / 'val.tar').write_bytes(
        (tmp_path / 'val.tar').read_bytes()[:700] if content == 'half' else content)
    with pytest.raises(ConfigError, match='val.tar (cannot be read as a data set|holds no images)'):
        ImageDataset(str(tmp_path), 'val', EVAL)


@pytest.mark.parametrize('content', [b'', b'\xff\xd8\xff', b'<html>404</html>', 'half'])
def test_a_damaged_image(content, folder, log):
    bad = folder / 'train' / 'dots' / '0003.png'
    bad.write_bytes(bad.read_bytes()[:300] if content == 'half' else content)
    found = batches(folder)
    assert sum(len(labels) for _, labels in found) == 40
    warnings = [text for level, text in log if level == 'WARNING' and 'cannot be decoded' in text]
    assert len(warnings) == 1 and warnings[0].startswith(str(bad)) and warnings[0].endswith('takes its place')
    data = ImageDataset(str(folder), 'train', EVAL)
    index = next(i for i in range(len(data)) if data.filename(i) == str(bad))
    with pytest.raises(DataError, match=f'{bad} cannot be decoded .*: replace it'):
        data[index]


def test_a_damaged_image_without_a_name(folder, monkeypatch):
    """As the readers of Hugging Face's data sets have them."""
    bad = folder / 'train' / 'dots' / '0003.png'
    bad.write_bytes(b'')
    data = ImageDataset(str(folder), 'train', EVAL)
    index = next(i for i in range(len(data)) if data.filename(i) == str(bad))
    monkeypatch.setattr(data.reader, 'filename', lambda *_, **__: None)
    with pytest.raises(DataError, match=rf'^image {index} of {folder}/train cannot be decoded \(Pillow knows no such'):
        data[index]


def test_a_data_set_of_damaged_images(folder):
    for path in folder.glob('train/*/*.png'):
        path.write_text('version https://git-lfs.github.com/spec/v1')
    with pytest.raises(DataError, match='as 10 others before it: mend the data set'):
        batches(folder)


def test_an_image_that_is_gone(folder):
    data = DATASETS.build(dict(type='mmtok.ImageDataset', data_root=str(folder), split='val', transform=EVAL))
    (folder / 'val' / 'dots' / '0000.png').unlink()
    with pytest.raises(DataError, match='dots/0000.png is not there any more'):
        [data[i] for i in range(len(data))]
