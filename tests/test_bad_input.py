"""Images and masks as they really come: training goes on, or one sentence names the file and the fault."""

import re
import shutil

import mmseg.models  # noqa: F401  registers its models
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from conftest import ROOT, logged_steps
from mmtok.engine.building import explained_arguments
from mmtok.errors import ConfigError

CONFIG = ROOT / 'tests' / 'configs' / 'tiny_drawn-128x128.py'
BAD = 'bad'  # the stem of the spoilt image and mask


@pytest.fixture
def data(drawn_ade, tmp_path):
    """A copy of the drawn images with room for a spoilt one."""
    shutil.copytree(drawn_ade, tmp_path / 'data')
    return tmp_path / 'data'


def image_file(data, split='training'):
    return data / 'images' / split / f'{BAD}.jpg'


def mask_file(data, split='training'):
    return data / 'annotations' / split / f'{BAD}.png'


def add(data, image: Image.Image, split='training', save_as='JPEG', mask_size=None, label=1) -> None:
    """One more image, whatever its format called .jpg, and its mask."""
    image.save(image_file(data, split), format=save_as)
    width, height = mask_size or image.size
    Image.fromarray(np.full((height, width), label, np.uint8)).save(mask_file(data, split))


def noise(height, width, channels=3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def truncate(path, share=0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])


@pytest.fixture
def train(fork_tool, data, tmp_path):
    """Train 4 iterations of 3 images on all 9 images of the folder, the spoilt one among them, in one data worker."""
    def run(*options, config=CONFIG, roots=True):
        loaders = ('train', 'val', 'test') if roots else ()
        return fork_tool('train', config, '--work-dir', tmp_path / 'work', '--cfg-options',
                          'randomness.seed=0', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4',
                          'train_dataloader.num_workers=1', 'train_dataloader.batch_size=3',
                          *(f'{name}_dataloader.dataset.data_root={data}' for name in loaders),
                          *options, cwd=tmp_path)
    return run


def goes_on(run, tmp_path) -> str:
    assert run.returncode == 0, run.stdout[-3000:]
    steps = logged_steps(tmp_path / 'work')
    assert len(steps) == 4 and all(np.isfinite(line['loss']) for line in steps.values())
    return run.stdout


def last_sentence(run) -> str:
    assert run.returncode == 1 and 'Traceback' not in run.stdout, run.stdout[-3000:]
    return run.stdout.strip().splitlines()[-1]


def with_step(tmp_path, step: str, load: str = "dict(type='LoadImageFromFile')"):
    """The config with one more step after the annotations."""
    config = tmp_path / 'config.py'
    config.write_text(f"""_base_ = {str(CONFIG)!r}
train_dataloader = dict(dataset=dict(pipeline=[
    {load}, dict(type='LoadAnnotations', reduce_zero_label=True), {step},
    dict(type='PackSegInputs')]))
""")
    return config


ODD_IMAGES = {
    'grey-scale': (Image.fromarray(noise(128, 128)).convert('L'), 'JPEG'),
    'CMYK': (Image.fromarray(noise(128, 128)).convert('CMYK'), 'JPEG'),
    '16-bit': (Image.fromarray(noise(128, 128, 1)[..., 0].astype(np.uint16) * 257), 'PNG'),
    'with alpha': (Image.fromarray(noise(128, 128, 4), 'RGBA'), 'PNG'),
    '3x2000': (Image.fromarray(noise(3, 2000)), 'JPEG'),
    '2x2': (Image.fromarray(noise(2, 2)), 'PNG'),
}


@pytest.mark.parametrize('kind', ['grey-scale', '3x2000', *(
    pytest.param(kind, marks=pytest.mark.slow) for kind in ODD_IMAGES if kind not in ('grey-scale', '3x2000'))])
def test_odd_images_are_trained_on(kind, train, data, tmp_path):
    image, save_as = ODD_IMAGES[kind]
    add(data, image, save_as=save_as)
    if min(image.size) > 3:
        add(data, image, 'validation', save_as)
    crop = with_step(tmp_path, "dict(type='RandomCrop', crop_size=(128, 128))")  # makes one batch of all sizes
    assert 'skipped' not in goes_on(train(config=crop), tmp_path)


def test_an_image_too_small_to_evaluate_is_named_with_what_to_do(train, data, tmp_path):
    """mmseg's MultiLevelNeck halves a map that is one token high."""
    add(data, Image.fromarray(noise(3, 2000)), 'validation')
    sentence = last_sentence(train())
    assert sentence.startswith(f'mmtok: {image_file(data, "validation")} is 2000x3 pixels after the pipeline, but ')
    remedy = sentence.split('--cfg-options ')[1]
    assert remedy == 'model.data_preprocessor.test_cfg.size_divisor=16'
    goes_on(train(remedy), tmp_path)


