"""MinImagen: a small, readable text-to-image cascade, built like Imagen.

Most programs need only the names below. Each is imported when it is first used, so that
``import minimagen`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minimagen.generation import load_imagen
    from minimagen.imagen import Imagen, ImagenConfig, StageConfig
    from minimagen.samplers import SAMPLERS
    from minimagen.schedules import NoiseSchedule
    from minimagen.sharing import train
    from minimagen.text import load_text_encoder
    from minimagen.training import resolve
    from minimagen.unet import Unet, UnetConfig

    __version__: str

__all__ = [
    "SAMPLERS",
    "Imagen",
    "ImagenConfig",
    "NoiseSchedule",
    "StageConfig",
    "Unet",
    "UnetConfig",
    "__version__",
    "load_imagen",
    "load_text_encoder",
    "resolve",
    "train",
]
_HOMES = {
    "Imagen": "imagen",
    "ImagenConfig": "imagen",
    "NoiseSchedule": "schedules",
    "SAMPLERS": "samplers",
    "StageConfig": "imagen",
    "Unet": "unet",
    "UnetConfig": "unet",
    "load_imagen": "generation",
    "load_text_encoder": "text",
    "resolve": "training",
    "train": "sharing",
}


def __getattr__(name: str) -> object:
    """Import a name of ``__all__`` from its module."""
    if name in _HOMES:
        value = getattr(import_module(f"minimagen.{_HOMES[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("minimagen-course")
        except PackageNotFoundError:  # run from a clone, without an installation
            value = "unknown"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
