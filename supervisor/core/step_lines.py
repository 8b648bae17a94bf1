"""How trainers word it: a finished step, a resume, the end of training. Pure text.

docs/step-lines.md lists the forms: those of TorchTitan, Megatron-LM
(`iteration 10/ 500 | … lm loss: 2.1E+00`), NeMo and Lightning (`global_step=10`), fairseq
(`num_updates=10`), DeepSpeed (`step=10, skipped=0`), nanoGPT
(`iter 10: loss 2.1, time 12.50ms`) and JSON (`{"step": 10, "loss": 2.1}`).
"""

from __future__ import annotations

import re

MAX_STEP = 1 << 53  # a number beyond it is none that a trainer counts to

# litgpt's lines tell both: `iter 100 step 25`, and checkpoints are called by the step.
_NO_STEP = r"(?!.{0,40}?\bstep[ :=]+\d)"
_NAMES = (
    r"(?:train(?:er|ing)?/)?(?:global[_ -]?|train(?:ing|er)?[_ -]?)?step"
    rf"|(?:iteration|iter|it)\b{_NO_STEP}|num_updates|update|(?<=\[)batch(?==\d)"
)
# Words before a name that make it something else than a finished step of training.
_NOT_AFTER = (
    "resume resumed resuming from at to until till after before since of for in max maximum min "
    "last latest total every each per next previous warmup warm-up decay val valid validate "
    "validation eval evaluate evaluation test predict sanity start starting begin first final skip "
    "skipping stop save saved saving load loaded checkpoint ckpt log accum accumulation micro "
    "inner grad the this one if make let global train training trainer"
)
_COUNT = r"\d{1,3}(?:[,_]\d{3})+|\d+"
_UNITS = r"[mnuµ]?s|secs?|seconds?|mins?|minutes?|hours?|h|[kmg]i?b|x"
# No decimal, no share, no time: `12.5`, `50%`, `5 ms`.
_ALONE = rf"(?![\w%]|[.,_]\d|\s*%|\s?(?:{_UNITS})\b(?!\s*[/:=]))"
# Without a sign between them they stand alone in the line, or with more numbers: no prose.
_BARE = rf"\s+(?=(?:{_COUNT})(?:\W*$|.*(?:\d|loss)))"
_NAMED = (
    rf"(?:(?<![\w.\-/])|(?<=\d/)(?=global_step=))(?=(?:{_NAMES})\b)"
    + "".join(rf"(?<!\b{word}[_ -])" for word in _NOT_AFTER.split())
    + rf"(?:{_NAMES})\b[\"']?(?:\s*[:=#]\s*\[?\s*|\s*\[\s*|{_BARE})"
)
_NO_TEST = "".join(rf"(?<!\b{word}[_ -])" for word in ("val", "valid", "eval", "test", "predict"))
_OF = rf"(?=(?:{_COUNT})\s*/\s*(?:{_COUNT})\b)"
# Without a name: `Epoch(train) [1][ 5/10]`, `Epoch: [0]  [ 5/12]`, `Train: 0 [ 5/12 (40%)]`.
_IN_EPOCH = (
    rf"(?<!\w)(?=epoch|train|iter){_NO_TEST}"
    rf"(?:(?:epoch|train)(?:\(train\))?:?\s*(?:\[\d+\]|\d+)|iter\(train\))\s*\[\s*{_OF}"
)
# Bars of tqdm that say whose they are, or show a loss: one without both may be an evaluation's.
_RATE = r"[^\]]*(?:it/s|s/it|ba/s)"
_BAR = (
    rf"^\s{{0,8}}(?:(?:train\s+)?(?:epoch\s{{0,4}}\d{{0,9}}|steps?|train(?:ing)?|iterations?)[:/\d\s]{{0,30}}\d{{1,3}}%\|[^|]*\|"
    rf"|(?=[^\[]*\[{_RATE}[^\]]*loss)\s*\d{{1,3}}%\|[^|]*\|)"
    rf"\s*{_OF}(?=[^\[]*\[[\d:]+<)"
)
STEP = (
    rf"(?i)(?:{_NAMED}|{_IN_EPOCH}|{_BAR})(?P<step>{_COUNT}){_ALONE}"
    + rf"(?:\s*(?:/|\bof\b)\s*(?P<total>{_COUNT}))?"
    + r"(?:.*?(?:\b|(?<=train_)|(?<=total_)|(?<=lm_))loss[\"']?\s*[:= ]\s*"
    + r"(?P<loss>[-+]?(?:\d[\d.e+-]*|\.\d[\de+-]*|nan|inf\w*)))?"
)
RESUMED = (
    r"(?i)\b(?:(?:resum|restor)(?:ed|ing) (?:training )?(?:at|from) (?:global[_ ])?"
    rf"(?:step|iteration)[ :=]*(?P<step>{_COUNT})|training starts at step (?P<next>{_COUNT}))\b"
)
_EPOCH = re.compile(r"(?i)\bepochs?[\"']?\s*[:=#]?\s*\[?\s*(\d+)\b(?!\.\d)")
_OVER = re.compile(
    r"(?i)\btrain(?:ing|ed)?\b.{0,40}\b(?:completed?|finished|done|ended)\b"
    r"|\b(?:completed?|finished|done|ended)\b.{0,20}\btraining\b"
    r"|\bstopped: `?max_(?:steps|epochs)|\balready (?:completed?|finished|trained)\b"
    r"|\bnothing (?:left )?to (?:do|train)\b"
)
_NOT_OVER = re.compile(r"(?i)\bnot\b|n't\b|\b(?:fail|abort|interrupt|before|until|when|once|if)\w*")


