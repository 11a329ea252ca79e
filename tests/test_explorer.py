"""Images of the notebooks and the sliders that draw them anew."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any, cast

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.display import DisplayHandle
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from minimagen import explorer
from minimagen.imagen import Imagen, ImagenConfig, StageConfig
from minimagen.schedules import NoiseSchedule
from minimagen.unet import Unet, UnetConfig

BASE = UnetConfig(
    channels=(16,),
    blocks=(1,),
    self_attention=(False,),
    text_attention=(True,),
    heads=2,
    head_dim=8,
    text_dim=8,
    pool_queries=2,
    cond_dim=16,
    position_dim=8,
)
SUPER = dataclasses.replace(BASE, lowres=True, efficient=True, text_attention=(False,))
WIDGET = "application/vnd.jupyter.widget-view+json"


class Page:
    """What a page would show: the widgets, and the images one after the other."""

    def __init__(self) -> None:
        self.widgets: list[dict[str, Any]] = []
        self.images: list[bytes] = []
        self.alts: list[str] = []

    def display(self, data: dict[str, Any], **options: Any) -> DisplayHandle | None:
        """Stands in for IPython's display."""
        assert options["raw"]
        if set(data) == {WIDGET}:
            self.widgets.append(data)
            return None
        self.images.append(_bytes(data["image/png"]))
        self.alts.append(options["metadata"]["image/png"]["alt"])
        assert data["text/plain"] == self.alts[-1]
        return _Handle(self) if options.get("display_id") else None

    def arrays(self) -> list[np.ndarray]:
        return [np.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in self.images]


class _Handle(DisplayHandle):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page

    def update(self, obj: dict[str, Any], **options: Any) -> None:
        self.page.display(obj, **options)


def _bytes(data: str | bytes) -> bytes:
    return base64.b64decode(data) if isinstance(data, str) else data


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    new = Page()
    monkeypatch.setattr(explorer, "display", new.display)
    return new


@pytest.fixture
def drawn(page: Page, monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The images of every figure made, as tensors."""
    figures: list[list[Tensor]] = []
    original = explorer.image_grid

    def record(images: Sequence[Tensor], *args: Any, **settings: Any) -> Figure:
        figures.append(list(images))
        return original(images, *args, **settings)

    monkeypatch.setattr(explorer, "image_grid", record)
    return figures


def controls(box: ipywidgets.VBox) -> dict[str, Any]:
    """The controls by the name of their argument; the last widget shows notes and errors."""
    return {w.description.replace(" ", "_"): w for w in box.children[:-1]}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cascade() -> Imagen:
    """Untrained, of 4 and 8 pixels, with parameters that are not zero."""
    config = ImagenConfig(
        (StageConfig(side=4, steps=3, guidance_weight=2.0), StageConfig(side=8, steps=3)),
        timesteps=100,
    )
    imagen = Imagen(config, [BASE, SUPER]).eval()
    perturb(imagen)
    return imagen


def perturb(module: nn.Module) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter += 0.1 * randn(*parameter.shape, seed=i)


def _encode(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings that differ from caption to caption."""
    rows = [randn(3, 8, seed=sum(map(ord, caption))) for caption in captions]
    return torch.stack(rows), torch.ones((len(rows), 3), dtype=torch.bool)


ENCODE = _encode


# --- images -------------------------------------------------------------------------------------


def test_images_are_small_pngs_with_alt_text(page: Page) -> None:
    """A palette keeps a page small, and the alt text stands in the output and its metadata."""
    ramp = torch.linspace(-1, 1, 64).expand(3, 64, 64)
    explorer.show_images([ramp] * 16, [f"number {i}" for i in range(16)], alt="sixteen ramps")
    (png,) = page.images
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "P")
    assert len(image.getcolors() or []) <= explorer.COLOURS_IN_PNG
    assert image.width <= 900 and len(png) < 40_000
    assert page.alts == ["sixteen ramps"]


def test_a_figure_is_shown_once_and_closed(page: Page) -> None:
    """No figure stays open behind a page of many, and the palette keeps its colours."""
    figure, axis = plt.subplots(figsize=(2, 2))
    axis.set_facecolor("#1f77b4")
    explorer.show(figure, "a blue square")
    assert not plt.fignum_exists(figure.number)
    colours = page.arrays()[0].reshape(-1, 3)
    assert (np.abs(colours.astype(int) - (0x1F, 0x77, 0xB4)).max(1) <= 8).mean() > 0.3


