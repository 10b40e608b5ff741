"""A Vision Transformer for small images.

    python model.py --n_layers 12    # architecture, parameters and FLOPs (no flags: of the default model)

    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4)
    logits = model(images)                                    # the fastest form of attention; no map is kept
    logits, attention = model(images, return_attention=True)  # the same weights, every map

The model follows Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021, arXiv:2010.11929), section 3.1;
arguments and parameter names follow timm's VisionTransformer, so that weights travel between the two.

Shapes: B batch, N tokens (CLS first, then patches), D width (embed_dim), H heads, L layers (depth),
C classes, G patches along one side, P = G * G patches.
"""

import argparse
import contextlib
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode


def pick_device(name: str = "auto") -> torch.device:
    """The torch.device called `name`: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda" or "mps". Raises ValueError,
    with the devices that are there, if it is unknown or absent."""
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    there = [kind for kind, count in counts.items() if count]
    if name == "auto":
        return torch.device(there[0])
    with contextlib.suppress(RuntimeError):  # what torch says to "cpu:x"
        if (device := torch.device(name)).type in there and (device.index or 0) < counts[device.type]:
            return device
    raise ValueError(f"device {name!r} is not here; this machine has: {', '.join(there)}")


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each one (section 3.1, equation 1)."""

    def __init__(self, *, img_size, patch_size, in_chans, embed_dim):
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"patch size {patch_size} does not divide image size {img_size}; choose a divisor of it")
        self.grid_size = img_size // patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, x):  # B x in_chans x img_size x img_size
        return self.proj(x).flatten(2).transpose(1, 2)  # B x P x D


def sine_positions(grid_size, dim):
    """Fixed 2-D sine-cosine positions P x D (Vaswani et al., 3.5): half of D an axis, wavelengths of 2 to 200 pi."""
    quarter = dim // 4
    frequencies = 100.0 ** -(torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
    angles = torch.cat([y.reshape(-1, 1) * frequencies, x.reshape(-1, 1) * frequencies], dim=1)  # P x D/2
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 4))


class ConvStem(nn.Module):
    """Turns an image into tokens by stages that halve the side: stem_depth 3 x 3 convolutions, each with batch norm and
    ReLU, and a pooling after the first. The width grows stem_growth times by stage, from 64 to embed_dim, and a last
    convolution does not pool (Hassani et al., arXiv:2104.05704, section 3.3; Xiao et al., arXiv:2106.14881, section 3).
    If whitened, as in a fast CNN (Jordan, arXiv:2404.00498, section 3): first a frozen 2 x 2 convolution whitens the
    pixels (fit() sets its filters); GELU, norms without scale, filters that start as the identity; no last one."""

    def __init__(self, *, img_size, patch_size, in_chans, embed_dim, stem_depth=1, stem_growth=2, whitened=False):
        super().__init__()
        halvings = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 2**halvings or img_size % patch_size:
            remedy = "each stage halves the side, so choose a power of two, from 2 on, that divides it"
            raise ValueError(f"patch size {patch_size} with a conv stem at image size {img_size}: {remedy}")
        self.grid_size = img_size // patch_size
        widths = [*(min(64 * stem_growth**i, embed_dim) for i in range(halvings - 1)), embed_dim]
        widths = [8 * in_chans, *widths] if whitened else [in_chans, *widths, embed_dim]
        self.whiten = nn.Conv2d(in_chans, 8 * in_chans, 2, bias=False).requires_grad_(False) if whitened else None
        pool, act = (nn.MaxPool2d(2), nn.GELU()) if whitened else (nn.MaxPool2d(3, 2, padding=1), nn.ReLU())
        self.stages = nn.Sequential()
        for i, (before, after) in enumerate(zip(widths, widths[1:])):
            for j in range(stem_depth if i < halvings else 1):
                name = f"{i}" if j == 0 else f"{i}_{j}"
                conv = nn.Conv2d(before if j == 0 else after, after, 3, padding=1, bias=False)
                self.stages.add_module(f"conv{name}", conv)
                if i < halvings and j == 0:
                    self.stages.add_module(f"pool{name}", pool)
                norm = nn.BatchNorm2d(after, momentum=0.4 if whitened else 0.1)
                norm.weight.requires_grad_(not whitened)
                self.stages.add_module(f"norm{name}", norm)
                self.stages.add_module(f"act{name}", act)

    def forward(self, x):  # B x in_chans x img_size x img_size
        if self.whiten is not None:
            x = self.whiten(F.pad(x, (0, 1, 0, 1), mode="reflect"))  # B x 8 in_chans x img_size x img_size
        x = x.contiguous(memory_format=torch.channels_last)  # what convolutions in bfloat16 are fastest with
        return self.stages(x).flatten(2).transpose(1, 2)  # B x P x D


class Attention(nn.Module):
    """Multi-head self-attention (appendix A): by torch's fused kernel, or with the softmax written out if the attention
    is to be returned. Also where the kernel is slower: on a CPU in bfloat16, and in training with few tokens."""

    def __init__(self, dim, *, num_heads, qkv_bias, attn_drop_rate, qk_norm=False, norm_eps=1e-6):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide width {dim}; choose a divisor of it")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        norms = (nn.LayerNorm(dim // num_heads, eps=norm_eps) if qk_norm else nn.Identity() for _ in "qk")
        self.q_norm, self.k_norm = norms
        self.attn_drop = Dropout(attn_drop_rate)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, return_attention=False):  # B x N x D
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, -1).unbind(2)  # each B x N x H x D/H
        q, k = self.q_norm(q), self.k_norm(k)
        attention = None
        kernel_is_slow = q.device.type == "cpu" and (q.dtype == torch.bfloat16 or (self.training and N <= 128))
        if return_attention or kernel_is_slow:
            scores = torch.einsum("bnhd,bmhd->bhnm", q * q.shape[-1] ** -0.5, k)
            attention = scores.softmax(dim=-1)  # B x H x N x N, rows sum to 1
            x = torch.einsum("bhnm,bmhd->bnhd", self.attn_drop(attention), v)
        else:
            q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # each B x H x N x D/H
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
            x = x.transpose(1, 2)
        return self.proj(x.reshape(B, N, D)), attention


class Mlp(nn.Module):
    """Linear, GELU, dropout, linear: the same for every token (appendix A)."""

    def __init__(self, dim, hidden, *, drop_rate):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()  # the exact one
        self.drop = Dropout(drop_rate)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(self.drop(self.act(self.fc1(x))))


class Dropout(nn.Dropout):
    """nn.Dropout with a cheaper mask on the CPU: of 16 random bits an element, so that p is rounded to 1/65536."""

    def forward(self, x):
        if not self.training or self.p in (0, 1) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        words = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -32768 ... 32767
        keep = bits >= round(self.p * 65536) - 32768
        return x * keep.to(x.dtype).mul_(1 / (1 - self.p))


class DropPath(nn.Dropout):
    """Stochastic depth (Huang et al., arXiv:1603.09382): in training, a share p of the images skips the branch, and
    the branch's output is scaled by 1 / (1 - p) for the others."""

    def forward(self, x):  # B x N x D
        if not self.training or self.p == 0:
            return x
        keep = torch.empty(len(x), 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p or 1)


