"""Images among the parts of a message, in the forms in which clients send them."""

from typing import Any

from gateway.api.body import Fields
from gateway.types import ImageSource

IMAGE_PARTS = ("image_url", "input_image", "image")
DETAILS = ("auto", "low", "high", "original")
LONGEST_SCHEME = 20
SOURCES = ("image_url", "image", "source", "url", "base64", "data")
"""Where in a part the image is: OpenAI's name and those of other clients."""


def read_image(fields: Fields, kind: str) -> ImageSource:
    """Of `{"type": "image_url", "image_url": {"url": …, "detail": …}}`, also with the URL in place of the object, the
    Responses API's input_image, Anthropic's `{"type": "image", "source": {…}}`, and `{"type": "image", "image": …}`
    with an URL or base64. Raises BadRequest with the path of what is wrong."""
    name = next((each for each in SOURCES if fields.has(each)), None)
    if name is None:
        fields.refuse(kind if kind == "image_url" else "image_url", "is required")
    value = fields.value(name)
    if isinstance(value, dict):
        inner = fields.object(name)
        detail = read_detail(inner if inner.has("detail") else fields)
        key = next((each for each in ("url", "data", "base64") if inner.has(each)), "url")
        return ImageSource(as_url(inner.text(key)), fields.path(name), detail)
    return ImageSource(as_url(fields.text(name)), fields.path(name), read_detail(fields))


def read_detail(fields: Fields) -> str:
    if not fields.has("detail"):
        return "auto"
    detail: Any = fields.value("detail")
    if detail not in DETAILS:
        fields.refuse("detail", f"must be one of {', '.join(DETAILS)}")
    return str(detail)


def as_url(text: str) -> str:
    """What has no scheme is base64, which has no colon."""
    return text if ":" in text[:LONGEST_SCHEME] else f"data:;base64,{text}"
