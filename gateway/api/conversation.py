"""The conversation in a body: messages, tools, documents, and how the template is to render them."""

from functools import partial
from typing import Any

from gateway.api.body import Fields
from gateway.api.image_parts import IMAGE_PARTS, read_image
from gateway.types import ChatInput, ImageSource

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
NOT_TEMPLATE_ARGUMENTS = ("messages", "chat_template", "continue_final_message", "tokenize")
"""What `chat_template_kwargs` must not hold, since it has a place of its own or none."""
TEXT_PARTS = {"input_text": "text", "output_text": "text"}
IMAGE = {"type": "image"}
"""What templates take for an image."""
TEMPLATE_FIELDS = (
    *("continue_final_message", "chat_template_kwargs", "add_generation_prompt", "tools", "documents"),
    *("enable_thinking", "thinking", "reasoning_effort", "chat_template", "add_special_tokens"),
)
THINKING = {"enabled": True, "disabled": False, "auto": None}


def read_conversation(fields: Fields) -> ChatInput:
    """Raises BadRequest with the path of what is wrong."""
    images: list[ImageSource] = []
    messages = fields.each("messages", partial(read_message, images))
    if fields.lacks(TEMPLATE_FIELDS):
        return ChatInput(messages, images=tuple(images))
    continues = read_continue(fields)
    arguments = read_template_arguments(fields)
    if fields.has("add_generation_prompt"):
        arguments = {"add_generation_prompt": fields.boolean("add_generation_prompt")} | arguments
    if continues and arguments.get("add_generation_prompt"):
        fields.refuse("continue_final_message", "cannot be combined with add_generation_prompt")
    return ChatInput(
        messages=messages,
        tools=read_tools(fields),
        documents=fields.each("documents", lambda document: document.values) if fields.has("documents") else None,
        template_arguments=arguments,
        continue_final_message=continues,
        thinking=read_thinking(fields),
        reasoning_effort=fields.text("reasoning_effort") if fields.has("reasoning_effort") else None,
        template=fields.text("chat_template") if fields.has("chat_template") else None,
        add_special_tokens=fields.boolean("add_special_tokens"),
        images=tuple(images),
    )


def read_continue(fields: Fields) -> bool | str:
    """Whether to go on with the last message, or the name of its field to go on with, as transformers takes it."""
    if isinstance(fields.value("continue_final_message"), str):
        return fields.text("continue_final_message")
    return fields.boolean("continue_final_message")


def read_template_arguments(fields: Fields) -> dict[str, Any]:
    arguments = fields.object("chat_template_kwargs")
    for name in NOT_TEMPLATE_ARGUMENTS:
        if name in arguments.values:
            arguments.refuse(name, "is no template argument; such fields stand in the body itself")
    return arguments.values


def read_thinking(fields: Fields) -> bool | None:
    """`enable_thinking` (Qwen's name), or `thinking` as true or false, or as GLM's and Kimi's {"type": "enabled"}."""
    if fields.has("enable_thinking"):
        return fields.boolean("enable_thinking")
    if not fields.has("thinking"):
        return None
    if not isinstance(fields.value("thinking"), dict):
        return fields.boolean("thinking")
    thinking = fields.object("thinking")
    kind = thinking.text("type")
    if kind not in THINKING:
        thinking.refuse("type", f"must be one of {', '.join(THINKING)}")
    return THINKING[kind]


def read_tools(fields: Fields) -> list[dict[str, Any]] | None:
    """The tools as they are, since templates show them to the model; none for an empty list."""
    return fields.each("tools", read_tool) if fields.value("tools") not in (None, []) else None


def read_tool(fields: Fields) -> dict[str, Any]:
    if fields.text("type") == "function":
        fields.object("function").text("name")
    return fields.values


def read_message(images: list[ImageSource], fields: Fields) -> dict[str, Any]:
    """A message as the client sent it, once it is known to be one; its images are added to `images`."""
    role = fields.text("role")
    if role not in ROLES:
        fields.refuse("role", f"must be one of {', '.join(ROLES)}")
    content = fields.value("content")
    if content is None and role != "assistant":
        fields.refuse("content", "is required")
    if isinstance(content, list):
        content = fields.each("content", partial(read_part, images))
    elif content is not None and not isinstance(content, str):
        fields.refuse("content", "must be a string or a list of parts")
    if isinstance(content, str):
        return fields.values
    return {**fields.values, "content": content}


def read_part(images: list[ImageSource], fields: Fields) -> dict[str, Any]:
    """A part of a content: an image or text. A refusal in the history is text, too, and so are the parts of the
    Responses API."""
    kind = fields.text("type")
    if kind in IMAGE_PARTS:
        images.append(read_image(fields, kind))
        return IMAGE
    kind = TEXT_PARTS.get(kind, kind)
    if kind not in ("text", "refusal"):
        fields.refuse("type", f"is {kind!r}, which is none of text, image_url, input_image, image")
    text = fields.value(kind)
    if not isinstance(text, str):
        fields.refuse(kind, "must be a string")
    return fields.values if fields.values["type"] == "text" else {"type": "text", "text": text}
