"""Training: the configuration, the loop, the Training Directory, going on after a stop."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minimagen.data import make_dataset
from minimagen.imagen import Draws, Imagen, ImagenConfig, Stage, StageConfig
from minimagen.text import EmbeddingCache, T5Encoder, load_text_encoder
from minimagen.training import directory as directory_module
from minimagen.training.config import (
    TrainConfig,
    default_architecture,
    from_json,
    to_text,
)
from minimagen.training.directory import (
    TrainingDirectory,
    atomic_write,
    load_parameters,
    load_tensors,
    save_tensors,
)
from minimagen.training.loop import (
    EpochBatches,
    EpochRecord,
    RunError,
    StageTrainer,
    StepRecord,
    learning_rate,
    mix,
)
from minimagen.training.prepare import prepare
from minimagen.training.resolve import TESTING, architecture, resolve
from minimagen.training.run import _Run, train
from minimagen.training.stop import RunStopped
from minimagen.unet import UnetConfig

TIMESTAMP = r"\d{8}_\d{6}(_\d+)?"


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


def tiny_config(parameters: Path, output: Path) -> TrainConfig:
    """A training of a second: 2 stages, 2 epochs of 5 steps."""
    return TrainConfig(
        parameters=str(parameters),
        dataset="shapes-minimal",
        num_images=24,
        train_valid_frac=0.84,
        epochs=(2,),
        batch_size=(4,),
        warmup=2,
        chckpt_num=100,
        device="cpu",
        precision="fp32",
        cache_directory=None,
        output_directory=str(output),
    )


@pytest.fixture
def tiny(parameters: Path, tmp_path: Path) -> TrainConfig:
    """The tiny training, in a directory of this test."""
    return tiny_config(parameters, tmp_path / "out")


def snapshot(directory: Path) -> dict[str, bytes]:
    """All files below a directory and what is in them."""
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def at_draw(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Have ``act`` called in the middle of training step ``number``, counted over all stages."""
    calls = 0
    draw = Stage.draw

    def counting(self: Stage, *args: Any) -> Draws:
        nonlocal calls
        if self.training:
            calls += 1
            if calls == number:
                act()
        return draw(self, *args)

    monkeypatch.setattr(Stage, "draw", counting)


# --- the directory --------------------------------------------------------------------------------


