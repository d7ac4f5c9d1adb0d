from pathlib import Path


def generate_path() -> Path:
    """The script that has transformers render everything."""
    return Path(__file__).parent / "generate.py"
