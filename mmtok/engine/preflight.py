"""Looks at a model and its config for combinations that cannot work, before the first iteration."""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from itertools import chain

from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader, IterableDataset

from ..backbones.base import TokenBackbone
from ..errors import ConfigError, DataError, check_options, check_positive_int, is_number

ARCHIVES = ('.tar', '.tar.gz', '.tgz', '.tar.xz', '.tar.bz2', '.zip')
DENSE_HEADS = ('decode_head', 'bbox_head', 'rpn_head', 'roi_head')
VARIABLES = dict(ADE20KDataset='ADE20K_ROOT', CocoDataset='COCO_ROOT', ImageDataset='IMAGENET_ROOT or CIFAR10_ROOT')
CLASS_HEADS = dict(decode_head=False, auxiliary_head=False, bbox_head=True, mask_head=True)  # whether exactly


def is_local(path: object, storage: dict | None) -> bool:
    """Whether a path of a data set with these backend_args lies in a file system of this machine."""
    return isinstance(path, str) and '://' not in path and (storage or {}).get('backend') in (None, 'local', 'disk')


def check_loaders(cfg: dict, *loaders: str) -> None:
    """Every data_root below these dataloaders is there, and batches have images.

    What a remote file backend maps is not looked at.
    """
    for loader in loaders:
        if (size := (cfg.get(loader) or {}).get('batch_size')) is not None:
            check_positive_int(f'{loader}.batch_size', size)
        for path, dataset in dicts_with(cfg.get(loader) or {}, 'data_root', loader):
            root = dataset['data_root']
            storage = dataset.get('backend_args') or dataset.get('file_client_args')
            if not root or not is_local(root, storage) or dataset.get('name'):  # a reader of timm's
                continue
            packed = root.endswith(ARCHIVES) and os.path.isfile(root)  # mmtok.ImageDataset looks at it
            if not packed and not os.path.isdir(root):
                variable = VARIABLES.get(type_name(dataset)) or ', '.join(VARIABLES.values())
                found = 'no folder' if os.path.exists(root) else 'not there'
                raise ConfigError(
                    f'the data root {root!r} ({path}.data_root) is {found}: put the data set in this folder, or name '
                    f"yours (mmtok's configs: the environment variable {variable} "
                    f'sets all loaders and metrics; else --cfg-options {path}.data_root=/path/to/it)')


def check_amp(cfg: dict) -> None:
    """`--amp` has a device that mmengine's AmpOptimWrapper takes."""
    if (cfg.get('optim_wrapper') or {}).get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ConfigError("optim_wrapper.type='AmpOptimWrapper' (--amp) needs a GPU, and none is visible: train "
                          'without --amp here')


def check_clipping(cfg: dict) -> None:
    """Clipping of gradients gets options of torch's; mmengine would hand it any in the first iteration."""
    clip = (cfg.get('optim_wrapper') or {}).get('clip_grad') or {}
    kinds = dict(norm=clip_grad_norm_, value=clip_grad_value_)
    if isinstance(clip, dict) and clip.get('type', 'norm') in kinds:
        check_options('optim_wrapper.clip_grad', clip, kinds[clip.get('type', 'norm')])


def check_tta(cfg: dict) -> None:
    """mmdet's test-time augmentation gets no detector with masks, at which it would fail after the first image."""
    model = cfg.get('model') or {}
    inner = model.get('module') or {}
    if type_name(model) == 'DetTTAModel' and (inner.get('mask_head') or (inner.get('roi_head') or {}).get('mask_head')):
        raise ConfigError(f"--tta merges boxes alone (mmdet's DetTTAModel), but this {inner.get('type')} finds masks "
                          'too: test it without --tta')


def check_model(model: nn.Module, cfg: dict) -> None:
    """The backbones of mmtok in an unwrapped model fit the image size, the neck and head, and the preprocessor."""
    backbones = [module for module in model.modules() if isinstance(module, TokenBackbone)]
    if backbones:
        check_neck(cfg.get('model') or {})
    for backbone in backbones:
        check_image_size(cfg, backbone.patch_size)
        check_outputs(backbone, cfg.get('model') or {})
        check_padding(backbone, getattr(model, 'data_preprocessor', None), cfg)


