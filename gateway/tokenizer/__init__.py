"""Text to token ids and back: the tokenizer, the chat template, the detokenizers of one model folder."""

from gateway.tokenizer.cache import TokenCache
from gateway.tokenizer.chat_template import ChatTemplate
from gateway.tokenizer.detokenize import Detokenizer, DetokenizerTable
from gateway.tokenizer.encoder import Encoder
from gateway.tokenizer.huggingface import Tokenizer
from gateway.tokenizer.structure import Structure

__all__ = ["ChatTemplate", "Detokenizer", "DetokenizerTable", "Encoder", "Structure", "TokenCache", "Tokenizer"]
