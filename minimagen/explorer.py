"""Figures of the notebooks, with alt text, and controls that draw them again.

    show(figure, "alt text")                            a matplotlib figure, as a small PNG
    show_images(images, titles, alt="...")              images (N, 3, H, W) side by side
    explore(figure, alt, t=(0.0, 1.0, 0.05, 0.3))       ``figure(t=0.3)``, and a slider for t

The figure of ``explore`` is an ordinary output of the cell, and a slider replaces it. So it is also
visible on a page without a kernel, and the widgets need not be saved.
"""

from __future__ import annotations

import copy
import io
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import torch
from IPython.display import DisplayHandle, display
from IPython.display import Image as DisplayImage
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minimagen.augmentation import augment
from minimagen.diffusion import q_sample
from minimagen.generation import Encode, draw, unknown_words
from minimagen.imagen import Imagen, resize
from minimagen.samplers import NoiseSource
from minimagen.schedules import NoiseSchedule
from minimagen.thresholding import Threshold

DPI = 80
COLOURS_IN_PNG = 256  # a palette: a third of the bytes, and hardly any difference to be seen

# (lowest, highest, step, initial) value of a slider, four integers for an integer slider; an
# initial text; or a list of choices, of which the first is the initial one.
Control = tuple[float, float, float, float] | str | list[Any]


