"""The U-Net: what it sees, what it must not see, and how it is built."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimagen.layers import ResidualBlock, position_features
from minimagen.unet import FINE, Unet, UnetConfig

TINY = UnetConfig(
    channels=(16, 32),
    blocks=(1, 2),
    heads=2,
    head_dim=8,
    text_dim=8,
    pool_queries=2,
    cond_dim=16,
    position_dim=8,
)
VARIANTS = {
    "base": TINY,
    "lowres": dataclasses.replace(TINY, lowres=True),
    "efficient": dataclasses.replace(TINY, lowres=True, efficient=True, blocks=(1, 3)),
    "patch": dataclasses.replace(TINY, lowres=True, patch=2),
    "efficient patch": dataclasses.replace(TINY, lowres=True, efficient=True, patch=2),
    "three levels": dataclasses.replace(
        TINY,
        channels=(16, 16, 32),
        blocks=(2, 1, 1),
        self_attention=(False, True, False),
        text_attention=(True, False, True),
    ),
}
MASK = torch.tensor([[True] * 5, [True, True, True, False, False], [True] + [False] * 4])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(config: UnetConfig) -> Unet:
    """A U-Net none of whose parameters is zero."""
    torch.manual_seed(0)
    unet = Unet(config)
    with torch.no_grad():
        for i, parameter in enumerate(unet.parameters()):
            parameter += 0.1 * randn(*parameter.shape, seed=i)
    return unet


def inputs(config: UnetConfig, side: int = 16) -> dict[str, Tensor | None]:
    """What a U-Net is given for three images."""
    lowres = {"lowres": randn(3, 3, side, side, seed=3), "aug_level": torch.tensor([0.1, 0.5, 0.9])}
    return {
        "z": randn(3, 3, side, side, seed=1),
        "t": torch.tensor([0.0, 0.4, 1.0]),
        "text": randn(3, 5, 8, seed=2),
        "mask": MASK,
        "keep_text": None,
        **(lowres if config.lowres else {}),
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_output_is_like_the_input_and_starts_at_zero(name: str) -> None:
    """An untrained network predicts 0; perturbed, it predicts something, in the input's shape."""
    given = inputs(VARIANTS[name])
    out = Unet(VARIANTS[name])(**given)
    assert out.shape == given["z"].shape and out.dtype == torch.float32
    assert (out == 0).all()
    assert make(VARIANTS[name])(**given).std() > 0.01


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_flow_to_every_parameter(name: str) -> None:
    """With no zeros left from the start, each parameter has a say in the loss."""
    unet = make(VARIANTS[name])
    out = unet(**{**inputs(VARIANTS[name]), "keep_text": torch.tensor([True, False, True])})
    (out * randn(*out.shape)).sum().backward()
    still = [
        name
        for name, parameter in unet.named_parameters()
        if parameter.grad is None or not parameter.grad.any() or not parameter.grad.isfinite().all()
    ]
    assert still == []


@pytest.mark.parametrize("name", VARIANTS)
def test_everything_given_is_seen(name: str) -> None:
    """Time, text, low-resolution image and its level: each changes the image it belongs to."""
    config = VARIANTS[name]
    unet, given = make(config).eval(), inputs(config)
    out = unet(**given)
    for key in set(given) - {"mask", "keep_text"}:
        other = given[key].clone()
        other[1] = 0.77 + 0.1 * other[1].flip(-1) if other.ndim > 1 else 0.77
        moved = (unet(**{**given, key: other}) - out).abs().flatten(1).amax(1)
        assert moved[1] > 1e-3, key
        assert moved[0] < 1e-5 and moved[2] < 1e-5, f"{key} leaks into other images"


@pytest.mark.parametrize("length", [5, 32, 64])
def test_padding_never_changes_a_result(length: int) -> None:
    """Fault 3: neither the number of padding tokens nor what they hold matters."""
    unet, given = make(TINY), inputs(TINY)
    text = 10 * randn(3, length, 8, seed=9)
    text[:, :5][MASK] = given["text"][MASK]
    padded = {**given, "text": text, "mask": F.pad(MASK, (0, length - 5))}
    torch.testing.assert_close(unet(**padded), unet(**given), atol=1e-5, rtol=1e-5)


