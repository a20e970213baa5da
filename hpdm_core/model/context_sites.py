"""Where context enters the network, and where a level's patches are in those of the levels below.

A site is the tokenizer or a block, by its index. Two classes define what enters where, with the
same methods: `DeepContext` (before blocks, Sec. 4.2) and `ShallowContext` (tokenizer, Table 3).

- `sites(level)`: where context enters a level, in order; empty on level 0.
- `links(boxes)`: how to resample the lower levels' features at a patch.
- `term(site, lower, links)`: what the lower levels' features contribute at a site; None where
  nothing enters. It does not depend on the patch's own noise: tiled inference computes it once.
- `fuse(site, own, term)`: the patch's own features fused with that term.

Axis legend: `b` batch, `n` tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from hpdm_core.geometry.resample import Resampler

TOKENIZER = -1


@dataclass(frozen=True, kw_only=True)
class Links:
    """Position of a level's patches in those of lower levels.

    Args:
        coordinates: (b, n, 3) centres of the tokens in the full video, in [-1, 1].
        resamplers: the resampling of lower levels at the patch: of all their tokens (deep), or of
            the nearest one's pixels (shallow).
    """

    coordinates: Tensor
    resamplers: tuple[Resampler, ...]
