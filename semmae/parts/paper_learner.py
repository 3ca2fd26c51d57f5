"""The part learner as the paper describes it (SemMAE, section 3.1): it refines the attention of the teacher's heads.

The class token is embedded into part tokens. Their correlation with the patches gives one attention map per part. A
StyleGAN-like decoder reconstructs the image from these maps and the class token, and a diversity loss keeps the maps
apart. No prior of position or foreground decides what a part is. docs/explanation/part_learning.md lists what the paper
leaves open.
"""

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from semmae.models.teacher import Tokens
from semmae.parts.attention_parts import kept_shares
from semmae.parts.part_method import PartMethod
from semmae.parts.soft_maps import blur
from semmae.parts.style_decoder import StyleDecoder

COPY_NOISE = 0.5  # standard deviation of the weights of a copied head, which are 1 on average
EPSILON = 1e-12  # added to attention, so that patches without attention have finite shares


class PaperPartLearner(PartMethod):
    """Part tokens from the class token, and the decoder that trains them.

    Before training, the correlation of a part token with a patch is the attention logit of a head in the teacher's last
    block; `head_weights` tells which head starts which part. So with as many parts as heads, and without blur, the
    untrained learner is the part method `attention`. The keys of the last block represent the patches.

    Args:
        config: The keys of `PartMethod`, and `blur_sigma` and `decoder_width` of `PaperLearnerConfig` in
            `semmae.training.paper_parts_loop`. `embed_dim`, `num_heads` and `patch_size` are those of the teacher.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        dim, num_parts, num_heads = config["embed_dim"], self.num_parts, config["num_heads"]
        channels = head_weights(num_parts, num_heads).repeat_interleave(dim // num_heads, dim=1)  # (p, d)
        copies = channels[num_heads:]  # empty, unless there are more parts than heads
        copies *= 1 + COPY_NOISE * torch.randn_like(copies)
        self.embed_query = nn.Linear(dim, num_parts * dim, bias=False)
        self.embed_query.weight.data.copy_(torch.diag_embed(channels).flatten(0, 1))
        last = nn.Linear(dim, num_parts * dim)
        nn.init.zeros_(last.weight)  # zero output: training starts from the attention of the heads
        nn.init.zeros_(last.bias)
        self.embed_class = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), last)
        self.decoder = StyleDecoder(num_parts, config["decoder_width"], dim, config["patch_size"])

    def attend(self, tokens: Tokens) -> Float[Tensor, "b p n"]:
        """Return the attention of each part token to the patches, which sums to 1 over the patches."""
        b, _, dim = tokens.keys.shape
        parts = (self.embed_query(tokens.query) + self.embed_class(tokens.cls)).view(b, self.num_parts, dim)
        return (parts @ tokens.keys.transpose(1, 2)).softmax(2)

    def blurred_attention(self, tokens: Tokens) -> Float[Tensor, "b p n"]:
        """Return the attention maps after the blur."""
        return blur(self.attend(tokens).unflatten(2, self.grid), self.config["blur_sigma"]).flatten(2)

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Divide each patch among the attention maps that keep it. Patches that no map keeps are the background."""
        with torch.autocast(tokens.keys.device.type, enabled=False):  # in bf16, the blur would make ties
            return kept_shares(self.blurred_attention(tokens))

    def forward(self, tokens: Tokens) -> tuple[Float[Tensor, "b p n"], Float[Tensor, "b 3 H W"]]:
        """Return the part maps, and the decoder's reconstruction of the normalized pixels from them.

        A part map holds the part's share of the attention to each patch. The shares of a patch sum to 1.
        """
        attention = self.blurred_attention(tokens) + EPSILON
        maps = attention / attention.sum(1, keepdim=True)
        return maps, self.decoder(maps.unflatten(2, self.grid), tokens.cls)


def head_weights(num_parts: int, num_heads: int) -> Float[Tensor, "p a"]:
    """Return the weight of each head's logits in the logits of each part before training.

    With as many parts as heads, head i starts part i. With fewer parts, head i belongs to part i % num_parts, and a
    part starts from the mean logits of its heads, so that no head is lost. With more parts, head i % num_heads also
    starts part i. `PaperPartLearner` gives the channels of such a copy random weights, because equal parts would get
    the same patches.
    """
    weights = torch.zeros(num_parts, num_heads)
    for i in range(max(num_parts, num_heads)):
        weights[i % num_parts, i % num_heads] = 1
    return weights / weights.sum(1, keepdim=True)
