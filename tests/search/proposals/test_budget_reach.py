"""Tests of the reach of the law that predicts losses of proposals."""

from dataclasses import replace

import pytest

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.errors import InputError
from shapelaw.search.proposals.basis import loss_basis, require_budget_in_reach
from shapelaw.search.proposals.request import Budget

TOKENS = 10**11


def test_budget_far_from_the_runs_and_the_pooled_law_is_refused_with_its_factor():
    basis = loss_basis()
    (far,) = require_budget_in_reach(basis, Budget(parameters=1_000_000_000, tokens=TOKENS), TOKENS)
    largest = max(basis.runs["n_non_embedding"])
    assert far.startswith(f"N is {float(f'{1e9 / largest:.3g}'):,.0f} times the largest run")
    huge = Budget(parameters=10**12, tokens=TOKENS)
    with pytest.raises(
        InputError, match=r"`--extrapolate` must be given .* but N is 3,310,000 times"
    ):
        require_budget_in_reach(basis, huge, TOKENS)
    (text,) = require_budget_in_reach(basis, replace(huge, extrapolate=True), TOKENS)
    assert text.startswith("N is 3,310,000 times the largest run (302K)")


def test_baseline_far_from_every_ratio_of_the_evidence_is_refused():
    basis, budget = loss_basis(), Budget(parameters=1_000_000, tokens=10**7)
    near = shape_named("llama-3.2-1b")
    assert require_budget_in_reach(basis, budget, 10**7, near) == []
    many = replace(near, num_attention_heads=64, num_key_value_heads=1)
    with pytest.raises(InputError, match=r"`--extrapolate` must .* but gqa = 64 is 9.14 times"):
        require_budget_in_reach(basis, budget, 10**7, many)
    (text,) = require_budget_in_reach(basis, replace(budget, extrapolate=True), 10**7, many)
    assert text.startswith("gqa = 64 is 9.14 times the largest of the runs (7)")
