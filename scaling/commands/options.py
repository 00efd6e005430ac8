"""Options that several commands share: one spelling, one help text."""

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[
    str,
    typer.Argument(help="Run table: a CSV or Parquet file, or a name that `data list` prints."),
]
LawOption = Annotated[
    str,
    typer.Option(
        "--law",
        help="A law by its name (docs/laws.md), or an expression: "
        "\"Chinchilla() * UShape('mlp_to_attention')\".",
    ),
]
Delta = Annotated[
    str, typer.Option(help="Huber threshold on ln loss; auto takes it from the residuals.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
Where = Annotated[
    str | None,
    typer.Option(help='Keep rows where EXPR holds: "tokens >= 1e6 and gqa == 2".', metavar="EXPR"),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Leave a run out; may be given several times.", metavar="RUN_ID"),
]
Tokens = Annotated[str | None, typer.Option(help="Training tokens: 2M, 100B.", metavar="TOKENS")]
CorpusOption = Annotated[
    str,
    typer.Option(
        help="Text to train on: a file or folder (.txt, .jsonl, .parquet, any as .zst); 'stdlib', "
        "the source of Python's standard library; hf:NAME[:CONFIG][@SPLIT][#COLUMN], a stream of "
        "Hugging Face datasets; or a mixture of these, NAME=PATH:WEIGHT,..."
    ),
]
Vocabulary = Annotated[
    int | None,
    typer.Option("--vocab", help="Tokens of a byte-level BPE to train; default: the 256 bytes."),
]
ValidationOption = Annotated[
    str | None,
    typer.Option(
        "--validation",
        help="Held-out text, NAME=PATH,...: of the source of that name, or one more set; default: "
        "a tenth of every source is held out.",
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", help="A tokenizer.json to use, in place of --vocab."),
]
CorpusTokens = Annotated[
    str | None,
    typer.Option(help="Training tokens to prepare at the most: 100M; hf: needs it.",
                 metavar="TOKENS"),
]  # fmt: skip
Workers = Annotated[
    int | None, typer.Option(help="Processes, one core each; default: one per core.", min=1)
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for everything that is written.")]
EngineOption = Annotated[
    str, typer.Option(help="torch (measured here) or roofline:HARDWARE (predicted).",
                      metavar="NAME[:HARDWARE]")
]  # fmt: skip
WorkloadOption = Annotated[
    str,
    typer.Option(
        help="chat, balanced, rag, reasoning, edge, proxy, or INPUT/OUTPUT in tokens, then "
        "[@CONCURRENCY][:DTYPE][,kv=DTYPE][,ttft=SECONDS][,tpot=SECONDS]; or a .toml file.",
    ),
]
