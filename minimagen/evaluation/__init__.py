"""Measures of what a trained cascade draws: does it show what is said, and vary what is not?"""

from minimagen.evaluation.coverage import (
    Coverage,
    caption_coverage,
    coverage_of_readings,
    true_scenes,
)
from minimagen.evaluation.fidelity import (
    ATTRIBUTES,
    Fidelity,
    caption_fidelity,
    chance_level,
    fidelity,
    judge,
)
from minimagen.evaluation.reading import Reading, ReadObject, read_image, read_images, reading_of

__all__ = [
    "ATTRIBUTES",
    "Coverage",
    "Fidelity",
    "ReadObject",
    "Reading",
    "caption_coverage",
    "caption_fidelity",
    "chance_level",
    "coverage_of_readings",
    "fidelity",
    "judge",
    "read_image",
    "read_images",
    "reading_of",
    "true_scenes",
]
