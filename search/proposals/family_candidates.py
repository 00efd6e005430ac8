"""Candidate models of a family for a budget of active parameters, within the range of a law."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.filters import names_in
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.runs.columns import EXPERT_RATIOS, D, N
from shapelaw.scaling.runs.expert_ratios import expert_ratios
from shapelaw.scaling.space.family_table import FamilyTable
from shapelaw.search.proposals.basis import LossBasis
from shapelaw.search.proposals.candidate_set import (
    CandidateSet,
    cheapest,
    in_range,
    require_tokens_in_law,
    within_loss_limit,
)
from shapelaw.search.proposals.family_request import FamilyRequest

ACTIVE = "n_active_non_embedding"
COUNTS = ("n_total", "n_active", "n_non_embedding", ACTIVE)
EQUAL_SPARSITY = 1.05  # ratio of all over active parameters that counts as the baseline's
# Columns of a law that price a field; other fields have no term in any law.
PRICES: dict[str, set[str]] = {
    "gqa": {"gqa"},
    "num_hidden_layers": {"num_hidden_layers", "aspect_ratio"},
    "head_dim": {"head_dim"},
    "sparsity": {"sparsity", "expert_sparsity"},
    "num_experts": {"sparsity", "expert_sparsity"},
    "num_local_experts": {"sparsity", "expert_sparsity"},
    "n_routed_experts": {"sparsity", "expert_sparsity"},
    "num_experts_per_tok": {"active_experts"},
    "n_shared_experts": {"active_experts"},
    "num_shared_experts": {"active_experts"},
}


def family_candidates(request: FamilyRequest, basis: LossBasis) -> CandidateSet:
    """Enumerate the models of the baseline's active size and keep those near the range of a law.

    The baseline is always a candidate, and others may lie as far outside of the fitted ratios as it
    does. Losses are predicted at exactly its active N. Models that differ from it in one field
    without a term in the law are candidates of their own kind; those that differ in several are
    none, so that each of these fields is seen alone.

    Raises
    ------
    InputError
        No model lies within the fitted ranges and the loss limit, or tokens of a training time
        change no loss of the law.
    """
    every, baseline = request.shape_space.enumerate().with_model(request.baseline)
    require_tokens_in_law(request, basis.fit)
    differing = differing_fields(request, basis.fit.law, every, baseline)
    accepted = accepted_fields(request)
    missing = {name: mask for name, mask in differing.items() if name not in accepted}
    alone = sum((mask.astype(int) for mask in missing.values()), np.zeros(len(every), int)) <= 1
    alone[baseline] = True
    table, baseline = every.take(alone), int(alone[:baseline].sum())
    differing = {name: mask[alone] for name, mask in differing.items()}
    kinds = np.zeros(len(table), dtype=int)
    for number, name in enumerate(missing, start=1):
        kinds[differing[name]] = number
    mask = in_range(table, baseline, basis.fit, as_baseline=True)
    frame = at_equal_size(table, baseline, request, basis.fit)
    losses = basis.fit.expected(frame)
    mask = within_loss_limit(mask, losses, baseline, request.space.max_loss_ratio)
    mask[baseline] = True
    rates = request.serving.engine.speeds(table, request.serving.workload)[0]  # type: ignore[arg-type]
    cost = 1 / np.where(rates > 0, rates, np.nan)
    for kind in set(kinds[mask]) - {0}:
        mask &= (kinds != kind) | cheapest(losses, cost, mask & (kinds == kind))
    return CandidateSet(
        request=request,
        basis=basis,
        table=table.take(mask),  # type: ignore[arg-type]
        frame=frame[mask].reset_index(drop=True),
        losses=losses[mask],
        baseline=int(mask[:baseline].sum()),
        enumerated=len(every),
        not_in_law={name: differs[mask] for name, differs in differing.items()},
        kinds=kinds[mask],
    )


def differing_fields(
    request: FamilyRequest, law: Law, table: FamilyTable, baseline: int
) -> dict[str, np.ndarray]:
    """Return by field without a term in the law which models differ in it, (n,) each.

    ``sparsity`` differs where narrower experts alone change all over active parameters by more than
    5 %: at equal active N, such a model has fewer parameters.
    """
    axes, columns = request.shape_space.axes, set(law.columns)
    own = [name for name in (*axes.sizes, *axes.structure, "layer_types", "canon_set")
           if name in table.fields]  # fmt: skip
    values = {
        "gqa": table.gqa, "num_hidden_layers": table.num_hidden_layers, "head_dim": table.head_dim,
        **{name: table.texts(name) for name in own},
    }  # fmt: skip
    differs = {name: value != value[baseline] for name, value in values.items()}
    ratio = table.counted_as("sparsity") / table[baseline].sparsity
    experts = [mask for name, mask in differs.items() if PRICES.get(name, set()) & {*EXPERT_RATIOS}]
    differs["sparsity"] = np.abs(np.log(ratio)) > np.log(EQUAL_SPARSITY)
    for mask in experts:  # a change of sparsity is that of the number of experts
        differs["sparsity"] &= ~mask
    differing = {n: mask for n, mask in differs.items() if not PRICES.get(n, set()) & columns}
    return {name: mask for name, mask in differing.items() if mask.any()}


def accepted_fields(request: FamilyRequest) -> set[str]:
    """Return the fields of which a request accepts a change at no loss, by naming them."""
    axes = request.shape_space.axes
    named = set().union(*map(names_in, request.space.where))
    accepted = set(named)
    if named & {"gqa", axes.groups}:
        accepted.add("gqa")
    if axes.layers in named or request.space.layers is not None:
        accepted.add("num_hidden_layers")
    if request.space.head_dims is not None:
        accepted.add("head_dim")
    return accepted


def at_equal_size(
    table: FamilyTable, baseline: int, request: FamilyRequest, fit: Fit
) -> pd.DataFrame:
    """Return the columns of models for a law, with the active parameters of exactly the baseline.

    A law of dense models counts active parameters as its N; one with terms of experts counts as it
    was fitted.
    """
    frame = columns_for_laws(table)
    lacking = frame[request.shape_space.counted].iloc[baseline] - frame[request.shape_space.counted]
    moved = frame[[*COUNTS]].add(lacking, axis=0)
    if not set(EXPERT_RATIOS) & set(fit.law.columns):
        moved[N] = moved[ACTIVE]
    tokens = request.budget.tokens_of(table, lacking.to_numpy())  # type: ignore[arg-type]
    return frame.assign(**{name: moved[name] for name in COUNTS}, **{D: tokens})


def columns_for_laws(table: FamilyTable) -> pd.DataFrame:
    """Return the sizes, counts and ratios of models that laws may have terms for."""
    names = (*INTEGER_FIELDS, *COUNTS, *RATIOS, "aspect_ratio", "sparsity")
    columns = {name: table.counted_as(name) for name in names}
    for name in EXPERT_RATIOS:
        if name not in columns:
            columns[name] = table.counted(partial(_expert_ratio, name))
    return pd.DataFrame(columns)


def _expert_ratio(name: str, part: Architecture) -> Any:
    return expert_ratios(part)[name]
