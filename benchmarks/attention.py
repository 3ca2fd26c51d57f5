"""Find the smallest number of patches with which fused attention is faster on this CPU.

    OMP_NUM_THREADS=1 python -m benchmarks.attention [--sizes 96 128 160 192 224] [--batch 32] [--rounds 5]

The result is the constant `vit.FUSED_ATTENTION_MIN_PATCHES`. The network has the shape of the teacher of
recipes/creatures.yaml (patch 8, width 192, 6 blocks), without training. Its forward pass returns the attention of the
class token too. It uses `scaled_dot_product_attention` and explicit matrix products in turn. The table gives CPU
milliseconds per image, the median over rounds.
"""

import argparse
import time
from statistics import median

import torch

from semmae.core import distributed
from semmae.models import vit

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 160, 192, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    network = vit.build({"img_size": 96, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 6}).eval()
    print(f"{'pixels':>6s} {'patches':>8s} {'precision':>10s} {'fused':>8s} {'explicit':>9s} {'ratio':>6s}")
    for size in args.sizes:
        images = torch.randint(0, 256, (args.batch, 3, size, size), dtype=torch.uint8)
        for precision in ("bf16", "fp32"):
            fused, explicit = compare_attention(network, images, precision, args.rounds)
            row = f"{size:6d} {(size // 8) ** 2:8d} {precision:>10s} {fused:8.2f} {explicit:9.2f}"
            print(f"{row} {explicit / fused:6.2f}")


@torch.no_grad()
def compare_attention(
    network: vit.Network, images: torch.Tensor, precision: distributed.Precision, rounds: int
) -> tuple[float, float]:
    """Return the milliseconds per image with fused attention and with explicit products."""
    milliseconds: dict[int, list[float]] = {vit.FUSED_ATTENTION_MIN_PATCHES: [], 0: []}
    for number in range(rounds + 1):  # the first round is a warm-up
        for patches, times in milliseconds.items():
            vit.use_fastest_attention(network, CPU, frozen_grid=(patches,))
            start = time.process_time()
            with distributed.autocast(CPU, precision):
                vit.class_attention(network, vit.normalize(images))
            if number:
                times.append(1000 * (time.process_time() - start) / len(images))
    return median(milliseconds[vit.FUSED_ATTENTION_MIN_PATCHES]), median(milliseconds[0])


if __name__ == "__main__":
    main()
