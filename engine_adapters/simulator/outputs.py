"""What the simulator answers: readable text, the prompt itself, random ids, or what a script says."""

import hashlib
import random
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from engine_adapters.base import Submission
from engine_adapters.simulator.scheduler import Plan
from engine_adapters.simulator.script import read_script
from engine_adapters.tokenizer_file import TokenizerFile

TEXTS = Path(__file__).parent / "texts"
RANDOM_LENGTH = 4096
"""Random output begins again after this many ids."""

PlanFor = Callable[[Submission], Plan]


class TextOutput:
    """One of the shipped texts, chosen by the prompt (and the seed, unless the temperature is 0)."""

    def __init__(self, tokenizer: TokenizerFile, eos_token_ids: Sequence[int]) -> None:
        ending = one_by_one(eos_token_ids[:1])
        texts = [path.read_text(encoding="utf-8").strip() for path in sorted(TEXTS.glob("*.txt"))]
        self._endless = [one_by_one(tokenizer.ids_for_text(text + "\n\n")) for text in texts]
        self._ended = [one_by_one(tokenizer.ids_for_text(text)) + ending for text in texts]

    def __call__(self, submission: Submission) -> Plan:
        texts = self._endless if submission.ignore_eos else self._ended
        return Plan(texts[prompt_hash(submission) % len(texts)], repeats=submission.ignore_eos)


class EchoOutput:
    """The prompt once more, without the end-of-sequence ids in it (a chat prompt has some), then the end."""

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = eos_token_ids

    def __call__(self, submission: Submission) -> Plan:
        token_ids = array("I", submission.token_ids)
        if submission.ignore_eos:
            return Plan(one_by_one(token_ids), repeats=True)
        said = [token_id for token_id in token_ids if token_id not in self._eos_token_ids]
        return Plan(one_by_one([*said, *self._eos_token_ids[:1]]))


class RandomOutput:
    """Ids drawn from the vocabulary without its added tokens, the same for the same prompt; it never ends by itself."""

    def __init__(self, tokenizer: TokenizerFile) -> None:
        self._token_ids = sorted(tokenizer.tokens.keys() - tokenizer.added_ids)

    def __call__(self, submission: Submission) -> Plan:
        length = min(submission.max_tokens, RANDOM_LENGTH)
        drawn = random.Random(prompt_hash(submission)).choices(self._token_ids, k=length)
        return Plan(one_by_one(drawn), repeats=True)


def one_by_one(token_ids: Sequence[int]) -> list[tuple[int, ...]]:
    return [(token_id,) for token_id in token_ids]


def prompt_hash(submission: Submission) -> int:
    """The same number for the same prompt and seed, in any process; greedy requests have no seed."""
    sampling = submission.sampling
    seed = None if sampling.temperature == 0 else sampling.seed
    salt = b"" if seed is None else seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(submission.token_ids, digest_size=8, salt=salt).digest(), "little")


def plan_maker(output: str, tokenizer: TokenizerFile, eos_token_ids: Sequence[int]) -> PlanFor:
    """What `--output` names: text, echo, random or script:FILE. Raises ValueError, or ScriptError for a bad script."""
    kind, _, rest = output.partition(":")
    if kind == "script" and rest:
        return read_script(Path(rest), tokenizer, eos_token_ids, TextOutput(tokenizer, eos_token_ids))
    makers: dict[str, Callable[[], PlanFor]] = {
        "text": lambda: TextOutput(tokenizer, eos_token_ids),
        "echo": lambda: EchoOutput(eos_token_ids),
        "random": lambda: RandomOutput(tokenizer),
    }
    if output not in makers:
        raise ValueError(f"{output!r} is none of text, echo, random, script:FILE")
    return makers[output]()
