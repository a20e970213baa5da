"""Attention in bfloat16 on a CPU beside torch's fused kernel: `python benchmarks/attention.py`.

Seconds of a forward and backward pass, the fastest of several in turns, and the error of each
beside float32; one line of JSON for each size.

Axis legend: `b` batch, `h` heads, `n` queries, `m` keys, `d` width of a head.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hpdm_core.model.layers import attention

# (b, h, n, m, d): tokens of a tiny recipe's patch, a text that they read, latents that read them.
SIZES = {
    "tokens": (8, 3, 256, 256, 64),
    "text": (8, 3, 192, 17, 64),
    "latents": (8, 6, 48, 256, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, (b, h, n, m, d) in SIZES.items():
        torch.manual_seed(0)
        narrow = [torch.randn(b, h, k, d, dtype=torch.bfloat16).requires_grad_() for k in (n, m, m)]
        ways = {"ours": attention, "fused": F.scaled_dot_product_attention}
        seconds = dict.fromkeys(ways, float("inf"))
        for _ in range(options.rounds):
            for way, function in ways.items():
                seconds[way] = min(seconds[way], _seconds(function, narrow))
        exact = F.scaled_dot_product_attention(*(x.detach().float() for x in narrow))
        errors = {
            way: ((f(*narrow).float() - exact).norm() / exact.norm()).item()
            for way, f in ways.items()
        }
        result = {"of": name, "size": [b, h, n, m, d], "threads": options.threads}
        result |= {"seconds": seconds, "error": errors, "ratio": seconds["fused"] / seconds["ours"]}
        print(json.dumps(result))


def _seconds(function: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    begun = time.perf_counter()
    function(*inputs).sum().backward()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