def number(text: str | None) -> int | None:
    """A count with or without thousands separators; what a user's pattern captured may be anything.

    `12,345`, `12_345` and `12345`; None for all that is none.
    """
    plain = re.sub(r"[,_]", "", text or "")
    if not plain.isdecimal() or len(plain) > 16:
        return None
    return count if (count := int(plain)) < MAX_STEP else None


def epoch(line: str) -> int | None:
    """The epoch that a line tells, where it tells one."""
    found = _EPOCH.search(line)
    return number(found[1]) if found else None


# TorchTitan 0.3.0: "Loss is not finite (global_avg_loss=nan) at step 5. Stopping training."; later
# ones assert it on the device. Megatron-LM: "found NaN in local forward loss calculation".
_NOT_FINITE = re.compile(
    r"(?i)\bloss\b.{0,30}\b(?:not finite|non-?finite|(?:is|became) (?:nan|inf(?:inite)?)\b)"
    r"|\b(?:found|got|detected) (?:nan|inf)\b.{0,40}\bloss\b"
)


def says_not_finite(line: str) -> bool:
    """Whether a line is a trainer's word that it ends because its loss is NaN or infinite."""
    return _NOT_FINITE.search(line) is not None


def says_over(line: str) -> bool:
    """Whether a line is a trainer's own word that training is complete."""
    found = _OVER.search(line)
    return found is not None and not _NOT_OVER.search(
        line[max(0, found.start() - 20) : found.end()]
    )


class UnreadLines:
    """Lines of one rank in which no step was found: is there a number in them that grows?"""

    def __init__(self) -> None:
        self.count = 0
        self.line = ""  # the newest, or the newest that counts
        self.pattern = ""  # for progress.step of job.yaml, where a number grows
        self._seen: dict[str, tuple[str, list[int]]] = {}  # by shape: a line and its numbers

    def add(self, line: str) -> None:
        self.count += 1
        shape, numbers = _SHAPE.sub("0", line), [int(n[:16]) for n in _SHAPE.findall(line)]
        before = self._seen.get(shape)
        if before is None and len(self._seen) >= _SHAPES:
            self._seen.pop(next(iter(self._seen)))
        self._seen[shape] = (line, numbers)
        pattern = _fitting(line, before[1], numbers) if before else ""
        if pattern:
            self.pattern, self.line = pattern, line
        elif not self.pattern:
            self.line = line


_SHAPE = re.compile(r"\d+")
_SHAPES = 16  # kept for one rank


def _fitting(line: str, before: list[int], now: list[int]) -> str:
    """A pattern for the first whole number that has grown a little: behind a word, or `5/100`."""
    for found, old, new in zip(_SHAPE.finditer(line), before, now, strict=True):
        behind, ahead = line[: found.start()], line[found.end() :]
        if not 0 < new - old <= 1000 or re.search(r"[\w.:-]$", behind) or _PART.match(ahead):
            continue
        pattern = ""
        if re.match(r"\s*/\s*\d", ahead):
            pattern = r"(?<![\w./-])(?P<step>\d+)\s*/\s*\d+"
        elif word := re.search(r"([A-Za-z][A-Za-z_]*)[\"']?\W{1,8}$", behind):
            pattern = rf"\b{word[1]}\W+(?P<step>\d+)"
        first = re.search(pattern, line) if pattern else None
        if first is not None and first.span("step") == found.span():
            return pattern
    return ""


_PART = re.compile(r"[.:-]\d|\w|%|\s?(?:" + _UNITS + r")\b")  # of a time, a date, a decimal
