"""The configuration of a training: every flag of ``train.py``, as text and as JSON."""

from __future__ import annotations

import dataclasses
import math
import types
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from minimagen.data import DEFAULT_LENGTH
from minimagen.data.shapes import WORLDS
from minimagen.imagen import ImagenConfig, StageConfig
from minimagen.unet import UnetConfig

T = TypeVar("T")


def flag(default: object, group: str, help: str, short: str | None = None) -> Any:
    """A field of a configuration that is a flag; its name in capitals is the flag's name."""
    return field(default=default, metadata={"group": group, "help": help, "short": short})


@dataclass(frozen=True)
class TrainConfig:
    """Every flag of ``train.py``, with its value. A field ``batch_size`` is --BATCH_SIZE.

    A tuple has one value for all stages, or one per stage. None is the word "none" in text.
    Raises ValueError, naming the flag, for a value out of range.
    """

    parameters: str | None = flag(
        None, "model", "directory with a configuration, structured like parameters/", "p"
    )
    img_side_len: int | None = flag(
        None, "model", "side of the finished pictures, in pixels (that of the model)", "s"
    )
    t5_name: str | None = flag(
        None, "model", "text encoder: t5_tiny, t5_small, ..., a Hub id, a directory (t5_tiny)", "t5"
    )
    max_num_words: int | None = flag(None, "model", "most tokens in a caption (64)", "mw")
    timesteps: int | None = flag(
        None, "model", "grid of times from which samplers choose their steps (1000)", "t"
    )
    dataset: str = flag(
        "shapes",
        "data",
        f"a world of shapes ({', '.join(WORLDS)}), a data set of the Hugging Face Hub, or a local "
        "folder of images",
    )
    num_images: int | None = flag(
        None,
        "data",
        f"scenes of a shapes world ({DEFAULT_LENGTH}), or most pictures of others (all)",
    )
    image_column: str = flag("image", "data", "column of a data set that has the pictures")
    caption_column: str = flag("text", "data", "column of a data set that has the captions")
    train_valid_frac: float = flag(0.9, "data", "share of the pictures that is trained on", "f")
    valid_num: int | None = flag(None, "data", "pictures of the rest to validate on (all)", "vn")
    num_workers: int = flag(0, "data", "processes that load pictures; 0: none beside this", "n")
    cache_directory: str | None = flag(
        ".cache", "data", "where embeddings of captions are kept for the next training, or none"
    )
    epochs: tuple[int, ...] = flag(
        (8,), "training", "times through the data; a list: per stage", "e"
    )
    batch_size: tuple[int, ...] = flag(
        (32,), "training", "pictures in a batch; a list: per stage", "b"
    )
    optim_lr: tuple[float, ...] = flag(
        (2e-3,), "training", "learning rate; a list: per stage", "lr"
    )
    accum_iter: int = flag(1, "training", "batches whose gradients make one step", "ai")
    warmup: int = flag(100, "training", "steps over which the learning rate rises at the start")
    clip_norm: float = flag(1.0, "training", "longest gradient, over all weights of a stage")
    ema_decay: float = flag(0.999, "training", "of the moving average of weights that is kept")
    seed: int = flag(0, "training", "of weights, data and noise")
    restart_directory: str | None = flag(
        None, "run", "training directory to go on from; a new one is made", "rd"
    )
    chckpt_num: int = flag(500, "run", "batches between temporary checkpoints", "cn")
    device: str = flag("auto", "run", "auto, cpu, cuda or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto", "run", "fp32, bf16, fp16, or auto: what is faster here, measured"
    )
    threads: int | None = flag(None, "run", "CPU threads (torch's choice)")
    output_directory: str = flag(".", "run", "where training_<TIMESTAMP>/ is made")
    testing: bool = flag(
        False, "run", "a small model and little data, to see that all works", "test"
    )

    def __post_init__(self) -> None:
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and one < low:
                    raise ValueError(f"{flag_name(name)} is {one}, it should be at least {low}")
        for name in ("clip_norm", "optim_lr"):
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if not (math.isfinite(one) and one > 0):
                    raise ValueError(f"{flag_name(name)} is {one}, it should be above 0")
        if not 0 < self.train_valid_frac < 1:
            raise ValueError(
                f"--TRAIN_VALID_FRAC is {self.train_valid_frac}, it should be above 0 and below 1"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--EMA_DECAY is {self.ema_decay}, it should be in [0, 1)")
        if self.seed >= 2**63:
            raise ValueError(f"--SEED is {self.seed}, it should be below 2^63")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"--PRECISION is {self.precision!r}, it should be one of {', '.join(PRECISIONS)}"
            )

    def per_stage(self, name: str, stages: int) -> tuple[Any, ...]:
        """The values of a field with one value for all stages or one per stage, one per stage.

        Raises ValueError, naming the flag, when their number is neither.
        """
        values = getattr(self, name)
        if len(values) not in (1, stages):
            raise ValueError(
                f"{flag_name(name)} has {len(values)} values, for {stages} stages it should have "
                f"1 or {stages}"
            )
        return values * stages if len(values) == 1 else values

    def to_flags(self) -> dict[str, str]:
        """The flags that say all of this, as text; not those that say where it came from."""
        return {
            item.name.upper(): to_text(getattr(self, item.name))
            for item in fields(self)
            if item.name not in ORIGIN
        }