def test_a_dropped_caption_is_like_any_other_dropped_caption() -> None:
    """Where keep_text is False, neither the text, nor its length or mask is seen."""
    unet, given = make(TINY), inputs(TINY)
    keep = torch.tensor([True, False, False])
    out = unet(**{**given, "keep_text": keep})
    text, mask = given["text"].clone(), MASK.clone()
    text[1:], mask[1] = randn(2, 5, 8, seed=8), torch.tensor([False, True, False, True, True])
    other = unet(**{**given, "text": text, "mask": mask, "keep_text": keep})
    torch.testing.assert_close(other, out, atol=1e-5, rtol=1e-5)
    kept = unet(**given)
    torch.testing.assert_close(out[0], kept[0], atol=1e-5, rtol=1e-5)
    assert (out[1:] - kept[1:]).abs().flatten(1).amax(1).min() > 1e-3


def test_keeping_all_text_is_the_same_as_not_saying() -> None:
    """keep_text None and all True agree."""
    unet, given = make(TINY), inputs(TINY)
    kept = unet(**{**given, "keep_text": torch.ones(3, dtype=torch.bool)})
    torch.testing.assert_close(kept, unet(**given))


def test_text_is_normalised() -> None:
    """LayerNorm on the text: an encoder's scale and offset do not matter (2205.11487, sec. 2.5)."""
    unet, given = make(TINY), inputs(TINY)
    scaled = {**given, "text": 30 * given["text"] + 5}
    torch.testing.assert_close(unet(**scaled), unet(**given), atol=1e-4, rtol=1e-3)


def test_position_is_given_to_every_level() -> None:
    """Forgetting the weights of the position features at any one level changes the output."""
    given = inputs(VARIANTS["three levels"])
    out = make(VARIANTS["three levels"])(**given)
    for level in range(3):
        unet = make(VARIANTS["three levels"])
        nn.init.zeros_(unet.levels[level].position.weight)
        assert (unet(**given) - out).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["base", "three levels", "efficient patch"])
def test_the_condition_scales_the_position_features(name: str) -> None:
    """At each level by 1 + its numbers for an image; another caption changes these, of its image.

    So a caption such as "in the upper left corner" can choose among the positions.
    """
    config = VARIANTS[name]
    unet, given = make(config), inputs(config)
    conds: dict[nn.Module, list[Tensor]] = {level: [] for level in unet.levels}
    added: dict[nn.Module, list[Tensor]] = {level: [] for level in unet.levels}
    for level in unet.levels:
        level.register_forward_pre_hook(lambda level, args: conds[level].append(args[1]))
        level.position.register_forward_hook(
            lambda _, args, out, level=level: added[level].append(out)
        )
    unet(**given)
    text = given["text"].clone()
    text[1] = randn(5, 8, seed=9)
    unet(**{**given, "text": text})
    for level in unet.levels:
        numbers = conds[level][0] @ level.to_scale.weight.T + level.to_scale.bias  # (B, C)
        out, other = added[level]
        where = position_features(out.shape[2], out.shape[3], 8, out.device)
        scaled = torch.einsum("bc,chw->bchw", 1 + numbers, where)
        expected = torch.einsum("oc,bchw->bohw", level.position.weight[:, :, 0, 0], scaled)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        moved = (other - out).abs().flatten(1).amax(1)
        assert moved[1] > 1e-3 and moved[0] < 1e-5 and moved[2] < 1e-5


# --- how it is built ------------------------------------------------------------------------------


def sides_of_blocks(unet: Unet, given: dict[str, Tensor | None]) -> list[int]:
    """The side of the feature maps that each residual block is given, in the order of running."""
    sides: list[int] = []
    for module in unet.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[-1]))
    unet(**given)
    return sides


