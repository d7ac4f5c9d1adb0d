"""One model's images, from a file's bytes to what its engine gets: jobs for the vision pool.

Threads: any thread of the pool. A `Vision` never changes, but for the cache, which guards itself, and a table of the
tokens in expansions, which only grows and to which all threads add the same.
"""

import base64
import binascii
import hashlib
import time
import urllib.parse
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.config import Config
from gateway.errors import BadImage
from gateway.fetch import Limits, read_file, refuse, refuse_size
from gateway.multimodal.cache import ImageCache
from gateway.multimodal.features import Features
from gateway.multimodal.load import load_image
from gateway.multimodal.packing import Packed, pack
from gateway.multimodal.processor import Processor
from gateway.types import ImageForm, ImageSource


@dataclass(slots=True)
class Processed:
    """`hash` is the same for the same picture. `packed` is None where no engine wants tensors, `encoded` is empty where
    none wants the file. `seconds` says how long each step took; `outcome` is that of the cache: hit, miss or off."""

    hash: bytes
    size: int
    encoded: bytes = b""
    packed: Packed | None = None
    outcome: str = "off"
    seconds: dict[str, float] = field(default_factory=dict)


class VisionError(Exception):
    """A model's image processor and its tokenizer do not belong together; the message says why."""


class Vision:
    """`id_of` gives the ids of special tokens. Without a `cache` everything is computed.

    Raises VisionError when the tokenizer does not have the processor's placeholder.
    """

    def __init__(
        self,
        processor: Processor,
        id_of: "IdOf",
        limits: Limits,
        cache: ImageCache[Packed] | None = None,
    ) -> None:
        self.processor = processor
        self._id_of = id_of
        self._limits = limits
        self.cache = cache
        self._columns: dict[str, bytes] = {}
        placeholder = id_of(processor.placeholder)
        if placeholder is None:
            raise VisionError(
                f"its images stand for {processor.placeholder!r} in prompts (preprocessor_config.json), which its "
                "tokenizer does not have: the files are not of one model"
            )
        self.placeholder = placeholder

    def process(self, source: ImageSource, fetched: bytes | None, form: ImageForm) -> Processed:
        """`fetched` is what was at the source's URL, None for what is in the URL or in a file. Raises BadImage."""
        try:
            return self._process(source, fetched, form)
        except BadImage as error:
            if error.param is not None:
                raise
            raise BadImage(f"{source.path}: {error.message}", reason=error.reason, param=source.path) from error

    def _process(self, source: ImageSource, fetched: bytes | None, form: ImageForm) -> Processed:
        started = time.monotonic()
        data = read(source, self._limits) if fetched is None else fetched
        result = Processed(content_hash(data, source.detail), len(data), data if form.encoded else b"")
        result.seconds["read"] = time.monotonic() - started
        if not form.tensors:
            started = time.monotonic()
            load_image(data)  # what is no image is refused here, where its path is known
            result.seconds["load"] = time.monotonic() - started
        elif self.cache is None:
            result.packed = self._make(data, source.detail, form.dtype, result.seconds)
        else:
            key = (id(self.processor), result.hash, form.dtype)
            result.packed, is_known = self.cache.get(
                key, lambda: self._make(data, source.detail, form.dtype, result.seconds)
            )
            result.outcome = "hit" if is_known else "miss"
        return result

    def _make(self, data: bytes, detail: str, dtype: str, seconds: dict[str, float]) -> Packed:
        started = time.monotonic()
        image = load_image(data)
        loaded = time.monotonic()
        features = self.processor.preprocess(image, detail)
        preprocessed = time.monotonic()
        packed = pack(features, self._expansion(features), dtype)
        seconds["load"] = loaded - started
        seconds["preprocess"] = preprocessed - loaded
        seconds["pack"] = time.monotonic() - preprocessed
        return packed

    def _expansion(self, features: Features) -> bytes:
        return b"".join([self._column(token) * count for token, count in features.expansion])

    def _column(self, token: str) -> bytes:
        if token not in self._columns:
            token_id = self._id_of(token)
            if token_id is None:
                raise BadImage(f"needs {token!r}, which this model's tokenizer does not have", reason="shape")
            self._columns[token] = array("I", [token_id]).tobytes()
        return self._columns[token]


type IdOf = Callable[[str], int | None]


def visions_of(config: Config, processors: Mapping[str, tuple[Processor, IdOf]]) -> dict[str, Vision]:
    """By the names of models, from their processors and what gives the ids of their special tokens; they share one
    cache. Raises VisionError."""
    cache: ImageCache[Packed] | None = ImageCache(config.image_cache_mb << 20) if config.image_cache_mb else None
    limits = Limits.of(config)
    visions = {}
    for name, (processor, id_of) in processors.items():
        try:
            visions[name] = Vision(processor, id_of, limits, cache)
        except VisionError as error:
            raise VisionError(f"model {name!r}: {error}") from None
    return visions


def content_hash(data: bytes, detail: str) -> bytes:
    """Of a file, and of how closely it is looked at."""
    digest = hashlib.sha256(data).digest()
    return digest if detail == "auto" else hashlib.sha256(digest + detail.encode()).digest()


def read(source: ImageSource, limits: Limits) -> bytes:
    """Of a data URL or a file; raises BadImage."""
    if source.url[:5].lower() == "data:":
        return read_data(source.url, source.path, limits)
    return read_file(source.url, source.path, limits)


def read_data(url: str, path: str, limits: Limits) -> bytes:
    """Base64, also of the URL's alphabet and without its padding, or percent-encoded."""
    comma = url.find(",", 0, 1000)
    if comma < 0:
        refuse(path, "is no data URL: it has no comma before its data", "url")
    if len(url) - comma > limits.bytes // 3 * 4 + 1000:
        refuse_size(path, limits.bytes)
    if not url[:comma].lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(url[comma + 1 :])
    text = url[comma + 1 :]
    if "%" in text:
        text = urllib.parse.unquote(text)
    try:
        characters = text.encode("ascii")
        if b"-" in characters or b"_" in characters:
            characters = characters.translate(FROM_URL_ALPHABET)
        characters = b"".join(characters.split()).rstrip(b"=")
        characters += b"=" * (-len(characters) % 4)
        # In pieces: a garbage collection waits for calls like this, and all threads wait for the collection.
        pieces = (characters[start : start + PIECE] for start in range(0, len(characters), PIECE))
        return b"".join([base64.b64decode(piece, validate=True) for piece in pieces])
    except (binascii.Error, UnicodeEncodeError) as error:
        refuse(path, f"is not valid base64: {error}", "url")


PIECE = 1 << 18
"""Characters of base64 at a time, of which four are three bytes."""
FROM_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")
