"""The error of a configuration that cannot work."""


class ConfigError(ValueError):
    """One sentence: what is wrong, where, and what to do. `mmtok.Runner` prints it without a traceback."""


def check_choice(name: str, value, choices) -> None:
    """Refuse an option that is none of `choices`, naming them all."""
    if value not in choices:
        raise ConfigError(f'{name}={value!r} is unknown; choose from {", ".join(map(repr, choices))}')


def check_positive_int(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f'{name}={value!r} must be a whole number of at least 1')
