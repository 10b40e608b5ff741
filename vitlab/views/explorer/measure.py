"""What the page shows of one image, as modules: Python runs them for the images that the page comes with, and the same
modules, exported to ONNX, run in the page for the reader's own.

Shapes as in model.py: B = 1 image, N tokens, P patches on a grid of G x G, H heads, L layers (blocks), C classes.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import cosine_similarity

from vitlab.attention.attribution import attention_gradients, attention_rollout, gradient_rollout
from vitlab.attention.faithfulness import removal_curve
from vitlab.attention.maps import (
    attention_distance,
    attention_entropy,
    attention_from,
    last_tokens,
    look,
    pool_weights,
    pooled_features,
    to_grid,
)
from vitlab.checkpoint import Checkpoint
from vitlab.export.program import Program

INSIDE = ("logits", "attention", "rollout", "weights", "lens", "similarity", "distance", "entropy")  # of Inside
EVIDENCE = ("gradient_rollout", "grad_cam")  # of Evidence
TESTED = ("attention", "rollout", "grad_cam")  # the maps whose removal curves are computed beforehand
AT_ONCE = 5  # classes, whose gradients fill the memory
RANDOM_ORDERS = 5  # whose mean curve they are held against


class Inside(Program):
    """uint8 1 x channels x S x S -> what is named in INSIDE.

    logits: C. attention: L x H x N x N. rollout: L x N x N, up to each layer. weights: N, those of the tokens in what
    the head reads. lens: (L + 1) x C, the logits if the head read the tokens before the first layer or after each one
    (the logit lens: nostalgebraist, 2020). similarity: (L + 1) x P x P, of the patches' tokens there, cosine.
    distance and entropy: L x H, see attention_distance and attention_entropy.
    """

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model = self.model
        inside = look(model, self.normalise(images))
        first = inside.hidden["patch_embed"]
        if model.has_cls:
            first = torch.cat([model.cls_token, first], dim=1)
        states = [first + model.pos_embed, *(inside.hidden[f"blocks.{i}"] for i in range(len(model.blocks)))]
        patches = torch.cat(states)[:, -(model.grid_size**2) :]  # (L + 1) x P x D
        maps = inside.attention
        rollouts = [attention_rollout(maps[:, : i + 1])[0] for i in range(maps.shape[1])]
        return (
            inside.logits[0],
            maps[0],
            torch.stack(rollouts),
            inside.weights[0],
            torch.cat([self.read(tokens) for tokens in states]),
            cosine_similarity(patches[:, :, None], patches[:, None], dim=-1),
            attention_distance(maps)[0],
            attention_entropy(maps)[0],
        )

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the head would say to the tokens 1 x N x D of any layer: logits 1 x C."""
        weights = pool_weights(self.model, {f"blocks.{len(self.model.blocks) - 1}": tokens})
        return self.model.head(pooled_features(self.model, tokens, weights))


class Evidence(Program):
    """uint8 B x channels x S x S and a class of each, int64 B -> what is named in EVIDENCE, both B x G x G: gradient
    rollout, and Grad-CAM without what speaks against the class."""

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = self.normalise(images)
        relevance = gradient_rollout(*attention_gradients(self.model, images, targets))
        return to_grid(relevance).detach(), self.grad_cam(images, targets)

    def grad_cam(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """attribution.grad_cam, B x G x G, without captum, which cannot be traced."""
        model = self.model
        with torch.enable_grad():
            logits, _, hidden = model(images, return_attention=True, return_hidden=True)
            tokens = hidden[f"blocks.{len(model.blocks) - 1}.norm1"]
            if model.pool == "seq":
                tokens = model.norm(last_tokens(model, hidden))
                logits = model.head((model.seq_pool(tokens).softmax(dim=1) * tokens).sum(dim=1))
            (gradients,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), tokens)
        patches, slopes = (values[:, -(model.grid_size**2) :].detach() for values in (tokens, gradients))
        return to_grid((patches * slopes.mean(dim=1, keepdim=True)).sum(-1).clamp_min(0))


def measure(checkpoint: Checkpoint, pixels: torch.Tensor, targets: Sequence[int]) -> dict[str, torch.Tensor]:
    """What Inside and Evidence make of one image, uint8 channels x S x S, by name; of EVIDENCE one map for each class
    in `targets`: T x G x G."""
    with torch.no_grad():
        found = dict(zip(INSIDE, Inside(checkpoint)(pixels[None])))
    evidence = Evidence(checkpoint)
    maps = zip(*(evidence(pixels.expand(len(few), -1, -1, -1), few) for few in torch.tensor(targets).split(AT_ONCE)))
    return found | {name: torch.cat(several) for name, several in zip(EVIDENCE, maps)}


def removal_curves(checkpoint: Checkpoint, pixels: torch.Tensor, found: dict[str, torch.Tensor]) -> torch.Tensor:
    """Deletion and insertion (faithfulness.removal_curve) of the likeliest class of one image, uint8 channels x S x S:
    2 x maps x points. The maps are those of TESTED, of the last layer, heads averaged, and of what the head reads; the
    last curve is the mean of RANDOM_ORDERS. found: what measure gave."""
    model, target = checkpoint.model, found["logits"].argmax().view(1)
    both = torch.stack([found["attention"][-1].mean(0), found["rollout"][-1]])
    seen = to_grid(attention_from(both[None], found["weights"][None])[0])
    evidence = Evidence(checkpoint)
    image = evidence.normalise(pixels[None])
    maps = torch.cat([seen, evidence.grad_cam(image, target)]).flatten(1)
    draws = torch.rand(RANDOM_ORDERS, maps.shape[1], generator=torch.Generator().manual_seed(0))
    orders = torch.cat([maps, draws]).argsort(dim=1, descending=True, stable=True)

    def curve(start, end, orders):
        start, end = (values.expand(len(orders), -1, -1, -1) for values in (start, end))
        return removal_curve(model, start, end, orders, target.expand(len(orders)))

    blank = torch.zeros_like(image)
    deletion, random = curve(image, blank, orders).split([len(TESTED), RANDOM_ORDERS])
    insertion, random = curve(blank, image, orders[: len(TESTED)]), random.mean(dim=0, keepdim=True)
    # Uncovering in some order is hiding in the reversed one, which is random too, read backwards
    return torch.stack([torch.cat([deletion, random]), torch.cat([insertion, random.flip(1)])])
