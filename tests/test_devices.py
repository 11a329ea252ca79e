"""devices.py: where to compute, and in which precision, by rule."""

from __future__ import annotations

import pytest
import torch

from minimagen import devices
from minimagen.devices import DeviceName, Precision, autocast, choose_device, choose_precision

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The devices of a machine; a test adds "cuda" and "mps" as it likes."""
    kinds: set[str] = set()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
    return kinds


@pytest.mark.parametrize(
    ("present", "best"), [((), "cpu"), (("mps",), "mps"), (("mps", "cuda"), "cuda")]
)
def test_auto_takes_the_best_device(there: set[str], present: tuple[str, ...], best: str) -> None:
    """CUDA, else MPS, else the CPU; the CPU can always be asked for."""
    there.update(present)
    assert choose_device().type == choose_device("auto").type == best
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_here_is_refused(there: set[str], name: DeviceName) -> None:
    """The error says which ones are."""
    with pytest.raises(ValueError, match=f"`device` is '{name}', .* one of auto, cpu$"):
        choose_device(name)


@pytest.mark.parametrize(
    ("name", "device", "has_bf16", "expected"),
    [
        ("auto", CPU, False, "fp32"),
        ("auto", CPU, True, "bf16"),
        ("auto", CUDA, True, "bf16"),
        ("auto", CUDA, False, "fp32"),
        ("fp32", CUDA, True, "fp32"),
        ("fp16", CUDA, False, "fp16"),
        ("bf16", CPU, False, "bf16"),
    ],
)
def test_auto_is_bf16_where_the_hardware_computes_it(
    monkeypatch: pytest.MonkeyPatch,
    name: Precision,
    device: torch.device,
    has_bf16: bool,
    expected: str,
) -> None:
    """What is asked for by name is taken as it is."""
    monkeypatch.setattr(devices, "_has_bf16", lambda device: has_bf16)
    assert choose_precision(name, device) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_bf16_is_computed_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    """A Turing card would emulate it, slowly."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", CUDA) == expected


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16", None])
def test_bf16_of_a_cpu_depends_on_its_instructions(
    monkeypatch: pytest.MonkeyPatch, feature: str | None
) -> None:
    """AMX or AVX512-BF16; torch can tell from 2.10 on."""
    found = {"amx_bf16": False, "avx512_bf16": False} | ({feature: True} if feature else {})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert choose_precision("auto", CPU) == ("bf16" if feature else "fp32")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("auto", MPS) == "fp32"


def test_fp16_is_not_for_the_cpu() -> None:
    """One line with the setting and what would be right."""
    with pytest.raises(ValueError, match="`precision` is 'fp16', on the CPU it should be auto"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_products_are_computed_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    """Within the context, and only there."""
    one = torch.ones(2, 2)
    with autocast(precision, CPU):
        assert (one @ one).dtype == dtype
    assert (one @ one).dtype == torch.float32
