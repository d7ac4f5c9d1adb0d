"""Text to token ids and back: the tokenizer, the chat templates, the detokenizers of one model folder."""

from gateway.tokenizer.cache import TokenCache
from gateway.tokenizer.chat_template import ChatTemplate
from gateway.tokenizer.detokenize import Detokenizer, DetokenizerTable
from gateway.tokenizer.encoder import Encoder
from gateway.tokenizer.huggingface import Tokenizer
from gateway.tokenizer.special_tokens import SpecialTokens
from gateway.tokenizer.structure import Structure
from gateway.tokenizer.template_files import load_chat_templates
from gateway.tokenizer.template_set import ChatTemplates, RequestTemplates

__all__ = [
    "ChatTemplate",
    "ChatTemplates",
    "Detokenizer",
    "DetokenizerTable",
    "Encoder",
    "RequestTemplates",
    "SpecialTokens",
    "Structure",
    "TokenCache",
    "Tokenizer",
    "load_chat_templates",
]
