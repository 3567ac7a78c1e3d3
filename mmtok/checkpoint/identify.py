"""Which trunk a state dict is of, and of which size, told from its tensors alone."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import CheckpointError
from .formats import OWN, to_own_names
from .loading import Match, Named, compare, find_fault, name_as_ours, prefixes_of


@dataclass
class Identity:
    """What a checkpoint holds.

    Attributes:
        kind: The backbone of mmtok that is the same trunk, or with a fault, the most alike.
        options: Its constructor arguments.
        named: The checkpoint's tensors under our names.
        match: These beside a backbone of that kind.
        fault: Why they would be refused all the same; '' for none.
    """

    kind: type
    options: dict
    named: Named
    match: Match | None = None
    fault: str = ''

    def __str__(self) -> str:
        return f'{self.call()} with names of {self.named.format}'

    def arguments(self) -> dict:
        """Those of the backbone with the same tensors, its tokenizer among them."""
        tokenizer = tokenizer_of(self.named.state)
        return self.options if tokenizer is None else {**self.options, 'tokenizer': tokenizer}

    @property
    def guessed(self) -> str:
        """Which size of the arch no tensor shows; '' where its name says it."""
        return self.kind.unseen if isinstance(self.options['arch'], dict) else ''

    def seen(self) -> dict:
        """The arguments without what is guessed."""
        if not self.guessed:
            return self.arguments()
        arch = {key: value for key, value in self.options['arch'].items() if key != self.guessed}
        return {**self.arguments(), 'arch': arch}

    def build(self) -> nn.Module:
        return self.kind(**self.arguments())

    def call(self) -> str:
        """The backbone as one would write it."""
        arguments = ', '.join(f'{key}={value!r}' for key, value in self.arguments().items())
        return f'mmtok.{self.kind.__name__}({arguments})'


def identify(state: dict[str, Tensor]) -> Identity | None:
    """The trunk under whose names, whoever gave them, most of a state dict's tensors are known; None for no trunk."""
    from ..backbones import PVT, DeiT, PVTv2, Swin, T2TViT
    found: dict[type, tuple[int, Identity]] = {}
    for prefix in prefixes_of(state):
        below = {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
        for kind in (DeiT, T2TViT, Swin, PVT, PVTv2):
            for table in dict.fromkeys((OWN, *kind.public_names.values())):
                known = to_own_names(below, table)[0]
                if len(known) > found.get(kind, (0, ))[0]:
                    identity = sizes_of(kind, known)
                    if identity is not None:
                        found[kind] = len(known), identity
    candidates = [identity for _, identity in sorted(found.values(), key=lambda pair: -pair[0])]
    for identity in candidates:
        backbone = identity.build()
        identity.named = name_as_ours(state, backbone)  # tells apart formats that share names
        try:
            identity.match = compare(backbone, identity.named, resample=False)  # as large as it
        except CheckpointError as error:
            identity.fault = str(error)
        else:
            identity.fault = find_fault(backbone, identity.match)
    return next((identity for identity in candidates if not identity.fault), next(iter(candidates), None))


def sizes_of(kind: type, known: dict[str, Tensor]) -> Identity | None:
    """A backbone of a kind with the sizes of these tensors; None where there is none."""
    try:
        options = kind.options_for(known)
        if options is None:
            return None
        found = Identity(kind, options, Named(known))
        found.build()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # tensors that only sound like ours
        return None
    return found


def tokenizer_of(state: dict[str, Tensor]) -> dict | None:
    """Config of the tokenizer whose tensors a checkpoint holds; None for the plain one of its trunk.

    What has no tensors (tau, partition, statistics) cannot be seen, and a stem's stride is taken to be even.
    """
    if 'tokenizer.project.weight' in state:
        return t2t_of(state)
    stem, token = 'tokenizer.stem.conv.weight' in state, 'tokenizer.moto.beta' in state
    if not stem and not token:
        return None
    patched = 'tokenizer.patch.proj.weight' in state
    gate = dict(gate=0.0 if 'tokenizer.moto_gate' in state else None)
    layer = 'tokenizer.moto' if token else 'tokenizer.stem.moto'
    options = dict(type='mmtok.MoToTokenizer', placement='token' if token else 'branch' if patched else 'stem',
                   **moto_of(state, layer), **gate)
    if stem:
        channels, kernel = state['tokenizer.stem.conv.weight'].shape[::3]
        options.update(stem_channels=channels, stem_stride=kernel - 1)
    return options


def moto_of(state: dict[str, Tensor], layer: str) -> dict:
    return dict(num_entities=len(state[f'{layer}.beta']), layout_kernel=state[f'{layer}.filters.weight'].shape[-1])


def t2t_of(state: dict[str, Tensor]) -> dict:
    dims = state['tokenizer.project.weight'].shape[1] // 9  # of the 3x3 tokens that make one
    options = dict(type='mmtok.T2TTokenizer', token_dims=dims,
                   attention='performer' if 'tokenizer.attention1.w' in state else 'transformer')
    if 'tokenizer.moto.0.layer.beta' in state:
        gate = dict(gate=0.0 if 'tokenizer.moto.0.gate' in state else None)
        options['moto'] = dict(**moto_of(state, 'tokenizer.moto.0.layer'), **gate)
    return options
