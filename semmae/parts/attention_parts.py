"""The part method `attention`: the heads of the teacher's class token as parts ("raw attention" in SemMAE, table 4)."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from semmae.models.teacher import Tokens
from semmae.parts.part_method import PartMethod

ATTENTION_MASS = 0.6  # share of the attention of a head on the patches that it keeps (DINO, figure 1)


class AttentionParts(PartMethod):
    """Each attention head of the teacher's last block is a part; patches that no head keeps are the background.

    Args:
        config: The keys of `PartMethod`; `num_parts` is the number of heads.
    """

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Return the shares of the heads; see `kept_shares`."""
        return kept_shares(tokens.heads)


def kept_shares(attention: Float[Tensor, "b a n"]) -> Float[Tensor, "b a+1 n"]:
    """Divide each patch among the maps that keep it, in proportion to their attention; see `kept_attention`.

    Returns:
        The shares of the `a` maps, and last the background: 1 for patches that no map keeps, else 0.
    """
    kept = kept_attention(attention)
    total = kept.sum(1, keepdim=True)
    shares = torch.where(total > 0, kept / total, 0.0)
    return torch.cat([shares, (total == 0).to(shares)], dim=1)


def head_labels(attention: Float[Tensor, "b a n"]) -> Integer[Tensor, "b n"]:
    """Label each patch by the head that attends most to it, among the heads that keep the patch.

    Returns:
        Labels 0 to `a - 1`; `a` for patches that no head keeps.
    """
    return kept_shares(attention).argmax(1)


def kept_attention(attention: Float[Tensor, "b a n"]) -> Float[Tensor, "b a n"]:
    """Return the attention of each head to the patches that it keeps, and 0 for the other patches.

    A head keeps the fewest patches that hold at least `ATTENTION_MASS` of its attention.
    """
    ranked, indices = attention.sort(dim=2, descending=True, stable=True)
    before = ranked.cumsum(2) - ranked
    is_kept = before < ATTENTION_MASS * attention.sum(2, keepdim=True)
    return attention * torch.zeros_like(attention, dtype=torch.bool).scatter(2, indices, is_kept)
