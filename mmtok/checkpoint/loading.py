"""What is behind `init_cfg` of a backbone: a public checkpoint's tensors -> those of tokenizer and trunk."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ..errors import CheckpointError
from ..tokenizers import FrozenTokenizer
from .formats import OWN, names_of, to_own_names
from .reading import read_checkpoint

ENOUGH = 0.9  # share of the trunk's tensors that a checkpoint must hold
WRAPPERS = ('state_dict', 'model', 'state_dict_ema', 'model_ema')
OUTER = ('module.', '_orig_mod.', 'model.', 'backbone.')  # DDP, torch.compile, Lightning, a segmentor or detector
HEADS = ('head', 'fc', 'classifier', 'pre_logits', 'mask_token')  # below which no tensor of a trunk is
OPTIONAL = ('trunk.norm.', 'trunk.cls_token')  # which classifiers have, and our feature maps may do without
NO_WEIGHTS = ('optimizer', 'optimizer_state_dict', 'message_hub', 'param_schedulers', 'lr_scheduler', 'scaler', 'meta')
SHOWN = 6  # names in a sentence


@dataclass
class Named:
    """Tensors of a checkpoint under our names.

    Attributes:
        format: Who names tensors as the checkpoint does.
        prefix: What stood before the names.
        unknown: Names below the prefix that are none of that format's.
        outside: Names that are not below the prefix, such as those of a segmentor's head.
    """

    state: dict[str, Tensor]
    format: str = ''
    prefix: str = ''
    unknown: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@dataclass
class Match:
    """A checkpoint beside a backbone.

    Attributes:
        fitting: Tensors to load.
        trunk: Names of the trunk's tensors, all of them.
        resized: What was resampled, a phrase for each.
        misshapen: Names of tensors with another shape than ours.
        fresh: Names of our tensors outside of the trunk that the checkpoint does not have.
        surplus: Names of tensors that would belong to the trunk and that this one does not have.
        unused: These and all other names of the backbone's part that nothing here takes.
        outside: Names of other parts of a model, such as a segmentor's heads.
    """

    fitting: dict[str, Tensor]
    trunk: list[str]
    resized: list[str]
    misshapen: list[str]
    fresh: list[str]
    surplus: list[str]
    unused: list[str]
    outside: list[str]

    @property
    def loaded(self) -> list[str]:
        return [name for name in self.trunk if name in self.fitting]

    @property
    def missing(self) -> list[str]:
        """Names of the trunk's tensors that stay as initialised."""
        return [name for name in self.trunk if name not in self.fitting]


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None, strict: bool = True,
                    weights_only: bool = True, img_size: tuple[int, int] | None = None,
                    map_location: str = 'cpu') -> None:
    """Load a checkpoint into a backbone and log what was found.

    A plain patch embedding goes to the tokenizer that has one (`plain_patch`); others keep their own start.

    Args:
        checkpoint: Path, URL or timm://name, see `read_checkpoint`.
        prefix: Take only the names below this one, as mmengine's Pretrained does. It may begin with the key of one of
            several sets of weights in the file, such as 'model_ema' or 'teacher.backbone'.
        strict: Refuse a checkpoint with less than 90 % of the trunk.
        weights_only: See `read_checkpoint`.
        img_size: (height, width) in pixels of the images that the checkpoint was trained on, needed where its position
            embedding belongs to a grid that is neither square nor of our own shape.
        map_location: Of mmengine's Pretrained; without effect, as files are read onto the CPU and copied from there.

    Raises:
        CheckpointError: When the file cannot be read or does not fit; nothing is loaded then.
    """
    try:
        content = read_checkpoint(checkpoint, weights_only)
        with about(checkpoint):
            state, wrapper, rest = unwrap(content, prefix)
            if rest and not any(name.startswith(f'{rest.rstrip(".")}.') for name in state):
                raise CheckpointError(f'has nothing below prefix={prefix!r}, but {short(state)}')
            named = name_as_ours(state, backbone, rest)
            match = compare(backbone, named, img_size)
            misfit = describe_misfit(backbone, match, state, prefix)
            if strict and misfit:
                raise CheckpointError(misfit + ('; strict=False loads what fits' if match.loaded else ''))
            check_finite(match.fitting)
    except CheckpointError as error:
        raise CheckpointError(f'{error} (model.backbone.init_cfg; with None there, training starts from '
                              'scratch)') from error
    backbone.load_state_dict(match.fitting, strict=False)
    report(backbone, checkpoint, named, match)
    others = [key for key in content if wrapper in WRAPPERS and key in WRAPPERS and key != wrapper]
    if others:
        MMLogger.get_current_instance().info(f'{checkpoint} has {wrapper!r}, which was loaded, and {short(others)}: '
                                             f'prefix={others[0]!r} takes that')


