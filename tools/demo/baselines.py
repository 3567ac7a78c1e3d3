"""What a segmentation score is worth: the majority class everywhere, and a classifier that sees one pixel's colour."""

from pathlib import Path

import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from PIL import Image

LEVELS = 16  # of each colour channel


def load(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Colour bins and classes (from 0) of all pixels of a split, each (images,H,W)."""
    images = sorted((root / 'images' / split).glob('*.jpg'))
    pixels = np.stack([np.asarray(Image.open(path)) for path in images]).astype(int) * LEVELS // 256
    labels = np.stack([np.asarray(Image.open(root / 'annotations' / split / f'{path.stem}.png')) for path in images])
    return pixels @ [LEVELS**2, LEVELS, 1], labels.astype(int) - 1


def miou(prediction: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """mmseg's mean IoU, between 0 and 1."""
    areas = IoUMetric.intersect_and_union(torch.from_numpy(prediction), torch.from_numpy(labels), classes, 255)
    return float(np.nanmean(IoUMetric.total_area_to_metrics(*areas, metrics=['mIoU'])['IoU']))


def majority_miou(root: Path, classes: int) -> float:
    """The most frequent training class everywhere."""
    _, train = load(root, 'training')
    _, labels = load(root, 'validation')
    return miou(np.full_like(labels, np.bincount(train.ravel()).argmax()), labels, classes)


def rgb_miou(root: Path, classes: int) -> float:
    """The most frequent training class of each of 16x16x16 colours, applied pixel by pixel."""
    colours, train = load(root, 'training')
    counts = np.zeros((LEVELS**3, classes))
    np.add.at(counts, (colours.ravel(), train.ravel()), 1)
    colours, labels = load(root, 'validation')
    return miou(counts.argmax(1)[colours], labels, classes)