def test_training_leaves_the_files_of_the_contract(
    tiny: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and places of all files, and training_progress.txt spelt right (fault 9)."""
    directory = train(tiny)
    assert re.fullmatch(f"training_{TIMESTAMP}", directory.path.name)
    stamp = directory.path.name.removeprefix("training_")
    assert set(snapshot(directory.path)) == {
        str(Path(name))
        for name in (
            f"parameters/imagen_params_{stamp}.json",
            f"parameters/unet_0_params_{stamp}.json",
            f"parameters/unet_1_params_{stamp}.json",
            f"parameters/training_parameters_{stamp}.txt",
            f"state_dicts/unet_0_state_{stamp}.safetensors",
            f"state_dicts/unet_1_state_{stamp}.safetensors",
            "tmp/unet_0_checkpoint.safetensors",
            "tmp/unet_1_checkpoint.safetensors",
            "training_progress.txt",
        )
    }
    log = directory.progress.read_text()
    for said in (
        "--BATCH_SIZE=4",
        "stage 0: 8 pixels",
        "stage 1: 16 pixels",
        "weights",
        "20 pictures to train on, 4 to validate on",
        "stage 1 epoch 2/2: loss",
        "finished",
    ):
        assert said in log
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
    monkeypatch.setattr(directory_module.time, "strftime", lambda _: "20260102_030405")
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

    monkeypatch.setattr(directory_module, "save_file", half)
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
    tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training stops with an OSError that names the file; what was saved can be resumed."""
    save, calls = directory_module.save_file, 0

    def full(tensors: Any, file: Any, metadata: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # weights, checkpoint, weights, checkpoint
            Path(file).write_bytes(b"half a fi")
            raise OSError(28, "No space left on device")
        save(tensors, file, metadata)

    monkeypatch.setattr(directory_module, "save_file", full)
    with pytest.raises(OSError, match=r"checkpoint\.safetensors cannot be written.*No space left"):
        train(tiny, quiet=True)
    (path,) = Path(tiny.output_directory).iterdir()
    _, state = TrainingDirectory.open(path).load_checkpoint(0)
    assert (state["stage"], state["epoch"], state["batch"]) == (0, 1, 0)


# --- configuration --------------------------------------------------------------------------------


def test_json_round_trip(tmp_path: Path) -> None:
    """What is saved is what is loaded, nested configurations and tuples too."""
    directory = TrainingDirectory.create(tmp_path)
    imagen, unets = tiny_model()
    stage = replace(imagen.stages[0], guidance_interval=(0.1, 0.9), weighting="min_snr")
    imagen = replace(imagen, stages=(stage, imagen.stages[1]))
    config = TrainConfig(epochs=(3, 1), optim_lr=(1e-3, 2.5e-4), valid_num=None, num_images=7)
    directory.save_parameters(imagen, unets, config.to_flags())
    loaded = load_parameters(directory.parameters)
    assert loaded.imagen == imagen and loaded.unets == unets
    flags = {name.lower(): value for name, value in loaded.flags.items()}
    assert resolve(**flags) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timestep": 5}, "unknown key 'timestep'"),
        ({"stages": [{"side": 8, "stepz": 1}]}, r"unknown key 'stages\[0\]\.stepz'"),
        ({"stages": [{"schedule": {"kind": "cosine"}}]}, "schedule.kind"),
        ({"timesteps": "many"}, "timesteps is 'many', it should be a whole number"),
        ({"timesteps": True}, "timesteps is True"),
        ({"stages": 3}, "stages is 3, it should be a list"),
        ({"stages": [{"sampler": "magic"}]}, "sampler is 'magic'"),
        ({"text_dropout": 2.0}, r"text_dropout is 2.0, it should be in \[0, 1\]"),
    ],
)
def test_wrong_json_is_named(change: dict[str, Any], said: str) -> None:
    """Unknown keys, wrong types and values: one line with the file and the key."""
    data = json.loads(json.dumps({"stages": [{"side": 8}]})) | change
    with pytest.raises(ValueError, match=said) as caught:
        from_json(ImagenConfig, data, "some/file.json")
    assert "some/file.json" in str(caught.value) and "\n" not in str(caught.value)


def test_explicit_flags_win_over_parameters_over_testing_over_defaults(
    parameters: Path, tmp_path: Path
) -> None:
    """The order of the contract, for every pair of neighbours (fault 5)."""
    directory = tmp_path / "parameters"
    shutil.copytree(parameters, directory)
    (flags,) = directory.glob("training_parameters_*.txt")
    flags.write_text("--WARMUP=7\n\n--CLIP_NORM=0.5\n--EPOCHS=4,3\n")
    with pytest.warns(UserWarning, match="wins over --TESTING: --EPOCHS=4,3"):
        config = resolve(
            parameters=str(directory), testing=True, clip_norm="0.25", warmup="7", timesteps="25"
        )
    assert config.clip_norm == 0.25  # explicit over parameters
    assert config.epochs == (4, 3)  # parameters over testing
    assert config.num_images == TESTING["num_images"]  # testing over default
    assert config.accum_iter == 1  # default
    assert architecture(config).imagen.timesteps == 25  # explicit over the JSON of parameters
    assert architecture(config).unets == tiny_model()[1]  # JSON of parameters over testing


def test_flags_and_json_of_one_directory_must_agree(parameters: Path, tmp_path: Path) -> None:
    """An edit of one of two places is an error that names both, not silently without effect."""
    directory = tmp_path / "parameters"
    shutil.copytree(parameters, directory)
    (flags,) = directory.glob("training_parameters_*.txt")
    flags.write_text("--TIMESTEPS=400\n")
    with pytest.raises(ValueError, match=r"--TIMESTEPS=400, but its imagen_params has 1000"):
        resolve(parameters=str(directory))


