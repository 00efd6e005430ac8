"""Choice of the masked positions that a forward pass decides, and of their tokens.

Shape letters: B sequences, n positions, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shapelaw.trainers.generation.decoding_settings import DecodingSettings


class Acceptance:
    """Rule of a decoder: tokens by their logits, positions by their confidence.

    Parameters
    ----------
    settings
        Settings of the decoder.
    mask
        Mask token, whose logit the model sets to minus infinity; -1 without one.
    batch
        Sequences; each has random numbers of its own.
    """

    def __init__(self, settings: DecodingSettings, *, mask: int, batch: int) -> None:
        self.settings, self.mask = settings, mask
        self.generators = [
            torch.Generator().manual_seed(settings.seed + 2**32 * row) for row in range(batch)
        ]

    def choose(self, logits: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Choose a token for each position, by logits (n, V).

        Parameters
        ----------
        logits
            Logits, those of the first sequence first.
        counts
            Positions of each sequence.

        Returns
        -------
        Tokens, (n,), and the probability of each, (n,). Noise in float64 samples the tokens
        (arXiv 2409.02908) and is not in the probabilities.
        """
        if not self.settings.temperature:
            best, tokens = logits.max(dim=-1)
            return tokens, (best - logits.logsumexp(-1)).exp()
        noise = torch.cat(
            [
                torch.rand(count, logits.shape[1], dtype=torch.float64, generator=generator)
                for count, generator in zip(counts, self.generators, strict=True)
            ]
        ).to(logits.device)
        logits = logits.double()
        tokens = (logits / self.settings.temperature - (-noise.log()).log()).argmax(-1)
        return tokens, logits.softmax(-1).gather(1, tokens[:, None])[:, 0]

    def decide(self, region: Tensor, logits: Tensor, forced: Sequence[bool], number: int) -> None:
        """Replace masked tokens of blocks by those that this pass decides.

        Parameters
        ----------
        region
            Tokens of whole blocks, (B, n); changed in place.
        logits
            Logits of the masked positions, those of the first sequence first.
        forced
            Blocks that decide at least their best position.
        number
            Positions that each block decides; 0 if confidence does.
        """
        masked = region == self.mask
        chosen, confidence = region.clone(), torch.full(region.shape, -2.0, device=region.device)
        counts = masked.sum(1).tolist() if self.settings.temperature else []
        tokens, probability = self.choose(logits, counts)
        chosen[masked] = tokens
        if self.settings.end_last and self.settings.end is not None:
            probability = probability - (tokens == self.settings.end).int()  # below all others
        confidence[masked] = probability.float()
        blocks = confidence.view(len(region), len(forced), -1)
        best = blocks.topk(number or 1, dim=-1).indices
        decided = torch.zeros(blocks.shape, dtype=torch.bool, device=region.device)
        decided.scatter_(2, best, True)
        if not number:
            if not all(forced):
                decided &= torch.tensor(forced, device=region.device)[:, None]
            decided |= blocks > self.settings.confidence
        region.copy_(torch.where(decided.view(region.shape) & masked, chosen, region))
