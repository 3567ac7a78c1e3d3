"""An image gives the same tokens however far its batch is padded, through mmseg's and mmdet's own preprocessors."""

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample

from mmtok.backbones import PVT, DeiT, PVTv2, Swin, T2TViT

STATISTICS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def through_mmseg(images: list[torch.Tensor], size: tuple[int, int] | None) -> torch.Tensor:
    """A training batch, padded to `size`, or to the largest image."""
    divisor = None if size else 1
    preprocessor = SegDataPreProcessor(**STATISTICS, size=size, size_divisor=divisor, pad_val=0, seg_pad_val=255)
    samples = []
    for image in images:
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, *image.shape[-2:]))
        samples.append(sample)
    return preprocessor(dict(inputs=images, data_samples=samples), training=True)['inputs']


def through_mmdet(images: list[torch.Tensor], size: tuple[int, int] | None) -> torch.Tensor:
    """A batch padded to the largest image, and on to multiples of what gives `size`."""
    preprocessor = DetDataPreprocessor(**STATISTICS, pad_size_divisor=size[0] if size else 1)
    samples = [DetDataSample(metainfo=dict(img_shape=image.shape[-2:])) for image in images]
    return preprocessor(dict(inputs=images, data_samples=samples), training=True)['inputs']


def photo(height: int, width: int, seed: int) -> torch.Tensor:
    """Every value from 0 to 255, those next to the means among them."""
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def tokens_of(backbone, batch: torch.Tensor) -> torch.Tensor:
    """What the tokenizer gives the trunk inside `backbone(batch)`."""
    seen = []
    handle = backbone.tokenizer.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        backbone(batch)
    handle.remove()
    return seen[0]


PLAIN, PYRAMID = dict(embed_dims=32, depth=1, num_heads=2), dict(depths=(1, 1, 1, 1))
BACKBONES = {
    'DeiT': lambda **options: DeiT(arch=PLAIN, out_indices=0, **options),
    'Swin': lambda **options: Swin(arch=dict(embed_dims=16, num_heads=(1, 1, 1, 1), **PYRAMID), **options),
    'PVT': lambda **options: PVT(arch=PYRAMID, **options),
    'PVTv2': lambda **options: PVTv2(arch=dict(embed_dims=(8, 16, 40, 64), mlp_ratios=(2, 2, 2, 2), **PYRAMID),
                                     **options),
    'T2TViT': lambda **options: T2TViT(arch=PLAIN, out_indices=0, **options)}
BODIES = {
    'Swin': lambda **options: Swin(arch=dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)), **options),
    'PVTv2': lambda **options: PVTv2(arch='b0', **options)}
CASES = {f'{name}-{placement}': (name, dict(type='mmtok.MoToTokenizer', placement=placement))
         for name in BACKBONES if name != 'T2TViT' for placement in ('stem', 'token', 'branch')}
CASES |= {f'T2TViT-{attention}-{"moto" if moto else "plain"}':
          ('T2TViT', dict(type='mmtok.T2TTokenizer', attention=attention, moto=moto))
          for attention in ('performer', 'transformer') for moto in (None, dict(num_entities=4))}


def test_a_batch_without_padding_needs_no_mask():
    """The CPU leaves it out: the same bits come faster."""
    torch.manual_seed(0)
    backbone = BACKBONES['DeiT'](tokenizer=dict(type='mmtok.MoToTokenizer')).eval()
    batch = through_mmseg([photo(64, 96, 1)], None)
    with torch.no_grad():
        assert torch.equal(backbone(batch)[0], backbone(batch, torch.ones(1, 1, 64, 96).bool())[0])


@pytest.mark.parametrize('preprocess', [through_mmseg, through_mmdet], ids=['mmseg', 'mmdet'])
@pytest.mark.parametrize('name, tokenizer', CASES.values(), ids=CASES)
def test_tokens_do_not_depend_on_the_padding_of_the_batch(name, tokenizer, preprocess):
    torch.manual_seed(0)
    backbone = BACKBONES[name](tokenizer=tokenizer).eval()
    for parameter_name, parameter in backbone.tokenizer.named_parameters():
        if parameter_name.endswith('gate') or 'bias' in parameter_name:  # a closed gate would hide MoTo
            torch.nn.init.normal_(parameter, 0.5, 0.1)
    height, width = 97, 130  # no multiples of a patch
    image, larger = photo(height, width, 1), photo(192, 224, 2)
    alone = preprocess([image], None)
    batches = [preprocess([image, larger], None), preprocess([larger, image], (256, 256))[[1]],
               preprocess([image], (256, 256))]
    assert {tuple(batch.shape[-2:]) for batch in batches} == {(192, 224), (256, 256)}

    def deviation(batch) -> float:
        expected = tokens_of(backbone, alone)[0]
        rows, columns = expected.shape[1:]
        tokens = tokens_of(backbone, batch)[0, :, :rows, :columns]
        return float((tokens - expected).abs().max() / expected.abs().max())
    assert all(deviation(batch) <= 1e-5 for batch in batches)
    backbone.mask_padding = False
    assert all(deviation(batch) > 1e-3 for batch in batches)


@pytest.mark.parametrize('placement', ['stem', pytest.param('token', marks=pytest.mark.slow),
                                       pytest.param('branch', marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', ['Swin', 'PVTv2'])
def test_the_last_stage_deviates_no_more_than_the_plain_trunk_s(name, placement):
    """Windows and convolutions of a trunk reach into the padding that the tokenizer leaves out, MoTo or not."""
    pairs = [(photo(97 + 32 * i, 130, i), photo(256, 288, 10 + i)) for i in range(4)]
    batches = [(through_mmdet([image], (32, 32)), through_mmdet([image, larger], (32, 32))) for image, larger in pairs]

    def deviation(backbone) -> float:
        """Of the last map where the image is, relative to it, the mean over the images."""
        found = []
        for alone, beside in batches:
            with torch.no_grad():
                expected, other = backbone(alone)[-1][0], backbone(beside)[-1][0]
            rows, columns = expected.shape[1:]
            found.append((other[:, :rows, :columns] - expected).norm() / expected.norm())
        return float(torch.stack(found).mean())
    deviations = dict(plain=0, moto=0)
    for seed in range(4):  # one draw of weights tells little: the ratio scatters by 10 %
        torch.manual_seed(seed)
        plain = BODIES[name]().eval()
        moto = BODIES[name](tokenizer=dict(type='mmtok.MoToTokenizer', placement=placement)).eval()
        moto.trunk.load_state_dict(plain.trunk.state_dict())
        if placement != 'stem':
            moto.tokenizer.patch.load_state_dict(plain.tokenizer.state_dict())
            gate, = (p for name, p in moto.tokenizer.named_parameters() if name.endswith('gate'))
            torch.nn.init.constant_(gate, 0.5)  # closed, as it starts, it would hide MoTo
        deviations['plain'] += deviation(plain)
        deviations['moto'] += deviation(moto)
    assert 0 < deviations['moto'] <= 1.1 * deviations['plain'], deviations
