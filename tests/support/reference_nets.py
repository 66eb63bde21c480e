"""Gives the two U-Nets of the papers without diffusers, written from their descriptions, with the official key names.

They are a second opinion for the converters, in any configuration, with random weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoid(t: int, width: int, batch: int, ho: bool) -> Tensor:
    """Sine first and a frequency spacing of half - 1 for Ho; cosine first and a spacing of half for ADM."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / (half - 1 if ho else half))
    angles = t * frequencies
    parts = (angles.sin(), angles.cos()) if ho else (angles.cos(), angles.sin())
    return torch.cat(parts).expand(batch, -1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention over [B, C, N] with `heads` equal groups of channels."""
    q, k, v = (part.unflatten(1, (heads, -1)) for part in (q, k, v))
    weights = torch.einsum("bhcn,bhcm->bhnm", q, k) / math.sqrt(q.shape[2])
    return torch.einsum("bhnm,bhcm->bhcn", weights.softmax(-1), v).flatten(1, 2)


class HoBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, emb: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, c_in, 1e-6), nn.Conv2d(c_in, c_out, 3, 1, 1)
        self.temb_proj = nn.Linear(emb, c_out)
        self.norm2, self.conv2 = nn.GroupNorm(32, c_out, 1e-6), nn.Conv2d(c_out, c_out, 3, 1, 1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class HoAttention(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, c, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        out = attend(self.q(h).flatten(2), self.k(h).flatten(2), self.v(h).flatten(2), 1)
        return x + self.proj_out(out.unflatten(2, x.shape[2:]))


class HoNet(nn.Module):
    def __init__(self, base: int, mult: tuple[int, ...], blocks: int, attention: tuple[int, ...]) -> None:
        super().__init__()
        self.base, self.levels, self.blocks, emb = base, len(mult), blocks, 4 * base
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(base, emb), nn.Linear(emb, emb)])
        self.conv_in = nn.Conv2d(3, base, 3, 1, 1)
        widths, c, skips = [base * m for m in mult], base, [base]
        self.down, self.up, self.mid = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for i, width in enumerate(widths):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks):
                level.block.append(HoBlock(c, width, emb))
                c = width
                skips.append(c)
                if i in attention:
                    level.attn.append(HoAttention(c))
            if i < self.levels - 1:
                level.downsample = nn.Module()
                level.downsample.conv = nn.Conv2d(c, c, 3, 2)
                skips.append(c)
            self.down.append(level)
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = HoBlock(c, c, emb), HoAttention(c), HoBlock(c, c, emb)
        ups = []
        for i in reversed(range(self.levels)):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks + 1):
                level.block.append(HoBlock(c + skips.pop(), widths[i], emb))
                c = widths[i]
                if i in attention:
                    level.attn.append(HoAttention(c))
            if i > 0:
                level.upsample = nn.Module()
                level.upsample.conv = nn.Conv2d(c, c, 3, 1, 1)
            ups.insert(0, level)
        self.up.extend(ups)
        self.norm_out, self.conv_out = nn.GroupNorm(32, c, 1e-6), nn.Conv2d(c, 3, 3, 1, 1)

    def forward(self, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """eps and h."""
        dense = self.temb.dense
        emb = dense[1](F.silu(dense[0](sinusoid(t, self.base, len(x), ho=True))))
        skips = [self.conv_in(x)]
        for level in self.down:
            for j in range(self.blocks):
                h = level.block[j](skips[-1], emb)
                skips.append(level.attn[j](h) if len(level.attn) else h)
            if hasattr(level, "downsample"):
                skips.append(level.downsample.conv(F.pad(skips[-1], (0, 1, 0, 1))))
        middle = self.mid.block_2(self.mid.attn_1(self.mid.block_1(skips[-1], emb)), emb)
        h = middle
        for level in reversed(self.up):
            for j in range(self.blocks + 1):
                h = level.block[j](torch.cat([h, skips.pop()], 1), emb)
                h = level.attn[j](h) if len(level.attn) else h
            if hasattr(level, "upsample"):
                h = level.upsample.conv(F.interpolate(h, scale_factor=2))
        return self.conv_out(F.silu(self.norm_out(h))), middle


class AdmBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, emb: int, scale_shift: bool, resample: str = "") -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, 1, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * c_out if scale_shift else c_out))
        conv = nn.Conv2d(c_out, c_out, 3, 1, 1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, c_out), nn.SiLU(), nn.Dropout(0), conv)
        if c_in != c_out:
            self.skip_connection = nn.Conv2d(c_in, c_out, 1)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2) if self.resample == "up" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.resampled(self.in_layers[:2](x)))
        e = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        x = self.resampled(x)
        return h + (self.skip_connection(x) if hasattr(self, "skip_connection") else x)


class AdmAttention(nn.Module):
    def __init__(self, c: int, head_channels: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = c // head_channels, new_order
        self.norm, self.qkv, self.proj_out = nn.GroupNorm(32, c), nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        fused = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = fused.chunk(3, dim=1)
        else:
            by_head = fused.unflatten(1, (self.heads, 3, -1))
            q, k, v = (by_head[:, :, i].flatten(1, 2) for i in range(3))
        return x + self.proj_out(attend(q, k, v, self.heads)).unflatten(2, x.shape[2:])


class Conv(nn.Module):
    """A resampling convolution, under the official name of its one layer."""

    def __init__(self, c: int, up: bool) -> None:
        super().__init__()
        self.up = up
        setattr(self, "conv" if up else "op", nn.Conv2d(c, c, 3, 1 if up else 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2)) if self.up else self.op(x)


class AdmNet(nn.Module):
    def __init__(
        self,
        base: int,
        mult: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        head_channels: int,
        resblock_updown: bool = True,
        scale_shift: bool = True,
        new_order: bool = False,
    ) -> None:
        super().__init__()
        self.base, emb, widths = base, 4 * base, [base * m for m in mult]

        def attend_at(level: int, c: int) -> list[nn.Module]:
            return [AdmAttention(c, head_channels, new_order)] if level in attention else []

        def resample(c: int, up: bool) -> nn.Module:
            if resblock_updown:
                return AdmBlock(c, c, emb, scale_shift, "up" if up else "down")
            return Conv(c, up)

        self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
        c, skips = base, [base]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, base, 3, 1, 1)])])
        for i, width in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(nn.ModuleList([AdmBlock(c, width, emb, scale_shift), *attend_at(i, width)]))
                c = width
                skips.append(c)
            if i < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([resample(c, up=False)]))
                skips.append(c)
        self.middle_block = nn.ModuleList(
            [
                AdmBlock(c, c, emb, scale_shift),
                AdmAttention(c, head_channels, new_order),
                AdmBlock(c, c, emb, scale_shift),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for i in reversed(range(len(widths))):
            for j in range(blocks + 1):
                layers = [AdmBlock(c + skips.pop(), widths[i], emb, scale_shift), *attend_at(i, widths[i])]
                c = widths[i]
                self.output_blocks.append(
                    nn.ModuleList([*layers, resample(c, up=True)] if i > 0 and j == blocks else layers)
                )
        self.out = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, 6, 3, 1, 1))

    def forward(self, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """eps (without the learned variance) and h."""
        emb = self.time_embed(sinusoid(t, self.base, len(x), ho=False))

        def run(layers: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in layers:
                h = layer(h, emb) if isinstance(layer, AdmBlock) else layer(h)
            return h

        skips, h = [], x
        for block in self.input_blocks:
            h = run(block, h)
            skips.append(h)
        h = middle = run(self.middle_block, h)
        for block in self.output_blocks:
            h = run(block, torch.cat([h, skips.pop()], 1))
        return self.out(h)[:, :3], middle


def draw_parameter(
    name: str, shape: Sequence[int], generator: torch.Generator, of_scale: float, of_bias: float
) -> torch.Tensor:
    """A random parameter: a weight of spread 1 / sqrt(fan in), a norm's scale about 1, or a bias about 0."""
    noise = torch.randn(shape, generator=generator)
    if noise.ndim > 1:
        return noise / math.sqrt(noise[0].numel())
    return 1 + of_scale * noise if name.endswith("weight") else of_bias * noise


def randomised(net: nn.Module, seed: int) -> nn.Module:
    """Every parameter random and none at its neutral value, so that a tensor in the wrong place shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(draw_parameter(name, parameter.shape, generator, of_scale=0.2, of_bias=0.2))
    return net.eval()
