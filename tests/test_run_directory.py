"""Training directories: the manifest, damage, kills while files are written, hostile content."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimagen.files import clear_parts, load_tensors, new_directory, part_of, save_tensors
from minimagen.generation import GenerationConfig, load, load_imagen
from minimagen.manifest import Manifest
from minimagen.run_directory import TrainingDirectory, previous
from minimagen.text import SHIPPED
from minimagen.training import RunError, cascade, resolve
from tests.test_training import (
    ROOT,
    Crash,
    Settings,
    assert_same,
    final_state,
    run,
    snapshot,
    tiny_model,
    tiny_settings,
)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages train in the process of the tests."""
    monkeypatch.setattr(cascade, "_train_in_processes", cascade._train_here)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Settings]:
    """A training of three epochs, what it came to, and its settings."""
    output = tmp_path_factory.mktemp("made")
    model = TrainingDirectory.create(output / "model")
    model.save_parameters(*tiny_model(), {})
    settings = tiny_settings(model.parameters, output / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "_train_in_processes", cascade._train_here)
        directory = run(settings, epochs=3)
    return directory.path, final_state(directory), settings


@pytest.fixture
def old(made: tuple[Path, Any, Any], tmp_path: Path) -> TrainingDirectory:
    """A copy of that training, to be damaged."""
    shutil.copytree(made[0], tmp_path / made[0].name)
    return TrainingDirectory(tmp_path / made[0].name)


def go_on(old: TrainingDirectory, **changes: Any) -> TrainingDirectory:
    """Resume a training, in another directory."""
    settings = {"restart_directory": str(old.path)} | changes
    return run(settings, output_directory=str(old.path.parent / "new"))


# --- the manifest ---------------------------------------------------------------------------------


def test_manifest_lists_every_file_but_the_log(old: TrainingDirectory) -> None:
    """Sizes and SHA-256, of the newest and the previous files, are those of hashlib."""
    listed: dict[str, list[Any]] = {}
    for path in (old.path / "manifest").iterdir():
        listed |= json.loads(path.read_text())["files"]
    there = {name: data for name, data in snapshot(old.path).items() if "/" in name}
    there = {name: data for name, data in there.items() if not name.startswith("manifest")}
    assert set(listed) == set(there) and len(there) == 14
    for name, data in there.items():
        assert [len(data), hashlib.sha256(data).hexdigest()] == listed[name][0], name
    assert sum(name.endswith(".previous") for name in there) == 4


def test_same_tensors_are_the_same_file(tmp_path: Path) -> None:
    """The same command gives the same files, byte for byte."""
    tensors = {name: torch.arange(3) for name in "cab"}
    for number in range(8):
        save_tensors(tmp_path / str(number), tensors, {"step": 1})
    assert len(set(snapshot(tmp_path).values())) == 1


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], r"`files` is \[\], it should be an object"),
        ({"a": 1}, "`files.a` is 1, it should be a list"),
        ({"a": [1]}, r"`files.a\[0\]` is 1, it should be"),
        ({"a": [["x", "y"]]}, r"`files.a\[0\]\[0\]` is 'x', it should be a whole number"),
        ({"a": [[1, 2]]}, r"`files.a\[0\]\[1\]` is 2, it should be text"),
        ({"a": [[1]]}, r"files.a\[0\]"),
    ],
)
def test_broken_manifest_is_one_line(files: object, said: str, tmp_path: Path) -> None:
    """It names the file and what is wrong in it."""
    manifest = Manifest(tmp_path, "stage_0")
    manifest.path.parent.mkdir()
    manifest.path.write_text(json.dumps({"files": files}))
    with pytest.raises(ValueError, match=said) as caught:
        manifest.files()
    assert "stage_0.json: " in str(caught.value) and "\n" not in str(caught.value)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "one bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}