def test_blocks_run_at_the_resolutions_of_their_levels() -> None:
    """As many blocks up as down at each level, one in the middle."""
    config = VARIANTS["three levels"]
    assert sides_of_blocks(Unet(config), inputs(config)) == [16, 16, 8, 4, 4, 4, 8, 16, 16]


def test_efficient_variant_runs_no_block_at_full_resolution() -> None:
    """It downsamples before its convolutions, and may have more blocks at low resolution."""
    config = VARIANTS["efficient"]
    assert sides_of_blocks(Unet(config), inputs(config)) == [8, 4, 4, 4, 4, 4, 4, 4, 8]


def test_patches_are_taken_apart_and_put_together() -> None:
    """With patch = 2 everything runs at half the side, and the image comes out whole."""
    config = VARIANTS["patch"]
    assert sides_of_blocks(Unet(config), inputs(config)) == [8, 4, 4, 4, 4, 4, 8]


@pytest.mark.parametrize(("name", "scale"), [("lowres", 1.0), ("efficient", 1 / math.sqrt(2))])
def test_skips_are_last_in_first_out_and_scaled(name: str, scale: float) -> None:
    """Each block on the way up reads what its mirror image put out, scaled if efficient."""
    unet = make(VARIANTS[name])
    kept: list[Tensor] = []
    read: list[Tensor] = []
    for level in unet.levels:
        level.register_forward_hook(lambda _, args, out: kept.extend(out))
    for block in (block for blocks in reversed(unet.up_blocks) for block in blocks):
        block.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    unet(**inputs(VARIANTS[name]))
    assert len(kept) == len(read) == sum(VARIANTS[name].blocks)
    for skip, seen in zip(reversed(kept), read, strict=True):
        torch.testing.assert_close(seen[:, -skip.shape[1] :], scale * skip)


@pytest.mark.parametrize(("name", "scale"), [("lowres", 1.0), ("efficient", 1 / math.sqrt(2))])
def test_last_convolution_reads_what_the_first_put_out(name: str, scale: float) -> None:
    """The stem is added at the end, or no single pixel would survive the downsampling."""
    unet = make(VARIANTS[name])
    seen: dict[str, Tensor] = {}
    unet.stem.register_forward_hook(lambda _, args, out: seen.update(stem=out))
    unet.ups[0].register_forward_hook(lambda _, args, out: seen.update(up=out))
    unet.out_norm.register_forward_pre_hook(lambda _, args: seen.update(last=args[0]))
    unet(**inputs(VARIANTS[name]))
    torch.testing.assert_close(seen["last"], scale * (seen["up"] + seen["stem"]))


