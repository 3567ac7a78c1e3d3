"""Objects of annotation files in COCO's format whose box, area or mask mmdet cannot read, or leaves out."""

import contextlib
import json
import logging
import math
from collections.abc import Iterator

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from ..errors import ConfigError, is_number


def short(value: object, length: int = 60) -> str:
    """A value as it stands in the file, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= length else f'{text[:length]}...'


def describe_box(one: dict, size: tuple[int, int]) -> str:
    """An annotation of an image of this (width, height), for a sentence."""
    return (f'id {one.get("id")!r}, bbox={short(one["bbox"])}, area={short(one.get("area"))}, on an image of '
            f'{size[0]}x{size[1]}')


def is_left_out(box: list[float], area: float, size: tuple[int, int]) -> bool:
    """Whether mmdet leaves an object out: outside its image of this (width, height), under a pixel, without area."""
    (x, y, width, height), (right, bottom) = box, size
    inside = min(min(x + width, right) - max(x, 0), min(y + height, bottom) - max(y, 0))
    return inside <= 0 or min(width, height) < 1 or area <= 0


def reaches_beyond(box: list[float], size: tuple[int, int]) -> bool:
    """Whether a box ends more than a pixel, as rounding makes it, outside its image of this (width, height)."""
    return any(start + length > end + 1 for start, length, end in zip(box[:2], box[2:], size, strict=True))


def check_boxes(annotations: dict, file: str) -> None:
    """mmdet, which leaves objects out without a word, keeps those of a file, which has boxes of four numbers.

    Raises:
        ConfigError: It would leave out all of them, or one has no finite box and area.
    """
    sizes = {image['id']: (image['width'], image['height']) for image in annotations['images']}
    objects = [(one, sizes[one['image_id']]) for one in annotations.get('annotations', ())
               if one['image_id'] in sizes and 'segments_info' not in one and not one.get('ignore')]
    for one, size in objects:
        if not all(map(math.isfinite, (*one['bbox'], one['area'] or 0))):
            raise ConfigError(f'{file} has an annotation ({describe_box(one, size)}) whose bbox or area is no finite '
                              'number: mend the file')
    lost = [(one, size) for one, size in objects if is_left_out(one['bbox'], one['area'], size)]
    if lost:
        sentence = (f'{len(lost)} of {len(objects)} annotations in {file} lie outside their image, are less than a '
                    f'pixel wide or high, or have no area, such as that with {describe_box(*lost[0])}: mmdet ')
        if len(lost) == len(objects):
            raise ConfigError(f'{sentence}would leave them out; write bbox as x, y, width and height in pixels')
        print_log(f'{sentence}leaves them out', logger='current', level=logging.WARNING)
    beyond = [(one, size) for one, size in objects if reaches_beyond(one['bbox'], size)]
    if 2 * len(beyond) > len(objects):
        print_log(f'{len(beyond)} of {len(objects)} boxes in {file} reach beyond their image, such as that with '
                  f'{describe_box(*beyond[0])}: bbox is x, y, width and height in pixels, not a second corner',
                  logger='current', level=logging.WARNING)


def fault_of_polygons(mask: list) -> str:
    """What is wrong with a list of polygons; '' for nothing, and for those that mmdet leaves out."""
    for polygon in mask:
        if not hasattr(polygon, '__len__'):
            return f'a segmentation of {short(mask)}, and not a list of polygons, [[x, y, x, y, x, y, ...], ...]'
        if len(polygon) % 2 or len(polygon) < 6:
            continue
        for value in polygon:
            if not isinstance(value, (int, float)):
                return f'a polygon with {short(value)} in it, which is no number'
    return ''


def fault_of_runs(mask: dict, size: tuple[int, int]) -> str:
    """What is wrong with a run-length code of an image of this (height, width); '' for nothing, and where it is none.

    Of a compressed one only the size is looked at.
    """
    said, counts = mask.get('size'), mask.get('counts')
    if said is None or not isinstance(counts, (list, str)):
        return ''
    if not isinstance(said, list) or said != list(size):
        return f'a run-length code for {short(said)} (height and width), while the image has {short(size)}'
    if isinstance(counts, list) and not all(map(is_number, counts)):
        return f'a run-length code of {short(counts)}, which are no numbers'
    if isinstance(counts, list) and sum(counts) != math.prod(size):
        return f'a run-length code of {sum(counts)} pixels in all, while its size is {short(said)}'
    return ''


def fault_of_mask(mask: object, size: tuple[int, int], poly2mask: bool) -> str:
    """What is wrong with a segmentation of an image of this (height, width); '' where mmdet's LoadAnnotations takes it.

    Without `poly2mask` that leaves out all but polygons.
    """
    if isinstance(mask, list):
        return fault_of_polygons(mask)
    if not poly2mask:
        return ''
    if isinstance(mask, dict):
        return fault_of_runs(mask, size)
    return f'a segmentation of {short(mask)}, which is neither a list of polygons nor a run-length code'


def fault_of_sample(sample: dict, transform: object) -> str:
    """What is wrong with the first bad mask of a sample of mmdet's, if this step loads masks; else ''."""
    size = sample.get('height'), sample.get('width')
    if not getattr(transform, 'with_mask', False) or None in size:
        return ''
    poly2mask = getattr(transform, 'poly2mask', True)
    return next((fault for one in sample.get('instances', ())
                 if 'mask' in one and (fault := fault_of_mask(one['mask'], size, poly2mask))), '')


def check_masks(dataset: BaseDataset) -> None:
    """All masks of a data set of mmdet's, so of the objects that it kept, that its pipeline loads.

    Raises:
        ConfigError: Names the image of the first that cannot be read.
    """
    for transform in getattr(dataset.pipeline, 'transforms', ()):
        if not getattr(transform, 'with_mask', False):
            continue
        for index in range(len(dataset)):
            sample = dataset.get_data_info(index)
            if fault := fault_of_sample(sample, transform):
                raise ConfigError(f'{sample["img_path"]} has an object with {fault}: mend {dataset.ann_file}')


@contextlib.contextmanager
def explained_objects() -> Iterator[None]:
    """One sentence where mmdet fails on the box or the area of an object.

    Raises:
        ConfigError: Names the object.
    """
    try:
        yield
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        frame = error.__traceback__
        while frame and frame.tb_frame.f_code.co_name != 'parse_data_info':
            frame = frame.tb_next
        values = frame.tb_frame.f_locals if frame else {}
        found, dataset = values.get('ann'), values.get('self')
        if not isinstance(found, dict) or 'bbox' not in found:
            raise
        size = {key: values.get('img_info', {}).get(key) for key in ('width', 'height')}
        raise ConfigError(
            f'{getattr(dataset, "ann_file", "the annotation file")}: the annotation with id {found.get("id")!r} has '
            f'bbox={short(found["bbox"])} and area={short(found.get("area"))}, on an image of {short(size)}: bbox must '
            'be four numbers (x, y, width, height), the others one each; mend the file') from error