PRECISIONS = get_args(get_type_hints(TrainConfig)["precision"])
ORIGIN = ("parameters", "restart_directory")  # where a configuration came from, not part of it
_AT_LEAST = {
    "img_side_len": 1,
    "max_num_words": 2,
    "timesteps": 1,
    "num_images": 2,
    "valid_num": 1,
    "num_workers": 0,
    "epochs": 1,
    "batch_size": 1,
    "accum_iter": 1,
    "warmup": 0,
    "seed": 0,
    "chckpt_num": 1,
    "threads": 1,
}


class Architecture(NamedTuple):
    """What is trained: the cascade and its U-Nets."""

    imagen: ImagenConfig
    unets: tuple[UnetConfig, ...]


def default_architecture(dataset: str, testing: bool = False) -> Architecture:
    """The model that is trained when no --PARAMETERS say otherwise.

    dataset: the data that it is meant for; testing: a smaller one
    """
    # Both predict x. A large v or eps must carry the noise of every pixel through the network,
    # which a small one learns slowly. The weights spare the base most of the times at which only
    # the caption is known, and chance decides the rest; super-resolution always has a picture to
    # go by.
    stages = (
        StageConfig(
            side=16, parameterization="x", weighting="clamped_snr", guidance_weight=3.0, steps=20
        ),
        StageConfig(side=32 if testing else 64, parameterization="x", steps=16),
    )
    base = UnetConfig(channels=(32, 64), blocks=(1, 1), pool_queries=16)
    upper = UnetConfig(
        channels=(64, 64),
        blocks=(1, 1),
        self_attention=(False, False),
        pool_queries=16,
        lowres=True,
        efficient=True,
        patch=2,
    )
    if testing:
        small: dict[str, Any] = {"channels": (16, 32), "heads": 2, "head_dim": 16}
        base, upper = replace(base, **small), replace(upper, **small)
    return Architecture(ImagenConfig(stages), (base, upper))


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``; "auto" takes CUDA, else MPS, else the CPU.

    Raises ValueError, naming --DEVICE, when there is no such device here.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, available in there.items() if available)
    if not there.get(name, False):
        here = ", ".join(["auto", *(kind for kind, available in there.items() if available)])
        raise ValueError(f"--DEVICE is {name!r}, here it should be one of {here}")
    return torch.device(name)


# --- flags as text --------------------------------------------------------------------------------


def flag_name(name: str) -> str:
    """A field's name as a flag: ``batch_size`` -> ``--BATCH_SIZE``."""
    return f"--{name.upper()}"


def to_text(value: object) -> str:
    """A flag's value as it stands on the command line: ``(20, 6)`` -> ``"20,6"``."""
    if isinstance(value, tuple):
        return ",".join(map(to_text, value))
    return "none" if value is None else str(value)


