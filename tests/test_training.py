"""Training: the plan, the loop, the training directory, processes, going on after a stop."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from minimagen import files
from minimagen.data import make_dataset
from minimagen.files import atomic_write, load_tensors, save_tensors
from minimagen.imagen import Imagen, ImagenConfig, Stage, StageConfig, TrainingNoise
from minimagen.optimizer import Muon
from minimagen.optimizer import split as split_weights
from minimagen.parameters import load_parameters
from minimagen.presets import default_architecture
from minimagen.randomness import DROPOUT, NOISE, ORDER, VALIDATION, generator, seed_of
from minimagen.run_directory import CheckpointState, TrainingDirectory
from minimagen.settings import to_text
from minimagen.text import EmbeddingCache, T5Encoder, load_text_encoder
from minimagen.training import RunError, RunStopped, cascade, resolve, train
from minimagen.training.batches import StageData, collate, distinct, epoch_batches, split
from minimagen.training.config import KEPT, TESTING, TrainConfig
from minimagen.training.loop import (
    EpochRecord,
    StageSettings,
    StepRecord,
    learning_rate,
    train_stage,
    validate,
)
from minimagen.training.report import Report
from minimagen.training.state import TrainingState
from minimagen.unet import UnetConfig

ROOT = Path(__file__).parents[1]
TIMESTAMP = r"\d{8}_\d{6}(_\d+)?"


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages train in the process of the tests, one after the other, unless a test says otherwise.

    The same code runs either way; a new process takes seconds to start.
    """
    if "processes" not in request.keywords:
        monkeypatch.setattr(cascade, "_train_in_processes", cascade._train_here)


def tiny_unet(**changes: Any) -> UnetConfig:
    """The smallest U-Net that has a bit of everything, dropout too."""
    settings: dict[str, Any] = {
        "channels": (16, 16),
        "blocks": (1, 1),
        "heads": 1,
        "head_dim": 8,
        "pool_queries": 1,
        "cond_dim": 8,
        "position_dim": 8,
        "dropout": 0.1,
    }
    return UnetConfig(**(settings | changes))


def tiny_model() -> tuple[ImagenConfig, tuple[UnetConfig, ...]]:
    """A cascade of 8 and 16 pixels."""
    stages = (StageConfig(side=8, steps=2, guidance_weight=2.0), StageConfig(side=16, steps=2))
    unets = (tiny_unet(), tiny_unet(lowres=True, efficient=True, self_attention=(False, False)))
    return ImagenConfig(stages), unets


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parameters directory with the tiny model, without flags."""
    directory = TrainingDirectory.create(tmp_path_factory.mktemp("model"))
    directory.save_parameters(*tiny_model(), {})
    return directory.parameters


Settings = dict[str, Any]


def tiny_settings(parameters: Path, output: Path) -> Settings:
    """A training of a second: 2 stages, 2 epochs of 5 steps."""
    return {
        "parameters": str(parameters),
        "dataset": "shapes-minimal",
        "num_images": 24,
        "train_valid_frac": 0.84,
        "epochs": 2,
        "batch_size": 4,
        "warmup": 2,
        "chckpt_num": 100,
        "device": "cpu",
        "precision": "fp32",
        "cache_directory": None,
        "output_directory": str(output),
    }


@pytest.fixture
def tiny(parameters: Path, tmp_path: Path) -> Settings:
    """The tiny training, in a directory of this test."""
    return tiny_settings(parameters, tmp_path / "out")


def run(settings: Settings, **changes: Any) -> TrainingDirectory:
    """Resolve and train, quietly."""
    return train(resolve(**(settings | changes)), quiet=True)


def snapshot(directory: Path) -> dict[str, bytes]:
    """All files below a directory and what is in them."""
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Have ``act`` called in the middle of training step ``number``, counted over all stages."""
    calls = 0
    training_noise = Stage.training_noise

    def counting(self: Stage, *args: Any) -> TrainingNoise:
        nonlocal calls
        if self.training:
            calls += 1
            if calls == number:
                act()
        return training_noise(self, *args)

    monkeypatch.setattr(Stage, "training_noise", counting)


# --- the directory --------------------------------------------------------------------------------


