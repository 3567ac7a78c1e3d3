"""`--cfg-options` of the command lines."""

from mmengine.config import DictAction as MMEngineDictAction


class DictAction(MMEngineDictAction):
    """mmengine's, with a sentence about what is no KEY=VALUE."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value:
                parser.error(f'{option_string} {value}: write KEY=VALUE, such as train_dataloader.batch_size=64')
        super().__call__(parser, namespace, values, option_string)