NAMES = [
    *("imagen_params", "unet_1_params", "training_parameters", "words", "sources"),
    *("parameters.json", "stage_0.json"),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_configuration_is_named_and_refused(
    name: str, damage: str, old: TrainingDirectory
) -> None:
    """Never a silent restart, and never another configuration; drawing is refused too."""
    (path,) = old.path.rglob(f"{name}*")
    DAMAGES[damage](path)
    before = snapshot(old.path.parent)
    for act in (lambda: go_on(old), lambda: load_imagen(old.path)):
        with pytest.raises(ValueError, match=r"\n?") as caught:
            act()
        said = str(caught.value)
        assert "\n" not in said and (path.name in said or damage == "one bit"), said
    assert snapshot(old.path.parent) == before


@pytest.mark.parametrize(
    "damage",
    ["one bit", *(pytest.param(d, marks=pytest.mark.slow) for d in DAMAGES if d != "one bit")],
)
@pytest.mark.parametrize("place", ["tmp/unet_0_checkpoint", "state_dicts/unet_1_state"])
def test_damaged_results_are_replaced_by_those_before(
    place: str, damage: str, old: TrainingDirectory, made: tuple[Any, dict[str, Any], Any]
) -> None:
    """A line says so. From the checkpoint before, the end is the same, bit for bit."""
    (path,) = old.path.glob(f"{place}*.safetensors")
    DAMAGES[damage](path)
    with pytest.warns(UserWarning, match=f"{path.name} is .*; the one before it is taken"):
        found = resolve(restart_directory=str(old.path)).results[int("1" in path.name)]
    assert previous(path) in (found.checkpoint, found.best)
    if "checkpoint" in place:
        with pytest.warns(UserWarning, match="the one before"):
            assert_same(final_state(go_on(old)), made[1])
    else:
        with pytest.warns(UserWarning, match="the one before"):
            load_imagen(old.path)
    shutil.copy(__file__, previous(path))
    with pytest.raises(ValueError, match=path.name):
        resolve(restart_directory=str(old.path))


def test_training_in_place_repairs_what_is_damaged(
    old: TrainingDirectory, made: tuple[Any, dict[str, Any], Any]
) -> None:
    """The checkpoint before becomes the newest; then all is whole again."""
    flip(old.checkpoint(0))
    old.checkpoint(1).unlink()
    folders = ("", "parameters", "state_dicts", "tmp", "manifest")
    parts = [part_of(old.path / folder / "file") for folder in folders]
    parts = [part.with_name(part.name.replace(f"-{os.getpid()}", "-99999999")) for part in parts]
    for part in parts:
        part.write_bytes(b"half")
    with pytest.warns(UserWarning, match="the one before"):
        run({"training_directory": str(old.path)})
    assert not any(part.exists() for part in parts)
    assert_same(final_state(old), made[1])
    assert len(resolve(restart_directory=str(old.path)).results) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="makes a link")
def test_nothing_is_written_through_a_link(old: TrainingDirectory, tmp_path: Path) -> None:
    """A planted folder that leads elsewhere."""
    before = snapshot(old.tmp)
    old.tmp.rename(tmp_path / "elsewhere")
    old.tmp.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="tmp is a link"):
        run({"training_directory": str(old.path)}, epochs=4)
    assert snapshot(tmp_path / "elsewhere") == before


def test_nothing_may_be_missing_without_a_manifest_either(old: TrainingDirectory) -> None:
    """A directory of an older version: settings, and checkpoints of stages that have weights."""
    shutil.rmtree(old.path / "manifest")
    (flags,) = old.parameters.glob("training_parameters_*.txt")
    lines = flags.read_text()
    flags.write_text(lines.replace("--SEED=0\n", ""))
    with pytest.raises(ValueError, match=r"training_parameters in .* lacks `seed`"):
        resolve(restart_directory=str(old.path))
    flags.unlink()
    with pytest.raises(ValueError, match=r"lacks `img_side_len`, .*`seed`"):
        resolve(restart_directory=str(old.path))
    flags.write_text(lines)
    with pytest.warns(UserWarning, match="has no manifest"):
        resolve(restart_directory=str(old.path))
    old.checkpoint(0).unlink()
    previous(old.checkpoint(0)).unlink()
    with (
        pytest.warns(UserWarning, match="has no manifest"),
        pytest.raises(ValueError, match=r"unet_0_checkpoint\.safetensors cannot be read: No such"),
    ):
        resolve(restart_directory=str(old.path))


