"""How timm, the authors and OpenMMLab's packages name the tensors of each trunk.

Our own names are those of the backbone with a `PatchTokenizer` (T2T-ViT: its own tokenizer).
"""

from collections.abc import Sequence

from torch import Tensor

from .naming import Change, Rule, count_levels, rules, translate

BUFFERS = ('relative_position_index', 'attn_mask')  # which every model makes anew
OWN = rules(('trunk.{r}', 'trunk.{r}'), ('tokenizer.{r}', 'tokenizer.{r}'), ('norms.{r}', 'norms.{r}'),
            ('token_prop.{r}', 'token_prop.{r}'))


def pairs(ours: str, theirs: str, *names: tuple) -> list[tuple]:
    """Pairs of templates below two prefixes."""
    return [(f'{ours}.{a}', f'{theirs}.{b}', *change) for a, b, *change in names]


# Plain vision transformers

MM_BLOCK = [('norm{n}.{p}', 'ln{n}.{p}'), ('attn.{m}.{p}', 'attn.{m}.{p}'), ('mlp.fc1.{p}', 'ffn.layers.0.0.{p}'),
            ('mlp.fc2.{p}', 'ffn.layers.1.{p}')]
MM_ATTENTION = [('attn.qkv.{p}', 'attn.attn.in_proj_{p}'), ('attn.proj.{p}', 'attn.attn.out_proj.{p}')]
TOKENS = [('trunk.cls_token', 'cls_token'), ('trunk.pos_embed', 'pos_embed')]
VIT = [*TOKENS, ('trunk.blocks.{i}.{r}', 'blocks.{i}.{r}'), ('trunk.norm.{p}', 'norm.{p}')]
MM_VIT = [('tokenizer.proj.{p}', 'patch_embed.projection.{p}'), *TOKENS, ('trunk.norm.{p}', 'ln1.{p}')]
DEIT = {
    'timm': rules(('tokenizer.proj.{p}', 'patch_embed.proj.{p}'), *VIT),
    'mmpretrain': rules(*MM_VIT, *pairs('trunk.blocks.{i}', 'layers.{i}', *MM_BLOCK)),
    'mmseg': rules(*MM_VIT, *pairs('trunk.blocks.{i}', 'layers.{i}', *MM_ATTENTION, *MM_BLOCK)),
}
DEIT['authors'] = DEIT['timm']

T2T = {
    'authors': rules(('tokenizer.attention{i}.{r}', 'tokens_to_token.attention{i}.{r}'),
                     ('tokenizer.project.{p}', 'tokens_to_token.project.{p}'), *VIT),
    'mmpretrain': rules(
        *TOKENS, ('trunk.norm.{p}', 'norm.{p}'), ('tokenizer.project.{p}', 'tokens_to_token.project.{p}'),
        *pairs('trunk.blocks.{i}', 'encoder.{i}', *MM_BLOCK),
        *pairs('tokenizer.attention{i}', 'tokens_to_token.attention{i}', *MM_BLOCK)),
}

# Swin

ORDER = [0, 2, 1, 3]  # the four tokens that are merged stand in columns with timm and the authors, in rows in nn.Unfold


def from_unfold(x: Tensor) -> Tensor:
    """(...,C*4) -> (...,4*C)."""
    return x.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., ORDER, :].flatten(-2)


def to_unfold(x: Tensor) -> Tensor:
    return x.unflatten(-1, (4, -1))[..., ORDER, :].transpose(-1, -2).flatten(-2)


UNFOLD: Change = from_unfold, to_unfold


def swin_authors(*norms: tuple[str, str]) -> tuple[Rule, ...]:
    """They merge patches at the end of a stage, timm at the start of the next one."""
    return rules(('tokenizer.proj.{p}', 'patch_embed.proj.{p}'), ('trunk.patch_embed.norm.{p}', 'patch_embed.norm.{p}'),
                 ('trunk.layers.{i+1}.downsample.{r}', 'layers.{i}.downsample.{r}'),
                 ('trunk.layers.{i}.blocks.{r}', 'layers.{i}.blocks.{r}'), *norms)