def check_image_size(cfg: dict, patch_size: int) -> None:
    """No crop of the training pipeline and no fixed size of the preprocessor is smaller than a token."""
    crops = dicts_with(cfg.get('train_dataloader') or {}, 'crop_size', 'train_dataloader')
    sizes = [(f'{path}.crop_size', crop['crop_size']) for path, crop in crops
             if not str(crop.get('crop_type')).startswith('relative')]  # fractions of the image
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or {}
    sizes.append(('model.data_preprocessor.size', preprocessor.get('size')))
    for path, size in sizes:
        sides = list(size) if isinstance(size, (tuple, list)) else [size]
        if all(isinstance(side, int) for side in sides) and min(sides) < patch_size:
            raise ConfigError(f'{path}={size} is smaller than one token of {patch_size}x{patch_size} pixels: '
                              'use a larger crop or a smaller patch_size')


def check_outputs(backbone: TokenBackbone, model_cfg: dict) -> None:
    """What takes the backbone's outputs, a neck or heads, expects as many maps and channels as there are."""
    name = type(backbone).__name__
    if backbone.classifier and any(head in model_cfg for head in DENSE_HEADS):
        raise ConfigError(f'model.backbone {name} has classifier=True and gives a vector, but this model takes maps: '
                          'remove classifier')
    if model_cfg.get('neck'):
        takers = [('neck', model_cfg['neck'])]
    else:
        takers = [(key, head) for key in ('decode_head', 'auxiliary_head') for head in as_list(model_cfg.get(key))]
    given = list(backbone.out_channels)
    for key, taker in takers:
        wanted = taker.get('in_channels') if isinstance(taker, dict) else None
        if wanted is None:
            continue
        index = taker.get('in_index', -1 if isinstance(wanted, int) else list(range(len(given))))
        index = list(range(len(given))) if key == 'neck' else as_list(index)
        beyond = [i for i in index if not -len(given) <= i < len(given)]
        if beyond:
            raise ConfigError(f'model.{key}.in_index={taker["in_index"]} counts on more maps than the {len(given)} of '
                              f'{name}: name more blocks or stages in model.backbone.out_indices')
        if as_list(wanted) != [given[i] for i in index]:
            raise ConfigError(f'model.{key}.in_channels={wanted}, but {name} gives it maps of '
                              f'{[given[i] for i in index]} channels: make them equal')


def check_neck(model_cfg: dict) -> None:
    """What takes a neck's maps expects as many channels as they have."""
    neck, roi_head = model_cfg.get('neck'), model_cfg.get('roi_head') or {}
    given = neck.get('out_channels') if isinstance(neck, dict) else None
    takers = [(f'model.{key}', model_cfg.get(key), 'in_channels')
              for key in ('decode_head', 'auxiliary_head', 'rpn_head', 'bbox_head')]
    takers += [(f'model.roi_head.{key}', roi_head.get(key), 'out_channels')
               for key in ('bbox_roi_extractor', 'mask_roi_extractor')]
    for path, taker, key in takers if isinstance(given, int) else ():
        for one in as_list(taker):
            wanted = one.get(key) if isinstance(one, dict) else None
            if any(count != given for count in as_list(wanted)):
                raise ConfigError(f'{path}.{key}={wanted}, but model.neck.out_channels={given}: make them equal')


def type_name(cfg: dict) -> str:
    """Of what a config builds, without its scope; a config may hold the class itself."""
    kind = cfg.get('type')
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).split('.')[-1]