@contextmanager
def about(checkpoint: str) -> Iterator[None]:
    """Around what finds a fault in a checkpoint's content: the sentence begins with its name."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {checkpoint!r} {error}') from error


def unwrap(content: dict, prefix: str | None = None) -> tuple[dict[str, Tensor], str, str | None]:
    """The state dict inside a checkpoint, under which key it was, and what is left of the prefix when it names that.

    Where a file has several, weights come before their average.

    Raises:
        CheckpointError: When there are no tensors, or several sets of them of which none is the usual one.
    """
    sets = dict(find_sets(content))
    for key in sorted(sets, key=len, reverse=True):
        if key and prefix and f'{prefix}.'.startswith(f'{key}.'):
            return sets[key], key, prefix[len(key) + 1:] or None
    for key in (*WRAPPERS, ''):
        if key in sets:
            return sets[key], key, prefix
    if len(sets) == 1:
        (key, state), = sets.items()
        return state, key, prefix
    if sets:
        raise CheckpointError(f'holds several sets of tensors, {short(sets)}: name one in init_cfg, as '
                              f'prefix={next(iter(sets))!r}')
    raise CheckpointError('holds no torch tensors' + (f', only {short(map(str, content))}' if content else ''))


def find_sets(content: dict, path: str = '', depth: int = 3) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(keys joined by dots, tensors) of every dict of tensors by name inside a checkpoint."""
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if state:
        yield path, state
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(key, str) and depth and key not in NO_WEIGHTS:
            yield from find_sets(value, f'{path}.{key}' if path else key, depth - 1)


def prefixes_of(state: dict[str, Tensor], start: str = '') -> list[str]:
    """What may stand before a backbone's names: the wrappers that there are, in any order."""
    found = [start]
    for prefix in found:
        found += [prefix + outer for outer in OUTER if any(name.startswith(prefix + outer) for name in state)]
    return found


def name_as_ours(state: dict[str, Tensor], backbone: nn.Module, prefix: str | None = None) -> Named:
    """Find out who names tensors as a checkpoint does, by which names meet most of the backbone's own."""
    target = backbone.state_dict()
    best, most = Named({}, unknown=list(state)), 0
    for start in prefixes_of(state, f'{prefix.rstrip(".")}.' if prefix else ''):
        below = {key[len(start):]: value for key, value in state.items() if key.startswith(start)}
        for table in dict.fromkeys((OWN, *backbone.public_names.values())):
            known, unknown = to_own_names(below, table)
            count = sum(place_of_patch(name, backbone) in target for name in known)
            if count > most:
                best, most = Named(known, names_of(table, backbone.public_names) or 'mmtok', start,
                                   [start + key for key in unknown],
                                   [key for key in state if not key.startswith(start)]), count
    best.state = place_patch(best, backbone)
    return best


def plain_patch(backbone: nn.Module) -> str | None:
    """Below which name the tokenizer has a plain patch embedding, None where there is none to load."""
    return getattr(backbone.tokenizer, 'plain_patch', None)


def place_of_patch(name: str, backbone: nn.Module) -> str:
    """Where a tensor of a plain patch embedding goes in this tokenizer."""
    for old in ('tokenizer.proj.', 'tokenizer.patch.proj.'):
        if name.startswith(old) and (plain := plain_patch(backbone)) is not None:
            return f'tokenizer.{plain}proj.{name[len(old):]}'
    return name