def test_an_image_too_small_for_test_time_augmentation_is_named(train, fork_tool, data, tmp_path):
    goes_on(train(), tmp_path)
    add(data, Image.fromarray(noise(3, 2000)), 'validation')
    config = with_step(tmp_path, "dict(type='RandomFlip', prob=0.0)")
    config.write_text(config.read_text() + """
tta_model = dict(type='SegTTAModel')
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[
    [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)], [dict(type='LoadAnnotations', reduce_zero_label=True)],
    [dict(type='PackSegInputs')]])]
""")
    arguments = [config, tmp_path / 'work' / 'iter_4.pth', '--tta', '--work-dir', tmp_path / 'test', '--cfg-options',
                 f'test_dataloader.dataset.data_root={data}']
    sentence = last_sentence(fork_tool('test', *arguments, cwd=tmp_path))
    assert sentence.startswith(f'mmtok: {image_file(data, "validation")} is 2000x3 pixels after the pipeline, but ')
    run = fork_tool('test', *arguments, sentence.split('--cfg-options ')[1], cwd=tmp_path)
    assert run.returncode == 0 and 'mIoU' in run.stdout, run.stdout[-3000:]


@pytest.mark.parametrize('spoil', [
    'empty image', 'image without pixels', 'truncated image', 'truncated mask', 'web page as mask'])
def test_what_cannot_be_decoded_is_skipped_with_one_warning(spoil, train, data, tmp_path):
    add(data, Image.fromarray(noise(128, 128)))
    file = mask_file(data) if 'mask' in spoil else image_file(data)
    if 'web page' in spoil:
        file.write_text('<html>404</html>')
    else:
        truncate(file, {'empty image': 0, 'image without pixels': 0.01}.get(spoil, 0.5))
    output = goes_on(train(), tmp_path)
    warnings = [line for line in output.splitlines() if 'skipped' in line]
    assert len(warnings) == 1 and f'{file} cannot be decoded (' in warnings[0]
    assert warnings[0].endswith('skipped, another image takes its place')


def test_a_data_set_of_which_nothing_can_be_decoded(train, data):
    """As when git-lfs left its pointers in the place of the images."""
    for image in (data / 'images' / 'training').iterdir():
        image.write_text('version https://git-lfs.github.com/spec/v1')
    assert re.match(r'mmtok: .*\.jpg cannot be decoded \(.*\), as 2 others before it: mend the data set$',
                    last_sentence(train()))


def test_a_data_set_inside_a_wrapper(train, data, tmp_path):
    config = tmp_path / 'repeated.py'
    config.write_text(f"""_base_ = {str(CONFIG)!r}
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict(
    type='BaseSegDataset', data_root={str(data)!r}, reduce_zero_label=True, metainfo={{{{_base_.metainfo}}}},
    data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    pipeline={{{{_base_.train_dataloader.dataset.pipeline}}}})))
""")
    add(data, Image.fromarray(noise(128, 128)), mask_size=(100, 90))
    options = [f'{name}_dataloader.dataset.data_root={data}' for name in ('val', 'test')]
    assert 'is 100x90 pixels, but its image' in last_sentence(train(*options, config=config, roots=False))


def test_what_cannot_be_decoded_ends_an_evaluation(train, data, tmp_path):
    """A score over the other images would be a wrong number."""
    add(data, Image.fromarray(noise(128, 128)), 'validation')
    image_file(data, 'validation').write_bytes(b'')
    sentence = last_sentence(train())
    assert sentence.startswith(f'mmtok: {image_file(data, "validation")} cannot be decoded (')
    assert sentence.endswith('replace it, or take it out of the data set')


def test_the_same_under_mmseg_s_test_tool(train, data, tmp_path, fork_tool):
    """mmseg's `tools/test.py` does not heed `runner_type`; the config's TestLoop checks in its stead."""
    goes_on(train(), tmp_path)

    def test(*options, checkpoint='iter_4.pth'):
        roots = [f'{name}_dataloader.dataset.data_root={data}' for name in ('train', 'val', 'test')]
        return fork_tool('test', CONFIG, tmp_path / 'work' / checkpoint, '--work-dir', tmp_path / 'test',
                          '--cfg-options', *roots, 'test_dataloader.num_workers=1', *options, cwd=tmp_path)
    assert test().returncode == 0
    add(data, Image.fromarray(noise(128, 128)), 'validation')
    image_file(data, 'validation').write_bytes(b'')
    assert f'mmtok: {image_file(data, "validation")} cannot be decoded (' in last_sentence(test())
    assert "mmtok: the data root '/nowhere'" in last_sentence(test('test_dataloader.dataset.data_root=/nowhere'))
    assert "work/gone.pth' does not exist" in last_sentence(test(checkpoint='gone.pth'))


