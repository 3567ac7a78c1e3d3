"""mmengine's Runner that looks at the whole configuration before the first iteration.

`runner_type = 'mmtok.Runner'` makes the upstream `tools/train.py` use it.
"""

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner

from .errors import ConfigError
from .preflight import check_data, check_model
from .registry import RUNNERS
from .tokenprop.hook import TokenPropHook, find_token_props
from .tokenprop.token_prop import NOT_COLLECTED


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's Runner with checks of data roots, sizes, channels, padding and TokenProp.

    Raises:
        ConfigError: Before any data is read.
    """

    def train(self):
        """mmengine's, after the checks."""
        check_data(self.cfg, 'train_dataloader', 'val_dataloader')
        model = self.model.module if is_model_wrapper(self.model) else self.model
        check_model(model, self.cfg)
        if find_token_props(model) and not any(isinstance(hook, TokenPropHook) for hook in self.hooks):
            raise ConfigError(NOT_COLLECTED)
        return super().train()

    def val(self):
        """mmengine's, after a check of the data root."""
        check_data(self.cfg, 'val_dataloader')
        return super().val()

    def test(self):
        """mmengine's, after a check of the data root."""
        check_data(self.cfg, 'test_dataloader')
        return super().test()