def place_patch(named: Named, backbone: nn.Module) -> dict[str, Tensor]:
    """A plain patch embedding where the tokenizer has one."""
    return {place_of_patch(name, backbone): tensor for name, tensor in named.state.items()}


def compare(backbone: nn.Module, named: Named, img_size: Sequence[int] | None = None, resample: bool = True) -> Match:
    """Which tensors go where."""
    if any('dist_token' in name for name in named.unknown):
        raise CheckpointError('is of a distilled DeiT, which has a second class token: take the file '
                              'without "distilled" in its name')
    target, state = backbone.state_dict(), dict(named.state)
    resized = backbone.fit_sizes(state, img_size) if resample else []
    # A public patch embedding goes nowhere but where a plain one is: FrozenTokenizer has tensors of the same names
    barred = 'tokenizer.proj.' if plain_patch(backbone) is None and named.format != 'mmtok' else ()
    extra = [name for name in state if (name not in target or name.startswith(barred))
             and not name.startswith('token_prop.')]
    fitting = {name: tensor for name, tensor in state.items()
               if name in target and alike(tensor, target[name]) and not name.startswith(barred)}
    weight, bias = (f'tokenizer.{plain_patch(backbone)}proj.{kind}' for kind in ('weight', 'bias'))
    if weight in fitting and bias in target and bias not in state:  # mmseg's patch embedding has none
        fitting[bias] = torch.zeros_like(target[bias])
    return Match(
        fitting, [name for name in target if name.startswith('trunk.')], resized,
        misshapen=[f'{name} {form(state[name])} for {form(target[name])}' for name in state
                   if name in target and name not in fitting and name not in extra],
        fresh=[name for name in target if name not in fitting and not name.startswith(('trunk.', 'token_prop.'))],
        surplus=[name for name in extra if name.startswith('trunk.') and not name.startswith(OPTIONAL)]
        + [name for name in named.unknown if not name.removeprefix(named.prefix).startswith(HEADS)],
        unused=extra + named.unknown, outside=named.outside)


def alike(a: Tensor, b: Tensor) -> bool:
    """Of one shape, and both of floating point or neither: whole numbers for weights would need their scales."""
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def form(tensor: Tensor) -> str:
    """Shape, and type where it is no usual one."""
    kind = '' if tensor.is_floating_point() else f' {str(tensor.dtype).removeprefix("torch.")}'
    return 'x'.join(map(str, tensor.shape)) + kind


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """Names of tensors with values that are infinite or not a number, as float32 at least."""
    return [name for name, tensor in state.items() if not tensor.float().isfinite().all()]


def check_finite(state: dict[str, Tensor]) -> None:
    """All values are finite.

    Raises:
        CheckpointError: Names the tensors where they are not.
    """
    if broken := not_finite(state):
        raise CheckpointError(f'has values that are not finite in {short(broken)}: its training failed, take an '
                              'earlier one')


def short(names) -> str:
    """The first names of many."""
    names = list(names)
    return ', '.join(names[:SHOWN]) + (f' and {len(names) - SHOWN} more' if len(names) > SHOWN else '')


def parts(names: Sequence[str]) -> list[str]:
    """The modules that names begin with: neck.* (12 tensors)."""
    return [f'{part}.* ({count} tensors)' for part, count in Counter(name.split('.')[0] for name in names).items()]


def find_fault(backbone: nn.Module, match: Match) -> str:
    """Why a checkpoint does not fit a backbone; '' where it does.

    A few unknown tensors are no reason to refuse, but one that our names have a place for, in a trunk with more of
    them, is. So is a plain patch embedding of another size, without which the trunk sees other tokens.
    """
    kind, total = type(backbone).__name__, len(match.trunk)
    if len(match.loaded) < ENOUGH * total:
        return f'fits only {len(match.loaded)} of the {total} tensors of this {kind} trunk'
    if len(match.surplus) > (1 - ENOUGH) * total or any(name.startswith('trunk.') for name in match.surplus):
        return f'has {len(match.surplus)} tensors for which this {kind} trunk has no place ({short(match.surplus)})'
    patch = f'tokenizer.{plain_patch(backbone)}proj.weight '
    other = next((text for text in match.misshapen if text.startswith(patch)), None)
    return f'has a patch embedding of another size than this {kind} ({other})' if other else ''


