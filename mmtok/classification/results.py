"""A training's results as one JSON file beside its checkpoints."""

import hashlib
import json
import platform
import statistics
import time
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..checkpoint.writing import write_whole
from ..engine.preflight import classes_of
from ..engine.resuming import validation_was_due
from ..engine.settings import training_settings
from ..errors import ConfigError
from ..machine import training_device
from ..registry import HOOKS
from .checks import check_same_classes
from .fingerprint import fingerprint

PACKAGES = ('mmtok', 'torch', 'timm', 'mmengine', 'onedl-mmengine')
RESULTS, TRAIN_LIST = 'results.json', 'train_images.txt'
STAMP = '????????_??????'  # in the names of those that were put aside


@HOOKS.register_module()
class ResultsHook(Hook):
    """Writes `results.json` after each validation, and the list of images where only a part is trained on.

    The file holds the config's name and hash, the `fingerprint` of the training images as `data`, the seed, versions,
    the machine, images per second (median over the iterations, all processes), the metrics of the last validation, and
    `curve`, those of all validations. Resuming goes on with the curve, and makes up for a validation that was cut
    short. A training in the work directory of an earlier one keeps both files of that one, under the time of its last
    validation; `training`, the name of the folder of its first log, tells which results belong to which checkpoints.
    """

    priority = 'LOWEST'  # after the metrics are logged, and after CheckpointHook, which saves the best of a validation

    def __init__(self):
        self.curve, self.seconds, self.started, self.data = [], [], None, None
        self.data_before = None  # of the training that is resumed
        self.training = None  # since when it goes on
        self.owns_folder = False  # whether what lies in the work directory is this training's

    def before_run(self, runner: Runner) -> None:
        if not isinstance(runner._train_loop, (dict, type(None))):  # a training
            if not isinstance(runner.train_loop, EpochBasedTrainLoop):
                raise ConfigError('mmtok.ResultsHook counts epochs, but train_cfg counts iterations: set '
                                  "train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=...), or "
                                  'default_hooks.results=None')
            check_same_classes(runner.train_loop.dataloader.dataset, runner.val_loop)
            runner.logger.info(f'Training images: {describe_data(runner.train_loop)}.')
            if runner.val_loop is not None:
                runner.logger.info(f'Validation images: {describe_data(runner.val_loop)}.')
        self.training = runner.timestamp

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes up the results; looks at the length of the epochs, before CheckpointHook gives up the oldest file."""
        if not runner._resume:
            return
        meta, folder = checkpoint.get('meta') or {}, Path(runner.work_dir)
        for path in (folder / RESULTS, *folder.glob(f'{Path(RESULTS).stem}_{STAMP}*.json')):
            found = json.loads(path.read_text()) if path.is_file() else {}
            if found.get('curve') and found.get('training') == meta.get('training'):
                self.curve, self.data_before = found['curve'], found.get('data')
                break
        self.training = meta.get('training') or self.training
        epochs, iterations = meta.get('epoch', 0), meta.get('iter', 0)
        if not epochs:
            return
        length = len(runner.train_loop.dataloader)
        if iterations != epochs * length:
            raise ConfigError(f'the {epochs} epochs of the checkpoint had {iterations} iterations, and now each has '
                              f'{length}: go on with the same images, batch size and number of processes')

    def before_train(self, runner: Runner) -> None:
        if runner._resume:
            self.own_folder(runner)
            if is_main_process() and self.data_before:
                self.data = fingerprint(runner.train_loop.dataloader.dataset)
                if self.data != self.data_before:
                    runner.logger.warning('Resumed with other training images than before: their names or labels '
                                          f'differ from those of {RESULTS}.')
        self.curve = [line for line in self.curve if line['epoch'] <= runner.epoch]
        check_schedule(runner)
        if runner._resume and runner.val_loop is not None and self.lacks_validation(runner):
            runner.logger.info(f'{RESULTS} lacks the validation of epoch {runner.epoch}: its images are tested now.')
            runner.val_loop.run()

    def lacks_validation(self, runner: Runner) -> bool:
        """Whether the epoch that is resumed should have been validated and was not; as the main process knows."""
        answer = [validation_was_due(runner, by_epoch=True)
                  and runner.epoch not in [line['epoch'] for line in self.curve]]
        broadcast_object_list(answer)
        return answer[0]

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['meta']['training'] = self.training
        self.own_folder(runner)

    def own_folder(self, runner: Runner) -> None:
        """Put aside what an earlier training left, and list the images; the first time, on the main process."""
        if self.owns_folder or not is_main_process():
            return
        folder = Path(runner.work_dir)
        old = [path for path in (folder / RESULTS, folder / TRAIN_LIST) if path.is_file()]
        if old and not (runner._resume and self.goes_on(folder / RESULTS)):
            stamp = f'{datetime.fromtimestamp(old[0].stat().st_mtime):%Y%m%d_%H%M%S}'
            while any(folder.glob(f'*_{stamp}.*')):
                stamp += '_'
            for path in old:
                kept = path.rename(path.with_stem(f'{path.stem}_{stamp}'))
                runner.logger.warning(f'{path} is of another training: it is {kept.name} from now on.')
        data = runner.train_loop.dataloader.dataset
        if getattr(data, 'indices', None) is not None:
            names = '\n'.join(data.filename(i) for i in range(len(data)))
            write_whole(str(folder / TRAIN_LIST), f'{names}\n'.encode())
        self.owns_folder = True  # unless the disk was full

    def goes_on(self, path: Path) -> bool:
        """Whether these results are of the training that is resumed; those of earlier versions do not say."""
        return not path.is_file() or json.loads(path.read_text()).get('training') in (self.training, None)

    def before_train_epoch(self, runner: Runner) -> None:
        self.started = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        now = time.perf_counter()
        if self.started is not None:  # the first iteration of an epoch waits for data workers
            self.seconds.append((now - self.started) / len(data_batch[1]))
        self.started = now

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if not is_main_process() or runner._train_loop is None or isinstance(runner._train_loop, dict):
            return
        self.own_folder(runner)
        self.curve = [line for line in self.curve if line['epoch'] < runner.epoch]  # one may be repeated
        self.curve.append(dict(epoch=runner.epoch, **{name: round(value, 4) for name, value in metrics.items()}))
        text = json.dumps(self.collect(runner), indent=2)
        write_whole(str(Path(runner.work_dir) / RESULTS), f'{text}\n'.encode())

    def after_train(self, runner: Runner) -> None:
        if self.owns_folder and (path := Path(runner.work_dir) / RESULTS).is_file():
            runner.logger.info(f'Results: {path}')

    def collect(self, runner: Runner) -> dict:
        """What the file holds."""
        speed = get_world_size() / statistics.median(self.seconds) if self.seconds else None
        self.data = self.data or fingerprint(runner.train_loop.dataloader.dataset)
        return dict(
            config=runner.experiment_name.rsplit('_', 2)[0], config_hash=config_hash(runner.cfg), data=self.data,
            training=self.training, seed=runner.seed, epochs=runner.max_epochs, versions=versions(),
            device=training_device(), processes=get_world_size(),
            parameters=sum(p.numel() for name, p in runner.model.named_parameters() if 'token_prop' not in name),
            images_per_second=speed and round(speed, 1), metrics=self.curve[-1], curve=self.curve)


def describe_data(loop) -> str:
    """How many images of how many classes a loop has, from where, in how many batches of this process."""
    data, loader = loop.dataloader.dataset, loop.dataloader
    known = classes_of(getattr(data, 'metainfo', None))
    classes = f' of {len(known)} classes' if known else ''
    root = f' in {data.root}' if hasattr(data, 'root') else ''
    size = f' of {loader.batch_size}' if loader.batch_size else ''  # a batch sampler has its own
    return f'{len(data)}{classes}{root}, {len(loader)} batches{size} for each process'


def check_schedule(runner: Runner) -> None:
    """Says what would not be the training that the config describes."""
    if runner.epoch >= runner.max_epochs:
        runner.logger.info(f'Epoch {runner.epoch} of {runner.max_epochs} is done: nothing is left to train.')
    schedule = runner.cfg.get('param_scheduler')
    if not isinstance(schedule, dict) or schedule.get('type') != 'mmtok.CosineLR' or not schedule.get('by_epoch', True):
        return
    if schedule.get('warmup', 0) >= runner.max_epochs:
        runner.logger.warning('The learning rate warms up to the end of the training (param_scheduler.warmup='
                              f'{schedule["warmup"]}, train_cfg.max_epochs={runner.max_epochs}) and never reaches its '
                              'height: train longer, or set warmup to less.')
    if schedule.get('epochs', 0) > runner.max_epochs:
        runner.logger.warning(f'The schedule of the learning rate has {schedule["epochs"]} epochs, and the training '
                              f'{runner.max_epochs}: --epochs {runner.max_epochs} fits it.')


def config_hash(cfg: Config) -> str:
    """Of all that a config says but the seed, where it reads and writes, and how many data workers it has."""
    counts = training_settings(cfg)
    return hashlib.sha256(json.dumps(counts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    found = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
