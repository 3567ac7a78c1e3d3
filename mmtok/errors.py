"""Errors that a user can mend, each one sentence, and checks that raise them."""

import inspect
import logging
import math
import sys
from collections.abc import Callable


class UserError(Exception):
    """One sentence: what is wrong, where, and what to do. Uncaught, it is printed without a traceback."""

    def __str__(self) -> str:
        # A DataLoader raises what its worker raised with the worker's whole traceback as message; keep the last line.
        return super().__str__().rsplit(f'{type(self).__name__}: ', 1)[-1].strip()


class ConfigError(UserError, ValueError):
    """A configuration that cannot work."""


class CheckpointError(ConfigError):
    """A checkpoint that cannot be read or does not fit."""


class DataError(UserError):
    """A file of a data set that cannot be used."""


class StorageError(UserError):
    """A file that could not be written, or a checkpoint that is not where it should be."""


def check_choice(name: str, value, choices) -> None:
    """Refuse an option that is none of `choices`, naming them all."""
    if isinstance(value, bool) or value not in choices:
        raise ConfigError(f'{name}={value!r} is unknown; choose from {", ".join(map(repr, choices))}')


def check_options(name: str, options: dict, target: Callable, hint: str = '') -> None:
    """Refuse keys that are no argument of `target`, naming those that are, and what may be the cause."""
    known = [key for key in inspect.signature(target).parameters if key != 'self']
    if not isinstance(options, dict):
        raise ConfigError(f'{name}={options!r} must be a dict of options: {", ".join(known)}')
    unknown = [key for key in options if key not in known and key != 'type']
    if unknown:
        raise ConfigError(f'{name} has no option {", ".join(unknown)}; it takes {", ".join(known)}{hint}')


def check_positive_int(name: str, value) -> None:
    """Refuse all but whole numbers from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f'{name}={value!r} must be a whole number of at least 1')


def is_number(value) -> bool:
    """Whether this is a finite int or float (True and False are none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(name: str, value) -> None:
    """Refuse all but finite numbers above 0."""
    if not is_number(value) or value <= 0:
        raise ConfigError(f'{name}={value!r} must be a positive number')


def write_to_log_files(line: str) -> None:
    """Where mmengine logs to files, an error there; its console has the line already."""
    if 'mmengine.logging' not in sys.modules:
        return
    logger = sys.modules['mmengine.logging'].MMLogger.get_current_instance()
    raising, logging.raiseExceptions = logging.raiseExceptions, False  # what filled the disk must not cost the sentence
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, __name__, 0, line, (), None, 'excepthook'))
    logging.raiseExceptions = raising


def print_one_sentence(kind, error, traceback, otherwise=sys.excepthook) -> None:
    """`sys.excepthook` that ends a program on a UserError with its message alone, also in the log file of a run."""
    if issubclass(kind, UserError):
        print(f'mmtok: {error}', file=sys.stderr)
        write_to_log_files(f'mmtok: {error}')
    else:
        otherwise(kind, error, traceback)


if getattr(sys.excepthook, '__name__', '') != 'print_one_sentence':
    sys.excepthook = print_one_sentence
