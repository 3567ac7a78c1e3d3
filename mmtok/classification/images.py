"""Image folders and tar files through timm's readers, with its transforms, and with bad files named."""

import contextlib
import io
import os
import random
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_dataset, create_transform
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.transforms import MaybePILToTensor
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..engine.preflight import ARCHIVES
from ..engine.samples import SkippedFiles, is_about_content
from ..errors import ConfigError, DataError, check_options, is_number
from ..registry import DATASETS
from .sampler import Draw

STREAMS = ('wds/', 'hfids/', 'tfds/')


@DATASETS.register_module()
class ImageDataset(Dataset):
    """Images by class: a folder with one folder for each class, a tar file of it, or a data set of Hugging Face.

    Args:
        data_root: Folder with the folders (or tar files) of the splits, as ImageNet's, or one tar file of them; or the
            folder or tar file of one split itself.
        split: Which of them: 'train', 'val' or another name.
        transform: Options of timm's `create_transform`, such as `input_size`, `is_training`, `auto_augment`.
            Normalisation, and the random erasing that follows it, are `mmtok.ImagePreprocessor`'s part.
        name: Empty for folders and tar files; 'hfds/NAME' for a data set of Hugging Face, kept on disk.
        class_map: Text file with a class a line, in order; without it, classes are numbered in timm's natural order
            of their names, in which '2' comes before '10' (in torchvision's, after it).
        fraction: Share of the images of each class that is used, at least one of each.
        fraction_seed: Which ones; smaller fractions of one seed are part of larger ones.
        reader: More options of timm's `create_dataset`.

    Attributes:
        metainfo: The `classes`, by index.
        root: Folder, tar file or cache that is read.
        chose_split: Whether `split` decided what is read; not where `data_root` is the folder of one split itself.

    Raises:
        ConfigError: When nothing, or too little, is found.
        DataError: For a file that cannot be decoded, unless training may skip it, and for a class without images.
    """

    def __init__(self, data_root: str, split: str = 'train', transform: dict | None = None, name: str = '',
                 class_map: str = '', fraction: float = 1.0, fraction_seed: int = 0, reader: dict | None = None):
        self.transform = make_transform(transform or {})
        if name.startswith(STREAMS):
            raise ConfigError(f'name={name!r} is read as a stream: use mmtok.ImageStream for it')
        self.split, self.root = split, find_split(data_root, split) if not name else data_root
        self.chose_split = bool(name) or self.root != str(Path(data_root))
        with explained_reader(self.root):
            self.reader = create_dataset(name, self.root, split, search_split=False, class_map=class_map or None,
                                         **(reader or {})).reader
        if hasattr(self.reader, 'targets'):
            self.chose_split |= take_split(self.reader, self.root, split)
        self.metainfo = dict(classes=tuple(self.find_classes(in_folders=not name)))
        self.indices = self.take(fraction, fraction_seed)
        self.skipped = SkippedFiles(len(self))

    def find_classes(self, in_folders: bool) -> list[str]:
        """Names of the classes, each of which must have images."""
        names = getattr(self.reader, 'class_to_idx', None) or getattr(self.reader, 'class_name_to_idx', None)
        if names is None:
            return []
        if in_folders and os.path.isdir(self.root):
            empty = list(empty_folders(self.root))
            if empty:
                raise DataError(f'{empty[0]} holds no images ({", ".join(sorted(get_img_extensions()))})'
                                + (f', nor do {len(empty) - 1} other folders' if empty[1:] else '')
                                + ': put the images there, or remove the folder')
        classes = sorted(names, key=names.get)
        if isinstance(labels := self.labels(), list):
            held = set(labels)
            missing = [name for name in classes if names[name] not in held]
            if missing:
                raise DataError(f'{len(missing)} of {len(classes)} classes have no image in {self.root}, such as '
                                f'{missing[0]!r}: put the images into a folder of this name, or take the class out of '
                                'class_map')
        if classes == ['']:
            raise ConfigError(f'{self.root} holds images, but no folders of them: it should hold one folder of images '
                              'for each class')
        if len(classes) < 2:
            raise ConfigError(f'{self.root} has one class only, {classes[0]!r}: a classifier needs two; data_root is '
                              'the folder that holds one folder for each class, or the folders of the splits')
        return classes

    def labels(self) -> list[int] | None:
        """The class of each image, None where only reading it would tell."""
        if hasattr(self.reader, 'samples') and hasattr(self.reader, 'targets'):  # tar files
            return [int(target) for target in self.reader.targets]
        if hasattr(self.reader, 'samples'):
            return [target for _, target in self.reader.samples]
        return None

    def take(self, fraction: float, seed: int) -> list[int] | None:
        """Indices of a balanced part of the images, None for all of them."""
        if not is_number(fraction) or not 0 < fraction <= 1:
            raise ConfigError(f'fraction={fraction!r} must be a number above 0, up to 1')
        if fraction == 1:
            return None
        labels = self.labels()
        if labels is None:
            raise ConfigError(f'fraction={fraction} needs image folders or tar files, whose labels are known '
                              'beforehand')
        wanted = {label: max(1, round(fraction * count)) for label, count in Counter(labels).items()}
        order = np.random.default_rng(seed).permutation(len(labels))
        taken = []
        for index in order.tolist():
            if wanted[labels[index]]:
                wanted[labels[index]] -= 1
                taken.append(index)
        return sorted(taken)

    def __len__(self) -> int:
        return len(self.reader) if self.indices is None else len(self.indices)

    def filename(self, index: int) -> str:
        """Where an image is: its path, or its name inside a tar file or data set."""
        index = index if self.indices is None else self.indices[index]
        with contextlib.suppress(Exception):  # data sets of Hugging Face need not have names
            if name := self.reader.filename(index, absolute=True):
                return name if os.path.isdir(self.root) else f'{self.root}: {name}'
        return f'image {index} of {self.root}'

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, int]:
        """(image (3,H,W) uint8, label). With a Draw, its seed decides on the augmentation."""
        if isinstance(draw, Draw):
            states = None
            if get_worker_info() is None:  # a data worker has no other use for its random numbers
                states = random.getstate(), np.random.get_state(), torch.get_rng_state()
            random.seed(draw.seed)
            np.random.seed(draw.seed)
            torch.default_generator.manual_seed(draw.seed)
            try:
                return self.read(draw.index, may_skip=True)
            finally:
                if states:
                    random.setstate(states[0])
                    np.random.set_state(states[1])
                    torch.set_rng_state(states[2])
        return self.read(draw, may_skip=False)

    def read(self, index: int, may_skip: bool) -> tuple[Tensor, int]:
        """An image, or if it cannot be decoded and may be skipped, another one."""
        while True:
            try:
                file, label = self.reader[index if self.indices is None else self.indices[index]][:2]
                with file:
                    data = io.BytesIO(file.read())  # Pillow reads a header in dozens of parts
                with Image.open(data) as image:
                    image.load()
                    if image.mode != 'RGB':
                        image = image.convert('RGB')
                break
            except FileNotFoundError as error:
                raise DataError(f'{self.filename(index)} is not there any more') from error
            except Exception as error:
                if not is_about_content(error):
                    raise
                self.skipped.add(self.filename(index), error, may_skip)
                index = random.randrange(len(self))
        return self.transform(image), int(label)