class Block(nn.Module):
    """Pre-norm encoder block (equations 2 and 3)."""

    def __init__(self, dim, *, mlp_ratio, norm_eps, drop_rate, drop_path_rate, **attention_args):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, norm_eps=norm_eps, **attention_args)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop_rate=drop_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x, return_attention=False):  # B x N x D
        out = {"norm1": self.norm1(x)}
        out["attn"], attention = self.attn(out["norm1"], return_attention)
        x = x + self.drop_path(out["attn"])
        out["norm2"] = self.norm2(x)
        out["mlp"] = self.mlp(out["norm2"])
        return x + self.drop_path(out["mlp"]), attention, out


class VisionTransformer(nn.Module):
    """The Vision Transformer. Arguments carry timm's names.

    Args:
        img_size, patch_size: sides of the square input and of a patch in pixels; the second must divide the first.
        in_chans, num_classes: input channels (3 RGB, 1 grey) and outputs C.
        embed_dim, depth, num_heads: width D of a token, encoder blocks L, attention heads H; H must divide D.
        mlp_ratio: hidden width of the MLP, over embed_dim.
        qkv_bias, qk_norm: biases of queries, keys and values; norms of a head's queries and keys (arXiv:2302.05442, 2).
        drop_rate, attn_drop_rate: dropout inside the MLP, and of the attention weights, in 0..1.
        drop_path_rate: stochastic depth of the last block, in 0..1; grows linearly from 0 in the first.
        stem: "linear" (patches), "conv" or "whitened" (ConvStem: patch_size is how much the side shrinks).
        stem_depth, stem_growth: convolutions in each stage of a ConvStem; how many times wider than the last it is.
        pool: what the head sees: "cls" (the normed CLS token), "mean" (the patches' mean, then a norm: timm's fc_norm),
            "normed_mean" (first the norm) or "seq" (normed tokens weighted by a learned query, no CLS: CCT, 3.2).
        head: "linear", or "mlp": linear, tanh, linear (the paper's head with a representation layer).
        norm_eps: epsilon of every LayerNorm.

    Raises ValueError, with the numbers, if sizes do not fit each other.
    """

    def __init__(
        self,
        *,
        img_size=32,
        patch_size=4,
        in_chans=3,
        num_classes=10,
        embed_dim=128,
        depth=6,
        num_heads=4,
        mlp_ratio=2.0,
        qkv_bias=True,
        qk_norm=False,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.0,
        stem="linear",
        stem_depth=1,
        stem_growth=2,
        pool="cls",
        head="linear",
        norm_eps=1e-6,
    ):
        super().__init__()
        stems, pools, heads = ("linear", "conv", "whitened"), ("cls", "mean", "normed_mean", "seq"), ("linear", "mlp")
        for name, value, known in (("stem", stem, stems), ("pool", pool, pools), ("head", head, heads)):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown; choose {' or '.join(known)}")
        sizes = dict(img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim)
        conv = dict(sizes, stem_depth=stem_depth, stem_growth=stem_growth)
        for name, size in dict(conv, num_classes=num_classes, depth=depth).items():
            if size < 1:
                raise ValueError(f"{name} {size} is too small; choose 1 or more")
        if not 0 < mlp_ratio < math.inf:
            raise ValueError(f"mlp_ratio {mlp_ratio:g} makes no MLP; choose a number above 0, such as 2")
        self.img_size, self.in_chans, self.pool, self.grad_checkpointing = img_size, in_chans, pool, False
        self.patch_embed = PatchEmbed(**sizes) if stem == "linear" else ConvStem(**conv, whitened=stem == "whitened")
        self.grid_size = self.patch_embed.grid_size  # G
        self.has_cls = pool != "seq"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if self.has_cls else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.has_cls + self.grid_size**2, embed_dim))
        shared = dict(num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, qk_norm=qk_norm, norm_eps=norm_eps)
        shared |= dict(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate)
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(embed_dim, drop_path_rate=rate, **shared) for rate in rates)
        # timm's names: the norm is called fc_norm if it comes after the pooling
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if pool != "mean" else nn.Identity()
        self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if pool == "mean" else nn.Identity()
        self.seq_pool = nn.Linear(embed_dim, 1) if pool == "seq" else None
        self.head = nn.Linear(embed_dim, num_classes)
        if head == "mlp":
            self.head = nn.Sequential(OrderedDict(fc1=nn.Linear(embed_dim, embed_dim), act=nn.Tanh(), fc2=self.head))
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, PatchEmbed):  # patches about as large as the positions
                nn.init.trunc_normal_(module.proj.weight, std=0.35 * module.proj.weight[0].numel() ** -0.5)
                nn.init.zeros_(module.proj.bias)
            elif isinstance(module, ConvStem):
                for conv in (layer for layer in module.stages if isinstance(layer, nn.Conv2d)):
                    if module.whiten is None:
                        nn.init.kaiming_normal_(conv.weight)
                    else:  # begins with its inputs
                        nn.init.dirac_(conv.weight[: conv.in_channels])
        for block in self.blocks:  # each begins as the identity
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.fc2.weight)
        self.pos_embed[0, self.has_cls :] = 0.3 * sine_positions(self.grid_size, self.pos_embed.shape[-1])
        if self.has_cls:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images, return_attention=False, return_hidden=False):
        """Logits B x C of images B x in_chans x img_size x img_size (normalised floats).

        return_attention: also the attention B x L x H x N x N (before dropout; rows sum to 1).
        return_hidden: also a dict name -> tensor, named like the modules: "patch_embed" (B x P x D) and, for each
            block i from 0, "blocks.i.norm1", ".attn", ".norm2", ".mlp" and its output "blocks.i" (B x N x D).
        With both, the dict also has "blocks.i.attention" (B x H x N x N), through which logits can be differentiated.
        If anything is asked for, the result is a tuple: (logits, attention, hidden).
        """
        x = self.patch_embed(images)  # B x P x D
        hidden = {"patch_embed": x}
        if self.has_cls:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # B x N x D
        x = x + self.pos_embed
        maps = []
        for i, block in enumerate(self.blocks):
            if self.grad_checkpointing and self.training:  # keep a block's input alone, and compute the rest again
                x, attention, inside = checkpoint(block, x, return_attention, use_reentrant=False)
            else:
                x, attention, inside = block(x, return_attention)
            if return_attention:
                maps.append(attention)
                hidden[f"blocks.{i}.attention"] = attention
            if return_hidden:
                hidden.update({f"blocks.{i}.{name}": value for name, value in inside.items()})
                hidden[f"blocks.{i}"] = x

        if self.pool == "cls":
            x = self.norm(x[:, 0])  # B x D
        elif self.has_cls:  # a mean: one of the norms is the identity
            x = self.fc_norm(self.norm(x[:, 1:]).mean(dim=1))
        else:
            x = self.norm(x)
            x = (self.seq_pool(x).softmax(dim=1) * x).sum(dim=1)
        out = (self.head(x),)  # logits, B x C
        out += (torch.stack(maps, dim=1),) if return_attention else ()
        out += (hidden,) if return_hidden else ()
        return out if len(out) > 1 else out[0]


def main():
    """Print a Vision Transformer and what it costs; the flags are its arguments."""
    older = dict(img_size="image_size", in_chans="n_channels", num_classes="n_classes", depth="n_layers")
    older |= dict(num_heads="n_attention_heads", mlp_ratio="forward_mul", drop_rate="dropout")
    parser = argparse.ArgumentParser(description=main.__doc__, allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"model.py: {message}\n")
    for name, default in VisionTransformer.__init__.__kwdefaults__.items():
        spellings = [f"--{spelling}" for spelling in (name, older.get(name)) if spelling]
        how = dict(type=type(default)) if type(default) is not bool else dict(action=argparse.BooleanOptionalAction)
        parser.add_argument(*spellings, default=default, help=f"(default: {default})", **how)
    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as flops:  # shapes need no memory
            model = VisionTransformer(**vars(parser.parse_args())).eval()
            model(torch.zeros(1, model.in_chans, model.img_size, model.img_size), return_attention=True)
    except (ValueError, RuntimeError) as error:
        parser.error(error)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{model}\n\n{size:,} parameters, {flops.get_total_flops() / 1e6:.1f} MFLOPs an image, forward")


if __name__ == "__main__":
    main()
