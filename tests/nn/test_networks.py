import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from subjunctive.nn import MLP, Beside, ConvDecoder, ConvEncoder, UNet
from subjunctive.nn.unet import Attention, Block, Sines


def stir(module: nn.Module) -> nn.Module:
    """Move every parameter away from its start, zeros included."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p) / math.sqrt(max(p[0].numel(), 1)))
    return module


BUILDS = [
    (MLP, {"inputs": 3, "outputs": 2, "hidden": (5,), "activation": nn.Tanh, "norm": True}),
    (ConvEncoder, {"channels": 2, "size": (8, 16), "outputs": 3, "widths": (4, 6), "unshuffle": 1}),
    (ConvDecoder, {"inputs": 3, "channels": 2, "size": (8, 16), "widths": (4, 6), "shuffle": 1}),
    (UNet, {"channels": 2, "condition": 3, "width": 8, "blocks": 2, "unshuffle": 1, "size": 16}),
    (UNet, {"channels": 1, "condition": 3, "blocks": (0, 2), "size": 8, "layout": True}),
]


@pytest.mark.parametrize(("cls", "arguments"), BUILDS)
def test_constructor_is_the_config(cls, arguments):
    built = cls(**arguments)
    read = {name: getattr(built, name) for name in inspect.signature(cls).parameters}
    assert read | arguments == read
    again = cls(**read)
    again.load_state_dict(built.state_dict())


def test_mlp_is_the_stated_composition():
    torch.manual_seed(0)
    mlp = MLP(3, 2, hidden=(5, 4), activation=nn.Tanh, norm=True)
    x = torch.randn(7, 3)
    linears = [m for m in mlp.modules() if isinstance(m, nn.Linear)]
    h = x
    for layer in linears[:-1]:
        h = F.linear(h, layer.weight, layer.bias)
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        h = h.tanh()
    torch.testing.assert_close(mlp(x), F.linear(h, linears[-1].weight, linears[-1].bias))


def test_mlp_without_hidden_layers_is_affine():
    mlp = MLP(3, 2, hidden=())
    x, y = torch.randn(2, 5, 3)
    torch.testing.assert_close(mlp(x) + mlp(y), mlp(x + y) + mlp(torch.zeros(3)))


def test_mlp_refuses_empty_layers():
    with pytest.raises(ValueError, match="at least 1"):
        MLP(3, 2, hidden=(0,))


def test_encoder_tells_where_something_is():
    torch.manual_seed(0)
    encoder = ConvEncoder(1, (16, 8), 5, norm=True, widths=(4, 8))
    x = torch.zeros(2, 1, 16, 8)
    x[0, 0, 4, 4] = x[1, 0, 8, 4] = 1.0
    a, b = encoder(x)
    assert (a - b).abs().max() > 1e-3
    rows = torch.randn(3, 1, 16, 8)
    torch.testing.assert_close(encoder(rows)[[2, 0]], encoder(rows[[2, 0]]))


@pytest.mark.parametrize("shuffle", [1, 2])
def test_decoder_hears_its_vector_everywhere_and_trains_everywhere(shuffle):
    torch.manual_seed(0)
    decoder = ConvDecoder(3, 2, (8, 16), widths=(4, 6), shuffle=shuffle)
    z = torch.randn(5, 3, requires_grad=True)
    x = decoder(z)
    assert x.shape == (5, 2, 8, 16)
    assert (x[0] - x[1]).abs().min() > 0
    torch.testing.assert_close(decoder(z[[2, 0]]), x[[2, 0]])
    x.square().mean().backward()
    silent = [n for n, p in decoder.named_parameters() if not p.grad.abs().max() > 0]
    assert silent == []
    assert (z.grad != 0).all()


def test_what_stands_beside_reaches_the_head_as_it_is():
    both = Beside(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), nn.Linear(5, 2))
    x, c = torch.randn(6, 1, 2, 2), torch.randn(6, 2)
    expected = both.head(torch.cat([both.network[1](x.reshape(6, 4)), c], 1))
    torch.testing.assert_close(both(x, c), expected)


@pytest.mark.parametrize(
    ("build", "multiple"),
    [
        (lambda: ConvEncoder(1, 28, 5, widths=(4, 4, 4)), 8),
        (lambda: ConvDecoder(5, 1, 28, widths=(4, 4, 4)), 8),
        (lambda: UNet(1, width=8, size=(32, 30), unshuffle=1), 4),
        (lambda: UNet(1, width=8)(torch.zeros(1, 1, 28, 28), torch.zeros(1)), 8),
    ],
)
def test_sizes_that_do_not_divide_are_refused(build, multiple):
    with pytest.raises(ValueError, match=rf"multiples of {multiple}, .*; pad to 32x32"):
        build()


def test_unet_refuses_another_condition():
    x, noise = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    with pytest.raises(ValueError, match="condition=2 and got a condition of width 3"):
        UNet(1, condition=2, width=8)(x, noise, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="got a condition of width 0"):
        UNet(1, condition=2, width=8)(x, noise)


def test_unet_starts_at_zero_and_its_blocks_at_the_identity():
    assert UNet(1, width=8)(torch.randn(2, 1, 16, 16), torch.zeros(2)).abs().max() == 0
    x, e = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    torch.testing.assert_close(Block(8, 8, 5)(x, e), x)
    torch.testing.assert_close(Attention(8, 2)(x), x)


def test_unet_hears_image_noise_and_condition_and_trains_everywhere():
    torch.manual_seed(0)
    unet = stir(UNet(2, outputs=3, condition=2, width=8))
    x, noise, c = torch.randn(4, 2, 16, 24), torch.randn(4), torch.randn(4, 2)
    y = unet(x, noise, c)
    assert y.shape == (4, 3, 16, 24)
    for other in (unet(x + 0.1, noise, c), unet(x, noise + 0.1, c), unet(x, noise, c + 0.1)):
        assert (other - y).abs().max() > 1e-4
    y.square().mean().backward()
    silent = [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("blocks", [2, (0, 1), (2, 1)])
def test_unet_of_any_depth_trains_everywhere(blocks):
    torch.manual_seed(0)
    unet = stir(UNet(1, 1, 3, 8, blocks=blocks, size=16, layout=True, modulating=1))
    unet(torch.randn(4, 1, 16, 16), torch.randn(4), torch.randn(4, 3)).square().mean().backward()
    silent = [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_what_does_not_modulate_enters_by_the_layout_alone():
    torch.manual_seed(0)
    unet = stir(UNet(1, condition=3, width=8, size=16, layout=True, modulating=1)).double()
    x, noise, c = (torch.randn(2, *s).double() for s in ((1, 16, 16), (), (3,)))
    first, rest = c.clone(), c.clone()
    first[:, 0] += 1
    rest[:, 1:] += 1
    y = unet(x, noise, c)
    assert (unet(x, noise, rest) - y).abs().max() > 1e-4
    nn.init.zeros_(unet.map[0].weight)
    y = unet(x, noise, c)
    assert torch.equal(unet(x, noise, rest), y)
    assert (unet(x, noise, first) - y).abs().max() > 1e-4


def test_unet_refuses_a_condition_that_could_not_enter():
    with pytest.raises(ValueError, match=r"needs size and condition, got size=None"):
        UNet(1, condition=3, width=8, layout=True)
    with pytest.raises(ValueError, match=r"would ignore the rest; set layout=True"):
        UNet(1, condition=3, width=8, modulating=1)


@pytest.mark.parametrize("blocks", [0, (1, 0)])
def test_unet_refuses_to_have_no_way_up(blocks):
    with pytest.raises(ValueError, match="at least one is needed on the way up"):
        UNet(1, width=8, blocks=blocks)


@pytest.mark.parametrize("width", [7, 25, 31])
def test_any_width_will_do(width):
    unet = UNet(1, width=width, multipliers=(1, 4))
    assert unet(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)


def test_detail_skips_the_coarse_levels():
    torch.manual_seed(0)
    unet = stir(UNet(1, width=8))
    x, noise = torch.randn(1, 1, 16, 16), torch.zeros(1)
    unet.up[0].register_forward_hook(lambda module, given, made: 0 * made)
    assert (unet(x, noise) - unet(x + 0.1, noise)).abs().max() > 1e-4
    assert (unet(x, noise) - unet(x.roll(2, -1), noise)).abs().max() > 1e-2


def test_rows_do_not_see_each_other():
    unet = stir(UNet(1, condition=2, width=8)).double()
    x, noise, c = torch.randn(3, 1, 8, 8), torch.randn(3), torch.randn(3, 2)
    x, noise, c = x.double(), noise.double(), c.double()
    y, order = unet(x, noise, c), [2, 0, 1]
    torch.testing.assert_close(unet(x[order], noise[order], c[order]), y[order])


@pytest.mark.parametrize("attention", [True, False])
def test_only_attention_reaches_across_the_image(attention):
    # group norms see the whole image too: make them constant to leave attention alone
    torch.manual_seed(0)
    unet = UNet(1, width=8, multipliers=(1, 1), attention=attention, unshuffle=1)
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.GroupNorm):
            owner, _, key = name.rpartition(".")
            setattr(unet.get_submodule(owner), key, nn.Identity())
    stir(unet)
    x = torch.randn(1, 1, 64, 64, requires_grad=True)
    unet(x, torch.zeros(1))[0, 0, 0, 0].backward()
    assert bool(x.grad[0, 0, -4:, -4:].abs().max() > 0) is attention
    assert x.grad[0, 0, :4, :4].abs().max() > 0


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    layer = stir(Attention(8, 2))
    x = torch.randn(3, 8, 2, 5)
    q, k, v = layer.qkv(layer.norm(x)).reshape(3, 3, 2, 4, 10).unbind(1)
    share = torch.einsum("bhcq,bhck->bhqk", q, k).div(2.0).softmax(-1)
    mixed = torch.einsum("bhqk,bhck->bhcq", share, v).reshape(3, 8, 2, 5)
    torch.testing.assert_close(layer(x), x + layer.out(mixed))


def test_block_scales_and_shifts_each_channel():
    torch.manual_seed(0)
    block = stir(Block(4, 6, 3))
    x, e = torch.randn(2, 4, 4, 4), torch.randn(2, 3)
    scale, shift = block.film(e).chunk(2, dim=1)
    h = F.group_norm(block.conv1(F.silu(block.norm1(x))), 6)
    h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(block(x, e), block.skip(x) + block.conv2(F.silu(h)))


def test_sines_tell_noise_levels_apart():
    level = torch.linspace(-3, 3, 200)
    distance = torch.cdist(Sines(32)(level), Sines(32)(level))
    distance.fill_diagonal_(math.inf)
    assert distance.min() > 0.05


def test_dropout_drops_in_training_only():
    torch.manual_seed(0)
    unet = stir(UNet(1, width=8, dropout=0.5))
    x, noise = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert not torch.equal(unet(x, noise), unet(x, noise))
    unet.eval()
    assert torch.equal(unet(x, noise), unet(x, noise))


def test_bfloat16_autocast_stays_close():
    torch.manual_seed(0)
    unet = stir(UNet(1, condition=2, width=8))
    x, noise, c = torch.randn(4, 1, 16, 16), torch.randn(4), torch.randn(4, 2)
    exact = unet(x, noise, c)
    with torch.autocast("cpu", torch.bfloat16):
        quick = unet(x, noise, c)
    assert (quick.float() - exact).square().mean() < 1e-3 * exact.square().mean()