def make_transform(options: dict):
    """timm's transform, without normalisation, of its options."""
    check_options('dataset.transform', options, create_transform)
    beyond = [key for key in options if key in ('mean', 'std') or key.startswith('re_')]
    if beyond:
        raise ConfigError(f'dataset.transform has {", ".join(beyond)}, but normalisation and random erasing are done '
                          'on the device: set mean, std and erase in model.data_preprocessor')
    try:
        transform = create_transform(**options, use_prefetcher=True)
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        hint = ("; auto_augment is such as 'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2', '3a' or 'original'"
                if 'auto_augment' in options else '')
        raise ConfigError(f'timm can make no transform of dataset.transform={options} ({type(error).__name__}'
                          f'{f": {error}" if str(error) else ""}){hint}') from error
    steps = getattr(transform, 'transforms', [])
    if steps and isinstance(steps[-1], MaybePILToTensor):
        steps[-1] = to_tensor
    for step in steps:
        policies = [getattr(step, 'ops', ()), *getattr(step, 'policy', ())]  # RandAugment's, AutoAugment's
        for op in (op for policy in policies for op in policy):
            if getattr(op, 'aug_fn', None) is auto_augment.posterize:
                op.aug_fn = posterize
    return transform


def to_tensor(image: Image.Image | Tensor) -> Tensor:
    """timm's MaybePILToTensor, (3,H,W) uint8, whose rows are contiguous: batches need no reordering of pixels.

    Pillow writes the channels of a line one after the other; to part them later takes ten times as long.
    """
    if not isinstance(image, Image.Image) or image.mode != 'RGB':
        return MaybePILToTensor()(image)
    lines = torch.frombuffer(bytearray(image.tobytes('raw', 'RGB;L')), dtype=torch.uint8)
    return lines.view(image.height, 3, image.width).transpose(0, 1)


