"""Whether training, validation and checkpoint are about the same classes and the same model."""

from mmengine.runner import Runner

from ..engine.loops import TestedCheckpoint
from ..engine.preflight import check_classes, compare_classes
from ..engine.settings import changed_settings, describe, parse
from ..errors import ConfigError
from .images import ImageDataset

# Settings of a model that have no effect on what it predicts
NOT_TESTED = {'init_cfg', 'token_prop', 'drop_path_rate', 'with_cp', 'frozen_stages', 'mixup', 'erase',
              'label_smoothing', 'backend', 'non_blocking'}


def check_same_classes(data, val_loop) -> None:
    """Training and validation number their classes alike, and are not the same images under two names.

    Raises:
        ConfigError: Names a class that only one of them has, or the folder that both read.
    """
    if val_loop is None:
        return
    other = val_loop.dataloader.dataset
    if (isinstance(data, ImageDataset) and isinstance(other, ImageDataset) and data.root == other.root
            and data.split != other.split and not (data.chose_split or other.chose_split)):
        raise ConfigError(f'{data.root} has no folders {data.split!r} and {other.split!r}, so that training and '
                          'validation would read the same images: data_root is the folder that holds those of the '
                          'splits; to validate on the training images, give both the same split')
    roots = [getattr(one, 'root', None) for one in (data, other)]
    where = ' (training in {}, validation in {})'.format(*roots) if all(roots) else ''
    compare_classes(getattr(data, 'metainfo', None), 'training', getattr(other, 'metainfo', None), 'validation', where)


class CheckedCheckpoint(TestedCheckpoint):
    """A checkpoint to test holds all of the model and nothing else, and was trained on the classes of the test data.

    Raises:
        ConfigError: Before anything is loaded.
    """

    exact = True

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        data = runner.test_loop.dataloader.dataset
        metainfo = getattr(data, 'metainfo', None)
        check_classes(runner.cfg, metainfo or {})
        compare_classes((checkpoint.get('meta') or {}).get('dataset_meta'), 'the checkpoint', metainfo, 'the test data')
        super().after_load_checkpoint(runner, checkpoint)
        before = parse((checkpoint.get('meta') or {}).get('cfg'))
        changes = {path: change for path, change in changed_settings(before, runner.cfg).items()
                   if path.startswith('model.') and not NOT_TESTED.intersection(path.split('.'))}
        if changes:
            runner.logger.warning('This model was trained with other settings than it is tested with: '
                                  f'{describe(changes)}.')