def test_images_keep_their_colours_and_places() -> None:
    """-1 is black, 1 is full; images go row by row; one channel is shown as grey."""
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 4, 4)
    grey, over = torch.zeros(1, 4, 4), 3 * torch.ones(3, 4, 4)
    figure = explorer.image_grid([red, grey, over], columns=2)
    shown = [np.asarray(a.images[0].get_array()) for a in figure.axes if a.images]
    plt.close(figure)
    assert len(figure.axes) == 4 and len(shown) == 3
    np.testing.assert_allclose(shown[0][0, 0], [1, 0, 0])
    np.testing.assert_allclose(shown[1][0, 0], [0.5, 0.5, 0.5])
    np.testing.assert_allclose(shown[2][0, 0], [1, 1, 1])


@pytest.mark.parametrize(("images", "titles"), [(3, 2), (2, 3), (0, 0)])
def test_each_image_needs_a_title(images: int, titles: int) -> None:
    """Titles that do not fit the images, and no images at all, are refused in one line."""
    with pytest.raises(ValueError, match=f"^there are {images} images and .*$") as error:
        explorer.image_grid(torch.zeros(images, 3, 4, 4), ["title"] * titles)
    assert "\n" not in str(error.value)


# --- controls -------------------------------------------------------------------------------------


def bar(height: float, colour: str = "red", count: int = 1) -> Figure:
    """A figure that tells its values apart; more than 3 it does not draw."""
    if height > 3:
        raise ValueError(f"height is {height}, it should be at most 3")
    figure, axis = plt.subplots(figsize=(2, 2))
    axis.bar(range(count), [height] * count, color=colour)
    axis.set_ylim(0, 4)
    return figure


def test_moving_a_slider_draws_anew(page: Page) -> None:
    """The first image is that of the first values; each move replaces it; back is the same."""
    box = explorer.explore(
        bar, "a bar", height=(0.0, 4.0, 0.5, 1.0), colour=["red", "blue"], count=(1, 3, 1, 1)
    )
    sliders = controls(box)
    assert len(page.widgets) == 1 and len(page.images) == 1
    assert isinstance(sliders["count"], ipywidgets.IntSlider)
    assert isinstance(sliders["height"], ipywidgets.FloatSlider)
    explorer.show(bar(1.0, "red", 1), "a bar")
    assert page.images.pop() == page.images[0]
    page.alts.pop()
    sliders["height"].value = 2.0
    sliders["colour"].value = "blue"
    sliders["count"].value = 2
    assert len(set(page.images)) == len(page.images) == 4
    sliders["count"].value = 1
    sliders["colour"].value = "red"
    sliders["height"].value = 1.0
    assert page.images[-1] == page.images[0]
    assert set(page.alts) == {"a bar"}


def test_only_the_widget_is_shown_of_the_controls(page: Page) -> None:
    """No text takes their place on a page without a kernel: there nothing could be moved."""
    explorer.explore(bar, "a bar", height=(0.0, 4.0, 0.5, 1.0))
    assert [set(data) for data in page.widgets] == [{WIDGET}]


def test_a_slider_at_rest_draws_and_not_every_point_of_its_way() -> None:
    """Drawing takes a second: values in between are left out."""
    for control in ((0.0, 1.0, 0.1, 0.5), (0, 9, 1, 5), "a caption"):
        widget = explorer._widget("name", cast(explorer.Control, control))
        assert widget.continuous_update is False


def test_what_cannot_be_drawn_is_said(page: Page) -> None:
    """A ValueError becomes a line beside the controls; the image stays until the next one."""
    box = explorer.explore(bar, "a bar", height=(0.0, 4.0, 0.5, 1.0))
    (slider,), line = box.children[:-1], box.children[-1]
    slider.value = 4.0
    assert line.value == "height is 4.0, it should be at most 3"
    assert len(page.images) == 1
    slider.value = 2.0
    assert line.value == ""
    assert len(page.images) == 2


# --- the explorers --------------------------------------------------------------------------------


def test_the_forward_process_shows_z_at_t(drawn: list[list[Tensor]]) -> None:
    """z = alpha x + sigma eps by the schedule chosen, with one noise for all times."""
    x = randn(3, 4, 4, seed=5).clamp(-1, 1)
    schedules = {"cosine": NoiseSchedule("cosine"), "linear": NoiseSchedule("linear")}
    box = explorer.explore_forward_process(x, schedules)
    controls(box)["t"].value = 0.7
    controls(box)["schedule"].value = "linear"
    for (clean, z, eps), (t, name) in zip(
        drawn, [(0.4, "cosine"), (0.7, "cosine"), (0.7, "linear")], strict=True
    ):
        alpha, sigma = schedules[name].alpha_sigma(torch.tensor(t))
        torch.testing.assert_close(z, alpha * x + sigma * eps)
        assert torch.equal(clean, x) and torch.equal(eps, drawn[0][2])


