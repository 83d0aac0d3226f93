"""Rows of ids with a part of them hidden: what an encoder learns from (Devlin et al. 2019)."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from groundup.data.windows import IGNORED

MASKED_SHARE = 0.3  # of the text tokens; Warner et al. 2024, section 2.2 (after Wettig et al. 2023: more than 15 %)


class Masking:
    """Which tokens of a row are hidden, as a pure function of the seed and the row's number in the run.

    Every hidden token becomes the mask; that some stay or become another (the 80 : 10 : 10 of Devlin et al.) was found
    to make no difference (Wettig et al. 2023, section 5). Special tokens mark structure and are never hidden.
    """

    def __init__(self, mask_id: int, special_ids: Collection[int], seed: int):
        self.mask_id, self.seed = mask_id, seed
        self._special = torch.tensor(sorted(special_ids), dtype=torch.long)

    def apply(self, input_ids: torch.Tensor, samples: Sequence[int] | npt.NDArray[Any]) -> dict[str, torch.Tensor]:
        """Ids (B, T), row b being sample `samples[b]` -> `input_ids` with masks and `labels`, both (B, T).

        Labels hold what was hidden, and -100 elsewhere.
        """
        length = input_ids.size(1)
        draws = [np.random.default_rng([self.seed, int(sample)]).random(length) for sample in samples]
        hidden = torch.from_numpy(np.stack(draws) < MASKED_SHARE) & ~torch.isin(input_ids, self._special)
        return {
            "input_ids": input_ids.masked_fill(hidden, self.mask_id),
            "labels": input_ids.masked_fill(~hidden, IGNORED),
        }
