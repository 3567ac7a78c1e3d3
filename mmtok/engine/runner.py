"""mmengine's Runner that looks at the whole configuration first, runs on several CPU processes, and resumes safely.

`runner_type = 'mmtok.Runner'` makes the upstream `tools/train.py` use it.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from mmengine.runner import Runner as MMEngineRunner
from torch.utils.data import DataLoader

from ..checkpoint.reading import check_readable
from ..errors import ConfigError, StorageError
from ..registry import RUNNERS
from ..tokenprop.hook import TokenPropHook, find_token_props
from ..tokenprop.token_prop import NOT_COLLECTED
from .annotations import check_annotation_files
from .building import ExplainedRunner, explained_arguments
from .cpu_processes import join_cpu_processes
from .preflight import (
    check_amp,
    check_classes,
    check_clipping,
    check_loaders,
    check_mixed_batches,
    check_model,
    check_tta,
    compare_classes,
)
from .resuming import check_resumed, explained_optimizer, find_resumed, read_resumed
from .samples import check_samples, explained_anchors, explained_data
from .starting import StartingCheckpoint


@contextlib.contextmanager
def explained_full_disk(work_dir: str) -> Iterator[None]:
    """One sentence where mmengine cannot write its logs; CheckpointHook sees to the checkpoints.

    Raises:
        StorageError: The disk, or the quota, is full.
    """
    shown, logging.raiseExceptions = logging.raiseExceptions, False  # a traceback for each line that is not logged
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(f'{error.filename or f"a file in {work_dir}"} cannot be written ({error.strerror}): free '
                           'some space, then go on from the last checkpoint with --resume') from error
    finally:
        logging.raiseExceptions = shown


@RUNNERS.register_module()
class Runner(ExplainedRunner):
    """mmengine's Runner with checks of data roots, sizes, channels, classes, padding and TokenProp.

    Raises:
        ConfigError: Before the first iteration.
        StorageError: The disk is full, or the checkpoint to resume from is not there.
    """

    resumed: dict = {}  # what the checkpoint to resume from says of itself

    def __init__(self, model, work_dir: str, *args, **kwargs) -> None:
        try:
            os.makedirs(work_dir, exist_ok=True)
        except OSError as error:
            raise StorageError(f'the work directory {work_dir!r} cannot be made ({error.strerror}): name another with '
                               '--work-dir') from error
        with explained_full_disk(work_dir):
            super().__init__(model, work_dir, *args, **kwargs)

    def setup_env(self, env_cfg: dict) -> None:
        """mmengine's; without a GPU the process group is made first, because mmengine's launcher asks for a GPU.

        Raises:
            ConfigError: More processes than GPUs.
        """
        if self._launcher == 'pytorch' and not is_distributed():
            gpus, wanted = torch.cuda.device_count(), int(os.environ.get('LOCAL_WORLD_SIZE', 1))
            if get_device() == 'cpu':
                join_cpu_processes((env_cfg.get('dist_cfg') or {}).get('timeout'))
            elif 0 < gpus < wanted:
                raise ConfigError(f'{wanted} processes were started on a machine with {gpus} GPUs: start {gpus}')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """mmengine's; on CPU processes without a device id, and with BN where SyncBN would refuse CPU tensors."""
        if self.distributed and get_device() == 'cpu' and not is_model_wrapper(model):
            self.logger.warning('No GPU: gradients are averaged over CPU processes (gloo).')
            if any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()):
                self.logger.warning("SyncBN, which needs GPUs, becomes BN with each process's own statistics.")
                model = revert_sync_batchnorm(model)
            unused = self.cfg.get('find_unused_parameters', False)
            default = dict(broadcast_buffers=False, find_unused_parameters=unused)
            model_wrapper_cfg = {**default, **(model_wrapper_cfg or {}), 'device_ids': None}
        return super().wrap_model(model_wrapper_cfg, model)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False,
                         skip_undecodable: bool = False) -> DataLoader:
        """mmengine's, of data sets that are not empty and name their bad files or skip them with a warning."""
        if not isinstance(dataloader, dict):
            return dataloader
        if not dataloader.get('num_workers'):  # torch refuses options of workers where there are none
            dataloader = dataloader.copy()
            for key in ('persistent_workers', 'prefetch_factor'):
                dataloader.pop(key, None)
        with explained_data(dataloader.get('dataset')):
            loader = MMEngineRunner.build_dataloader(dataloader, seed, diff_rank_seed)
            if hasattr(loader.dataset, 'follow'):  # a stream, which counts its own steps
                loader.dataset.follow(loader.batch_size, loader.num_workers, seed or 0)
            check_samples(loader.dataset, skip_undecodable)
            check_annotation_files(loader.dataset)
        return loader

    def build_train_loop(self, loop):
        """mmengine's, with data that skip what cannot be decoded, and a check that the heads know their classes."""
        cfg = self._train_dataloader
        with explained_arguments('train_dataloader', cfg):
            self._train_dataloader = self.build_dataloader(
                cfg, self.seed, self._randomness_cfg.get('diff_rank_seed', False), skip_undecodable=True)
        loop = super().build_train_loop(loop)
        self._train_dataloader = cfg  # whose batch_size scale_lr reads; a loader with a batch sampler says None
        if isinstance(loop, EpochBasedTrainLoop) and not len(loop.dataloader):
            raise ConfigError(f'{len(loop.dataloader.dataset)} training images are not one batch for each of '
                              f'{self.world_size} processes: set train_dataloader.batch_size to less, or '
                              'train_dataloader.drop_last=False')
        if isinstance(loop, EpochBasedTrainLoop):
            check_mixed_batches(loop.dataloader, getattr(self.bare_model, 'data_preprocessor', None))
        metainfo = getattr(loop.dataloader.dataset, 'metainfo', {})
        check_classes(self.cfg, metainfo)
        compare_classes(self.resumed.get('dataset_meta'), 'the checkpoint to resume from', metainfo, 'training')
        return loop

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """mmengine's, and times `accumulative_counts`, whose batches are one step together.

        A resumed optimizer brings its own rate, scaled or not.
        """
        if self.resumed.get('has_optimizer'):
            return
        super().scale_lr(optim_wrapper, auto_scale_lr)
        counts = getattr(optim_wrapper, '_accumulative_counts', 1)
        wanted = (auto_scale_lr or {}).get('base_batch_size')
        loader = self._train_dataloader
        step = counts * self.world_size * ((loader.get('batch_size') if isinstance(loader, dict) else None) or 0)
        if wanted and step not in (0, wanted) and not auto_scale_lr.get('enable'):
            self.logger.warning(f'The learning rate of the recipe is for steps of {wanted} images, and a step has '
                                f'{step} here: --auto-scale-lr scales it, unless you have done so.')
        if auto_scale_lr and auto_scale_lr.get('enable') and counts > 1:
            self.logger.info(f'A step takes {counts} batches (accumulative_counts): the LR is scaled by {counts} too.')
            for group in optim_wrapper.optimizer.param_groups:
                group['lr'] *= counts

    def build_visualizer(self, visualizer=None):
        """mmengine's, with a sentence where a backend needs a package that is not there."""
        built = super().build_visualizer(visualizer)
        try:
            for backend in built._vis_backends.values() if is_main_process() else ():
                backend.experiment  # noqa: B018  made at the first use, which mmengine's next step is
        except ImportError as error:
            text = ' '.join(str(error).split())
            raise ConfigError(f'a backend of visualizer.vis_backends cannot be used ({text}): install what it needs, '
                              'or leave it out') from error
        return built

    def dump_config(self) -> None:
        """mmengine's, but a run that may still fail to begin leaves the config of an earlier one there as it is."""
        if not os.path.isfile(os.path.join(self.work_dir, os.path.basename(self.cfg.filename or ''))):
            super().dump_config()

    def load_or_resume(self) -> None:
        """mmengine's; a training that gets beyond it says what it writes over, and writes its config."""
        super().load_or_resume()
        if not isinstance(self._train_loop, (dict, type(None))):
            if not self._resume and os.path.isfile(os.path.join(self.work_dir, 'last_checkpoint')):
                self.logger.warning(f'{self.work_dir} holds checkpoints of an earlier training, and this one writes '
                                    'its own over them: --resume goes on with it instead, --work-dir names another '
                                    'folder.')
            if self._resume:
                self.say_if_finished()
            super().dump_config()

    def say_if_finished(self) -> None:
        """A resumed training of which nothing is left would end without a word."""
        by_epoch = isinstance(self._train_loop, EpochBasedTrainLoop)
        done, last = (self.epoch, self.max_epochs) if by_epoch else (self.iter, self.max_iters)
        if done >= last:
            unit = 'epochs' if by_epoch else 'iters'
            self.logger.warning(f'The checkpoint has {done} of {last} {unit}, so that nothing is left to train: to '
                                f'train on, raise train_cfg.max_{unit}.')

    @property
    def bare_model(self) -> torch.nn.Module:
        """Without what wraps it for several processes."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def train(self):
        """mmengine's, after the checks."""
        check_amp(self.cfg)
        check_clipping(self.cfg)
        check_loaders(self.cfg, 'train_dataloader', 'val_dataloader')
        check_model(self.bare_model, self.cfg)
        if find_token_props(self.bare_model) and not any(isinstance(hook, TokenPropHook) for hook in self.hooks):
            raise ConfigError(NOT_COLLECTED)
        if self._resume:
            self.prepare_resume()
        elif self._load_from:
            check_readable(self._load_from)
            self.register_hook(StartingCheckpoint())
        with explained_full_disk(self.work_dir), explained_anchors():
            return super().train()

    def prepare_resume(self) -> None:
        """Looks at the checkpoint, and takes its seed for the data loaders, which mmengine builds before it loads one.

        Raises:
            StorageError: The checkpoint to resume from is not there, or damaged.
            ConfigError: It is of another model or optimizer.
        """
        path = find_resumed(self._load_from, self.work_dir)
        if path is None:
            self.logger.warning(f'There is nothing to resume in {self.work_dir}: training starts from the beginning.')
            self._resume = False
        elif '://' not in path:
            self._load_from = path
            checkpoint = read_resumed(path)
            check_resumed(checkpoint, path, self.bare_model, self.cfg, self.logger)
            self.resumed = {**checkpoint['meta'], 'has_optimizer': 'optimizer' in checkpoint}
            seed, asked = self.resumed.get('seed'), self._randomness_cfg.get('seed')
            if seed is not None and seed != asked:
                if asked is not None:
                    self.logger.warning(f'This training goes on with the seed of its checkpoint, {seed}: '
                                        f'randomness.seed={asked} has no effect.')
                self._randomness_cfg.update(seed=seed)
                self.set_randomness(**self._randomness_cfg)

    def resume(self, filename: str, *args, **kwargs) -> None:
        """mmengine's, with a sentence about an optimizer that does not fit."""
        with explained_optimizer(filename):
            super().resume(filename, *args, **kwargs)

    def val(self):
        """mmengine's, after a look at the data root and the checkpoint."""
        check_loaders(self.cfg, 'val_dataloader')
        check_readable(self._load_from)
        return super().val()

    def test(self):
        """mmengine's, after a look at the data root and the checkpoint."""
        check_loaders(self.cfg, 'test_dataloader')
        check_tta(self.cfg)
        check_readable(self._load_from)
        return super().test()
