"""Registries of scope `mmtok`, children of mmengine's.

`type='mmtok.X'` in a config of any scope makes mmengine import this module, and `locations` then import what
defines X: neither `custom_imports` nor PYTHONPATH is needed. Only mmengine is imported here, because an
ImportError in this module would surface as "X is not in the registry".
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry
from mmengine.registry.build_functions import build_runner_from_cfg

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmtok',
                  locations=['mmtok.tokenizers', 'mmtok.backbones'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmtok',
                 locations=['mmtok.tokenprop', 'mmtok.engine.checkpoint_hook'])
RUNNERS = Registry('runner', build_func=build_runner_from_cfg, parent=MMENGINE_RUNNERS, scope='mmtok',
                   locations=['mmtok.engine.runner'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='mmtok', locations=['mmtok.engine.loops'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry('optimizer wrapper constructor', parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
                                      scope='mmtok', locations=['mmtok.engine.layer_decay'])