MM_SWIN = rules(
    ('tokenizer.proj.{p}', 'patch_embed.projection.{p}'), ('trunk.patch_embed.norm.{p}', 'patch_embed.norm.{p}'),
    ('norms.{i}.{p}', 'norm{i}.{p}'),
    ('trunk.layers.{i+1}.downsample.norm.{p}', 'stages.{i}.downsample.norm.{p}', UNFOLD),
    ('trunk.layers.{i+1}.downsample.reduction.weight', 'stages.{i}.downsample.reduction.weight', UNFOLD),
    *pairs('trunk.layers.{i}.blocks.{j}', 'stages.{i}.blocks.{j}',
           ('norm{n}.{p}', 'norm{n}.{p}'), ('attn.{r}', 'attn.w_msa.{r}'),
           ('mlp.fc1.{p}', 'ffn.layers.0.0.{p}'), ('mlp.fc2.{p}', 'ffn.layers.1.{p}')))
LAST_NORM = 'norms.last.{p}', 'norm.{p}'  # of the last stage, whichever it is
SWIN = {
    'timm': rules(('tokenizer.proj.{p}', 'patch_embed.proj.{p}'),
                  ('trunk.patch_embed.norm.{p}', 'patch_embed.norm.{p}'), ('trunk.layers.{i}.{r}', 'layers.{i}.{r}'),
                  LAST_NORM),
    'authors': swin_authors(LAST_NORM),
    'authors-detection': swin_authors(('norms.{i}.{p}', 'norm{i}.{p}')),
    'mmdet': MM_SWIN, 'mmseg': MM_SWIN, 'mmpretrain': MM_SWIN,
}

# Pyramids

TO_LINEAR: Change = (lambda x: x.flatten(1)), (lambda x: x[..., None, None])  # mmdet's MLPs are 1x1 convolutions
TO_POINTWISE: Change = TO_LINEAR[::-1]
SHARED = [('norm{n}.{p}', 'norm{n}.{p}'), ('attn.sr.{p}', 'attn.sr.{p}'), ('attn.norm.{p}', 'attn.norm.{p}')]
QUERY_KEY_VALUE = 'attn.q.{p}', 'attn.kv.{p}'


def packed(prefix: str) -> tuple[str, ...]:
    return tuple(f'{prefix}.{name}' for name in QUERY_KEY_VALUE)


