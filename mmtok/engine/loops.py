"""mmengine's loops of evaluation, which name the image that cannot be evaluated, and annotations of other images."""

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner import TestLoop as MMEngineTestLoop
from mmengine.runner import ValLoop as MMEngineValLoop
from torch.utils.data import DataLoader

from ..checkpoint.reading import check_readable
from ..errors import ConfigError
from ..registry import LOOPS
from .preflight import check_data, check_small_images, check_tta, describe_misfit, tensors_of, tested
from .runner import Runner
from .samples import check_annotations
from .settings import settings


class ChecksData:
    """For both loops: a look at each batch before the model gets it, and at what a metric was given."""

    evaluator_name: str  # in the config

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        predicts_masks = any('mask' in name for name, _ in self.runner.model.named_modules())
        for metric in self.evaluator.metrics:
            if 'segm' in getattr(metric, 'metrics', ()) and not predicts_masks:
                raise ConfigError(f"{self.evaluator_name}.metric asks for 'segm', but no part of the model predicts "
                                  'masks: leave it out')
            annotations = getattr(metric, '_coco_api', None)
            if annotations is not None:
                annotations.dataset.setdefault('info', {})  # newer pycocotools copy it at the end, and fail without
                for annotation in annotations.anns.values():
                    annotation.setdefault('iscrowd', 0)  # as mmdet's data sets read it
                named = [f'{path}={value!r}' for path, value in settings(
                    self.runner.cfg.get(self.evaluator_name), self.evaluator_name) if path.endswith('ann_file')]
                check_annotations(annotations, self.dataloader.dataset, ', '.join(named))

    def run_iter(self, idx: int, data_batch: dict) -> None:
        model = self.runner.model
        check_small_images(data_batch, model.module if is_model_wrapper(model) else model, self.runner.cfg)
        super().run_iter(idx, data_batch)


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

    def after_load_checkpoint(self, runner: MMEngineRunner, checkpoint: dict) -> None:
        model = runner.model
        if is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        wanted = tested(model.state_dict())
        found = {name: tensor for name, tensor in tensors_of(checkpoint).items() if name in wanted}
        if misfit := describe_misfit(wanted, found):
            raise ConfigError(f'the checkpoint {runner._load_from!r} does not fit the model of the config: {misfit}; '
                              'name the config that it was trained with')


@LOOPS.register_module()
class TestLoop(ChecksData, MMEngineTestLoop):
    """mmengine's TestLoop, with the checks of `mmtok.Runner` for tools that do not heed `runner_type`."""

    evaluator_name = 'test_evaluator'

    def __init__(self, runner: MMEngineRunner, dataloader: DataLoader | dict, *args, **kwargs) -> None:
        check_data(runner.cfg, 'test_dataloader')
        check_tta(runner.cfg)
        check_readable(runner._load_from)
        if isinstance(dataloader, dict):
            diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
            dataloader = Runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed)
        super().__init__(runner, dataloader, *args, **kwargs)
        runner.register_hook(TestedCheckpoint())
