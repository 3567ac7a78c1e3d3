"""Which images a training was made on, told by their names and labels: what it takes to see that two differ."""

import hashlib
import os
from pathlib import Path

from torch.utils.data import Dataset

from ..engine.preflight import classes_of
from .images import ImageDataset
from .streams import ImageStream


def fingerprint(data: Dataset) -> dict[str, int | str]:
    """Number of `images` and `classes`, and a `hash` where labels are known without reading the images.

    It is the same wherever the folder lies, and for a tar file of it. Of a stream, the number of images that it states
    and the name of its `root` are all that is known.
    """
    if isinstance(data, ImageStream):
        reader = data.images.reader
        return dict(images=reader.num_samples, root=Path(getattr(reader, 'name', '') or reader.root).name)
    classes = classes_of(getattr(data, 'metainfo', None))
    found = dict(images=len(data), classes=len(classes))
    labels = data.labels() if isinstance(data, ImageDataset) else None
    if labels is not None:
        samples, taken = data.reader.samples, range(len(labels)) if data.indices is None else data.indices
        names = [getattr(samples[i][0], 'path', samples[i][0]) for i in taken]  # a member of a tar file, or a path
        lines = sorted(f'{labels[i]}/{os.path.basename(name)}' for i, name in zip(taken, names, strict=True))
        text = '\n'.join([*classes, *lines])
        found['hash'] = hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:12]
    return found