PVT = {  # our trunk is mmdet's
    'authors': rules(
        ('tokenizer.proj.{p}', 'patch_embed1.proj.{p}'),
        ('trunk.layers.{i}.0.projection.{p}', 'patch_embed{i+1}.proj.{p}'),
        ('trunk.layers.{i}.0.norm.{p}', 'patch_embed{i+1}.norm.{p}'),
        ('trunk.layers.{i}.1.0.pos_embed', 'pos_embed{i+1}'), ('trunk.cls_token', 'cls_token'),
        ('trunk.norm.{p}', 'norm.{p}'),
        ('trunk.layers.{i}.1.{j+1}.attn.attn.in_proj_{p}', packed('block{i+1}.{j}')),
        *pairs('trunk.layers.{i}.1.{j+1}', 'block{i+1}.{j}', *SHARED, ('attn.attn.out_proj.{p}', 'attn.proj.{p}'),
               ('ffn.layers.0.weight', 'mlp.fc1.weight', TO_POINTWISE), ('ffn.layers.0.bias', 'mlp.fc1.bias'),
               ('ffn.layers.3.weight', 'mlp.fc2.weight', TO_POINTWISE), ('ffn.layers.3.bias', 'mlp.fc2.bias'))),
    'mmdet': rules(
        ('tokenizer.proj.{p}', 'layers.0.0.projection.{p}'), ('trunk.cls_token', 'cls_token'),
        ('trunk.norm.{p}', 'norm.{p}'),
        *pairs('trunk.layers.{i}', 'layers.{i}', ('0.{r}', '0.{r}'), ('1.0.pos_embed', '1.0.pos_embed'),
               *pairs('1.{j}', '1.{j}', *SHARED, ('attn.attn.{r}', 'attn.attn.{r}'),
                      ('ffn.layers.0.{p}', 'ffn.layers.0.{p}'), ('ffn.layers.3.{p}', 'ffn.layers.3.{p}')))),
}
PVT_V2 = {
    'timm': rules(('tokenizer.proj.{p}', 'patch_embed.proj.{p}'),
                  ('trunk.patch_embed.norm.{p}', 'patch_embed.norm.{p}'), ('trunk.stages.{i}.{r}', 'stages.{i}.{r}')),
    'authors': rules(
        ('tokenizer.proj.{p}', 'patch_embed1.proj.{p}'), ('trunk.patch_embed.norm.{p}', 'patch_embed1.norm.{p}'),
        ('trunk.stages.{i}.downsample.{r}', 'patch_embed{i+1}.{r}'), ('trunk.stages.{i}.norm.{p}', 'norm{i+1}.{p}'),
        *pairs('trunk.stages.{i}.blocks.{j}', 'block{i+1}.{j}', ('mlp.dwconv.{p}', 'mlp.dwconv.dwconv.{p}'),
               ('{r}', '{r}'))),
    'mmdet': rules(
        ('tokenizer.proj.{p}', 'layers.0.0.projection.{p}'), ('trunk.patch_embed.norm.{p}', 'layers.0.0.norm.{p}'),
        ('trunk.stages.{i}.downsample.proj.{p}', 'layers.{i}.0.projection.{p}'),
        ('trunk.stages.{i}.downsample.norm.{p}', 'layers.{i}.0.norm.{p}'),
        ('trunk.stages.{i}.norm.{p}', 'layers.{i}.2.{p}'),
        (packed('trunk.stages.{i}.blocks.{j}'), 'layers.{i}.1.{j}.attn.attn.in_proj_{p}'),
        *pairs('trunk.stages.{i}.blocks.{j}', 'layers.{i}.1.{j}', *SHARED, ('attn.proj.{p}', 'attn.attn.out_proj.{p}'),
               ('mlp.fc1.weight', 'ffn.layers.0.weight', TO_LINEAR), ('mlp.fc1.bias', 'ffn.layers.0.bias'),
               ('mlp.dwconv.{p}', 'ffn.layers.1.{p}'),
               ('mlp.fc2.weight', 'ffn.layers.4.weight', TO_LINEAR), ('mlp.fc2.bias', 'ffn.layers.4.bias'))),
}


def to_own_names(state: dict[str, Tensor], table: Sequence[Rule]) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict under our names, and the names for which the format has none."""
    state = {name: tensor for name, tensor in state.items() if not name.endswith(BUFFERS)}
    known, unknown = translate(state, table)
    last = count_levels(known, 'trunk.layers.') - 1
    return {name.replace('norms.last.', f'norms.{last}.'): tensor for name, tensor in known.items()}, unknown


def to_public_names(state: dict[str, Tensor], table: Sequence[Rule]) -> tuple[dict[str, Tensor], list[str]]:
    """Our state dict under a format's names, and our names for which it has none."""
    if any(rule.ours == LAST_NORM[0] for rule in table):
        last = count_levels(state, 'trunk.layers.') - 1
        state = {name.replace(f'norms.{last}.', 'norms.last.'): tensor for name, tensor in state.items()}
    return translate(state, table, to_ours=False)


def names_of(table: Sequence[Rule], formats: dict[str, tuple[Rule, ...]]) -> str:
    """What those who use a table are called."""
    return ', '.join(name for name, other in formats.items() if other is table)
