"""The algorithms, one file and one LightningModule each. A new one needs no entry anywhere else."""

from __future__ import annotations

import importlib
import pkgutil


def load_all() -> None:
    """Imports every file of this folder, so that the command line knows all algorithms by their short names."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def made_for(kind: str, images: bool = False) -> list[str]:
    """Names of this package's algorithms that are made for one kind of actions; of those that take images, if asked."""
    load_all()
    base = importlib.import_module(f"{__name__}.base").OfflineAlgorithm
    ours = [cls for cls in base.__subclasses__() if cls.__module__.startswith(f"{__name__}.")]
    return sorted(cls.__name__ for cls in ours if cls.kinds == (kind,) and cls.images >= images)
