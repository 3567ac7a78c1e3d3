"""Draws scenes whose classes differ by texture and by context, never by colour.

An image is cut into wavy regions with one of four two-coloured textures. Flat discs lie on some of them, and a
disc's class depends on what it lies on: the same pixels, another surrounding. All colours come from one
distribution, so a classifier that sees single pixels is left with guessing.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ('stripes', 'checks', 'dots', 'blotches', 'disc on lines', 'disc on spots')
PALETTE = ((228, 26, 28), (55, 126, 184), (77, 175, 74), (152, 78, 163), (255, 200, 40), (60, 60, 60))
ON_LINES, ON_SPOTS = CLASSES.index('disc on lines'), CLASSES.index('disc on spots')


def draw_scene(rng: np.random.Generator, side: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """One image (side,side,3) uint8 and its classes (side,side) uint8."""
    y, x = np.mgrid[:side, :side].astype(float)
    region = wavy_regions(rng, x, y, count=int(rng.integers(2, 5)))
    image = np.zeros((side, side, 3))
    labels = np.zeros((side, side), np.uint8)
    for index in range(region.max() + 1):
        inside = region == index
        texture = int(rng.integers(4))
        labels[inside] = texture
        dark, light = colours(rng)
        image[inside] = np.where(pattern(rng, texture, x, y)[..., None], light, dark)[inside]
    ground = labels.copy()
    for _ in range(12):
        radius = rng.uniform(0.10, 0.17) * side
        centre = rng.uniform(radius, side - radius, 2)
        distance = np.hypot(x - centre[0], y - centre[1])
        nearby = distance < 1.4 * radius
        if len(np.unique(region[nearby])) > 1 or (labels[nearby] > 3).any():
            continue  # a disc lies within one region and touches no other
        inside = distance < radius
        labels[inside] = ON_LINES if ground[inside][0] < 2 else ON_SPOTS
        image[inside] = colours(rng)[int(rng.integers(2))]
    light = 1 + 0.15 * np.sin(rng.uniform(0, 6.3) + (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) * 3 / side)
    image = image * light[..., None] + rng.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8), labels


def wavy_regions(rng, x, y, count):
    """Index of the nearest of `count` points, after the plane was bent."""
    side = x.shape[0]
    bent = [axis + 6 * np.sin(other * rng.uniform(4, 8) / side + rng.uniform(0, 6.3))
            for axis, other in ((x, y), (y, x))]
    points = rng.uniform(0, side, (count, 2))
    return np.argmin([np.hypot(bent[0] - px, bent[1] - py) for px, py in points], axis=0)


def colours(rng):
    """Two colours of clearly different brightness, from one distribution for all classes."""
    while True:
        pair = rng.uniform(20, 235, (2, 3))
        if abs(pair[0].mean() - pair[1].mean()) > 60:
            return pair


def pattern(rng, texture, x, y):
    """Boolean map of one texture at a random angle, period and phase; about half of it is true."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(7, 11)
    u = (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform()
    v = (-x * np.sin(angle) + y * np.cos(angle)) / period + rng.uniform()
    if texture == 0:
        return u % 1 < 0.5
    if texture == 1:
        return (u % 1 < 0.5) ^ (v % 1 < 0.5)
    if texture == 2:
        return np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.4
    noise = np.fft.fft2(rng.normal(size=x.shape))
    frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, x.shape), indexing='ij'))
    return np.fft.ifft2(noise * np.exp(-((frequency - 0.6 / period) * 12 * period / 8) ** 2)).real > 0


def draw_ade_folder(root: Path, train: int = 400, val: int = 60, side: int = 128, seed: int = 0) -> None:
    """A data set in ADE20K's layout: images/{training,validation}/*.jpg, annotations/.../*.png with classes from 1."""
    if root.exists():
        shutil.rmtree(root)
    for split, count, stream in (('training', train, 0), ('validation', val, 1)):
        rng = np.random.default_rng([seed, stream])
        images, annotations = root / 'images' / split, root / 'annotations' / split
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for i in range(count):
            image, labels = draw_scene(rng, side)
            Image.fromarray(image).save(images / f'{i:04d}.jpg', quality=95)
            Image.fromarray(labels + 1).save(annotations / f'{i:04d}.png')


def draw_image_folder(root: Path, train: int = 200, val: int = 50, side: int = 32, seed: int = 0) -> None:
    """A data set in ImageNet's layout: {train,val}/CLASS/*.png, so many images of each of the four textures."""
    if root.exists():
        shutil.rmtree(root)
    y, x = np.mgrid[:side, :side].astype(float)
    for split, count, stream in (('train', train, 0), ('val', val, 1)):
        rng = np.random.default_rng([seed, stream])
        for texture, name in enumerate(CLASSES[:4]):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                dark, light = colours(rng)
                image = np.where(pattern(rng, texture, x, y)[..., None], light, dark)
                image = image + rng.normal(0, 6, image.shape)
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / name / f'{i:04d}.png')