def test_a_mask_of_another_size(train, data):
    add(data, Image.fromarray(noise(128, 128)), mask_size=(100, 90))
    assert last_sentence(train()) == (f'mmtok: {mask_file(data)} is 100x90 pixels, but its image {image_file(data)} is '
                                      '128x128: they must be of one size')


def test_a_coloured_mask(train, data):
    add(data, Image.fromarray(noise(128, 128)))
    Image.fromarray(noise(128, 128)).save(mask_file(data))
    sentence = last_sentence(train())
    assert sentence.startswith(f'mmtok: {mask_file(data)} loads as an array of shape (128, 128, 3): a semantic map has')


def test_labels_out_of_range(train, data):
    add(data, Image.fromarray(noise(128, 128)), label=7)  # 6 classes, and 0 for pixels to ignore
    assert last_sentence(train()).startswith(
        f'mmtok: {mask_file(data)} holds the label 7, but the data set has 6 classes (labels 1 to 6; reduce_zero_')


def test_labels_to_ignore_are_in_range(train, data, tmp_path):
    add(data, Image.fromarray(noise(128, 128)), label=0)
    goes_on(train(), tmp_path)


def test_a_mask_that_is_missing(train, data):
    add(data, Image.fromarray(noise(128, 128)))
    mask_file(data).unlink()
    assert last_sentence(train()) == (f'mmtok: {mask_file(data)} is not there, but the data set lists it: put it '
                                      'there, or name the right folder in data_root or data_prefix')


def test_an_empty_image_folder(train, data):
    """mmengine's infinite sampler would otherwise wait for the first image for ever."""
    for image in (data / 'images' / 'training').iterdir():
        image.unlink()
    sentence = last_sentence(train())
    assert sentence.startswith('mmtok: BaseSegDataset found no image with ')
    assert f"data_root='{data}'" in sentence and 'images/training' in sentence


def test_a_missing_image_folder(train, data):
    shutil.rmtree(data / 'images' / 'training')
    assert f'mmtok: BaseSegDataset: {data}/images/training is not there' in last_sentence(train())


def test_a_missing_annotation_folder(train, data):
    shutil.rmtree(data / 'annotations' / 'training')
    assert last_sentence(train()).startswith(f'mmtok: BaseSegDataset: {data}/annotations/training is not there')


def test_more_classes_than_the_head_knows(train, tmp_path):
    """Whoever has the log file alone reads it there."""
    sentence = 'mmtok: model.decode_head.num_classes=5, but the data have 6 classes: make them equal'
    assert last_sentence(train('model.decode_head.num_classes=5')) == sentence
    log, = (tmp_path / 'work').glob('*/*.log')
    last = log.read_text().strip().splitlines()[-1]
    assert ' - ERROR - ' in last and last.endswith(f' - {sentence}')


@pytest.mark.parametrize('name, step, load', [
    ('Resize', "dict(type='Resize', scale=(0, 0), keep_ratio=False)", "dict(type='LoadImageFromFile')"),
    ('LoadImageFromFile', "dict(type='RandomFlip', prob=0.0)",
     "dict(type='LoadImageFromFile', imdecode_backend='turbojpeg')")], ids=['a step', 'a setting of a loading step'])
def test_a_fault_in_a_step_keeps_its_traceback(name, step, load, train, tmp_path):
    """What is no fault of a file must not look like one, nor be skipped."""
    run = train(config=with_step(tmp_path, step, load))
    assert run.returncode == 1 and 'Traceback' in run.stdout
    assert f'{name} failed on ' in run.stdout and 'skipped' not in run.stdout


def test_evaluation_alone(drawn_ade, tmp_path):
    """`Runner.val()`, which no tool of mmseg calls."""
    from mmtok.engine.runner import Runner
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = str(tmp_path)
    cfg.val_dataloader.dataset.data_root = str(drawn_ade)
    cfg.log_level, cfg.visualizer.name = 'ERROR', 'alone'  # mmengine keeps visualizers by name, with their folders
    assert 'mIoU' in Runner.from_cfg(cfg).val()


@pytest.mark.parametrize('name, hint', [('Swin', "; is 'mmtok.Swin' meant"), ('mmtok.Swim', "; is 'mmtok.Swin' meant"),
                                        ('Nothing', ': correct it, or have custom_imports'),
                                        ('TokenPropHok', ': correct it, or have'), ('DeitX', ': correct it, or have')])
def test_a_class_that_is_not_registered(name, hint):
    cfg = dict(type='EncoderDecoder', backbone=dict(type=name), decode_head=dict(type='FCNHead'))
    with (DefaultScope.overwrite_default_scope('mmseg'), pytest.raises(ConfigError) as caught,
          explained_arguments('model', cfg)):
        MODELS.build(cfg)
    start = f"'{name}' (model.backbone.type) is the name of no class that is registered{hint}"
    assert str(caught.value).startswith(start)