def test_model_flags_change_the_model(tiny: TrainConfig) -> None:
    """--IMG_SIDE_LEN sets the last side; --TIMESTEPS below a stage's steps lowers these."""
    model = architecture(replace(tiny, img_side_len=32, timesteps=1, max_num_words=9))
    assert [stage.side for stage in model.imagen.stages] == [8, 32]
    assert [stage.steps for stage in model.imagen.stages] == [1, 1]
    assert model.imagen.max_tokens == 9
    for wrong in (8, 18, 7):
        with pytest.raises(ValueError, match=r"--IMG_SIDE_LEN .* multiple of 4 and above 8"):
            architecture(replace(tiny, img_side_len=wrong))


def test_every_flag_survives_as_text() -> None:
    """The saved flags, read again, are the configuration, whatever the value of a field."""
    config = TrainConfig(valid_num=3, threads=None, cache_directory=None, optim_lr=(1e-4, 3e-5))
    again = resolve(**{k.lower(): v for k, v in config.to_flags().items()})
    assert again == config
    assert {f.name for f in fields(TrainConfig)} - {k.lower() for k in config.to_flags()} == {
        "parameters",
        "restart_directory",
    }
    assert to_text((20, 6)) == "20,6" and to_text(None) == "none"


def test_default_models_are_sound() -> None:
    """Both default models can be built; the one for --TESTING is the smaller one."""
    counts = []
    for testing in (True, False):
        with torch.device("meta"):
            imagen = Imagen(*default_architecture("shapes", testing))
        counts.append(sum(weight.numel() for weight in imagen.parameters()))
    assert counts[0] < counts[1] / 2


def test_shipped_example_of_parameters_is_sound() -> None:
    """./parameters can be loaded, and leaves the size of the data to --TESTING."""
    directory = Path(__file__).parent.parent / "parameters"
    model = load_parameters(directory)
    Imagen(model.imagen, model.unets)
    assert model.flags and not {name.upper() for name in TESTING} & set(model.flags)


def test_one_number_is_for_all_stages() -> None:
    """From Python as on the command line: 3, "3" and (3,) say the same."""
    for given in (3, "3", (3,), [3]):
        assert resolve(epochs=given).epochs == (3,)
    assert resolve(optim_lr=1e-3).per_stage("optim_lr", 2) == (1e-3, 1e-3)


# --- the loop -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache() -> EmbeddingCache:
    cache = EmbeddingCache(load_text_encoder("t5_tiny"))
    cache.add(make_dataset("shapes-minimal", 8, 24).captions)
    cache.release_encoder()
    return cache


def make_trainer(config: TrainConfig, cache: EmbeddingCache, index: int = 0) -> StageTrainer:
    """A trainer of one stage of the tiny model, 20 pictures to train on and 4 to validate."""
    torch.manual_seed(0)
    imagen = Imagen(*tiny_model())
    data = make_dataset("shapes-minimal", imagen.config.stages[index].side, 24)
    stage = imagen.stages[index]
    cpu = torch.device("cpu")
    return StageTrainer(
        stage, index, config, 2, data, range(20), range(20, 24), cache, 0.1, cpu, "fp32"
    )


def reference_losses(trainer: StageTrainer, stage: Stage, batches: list[list[int]]) -> list[float]:
    """Losses of pictures, one by one, without caption dropout, on the validation's own draws."""
    generator = torch.Generator().manual_seed(mix(trainer.config.seed, trainer.index, 2))
    losses: list[float] = []
    for indices in batches:
        items = [trainer._dataset[i] for i in indices]
        text, mask = trainer._collate.cache([item["caption"] for item in items])
        draws = stage.draw(len(items), 0.0, generator)
        for row, item in enumerate(items):
            one = Draws(*(part[row : row + 1] for part in draws))
            with torch.no_grad():
                loss = stage(item["image"][None], text[row : row + 1], mask[row : row + 1], one)
            losses.append(loss.item())
    return losses


def test_train_loss_is_the_mean_over_images(tiny: TrainConfig, cache: EmbeddingCache) -> None:
    """Fault 6: losses are divided by what was summed, also with batches of unequal weight."""
    trainer = make_trainer(tiny, cache)
    run = trainer.run()
    steps: list[StepRecord] = []
    while not isinstance(record := next(run), EpochRecord):
        steps.append(record)
    assert [record.step for record in steps] == [1, 2, 3, 4, 5]
    assert [record.images for record in steps] == [4] * 5
    expected = sum(record.loss.item() * record.images for record in steps) / 20
    assert record.train_loss == pytest.approx(expected, rel=1e-6)
    assert record.train_loss > 0


