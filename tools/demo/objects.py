"""Draws objects of five shapes on textured grounds, in COCO's layout, with a box and a mask for each.

Sizes run from 14 pixels to half of the image, objects hide parts of each other, and images are of several shapes, so
that batches are padded. A class is a shape: colours come from one distribution.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from scenes import colours, pattern

CLASSES = ('disc', 'ring', 'square', 'triangle', 'cross')
SIZES = ((128, 160), (160, 128), (144, 144), (96, 160))  # height, width


def shape_mask(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where an object is, in coordinates of its own that run from -1 to 1."""
    radius = np.hypot(u, v)
    if kind == 'disc':
        return radius < 1
    if kind == 'ring':
        return (radius < 1) & (radius > 0.5)
    if kind == 'square':
        return np.maximum(abs(u), abs(v)) < 0.8
    if kind == 'triangle':
        return (v < 0.6) & (v > 1.9 * abs(u) - 1)
    return (np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 1)


def draw_objects(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image (height,width,3) uint8, and (class, visible pixels (height,width)) of 1 to 6 objects."""
    y, x = np.mgrid[:height, :width].astype(float)
    dark, light = colours(rng)
    contrast = rng.uniform(0.2, 0.6)  # grounds are fainter than objects
    ground = (dark + light) / 2 + contrast * (np.array([dark, light]) - (dark + light) / 2)
    image = ground[pattern(rng, int(rng.integers(4)), x, y).astype(int)]
    objects = []
    for _ in range(int(rng.integers(1, 7))):
        kind, radius = int(rng.integers(len(CLASSES))), np.exp(rng.uniform(np.log(7), np.log(36)))
        angle, centre = rng.uniform(-0.4, 0.4), rng.uniform(0.1, 0.9, 2) * (height, width)
        u = ((x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)) / radius
        v = ((y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)) / radius
        inside = shape_mask(CLASSES[kind], u, v)
        image[inside] = rng.uniform(20, 235, 3)
        objects = [(other, mask & ~inside) for other, mask in objects] + [(kind, inside)]
    image = image + rng.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8), [(kind, mask) for kind, mask in objects if mask.sum() >= 60]


def annotation(kind: int, mask: np.ndarray, image_id: int, number: int) -> dict:
    rows, columns = np.nonzero(mask)
    box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    encoded = run_lengths.encode(np.asfortranarray(mask))
    return dict(id=number, image_id=image_id, category_id=kind + 1, bbox=box, area=int(mask.sum()), iscrowd=0,
                segmentation=dict(size=encoded['size'], counts=encoded['counts'].decode()))


def draw_coco_folder(root: Path, train: int = 400, val: int = 60, seed: int = 0) -> None:
    """{train,val}2017/*.jpg and annotations/instances_{train,val}2017.json, as of COCO 2017."""
    if root.exists():
        shutil.rmtree(root)
    (root / 'annotations').mkdir(parents=True)
    for split, count, stream in (('train2017', train, 0), ('val2017', val, 1)):
        rng, images, annotations = np.random.default_rng([seed, stream]), [], []
        (root / split).mkdir()
        for number in range(1, count + 1):
            height, width = SIZES[int(rng.integers(len(SIZES)))]
            image, objects = draw_objects(rng, height, width)
            Image.fromarray(image).save(root / split / f'{number:012d}.jpg', quality=95)
            images.append(dict(id=number, file_name=f'{number:012d}.jpg', height=height, width=width))
            annotations += [annotation(kind, mask, number, len(annotations) + i)
                            for i, (kind, mask) in enumerate(objects, 1)]
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
        (root / 'annotations' / f'instances_{split}.json').write_text(
            json.dumps(dict(info={}, images=images, annotations=annotations, categories=categories)))
