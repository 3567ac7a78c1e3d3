"""MoTo, modulation across tokens: a region-wise normalisation whose regions are learned.

'What Makes for Good Tokenizers in Vision Transformer?' (Qian et al., TPAMI 2022), section 3. Its direct ancestor,
with the same formula and temperature, is 'Attentive Normalization' (Wang et al., CVPR 2020).
"""

import torch
from torch import Tensor, nn

from ..errors import ConfigError, check_choice, check_positive, check_positive_int
from ..ops import moto, moto_from_logits
from ..ops.dispatch import BACKENDS, PARTITIONS, STATISTICS
from ..ops.reference import partition_layout


class MoTo(nn.Module):
    """MoTo(X) = sum_i ((X - mu_i) / (sigma_i + eps) * beta_i + alpha_i) * L_i, L = softmax(tau * conv(X)).

    Args:
        channels: C of the feature map.
        num_entities: Number n of semantic entities; the paper's default is 8.
        tau: Temperature of the softmax; the paper's is 0.1.
        partition: 'soft', or 'hard' for the one-hot argmax with straight-through gradients (Table 4).
        statistics: 'region' weighs mean and deviation by the layout, as the ancestor does; 'product' takes those of
            X * L_i over all positions, the paper's formula to the letter.
        eps: Added to the standard deviations.
        kernel_size: Of the layout convolution, odd. With 1 the layout is never stored.
        backend: Of `mmtok.ops.moto`.

    The layout filters start from a unit normal with bias 0, beta from 1 and alpha from 0; none of them should get
    weight decay (`custom_keys={'moto': dict(decay_mult=0.)}` in an optimizer wrapper).

    Raises:
        ConfigError: For a value that cannot work.
    """

    def __init__(self, channels: int, num_entities: int = 8, tau: float = 0.1, partition: str = 'soft',
                 statistics: str = 'region', eps: float = 1e-5, kernel_size: int = 1, backend: str = 'auto'):
        super().__init__()
        check_positive_int('channels', channels)
        check_positive_int('num_entities', num_entities)
        check_positive_int('kernel_size', kernel_size)
        check_choice('partition', partition, PARTITIONS)
        check_choice('statistics', statistics, STATISTICS)
        if kernel_size % 2 == 0:
            raise ConfigError(f'kernel_size={kernel_size} of the layout convolution must be odd')
        check_choice('backend', backend, BACKENDS)
        check_positive('tau', tau)
        check_positive('eps', eps)
        self.channels, self.num_entities = channels, num_entities
        self.tau, self.partition, self.statistics, self.eps, self.backend = tau, partition, statistics, eps, backend
        self.filters = nn.Conv2d(channels, num_entities, kernel_size, padding=kernel_size // 2)
        self.beta = nn.Parameter(torch.empty(num_entities, channels))
        self.alpha = nn.Parameter(torch.empty(num_entities, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.filters.weight)
        nn.init.zeros_(self.filters.bias)
        nn.init.ones_(self.beta)
        nn.init.zeros_(self.alpha)

    def layout(self, x: Tensor) -> Tensor:
        """Semantic layout (B,n,H,W) of x (B,C,H,W), summing to 1 over n."""
        self.check_channels(x)
        logits = self.filters(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return partition_layout(logits, self.tau, self.partition)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W). Where the mask (B,1,H,W) is false, nothing is counted and the output is 0."""
        self.check_channels(x)
        if self.filters.kernel_size == (1, 1):
            return moto_from_logits(x, self.filters.weight, self.filters.bias, self.beta, self.alpha, self.tau,
                                    self.eps, self.partition, self.statistics, mask, self.backend)
        return moto(x, self.layout(x), self.beta, self.alpha, self.eps, self.statistics, mask, self.backend)

    def check_channels(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f'MoTo was built for {self.channels} channels, got a map of shape {tuple(x.shape)}')

    def extra_repr(self) -> str:
        return (f'{self.channels}, num_entities={self.num_entities}, tau={self.tau}, partition={self.partition!r}, '
                f'statistics={self.statistics!r}')