def as_list(value) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check_padding(backbone: TokenBackbone, preprocessor: nn.Module | None, cfg: dict) -> None:
    """Padding can be told from real pixels, and the tokenizer takes as many channels as the preprocessor gives."""
    preprocessor = getattr(preprocessor, 'data_preprocessor', preprocessor)  # of semi-supervised detectors, inside
    mean = getattr(preprocessor, 'mean', None)
    mean = None if mean is None else mean.flatten().tolist()
    channels = getattr(backbone.tokenizer, 'in_channels', None)
    if mean is not None and channels is not None and len(mean) != channels:
        raise ConfigError(f'the tokenizer has in_channels={channels}, but model.data_preprocessor.mean has {len(mean)} '
                          'values: make them equal')
    if preprocessor is None or not (
            backbone.mask_padding and (backbone.tokenizer_uses_mask or backbone.token_prop is not None)):
        return
    pad_values = [getattr(preprocessor, 'pad_val', getattr(preprocessor, 'pad_value', 0))]
    augments = getattr(preprocessor, 'batch_augments', None) or ()
    pad_values += [getattr(augment, 'img_pad_value', 0) for augment in augments]
    pad_value = next((value for value in pad_values if is_number(value) and value != 0), pad_values[0])
    pixels_can_be_zero = mean is None or all(float(value).is_integer() for value in mean)
    if pixels_can_be_zero or (is_number(pad_value) and pad_value != 0):
        raise ConfigError(
            'mask_padding=True reads the padding off the input, which needs a mean that is no whole number and a pad '
            f'value of 0, but model.data_preprocessor has mean={mean} and pad value {pad_value}: change them, or set '
            'model.backbone.mask_padding=False to count padding as image')
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'tta_pipeline'):
        for path, transform in dicts_with(cfg.get(part) or {}, 'type', part):
            if type_name(transform) == 'Pad':
                raise ConfigError(
                    f'{path} (Pad) pads images before they are normalised, after which mask_padding=True cannot tell '
                    'padding from pixels: remove it and let model.data_preprocessor pad (pad_size_divisor, size), or '
                    'set model.backbone.mask_padding=False to count padding as image')


