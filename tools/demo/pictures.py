"""Pictures of a trained segmentor: input, ground truth, prediction, learned semantic layout."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch
from mmseg.apis import inference_model, init_model
from PIL import Image

TITLES = ('input', 'ground truth', 'prediction', 'learned semantic layout')


def draw_overview(config: Path, checkpoint: Path, data: Path, out: Path, count: int = 4) -> Path:
    """One row per validation image; each pixel of the layout in the colour of its strongest entity."""
    model = init_model(str(config), str(checkpoint), device='cpu')
    palette = np.array(model.dataset_meta['palette'], np.uint8)
    entities = plt.get_cmap('Set2')  # other colours than the classes have
    figure, axes = plt.subplots(count, 4, figsize=(10, 2.5 * count + 0.8), squeeze=False)
    for row, path in zip(axes, sorted((data / 'images' / 'validation').glob('*.jpg')), strict=False):
        image = Image.open(path)
        truth = np.asarray(Image.open(data / 'annotations' / 'validation' / f'{path.stem}.png')) - 1
        prediction = inference_model(model, str(path)).pred_sem_seg.data[0].cpu().numpy()
        layout = strongest_entity(model, np.asarray(image))
        for axis, picture in zip(row, (image, palette[truth], palette[prediction], entities(layout)), strict=True):
            axis.imshow(picture, interpolation='nearest')
            axis.axis('off')
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title)
    names = model.dataset_meta['classes']
    figure.legend(handles=[Patch(color=palette[i] / 255, label=name) for i, name in enumerate(names)],
                  loc='lower center', ncols=len(names), frameon=False, fontsize=9)
    figure.text(0.5, 0.035, 'legend: classes. Layout: each position in the colour of its strongest entity, which is no '
                'class.', ha='center', fontsize=9)
    figure.tight_layout(rect=(0, 0.055, 1, 1))
    path = out / 'overview.png'
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


@torch.no_grad()
def strongest_entity(model, image: np.ndarray) -> np.ndarray:
    """Index (h,w) of the entity that owns most of each position of the tokenizer's layout; image RGB uint8."""
    batch = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)  # mmseg loads BGR
    inputs = model.data_preprocessor(dict(inputs=[batch], data_samples=None), training=False)['inputs']
    layout = model.backbone.tokenizer.layout(inputs).argmax(1)[0].numpy()
    rows, columns = (-(-side * cells // padded) for side, cells, padded in zip(
        image.shape[:2], layout.shape, inputs.shape[-2:], strict=True))
    return layout[:rows, :columns]  # a detector's preprocessor pads to multiples of 32
