"""mmengine's loops of evaluation, which name the image that cannot be evaluated, and annotations of other images."""

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner import TestLoop as MMEngineTestLoop
from mmengine.runner import ValLoop as MMEngineValLoop
from torch.utils.data import DataLoader

from ..checkpoint.reading import check_readable
from ..registry import LOOPS
from .preflight import check_data, check_small_images, check_tta
from .runner import Runner
from .samples import check_annotations


class ChecksData:
    """For both loops: a look at each batch before the model gets it, and at what a metric was given."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for metric in self.evaluator.metrics:
            annotations = getattr(metric, '_coco_api', None)
            if annotations is not None:
                annotations.dataset.setdefault('info', {})  # newer pycocotools copy it at the end, and fail without
                for annotation in annotations.anns.values():
                    annotation.setdefault('iscrowd', 0)  # as mmdet's data sets read it
                check_annotations(annotations, self.dataloader.dataset)

    def run_iter(self, idx: int, data_batch: dict) -> None:
        model = self.runner.model
        check_small_images(data_batch, model.module if is_model_wrapper(model) else model, self.runner.cfg)
        super().run_iter(idx, data_batch)


@LOOPS.register_module()
class ValLoop(ChecksData, MMEngineValLoop):
    """mmengine's ValLoop."""


@LOOPS.register_module()
class TestLoop(ChecksData, MMEngineTestLoop):
    """mmengine's TestLoop, with the checks of `mmtok.Runner` for tools that do not heed `runner_type`."""

    def __init__(self, runner: MMEngineRunner, dataloader: DataLoader | dict, *args, **kwargs) -> None:
        check_data(runner.cfg, 'test_dataloader')
        check_tta(runner.cfg)
        check_readable(runner._load_from)
        if isinstance(dataloader, dict):
            diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
            dataloader = Runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed)
        super().__init__(runner, dataloader, *args, **kwargs)
