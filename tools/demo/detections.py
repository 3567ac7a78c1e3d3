"""Pictures of a trained detector: ground truth, prediction, learned semantic layout."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch, Rectangle
from mmdet.apis import inference_detector, init_detector
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from pictures import strongest_entity

TITLES = ('input and ground truth', 'prediction', 'learned semantic layout')
SCORE = 0.5  # of the predictions that are drawn


def draw_objects(axis, image: np.ndarray, objects: list[tuple[int, np.ndarray, np.ndarray, str]], palette) -> None:
    """`objects`: class, box (x1,y1,x2,y2), mask (H,W), and what stands beside the box."""
    shown = image.astype(float)
    for kind, _, mask, _ in objects:
        shown[mask] = 0.5 * shown[mask] + 0.5 * palette[kind]
    axis.imshow(shown.astype(np.uint8))
    for kind, (left, top, right, bottom), _, text in objects:
        color = palette[kind] / 255
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=color, lw=1.5))
        axis.text(left, top - 2, text, fontsize=7, color='white', bbox=dict(pad=0.5, lw=0, color=color))


def draw_detections(config: Path, checkpoint: Path, data: Path, out: Path, count: int = 5) -> Path:
    """One row per validation image; each pixel of the layout in the colour of its strongest entity."""
    model = init_detector(str(config), str(checkpoint), device='cpu')
    palette, names = np.array(model.dataset_meta['palette']), model.dataset_meta['classes']
    truth = COCO(str(data / 'annotations' / 'instances_val2017.json'))
    entities = plt.get_cmap('Set2')  # other colours than the classes have
    figure, axes = plt.subplots(count, 3, figsize=(8.5, 2.6 * count + 0.8), squeeze=False)
    for row, info in zip(axes, truth.loadImgs(truth.getImgIds()[:count]), strict=True):
        path = data / 'val2017' / info['file_name']
        image = np.asarray(Image.open(path))
        real = [(found['category_id'] - 1, np.array(found['bbox']) + np.array([0, 0, *found['bbox'][:2]]),
                 run_lengths.decode(found['segmentation']).astype(bool), '')
                for found in truth.loadAnns(truth.getAnnIds(info['id']))]
        found = inference_detector(model, str(path)).pred_instances.cpu().numpy()
        predicted = [(label, box, mask, f'{score:.2f}') for label, box, mask, score in zip(
            found.labels, found.bboxes, found.masks, found.scores, strict=True) if score >= SCORE]
        draw_objects(row[0], image, real, palette)
        draw_objects(row[1], image, predicted, palette)
        row[2].imshow(entities(strongest_entity(model, image)), interpolation='nearest')
        for axis in row:
            axis.axis('off')
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title)
    figure.legend(handles=[Patch(color=color / 255, label=name) for color, name in zip(palette, names, strict=True)],
                  loc='lower center', ncols=len(names), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    path = out / 'overview.png'
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path