@pytest.mark.parametrize("name", VARIANTS)
def test_last_convolution_works_on_single_pixels(name: str) -> None:
    """Patches become pixels before it, so it sees no border between them."""
    config = VARIANTS[name]
    unet, seen = make(config), dict[str, Tensor]()
    unet.out_norm.register_forward_hook(lambda _, args, out: seen.update(patches=out))
    unet.out.register_forward_pre_hook(lambda _, args: seen.update(pixels=args[0]))
    out = unet(**inputs(config))
    patches = F.silu(seen["patches"])
    if config.patch == 1:
        assert unet.spread is None
        torch.testing.assert_close(seen["pixels"], patches)
    else:
        assert patches.shape[2:] == (16 // config.patch, 16 // config.patch)
        assert unet.spread.out_channels == FINE * config.patch**2
        assert unet.spread.kernel_size == (1, 1)  # each patch by itself
        assert seen["pixels"].shape == (3, FINE, 16, 16)
        for row, column in ((0, 0), (5, 8), (15, 15)):  # a pixel is a part of its patch
            patch = patches[:, :, row // config.patch, column // config.patch]
            numbers = patch @ unet.spread.weight[:, :, 0, 0].T + unet.spread.bias  # (B, FINE*p*p)
            place = config.patch * (row % config.patch) + column % config.patch
            torch.testing.assert_close(
                seen["pixels"][:, :, row, column],
                F.silu(numbers.unflatten(1, (FINE, -1))[:, :, place]),
                atol=1e-5,
                rtol=1e-5,
            )
    last = F.conv2d(seen["pixels"], unet.out.weight, unet.out.bias, padding=1)
    torch.testing.assert_close(out, last, atol=1e-5, rtol=1e-5)


def test_images_need_not_be_square_nor_of_one_side() -> None:
    """Any height and width that fit the halvings."""
    unet, given = make(TINY), inputs(TINY)
    assert unet(**{**given, "z": randn(3, 3, 8, 20)}).shape == (3, 3, 8, 20)


def test_bfloat16_agrees_with_float32() -> None:
    """Autocast changes the digits, not the result, and the output is float32 all the same."""
    unet, given = make(TINY), inputs(TINY)
    with torch.autocast("cpu", torch.bfloat16):
        low = unet(**given)
    high = unet(**given)
    assert low.dtype == torch.float32
    assert (low - high).norm() < 0.05 * high.norm()


@pytest.mark.parametrize(
    ("changes", "multiple"),
    [
        ({}, 2),
        ({"efficient": True}, 4),
        ({"patch": 2}, 4),
        ({"channels": [16], "blocks": [1], "self_attention": [0], "text_attention": [1]}, 1),
    ],
)
def test_side_multiple_is_the_least_side_that_fits(changes: dict, multiple: int) -> None:
    """An image of that side goes through, one a pixel larger is refused, and told why."""
    config = dataclasses.replace(TINY, **changes)
    assert config.side_multiple == multiple
    unet, given = Unet(config), inputs(config)
    assert unet(**{**given, "z": randn(3, 3, multiple, multiple)}).shape[-1] == multiple
    if multiple > 1:
        with pytest.raises(ValueError, match=f"multiples of {multiple}"):
            unet(**{**given, "z": randn(3, 3, multiple, multiple + 1)})


@pytest.mark.parametrize("name", ["base", "lowres"])
@pytest.mark.parametrize("wrong", [("lowres",), ("aug_level",), ("lowres", "aug_level")])
def test_low_resolution_image_is_for_super_resolution(name: str, wrong: tuple[str, ...]) -> None:
    """Given to a base U-Net, or withheld from a super-resolution one: an error says so."""
    config = VARIANTS[name]
    given = inputs(config)
    full = inputs(VARIANTS["lowres"])
    given |= {key: None if config.lowres else full[key] for key in wrong}
    with pytest.raises(ValueError, match="super-resolution"):
        Unet(config)(**given)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", (16, 24)),
        ("channels", (16, 0)),
        ("blocks", (1,)),
        ("blocks", (1, 0)),
        ("self_attention", (True,) * 3),
        ("text_attention", ()),
        ("heads", 0),
        ("head_dim", 0),
        ("text_dim", -1),
        ("pool_queries", 0),
        ("cond_dim", 15),
        ("position_dim", 7),
        ("position_dim", 0),
        ("patch", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
    ],
)
def test_config_errors_name_the_culprit_in_one_line(field: str, value: object) -> None:
    """A wrong setting is named, with its value."""
    with pytest.raises(ValueError, match="should") as error:
        dataclasses.replace(TINY, **{field: value})
    assert f"`{field}" in str(error.value) and "\n" not in str(error.value)


def test_a_unet_has_at_least_one_level() -> None:
    """No channels at all are an error too."""
    with pytest.raises(ValueError, match="`channels` is empty"):
        UnetConfig((), (), (), ())


@pytest.mark.parametrize("name", VARIANTS)
def test_config_survives_json(name: str) -> None:
    """asdict, to JSON, back, and into the constructor: the same configuration."""
    stored = json.dumps(dataclasses.asdict(VARIANTS[name]))
    again = UnetConfig(**json.loads(stored))
    assert again == VARIANTS[name]
    assert hash(again) == hash(VARIANTS[name])
