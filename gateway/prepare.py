"""A request's input to its prompt: rendered, then tokenized, where that costs the least."""

import time
from dataclasses import dataclass, replace

from gateway.errors import BadRequest
from gateway.gateway import Gateway
from gateway.http_loop import HttpLoop
from gateway.images import check_images, with_images
from gateway.metrics import STAGE, TOKEN_CACHE_LOOKUPS, TOKEN_CACHE_TOKENS, Cells
from gateway.model import Model
from gateway.pools import INLINE_CHARACTERS
from gateway.tokenizer import Encoder
from gateway.types import (
    ChatInput,
    Encoded,
    GenerateRequest,
    Prompt,
    RequestRecord,
    TextInput,
    TokensInput,
)


async def prepare(
    gateway: Gateway, loop: HttpLoop, model: Model, request: GenerateRequest, record: RequestRecord
) -> Prompt:
    """Render and tokenize, on this loop if that is cheaper than the hop to the pool: so is a long prompt whose ids are
    known, which a text tells, not a conversation."""
    started = time.monotonic()
    sources = request.input.images if isinstance(request.input, ChatInput) else ()
    form = check_images(gateway, model, sources) if sources else None
    if form is not None and request.truncate_prompt_tokens is not None:
        raise BadRequest("truncate_prompt_tokens cannot be combined with images", param="truncate_prompt_tokens")
    encoder, source, pool = gateway.encoders[model.served_by], request.input, gateway.tokenize
    if isinstance(source, TokensInput):
        prompt = Prompt(source.token_ids)
    elif source.characters < INLINE_CHARACTERS:
        prompt = encode(model, encoder, source, render(model, source), False)
    elif source.renders_fast:
        rendered = render(model, source)
        if encoder.knows(rendered.text):
            prompt = encode(model, encoder, source, rendered, False)
        else:
            prompt = await pool.run(encode, model, encoder, source, rendered, True)
    else:
        prompt = await pool.run(render_and_encode, model, encoder, source)
    if prompt.encoded is not None:
        record.token_cache = prompt.encoded.outcome
        count_lookup(loop.cells, model.name, prompt.encoded)
    if form is not None:
        prompt = await with_images(gateway, loop, model, sources, prompt, form)
        record.image_seconds = time.monotonic() - started - prompt.render_seconds - prompt.tokenize_seconds
    if request.truncate_prompt_tokens is not None:
        prompt = replace(prompt, token_ids=prompt.token_ids[-4 * request.truncate_prompt_tokens :])
    record.prepared = time.monotonic()
    record.prompt_tokens = prompt.length
    record.render_seconds = prompt.render_seconds
    record.tokenize_seconds = prompt.tokenize_seconds
    known = prompt.render_seconds + prompt.tokenize_seconds + record.image_seconds
    record.queue_seconds = max(0.0, record.prepared - started - known)
    return prompt


def count_lookup(cells: Cells, model: str, encoded: Encoded) -> None:
    if encoded.outcome == "off":
        return
    counts = (
        ("prompt", "hit", encoded.outcome == "hit"),
        ("prompt", "miss", encoded.outcome != "hit"),
        ("segment", "hit", encoded.segment_hits),
        ("segment", "miss", encoded.segment_misses),
    )
    for level, outcome, count in counts:
        if count:
            cells.add(TOKEN_CACHE_LOOKUPS, (model, level, outcome), count)
    cells.add(TOKEN_CACHE_TOKENS, (model,), encoded.known_tokens)
    cells.observe(STAGE, (model, "lookup"), encoded.lookup_seconds)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a prompt, and the marker of a reasoning block that it opens."""

    text: str
    opens_reasoning: str | None
    seconds: float


def render(model: Model, source: ChatInput | TextInput) -> Rendered:
    if isinstance(source, TextInput):
        return Rendered(source.text, None, 0.0)
    started = time.monotonic()
    placeholder = model.processor.placeholder if source.images and model.processor else ""
    text, opens_reasoning = model.templates.render(source, placeholder)
    return Rendered(text, opens_reasoning, time.monotonic() - started)


def encode(model: Model, encoder: Encoder, source: ChatInput | TextInput, rendered: Rendered, may_wait: bool) -> Prompt:
    started = time.monotonic()
    encoded = encoder.encode(rendered.text, may_wait)
    token_ids = encoded.token_ids
    if source.add_special_tokens:
        token_ids = model.tokenizer.specials.around(token_ids)
    return Prompt(token_ids, rendered.seconds, time.monotonic() - started, rendered.opens_reasoning, encoded)


def render_and_encode(model: Model, encoder: Encoder, source: ChatInput | TextInput) -> Prompt:
    """A job for the pool."""
    return encode(model, encoder, source, render(model, source), True)
