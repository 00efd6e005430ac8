"""Masked and block diffusion: cross-entropy of masked tokens, and the bound on the likelihood.

    loss = Σ over masked tokens of w·CE(token | the visible ones) / normaliser

Masked diffusion (arXiv 2502.09992) sees the unmasked tokens of the whole sequence. Block diffusion
(arXiv 2503.09573) sees those of the token's own block and the clean text of the earlier blocks, in
one pass over the noisy and the clean sequence, 2T tokens.

The held-out loss is the exact-l bound: of the L tokens of each block, l ~ U{1..L} are masked, and
the block's loss is (L/l)·Σ CE. Its mean equals the average over all orders of the tokens of the
autoregressive loss, which is an upper bound on -ln p, in nats per token.

Shape letters: S sequences, T tokens of each, n blocks of a sequence, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.visibility import FULL, Visibility
from shapelaw.trainers.objectives.objective import Batch, precision
from shapelaw.trainers.optimizers.noise import Noise
from shapelaw.trainers.optimizers.recipe import Recipe

BOUND_DRAWS = 4  # of masks of each held-out sequence


@dataclass(frozen=True)
class Diffusion:
    """Masked diffusion over blocks of a sequence.

    The tokens of a batch are the same as those that next-token prediction predicts: all but the
    first of each sequence.

    Parameters
    ----------
    recipe
        Recipe of the run, for the number format.
    block
        Tokens of a block; 0 for one block of the whole sequence (masked diffusion).
    noise
        Mask rates, weights and normaliser of training.
    """

    recipe: Recipe
    block: int
    noise: Noise

    def draw(self, sequences: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw the noise of a batch: (S, T + n), uniform numbers of tokens, then rates of blocks.

        A token is masked where its number is below the rate of its block.
        """
        blocks = self._blocks(length)
        size, device = (sequences, blocks), generator.device
        numbers = torch.rand((sequences, length), generator=generator, device=device)
        draws = torch.rand(size, generator=generator, device=device)
        noise = self.noise
        if noise.draw == "monotone":
            first = noise.low + (noise.high - noise.low) * draws[:, :1]
            steps = draws[:, 1:] * (noise.high - first) / max(blocks - 1, 1)
            rates = torch.cat((first, first + steps.cumsum(dim=1)), dim=1)
        else:
            if noise.draw == "sequence":
                draws = draws[:, :1]
            if noise.stratified:
                order = torch.rand(draws.numel(), generator=generator, device=device).argsort()
                draws = (order.view_as(draws) + draws) / draws.numel()
            rates = noise.epsilon + (1 - noise.epsilon) * draws
            rates = (noise.low + (noise.high - noise.low) * rates).expand(size)
        return torch.cat((numbers, rates), dim=1)

    def loss(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the training loss and the number of tokens that normalises it."""
        clean = batch.tokens[:, 1:]
        sequences, length = clean.shape
        drawn = batch.noise
        if drawn is None:
            drawn = self.draw(sequences, length, generator).to(clean.device)
        rates = drawn[:, length:].repeat_interleave(length // self._blocks(length), dim=1)
        masked = drawn[:, :length] < rates
        maskable = torch.ones_like(masked) if batch.mask is None else batch.mask
        masked = masked & maskable
        losses = self.token_losses(model, batch, masked) * self._weights(rates)
        counts = {
            "length": torch.ones_like(masked),
            "maskable": maskable,
            "masked": masked,
        }
        count = counts[self.noise.normaliser].sum().float()
        return losses.sum() / count.clamp(min=1), count

    def held_out_losses(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the exact-l bound of each sequence, on its masked tokens.

        It is the mean of a few draws of masks, whose numbers of masked tokens l are one in each of
        equal parts of 1 to L: most of the variation of a single draw is that of l.
        """
        clean = batch.tokens[:, 1:]
        blocks = self._blocks(clean.shape[1])
        maskable = torch.ones_like(clean, dtype=torch.bool) if batch.mask is None else batch.mask
        draws = 1 if self.block == 1 else BOUND_DRAWS
        losses = torch.zeros((), device=clean.device)
        for part in range(draws):
            size = (len(clean), blocks)
            quantiles = torch.rand(size, generator=generator, device=generator.device) + part
            numbers = torch.rand(clean.shape, generator=generator, device=generator.device)
            masked, weights = mask_exactly(numbers.to(clean.device), maskable,
                                            quantiles.to(clean.device) / draws)  # fmt: skip
            losses = losses + self.token_losses(model, batch, masked) * weights / draws
        return losses, maskable.float()

    def token_losses(self, model: Transformer, batch: Batch, masked: Tensor) -> Tensor:
        """Compute the cross-entropy of each masked token, (S, T); 0 for the others.

        Raises
        ------
        InputError
            The model has no mask token.
        """
        if model.mask_token is None:
            raise InputError(
                "`mask_token_id` of a model must be set for a diffusion objective, but it has "
                "none; add one token to the vocabulary and name it in the config"
            )
        clean = batch.tokens[:, 1:]
        noisy = torch.where(masked, model.mask_token, clean)
        documents = None if batch.documents is None else batch.documents[:, 1:]
        with precision(clean, self.recipe):
            if self._blocks(clean.shape[1]) == 1:
                hidden = model(noisy, visibility=FULL, documents=documents)
            else:
                if documents is not None:
                    documents = torch.cat((documents, documents), dim=1)
                both = torch.cat((noisy, clean), dim=1)
                visibility = Visibility("noisy_and_clean", self.block)
                hidden = model(both, visibility=visibility, documents=documents)
                hidden = hidden[:, : clean.shape[1]]
            logits = model.logits(hidden)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
        losses = F.cross_entropy(exact, clean.flatten(), reduction="none")
        return torch.where(masked, losses.view_as(clean), 0.0)

    def _blocks(self, length: int) -> int:
        """Return the number of blocks of a sequence.

        Raises
        ------
        InputError
            The block does not divide the length.
        """
        if not self.block:
            return 1
        if length % self.block:
            raise InputError(
                f"the block of `objective` must divide the length of the sequences, but got "
                f"{self.block} and {length}; give another block or length"
            )
        return length // self.block

    def _weights(self, rates: Tensor) -> Tensor:
        """Return the weight of each masked token, (S, T)."""
        if self.noise.weight == "none":
            return torch.ones_like(rates)
        return 1 / (rates + 1e-6 * (self.noise.weight == "1/(t + 1e-6)"))


def mask_exactly(numbers: Tensor, maskable: Tensor, quantiles: Tensor) -> tuple[Tensor, Tensor]:
    """Mask exactly l of the L maskable tokens of each block, and return their weights L/l.

    Parameters
    ----------
    numbers
        Uniform numbers, (S, T): the tokens of a block with the l smallest ones are masked.
    maskable
        True for the tokens that may be masked, (S, T).
    quantiles
        Uniform numbers of blocks, (S, n), of which l = 1 + floor(L·number).

    Returns
    -------
    The masked tokens and the weights, (S, T) each.
    """
    sequences, blocks = quantiles.shape
    sizes = maskable.view(sequences, blocks, -1).sum(dim=2)
    chosen = (quantiles * sizes).floor().clamp(max=(sizes - 1).clamp(min=0)) + 1
    grouped = numbers.masked_fill(~maskable, 2.0).view(sequences, blocks, -1)
    ranks = grouped.argsort(dim=2).argsort(dim=2)
    masked = (ranks < chosen[:, :, None]).view_as(maskable) & maskable
    return masked, (sizes / chosen).repeat_interleave(numbers.shape[1] // blocks, dim=1)