# --- what a training learns from ------------------------------------------------------------------


def change_sources(old: TrainingDirectory, **changes: str) -> None:
    """Pretend that the training had learned from something else."""
    path = next(old.parameters.glob("sources_*.json"))
    text = json.dumps(json.loads(path.read_text()) | changes)
    Manifest(old.path, "parameters").write(path, lambda part: part.write_text(text))


def test_other_data_are_refused_unless_allowed(old: TrainingDirectory) -> None:
    """Without the flag nothing is made; with it the epoch begins anew, and the best too."""
    change_sources(old, data_digest="0" * 64, dataset="/elsewhere")
    with pytest.raises(
        ValueError, match=r"`dataset` is shapes-minimal, but .* in /elsewhere: .*`other_data`"
    ):
        go_on(old)
    assert not (old.path.parent / "new").exists()
    new = go_on(old, other_data=True, epochs=4)
    assert [new.load_checkpoint(i)[1].epoch for i in range(2)] == [4, 4]
    sources = new.load_sources()
    assert sources is not None and sources.data_digest != "0" * 64
    assert go_on(new).load_sources() == sources  # these are its data now


def test_other_text_encoder_is_always_refused(old: TrainingDirectory, tmp_path: Path) -> None:
    """Embeddings of another encoder mean nothing to the U-Nets."""
    change_sources(old, text_fingerprint="0" * 16, text_encoder="/elsewhere")
    with pytest.raises(ValueError, match=r"`t5_name` is t5_tiny, .* which was /elsewhere"):
        go_on(old, other_data=True)


