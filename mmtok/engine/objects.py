"""Objects of annotation files in COCO's format whose box, area or mask mmdet cannot read, or reads as nonsense."""

import json
import math

from mmengine.dataset import BaseDataset
from mmengine.fileio import load

from ..errors import ConfigError


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def short(value: object, length: int = 60) -> str:
    """A value as it stands in the file, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= length else f'{text[:length]}...'


def fault_of_mask(mask: object, size: tuple[int | None, int | None]) -> str:
    """What is wrong with a segmentation of an image of this (height, width); '' for none, and for what mmdet ignores.

    Of a compressed run-length code only the size is looked at.
    """
    if isinstance(mask, list):
        flat = next((part for part in mask if not isinstance(part, list)), None)
        if flat is not None:
            return f'a segmentation of {short(mask)}, and not a list of polygons, [[x, y, x, y, x, y, ...], ...]'
        wrong = next((value for polygon in mask for value in polygon if not is_number(value)), None)
        return '' if wrong is None else f'a polygon with {short(wrong)} in it, which is no number'
    if not isinstance(mask, dict):
        return f'a segmentation of {short(mask)}, which is neither a list of polygons nor a run-length code'
    said, counts = mask.get('size'), mask.get('counts')
    if said is None or counts is None:
        return ''
    if None not in size and list(said) != list(size):
        return f'a run-length code for {short(said)} (height and width), while the image has {short(size)}'
    if isinstance(counts, list) and sum(counts) != math.prod(said):
        return f'a run-length code of {sum(counts)} pixels in all, while its size is {short(said)}'
    return ''


def fault_of_box(found: dict) -> str:
    """What is wrong with the box or the area of an object; '' for nothing, and for what is not there."""
    box = found.get('bbox', [0, 0, 0, 0])
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(is_number(value) for value in box):
        return f'a bbox of {short(box)}, and not four numbers (x, y, width, height)'
    if not is_number(found.get('area', 0)):
        return f'an area of {short(found["area"])}, which is no number'
    return ''


def loads_masks(dataset: BaseDataset) -> bool:
    """Whether a data set's pipeline reads segmentations."""
    return any(getattr(transform, 'with_mask', False) for transform in getattr(dataset.pipeline, 'transforms', ()))


def check_objects(annotations: dict, file: str, masks: bool) -> None:
    """Every object of a file, with its segmentation if `masks`; mmdet passes over those that it is to ignore.

    Raises:
        ConfigError: Names the first that cannot be read, and says how many there are.
    """
    sizes = {image['id']: (image.get('height'), image.get('width')) for image in annotations.get('images', ())}
    objects = [one for one in annotations.get('annotations', ())
               if 'segments_info' not in one and not one.get('ignore')]
    faults = []
    for one in objects:
        fault = fault_of_box(one)
        if masks and not fault and one.get('segmentation'):
            fault = fault_of_mask(one['segmentation'], sizes.get(one.get('image_id'), (None, None)))
        if fault:
            faults.append((one, fault))
    if faults:
        one, fault = faults[0]
        others = f', and {len(faults) - 1} more of {len(objects)} cannot be read either' if len(faults) > 1 else ''
        raise ConfigError(f'{file}: the annotation with id {one.get("id")!r} has {fault}{others}: mend the file')


def check_boxes_of(file: str) -> None:
    """`check_objects` of a file that mmdet could not make sense of; silent where it has no such fault.

    Raises:
        ConfigError: As it says.
    """
    try:
        found = load(file)
    except (OSError, TypeError, ValueError):  # not there, no JSON; another sentence says so
        return
    if isinstance(found, dict):
        check_objects(found, file, masks=False)
