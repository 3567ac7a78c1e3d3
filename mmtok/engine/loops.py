"""mmengine's loops of evaluation, which name the image that cannot be evaluated, and annotations of other images."""

from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner import TestLoop as MMEngineTestLoop
from mmengine.runner import ValLoop as MMEngineValLoop
from torch.utils.data import DataLoader, Dataset

from ..checkpoint.reading import check_readable
from ..errors import ConfigError
from ..registry import LOOPS
from .annotations import check_annotations
from .preflight import check_loaders, check_small_images, check_tta, describe_misfit, tensors_of, tested, unwrapped
from .runner import Runner


class ChecksData:
    """For both loops: a look at each batch before the model gets it, and at what a metric was given."""

    evaluator_name: str  # in the config

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        predicts_masks = any('mask' in name for name, _ in self.runner.model.named_modules())
        training = getattr(getattr(self.runner._train_loop, 'dataloader', None), 'dataset', None)
        configs = metric_configs(self.runner.cfg.get(self.evaluator_name), self.evaluator_name)
        check_metrics(self.evaluator, configs, predicts_masks, self.dataloader.dataset, training)

    def run_iter(self, idx: int, data_batch: dict) -> None:
        model = self.runner.model
        check_small_images(data_batch, model.module if is_model_wrapper(model) else model, self.runner.cfg)
        super().run_iter(idx, data_batch)


def check_metrics(evaluator: Evaluator, configs: list[tuple[str, dict]], predicts_masks: bool, data: Dataset,
                  training: Dataset | None) -> None:
    """What the metrics of these `configs` (with their paths) were given belongs to the data and to the model.

    Raises:
        ConfigError: See `check_annotations`; a metric asks for masks that nothing predicts.
    """
    for number, (metric, (path, cfg)) in enumerate(zip(evaluator.metrics, configs, strict=False)):
        if 'segm' in getattr(metric, 'metrics', ()) and not predicts_masks:
            raise ConfigError(f"{path}.metric asks for 'segm', but no part of the model predicts masks: leave it out")
        annotations = getattr(metric, '_coco_api', None)
        if annotations is not None:
            annotations.dataset.setdefault('info', {})  # newer pycocotools copy it at the end, and fail without
            for annotation in annotations.dataset.get('annotations', ()):
                annotation.setdefault('iscrowd', 0)  # as mmdet's data sets read it
            # Each metric of mmdet's MultiDatasetsEvaluator has a data set of its own
            judged = data.datasets[number] if hasattr(evaluator, 'dataset_prefixes') else data
            name = f'{path}.ann_file={cfg["ann_file"]!r}' if cfg.get('ann_file') else f'the annotation file of {path}'
            check_annotations(annotations, judged, name, training)


def metric_configs(cfg: object, path: str) -> list[tuple[str, dict]]:
    """Path and config of each metric of an evaluator, in its order."""
    if isinstance(cfg, dict) and 'metrics' in cfg:
        return metric_configs(cfg['metrics'], f'{path}.metrics')
    several = [(f'{path}.{i}', one) for i, one in enumerate(cfg)] if isinstance(cfg, (list, tuple)) else [(path, cfg)]
    return [(place, one if isinstance(one, dict) else {}) for place, one in several]


@LOOPS.register_module()
class ValLoop(ChecksData, MMEngineValLoop):
    """mmengine's ValLoop."""

    evaluator_name = 'val_evaluator'


class TestedCheckpoint(Hook):
    """A checkpoint to test holds all of the model; mmengine would leave the rest as it was initialised.

    Raises:
        ConfigError: Names what is missing or of another shape.
    """

    priority = 'VERY_HIGH'  # before the others take tensors out of it
    exact = False  # whether it may hold nothing else

    def after_load_checkpoint(self, runner: MMEngineRunner, checkpoint: dict) -> None:
        wanted, found = tested(unwrapped(runner.model).state_dict()), tested(tensors_of(checkpoint))
        if not self.exact:
            found = {name: tensor for name, tensor in found.items() if name in wanted}
        if misfit := describe_misfit(wanted, found):
            raise ConfigError(f'the checkpoint {runner._load_from!r} does not fit the model of the config: {misfit}; '
                              'name the config that it was trained with')


@LOOPS.register_module()
class TestLoop(ChecksData, MMEngineTestLoop):
    """mmengine's TestLoop, with the checks of `mmtok.Runner` for tools that do not heed `runner_type`."""

    evaluator_name = 'test_evaluator'
    checkpoint_hook: type[Hook] = TestedCheckpoint

    def __init__(self, runner: MMEngineRunner, dataloader: DataLoader | dict, *args, **kwargs) -> None:
        if not isinstance(runner, Runner):
            check_loaders(runner.cfg, 'test_dataloader')
            check_tta(runner.cfg)
            check_readable(runner._load_from)
        if isinstance(dataloader, dict):
            diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
            dataloader = Runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed)
        super().__init__(runner, dataloader, *args, **kwargs)
        runner.register_hook(self.checkpoint_hook())
