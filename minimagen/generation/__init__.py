"""From a trained cascade to image files: load it, draw captions, write the images.

    imagen = load_imagen("training_20261122_120000", guidance_weight=(3.0,))
    encoder = load_text_encoder(imagen.config.text_encoder)
    images = draw(imagen, encoder.encode, ["a red circle"], seeds=[0])[-1]  # (1, 3, side, side)

``generate`` does all of this and makes a directory ``generated_images_<TIMESTAMP>``.
"""

from minimagen.generation.captions import read_captions, unknown_words
from minimagen.generation.config import GenerationConfig
from minimagen.generation.draw import Encode, draw, states
from minimagen.generation.files import Frames, animation, contact_sheet, to_image, write
from minimagen.generation.load import (
    Loaded,
    load,
    load_imagen,
    one_evaluation,
    open_model,
    untrained,
    with_sampling,
)
from minimagen.generation.run import Generated, generate

__all__ = [
    "Encode",
    "Frames",
    "Generated",
    "GenerationConfig",
    "Loaded",
    "animation",
    "contact_sheet",
    "draw",
    "generate",
    "load",
    "load_imagen",
    "one_evaluation",
    "open_model",
    "read_captions",
    "states",
    "to_image",
    "unknown_words",
    "untrained",
    "with_sampling",
    "write",
]
