"""`mmtok.MoTo`, the layer."""

import pytest
import torch

import mmtok
from mmtok.errors import ConfigError
from mmtok.ops.reference import layout_reference, moto_reference


@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('partition', ['soft', 'hard'])
def test_equals_the_formula(partition, kernel_size):
    torch.manual_seed(0)
    layer = mmtok.MoTo(6, num_entities=4, partition=partition, kernel_size=kernel_size).double()
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    torch.nn.init.normal_(layer.alpha)
    layout = layer.layout(x)
    assert layout.shape == (2, 4, 9, 11)
    assert torch.allclose(layout.sum(1), torch.ones(2, 9, 11, dtype=torch.float64))
    if kernel_size == 1:
        filters = layer.filters.weight.flatten(1), layer.filters.bias
        assert torch.allclose(layout, layout_reference(x, *filters, 0.1, partition))
    assert torch.allclose(layer(x), moto_reference(x, layout, layer.beta, layer.alpha))


def test_start_values():
    torch.manual_seed(0)
    layer = mmtok.MoTo(64, num_entities=8)
    assert layer.beta.eq(1).all() and layer.alpha.eq(0).all() and layer.filters.bias.eq(0).all()
    assert abs(layer.filters.weight.std().item() - 1) < 0.1 and abs(layer.filters.weight.mean().item()) < 0.1
    assert (layer.num_entities, layer.tau, layer.partition, layer.statistics) == (8, 0.1, 'soft', 'region')


@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('partition', ['soft', 'hard'])
def test_every_parameter_gets_a_gradient(partition, kernel_size):
    torch.manual_seed(0)
    layer = mmtok.MoTo(5, num_entities=3, partition=partition, kernel_size=kernel_size)
    layer(torch.randn(2, 5, 8, 8)).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_padding_is_neither_counted_nor_written():
    torch.manual_seed(0)
    layer = mmtok.MoTo(5)
    x, mask = torch.randn(1, 5, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :6, :5] = True
    y = layer(x, mask)
    assert torch.allclose(y[..., :6, :5], layer(x[..., :6, :5]), atol=1e-6)
    assert y[~mask.expand_as(y)].eq(0).all()


@pytest.mark.parametrize('options, message', [
    (dict(num_entities=0), 'num_entities=0 must be a whole number of at least 1'),
    (dict(num_entities=2.5), 'num_entities=2.5'),
    (dict(partition='fuzzy'), "partition='fuzzy' is unknown; choose from 'soft', 'hard'"),
    (dict(statistics='batch'), "statistics='batch' is unknown"),
    (dict(tau=0.0), 'tau=0.0 must be a positive number'),
    (dict(eps=float('nan')), 'eps=nan'),
    (dict(kernel_size=2), 'kernel_size=2 of the layout convolution must be odd'),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        mmtok.MoTo(4, **options)


def test_wrong_number_of_channels_is_named():
    with pytest.raises(ValueError, match=r'built for 4 channels, got a map of shape \(1, 3, 2, 2\)'):
        mmtok.MoTo(4)(torch.ones(1, 3, 2, 2))
