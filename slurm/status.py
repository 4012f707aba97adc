"""How a sweep stands.

python -m slurm.status [FOLDER]    # a sweep's folder or a runs folder; default: runs
"""

from __future__ import annotations

from slurm.survey import PackState, Surveyor, survey

__all__ = ["PackState", "Surveyor", "survey"]
