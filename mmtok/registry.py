"""Registries of scope `mmtok`, children of mmengine's.

`type='mmtok.X'` in a config of any scope makes mmengine import this module, and `locations` then import what
defines X: neither `custom_imports` nor PYTHONPATH is needed. Only mmengine is imported here, because an
ImportError in this module would surface as "X is not in the registry".
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry
from mmengine.registry.build_functions import build_runner_from_cfg, build_scheduler_from_cfg

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmtok',
                  locations=['mmtok.tokenizers', 'mmtok.backbones', 'mmtok.classification'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmtok',
                 locations=['mmtok.tokenprop', 'mmtok.engine.checkpoint_hook', 'mmtok.classification.streams',
                            'mmtok.classification.evaluation', 'mmtok.classification.results'])
RUNNERS = Registry('runner', build_func=build_runner_from_cfg, parent=MMENGINE_RUNNERS, scope='mmtok',
                   locations=['mmtok.engine.runner'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='mmtok',
                 locations=['mmtok.engine.loops', 'mmtok.classification.evaluation'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor', parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS, scope='mmtok',
    locations=['mmtok.engine.param_groups', 'mmtok.engine.layer_decay'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmtok',
                    locations=['mmtok.classification.images', 'mmtok.classification.streams'])
DATA_SAMPLERS = Registry('data sampler', parent=MMENGINE_DATA_SAMPLERS, scope='mmtok',
                         locations=['mmtok.classification.sampler'])
FUNCTIONS = Registry('function', parent=MMENGINE_FUNCTIONS, scope='mmtok',
                     locations=['mmtok.classification.preprocessor'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmtok', locations=['mmtok.classification.metrics'])
PARAM_SCHEDULERS = Registry('parameter scheduler', build_func=build_scheduler_from_cfg,
                            parent=MMENGINE_PARAM_SCHEDULERS, scope='mmtok',
                            locations=['mmtok.classification.schedule'])
