"""Make the tokenizer and the data set of the lab example: `python assets.py WORKDIR`.

Everything is generated here, from word lists and a fixed seed, so it needs no network and comes
out the same everywhere: WORKDIR/assets/tokenizer (byte-level BPE) and WORKDIR/assets/data (JSON
lines). Takes a second or two. What is already there is left alone.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 1000  # the flavor's vocab_size is 1024
DOCUMENTS = 2000
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"

SUBJECTS = """the scheduler, a spare node, the old switch, every expert, the router, one rank,
the cable, the night operator, a quiet agent, the journal, the checkpoint, a broken fan,
the storage server, the second witness, an engineer, the longest run, a small model, the loss,
the gradient"""
VERBS = """waits for, replaces, reports, forgets, loads, finds, answers, blames, follows, repairs,
counts, measures, stops, outlives, watches, trusts, explains, believes, writes to, reads from"""
PLACES = """in the first rack, behind the cold door, at midnight, before the next step,
after a restart, on the far side of the fabric, without a warning, under a full load,
for the third time this week, with nobody awake, as the manual says, once the disk is empty,
when the power returns"""
ADVERBS = "slowly, twice, at once, again, never, calmly, at last, by mistake"


def _words(text: str) -> list[str]:
    return text.replace("\n", " ").split(", ")


def sentence(pick: random.Random) -> str:
    """One made-up sentence; the numbers keep the text from repeating itself."""
    parts = [pick.choice(_words(part)) for part in (SUBJECTS, VERBS, SUBJECTS)]
    if pick.random() < 0.7:
        parts.append(pick.choice(_words(PLACES)))
    if pick.random() < 0.3:
        parts.append(pick.choice(_words(ADVERBS)))
    if pick.random() < 0.3:
        parts.append(f"and node {pick.randrange(64)} is at step {pick.randrange(10_000)}")
    return (" ".join(parts) + ".").capitalize()


def corpus() -> list[str]:
    """The documents, always the same."""
    pick = random.Random(20240607)
    return [" ".join(sentence(pick) for _ in range(pick.randint(6, 18))) for _ in range(DOCUMENTS)]


def write_data(folder: Path, documents: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    _write(folder / "corpus.jsonl", lines)


def write_tokenizer(folder: Path, documents: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    config = {"bos_token": BEGIN, "eos_token": END, "add_bos_token": True, "add_eos_token": True}
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2))
    _write(folder / "tokenizer.json", tokenizer.to_str())


def _write(path: Path, text: str) -> None:
    """Whole or not at all: two builders at once, or a Ctrl-C, leave no half file."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(text)
    half.replace(path)


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: python assets.py WORKDIR", file=sys.stderr)
        return 2
    root = Path(argv[1]) / "assets"
    documents = corpus()
    if not (root / "data" / "corpus.jsonl").exists():
        write_data(root / "data", documents)
    if not (root / "tokenizer" / "tokenizer.json").exists():
        write_tokenizer(root / "tokenizer", documents)
    print(root)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
