"""Decoders of diffusion models in loops over single tokens, without a cache.

They follow the descriptions of the papers, and share no code with the decoders of the package but
the forward pass of the model.
"""

import math
from dataclasses import dataclass, field

import torch

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.visibility import FULL, Visibility


@dataclass
class SlowDecoder:
    """One sequence, its tokens as a list; ``None`` is an undecided token."""

    model: Transformer
    prompt: list[int]
    length: int
    block: int
    temperature: float = 0.0
    seed: int = 0
    end: int | None = None
    end_last: bool = False
    forwards: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text: list[int | None] = [None] * self.length
        self.noise = torch.Generator().manual_seed(self.seed)
        mask = self.model.architecture.embedding.mask_token
        assert mask is not None
        self.mask = mask

    @torch.no_grad()
    def guesses(
        self, positions: list[int], shown: int, visibility: Visibility
    ) -> dict[int, tuple[int, float]]:
        """Return the token and the confidence of each undecided position of some."""
        filled = [self.mask if token is None else token for token in self.text[:shown]]
        hidden = self.model(torch.tensor([self.prompt + filled]), visibility=visibility)[0]
        self.forwards += 1
        result = {}
        for position in positions:
            if self.text[position] is not None:
                continue
            logits = self.model.logits(hidden[len(self.prompt) + position]).clone()
            self.logits.append(logits.clone())
            row = [float(value) for value in logits]
            row[self.mask] = -math.inf
            largest = max(row)
            weights = [math.exp(value - largest) for value in row]
            scores = row
            if self.temperature:
                uniform = torch.rand(len(row), dtype=torch.float64, generator=self.noise).tolist()
                scores = [
                    value / self.temperature - math.log(-math.log(u))
                    for value, u in zip(row, uniform, strict=True)
                ]
            token = scores.index(max(scores))
            confidence = weights[token] / sum(weights)
            if self.end_last and token == self.end:
                confidence -= 1
            result[position] = token, confidence
        return result

    def stopped(self) -> bool:
        """Return whether the text is decided up to its first end token."""
        if self.end is None or self.end not in self.text:
            return None not in self.text
        return None not in self.text[: self.text.index(self.end)]

    def result(self) -> list[int]:
        """Return the tokens, end tokens after the first one."""
        if self.end is not None and self.end in self.text:
            first = self.text.index(self.end)
            self.text[first:] = [self.end] * (self.length - first)
        return [-1 if token is None else token for token in self.text]

    def whole(self, *, steps: int | None = None, confidence: float | None = None) -> list[int]:
        """Decode as LLaDA (a number of passes per block), or as Fast-dLLM (a confidence)."""
        for begin in range(0, self.length, self.block):
            places = list(range(begin, begin + self.block))
            left = self.block
            remaining = steps
            while any(self.text[place] is None for place in places):
                guesses = self.guesses(places, self.length, FULL)
                order = sorted(guesses, key=lambda place: -guesses[place][1])
                if remaining is not None:
                    number = math.ceil(left / remaining)
                    left, remaining = left - number, remaining - 1
                    chosen = order[:number]
                else:
                    assert confidence is not None
                    chosen = [p for p in order if guesses[p][1] > confidence] or order[:1]
                for place in chosen:
                    self.text[place] = guesses[place][0]
                if self.stopped():
                    return self.result()
        return self.result()

    def pipelined(self, *, confidence: float, add: float, activate: float) -> list[int]:
        """Decode as D2F: blocks go from active to to-cache to cached."""
        visibility = Visibility("block", self.block, len(self.prompt))
        states: list[str] = ["active"]

        def share(block: int) -> float:
            part = self.text[block * self.block : (block + 1) * self.block]
            return sum(token is not None for token in part) / self.block

        while not self.stopped():
            for block, state in enumerate(states):
                before = block == 0 or states[block - 1] in ("to-cache", "cached")
                if state == "active" and before and share(block) == 1:
                    states[block] = "to-cache"
            last, ended = len(states) - 1, self.end is not None and self.end in self.text
            room = len(states) * self.block < self.length
            if share(last) >= add and room and not ended:
                states.append("active")
            places = range(len(states) * self.block)
            guesses = self.guesses(list(places), len(places), visibility)
            ready = [block == 0 or share(block - 1) >= activate for block in range(len(states))]
            for block, state in enumerate(states):
                own = [p for p in guesses if p // self.block == block]
                if state != "active":
                    assert not own
                    continue
                chosen = [p for p in own if guesses[p][1] > confidence]
                if not chosen and own and ready[block]:
                    chosen = [max(own, key=lambda p: guesses[p][1])]
                for place in chosen:
                    self.text[place] = guesses[place][0]
            states = ["cached" if state == "to-cache" else state for state in states]
        return self.result()
