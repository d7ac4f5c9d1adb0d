"""Text to token ids and back: the tokenizer, the chat template, the detokenizers of one model folder."""

from gateway.tokenizer.chat_template import ChatTemplate
from gateway.tokenizer.detokenize import Detokenizer, DetokenizerTable
from gateway.tokenizer.huggingface import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "DetokenizerTable", "Tokenizer"]