def test_validation_is_an_exact_mean_on_fixed_draws(
    tiny: TrainConfig, cache: EmbeddingCache
) -> None:
    """Fault 6: EMA weights, eval mode, no gradients, same noise each time, mean over pictures."""
    trainer = make_trainer(replace(tiny, batch_size=(3,)), cache)  # 4 pictures: batches of 3 and 1
    next(trainer.run())
    before = torch.get_rng_state()
    first, second = trainer.validate(), trainer.validate()
    assert first == second
    assert torch.equal(before, torch.get_rng_state())
    losses = reference_losses(trainer, trainer.ema, [[20, 21, 22], [23]])
    assert first == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert not trainer.ema.training and trainer.stage.training
    assert all(w.is_leaf and not w.requires_grad for w in trainer.ema.parameters())


def test_validation_runs_without_gradients(
    tiny: TrainConfig, cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 6: no graph is recorded while validating."""
    trainer = make_trainer(tiny, cache)
    seen: list[bool] = []
    forward = Stage.forward

    def watching(self: Stage, *args: Any) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return forward(self, *args)

    monkeypatch.setattr(Stage, "forward", watching)
    trainer.validate()
    assert seen == [False]


def test_gradients_are_clipped(
    tiny: TrainConfig, cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 2's consequence: clipping reaches every weight that the optimizer changes."""
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watching(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        gradients = [w.grad for group in self.param_groups for w in group["params"]]
        norms.append(torch.stack([g.norm() for g in gradients if g is not None]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watching)
    for clip in (1e6, 1e-3):
        trainer = make_trainer(replace(tiny, clip_norm=clip), cache)
        count = len([w for group in trainer._optimizer.param_groups for w in group["params"]])
        assert count == len(list(trainer.stage.parameters())) > 0
        next(trainer.run())
    assert norms[0] > 0.01 and norms[1] == pytest.approx(1e-3, rel=1e-2)


def test_ema_is_the_moving_average(tiny: TrainConfig, cache: EmbeddingCache) -> None:
    """The averaged weights against the formula, warm-up of the decay and all."""
    trainer = make_trainer(replace(tiny, ema_decay=0.3), cache)
    name = "unet.out.bias"
    average = trainer.stage.state_dict()[name].clone()
    for record in trainer.run():
        if isinstance(record, EpochRecord):
            break
        decay = min(0.3, (1 + record.step) / (10 + record.step))
        average = decay * average + (1 - decay) * trainer.stage.state_dict()[name]
        torch.testing.assert_close(trainer.ema.state_dict()[name], average)
    assert not torch.equal(average, trainer.stage.state_dict()[name])


def test_accumulated_gradients_are_those_of_one_large_batch(
    tiny: TrainConfig, cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--ACCUM_ITER 2 with batches of 4 sees the mean gradient of 8 pictures, in half the steps."""
    gradients: list[list[Tensor]] = []
    step = torch.optim.AdamW.step

    def watching(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        gradients.append([w.grad.clone() for group in self.param_groups for w in group["params"]])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watching)
    config = replace(tiny, accum_iter=2, clip_norm=1e6)
    trainer = make_trainer(config, cache)
    state = {k: v.clone() for k, v in trainer.stage.state_dict().items()}
    assert trainer.batches == 4 and trainer.steps == 4  # of 5 batches, 4 make whole steps
    record = next(trainer.run())
    assert record.images == 8 and record.batches == 2

    other = make_trainer(config, cache)
    other.stage.load_state_dict(state)
    torch.manual_seed(mix(config.seed, 0, 0))
    for indices in list(other._batches)[:2]:
        items = [other._dataset[i] for i in indices]
        draws = other.stage.draw(4, 0.1, other._draws)
        (other.stage(*other._collate(items), draws).mean() / 2).backward()
    expected = [weight.grad for weight in other.stage.parameters()]
    for found, due in zip(gradients[0], expected, strict=True):
        torch.testing.assert_close(found, due)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    """Linear warm-up to the peak, linear decay that ends with the last step."""
    rates = [learning_rate(step, 20, 1.0, 4) for step in range(20)]
    peak = rates.index(max(rates))
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and peak == 4
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(1 / 16)
    assert learning_rate(0, 1, 1.0, 100) > 0  # fewer steps than warm-up


def test_batches_cover_an_epoch_and_depend_on_seed_and_epoch_alone() -> None:
    """Every picture once an epoch, in another order each; skipping gives the rest of the same."""
    batches = EpochBatches(range(100, 120), 4, seed=3)
    first = list(batches)
    assert (
        sorted(i for batch in first for i in batch) == list(range(100, 120)) and len(batches) == 5
    )
    batches.start = 2
    assert list(batches) == first[2:] and len(batches) == 3
    batches.start, batches.epoch = 0, 1
    assert (
        sorted(i for batch in batches for i in batch) == list(range(100, 120))
        and list(batches) != first
    )
    assert len(next(iter(EpochBatches(range(3), 4, 0)))) == 3  # less than one batch


@pytest.mark.parametrize(("processes", "accum_iter", "each"), [(2, 1, 6), (3, 1, 4), (3, 3, 3)])
def test_processes_share_the_batches_of_an_epoch(
    processes: int, accum_iter: int, each: int
) -> None:
    """All get the same number, none twice, in whole groups; together they do what one would."""
    alone = list(EpochBatches(range(50), 4, seed=3))
    assert len(alone) == 12
    shares = [
        EpochBatches(range(50), 4, 3, accum_iter, process, processes)
        for process in range(processes)
    ]
    assert [len(list(share)) for share in shares] == [each] * processes
    assert [batch for row in zip(*shares, strict=True) for batch in row] == alone[
        : each * processes
    ]
    for share in shares:
        whole = list(share)
        share.start = 2
        assert list(share) == whole[2:]


def test_fewer_batches_than_processes_are_given_out_twice() -> None:
    """Nobody waits for ever for a process without a batch, and all batches are full."""
    shares = [list(EpochBatches(range(11), 4, 0, 2, process, 3)) for process in range(3)]
    assert [[len(batch) for batch in share] for share in shares] == [[4]] * 3
    assert shares[0] == shares[2] != shares[1]


def test_too_few_batches_to_accumulate_still_make_a_step(
    tiny: TrainConfig, cache: EmbeddingCache
) -> None:
    """--ACCUM_ITER 8 of 5 batches: one step an epoch, not none."""
    trainer = make_trainer(replace(tiny, accum_iter=8), cache)
    before = trainer.stage.unet.out.weight.clone()
    record = next(trainer.run())
    assert trainer.steps == 2 and (record.step, record.batches, record.images) == (1, 5, 20)
    assert not torch.equal(trainer.stage.unet.out.weight, before)


def test_loss_that_is_no_number_stops_the_training(
    tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 7: the training ends in one clear error, the last good checkpoint stays."""
    forward, calls = Stage.forward, 0

    def breaking(self: Stage, *args: Any) -> Tensor:
        nonlocal calls
        calls += self.training
        loss = forward(self, *args)
        return loss * float("nan") if calls == 8 and self.training else loss

    monkeypatch.setattr(Stage, "forward", breaking)
    with pytest.raises(RunError, match="loss of stage 0 is not finite any more in epoch 2"):
        train(tiny, quiet=True)
    (path,) = Path(tiny.output_directory).iterdir()
    directory = TrainingDirectory.open(path)
    tensors, state = directory.load_checkpoint(0)
    assert state["epoch"] == 1
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    assert "not finite" in directory.progress.read_text()


def test_each_distinct_caption_is_encoded_once(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings are computed once in all epochs and stages, and never again with a cache."""
    encoded: list[str] = []
    encode = T5Encoder.encode

    def counting(self: T5Encoder, captions: list[str]) -> Any:
        encoded.extend(captions)
        return encode(self, captions)

    monkeypatch.setattr(T5Encoder, "encode", counting)
    config = replace(tiny, cache_directory=str(tmp_path / "cache"), epochs=(1,))
    train(config, quiet=True)
    captions = make_dataset("shapes-minimal", 8, 24).captions
    assert sorted(encoded) == sorted(set(captions))
    encoded.clear()
    train(config, quiet=True)
    assert encoded == []


def test_default_settings_run_on_after_the_first_epoch(tiny: TrainConfig) -> None:
    """Fault 10: nothing is divided by zero, with a measured precision and all else default."""
    names = ("parameters", "dataset", "num_images", "output_directory", "cache_directory")
    config = TrainConfig(**{name: getattr(tiny, name) for name in names}, epochs=(2,))
    directory = train(config, quiet=True)
    log = directory.progress.read_text()
    assert "stage 0 epoch 2/2" in log and "stage 1 epoch 2/2" in log and "nan" not in log
    assert re.search(r"stage 0: precision (fp32|bf16) \(forward and backward: fp32 \d+ ms", log)


def test_training_learns(tiny: TrainConfig, cache: EmbeddingCache) -> None:
    """The validation loss of the averaged weights falls well below that of a zero output."""
    config = replace(tiny, epochs=(12,), optim_lr=(5e-3,))
    trainer = make_trainer(config, cache)
    start = trainer.validate()
    losses = [record.valid_loss for record in trainer.run() if isinstance(record, EpochRecord)]
    assert losses[-1] < 0.8 * start
    assert trainer.best == min(losses)


# --- stopping and going on ------------------------------------------------------------------------


def final_state(directory: TrainingDirectory) -> dict[str, Tensor]:
    """All that a training has come to: its checkpoints and its best weights."""
    found: dict[str, Tensor] = {}
    for stage in range(2):
        tensors, state = directory.load_checkpoint(stage)
        tensors["numbers"] = torch.tensor([state[k] for k in ("epoch", "batch", "step", "best")])
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
    output = tmp_path_factory.mktemp("whole")
    return final_state(train(tiny_config(parameters, output), quiet=True))


class Crash(BaseException):
    """Stands for a process that is killed."""


def crash() -> None:
    raise Crash


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [8, 13])  # mid-epoch, in the first stage and in the second
def test_resumed_training_equals_an_uninterrupted_one(
    tiny: TrainConfig,
    uninterrupted: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    step: int,
) -> None:
    """Fault 7: after Ctrl-C or SIGTERM in mid-epoch, bit for bit; the old directory untouched."""
    with monkeypatch.context() as patch:
        at_draw(patch, step, lambda: signal.raise_signal(number))
        with pytest.raises(RunStopped, match="--RESTART_DIRECTORY") as caught:
            train(tiny, quiet=True)
    assert caught.value.exit_code == 128 + number
    (old,) = Path(tiny.output_directory).iterdir()
    assert str(old) in str(caught.value)
    before = snapshot(old)
    stage = {8: 0, 13: 1}[step]
    state = TrainingDirectory.open(old).load_checkpoint(stage)[1]
    assert (state["epoch"], state["batch"]) == [(1, 3), (0, 3)][stage]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as before the training

    torch.manual_seed(123)  # whatever the new process is seeded with
    new = train(
        resolve(restart_directory=str(old), output_directory=tiny.output_directory),
        quiet=True,
    )
    assert new.path != old and snapshot(old) == before
    assert_same(final_state(new), uninterrupted)


def test_training_killed_without_a_word_goes_on_from_its_last_checkpoint(
    tiny: TrainConfig, uninterrupted: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--CHCKPT_NUM: what was saved in mid-epoch is enough to end up with the same weights."""
    with monkeypatch.context() as patch:
        at_draw(patch, 10, crash)
        with pytest.raises(Crash):
            train(replace(tiny, chckpt_num=2), quiet=True)
    (old,) = Path(tiny.output_directory).iterdir()
    state = TrainingDirectory.open(old).load_checkpoint(0)[1]
    assert (state["epoch"], state["batch"]) == (1, 4)
    assert "loss" in TrainingDirectory.open(old).progress.read_text().splitlines()[-1]
    new = train(resolve(restart_directory=str(old)), quiet=True)
    assert_same(final_state(new), uninterrupted)


def test_checkpoint_has_optimizer_epoch_random_state_and_best_loss(
    uninterrupted: dict[str, Tensor], tiny: TrainConfig, cache: EmbeddingCache
) -> None:
    """Fault 7: each of these is saved, and is there again in a trainer that loads it."""
    trainer = make_trainer(tiny, cache)
    for record in trainer.run():
        if isinstance(record, StepRecord) and record.epoch == 1 and record.batches == 2:
            break
    tensors, state = trainer.state()
    saved = {name: value.clone() for name, value in tensors.items()}
    other = make_trainer(tiny, cache)
    other.load_state(dict(saved), json.loads(json.dumps(state)))
    assert (other.epoch, other.batch, other.step) == (1, 2, 7)
    assert other.best == trainer.best < float("inf")
    assert torch.equal(other._draws.get_state(), trainer._draws.get_state())
    assert torch.equal(torch.get_rng_state(), saved["random.0.torch"])
    moments = [v for s in other._optimizer.state_dict()["state"].values() for v in s.values()]
    assert len(moments) == 3 * len(list(other.stage.parameters()))
    for name, value in other.state()[0].items():
        assert torch.equal(value, saved[name]), name


def test_finished_training_can_be_given_more_epochs(tiny: TrainConfig) -> None:
    """--RESTART_DIRECTORY with more --EPOCHS trains on, each stage from where it was."""
    old = train(replace(tiny, epochs=(1,)), quiet=True)
    again = resolve(restart_directory=str(old.path))
    assert_same(final_state(train(again, quiet=True)), final_state(old))
    for epochs, steps in (("1,2", [5, 10]), ("2,1", [10, 5])):
        new = train(resolve(restart_directory=str(old.path), epochs=epochs), quiet=True)
        assert [new.load_checkpoint(stage)[1]["step"] for stage in range(2)] == steps
        assert f"stage {steps.index(5)}: was finished before" in new.progress.read_text()


def test_signals_are_as_before_after_a_training(tiny: TrainConfig) -> None:
    """Ctrl-C interrupts a notebook again once the training has ended."""
    before = signal.getsignal(signal.SIGINT)
    train(replace(tiny, epochs=(1,)), quiet=True)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_is_reproducible(tiny: TrainConfig) -> None:
    """One seed, one result; another seed, another."""
    ends = [
        final_state(train(replace(tiny, epochs=(1,), seed=seed), quiet=True)) for seed in (1, 1, 2)
    ]
    name = "best.1.out.weight"
    assert torch.equal(ends[0][name], ends[1][name])
    assert not torch.equal(ends[0][name], ends[2][name])


# --- stages side by side --------------------------------------------------------------------------


@pytest.fixture
def pair(tiny: TrainConfig, tmp_path: Path) -> Iterator[TrainConfig]:
    """The tiny training without dropout, on a machine of two threads: its stages train together."""
    imagen, unets = tiny_model()
    model = TrainingDirectory.create(tmp_path / "model")
    model.save_parameters(imagen, [replace(unet, dropout=0.0) for unet in unets], {})
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield replace(tiny, parameters=str(model.parameters))
    torch.set_num_threads(threads)


def watch_steps(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[int, int], None] = lambda stage, step: None
) -> dict[int, set[str]]:
    """Threads in which stages train, by stage; ``act`` is called in the middle of each step."""
    threads: dict[int, set[str]] = {0: set(), 1: set()}
    steps = {0: 0, 1: 0}
    draw = Stage.draw

    def watching(self: Stage, *args: Any) -> Draws:
        if self.training:
            index = int(self.lowres_side is not None)
            threads[index].add(threading.current_thread().name)
            assert torch.get_num_threads() == 1
            steps[index] += 1
            act(index, steps[index])
        return draw(self, *args)

    monkeypatch.setattr(Stage, "draw", watching)
    return threads


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_side_by_side_comes_to_the_same_as_one_after_the_other(
    pair: TrainConfig, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many threads per stage, bit for bit; and each stage trains in a thread of its own."""
    met = threading.Barrier(2, timeout=60)
    config = replace(pair, precision=precision)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        together = watch_steps(patch, lambda stage, step: met.wait() and None)  # at the same time
        found = train(config, quiet=True)
    assert "side by side: 0 and 1, with 1 of 2 CPU threads each" in found.progress.read_text()
    assert not any("MainThread" in names for names in together.values())
    assert torch.get_num_threads() == 2  # as before

    torch.set_num_threads(1)
    apart = watch_steps(monkeypatch)
    due = train(config, quiet=True)
    assert "side by side" not in due.progress.read_text()
    assert apart == {0: {"MainThread"}, 1: {"MainThread"}}
    assert_same(final_state(found), final_state(due))


def test_what_threads_would_leave_to_chance_trains_one_after_the_other(
    tiny: TrainConfig, pair: TrainConfig
) -> None:
    """Dropout draws from a generator that all share; processes that load data are forked."""
    for config, due in ((pair, True), (tiny, False), (replace(pair, num_workers=1), False)):
        assert _Run(prepare(config), quiet=True)._side_by_side() is due


@pytest.mark.parametrize("one_is_finished", [False, True])
def test_stopped_side_by_side_all_go_on_where_they_were(
    pair: TrainConfig, one_is_finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in mid-epoch: all are saved, and end as if nothing had happened.

    Also when the second is finished by then: its thread is not given to the first afterwards.
    """
    due = final_state(train(pair, quiet=True))
    waiting, signalled, finished = (threading.Event() for _ in range(3))
    save = TrainingDirectory.save_checkpoint

    def act(stage: int, step: int) -> None:
        if (stage, step) == (0, 7):
            assert (finished if one_is_finished else waiting).wait(60)
            signal.raise_signal(signal.SIGTERM)
            signalled.set()
        if (stage, step) == (1, 4) and not one_is_finished:
            waiting.set()
            assert signalled.wait(60)

    def watching(self: TrainingDirectory, stage: int, tensors: Any, state: Any) -> None:
        save(self, stage, tensors, state)
        if stage == 1 and state["epoch"] == 2:
            finished.set()

    with monkeypatch.context() as patch:
        watch_steps(patch, act)
        patch.setattr(TrainingDirectory, "save_checkpoint", watching)
        with pytest.raises(RunStopped):
            train(replace(pair, output_directory=f"{pair.output_directory}/stopped"), quiet=True)
    (path,) = Path(pair.output_directory, "stopped").iterdir()
    old = TrainingDirectory.open(path)
    assert [old.load_checkpoint(stage)[1]["step"] for stage in range(2)] == [
        7,
        10 if one_is_finished else 4,
    ]
    log = old.progress.read_text()
    assert "stage 0: stopped at step 7; checkpoint" in log
    assert ("stage 1: stopped at step 4; checkpoint" in log) is not one_is_finished

    watch_steps(monkeypatch)  # sees to the number of threads
    assert_same(final_state(train(resolve(restart_directory=str(path)), quiet=True)), due)


def test_stage_that_fails_leaves_a_checkpoint_of_the_other(
    pair: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is no number ends the training once the other's step has ended and is saved."""
    waiting, failed = threading.Event(), threading.Event()
    forward, check = Stage.forward, StageTrainer.check

    def breaking(self: Stage, *args: Any) -> Tensor:
        return forward(self, *args) * (float("nan") if self.lowres_side is None else 1.0)

    def telling(self: StageTrainer) -> None:
        try:
            check(self)
        except RunError:
            failed.set()
            raise

    def hold(stage: int, step: int) -> None:
        if (stage, step) == (0, 1):
            assert waiting.wait(60)
        if (stage, step) == (1, 3):
            waiting.set()
            assert failed.wait(60)

    monkeypatch.setattr(Stage, "forward", breaking)
    monkeypatch.setattr(StageTrainer, "check", telling)
    watch_steps(monkeypatch, hold)
    with pytest.raises(RunError, match="loss of stage 0 is not finite any more in epoch 1"):
        train(pair, quiet=True)
    (path,) = Path(pair.output_directory).iterdir()
    directory = TrainingDirectory.open(path)
    assert directory.load_checkpoint(1)[1]["step"] == 3
    assert not directory.checkpoint(0).exists()
    assert "stage 1: stopped at step 3; checkpoint" in directory.progress.read_text()