def describe_misfit(backbone: nn.Module, match: Match, state: dict[str, Tensor], prefix: str | None = None) -> str:
    """The fault, and what the checkpoint holds instead; '' where it fits."""
    fault = find_fault(backbone, match)
    if not fault:
        return ''
    if prefix and not match.loaded:
        return f'{fault} below prefix={prefix!r}: without it, the backbone is looked for in the whole file'
    from .identify import identify
    other = identify(state)
    if other is not None and not other.fault:
        return f'{fault}: it holds {other}'
    if match.misshapen and match.misshapen[0] not in fault:
        return f'{fault}: another shape has {match.misshapen[0]}'
    return fault if match.loaded else (f'{fault}: it has {short(state)}; if the backbone is there below another name, '
                                       'give that as prefix')


def report(backbone: nn.Module, checkpoint: str, named: Named, match: Match) -> None:
    """Say what was loaded, and warn of what a user would not expect."""
    logger = MMLogger.get_current_instance()
    spare = [name for name in match.unused
             if name.startswith(OPTIONAL) or name.removeprefix(named.prefix).startswith(HEADS)]
    counts = [('resized', match.resized), ('missing', match.missing),
              ('unexpected', [name for name in match.unused if name not in spare])]
    text = ', '.join(f'{len(names)} {what}' + (f' ({short(names)})' if names else '') for what, names in counts)
    if spare:
        text += f', {len(spare)} of a classifier, not needed ({short(spare)})'
    if match.outside:
        text += f', {len(match.outside)} of other parts ({short(parts(match.outside))})'
    tokenizer = [name for name in backbone.state_dict() if name.startswith('tokenizer.')]
    held = sum(name in match.fitting for name in tokenizer)
    logger.info(f'Loaded {checkpoint} (names of {named.format}): {len(match.loaded)} of {len(match.trunk)} trunk '
                f'tensors, {text}; {held} of {len(tokenizer)} tokenizer tensors; as initialised beside the trunk: '
                f'{short(match.fresh) or "none"}')
    if match.surplus:
        logger.warning(f'{checkpoint} has tensors for which the trunk has no place, so that its features may be '
                       f'others: {short(match.surplus)}')
    if match.missing:
        logger.warning(f'{len(match.missing)} of {len(match.trunk)} trunk tensors start at random, which {checkpoint} '
                       f'lacks or has in another shape: {short(match.missing)}')
    report_tokenizer(backbone, checkpoint, named, match)


def report_tokenizer(backbone: nn.Module, checkpoint: str, named: Named, match: Match) -> None:
    """Say which of the tokenizer's layers are new, and warn where they should not be."""
    logger, kind = MMLogger.get_current_instance(), type(backbone.tokenizer).__name__
    new = [name for name in match.fresh if name.startswith('tokenizer.')]
    beside_moto = [name for name in new if 'moto' not in name and '.stem.' not in name]
    if not new:
        return
    if isinstance(backbone.tokenizer, FrozenTokenizer):
        logger.warning(f'{kind} keeps its random patch embedding, as it is meant to, and not that of {checkpoint}')
    elif beside_moto:
        from .identify import tokenizer_of
        theirs = tokenizer_of(named.state)
        logger.warning(f'{len(beside_moto)} tensors of the tokenizer {kind} start at random, which {checkpoint} lacks '
                       f'or has in another shape: {short(beside_moto)}'
                       + (f'; the tokenizer there is {theirs}' if theirs else ''))
    else:
        logger.info(f'New in the tokenizer {kind}, and to be trained: {short(new)}')
