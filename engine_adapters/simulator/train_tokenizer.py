"""Trains the shipped demo tokenizer and writes the model folder: `python train_tokenizer.py`.

Needs `tokenizers` (0.22.2 wrote what is shipped), which nothing else here does. The corpus is the shipped texts, so
that the simulator's output is made of whole words, and the running interpreter's own documentation and sources: the
result depends on the Python version it runs under (3.11.7 wrote what is shipped).
"""

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
VOCAB_SIZE = 8192
CONTEXT_LENGTH = 32768
TEXT_WEIGHT = 60
PROSE_WEIGHT = 3
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def shipped_texts() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((HERE / "texts").glob("*.txt"))]


def library_sources() -> Iterator[str]:
    """The standard library's modules, without its test suites and generated tables."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "encodings", "lib2to3", "turtledemo", "pydoc_data"}
    for path in sorted(root.rglob("*.py")):
        if skipped.isdisjoint(path.relative_to(root).parts):
            yield path.read_text(encoding="utf-8", errors="ignore")


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield docstring


def language_reference() -> list[str]:
    """The texts behind Python's `help()`: the largest piece of plain English that comes with every interpreter."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def corpus() -> Iterator[str]:
    sources = list(library_sources())
    prose = language_reference() + [docstring for source in sources for docstring in docstrings(source)]
    for texts, weight in ((shipped_texts(), TEXT_WEIGHT), (prose, PROSE_WEIGHT), (sources, 1)):
        for _ in range(weight):
            yield from texts


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(MARKERS) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model_folder(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    end_of_text, _, end_of_turn = (tokenizer.token_to_id(marker) for marker in MARKERS)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT_LENGTH,
            "bos_token": None,
            "eos_token": MARKERS[2],
            "pad_token": MARKERS[0],
            "clean_up_tokenization_spaces": False,
            "chat_template": (HERE / "chat_template.jinja").read_text(encoding="utf-8"),
        },
    )
    write_json(
        folder / "config.json",
        {
            "model_type": "gateway-demo",
            "architectures": ["GatewayDemoForCausalLM"],
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": CONTEXT_LENGTH,
            "eos_token_id": end_of_turn,
            "pad_token_id": end_of_text,
        },
    )
    write_json(
        folder / "generation_config.json",
        {"eos_token_id": [end_of_turn, end_of_text], "pad_token_id": end_of_text},
    )


def bytes_per_token(tokenizer: Tokenizer, text: str) -> float:
    return len(text.encode()) / len(tokenizer.encode(text).ids)


def main() -> None:
    tokenizer = train()
    write_model_folder(tokenizer, HERE / "model")
    size = (HERE / "model" / "tokenizer.json").stat().st_size
    texts, reference = "\n".join(shipped_texts()), "\n".join(language_reference())
    sys.stdout.write(
        f"{tokenizer.get_vocab_size()} tokens, {size / 1000:.0f} KB, bytes per token:"
        f" {bytes_per_token(tokenizer, texts):.2f} in the shipped texts,"
        f" {bytes_per_token(tokenizer, reference):.2f} in Python's reference\n"
    )


if __name__ == "__main__":
    main()
