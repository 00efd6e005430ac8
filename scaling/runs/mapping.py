"""Columns of foreign tables: their renaming, derived columns, and a suggestion for known names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import evaluate, names_in
from shapelaw.scaling.runs.columns import COLUMNS, MORE_COLUMNS, NUMERIC, D, N
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.validation import require_columns, to_numbers

# Names that other tools give to columns, in lower case with "_" between words.
KNOWN_NAMES = {
    "n params model_size parameters n_params num_params num_parameters param_count params_count "
    "nparams size": N,
    "params_active active_params n_active_params": "n_active",
    "total_params n_params_total params_total": "n_total",
    "non_embedding_params params_non_embedding n_params_non_embedding": N,
    "d train_tokens training_tokens n_tokens num_tokens tokens_seen tokens_trained total_tokens "
    "consumed_tokens": D,
    "val_loss valid_loss validation_loss eval_loss test_loss final_loss heldout_loss loss_val "
    "final_val_loss best_val_loss": "loss",
    "val_bpb bpb eval_bpb valid_bpb val_bits_per_byte final_bpb bits_per_char bpc val_bpc": "loss",
    "ppl perplexity val_ppl eval_ppl valid_ppl val_perplexity": "loss",
    "n_embd d_model dim model_dim hidden_dim width embed_dim emb_dim": "hidden_size",
    "n_layer n_layers num_layers depth layers": "num_hidden_layers",
    "n_head n_heads num_heads heads": "num_attention_heads",
    "n_kv_head n_kv_heads num_kv_heads kv_heads": "num_key_value_heads",
    "ffn_dim d_ff mlp_dim ffn_hidden_size n_inner ffn_size": "intermediate_size",
    "d_head head_size": "head_dim",
    "vocab vocabulary_size n_vocab": "vocab_size",
    "lr max_lr peak_lr": "learning_rate",
    "name run run_name id": "run_id",
}
TARGET_OF = {name: target for names, target in KNOWN_NAMES.items() for name in names.split()}
COMPUTE_NAMES = ("flops", "c", "compute", "train_flops", "training_flops", "total_flops")
UNIT_OF_NAME = {"ppl": "perplexity", "perplexity": "perplexity", "bpb": "bits per byte",
                "bits_per_byte": "bits per byte", "bits_per_char": "bits per character",
                "bpc": "bits per character"}  # fmt: skip
SIZE_NAMES = (N, "n_total", "n_active")


@dataclass(frozen=True, kw_only=True)
class ColumnMapping:
    """Changes of the columns of a table: new names, derived columns and columns to ignore.

    Attributes
    ----------
    renamed
        Name in the run table by name in the file.
    derived
        Arithmetic expression over the columns of the file by name in the run table.
    ignored
        Columns that are dropped.
    """

    renamed: Mapping[str, str]
    derived: Mapping[str, str]
    ignored: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: "str | Mapping[str, str] | None") -> "ColumnMapping":
        """Read ``OLD=NEW``, ``NEW=EXPRESSION`` and ``OLD=``, separated by commas.

        A name on the right of ``=`` renames the column on its left; anything else is an expression
        such as ``tokens=flops/(6*N)``; nothing ignores the column.

        Raises
        ------
        InputError
            A part has no ``=``, or an expression does not parse.

        Examples
        --------
        >>> ColumnMapping.parse("N=n_non_embedding,tokens=flops/(6*N)").derived
        {'tokens': 'flops/(6*N)'}
        """
        if isinstance(text, Mapping):
            pairs = [(str(left), str(right)) for left, right in text.items()]
        else:
            pairs = []
            for part in (text or "").split(","):
                if not part.strip():
                    continue
                left, equals, right = part.rpartition("=")
                if not equals or not left.strip():
                    raise InputError(
                        f"`--columns` must be OLD=NEW or NEW=EXPRESSION, separated by commas, but "
                        f"got {shown(part)}; write N=n_non_embedding,tokens=flops/(6*N)"
                    )
                pairs.append((left, right))
        renamed, derived, ignored = {}, {}, []
        for left, right in ((left.strip(), right.strip()) for left, right in pairs):
            if not right:
                ignored.append(left)
            elif _is_column(right):
                renamed[left] = right
            else:
                names_in(right)
                derived[left] = right
        return cls(renamed=renamed, derived=derived, ignored=tuple(ignored))

    def apply(self, frame: pd.DataFrame, source: str) -> pd.DataFrame:
        """Return a table with renamed, derived and without ignored columns.

        Raises
        ------
        InputError
            The table lacks a column, a new name is taken, or an expression cannot be computed.
        """
        copies = {n: old for n, old in self.renamed.items() if n not in frame and old in frame}
        if copies:  # NEW=OLD, whose right side is a column of the file
            renamed = {old: new for old, new in self.renamed.items() if old not in copies}
            derived = {**self.derived, **copies}
            return replace(self, renamed=renamed, derived=derived).apply(frame, source)
        missing = [name for name in (*self.renamed, *self.ignored) if name not in frame]
        if missing:
            raise InputError(
                f"`--columns` must name columns of {source}, but {shown(missing[0])} is none; it "
                f"has {', '.join(map(str, frame.columns))}"
            )
        new = [*self.renamed.values(), *self.derived]
        kept = set(frame.columns) - set(self.renamed) - set(self.ignored)
        taken = [name for name in new if name in kept or new.count(name) > 1]
        if taken:
            raise InputError(
                f"`--columns` must give new names, but {source} would have `{taken[0]}` twice; "
                f"ignore the old one with {taken[0]}="
            )
        changed = frame.rename(columns=self.renamed).drop(columns=list(self.ignored))
        if not self.derived:
            return changed
        numbers = to_numbers(frame, list(frame.columns))
        columns = {str(name): numbers[name].to_numpy() for name in frame}
        columns |= {target: columns[name] for name, target in self.renamed.items()}
        for name, text in self.derived.items():
            values = frame[text] if text in frame else evaluate(text, columns)
            changed[name] = np.broadcast_to(values, len(frame))
        return changed

    def allowed_by(self, frame: pd.DataFrame) -> "ColumnMapping":
        """Keep the changes that a table allows: it has the old names and not yet the new ones."""
        has = set(frame.columns)
        renamed = {old: new for old, new in self.renamed.items() if (old in has) != (new in has)}
        derived = {
            name: text
            for name, text in self.derived.items()
            if name not in has and names_in(text) <= has | set(renamed.values())
        }
        ignored = tuple(name for name in self.ignored if name in has)
        return ColumnMapping(renamed=renamed, derived=derived, ignored=ignored)

    def describe(self) -> list[str]:
        """Return a note on each change, for the record of a fit."""
        return [
            *(f"column {name} of the file is {target}" for name, target in self.renamed.items()),
            *(
                f"{name} is {text}" + " of the file" * bool(names_in(text))
                for name, text in self.derived.items()
            ),
            *(f"column {name} of the file is ignored" for name in self.ignored),
        ]


def read_rows(
    path: Path, columns: str | Mapping[str, str] | None = None, *, optional: bool = False
) -> pd.DataFrame:
    """Read a table of shapes or of runs to choose from, with numbers as in a run table.

    Parameters
    ----------
    path
        Table in any format that :func:`shapelaw.scaling.runs.reader.read_table` reads.
    columns
        Changes of its columns, as :meth:`ColumnMapping.parse` reads them.
    optional
        Leave out the changes that the table does not allow, as for a second table of a command.

    Raises
    ------
    InputError
        The table cannot be read, or a change of its columns is impossible.
    """
    frame, mapping = read_table(path), ColumnMapping.parse(columns)
    mapping = mapping.allowed_by(frame) if optional else mapping
    frame = mapping.apply(frame, str(path))
    return to_numbers(frame, [name for name in frame if name in NUMERIC])


def require_or_suggest(
    frame: pd.DataFrame, needed: Iterable[str], source: str, size: str = N
) -> None:
    """Refuse a table that lacks columns, with the options to type where it has known names.

    Parameters
    ----------
    frame
        Table of shapes or of runs.
    needed
        Columns that it must have.
    source
        Name of the table in errors.
    size
        Column that holds N.

    Raises
    ------
    InputError
        A column is missing.
    """
    needed = list(dict.fromkeys(needed))
    lacking = [N if name == size else name for name in needed if name not in frame]
    options = suggestion(frame, lacking).partition(" (with ")[0] if lacking else ""
    if options:
        missing = "`, `".join(name for name in needed if name not in frame)
        options = options.replace(f"={N}", f"={size}")
        raise InputError(f"{source} lacks `{missing}`; type {options}")
    require_columns(frame, needed, source)


def _is_column(text: str) -> bool:
    """Return whether a text is the name of a column of a run table, or could be one."""
    return text in COLUMNS or text in MORE_COLUMNS or text.isidentifier()


def suggestion(frame: pd.DataFrame, needed: "tuple[str, ...] | list[str]") -> str:
    """Return the options to type for a table with well-known names, empty if there are none.

    Parameters
    ----------
    frame
        Table that lacks columns.
    needed
        Columns that a fit needs; of them, those that the table lacks are looked for.
    """
    plain = {_plain(name).removeprefix("config_").removeprefix("summary_"): str(name)
             for name in frame.columns}  # fmt: skip
    # The first of several known names of a column wins.
    targets = {
        target: plain[key]
        for key, target in reversed(TARGET_OF.items())
        if key in plain and target not in frame
    }
    lacking = [name for name in needed if name not in frame]
    if N in lacking and any(name in frame for name in SIZE_NAMES):
        lacking.remove(N)
    shape = [name for name in INTEGER_FIELDS if name in targets]
    parts = [f"{targets[name]}={name}" for name in (*lacking, *shape) if name in targets]
    size = targets.get(N) or next((name for name in SIZE_NAMES if name in frame), None)
    flops = next((plain[name] for name in COMPUTE_NAMES if name in plain), None)
    if D in lacking and D not in targets and size and flops:
        parts.append(f"{D}={flops}/(6*{size})")
    if not parts:
        return ""
    text = f"--columns {_quoted(','.join(parts))}"
    if "loss" in lacking and "loss" in targets:
        words = _plain(targets["loss"])
        unit = next((unit for word, unit in UNIT_OF_NAME.items() if word in words), None)
        text += f' --loss-unit "{unit}"' if unit else ""
    if any(part.endswith(f"={N}") for part in parts):
        text += f" (with {targets[N]}=n_total if {targets[N]} counts embeddings too)"
    depth, width = (targets.get(name, name) for name in ("num_hidden_layers", "hidden_size"))
    uncounted = N in lacking and N not in targets and "intermediate_size" not in {*targets, *frame}
    computable = depth.isidentifier() and width.isidentifier()  # in an expression
    if uncounted and computable and {depth, width} <= {*plain.values()}:
        text += f" (if MLPs are 4 wide without a gate, also with {N}=12*{depth}*{width}*{width})"
    return text


def _quoted(text: str) -> str:
    return f'"{text}"' if any(mark in text for mark in " ()*/") else text


def _plain(name: object) -> str:
    """Return a name in lower case with "_" for every mark between words."""
    return "".join(c if c.isalnum() else "_" for c in str(name).strip().lower()).strip("_")