def test_guidance_draws_with_the_chosen_settings(drawn: list[list[Tensor]]) -> None:
    """Each image is what a cascade of these settings draws; the caller's is left as it was."""
    imagen = cascade()
    config, weights = (
        imagen.stages[0].config,
        {n: p.clone() for n, p in imagen.state_dict().items()},
    )
    sliders = controls(explorer.explore_guidance(imagen, ENCODE, "a red circle", seed=3))
    sliders["guidance_weight"].value = 9.0
    sliders["threshold"].value = "static"
    sliders["threshold"].value = "dynamic"
    sliders["percentile"].value = 0.6
    assert imagen.stages[0].config is config
    assert all(torch.equal(p, weights[name]) for name, p in imagen.state_dict().items())
    asked = [(3.0, "dynamic", 0.95), (9.0, "dynamic", 0.95), (9.0, "static", 0.95)]
    asked += [(9.0, "dynamic", 0.95), (9.0, "dynamic", 0.6)]
    text, mask = ENCODE(["a red circle"])
    for (image,), (weight, threshold, percentile) in zip(drawn, asked, strict=True):
        changed = dataclasses.replace(
            config, guidance_weight=weight, threshold=threshold, percentile=percentile
        )
        other = Imagen(ImagenConfig((changed,), timesteps=100), [BASE]).eval()
        other.stages[0].load_state_dict(imagen.stages[0].state_dict())
        torch.testing.assert_close(image, other.images(text, mask, [3])[0][0])
    assert len({tuple(image.flatten().tolist()) for (image,) in drawn}) >= 3


def test_augmentation_shows_the_condition_that_the_stage_uses(
    drawn: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image in the middle is what the U-Net is given, and its level what the slider says."""
    calls: list[tuple[Tensor, ...]] = []
    forward = Unet.forward

    def record(self: Unet, *args: Tensor) -> Tensor:
        calls.append(args)
        return forward(self, *args)

    monkeypatch.setattr(Unet, "forward", record)
    imagen = cascade()
    config = imagen.stages[1].config
    lowres = randn(3, 4, 4, seed=7).clamp(-1, 1)
    box = explorer.explore_augmentation(imagen, ENCODE, "a red circle", lowres, seed=2)
    controls(box)["level"].value = 0.8
    assert imagen.stages[1].config is config
    steps = len(calls) // 2
    assert steps >= config.steps
    for (small, condition, _), level, call in zip(
        drawn, (0.1, 0.8), (calls[0], calls[-1]), strict=True
    ):
        assert torch.equal(small, lowres)
        torch.testing.assert_close(call[-2][0], condition)
        torch.testing.assert_close(call[-1], torch.tensor([level]))
    assert not torch.equal(drawn[0][2], drawn[1][2])


def test_augmentation_shows_the_condition_of_larger_images_too(
    drawn: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image larger than the previous stage's is brought down first, in the one as the other."""
    conditions: list[Tensor] = []
    forward = Unet.forward

    def record(self: Unet, *args: Tensor) -> Tensor:
        conditions.append(args[-2][0])
        return forward(self, *args)

    monkeypatch.setattr(Unet, "forward", record)
    lowres = randn(3, 8, 8, seed=7).clamp(-1, 1)
    explorer.explore_augmentation(cascade(), ENCODE, "a red circle", lowres)
    torch.testing.assert_close(drawn[0][1], conditions[0])


def test_captions_are_drawn_as_by_the_command_line(drawn: list[list[Tensor]]) -> None:
    """Every stage's image of the caption, seed and weight; an empty caption is an answer too."""
    imagen = cascade()
    config = imagen.stages[0].config
    sliders = controls(explorer.explore_captions(imagen, ENCODE, "a red circle", seed=4))
    sliders["caption"].value = "a blue star"
    sliders["seed"].value = 5
    sliders["guidance_weight"].value = 7.0
    assert imagen.stages[0].config is config
    asked = [("a red circle", 4, 2.0), ("a blue star", 4, 2.0), ("a blue star", 5, 2.0)]
    asked += [("a blue star", 5, 7.0)]
    for images, (caption, seed, weight) in zip(drawn, asked, strict=True):
        imagen.stages[0].config = dataclasses.replace(config, guidance_weight=weight)
        text, mask = ENCODE([caption])
        for shown, batch in zip(images, imagen.images(text, mask, [seed]), strict=True):
            torch.testing.assert_close(shown, batch[0])
    assert len({tuple(images[-1].flatten().tolist()) for images in drawn}) == len(asked)


def test_words_that_training_never_saw_are_noted(page: Page) -> None:
    """Below the controls, as long as they stand in the caption; the image is drawn all the same."""
    box = explorer.explore_captions(cascade(), ENCODE, "a red circle", known={"a", "red", "circle"})
    line = box.children[-1]
    assert line.value == ""
    controls(box)["caption"].value = "a red cirlce"
    assert line.value == 'the model was not trained on "cirlce" (circle?)'
    assert len(page.images) == 2
    controls(box)["caption"].value = "a circle"
    assert line.value == ""
