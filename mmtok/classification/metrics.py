"""Top-k accuracy."""

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric

from ..errors import DataError, check_positive_int
from ..registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of images, in percent, whose class is among the k best scores.

    Ties count for the class that comes first; a score that is no number (NaN) counts as higher than all others.

    Args:
        topk: One or several k.
        collect_device, prefix: mmengine's.

    Raises:
        DataError: When not all images of the data set were evaluated, or none.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: int | Sequence[int] = (1, 5), collect_device: str = 'cpu', prefix: str | None = None):
        super().__init__(collect_device, prefix)
        self.topk = [topk] if isinstance(topk, int) else list(topk)
        for k in self.topk:
            check_positive_int('topk', k)
        self.size = 0

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keeps the rank of the right class of each image."""
        for sample in data_samples:
            scores, label = sample['scores'], sample['label']
            ahead = (~(scores <= scores[label])).sum() + (scores[:label] == scores[label]).sum()
            self.results.append(int(ahead))

    def evaluate(self, size: int) -> dict[str, float]:
        self.size = size
        return super().evaluate(size)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        if not results or len(results) < self.size:
            raise DataError(f'{len(results)} of {self.size} images were evaluated: use a sampler that leaves none out, '
                            'and drop_last=False, in this dataloader')
        return {f'top{k}': 100 * sum(rank < k for rank in results) / len(results) for k in self.topk}
