"""An LLM gateway in free-threaded CPython: HTTP and text on this side, token ids to the engines on the other."""

__version__ = "0.1.0"
