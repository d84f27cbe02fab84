"""Loads any OpenAI-compatible endpoint, or two in turn, and tells what their users would have felt."""
