"""Checkpoints looked into, renamed for another package, and made small enough to give away."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from ..version import __version__
from .formats import BUFFERS, to_public_names
from .identify import identify
from .loading import about, check_finite, not_finite, parts, short, unwrap
from .naming import Rule
from .reading import read_checkpoint
from .writing import check_target, checkpoint_bytes, write_new

TORCH = ('.pth', '.pt')
# What one who loads a converted file has to know.
CAVEATS = {('DeiT', 'mmseg'): '; build VisionTransformer with patch_bias=True and norm_cfg=dict(type="LN", eps=1e-6)',
           ('T2TViT', 'mmpretrain'): '; mmpretrain 1.2.0 divides the logits of T2T attention by the scale where the '
           'authors multiply, and so gives other features',
           ('PVTv2', 'mmdet'): '; mmdet adds 1e-6 in norms where the authors and timm add 1e-5'}
KEPT = ('epoch', 'iter', 'seed', 'dataset_meta', 'cfg', 'mmengine_version', 'mmtok_version', 'trunk', 'options')


def inspect(location: str, weights_only: bool = True) -> str:
    """What a checkpoint is, and what of it would load where; a line for each fact."""
    content = read_checkpoint(location, weights_only)
    with about(location):
        state, wrapper, _ = unwrap(content)
        found = identify(state)
    kinds = {str(tensor.dtype).removeprefix('torch.') for tensor in state.values()} - {'float32', 'int64', 'bool'}
    lines = [('file', f'{location}: {len(state)} tensors, {sum(t.numel() for t in state.values()) / 1e6:.1f} M numbers'
              + (f' ({", ".join(sorted(kinds))})' if kinds else '') + (f" in {wrapper!r}" if wrapper else ''))]
    beside = [f'{key}={value}' if isinstance(value, (int, float, str)) and len(str(value)) < 40 else str(key)
              for key, value in content.items() if wrapper and key != wrapper and not (key == 'meta' and not value)]
    if beside:
        lines.append(('beside them', short(beside)))
    if found is None or found.fault:
        lines.append(('trunk', f'none that mmtok has; tensors are called {short(state)}'))
        if found is not None:
            lines.append(('most alike', f'{found.call()}, but the file {found.fault}'))
        return layout(lines)
    if broken := not_finite(found.named.state):
        lines.append(('not finite', f'{short(broken)}: init_cfg refuses it'))
    named, match, others = found.named, found.match, Counter(name.split('.')[0] for name in found.match.fitting)
    lines.append(('trunk', found.call()))
    if found.guessed:
        lines.append(('', f'of which {found.guessed} is in no tensor: 64 channels for each are taken'))
    lines += [('names of', named.format + (f', below {named.prefix!r}' if named.prefix else '')),
              ('loads', f'{len(match.loaded)} of {len(match.trunk)} trunk tensors'
               + ''.join(f', {count} of {part}' for part, count in others.items() if part != 'trunk'))]
    for what, names in (('missing', match.missing), ('other shape', match.misshapen), ('starts fresh', match.fresh),
                        ('not used', match.unused), ('other parts', parts(match.outside))):
        if names:
            lines.append((what, short(names)))
    if any(name in match.fitting for name in ('tokenizer.proj.weight', 'tokenizer.patch.proj.weight')):
        lines.append(('patches', "also load into mmtok.MoToTokenizer with placement='token' or 'branch', which starts "
                      'exactly as the plain model'))
    formats = [name for name, table in found.kind.public_names.items() if not foreign(named.state, table)]
    lines.append(('converts to', ', '.join(['mmtok', *formats])))
    return layout(lines)


def layout(lines: list[tuple[str, str]]) -> str:
    width = max(len(what) for what, _ in lines) + 2
    return '\n'.join(f'{what:{width}}{text}' for what, text in lines)


def convert(location: str, target: Path, to: str, weights_only: bool = True) -> str:
    """Write the backbone of a checkpoint under the names of another package; returns what was done, in a sentence.

    Raises:
        CheckpointError: For an unknown trunk or format, and for a tokenizer that the other package does not have.
        StorageError: When the file cannot be written or is there.
    """
    check_target(target)
    content = read_checkpoint(location, weights_only)
    with about(location):
        found = identify(unwrap(content)[0])
        if found is None or found.fault:
            raise CheckpointError('holds no trunk that mmtok has' + (
                f'; most alike is {found.call()}, but it {found.fault}' if found else ': see inspect'))
        check_finite(found.named.state)
        known = ['mmtok', *found.kind.public_names]
        if to not in known:
            raise CheckpointError(f'holds a {found.kind.__name__}, for which --to {to} is no format; choose from '
                                  f'{", ".join(known)}')
        state, left = found.named.state, []
        if to != 'mmtok':
            state, left = to_public_names(state, found.kind.public_names[to])
            lost = foreign(found.named.state, found.kind.public_names[to])
            if lost:
                raise CheckpointError(f'has a tokenizer that {to} does not have ({short(lost)}): inspect lists what it '
                                      'converts to')
            if (found.kind.__name__, to) == ('Swin', 'mmdet'):
                state = {f'backbone.{name}': tensor for name, tensor in state.items()}
    decoder = [name for name in left if name.startswith('token_prop.')]
    left = [*parts(decoder), *(name for name in left if name not in decoder)]
    left += [name for name in found.named.unknown if not name.endswith(BUFFERS)] + parts(found.named.outside)
    meta = {'mmtok_version': __version__, 'trunk': found.kind.__name__, 'options': found.seen()}
    wrapper = {'timm': '', 'authors': 'model', 'authors-detection': 'model'}.get(to, 'state_dict')
    write_new(target, checkpoint_bytes(state, meta, target.suffix, wrapper))
    return (f'wrote {target}: {found.call()}, {len(state)} tensors with names of {to}, which were those of '
            f'{found.named.format}' + (f'; left out: {short(left)}' if left else '')
            + (f'; missing there: {short(found.match.missing)}' if found.match.missing else '')
            + CAVEATS.get((found.kind.__name__, to), ''))


def foreign(state: dict[str, Tensor], table: Sequence[Rule]) -> list[str]:
    """Tensors of a tokenizer for which a format has no names."""
    return [name for name in to_public_names(state, table)[1] if name.startswith('tokenizer.')]


def publish(location: str, target: Path, weights_only: bool = True) -> tuple[Path, str]:
    """Write a checkpoint without what only training needs: optimizer, schedules, logs, TokenProp's decoder.

    Neck and heads stay. Of two sets of weights the one that is tested stays: mmengine's EMAHook writes the averages as
    `state_dict` and the raw weights as `ema_state_dict`.

    Returns:
        Where it was written, with the first 8 digits of the file's SHA-256 in its name, as torch.hub and OpenMMLab's
        packages check it; and what was done, in a sentence.

    Raises:
        CheckpointError: When the file cannot be read.
        StorageError: When the file cannot be written or is there.
    """
    check_target(target)
    content = read_checkpoint(location, weights_only)
    with about(location):
        state, wrapper, _ = unwrap(content)
        found = identify(state)
        if found is not None:
            check_finite(found.named.state)
    decoder = [name for name in state if 'token_prop' in name.split('.')]
    twins = {f'ema_{name.replace(".", "_")}' for name in state}  # of mmcv 1's EMAHook, in the middle of the weights
    averages = [name for name in state if name in twins]
    kept = {name: tensor for name, tensor in state.items() if name not in {*decoder, *averages}}
    old = content.get('meta') if isinstance(content.get('meta'), dict) and wrapper else {}
    meta = {key: value for key, value in old.items() if key in KEPT}
    meta.update(mmtok_version=__version__, source=Path(location).name)
    if found is not None and not found.fault:
        meta.update(trunk=found.kind.__name__, options=found.seen())
    data = checkpoint_bytes(kept, meta, target.suffix)
    path = target.with_name(f'{target.stem}-{hashlib.sha256(data).hexdigest()[:8]}{target.suffix}')
    write_new(path, data)
    gone = [f'{len(names)} tensors of {what}' for names, what in ((decoder, 'the decoder'), (averages, 'averages'))
            if names]
    gone += [key for key in content if wrapper and key not in (wrapper, 'meta')]
    return path, (f'wrote {path}: {len(kept)} tensors, {len(data) / 2**20:.1f} MiB'
                  + (f'; stripped: {short(gone)}' if gone else '')
                  + ('; init_cfg reads it, test.py of mmseg and mmdet reads .pth' if path.suffix not in TORCH else ''))
