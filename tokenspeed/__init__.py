"""TokenSpeed: an LLM inference server that keeps short requests ahead of long contexts."""

__version__ = "0.1.0"
