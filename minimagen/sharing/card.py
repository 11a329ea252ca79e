"""The model card of a training, README.md in its directory, in the form of the Hugging Face Hub."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData

import minimagen
from minimagen.data import DEFAULT_LENGTH
from minimagen.data.shapes import WORLDS
from minimagen.files import atomic_write
from minimagen.imagen import Imagen
from minimagen.parameters import Parameters
from minimagen.presets import default_architecture
from minimagen.run_directory import TrainingDirectory
from minimagen.settings import flag_name, from_text, to_text
from minimagen.sharing.measured import Measured
from minimagen.training.config import KEPT, TESTING, TrainConfig

OF_THE_MACHINE = ("num_workers", "cache_directory", "device", "threads", "output_directory")
OF_THE_MODEL = ("img_side_len", "t5_name", "max_num_words", "timesteps")


def write_card(
    directory: TrainingDirectory, images: int | None = None, measured: Measured | None = None
) -> None:
    """Write the model card; it shows those of curve.png, sheet.png and samples.png that are there.

    images: number of images trained on, None: not known; measured: what is in sheet.png

    Raises ValueError if the configuration is broken, and OSError if it cannot be written.
    """
    parameters = directory.load_parameters(KEPT)
    config = TrainConfig(**from_text(TrainConfig, parameters.flags))  # type: ignore[arg-type]
    data, data_id = _data(config, images)
    text = f"""\
# {directory.path.name}

A small text-to-image model: a cascade of diffusion models, as in
[Imagen](https://arxiv.org/abs/2205.11487), trained with MinImagen {minimagen.__version__}.

{_sizes(parameters)}

The text encoder is `{_short(parameters.imagen.text_encoder)}`, which reads at most \
{parameters.imagen.max_tokens} tokens of a caption.

## How to use it

```python
from minimagen import load_imagen, load_text_encoder
from minimagen.generation import draw, to_image

imagen = load_imagen("{directory.path.name}")
encode = load_text_encoder(imagen.config.text_encoder, imagen.config.max_tokens).encode
image = to_image(draw(imagen, encode, ["a caption"], seeds=[0])[-1][0])
```

or `minimagen draw -d {directory.path.name} -c "a caption"`.

## Data

{data}

## Training

{_command(config, parameters)}

{_pictures(directory, config.dataset in WORLDS, measured)}"""
    about = ModelCardData(
        library_name="minimagen",
        pipeline_tag="text-to-image",
        tags=["imagen", "diffusion"],
        datasets=data_id,
    )
    card = ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text.rstrip()}\n")
    _write(directory, str(card))


def rename(directory: TrainingDirectory, name: str) -> None:
    """Write the name that a model has on the Hub into its card."""
    text = directory.card.read_text(encoding="utf-8")
    text = re.sub(r"^# .+$", f"# {name}", text, count=1, flags=re.M)
    text = re.sub(r'load_imagen\(".+"\)', f'load_imagen("{name}")', text)
    text = re.sub(r"minimagen draw -d .+? -c", f"minimagen draw -d {name} -c", text)
    _write(directory, text)


def _write(directory: TrainingDirectory, text: str) -> None:
    atomic_write(directory.card, lambda part: part.write_text(text, encoding="utf-8"))


def _short(name: str) -> str:
    """A path's last part, as the rest says nothing to others; any other name as it is."""
    return Path(name).name if Path(name).is_absolute() else name


def _sizes(parameters: Parameters) -> str:
    with torch.device("meta"):  # which takes no memory
        imagen = Imagen(parameters.imagen, parameters.unets)
    lines = ["| stage | pixels | weights |", "| --- | --- | --- |"]
    for i, stage in enumerate(imagen.stages):
        count = sum(weight.numel() for weight in stage.parameters())
        lines.append(f"| {i} | {stage.config.side} × {stage.config.side} | {count:,} |")
    return "\n".join(lines)


def _data(config: TrainConfig, images: int | None) -> tuple[str, str | None]:
    """What the card says of the data, and their id on the Hub, if that is where they are."""
    name, data_id = config.dataset, None
    license = config.data_license
    if name in WORLDS:
        what = f"The world `{name}` of coloured shapes, which MinImagen renders"
        license = license or "MIT, as MinImagen"
    elif Path(name).exists() or Path(name).is_absolute():
        what = f"A local data set, `{_short(name)}`"
    else:
        data_id = name
        what = f"The data set [{name}](https://huggingface.co/datasets/{name}) of the Hub"
        license = license or _license(name)
    count = "" if images is None else f", {images:,} images trained on"
    return f"{what}{count}. Licence of the data: {license or 'not told'}.", data_id


def _license(name: str) -> str | None:
    """The licence that a data set of the Hub says it has; None without one or a network."""
    try:
        card = HfApi().dataset_info(name, timeout=10).card_data
    except Exception:  # of the network: a card without it is better than none
        return None
    license = None if card is None else card.get("license")
    return ", ".join(license) if isinstance(license, list) else license


def _command(config: TrainConfig, parameters: Parameters) -> str:
    """The command that repeats the training."""
    again = f"`minimagen train {flag_name('parameters')} parameters` in this directory"
    model = default_architecture(config.testing)
    own_model = (parameters.imagen, parameters.unets) != (model.imagen, model.unets)
    skipped = OF_THE_MACHINE + OF_THE_MODEL + ("data_license",)
    defaults = {item.name: item.default for item in fields(TrainConfig)}
    if config.dataset in WORLDS:
        defaults["num_images"] = DEFAULT_LENGTH
    if config.testing:
        defaults |= TESTING | {"testing": False}
    flags = []
    for name in (name for name in KEPT if name not in skipped):
        value = getattr(config, name)
        if value == defaults[name]:
            continue
        text = _short(value) if name == "dataset" else to_text(value)
        flags.append(flag_name(name) if value is True else f"{flag_name(name)} {shlex.quote(text)}")
    if own_model:
        said = ", ".join(f"`{flag}`" for flag in flags)
        return f"Trained by {again}: a model of its own{f', with {said}' if said else ''}."
    command = " ".join(["minimagen train", *flags])
    return f"```bash\n{command}\n```\n\nor {again}."


def _pictures(directory: TrainingDirectory, world: bool, measured: Measured | None) -> str:
    """The pictures that there are. world: the captions are held out, and not only their images."""
    parts = []
    if directory.curve.exists():
        parts.append("![Losses of all stages](curve.png)\n\n`training_log.csv` has the figures.")
    if directory.samples.exists():
        parts.append("![The same captions as the training goes on](samples.png)")
    if measured is not None:
        what = "that it was not trained on" if world else "of images that it was not trained on"
        parts.append(
            f"## What it draws\n\nCaptions {what}:\n\n![Captions {what}, and images](sheet.png)"
        )
        if measured.fidelity is not None:
            text = (
                f"Caption fidelity, the share of {measured.fidelity.n} images that show what their "
                "captions say"
            )
            if measured.coverage is not None:
                text += ", and coverage, whether what they leave open varies as in the world "
                text += "(1 is perfect)"
            parts.append(f"{text}:\n\n```\n{measured}\n```")
    return "\n\n".join(parts)
