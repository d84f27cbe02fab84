"""Speculation whose drafts hold as often as is asked: see bench/README.md."""
