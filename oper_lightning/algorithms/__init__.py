"""The algorithms, one file and one LightningModule each. A new one needs no entry anywhere else."""

from __future__ import annotations

import importlib
import pkgutil


def load_all() -> None:
    """Imports every file of this folder, so that the command line knows all algorithms by their short names."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
