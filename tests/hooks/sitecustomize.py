"""Put first on PYTHONPATH: a program of this project starts as ever, with `tests.stand_in` in place of what takes long."""

import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.append(ROOT)

from tests.stand_in import stand_in  # noqa: E402

sys.path.remove(ROOT)
stand_in(draws=os.environ.get("PLATEAU_TEST_DRAWS") == "1")
