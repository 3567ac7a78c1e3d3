"""mmengine's ways to build what a config names, with one sentence about an option that there is not."""

import contextlib
import difflib
import re
from collections.abc import Iterator

from mmengine.registry import Registry
from mmengine.runner import Runner as MMEngineRunner

from .. import registry
from ..errors import ConfigError
from .samples import explained_data
from .settings import settings

# Those that mmengine registers by itself, and leaves out where the config says None
HOOKS_OF_MMENGINE = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


@contextlib.contextmanager
def explained_arguments(where: str, cfg) -> Iterator[None]:
    """One sentence where a part of the config names a class that there is not, or gives one an argument too many.

    Raises:
        ConfigError: Names the setting and the class.
    """
    try:
        yield
    except KeyError as error:
        found = re.search(r"([\w.]+) is not in the \w+::([\w ]+) registry", str(error))
        paths = [path for path, value in settings(cfg, where) if found and value == found[1]]
        if not paths:
            raise
        near = difflib.get_close_matches(found[1].split('.')[-1], names_of_ours(found[2]), 1, cutoff=0.75)
        raise ConfigError(f'{found[1]!r} ({paths[0]}) is the name of no class that is registered'
                          + (f'; is \'mmtok.{near[0]}\' meant? Else' if near else ':')
                          + ' correct it, or have custom_imports import what registers it') from error
    except TypeError as error:
        found = re.search(r"([\w.]+?)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
        paths = [path for path, _ in settings(cfg, where) if found and found[2] in path.split('.')]
        if not paths:  # no setting of the user's
            raise
        name = found[1].split('.')[-1]
        raise ConfigError(f'{name} has no option {found[2]!r} ({paths[0]}): correct its name, or remove it; where a '
                          'config changes the type of what it inherits, _delete_=True in the dict drops the options of '
                          'the other type') from error


def names_of_ours(kind: str) -> list[str]:
    """Of all that mmtok registers in the registry of this name, without the scope."""
    names = []
    for found in vars(registry).values():
        if isinstance(found, Registry) and (found.scope, found.name) == ('mmtok', kind):
            found.import_from_location()
            names += found.module_dict
    return names


class ExplainedRunner(MMEngineRunner):
    """mmengine's Runner, which says in a sentence what it cannot build."""

    def set_randomness(self, *args, **options) -> None:
        with explained_arguments('randomness', options):
            super().set_randomness(*args, **options)

    def build_model(self, model):
        with explained_arguments('model', model):
            return super().build_model(model)

    def build_optim_wrapper(self, optim_wrapper):
        with explained_arguments('optim_wrapper', optim_wrapper):
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler):
        with explained_arguments('param_scheduler', scheduler):
            return super().build_param_scheduler(scheduler)

    def build_evaluator(self, evaluator):
        with explained_data(evaluator, 'the evaluator'):
            try:
                return super().build_evaluator(evaluator)
            except FileNotFoundError as error:
                paths = [path for name in ('val_evaluator', 'test_evaluator')
                         for path, value in settings(self.cfg.get(name), name) if value == error.filename]
                if not paths:  # no setting of the user's
                    raise
                raise ConfigError(f'{error.filename!r} ({", ".join(paths)}) is not there: name the file that '
                                  "belongs to the data of the loader (mmtok's configs: COCO_ROOT sets both)") from error
            except KeyError as error:
                # A key that is missing somewhere, not a sentence; or one that is explained around here
                if ' ' not in str(error.args[0]) or ' is not in the ' in error.args[0]:
                    raise
                raise ConfigError(f'the evaluator cannot be built: {error.args[0]}') from error

    def build_train_loop(self, loop):
        with explained_arguments('train_cfg', loop):
            return super().build_train_loop(loop)

    def build_val_loop(self, loop):
        with (explained_arguments('val_cfg', loop), explained_arguments('val_dataloader', self._val_dataloader),
              explained_arguments('val_evaluator', self._val_evaluator)):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop):
        with (explained_arguments('test_cfg', loop), explained_arguments('test_dataloader', self._test_dataloader),
              explained_arguments('test_evaluator', self._test_evaluator)):
            return super().build_test_loop(loop)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """mmengine's, where None leaves out any hook that the config inherits."""
        if hooks is not None:
            hooks = {name: hook for name, hook in hooks.items() if hook is not None or name in HOOKS_OF_MMENGINE}
        super().register_default_hooks(hooks)

    def register_hook(self, hook, priority=None) -> None:
        with explained_arguments('hook', hook):
            super().register_hook(hook, priority)
