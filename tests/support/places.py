"""Where things lie."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
CARDS: Final = ROOT / "cards"