def _png(figure: Figure) -> bytes:
    """The figure as a PNG; the figure is closed."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    image = Image.open(raw).convert("RGB")
    # kmeans: without it, noise takes up the palette, and light that fades becomes coloured stripes
    image = image.quantize(
        COLOURS_IN_PNG, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
    )
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def _bundle(figure: Figure, alt: str) -> dict[str, Any]:
    """What ``display(..., raw=True)`` shows: the PNG and, for those who cannot see it, the text."""
    # Colab's older IPython and ipywidgets need metadata instead of alt=, and the model's id below
    image = DisplayImage(_png(figure), format="png", metadata={"alt": alt})
    data, metadata = image._repr_mimebundle_()
    return {"data": data | {"text/plain": alt}, "metadata": metadata}


def show(figure: Figure, alt: str) -> None:
    """Display a matplotlib figure, and close it. alt: what it shows, in a sentence."""
    bundle = _bundle(figure, alt)
    display(bundle["data"], metadata=bundle["metadata"], raw=True)


def image_grid(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    columns: int = 8,
    size: float = 1.3,
    title: str | None = None,
) -> Figure:
    """A figure of images (3, H, W), or (1, H, W), in [-1, 1], in rows of ``columns``.

    titles: one for each image, set below it; size: of an image in inches; title: of the figure

    Raises ValueError when there are no images, or not one title for each.
    """
    if len(images) == 0 or (titles is not None and len(titles) != len(images)):
        raise ValueError(
            f"there are {len(images)} images and "
            f"{'no' if titles is None else len(titles)} titles, each image needs one"
        )
    if titles is not None:
        width = int(12 * size)  # letters of 8 points
        titles = ["\n".join(textwrap.fill(line, width) for line in t.split("\n")) for t in titles]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    room = 1.0 if titles is None else 1.25 + 0.12 * max(text.count("\n") for text in titles)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, size * rows * room), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        image = (image.detach().float().cpu().clamp(-1, 1) + 1) / 2  # (C, H, W) in [0, 1]
        if len(image) == 1:
            image = image.expand(3, -1, -1)
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")  # (H, W, 3)
        if titles is not None:
            axis.text(
                0.5, -0.04, titles[i], transform=axis.transAxes, ha="center", va="top", fontsize=8
            )
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def show_images(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    columns: int = 8,
    size: float = 1.3,
    title: str | None = None,
    *,
    alt: str,
) -> None:
    """Display ``image_grid`` of these."""
    show(image_grid(images, titles, columns, size, title), alt)


# --- controls -------------------------------------------------------------------------------------


def _widget(name: str, control: Control) -> Any:
    label: dict[str, Any] = {
        "description": name.replace("_", " "),
        "style": {"description_width": "initial"},
        "continuous_update": False,  # draw after the slider was moved
    }
    if isinstance(control, str):
        layout = ipywidgets.Layout(width="30em")
        return ipywidgets.Text(value=control, layout=layout, **label)
    if isinstance(control, list):
        del label["continuous_update"]
        return ipywidgets.Dropdown(options=control, value=control[0], **label)
    low, high, step, first = control
    whole = all(isinstance(number, int) for number in control)
    kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    return kind(value=first, min=low, max=high, step=step, **label)


def explore(
    figure: Callable[..., Figure],
    alt: str,
    note: Callable[..., str | None] | None = None,
    **controls: Control,
) -> ipywidgets.VBox:
    """Show ``figure(**values)`` and, above it, a control for each value; a change draws it again.

    figure: makes a figure; if it raises ValueError, the message is shown and the old figure stays
    alt: what the figure shows, in a sentence
    note: called with the same values; the text it returns is shown below the controls
    controls: per argument of ``figure``, see ``Control``

    Returns the controls, so that a test can move them.
    """
    widgets = {name: _widget(name, control) for name, control in controls.items()}
    line = ipywidgets.Label()  # of a note or an error
    box = ipywidgets.VBox([*widgets.values(), line])
    # The widget without a text in its place: without a kernel nothing is shown here.
    view = "application/vnd.jupyter.widget-view+json"
    model = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display({view: model}, raw=True)

    def bundle() -> dict[str, Any]:
        values = {name: widget.value for name, widget in widgets.items()}
        new = _bundle(figure(**values), alt)
        line.value = (note(**values) if note else None) or ""
        return new

    first = bundle()
    handle = display(first["data"], metadata=first["metadata"], raw=True, display_id=True)

    def again(_: object) -> None:
        try:
            new = bundle()
        except ValueError as error:
            line.value = str(error)
            return
        if isinstance(handle, DisplayHandle):
            handle.update(new["data"], metadata=new["metadata"], raw=True)

    for widget in widgets.values():
        widget.observe(again, names="value")
    return box


def explore_forward_process(image: Tensor, schedules: dict[str, NoiseSchedule]) -> ipywidgets.VBox:
    """z_t of an image (3, H, W) in [-1, 1], by time and schedule (lesson 01)."""
    eps = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))

    def figure(t: float, schedule: str) -> Figure:
        alpha, sigma = schedules[schedule].alpha_sigma(torch.tensor(t))
        z = q_sample(image, eps, alpha, sigma)
        titles = ["x", f"z at t = {t:.2f}\nalpha {alpha:.2f}, sigma {sigma:.2f}", "eps"]
        return image_grid([image, z, eps], titles, size=2)

    return explore(
        figure,
        "a clean image, the same with noise at time t, and the noise alone",
        t=(0.0, 1.0, 0.02, 0.4),
        schedule=list(schedules),
    )


def explore_guidance(
    imagen: Imagen, encode: Encode, caption: str, seed: int = 0
) -> ipywidgets.VBox:
    """What the base stage draws, by guidance weight, threshold and percentile (lesson 06)."""
    stage = copy.deepcopy(imagen.stages[0])  # the caller's settings stay as they are
    shape = (3, stage.config.side, stage.config.side)
    text, mask = encode([caption])

    def figure(guidance_weight: float, threshold: Threshold, percentile: float) -> Figure:
        stage.config = replace(
            stage.config,
            guidance_weight=guidance_weight,
            threshold=threshold,
            percentile=percentile,
        )
        noise = NoiseSource([seed], shape)
        *_, image = stage.sample(text, mask, noise, imagen.config.timesteps)
        return image_grid(image, [f"w = {guidance_weight:g}, {threshold}"], size=2.5)

    return explore(
        figure,
        f"{caption}, drawn with the chosen guidance weight, threshold and percentile",
        guidance_weight=(1.0, 15.0, 0.5, 3.0),
        threshold=["dynamic", "static", "none"],
        percentile=(0.5, 1.0, 0.01, 0.95),
    )


def explore_augmentation(
    imagen: Imagen, encode: Encode, caption: str, lowres: Tensor, seed: int = 0
) -> ipywidgets.VBox:
    """One low-resolution image (3, h, h), noised to a level, and enlarged (lesson 05)."""
    stage = copy.deepcopy(imagen.stages[1])
    side, lowres_side = stage.config.side, imagen.stages[0].config.side
    text, mask = encode([caption])

    def figure(level: float) -> Figure:
        stage.config = replace(stage.config, aug_level=level)
        noise = NoiseSource([seed], (3, side, side))
        *_, image = stage.sample(text, mask, noise, imagen.config.timesteps, lowres[None])
        # its second draw is the noise of the condition, see Stage.sample
        again = NoiseSource([seed], (3, side, side))
        again()
        small = resize(lowres[None], lowres_side)
        levels, schedule = torch.tensor([level]), stage.config.schedule
        condition = augment(resize(small, side), levels, again(), schedule)
        titles = ["low resolution", f"with noise, level {level:.2f}", "enlarged"]
        return image_grid([lowres, condition[0], image[0]], titles, size=2)

    return explore(
        figure,
        f"{caption}: a small image, the same with noise, and what the second stage makes of it",
        level=(0.0, 1.0, 0.05, 0.1),
    )


def explore_captions(
    imagen: Imagen,
    encode: Encode,
    caption: str,
    seed: int = 0,
    known: Collection[str] | None = None,
) -> ipywidgets.VBox:
    """Type a caption and see it drawn by every stage (lessons 00 and 07).

    known: words that the model was trained on, see ``TrainingDirectory.load_words``; a note names
           the words of the caption that are not among them
    """

    def figure(caption: str, seed: int, guidance_weight: float) -> Figure:
        own = copy.deepcopy(imagen)
        base = own.stages[0]
        base.config = replace(base.config, guidance_weight=guidance_weight)
        images = [batch[0] for batch in draw(own, encode, [caption], [seed])]
        titles = [f"stage {i}: {image.shape[-1]} pixels" for i, image in enumerate(images)]
        return image_grid(images, titles, size=2.5, title=caption)

    return explore(
        figure,
        "what each stage of the cascade draws for the caption",
        lambda caption, **_: unknown_words([caption], known),
        caption=caption,
        seed=(0, 99, 1, seed),
        guidance_weight=(1.0, 10.0, 0.5, imagen.config.stages[0].guidance_weight),
    )