def unwrapped(model: nn.Module) -> nn.Module:
    """Without what wraps it for several processes or for test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def check_small_images(batch: dict, model: nn.Module, cfg: dict) -> None:
    """No image of a batch to evaluate is so small that the neck shrinks its token map to nothing.

    Raises:
        DataError: Names the image. Training crops are padded to one size, evaluated images are not.
    """
    augmented, model_cfg = isinstance(model, BaseTTAModel), cfg.get('model') or {}
    model, neck = unwrapped(model), (model_cfg.get('module') or {} if augmented else model_cfg).get('neck')
    padded = getattr(getattr(model, 'data_preprocessor', None), 'test_cfg', None)
    if padded or not isinstance(neck, dict) or not neck.get('scales'):
        return
    tokens = math.ceil(1 / min(neck['scales']))
    for backbone in (module for module in model.modules() if isinstance(module, TokenBackbone)):
        images, samples = batch['inputs'], batch['data_samples']
        if augmented:  # a batch of each augmentation
            images, samples = chain(*images), chain(*samples)
        for image, sample in zip(images, samples, strict=True):
            height, width = image.shape[-2:]
            if math.ceil(min(height, width) / backbone.patch_size) < tokens:
                scale = min(neck['scales'])
                raise DataError(
                    f'{sample.get("img_path")} is {width}x{height} pixels after the pipeline, but model.neck with the '
                    f'scale {scale} needs {tokens} tokens of {backbone.patch_size} pixels each way: take it '
                    'out of the data set, or pad what is evaluated with --cfg-options '
                    f'model.data_preprocessor.test_cfg.size_divisor={tokens * backbone.patch_size}')


def check_classes(cfg: dict, metainfo: dict) -> None:
    """A classifier, and every head of a segmentor, has an output for every class of the data set.

    A detector's heads have no more than that either: the COCO metric cannot name what they would find.
    """
    count = len(classes_of(metainfo))
    model = cfg.get('model') or {}
    heads = [('model', model, False)]  # a classifier has no head of its own in the config
    for path, owner in (('model', model), ('model.roi_head', model.get('roi_head') or {})):
        for name, exact in CLASS_HEADS.items():
            several = isinstance(owner.get(name), (list, tuple))
            heads += [(f'{path}.{name}' + several * f'.{number}', head, exact)
                      for number, head in enumerate(as_list(owner.get(name))) if not head.get('class_agnostic')]
    for path, head, exact in heads:
        known = head.get('num_classes')
        if isinstance(known, int) and count and (known != count if exact else known < count):
            raise ConfigError(f'{path}.num_classes={known}, but the data have {count} classes: make them equal')
        if path == 'model' and isinstance(known, int) and 0 < count < known:
            print_log(f'model.num_classes={known}, but the data have {count} classes: the others are never right; '
                      f'model.num_classes={count} leaves them out',
                      logger='current', level=logging.WARNING)


def check_mixed_batches(loader: DataLoader, preprocessor: nn.Module | None) -> None:
    """Mixup and CutMix, which pair the images of a batch, get an even number in all batches of an epoch."""
    size, data = loader.batch_size, loader.dataset
    if getattr(preprocessor, 'mixup', None) is None or not size:
        return
    if size % 2:
        raise ConfigError(f'model.data_preprocessor.mixup pairs the images of a batch, but train_dataloader.batch_size='
                          f'{size} is odd: make it even, or set mixup to None')
    rest = 0 if loader.drop_last or isinstance(data, IterableDataset) else len(loader.sampler) % size
    if rest % 2:
        raise ConfigError(f'model.data_preprocessor.mixup pairs the images of a batch, but the last batch of an epoch '
                          f'has {rest}: set train_dataloader.drop_last=True, or mixup to None')


def classes_of(metainfo) -> list[str]:
    """Of a data set, by index; empty where they are not known. Joined data sets have a list of them."""
    return list(metainfo.get('classes') or ()) if isinstance(metainfo, dict) else []


def compare_classes(ours, name: str, theirs, other: str, where: str = '') -> None:
    """Two data sets, told by their `metainfo`, number their classes alike; `where` says where they are.

    Raises:
        ConfigError: Both are known and differ; names classes that only one of them has.
    """
    ours, theirs = classes_of(ours), classes_of(theirs)
    if ours and theirs and ours != theirs:
        alone = [f'only {one} has {", ".join(map(repr, sorted(names)[:5]))}' for one, names in (
            (name, set(ours) - set(theirs)), (other, set(theirs) - set(ours))) if names]
        raise ConfigError(f'{name} has {len(ours)} classes and {other} {len(theirs)}; {", ".join(alone)}: have the '
                          f'same classes in both{where}'
                          if alone else f'{name} and {other} number their classes in another order{where}')


def describe_misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What of a checkpoint's tensors is not as in a model; empty where all is."""
    parts = [("it lacks {} of the model's tensors", [name for name in wanted if name not in found]),
             ('the model lacks {} of its tensors', [name for name in found if name not in wanted]),
             ('the shapes differ in {} of their tensors',
              [name for name in wanted if name in found and found[name].shape != wanted[name].shape])]
    return '; '.join(f'{what.format(len(names))}, such as {names[0]!r}' for what, names in parts if names)


def tensors_of(checkpoint: Mapping) -> dict[str, Tensor]:
    """By name, as mmengine reads them out of a file that was loaded."""
    found = checkpoint.get('state_dict', checkpoint)
    return {name.removeprefix('module.'): value for name, value in found.items() if hasattr(value, 'shape')
            } if isinstance(found, Mapping) else {}


def tested(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but TokenProp's decoder, which published checkpoints leave out."""
    return {name: tensor for name, tensor in tensors.items() if 'token_prop.' not in name}


def dicts_with(node, name: str, path: str) -> Iterator[tuple[str, dict]]:
    """(path, dict) of every dict below `node` that has the key `name`."""
    if isinstance(node, dict):
        if name in node:
            yield path, node
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from dicts_with(child, name, f'{path}.{key}')