def parse_flag(config: type, name: str, value: object) -> object:
    """The value of field ``name`` of a configuration, from text; other than text passes through.

    One number for a field that has one per stage is the same for all stages.

    Raises ValueError, naming the flag and what would be right.
    """
    hints = get_type_hints(config)
    if name not in hints:
        raise ValueError(f"{flag_name(name)} is not a flag, --help lists them")
    choices = [kind for kind in get_args(hints[name]) if kind is not type(None)]
    optional = type(None) in get_args(hints[name])
    if optional and isinstance(value, str) and value.lower() == "none":
        return None
    origin = get_origin(hints[name])
    kind = choices[0] if origin in (Union, types.UnionType) else hints[name]
    if not isinstance(value, str):
        if get_origin(kind) is tuple and isinstance(value, int | float):
            return (value,)
        return tuple(value) if isinstance(value, list) else value
    if origin is Literal or kind is str:
        return value
    try:
        if get_origin(kind) is tuple:
            return tuple(get_args(kind)[0](part) for part in value.split(","))
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError):
        raise ValueError(
            f"{flag_name(name)} is {value!r}, it should be {_describe(kind)}"
            + (" or none" if optional else "")
        ) from None


def _describe(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    if get_origin(kind) is tuple:
        return f"{words[get_args(kind)[0]]}, or one per stage with commas between"
    return words[kind]


def read_flags(path: Path) -> dict[str, str]:
    """The flags in a file of lines ``--FLAG=value``; empty lines and lines of ``#`` are skipped.

    Raises ValueError, naming the file and the line.
    """
    known = {item.name.upper() for item in fields(TrainConfig)} - {n.upper() for n in ORIGIN}
    flags: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.strip().partition("=")
        if not (equals and name.startswith("--")):
            raise ValueError(f"{path}, line {number}: {line!r} should be --FLAG=value")
        if name[2:] not in known:
            raise ValueError(f"{path}, line {number}: {name} is not a flag of a configuration")
        flags[name[2:]] = value
    return flags


# --- JSON -----------------------------------------------------------------------------------------


def from_json(kind: type[T], data: object, where: str) -> T:
    """A configuration dataclass from what JSON made of it.

    where: the file, for errors. Raises ValueError, naming the file and the key, for a key that is
    unknown or missing, a value of the wrong type, and values that the dataclass refuses.
    """
    return _convert(kind, data, where, "")


def _convert(kind: Any, data: Any, where: str, key: str) -> Any:
    def wrong(due: str) -> ValueError:
        return ValueError(f"{where}: {key or 'it'} is {data!r}, it should be {due}")

    origin, choices = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(data, dict):
            raise wrong("an object with keys, {...}")
        hints = get_type_hints(kind)
        prefix = f"{key}." if key else ""
        for name in data:
            if name not in hints:
                raise ValueError(
                    f"{where}: unknown key {prefix + name!r}, known are {', '.join(hints)}"
                )
        for item in fields(kind):
            no_default = item.default is item.default_factory is dataclasses.MISSING
            if item.name not in data and no_default:
                raise ValueError(f"{where}: key {prefix + item.name!r} is missing")
        values = {name: _convert(hints[name], data[name], where, prefix + name) for name in data}
        try:
            return kind(**values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if origin in (Union, types.UnionType):
        if data is None and type(None) in choices:
            return None
        return _convert(next(c for c in choices if c is not type(None)), data, where, key)
    if origin is Literal:
        if data not in choices:
            raise wrong(f"one of {', '.join(map(str, choices))}")
        return data
    if origin is tuple:
        same = choices[-1] is Ellipsis
        if not isinstance(data, list) or not (same or len(data) == len(choices)):
            raise wrong("a list" if same else f"a list of {len(choices)}")
        kinds = [choices[0]] * len(data) if same else choices
        return tuple(
            _convert(one, part, where, f"{key}[{i}]")
            for i, (one, part) in enumerate(zip(kinds, data, strict=True))
        )
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        raise wrong(
            {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
        )
    return data
