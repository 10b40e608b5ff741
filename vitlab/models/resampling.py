"""Pretrained weights for another number of patches, another patch size, another number of channels."""

import torch
import torch.nn.functional as F


def resize_positions(pos_embed: torch.Tensor, *, old: int, new: int, prefix: int) -> torch.Tensor:
    """Interpolate a position embedding for another number of patches (Dosovitskiy et al., arXiv:2010.11929,
    section 3.2): 1 x (prefix + old * old) x D -> 1 x (prefix + new * new) x D.

    old, new: patches along one side. prefix: tokens before the patches, which stay as they are (1 for CLS, or 0).
    """
    first, patches = pos_embed[:, :prefix], pos_embed[:, prefix:]
    patches = patches.view(1, old, old, -1).permute(0, 3, 1, 2)  # 1 x D x old x old
    patches = F.interpolate(patches, size=(new, new), mode="bicubic", antialias=True)
    return torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)


def resize_patches(weight: torch.Tensor, size: int) -> torch.Tensor:
    """A patch projection for patches of another size: D x C x old x old -> D x C x size x size, float32.

    With the matrix B that resizes a patch, the new weights w' solve B^T w' = w as well as they can: a larger patch that
    is a resized smaller one then gives the same token (Beyer et al., FlexiViT, arXiv:2212.08013, section 3.4).
    """
    old = weight.shape[-1]
    basis = torch.eye(old * old).view(-1, 1, old, old)
    resized = F.interpolate(basis, size=(size, size), mode="bicubic", antialias=True).flatten(1)  # B^T, old^2 x size^2
    return (weight.float().flatten(2) @ torch.linalg.pinv(resized).T).unflatten(2, (size, size))


def adapt_channels(weight: torch.Tensor, in_chans: int) -> torch.Tensor:
    """A patch projection for another number of channels: D x C x P x P -> D x in_chans x P x P, float32.

    For one channel the sum, as if it were repeated; otherwise the filters in turn, scaled so that the tokens keep their
    size (timm's way).
    """
    weight, old = weight.float(), weight.shape[1]
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, [i % old for i in range(in_chans)]] * (old / in_chans)