def posterize(image: Image.Image, bits: int, **options) -> Image.Image:
    """timm's, black for no bits at all, which the strongest RandAugment asks for and Pillow 13 refuses."""
    if bits < 1:
        return image.point([0] * 256 * len(image.getbands()))
    return auto_augment.posterize(image, bits, **options)


def names_of(split: str) -> list[str]:
    """What its folder may be called."""
    return [split, *{'train': ['training'], 'val': ['validation', 'valid']}.get(split, [])]


SPLITS = (*names_of('train'), *names_of('val'))


def find_split(data_root: str, split: str) -> str:
    """The folder or tar file of a split below `data_root`; this itself where it has none.

    Raises:
        ConfigError: When the folder has other splits, or nothing is there.
    """
    root = Path(data_root)
    for name in names_of(split):
        if root.name in names_of(split) and (root / name).is_dir() and not has_folders(root / name):
            continue  # a class of this name, in the folder of the split itself
        for place in (root / name, root / f'{name}.tar'):
            if place.exists():
                return str(place)
    if root.name.endswith(ARCHIVES[1:]):
        raise ConfigError(f'data_root={data_root!r} is compressed, and images are read from it one by one: unpack it '
                          'into a folder, or into a .tar file')
    if not root.exists():
        raise ConfigError(f'data_root={data_root!r} is not there: put the images there, or name another folder')
    other = [name for name in SPLITS if (root / name).is_dir()]
    if other and root.name not in names_of(split):
        raise ConfigError(lacks_split(data_root, other, split))
    return str(root)


def lacks_split(root: str, held: list[str], split: str) -> str:
    return (f'{root} has the split {", ".join(map(repr, sorted(held)))}, but not {split!r}: put its folders of classes '
            f'below {names_of(split)[0]}, or name a split that is there')


def has_folders(path: Path) -> bool:
    return any(child.is_dir() for child in path.iterdir())


def take_split(reader, root: str, split: str) -> bool:
    """Leaves a timm reader of tar files those below the folder of the split, if they lie in folders of splits.

    Returns:
        Whether they do.
    """
    folders = [set(sample[0].path.split('/')[:-2]) for sample in reader.samples]  # above the folder of the class
    held = set(SPLITS).intersection(set().union(*folders))
    if not held or root.endswith(tuple(f'{name}.tar' for name in names_of(split))):
        return False
    mine = [any(name in above for name in names_of(split)) for above in folders]
    if not any(mine):
        raise ConfigError(lacks_split(root, held, split))
    reader.samples, reader.targets = reader.samples[mine], reader.targets[mine]
    return True


def empty_folders(root: str) -> Iterator[str]:
    """Folders without an image or another folder in them; hidden ones are not looked at."""
    endings = tuple(get_img_extensions())
    for folder, inside, files in os.walk(root, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith('.')]
        if not inside and folder != root and not any(name.lower().endswith(endings) for name in files):
            yield folder


@contextlib.contextmanager
def explained_reader(root: str) -> Iterator[None]:
    """One sentence where timm finds no image."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f'{root} needs a package that is not installed ({error}): pip install '
                          f'{error.name or "it"}') from error
    except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError, OSError, tarfile.TarError) as error:
        text = ' '.join(str(error).split())
        if 'Found 0 images' in text or 'not enough values to unpack' in text or 'No .tar files' in text:
            raise ConfigError(f'{root} holds no images: it should hold one folder of images for each class') from error
        raise ConfigError(f'{root} cannot be read as a data set ({text})') from error
