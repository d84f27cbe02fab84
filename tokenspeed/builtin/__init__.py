"""The built-in model and its draft: two standard checkpoint folders that travel with the package."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
DRAFT = Path(__file__).parent / "draft"