@pytest.mark.slow
def test_moved_data_and_text_encoder_are_recognised(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given as relative paths, gone, pointed to, and told from others; in training and drawing."""
    monkeypatch.chdir(tmp_path)
    images, t5 = Path("images"), Path("t5")
    images.mkdir()
    for i in range(24):
        Image.new("RGB", (16, 16), (i * 10, 100, 255 - i * 10)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(f"a red circle number {i}")
    shutil.copytree(SHIPPED, t5)
    settings = made[2] | {"dataset": "images", "t5_name": "t5", "num_images": None, "epochs": 1}
    old = run(settings | {"output_directory": "out"})
    sources = old.load_sources()
    assert sources is not None
    assert (sources.dataset, sources.text_encoder) == (str(images.resolve()), str(t5.resolve()))
    images, t5 = images.rename("moved"), t5.rename("other")
    go = {"restart_directory": str(old.path.resolve()), "output_directory": "new", "epochs": 2}
    monkeypatch.chdir("moved")
    with pytest.raises(ValueError, match=r"`t5_name`: .*/t5'"):
        run(go)
    monkeypatch.chdir(tmp_path)
    go |= {"t5_name": str(t5)}
    with pytest.raises(ValueError, match=r"`dataset`: .*/images"):
        run(go)
    go |= {"dataset": "moved"}
    new = run(go)
    assert new.load_sources() == replace(
        sources, dataset=str(images.resolve()), text_encoder=str(t5.resolve())
    )
    load(GenerationConfig(training_directory=str(old.path), t5_name="other"))
    with pytest.raises(ValueError, match="say where with `t5_name`"):
        load(GenerationConfig(training_directory=str(old.path)))

    (images / "3.txt").write_text("another caption")
    with pytest.raises(ValueError, match="not those of the training"):
        run(go)
    weights = load_file(t5 / "model.safetensors")
    name = sorted(weights)[0]
    weights[name][0, 0] += 1
    save_file(weights, t5 / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="not the text encoder of the training"):
        run(go | {"other_data": True})
    with pytest.raises(ValueError, match="is not the one that the model was trained with"):
        load(GenerationConfig(training_directory=str(old.path), t5_name="other"))


def test_steps_that_do_not_fit_the_data_are_refused(old: TrainingDirectory) -> None:
    """Older versions did not say what they learned from; the number of steps still shows it."""
    shutil.rmtree(old.path / "manifest")
    next(old.parameters.glob("sources_*.json")).unlink()
    (flags,) = old.parameters.glob("training_parameters_*.txt")
    flags.write_text(flags.read_text().replace("--NUM_IMAGES=24", "--NUM_IMAGES=48"))
    with (
        pytest.warns(UserWarning, match="has no manifest"),
        pytest.raises(ValueError, match=r"is at step 15, .* at step 30: have the data changed"),
    ):
        go_on(old)


# --- killed while files are written, and what is hostile -----------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_any_moment_a_training_ends_the_same() -> None:
    """A short run of tools/kills.py; it ends with 1 if anything was lost."""
    command = [sys.executable, str(ROOT / "tools" / "kills.py"), "--kills", "12", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^kills: 12 ", done.stdout, re.M)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="works in forked processes")
def test_damaged_at_random_a_directory_is_refused_or_the_same() -> None:
    """A short run of tools/fuzz.py; it ends with 1 if something came out that must not."""
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), "--runs", "25", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^go on +manifest +refused +\d+$", done.stdout, re.M)


def test_new_directory_is_whole_or_not_there(tmp_path: Path) -> None:
    """While it is filled, its name is an empty directory; a failure leaves nothing."""
    path = tmp_path / "deep" / "made"

    def fill(part: Path, name: str) -> None:
        assert name == "made" and not list(path.iterdir())
        (part / "file").write_text("1")
        if fail:
            raise Crash

    fail = True
    with pytest.raises(Crash):
        new_directory(path, fill)
    assert not list(path.parent.iterdir())
    fail = False
    assert new_directory(path, fill) == path
    assert snapshot(path.parent) == {"made/file": b"1"}
    assert new_directory(path, lambda part, name: None).name == "made_1"


def test_parts_of_dead_processes_are_removed(tmp_path: Path) -> None:
    """Those of this machine, and the name that one reserved; not those of a process that lives."""
    dead = part_of(tmp_path / "a")
    dead = dead.with_name(dead.name.replace(f"-{os.getpid()}.", "-99999999."))
    dead.mkdir()
    (tmp_path / "a").mkdir()
    mine, other = part_of(tmp_path / "b"), tmp_path / ".c.elsewhere-99999999.part"
    mine.write_text("x")
    other.write_text("x")
    clear_parts(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, other}


def plant_state(**changes: object) -> Callable[[TrainingDirectory], None]:
    """Change the JSON values of the checkpoint of stage 0."""

    def act(old: TrainingDirectory) -> None:
        tensors, state = load_tensors(old.checkpoint(0))
        save_tensors(old.checkpoint(0), tensors, state | changes)

    return act


def plant_tensor(name: str, value: Tensor | None) -> Callable[[TrainingDirectory], None]:
    """Change or remove a tensor of the checkpoint of stage 0."""

    def act(old: TrainingDirectory) -> None:
        tensors, state = load_tensors(old.checkpoint(0))
        tensors.pop(name)
        save_tensors(old.checkpoint(0), tensors | ({} if value is None else {name: value}), state)

    return act


def replace_by(make: Callable[[Path], object], pattern: str) -> Callable[[TrainingDirectory], None]:
    """Put something else in the place of a file."""

    def act(old: TrainingDirectory) -> None:
        (path,) = old.path.rglob(pattern)
        path.unlink()
        make(path)

    return act


class Planted:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code ran')",)


def to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def to_itself(path: Path) -> None:
    path.symlink_to(path)


def to_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Planted()))


HOSTILE: dict[str, tuple[Callable[[TrainingDirectory], None], str]] = {
    "epoch is a word": (plant_state(epoch="x"), "`epoch` is 'x', it should be a whole number"),
    "epoch -1": (plant_state(epoch=-1), "`epoch` is -1, it should be at least 0"),
    "epoch 10^9": (plant_state(epoch=10**9), r"is at step 15, .* it should be at step 5000000000"),
    "batch 1.5": (plant_state(batch=1.5), "`batch` is 1.5, it should be a whole number"),
    "batch -3": (plant_state(batch=-3), "`batch` is -3"),
    "step null": (plant_state(step=None), "`step` is None"),
    "best NaN": (plant_state(best=float("nan")), "`best` is"),
    "other stage": (plant_state(stage=1), "is of stage 1, not 0"),
    "precision": (plant_state(precision="fp8"), "`precision` is 'fp8', it should be one of"),
    "moment of another shape": (
        plant_tensor("optimizer.0.momentum_buffer", torch.zeros(10**6)),
        r"optimizer\.0\.momentum_buffer is \[1000000\], it should be",
    ),
    "no optimizer": (
        plant_tensor("optimizer.3.momentum_buffer", None),
        r"optimizer\.3\.momentum_buffer is None",
    ),
    "no average": (plant_tensor("ema.unet.out.bias", None), "ema.unet.out.bias is None"),
    "no sums": (plant_tensor("sums", None), "sums is None"),
    "a pickle": (replace_by(to_pickle, "unet_0_checkpoint.safetensors"), "not a readable safe"),
    "a pipe": (replace_by(os.mkfifo, "unet_0_checkpoint.safetensors"), "not a regular file"),
    "/dev/zero": (replace_by(to_zero, "unet_0_checkpoint.safetensors"), "not a regular file"),
    "a link to itself": (replace_by(to_itself, "unet_0_checkpoint.safetensors"), "unet_0_check"),
    "a directory": (replace_by(os.mkdir, "unet_0_checkpoint.safetensors"), "not a regular file"),
    "a pipe for JSON": (replace_by(os.mkfifo, "imagen_params*"), "not a regular file"),
    "/dev/zero for JSON": (replace_by(to_zero, "unet_1_params*"), "not a regular file"),
    "a pipe for flags": (replace_by(os.mkfifo, "training_parameters*"), "not a regular file"),
    "/dev/zero for words": (replace_by(to_zero, "words_*"), "not a regular file"),
    "deep JSON": (
        replace_by(lambda path: path.write_text("[" * 10**5), "imagen_params*"),
        "imagen_params",
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="makes pipes and links")
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("listed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_hostile_directory_gets_one_line(name: str, listed: bool, old: TrainingDirectory) -> None:
    """Before anything is made: with no manifest, and with one that lists what is there."""
    act, said = HOSTILE[name]
    for path in old.path.rglob("*.previous"):
        path.unlink()
    shutil.rmtree(old.path / "manifest")
    act(old)
    if (listed and "regular" in said) or name == "a link to itself":
        return  # what is no file cannot be listed
    if listed:
        old.make_manifest(range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=said) as caught:
            old.load_words()
            go_on(old)
    assert "\n" not in str(caught.value)
    assert not (old.path.parent / "new").exists()


def test_loss_that_grows_without_end_stops_the_training(tmp_path: Path, made: Any) -> None:
    """It is finite, and was reported as finished; the line says what may help."""
    settings = made[2] | {"output_directory": str(tmp_path)}
    with pytest.raises(
        RunError, match=r"stage 0 has diverged, it is \d.* in epoch \d+, a smaller `optim_lr`"
    ):
        run(settings, optim_lr=3.0, epochs=40)
