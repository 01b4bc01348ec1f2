"""Train the byte-level BPE text tokenizer: `python -m train.tokenizer --out tokenizers_cfg/text`.

The vocabulary is: bytes and merges first, then the special tokens, then the tokens of every action
space. The same
texts always give the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

from unified.command import command
from unified.files import atomic_files
from unified.media.action_space import ActionSpace

ROOT = Path(__file__).resolve().parent.parent / "tokenizers_cfg"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `python -m train.tokenizer`."""

    out: Path = ROOT / "text"
    """Folder that receives tokenizer.json and tokenizer_config.json."""
    corpus: Path = ROOT / "text" / "corpus.txt"
    """Text to learn merges from, one example per line."""
    data: Path | None = None
    """Folder of recorded episodes whose texts and captions are added to the corpus."""
    special_tokens: Path = ROOT / "special_tokens.json"
    """JSON object: name of a special token -> its text."""
    actions: list[Path] = field(default_factory=lambda: [ROOT / "actions" / "babyai.json"])
    """Action space files whose tokens join the vocabulary, in this order."""
    vocab_size: int = 512
    """Number of byte-level pieces: 256 bytes and the merges, without special and action tokens."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE model: any text round-trips, case and spaces included.

    Args:
        texts: Training texts.
        vocab_size: Number of pieces, at least 256.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size must be at least 256 (one piece per byte), got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = tokenizer.get_vocab_size()
    if learned != vocab_size:
        raise ValueError(
            f"The texts give {learned} pieces, not {vocab_size}; add text or pass --vocab-size "
            f"{learned}."
        )
    return tokenizer


def build(
    texts: Iterable[str],
    *,
    special_tokens: dict[str, str],
    action_tokens: Sequence[str],
    vocab_size: int = 512,
) -> PreTrainedTokenizerFast:
    """Train the pieces and add special and action tokens behind them.

    Text never yields a special or action id, whatever it says (`split_special_tokens`): a task that
    contains "<frame>" stays seven characters of text.

    Args:
        texts: Training texts.
        special_tokens: Name -> token text; needs `pad` and `eos`.
        action_tokens: Tokens of the action spaces.
        vocab_size: Number of byte-level pieces.
    """
    missing = {"pad", "eos"} - set(special_tokens)
    if missing:
        raise ValueError(
            f"Special tokens lack {', '.join(sorted(missing))}; add them to special_tokens.json."
        )
    added = [*special_tokens.values(), *action_tokens]
    if len(set(added)) != len(added):
        repeated = sorted({token for token in added if added.count(token) > 1})
        raise ValueError(
            f"Tokens {repeated} are declared twice; rename the action or the special token."
        )
    bpe = train_bpe(texts, vocab_size)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=special_tokens["pad"],
        eos_token=special_tokens["eos"],
        extra_special_tokens=[
            t for t in added if t not in (special_tokens["pad"], special_tokens["eos"])
        ],
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        add_prefix_space=False,
        padding_side="right",
    )


def read_episode_texts(folder: Path) -> list[str]:
    """Collect the distinct texts and captions of a folder of recorded episodes, sorted.

    Args:
        folder: Data folder with `episodes/*.parquet`.
    """
    import pyarrow.parquet as parquet

    shards = sorted((folder / "episodes").glob("*.parquet"))
    if not shards:
        raise ValueError(
            f"No episodes/*.parquet under {folder}; record some with `python -m data.prepare`."
        )
    texts: set[str] = set()
    for shard in shards:
        for batch in parquet.ParquetFile(shard).iter_batches(batch_size=64, columns=["segments"]):
            segments = batch.column(0).flatten()
            for name in ("text", "caption"):
                texts.update(text for text in segments.field(name).to_pylist() if text)
    return sorted(texts)


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files into a folder, each one whole or not at all."""
    with atomic_files(folder) as scratch:
        tokenizer.save_pretrained(scratch)


def main(options: Options) -> None:
    """Train the tokenizer, save it, and print what it holds."""
    if not options.corpus.is_file():
        raise ValueError(f"No corpus at {options.corpus}; give a text file with --corpus.")
    texts = options.corpus.read_text(encoding="utf-8").splitlines()
    if options.data is not None:
        texts += read_episode_texts(options.data)
    specials = json.loads(options.special_tokens.read_text(encoding="utf-8"))
    spaces = [ActionSpace.from_config(path) for path in options.actions]
    tokenizer = build(
        texts,
        special_tokens=specials,
        action_tokens=[token for space in spaces for token in space.tokens],
        vocab_size=options.vocab_size,
    )
    save(tokenizer, options.out)
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    words = sum(len(text.split()) for text in texts)
    print(
        f"{options.out}: {len(tokenizer)} tokens, of which {options.vocab_size} pieces; "
        f"{sum(lengths) / max(words, 1):.2f} tokens per word on {len(texts)} texts"
    )


if __name__ == "__main__":
    with command("train.tokenizer"):
        main(tyro.cli(Options))
