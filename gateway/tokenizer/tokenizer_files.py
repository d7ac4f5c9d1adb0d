"""The tokenizer of a model folder, whatever kind of file holds it."""

from collections.abc import Callable
from pathlib import Path

import tokenizers

from engine_adapters.tokenizer_file import TokenizerFileError
from gateway.tokenizer.byte_pair_files import is_tiktoken, load_tekken, load_tiktoken, load_vocabulary_and_merges
from gateway.tokenizer.sentencepiece_model import load_sentencepiece


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Raises TokenizerFileError, which names the file and what is wrong with it."""
    path, load = find_tokenizer(folder)
    try:
        return load(path)
    except TokenizerFileError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise TokenizerFileError(f"{path} cannot be loaded: {error!r}") from error


def find_tokenizer(folder: Path) -> tuple[Path, "Load"]:
    """The best file that there is, and what reads it."""
    for pattern, load in KINDS:
        for path in sorted(folder.glob(pattern)):
            return path, load
    raise TokenizerFileError(
        f"{folder} holds no tokenizer: there is neither {', '.join(pattern for pattern, _ in KINDS[:-1])} nor "
        f"{KINDS[-1][0]}; copy the model's tokenizer.json there, or write one with transformers: "
        f"AutoTokenizer.from_pretrained(MODEL).save_pretrained({str(folder)!r})"
    )


def load_model_file(path: Path) -> tokenizers.Tokenizer:
    """tokenizer.model is SentencePiece's, or, for Kimi and Meta's own Llama 3, tiktoken's."""
    return load_tiktoken(path) if is_tiktoken(path) else load_sentencepiece(path)


type Load = Callable[[Path], tokenizers.Tokenizer]


def load_json(path: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(path))


KINDS: tuple[tuple[str, Load], ...] = (
    ("tokenizer.json", load_json),
    ("tekken.json", load_tekken),
    ("*.tiktoken", load_tiktoken),
    ("tiktoken.model", load_tiktoken),
    ("tokenizer.model", load_model_file),
    ("spiece.model", load_sentencepiece),
    ("vocab.json", load_vocabulary_and_merges),
)
"""From the best to the last resort. Folders that have tekken.json beside tokenizer.json mean the same vocabulary."""