def test_training_leaves_the_files_of_the_contract(
    tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and places of all files, and training_progress.txt spelt right (fault 9)."""
    directory = train(resolve(**tiny))
    assert re.fullmatch(f"training_{TIMESTAMP}", directory.path.name)
    stamp = directory.path.name.removeprefix("training_")
    assert set(snapshot(directory.path)) == {
        str(Path(name))
        for name in (
            f"parameters/imagen_params_{stamp}.json",
            f"parameters/unet_0_params_{stamp}.json",
            f"parameters/unet_1_params_{stamp}.json",
            f"parameters/training_parameters_{stamp}.txt",
            f"parameters/words_{stamp}.txt",
            f"parameters/sources_{stamp}.json",
            "manifest/parameters.json",
            *(f"manifest/stage_{i}.json" for i in range(2)),
            *(f"state_dicts/unet_{i}_state_{stamp}.safetensors" for i in range(2)),
            *(f"state_dicts/unet_{i}_state_{stamp}.safetensors.previous" for i in range(2)),
            *(f"tmp/unet_{i}_checkpoint.safetensors" for i in range(2)),
            *(f"tmp/unet_{i}_checkpoint.safetensors.previous" for i in range(2)),
            "training_progress.txt",
            "training_log.csv",
        )
    }
    log = directory.progress.read_text()
    for said in (
        "batch_size=4",
        "stage 0: 8 pixels",
        "stage 1: 16 pixels",
        "weights",
        "20 images to train on, 4 to validate on",
        "stage 1 epoch 2/2: loss",
        "finished",
    ):
        assert said in log
    assert "circle" in (directory.load_words() or ())
    said = capsys.readouterr()
    assert "stage 0 epoch 1/2" in said.out and said.err == ""  # no bars where there is no terminal
    flags = (directory.parameters / f"training_parameters_{stamp}.txt").read_text().splitlines()
    assert all(re.fullmatch("--[A-Z0-9_]+=.*", line) for line in flags)
    model = directory.load_parameters()
    assert (model.imagen, model.unets) == tiny_model()
    imagen = Imagen(model.imagen, model.unets)
    for index, stage in enumerate(imagen.stages):
        stage.unet.load_state_dict(directory.load_best(index))
        whitening = stage.unet.whitening.matrix  # fitted to the captions, and saved
        assert not torch.equal(whitening, torch.eye(len(whitening)))


def test_two_directories_in_one_second_do_not_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second gets another name, also within its files, and the first is left alone."""
    monkeypatch.setattr(files.time, "strftime", lambda _: "20260102_030405")
    made = [TrainingDirectory.create(tmp_path) for _ in range(3)]
    names = [directory.path.name for directory in made]
    stamp = "20260102_030405"
    assert names == [f"training_{stamp}", f"training_{stamp}_1", f"training_{stamp}_2"]
    assert made[1].best(0).name == "unet_0_state_20260102_030405_1.safetensors"
    assert TrainingDirectory(made[1].path).timestamp == "20260102_030405_1"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A full disk or a Ctrl-C in the middle of a checkpoint: the last good one stays, no litter."""
    path = tmp_path / "checkpoint.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"step": 1})

    def half(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr(files, "save_file", half)
    with pytest.raises(type(error)) as caught:
        save_tensors(path, {"a": torch.zeros(2)}, {"step": 2})
    if isinstance(error, OSError):
        assert "checkpoint.safetensors" in str(caught.value)
        assert "No space left" in str(caught.value)
    tensors, state = load_tensors(path)
    assert tensors["a"].tolist() == [1, 1] and state == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_write_is_aside_until_it_is_whole(tmp_path: Path) -> None:
    """While a file is written, its name still shows the old content."""
    path = tmp_path / "file"
    path.write_text("old")

    def write(aside: Path) -> None:
        aside.write_text("new")
        assert path.read_text() == "old"

    atomic_write(path, write)
    assert path.read_text() == "new"


def test_full_disk_in_training_keeps_the_last_good_checkpoint(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training stops with an OSError that names the file; what was saved can be resumed."""
    save, calls = files.save_file, 0

    def full(tensors: Any, file: Any, metadata: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # embeddings, weights, checkpoint, weights, checkpoint
            Path(file).write_bytes(b"half a fi")
            raise OSError(28, "No space left on device")
        save(tensors, file, metadata)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"checkpoint\.safetensors cannot be written.*No space left"):
        run(tiny)
    (path,) = Path(tiny["output_directory"]).iterdir()
    _, state = TrainingDirectory.open(path).load_checkpoint(0)
    assert (state.stage, state.epoch, state.batch) == (0, 1, 0)


# --- what is decided ------------------------------------------------------------------------------


def test_saved_settings_are_loaded_again(tmp_path: Path) -> None:
    """What is saved is what is loaded, nested configurations and tuples too."""
    directory = TrainingDirectory.create(tmp_path)
    imagen, unets = tiny_model()
    stage = replace(imagen.stages[0], guidance_interval=(0.1, 0.9), weighting="min_snr")
    imagen = replace(imagen, stages=(stage, imagen.stages[1]))
    config = resolve(epochs=(3, 1), optim_lr=(1e-3, 2.5e-4), num_images=7, seed=3).config
    config = replace(config, img_side_len=16)
    directory.save_parameters(imagen, unets, config.to_text())
    loaded = load_parameters(directory.parameters, known=KEPT)
    assert loaded.imagen == imagen and loaded.unets == unets
    found = resolve(parameters=str(directory.parameters)).config
    assert replace(found, parameters=None) == config


def test_explicit_settings_win_over_parameters_over_testing_over_defaults(
    parameters: Path, tmp_path: Path
) -> None:
    """The order of the contract, for every pair of neighbours; the plan says who won (fault 5)."""
    directory = tmp_path / "parameters"
    shutil.copytree(parameters, directory)
    (flags,) = directory.glob("training_parameters_*.txt")
    flags.write_text("--WARMUP=7\n\n--CLIP_NORM=0.5\n--EPOCHS=4,3\n")
    with pytest.warns(UserWarning, match="wins over `testing`: `epochs` is 4,3"):
        plan = resolve(
            parameters=str(directory), testing=True, clip_norm="0.25", warmup="7", timesteps="25"
        )
    config, sources = plan.config, plan.sources
    assert (config.clip_norm, sources["clip_norm"]) == (0.25, "given")
    assert (config.epochs, sources["epochs"]) == ((4, 3), "parameters")
    assert (config.num_images, sources["num_images"]) == (TESTING["num_images"], "testing")
    assert (config.accum_iter, sources["accum_iter"]) == (1, "default")
    assert plan.imagen.timesteps == 25  # explicit over the JSON of parameters
    assert plan.unets == tiny_model()[1]  # JSON of parameters over testing


def test_parameters_are_read_once(parameters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One `resolve` reads each file once, and nobody after it reads any again."""
    read: list[str] = []
    for name in ("read_text", "read_bytes"):
        original = getattr(Path, name)

        def reading(self: Path, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            read.append(self.name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Path, name, reading)
    plan = resolve(parameters=str(parameters))
    ours = [path.name for path in parameters.iterdir() if not path.name.startswith("words")]
    assert sorted(name for name in read if name in ours) == sorted(ours)
    assert plan.config.img_side_len == 16 and plan.config.timesteps == 1000


def test_flags_and_json_of_one_directory_must_agree(parameters: Path, tmp_path: Path) -> None:
    """An edit of one of two places is an error that names both, not silently without effect."""
    directory = tmp_path / "parameters"
    shutil.copytree(parameters, directory)
    (flags,) = directory.glob("training_parameters_*.txt")
    flags.write_text("--TIMESTEPS=400\n")
    with pytest.raises(ValueError, match=r"`timesteps`=400, but its imagen_params has 1000"):
        resolve(parameters=str(directory))


def test_model_settings_change_the_model(tiny: Settings) -> None:
    """`img_side_len` sets the last side; `timesteps` below a stage's steps lowers these."""
    model = resolve(**tiny, img_side_len=32, timesteps=1, max_num_words=9).imagen
    assert [stage.side for stage in model.stages] == [8, 32]
    assert [stage.steps for stage in model.stages] == [1, 1]
    assert model.max_tokens == 9
    for wrong in (8, 18, 7):
        with pytest.raises(ValueError, match=r"`img_side_len` .* multiple of 4 and above 8"):
            resolve(**tiny, img_side_len=wrong)


def test_a_caller_in_python_never_reads_a_flag(tiny: Settings) -> None:
    """Errors name settings as they are called in Python; the command line spells flags."""
    for wrong in (
        {"batch_size": 0},
        {"device": "tpu"},
        {"t5_name": "t6"},
        {"dataset": "nowhere"},
        {"epochs": (1, 2, 3)},
        {"stages": (2,)},
        {"precision": "fp16"},
        {"parameters": "nowhere"},
        {"restart_directory": "nowhere"},
        {"output_directory": __file__},
        {"train_valid_frac": 0.001},
    ):
        with pytest.raises(ValueError) as caught:
            run(tiny, **wrong)
        assert f"`{next(iter(wrong))}`" in str(caught.value) and "--" not in str(caught.value)


def test_every_setting_survives_as_text() -> None:
    """The saved settings, read again, are the same, whatever the value of a field."""
    given = {"valid_num": 3, "threads": None, "cache_directory": None, "optim_lr": (1e-4, 3e-5)}
    config = resolve(**given).config
    assert resolve(**config.to_text()).config == config
    assert {item.name for item in fields(TrainConfig)} - set(KEPT) == {
        "parameters",
        "restart_directory",
        "training_directory",
        "stages",
        "other_data",
        "log_with",
        "sample_every",
        "push_to",
    }
    assert to_text((20, 6)) == "20,6" and to_text(None) == "none"


def test_default_models_are_sound() -> None:
    """Both default models can be built; the one for `testing` is the smaller one."""
    counts = []
    for testing in (True, False):
        with torch.device("meta"):
            imagen = Imagen(*default_architecture(testing))
        counts.append(sum(weight.numel() for weight in imagen.parameters()))
    assert counts[0] < counts[1] / 2


def test_shipped_example_of_parameters_is_sound() -> None:
    """./parameters can be loaded, and leaves the size of the data to `testing`."""
    model = load_parameters(ROOT / "parameters", known=KEPT)
    Imagen(model.imagen, model.unets)
    assert model.flags and not set(TESTING) & set(model.flags)


def test_one_number_is_for_all_stages() -> None:
    """From Python as on the command line: 3, "3" and (3,) say the same."""
    for given in (3, "3", (3,), [3]):
        assert resolve(epochs=given).config.epochs == (3,)
    assert [resolve(optim_lr=1e-3).stage_settings(i).optim_lr for i in range(2)] == [1e-3, 1e-3]


def test_precision_is_decided_by_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" asks what the processor can do, never how fast it is; what was decided is saved."""
    for able, due in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("minimagen.devices._has_bf16", lambda device, able=able: able)
        config = resolve(device="cpu").config
        assert config.precision == due == config.to_text()["precision"]


def test_split_gives_both_parts_some() -> None:
    """By the seed alone; an empty part is an error that names the setting."""
    train_part, valid_part = split(range(20), 0.8, 3, seed=0)
    assert len(train_part) == 16 and len(valid_part) == 3
    assert not set(train_part) & set(valid_part) and split(range(20), 0.8, 3, 0) == (
        train_part,
        valid_part,
    )
    with pytest.raises(
        ValueError, match=r"`train_valid_frac` is 0.99, of 20 images that leaves 20"
    ):
        split(range(20), 0.99, None, 0)


# --- the loop -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache() -> EmbeddingCache:
    cache = EmbeddingCache(load_text_encoder("t5_tiny"))
    cache.add(make_dataset("shapes-minimal", 8, 24).captions)
    cache.release_encoder()
    return cache


SETTINGS = StageSettings(
    stage=0,
    epochs=2,
    batch_size=4,
    optim_lr=2e-3,
    accum_iter=1,
    warmup=2,
    clip_norm=1.0,
    ema_decay=0.999,
    seed=0,
    text_dropout=0.1,
)


class Loop:
    """One stage of the tiny model in training, 20 images to train on and 4 to validate."""

    def __init__(self, cache: EmbeddingCache, **changes: Any) -> None:
        torch.manual_seed(0)
        self.settings = SETTINGS._replace(**changes)
        imagen = Imagen(*tiny_model())
        dataset = make_dataset("shapes-minimal", imagen.config.stages[0].side, 24)
        self.data = StageData(dataset, range(20), range(20, 24), cache)
        self.state = TrainingState(imagen.stages[0], torch.device("cpu"))
        self.accelerator = Accelerator(cpu=True)

    def run(self) -> Any:
        return train_stage(self.state, self.data, self.settings, self.accelerator)

    def validate(self) -> float:
        return validate(self.state.ema, self.data, self.settings, self.accelerator)


def test_train_loss_is_the_mean_over_images(cache: EmbeddingCache) -> None:
    """Fault 6: losses are divided by what was summed."""
    run = Loop(cache).run()
    steps: list[StepRecord] = []
    while not isinstance(record := next(run), EpochRecord):
        steps.append(record)
    assert [record.step for record in steps] == [1, 2, 3, 4, 5]
    assert [record.images for record in steps] == [4] * 5
    expected = sum(record.loss.item() * record.images for record in steps) / 20
    assert record.train_loss == pytest.approx(expected, rel=1e-6)
    assert record.train_loss > 0


def test_validation_is_an_exact_mean_on_fixed_noise(cache: EmbeddingCache) -> None:
    """Fault 6: EMA weights, eval mode, the same noise for an image whatever its batch."""
    loop = Loop(cache, batch_size=3)  # 4 images: batches of 3 and 1
    next(loop.run())
    before = torch.get_rng_state()
    first, second = loop.validate(), loop.validate()
    assert first == second
    assert torch.equal(before, torch.get_rng_state())
    losses = []
    for place, index in enumerate(loop.data.valid):
        image, text, mask = collate([loop.data.dataset[index]], cache)
        noise = loop.state.ema.training_noise(1, 0.0, generator(0, VALIDATION, 0, place))
        noise = noise._replace(t=torch.tensor([(place + 0.5) / 4]))
        with torch.no_grad():
            losses.append(loop.state.ema(image, text, mask, noise).item())
    assert first == pytest.approx(sum(losses) / 4, rel=1e-5)
    for size in (1, 4):
        loop.settings = loop.settings._replace(batch_size=size)
        assert loop.validate() == pytest.approx(first, rel=1e-6)
    assert not loop.state.ema.training and loop.state.stage.training
    assert all(w.is_leaf and not w.requires_grad for w in loop.state.ema.parameters())


def test_validation_runs_without_gradients(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 6: no graph is recorded while validating."""
    loop, seen = Loop(cache), []
    forward = Stage.forward

    def watching(self: Stage, *args: Any) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return forward(self, *args)

    monkeypatch.setattr(Stage, "forward", watching)
    loop.validate()
    assert seen == [False]


def watch_gradients(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The gradients of all weights at every step of the optimizer."""
    seen: list[list[Tensor]] = []
    step = Muon.step

    def watching(self: Muon, *args: Any, **kwargs: Any) -> Any:
        seen.append([w.grad.clone() for group in self.param_groups for w in group["params"]])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Muon, "step", watching)
    return seen


def test_gradients_are_clipped(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 2's consequence: clipping reaches every weight that the optimizer changes."""
    seen = watch_gradients(monkeypatch)
    for clip in (1e6, 1e-3):
        loop = Loop(cache, clip_norm=clip)
        next(loop.run())
        assert len(seen[-1]) == len(list(loop.state.stage.parameters())) > 0
    norms = [torch.stack([g.norm() for g in gradients]).norm().item() for gradients in seen]
    assert norms[0] > 0.01 and norms[1] == pytest.approx(1e-3, rel=1e-2)


def test_ema_is_the_moving_average(cache: EmbeddingCache) -> None:
    """The averaged weights against the formula, warm-up of the decay and all."""
    loop = Loop(cache, ema_decay=0.3)
    name = "unet.out.bias"
    average = loop.state.stage.state_dict()[name].clone()
    for record in loop.run():
        if isinstance(record, EpochRecord):
            break
        decay = min(0.3, (1 + record.step) / (10 + record.step))
        average = decay * average + (1 - decay) * loop.state.stage.state_dict()[name]
        torch.testing.assert_close(loop.state.ema.state_dict()[name], average)
    assert not torch.equal(average, loop.state.stage.state_dict()[name])


def test_accumulated_gradients_are_those_of_all_batches(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accum_iter` 2 with batches of 4 sees the mean gradient of 8 images, in half the steps."""
    seen = watch_gradients(monkeypatch)
    loop = Loop(cache, accum_iter=2, clip_norm=1e6)
    weights = {k: v.clone() for k, v in loop.state.stage.state_dict().items()}
    record = next(loop.run())
    assert record.images == 8 and record.batches == 2 and record.steps == 4  # 4 of 5 batches fit

    other = Loop(cache)
    stage = other.state.stage
    stage.load_state_dict(weights)
    stage.unet.eval()
    loop.state.stage.load_state_dict(weights)
    batches = epoch_batches(range(20), 4, 2, generator(0, ORDER, 0, 0))
    for number, indices in enumerate(batches[:2]):
        torch.manual_seed(0)
        stage.train()
        images, text, mask = collate([other.data.dataset[i] for i in indices], cache)
        noise = stage.training_noise(4, 0.1, generator(0, NOISE, 0, 0, number))
        torch.manual_seed(seed_of(0, DROPOUT, 0, 0, number, 0))  # for dropout
        (stage(images, text, mask, noise).mean() / 2).backward()
    weights_in_order = [weight for part in split_weights(stage.unet) for weight in part]
    for found, due in zip(seen[0], (w.grad for w in weights_in_order), strict=True):
        torch.testing.assert_close(found, due)


@pytest.mark.slow
@pytest.mark.processes
def test_loader_processes_are_started_once(cache: EmbeddingCache) -> None:
    """For all epochs and validations; batches are those of a training without them."""
    plain, loop = Loop(cache), Loop(cache)
    loop.data.num_workers = 1
    started = []
    for record, other in zip(plain.run(), loop.run(), strict=True):
        assert type(record) is type(other)
        if isinstance(record, EpochRecord):
            assert record.valid_loss == other.valid_loss
            started += [child.pid for child in multiprocessing.active_children()]
    assert len(started) == 2 and started[0] == started[1]


def test_an_error_of_a_loader_process_is_one_line(cache: EmbeddingCache) -> None:
    """As without processes: the file and what is wrong with it, no traceback."""

    def fail(indices: Sequence[int], epoch: int | None = None) -> Any:
        raise ValueError(f"picture {indices[0]} is missing")

    for workers in (0, 1):
        loop = Loop(cache)
        loop.data.num_workers = workers
        loop.data.dataset.items = fail  # type: ignore[method-assign]
        with pytest.raises(ValueError, match=r"^picture \d+ is missing$"):
            list(loop.run())


def test_learning_rate_rises_then_falls_to_zero() -> None:
    """Linear warm-up to the peak, linear decay that ends with the last step."""
    rates = [learning_rate(step, 20, 1.0, 4) for step in range(20)]
    peak = rates.index(max(rates))
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and peak == 4
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(1 / 16)
    assert learning_rate(0, 1, 1.0, 100) > 0  # fewer steps than warm-up


def test_batches_cover_an_epoch_and_depend_on_the_seed_alone() -> None:
    """Every image once an epoch, in another order each."""
    first = epoch_batches(range(100, 120), 4, 1, generator(3, 0))
    assert sorted(i for batch in first for i in batch) == list(range(100, 120)) and len(first) == 5
    assert epoch_batches(range(100, 120), 4, 1, generator(3, 0)) == first
    second = epoch_batches(range(100, 120), 4, 1, generator(3, 1))
    assert sorted(i for batch in second for i in batch) == list(range(100, 120)) and second != first
    assert [len(batch) for batch in epoch_batches(range(3), 4, 1, generator(0))] == [
        3
    ]  # less than one
    assert [len(batch) for batch in epoch_batches(range(23), 4, 2, generator(0))] == [
        4
    ] * 4  # whole groups
    assert len(epoch_batches(range(23), 4, 9, generator(0))) == 5  # less than one group


def test_every_purpose_has_a_stream_of_its_own() -> None:
    """Zeros at the end count: numpy's SeedSequence takes (0,) and (0, 0) for the same otherwise."""
    streams = [(), (0,), (0, 0), (0, 0, 0), (1,), (1, 0), (0, 1), (2, 0, 0, 0)]
    seeds = {seed_of(seed, *stream) for seed in (0, 1, 2**40) for stream in streams}
    assert len(seeds) == 3 * len(streams)
    first = torch.stack(
        [torch.rand((), generator=generator(0, NOISE, 0, 0, i)) for i in range(999)]
    )
    assert abs(first.mean() - 0.5) < 0.03 and abs(first.var() - 1 / 12) < 0.01


def test_captions_are_in_one_order_in_every_process() -> None:
    """A set's order differs between processes; captions of one length must not follow it."""
    captions = [f"a {c} {s}" for c in "bcade" for s in "zxy"] * 2
    assert distinct(captions) == sorted(set(captions))
    assert distinct(["bb", "a", "ab"]) == ["a", "ab", "bb"]


def test_too_few_batches_to_accumulate_still_make_a_step(cache: EmbeddingCache) -> None:
    """`accum_iter` 8 of 5 batches: one step an epoch, not none."""
    loop = Loop(cache, accum_iter=8)
    before = loop.state.stage.unet.out.weight.clone()
    record = next(loop.run())
    assert (record.step, record.steps, record.batches, record.images) == (1, 2, 5, 20)
    assert not torch.equal(loop.state.stage.unet.out.weight, before)


@pytest.mark.slow
def test_training_learns(cache: EmbeddingCache) -> None:
    """The validation loss of the averaged weights falls well below that of a zero output."""
    loop = Loop(cache, epochs=12, optim_lr=5e-3)
    start = loop.validate()
    losses = [record.valid_loss for record in loop.run() if isinstance(record, EpochRecord)]
    assert losses[-1] < 0.8 * start
    assert loop.state.best == min(losses)


@pytest.mark.parametrize("how", ["an epoch ends", "a checkpoint is due", "a stop is asked for"])
def test_loss_that_is_no_number_stops_the_training(
    how: str, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 7: the training ends in one clear error, the last good checkpoint stays."""
    forward, calls = Stage.forward, 0

    def breaking(self: Stage, *args: Any) -> Tensor:
        nonlocal calls
        calls += self.training
        loss = forward(self, *args)
        if calls == 8 and how == "a stop is asked for":
            signal.raise_signal(signal.SIGTERM)
        return loss * float("nan") if calls == 8 and self.training else loss

    monkeypatch.setattr(Stage, "forward", breaking)
    with pytest.raises(RunError, match="loss of stage 0 is no longer finite in epoch 2"):
        run(tiny, chckpt_num=1 if how == "a checkpoint is due" else 100)
    (path,) = Path(tiny["output_directory"]).iterdir()
    directory = TrainingDirectory.open(path)
    tensors, state = directory.load_checkpoint(0)
    done = (state.epoch, state.batch)
    assert done == ((1, 2) if how == "a checkpoint is due" else (1, 0))
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    assert "no longer finite" in directory.progress.read_text()


def test_each_distinct_caption_is_encoded_once(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings are computed once for all epochs and stages, and never again with a cache."""
    encoded: list[str] = []
    encode = T5Encoder.encode

    def counting(self: T5Encoder, captions: list[str]) -> Any:
        encoded.extend(captions)
        return encode(self, captions)

    monkeypatch.setattr(T5Encoder, "encode", counting)
    kept = tiny | {"cache_directory": str(tmp_path / "cache"), "epochs": 1}
    run(kept)
    captions = make_dataset("shapes-minimal", 8, 24).captions
    assert sorted(encoded) == sorted(set(captions))
    encoded.clear()
    run(kept)
    assert encoded == []


@pytest.mark.slow
def test_embeddings_do_not_depend_on_what_was_trained_before(
    tiny: Settings, tmp_path: Path
) -> None:
    """The last bits depend on the captions of a batch: a cache of others must not change them."""
    plan = resolve(**(tiny | {"cache_directory": str(tmp_path / "cache")}))
    captions = make_dataset("shapes-minimal", 8, 2000).captions

    def embed(plan: Any, captions: Sequence[str]) -> EmbeddingCache:
        with Report(plan, False, True, None) as report:
            return cascade._embed(plan, captions, tmp_path, report)

    cold = embed(resolve(**tiny), captions)
    embed(plan, captions[::3])
    warm = embed(plan, captions)
    assert all(torch.equal(cold([one])[0], warm([one])[0]) for one in captions)


# --- stopping and going on ------------------------------------------------------------------------


def final_state(directory: TrainingDirectory) -> dict[str, Tensor]:
    """All that a training has come to: its checkpoints and its best weights."""
    found: dict[str, Tensor] = {}
    for stage in range(2):
        tensors, state = directory.load_checkpoint(stage)
        tensors["numbers"] = torch.tensor([state.epoch, state.batch, state.step, state.best])
        found |= {f"{stage}.{name}": value for name, value in tensors.items()}
        best = load_file(directory.best(stage))
        found |= {f"best.{stage}.{name}": value for name, value in best.items()}
    return found


def assert_same(found: dict[str, Tensor], due: dict[str, Tensor]) -> None:
    """Two trainings have come to the same, bit for bit."""
    assert found.keys() == due.keys()
    for name, value in due.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module")
def uninterrupted(parameters: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the tiny training comes to when nothing stops it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "_train_in_processes", cascade._train_here)
        return final_state(run(tiny_settings(parameters, tmp_path_factory.mktemp("whole"))))


class Crash(BaseException):
    """Stands for a process that is killed."""


def crash() -> None:
    raise Crash


@pytest.mark.parametrize(
    ("number", "step"),  # mid-epoch, in the first stage and in the second
    [
        (signal.SIGTERM, 8),
        pytest.param(signal.SIGINT, 13, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 13, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 8, marks=pytest.mark.slow),
    ],
)
def test_resumed_training_equals_an_uninterrupted_one(
    tiny: Settings,
    uninterrupted: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    step: int,
) -> None:
    """Fault 7: after Ctrl-C or SIGTERM in mid-epoch, bit for bit; the old directory untouched."""
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: signal.raise_signal(number))
        with pytest.raises(RunStopped, match="`restart_directory`") as caught:
            run(tiny)
    assert caught.value.exit_code == 128 + number
    (old,) = Path(tiny["output_directory"]).iterdir()
    assert str(old) in str(caught.value)
    before = snapshot(old)
    stage = {8: 0, 13: 1}[step]
    state = TrainingDirectory.open(old).load_checkpoint(stage)[1]
    assert (state.epoch, state.batch) == [(1, 3), (0, 3)][stage]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as before the training

    torch.manual_seed(123)  # whatever the new process is seeded with
    new = run({"restart_directory": str(old), "output_directory": tiny["output_directory"]})
    assert new.path != old and snapshot(old) == before
    assert_same(final_state(new), uninterrupted)


def test_training_killed_without_a_word_goes_on_from_its_last_checkpoint(
    tiny: Settings, uninterrupted: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`chckpt_num`: what was saved in mid-epoch is enough to end up with the same weights."""
    with monkeypatch.context() as patch:
        at_step(patch, 10, crash)
        with pytest.raises(Crash):
            run(tiny, chckpt_num=2)
    (old,) = Path(tiny["output_directory"]).iterdir()
    state = TrainingDirectory.open(old).load_checkpoint(0)[1]
    assert (state.epoch, state.batch) == (1, 4)
    assert "loss" in TrainingDirectory.open(old).progress.read_text().splitlines()[-1]
    assert_same(final_state(run({"restart_directory": str(old)})), uninterrupted)


@pytest.mark.slow
def test_crops_and_flips_are_the_same_after_a_break(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with loader processes, and where every epoch decodes the pictures again."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(24):
        noise = random.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a picture\nnumber {i}\n")
    changes = {"dataset": str(folder), "num_images": None, "crop": "random", "flip": True}
    changes |= {"crop_side": 4, "batch_size": 8}
    monkeypatch.setattr(cascade, "_train_in_processes", cascade._train_here)
    due = final_state(run(tiny, **changes))
    for change in ({"crop_side": None}, {"crop": "centre", "flip": False}):
        other = final_state(run(tiny, **(changes | change)))
        assert any(not torch.equal(due[name], other[name]) for name in due)

    assert_same(final_state(run(tiny, **changes, num_workers=1)), due)
    with monkeypatch.context() as patch:
        at_step(patch, 8, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(RunStopped) as caught:
            run(tiny, **changes)
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
        old = re.search(r"`restart_directory` (.*)", str(caught.value))
        assert old is not None
        assert_same(final_state(run({"restart_directory": old[1]})), due)


def test_checkpoint_has_optimizer_epoch_and_best_loss(cache: EmbeddingCache) -> None:
    """Fault 7: each of these is saved, and is there again in a state that loads it."""
    loop = Loop(cache)
    for record in loop.run():
        if isinstance(record, StepRecord) and record.epoch == 1 and record.batches == 2:
            break
    tensors, numbers = loop.state.save()
    saved = {name: value.clone() for name, value in tensors.items()}
    other = Loop(cache).state
    other.load(dict(saved), CheckpointState(stage=0, **json.loads(json.dumps(numbers))))
    assert (other.epoch, other.batch, other.step) == (1, 2, 7)
    assert other.best == loop.state.best < float("inf")
    moments = [v for s in other.optimizer.state_dict()["state"].values() for v in s.values()]
    large, others = split_weights(other.stage.unet)
    assert len(moments) == len(large) + 3 * len(others)
    for name, value in other.save()[0].items():
        assert torch.equal(value, saved[name]), name


@pytest.mark.slow
def test_finished_training_can_be_given_more_epochs(tiny: Settings) -> None:
    """`restart_directory` with more `epochs` trains on, each stage from where it was."""
    old = run(tiny, epochs=1)
    again = {"restart_directory": str(old.path)}
    assert_same(final_state(run(again)), final_state(old))
    for epochs, steps in (("1,2", [5, 10]), ("2,1", [10, 5])):
        new = run(again, epochs=epochs)
        assert [new.load_checkpoint(stage)[1].step for stage in range(2)] == steps
        assert f"stage {steps.index(5)}: is finished already" in new.progress.read_text()


def test_signals_are_as_before_after_a_training(tiny: Settings) -> None:
    """Ctrl-C interrupts a notebook again once the training has ended."""
    before = signal.getsignal(signal.SIGINT)
    run(tiny, epochs=1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_seed_decides_the_training(tiny: Settings) -> None:
    """One seed, one result; another seed, another."""
    ends = [final_state(run(tiny, epochs=1, seed=seed)) for seed in (1, 1, 2)]
    assert_same(ends[0], ends[1])
    name = "best.1.out.weight"
    assert not torch.equal(ends[0][name], ends[2][name])


def test_stages_can_be_trained_one_by_one_into_one_directory(
    tiny: Settings, uninterrupted: dict[str, Tensor]
) -> None:
    """`stages` 1, then 0 with `training_directory`: the same weights as both in one run."""
    first = run(tiny, stages="1")
    assert not first.checkpoint(0).exists() and first.checkpoint(1).is_file()
    second = run({"training_directory": str(first.path), "stages": 0})
    assert second.path == first.path
    assert_same(final_state(second), uninterrupted)
    assert first.progress.read_text().count("finished; the results") == 2
    with pytest.raises(ValueError, match="`stages` is 2, the stages of this model are 0 to 1"):
        resolve(**tiny, stages=2)


@pytest.mark.slow
def test_directory_of_an_older_version_goes_on(tiny: Settings) -> None:
    """It has no manifest, --PRECISION=auto, and the states of random generators: it still loads."""
    old = run(tiny, epochs=1)
    shutil.rmtree(old.path / "manifest")
    (flags,) = old.parameters.glob("training_parameters_*.txt")
    flags.write_text(flags.read_text().replace("--PRECISION=fp32", "--PRECISION=auto"))
    for path in (*old.parameters.glob("words_*.txt"), *old.parameters.glob("sources_*.json")):
        path.unlink()
    for stage in range(2):
        tensors, numbers = load_tensors(old.checkpoint(stage))
        states = {f"random.0.{name}": torch.get_rng_state() for name in ("draws", "torch")}
        save_tensors(old.checkpoint(stage), tensors | states, numbers | {"device": "cpu"})
    new = run({"restart_directory": str(old.path)}, epochs=2)
    assert [new.load_checkpoint(stage)[1].step for stage in range(2)] == [10, 10]
    assert resolve(restart_directory=str(old.path)).config.precision == "fp32"
    assert not old.has_manifest and new.has_manifest
    run({"training_directory": str(old.path)}, epochs=2)
    assert old.has_manifest and TrainingDirectory.open(old.path).load_words()
    assert resolve(restart_directory=str(old.path)).results[1].state.step == 10


# --- a process per stage --------------------------------------------------------------------------

SCRIPT = """
import sys, json, torch
from minimagen.training import resolve, train
if __name__ == "__main__":
    print(train(resolve(**json.loads(sys.argv[1])), quiet=True).path)
"""


def start(tmp_path: Path, settings: Settings, **environment: str) -> subprocess.Popen[str]:
    """A script that trains with these settings."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps(settings)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> TrainingDirectory:
    """What the script came to, when it ended well."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and err == "", err
    return TrainingDirectory.open(out.strip())


@pytest.mark.slow
@pytest.mark.processes
def test_processes_come_to_the_same_with_every_hash_seed(
    tiny: Settings, uninterrupted: dict[str, Tensor], tmp_path: Path
) -> None:
    """Side by side or not, whatever PYTHONHASHSEED: the same command gives the same bits."""
    for seed, threads in (("1", 2), ("2", 2), ("3", 1)):
        directory = finish(start(tmp_path, tiny | {"threads": threads}, PYTHONHASHSEED=seed))
        side_by_side = "side by side: 0 and 1, 1 CPU threads each" in directory.progress.read_text()
        assert side_by_side is (threads == 2)
        assert_same(final_state(directory), uninterrupted)


@pytest.mark.slow
@pytest.mark.processes
def test_default_settings_run_on_after_the_first_epoch(tiny: Settings, tmp_path: Path) -> None:
    """Fault 10: nothing is divided by zero, with all else default."""
    names = ("parameters", "dataset", "num_images", "output_directory", "cache_directory")
    settings = {name: tiny[name] for name in names} | {"epochs": 2}
    log = finish(start(tmp_path, settings)).progress.read_text()
    assert "stage 0 epoch 2/2" in log and "stage 1 epoch 2/2" in log and "nan" not in log
    assert re.search(r"device \w+, precision (fp32|bf16)\n", log)


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + 300  # of a machine that has much else to do
    while not (found := list(path.glob(pattern))):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return found[0]


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        pid
        for pid in map(int, listed)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "what", ["a stage is killed", "the parent is killed", "the parent is stopped"]
)
def test_processes_that_end_early_leave_what_can_be_resumed(
    what: str, tiny: Settings, tmp_path: Path
) -> None:
    """When one is killed the others save; nobody goes on for ever without a parent."""
    output = Path(tiny["output_directory"])
    process = start(tmp_path, tiny | {"threads": 2, "epochs": 5000})
    try:
        wait_for(output, "*/tmp/unet_0_checkpoint.safetensors", process)
        wait_for(output, "*/tmp/unet_1_checkpoint.safetensors", process)
        pids = children(process)
        assert len(pids) == 2
        if what == "a stage is killed":
            os.kill(pids[0], signal.SIGKILL)
        else:
            killed = what == "the parent is killed"
            os.kill(process.pid, signal.SIGKILL if killed else signal.SIGTERM)
        _, err = process.communicate(timeout=120)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.1)
    finally:
        process.kill()
    if what == "a stage is killed":
        assert re.search(r"RunError: the process of stage [01] died, exit code -9", err)
    elif what == "the parent is stopped":
        assert "RunStopped: stopped; go on with" in err
    (path,) = output.iterdir()
    old = TrainingDirectory.open(path)
    assert all(old.load_checkpoint(stage)[1].step >= 5 for stage in range(2))
    saved = set(
        re.findall(r"stage (\d): stopped at step \d+; checkpoint", old.progress.read_text())
    )
    assert len(saved) == {"a stage is killed": 1, "the parent is stopped": 2}.get(what, 0)


@pytest.mark.slow
@pytest.mark.processes
def test_error_of_a_stage_reaches_the_parent(tiny: Settings, tmp_path: Path) -> None:
    """A loss that diverges in a process of a stage is the parent's error of one line."""
    process = start(tmp_path, tiny | {"threads": 2, "optim_lr": "3,1e-3", "epochs": "50,5000"})
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.search(r"RunError: the loss of stage 0 has diverged", err)
    (path,) = Path(tiny["output_directory"]).iterdir()
    log = TrainingDirectory.open(path).progress.read_text()
    assert re.search(r"^stage 1: stopped at step \d+; checkpoint$", log, re.M)


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run"],
    "accelerate launch": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1"],
}
COMMON = {"torchrun": "nproc_per_node", "accelerate launch": "num_processes"}
PORT = {"torchrun": "master_port", "accelerate launch": "main_process_port"}


def launch(
    tmp_path: Path, settings: Settings, processes: int, launcher: str = "torchrun"
) -> TrainingDirectory:
    """The same in several processes, on this machine's processor (gloo)."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *LAUNCHERS[launcher], f"--{COMMON[launcher]}={processes}"]
    done = subprocess.run(
        [*command, f"--{PORT[launcher]}={port}", str(script), json.dumps(settings)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return TrainingDirectory.open(done.stdout.splitlines()[-1])


def losses_of(directory: TrainingDirectory, count: int = 4) -> list[float]:
    """The losses that its log has, in the order of stages and epochs."""
    pattern = r"^stage (\d) epoch (\d)/\d: loss ([\d.]+), validation ([\d.]+)"
    found = re.findall(pattern, directory.progress.read_text(), re.M)
    assert len(found) == count
    return [float(value) for row in sorted(found) for value in row[2:]]


@pytest.fixture
def alone(tmp_path: Path) -> Settings:
    """The tiny training without dropout, whose noise each process draws by itself."""
    imagen, unets = tiny_model()
    model = TrainingDirectory.create(tmp_path / "model")
    model.save_parameters(imagen, [replace(unet, dropout=0.0) for unet in unets], {})
    return tiny_settings(model.parameters, tmp_path / "out")


def assert_close(found: TrainingDirectory, due: TrainingDirectory) -> None:
    """Two trainings have had the same losses to 1e-5, and have come to close weights."""
    assert losses_of(found) == pytest.approx(losses_of(due), rel=1e-5, abs=2e-5)  # five decimals
    for stage in range(2):
        mine, other = found.load_checkpoint(stage)[0], due.load_checkpoint(stage)[0]
        torch.testing.assert_close(mine["sums"], other["sums"])
        name = "model.unet.out.weight"
        torch.testing.assert_close(mine[name], other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(("launcher", "size"), [("torchrun", 2), ("accelerate launch", 11)])
def test_two_processes_train_as_one_with_twice_the_batch(
    launcher: str, size: int, alone: Settings, tmp_path: Path
) -> None:
    """Also when they share all 20 images of one batch that is not full."""
    one = run_here(alone | {"batch_size": 2 * size})
    two = launch(tmp_path, alone | {"batch_size": size}, 2, launcher)
    assert two.load_sources() == replace(one.load_sources(), processes=2)
    assert_close(two, one)


@pytest.mark.slow
@pytest.mark.processes
def test_going_on_with_another_number_of_processes(alone: Settings, tmp_path: Path) -> None:
    """From the checkpoints after an epoch: 2 to 2, 2 to 1, 1 to 3. The batch stays what it was."""
    one = run_here(alone)
    two = launch(tmp_path, alone | {"batch_size": 2}, 2)
    for old, processes in ((two, 2), (two, 1), (one, 3)):
        for stage in range(2):
            old.checkpoint(stage).unlink(missing_ok=True)  # then the one before is taken
        new = launch(tmp_path, {"restart_directory": str(old.path)}, processes)
        end = losses_of(new, count=2)
        assert end == pytest.approx([losses_of(one)[i] for i in (2, 3, 6, 7)], rel=1e-5, abs=2e-5)


def run_here(settings: Settings) -> TrainingDirectory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "_train_in_processes", cascade._train_here)
        return run(settings)
