"""What lets others follow a training, and use its model: samples, curve, model card, upload.

``train`` trains like ``training.train``, and writes all of this too.
"""

from minimagen.sharing.curve import write_curve
from minimagen.sharing.hub import check_push
from minimagen.sharing.measured import SEEDS, Measured, measure
from minimagen.sharing.run import Followed, finish, follow, publish, train

__all__ = [
    "SEEDS",
    "Followed",
    "Measured",
    "check_push",
    "finish",
    "follow",
    "measure",
    "publish",
    "train",
    "write_curve",
]
