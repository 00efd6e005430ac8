"""Tables as other people keep them: names of columns, units of losses, statuses, contradictions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.commands.predicting import read_shapes
from shapelaw.scaling.commands.table_options import RowOptions
from shapelaw.scaling.decisions.decide import decide
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.mapping import ColumnMapping
from shapelaw.scaling.runs.summary import describe
from shapelaw.search.proposals.basis import LossBasis

N, D = np.array([5e7, 5e7, 2e8, 2e8, 8e8, 8e8]), np.array([1e9, 4e9, 4e9, 2e10, 2e10, 8e10])
LOSS = 1.8 + 480 / N**0.35 + 2000 / D**0.37


def table(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"n_non_embedding": N, "tokens": D, "loss": LOSS} | columns)


def test_well_known_names_are_refused_with_the_options_to_type() -> None:
    frame = pd.DataFrame({"C": 6 * N * D, "N": N, "D": D, "loss": LOSS})
    with pytest.raises(InputError, match="type --columns D=tokens,N=n_non_embedding") as error:
        load_runs(frame)
    assert "N=n_total if N counts embeddings too" in str(error.value)
    runs = load_runs(frame, columns="N=n_non_embedding,D=tokens")
    assert runs.sizes.tolist() == N.tolist()
    assert runs.tokens.tolist() == D.tolist()
    assert "column N of the file is n_non_embedding" in runs.notes


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ({"n_params": N, "train_tokens": D, "val_loss": LOSS}, "val_loss=loss"),
        ({"n_non_embedding": N, "tokens": D, "eval/loss": LOSS}, "eval/loss=loss"),
        ({"n_non_embedding": N, "tokens": D, "val_bpb": LOSS / 4}, '--loss-unit "bits per byte"'),
        ({"params": N, "tokens": D, "ppl": np.exp(LOSS)}, '--loss-unit "perplexity"'),
        ({"n_total": N, "flops": 6 * N * D, "loss": LOSS}, "tokens=flops/(6*n_total)"),
    ],
)
def test_options_suggested_for_a_foreign_table_load_it(
    names: dict[str, np.ndarray], options: str
) -> None:
    frame = pd.DataFrame(names)
    with pytest.raises(InputError, match="type --columns") as error:
        load_runs(frame)
    text = str(error.value).split("type ")[1]
    assert options.strip() in text
    words = text.replace('"', "").split(" (with")[0].split("--")[1:]
    given = dict(word.strip().split(" ", 1) for word in words)
    runs = load_runs(frame, columns=given["columns"], loss_unit=given.get("loss-unit"))
    np.testing.assert_allclose(runs.tokens, D)
    np.testing.assert_allclose(runs.losses, LOSS / 4 if "val_bpb" in names else LOSS)


def test_tokens_derived_from_flops_are_recorded_in_the_fit(tmp_path: Path) -> None:
    frame = pd.DataFrame({"flops": 6 * N * D, "N": N, "loss": LOSS})
    runs = load_runs(frame, columns="N=n_non_embedding,tokens=flops/(6*N)")
    np.testing.assert_allclose(runs.tokens, D)
    fitted = fit("chinchilla", runs, prior="none", starts=16, resamples=0)
    assert any("tokens is flops/(6*N) of the file" in note for note in fitted.notes)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("N", "must be OLD=NEW or NEW=EXPRESSION"),
        ("x=unknown", "must name columns of"),
        ("n_non_embedding=loss", "would have `loss` twice"),
        ("extra=unknown/2", "names the column 'unknown'"),
        ("extra=tokens/(", "a filter must be"),
        ("extra=__import__('os')", "may hold columns"),
    ],
)
def test_mapping_that_cannot_be_applied_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        load_runs(table(), columns=text)


def test_mapping_parses_names_expressions_and_columns_to_ignore() -> None:
    mapping = ColumnMapping.parse("eval/loss=loss, tokens = 1e6*steps ,epochs=")
    assert mapping.renamed == {"eval/loss": "loss"}
    assert mapping.derived == {"tokens": "1e6*steps"}
    assert mapping.ignored == ("epochs",)
    assert ColumnMapping.parse({"N": "n_total"}).renamed == {"N": "n_total"}


def test_name_on_the_right_may_be_the_column_of_the_file() -> None:
    frame = pd.DataFrame({"n_embd": N, "D": D, "loss": LOSS, "flops": 6 * N * D})
    runs = load_runs(frame, columns="n_non_embedding=n_embd,tokens=D")
    np.testing.assert_allclose(runs.sizes, N)
    np.testing.assert_allclose(runs.tokens, D)


def test_names_of_a_tracker_and_of_small_trainers_are_suggested() -> None:
    frame = pd.DataFrame(
        {"Name": list("abcdef"), "State": "finished", "config.n_embd": 64, "config.n_layer": 2,
         "config.n_head": 4, "config.train_tokens": D, "eval/loss": LOSS}
    )  # fmt: skip
    with pytest.raises(InputError, match="type --columns") as error:
        load_runs(frame)
    parts = ("eval/loss=loss", "config.train_tokens=tokens", "config.n_embd=hidden_size",
             "config.n_layer=num_hidden_layers", "config.n_head=num_attention_heads")  # fmt: skip
    for part in parts:
        assert part in str(error.value)
    assert "12*" not in str(error.value), "names with dots cannot stand in an expression"


def test_suggestion_without_a_count_has_the_formula_of_small_trainers() -> None:
    width, depth = np.array([256, 384, 512, 640, 768, 896]), np.array([4, 6, 8, 10, 12, 14])
    frame = pd.DataFrame({"n_embd": width, "n_layer": depth, "train_tokens": D, "val_loss": LOSS})
    with pytest.raises(InputError, match="type --columns") as error:
        load_runs(frame)
    formula = "n_non_embedding=12*n_layer*n_embd*n_embd"
    assert formula in str(error.value)
    mapping = "val_loss=loss,train_tokens=tokens,n_embd=hidden_size,n_layer=num_hidden_layers"
    runs = load_runs(frame, columns=f"{mapping},{formula}")
    np.testing.assert_allclose(runs.sizes, 12.0 * depth * width**2)


def test_counts_with_suffixes_are_numbers() -> None:
    sizes = ["50M", "50m", "0.2B", "200M", "0.8b", "800000K"]
    runs = load_runs(table(n_non_embedding=sizes))
    np.testing.assert_allclose(runs.sizes, N)


# ---- units of losses


def test_perplexity_becomes_its_logarithm() -> None:
    runs = load_runs(table(loss=np.exp(LOSS)), loss_unit="ppl")
    np.testing.assert_allclose(runs.losses, LOSS)
    assert runs.loss_unit == "nats per token"


@pytest.mark.parametrize("unit", ["bits per byte", "bits per character"])
def test_fit_of_another_unit_has_that_unit_on_every_number(unit: str, tmp_path: Path) -> None:
    runs = load_runs(table(loss=LOSS / 4, loss_unit=unit))
    assert runs.loss_unit == unit
    fitted = fit("chinchilla", runs, starts=16, resamples=64)
    fitted.save(tmp_path / "fit.json")
    loaded = Fit.load(tmp_path / "fit.json")
    assert loaded.loss_unit == unit
    short = unit.replace(" per ", "/")
    assert set(loaded.frame()["unit"]) == {short, ""}
    assert "nats" not in str(loaded)
    decided = decide(loaded, runs.frame)
    assert f"difference_{unit.replace(' ', '_')}" in decided
    assert not any("nats" in name for name in decided)


def test_unlabelled_losses_below_any_published_law_need_their_unit() -> None:
    frame = table(loss=LOSS / 5)
    with pytest.raises(InputError, match=r"cannot be nats per token at N = 5e\+07.*--loss-unit"):
        load_runs(frame)
    assert load_runs(frame, loss_unit="nats").loss_unit == "nats per token"
    assert len(load_runs(table(loss=LOSS / 5, vocab_size=256))) == len(N)  # bytes


def test_normalised_losses_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="a normalised loss has no scale to extrapolate"):
        load_runs(table(), loss_unit="normalised")


def test_unit_of_the_option_must_agree_with_the_column() -> None:
    with pytest.raises(InputError, match="says nats per token, but `--loss-unit` is bits per byte"):
        load_runs(table(loss_unit="nats"), loss_unit="bpb")


# ---- statuses and infinite losses


def test_failed_runs_and_infinite_losses_are_counted_in_one_message() -> None:
    frame = table(State=["finished", "Completed", "crashed", "failed", "success", "killed"])
    frame.loc[0, "loss"] = np.inf
    frame.loc[3, "loss"] = np.nan
    with pytest.raises(InputError, match="but 4 of 6 rows have not") as error:
        load_runs(frame)
    for part in ("1 crashed", "1 killed", "1 no finite loss", "--drop-failed", "lines 2, 4, 5, 7"):
        assert part in str(error.value)
    assert load_runs(frame, drop_failed=True)["run_id"].tolist() == ["row-3", "row-6"]


@pytest.mark.parametrize("word", ["done", "finished", "COMPLETED", "success"])
def test_words_for_done_keep_a_run(word: str) -> None:
    assert len(load_runs(table(status=word))) == len(N)


def test_column_state_of_another_meaning_is_no_status() -> None:
    assert len(load_runs(table(state=["CA", "NY", "CA", "TX", "NY", "CA"]))) == len(N)


# ---- contradictions


def test_epochs_that_contradict_unique_tokens_are_refused_with_their_lines() -> None:
    frame = table(epochs=1.0, unique_tokens=[1e9, 2e9, 4e9, 4e9, 2e10, 8e10])
    with pytest.raises(InputError, match=r"lines 3, 5: `epochs = tokens / unique_tokens`"):
        load_runs(frame)
    assert len(load_runs(frame, columns="epochs=")) == len(N)
    assert len(load_runs(table(epochs=D / 1e9, unique_tokens=1e9))) == len(N)


def test_all_contradictions_of_a_table_are_named_at_once_and_ignored_together() -> None:
    flops = 6 * N * D
    frame = table(epochs=1.0, unique_tokens=D / np.array([1, 2, 1, 3, 1, 1]))
    frame["flops_6nd"] = flops / np.array([1, 2, 1, 3, 1, 1])
    with pytest.raises(InputError) as error:
        load_runs(frame)
    text = str(error.value)
    assert "lines 3, 5: `epochs = tokens / unique_tokens` must hold, but the first has 1" in text
    assert "nor does `flops_6nd = 6 N D` in 2 rows" in text
    assert len(text) <= 300
    runs = load_runs(frame, columns=text.rpartition("--columns ")[2])
    (warning,) = runs.warnings
    assert warning.startswith("2 of 6 rows trained on repeated text, up to 3.00 epochs")


def test_flops_that_contradict_6nd_are_refused_unless_another_count_agrees() -> None:
    frame = table(flops_6nd=6 * N * D * [1, 1.2, 1, 4, 1, 1])
    with pytest.raises(InputError, match=r"line 5: `flops_6nd = 6 N D` must hold"):
        load_runs(frame)
    assert len(load_runs(frame.assign(n_total=N * [1, 1, 1, 4, 1, 1]))) == len(N)


def test_parameters_that_contradict_the_shape_are_refused() -> None:
    shape = Shape(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, head_dim=64, vocab_size=32_000,
    )  # fmt: skip
    fields = {
        name: getattr(shape, name)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
                     "num_attention_heads", "num_key_value_heads", "vocab_size")
    }  # fmt: skip
    frame = pd.DataFrame({"tokens": D, "loss": LOSS, **fields})
    assert len(load_runs(frame.assign(n_total=shape.n_total * 1.01))) == len(D)
    with pytest.raises(InputError, match="counted from the shape, within 2 % must hold"):
        load_runs(frame.assign(n_total=shape.n_total * 1.03))


GPT2 = {  # of openai-community/gpt2, -medium and -large: published counts of parameters
    "hidden_size": [768, 1024, 1280], "intermediate_size": [3072, 4096, 5120],
    "num_hidden_layers": [12, 24, 36], "num_attention_heads": [12, 16, 20],
    "num_key_value_heads": [12, 16, 20], "head_dim": 64, "vocab_size": 50257,
    "tokens": [2e9, 4e9, 8e9], "loss": [3.4, 3.2, 3.0],
}  # fmt: skip
GPT2_COUNTS = [124_439_808, 354_823_168, 774_030_080]


def test_shapes_without_a_gate_are_counted_with_two_matrices() -> None:
    for frame, columns in (
        (pd.DataFrame(GPT2), "gated=0"),
        (pd.DataFrame({**GPT2, "gated": "false"}), None),
        (pd.DataFrame({**GPT2, "hidden_act": "gelu_new"}), None),
    ):
        runs = load_runs(frame, columns=columns)
        np.testing.assert_allclose(runs["n_total"], GPT2_COUNTS, rtol=0.01)
        np.testing.assert_allclose(runs["mlp_to_attention"], 2)
    assert "gated is 0" in load_runs(pd.DataFrame(GPT2), columns="gated=0").notes


def test_shapes_that_look_ungated_are_noted_and_an_ambiguous_activation_is_refused() -> None:
    assert any("--columns gated=0" in note for note in load_runs(pd.DataFrame(GPT2)).notes)
    gated = pd.DataFrame({**GPT2, "hidden_act": "silu"})
    assert not any("gated" in note for note in load_runs(gated).notes)
    with pytest.raises(InputError, match="MLPs of both kinds have 'gelu_pytorch_tanh'"):
        load_runs(pd.DataFrame({**GPT2, "hidden_act": "gelu_pytorch_tanh"}))


def test_parameters_of_an_ungated_or_untied_model_name_the_option() -> None:
    frame = pd.DataFrame({**GPT2, "n_total": GPT2_COUNTS})
    with pytest.raises(InputError, match=r"the counts agree with --columns gated=0$"):
        load_runs(frame)
    assert len(load_runs(frame, columns="gated=0")) == 3
    heads = 50257 * np.array(GPT2["hidden_size"])
    untied = frame.assign(n_total=GPT2_COUNTS + heads)
    with pytest.raises(InputError, match=r"agree with --columns gated=0,tie_word_embeddings=0$"):
        load_runs(untied)


@pytest.mark.parametrize("name", ["flops", "C", "flops_counted"])
def test_flops_of_any_name_that_contradict_6nd_are_refused(name: str) -> None:
    flops = 6.5 * N * D  # with attention
    assert len(load_runs(table(**{name: flops}))) == len(N)
    assert len(load_runs(table(**{name: flops / 1e15}))) == len(N)  # in petaFLOPs
    flops[[1, 3]] /= 14
    with pytest.raises(InputError, match=f"lines 3, 5: `{name} = 6 N D`.*--columns {name}=$"):
        load_runs(table(**{name: flops}))


def test_ranges_of_a_table_have_the_unit_of_its_losses() -> None:
    ranges = describe(load_runs(table(loss=LOSS / 5), loss_unit="bits per byte")).ranges
    assert ranges.set_index("column")["unit"]["loss"] == "bits per byte"


def test_shapes_with_foreign_names_and_suffixes_are_predicted_as_plain_ones(tmp_path: Path) -> None:
    fitted = fit("chinchilla", load_runs(table()), starts=16, resamples=64)
    (tmp_path / "plain.csv").write_text("n_non_embedding,tokens\n200000000,8000000000\n")
    (tmp_path / "foreign.csv").write_text("N;D\n200M;8B\n")
    plain, foreign = (
        fitted.predict(read_shapes(fitted, tmp_path / name, None, RowOptions(columns=columns)))
        for name, columns in (("plain.csv", None), ("foreign.csv", "N=n_non_embedding,D=tokens"))
    )
    pd.testing.assert_frame_equal(plain, foreign)


def test_proposals_need_a_law_in_nats_per_token() -> None:
    runs = load_runs(table(loss=LOSS / 4, loss_unit="bpb"))
    fitted = fit("chinchilla", runs, starts=16, resamples=64)
    with pytest.raises(InputError, match="must be a fit in nats per token, but has bits per byte"):
        LossBasis(fit=fitted)
