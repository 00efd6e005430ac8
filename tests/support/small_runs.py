"""Training runs of a few thousand parameters on a few thousand bytes."""

from collections.abc import Callable
from pathlib import Path

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.documents import STDLIB, read_documents
from shapelaw.trainers.corpus.preparation import prepare
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import RunSpec

SHAPE = Shape(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, vocab_size=256, qk_norm=True,
)  # fmt: skip


RECIPE = Recipe(context_length=16, sequences=4)


STEPS = 12


def small_corpus(folder: Path, *, document_bytes: int = 4000) -> Corpus:
    """Prepare a corpus of about 24 kB of real text, whose held-out part is fast to evaluate.

    Documents of 4000 bytes give a held-out part of two documents, shorter ones of more.
    """
    texts, size = [], 0
    for document in read_documents(STDLIB):
        if len(document.text) < 4000:
            begins = range(0, len(document.text), document_bytes)
            texts += [document.text[begin : begin + document_bytes] for begin in begins]
            size += len(document.text)
        if size > 24_000:
            break
    folder.mkdir(exist_ok=True)
    source = folder / "small.txt"
    source.write_bytes(b"\n<|endoftext|>\n".join(texts))
    return prepare(str(source), folder / "corpus")


def spec(**changes: object) -> RunSpec:
    """Make the specification of a small run with changed fields."""
    usual: dict[str, object] = {
        "run_id": "tiny", "shape": SHAPE, "tokens": STEPS * RECIPE.batch_tokens, "recipe": RECIPE,
    }  # fmt: skip
    return RunSpec(**(usual | changes))  # type: ignore[arg-type]


class Killed(Exception):
    """Simulated kill of a process at a step."""


def killed_at(last: int) -> Callable[[int], None]:
    """Return a callback that raises ``Killed`` at a step."""

    def watch(step: int) -> None:
        if step == last:
            raise Killed

    return watch
