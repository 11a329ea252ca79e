"""What lets others follow a training: table, tracker, samples, curve, card, upload to the Hub."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from test_generation import tiny_imagen

from minimagen import sharing
from minimagen.cli import command
from minimagen.cli.inference import main as inference
from minimagen.cli.train import main as train_main
from minimagen.data import make_dataset
from minimagen.data.rendering import render
from minimagen.data.shapes import MINIMAL, place
from minimagen.data.wording import parse_caption
from minimagen.evaluation import caption_fidelity, chance_level
from minimagen.generation import draw, load_imagen, open_model
from minimagen.imagen import Imagen, ImagenConfig, StageConfig
from minimagen.run_directory import CheckpointState, Results, TrainingDirectory
from minimagen.sharing import Measured, measure
from minimagen.sharing import sheet as sheet_module
from minimagen.sharing.card import rename, write_card
from minimagen.sharing.hub import check_push
from minimagen.text import load_text_encoder
from minimagen.training import RunError, cascade, config, resolve, run, train
from minimagen.training.loop import EpochRecord, StepRecord
from minimagen.training.report import Running
from minimagen.training.table import Meter, Row, add_row, begin_table, read_rows
from minimagen.unet import UnetConfig

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "minimagen" / "pretrained" / "shapes"
Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def in_an_empty_directory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is; stages train in the process of the tests, unless a test says otherwise."""
    monkeypatch.chdir(tmp_path)
    if "processes" not in request.keywords:
        monkeypatch.setattr(cascade, "_train_in_processes", cascade._train_here)


@pytest.fixture
def tiny(tmp_path: Path) -> Settings:
    """A training of a second: stages of 16 and 32 pixels, 2 epochs of 5 steps."""
    small: Settings = {"channels": (16, 16), "blocks": (1, 1), "heads": 1, "head_dim": 8}
    small |= {"pool_queries": 1, "cond_dim": 8, "position_dim": 8}
    unets = UnetConfig(**small), UnetConfig(**small, lowres=True, self_attention=(False, False))
    model = ImagenConfig((StageConfig(side=16, steps=2), StageConfig(side=32, steps=2)))
    parameters = TrainingDirectory.create(tmp_path / "model").parameters
    TrainingDirectory.open(parameters.parent).save_parameters(model, unets, {})
    return {
        "parameters": str(parameters),
        "dataset": "shapes-minimal",
        "num_images": 24,
        "train_valid_frac": 0.84,
        "epochs": 2,
        "batch_size": 4,
        "warmup": 2,
        "device": "cpu",
        "precision": "fp32",
        "cache_directory": None,
        "output_directory": str(tmp_path / "out"),
    }


def flags(settings: Settings) -> list[str]:
    """The same settings on the command line."""
    texts = {name: "none" if value is None else str(value) for name, value in settings.items()}
    return [part for name, text in texts.items() for part in (f"--{name.upper()}", text)]


@pytest.fixture
def made(tmp_path: Path) -> TrainingDirectory:
    """A directory of the shipped model, with links to its weights."""
    directory = tmp_path / "mine"
    directory.mkdir()
    for name in ("parameters", "state_dicts"):
        (directory / name).symlink_to(SHAPES / name)
    (directory / "tmp").mkdir()
    return TrainingDirectory.open(directory)


# --- training_log.csv -----------------------------------------------------------------------------


def step(number: int, epoch: int = 0) -> StepRecord:
    """The record of a step, of 200 in two epochs."""
    return StepRecord(epoch, number, 200, number, 4, torch.tensor(float(number)), 1e-3)


def test_rows_are_means_since_the_row_before() -> None:
    """A row every 50 steps, one for each epoch, and none beside it for its last step."""
    meter = Meter(1, 2, 0)
    rows = [meter.add(step(number)) for number in range(1, 101)]
    (row,) = [row for row in rows if row is not None]
    assert row[:5] == (1, 1, 50, sum(range(1, 51)) / 50, None) and row.lr == 1e-3
    assert row.images_per_second is not None and row.images_per_second > 0
    end = meter.add(EpochRecord(0, 7.0, 3.0, True, 1.0))
    assert end is not None and end[:5] == (1, 1, 100, 7.0, 3.0) and end.seconds >= row.seconds
    later = [meter.add(step(number, 1)) for number in range(101, 201)]
    assert [row[1:4] for row in later if row is not None] == [(2, 150, sum(range(101, 151)) / 50)]


def test_an_epoch_that_ends_without_a_step_has_a_row() -> None:
    """As after a stop before the validation: what is not known stays empty."""
    row = Meter(0, 2, 60).add(EpochRecord(0, 7.0, 3.0, True, 1.0))
    assert row is not None and row[2] == 60 and (row.lr, row.images_per_second) == (None, None)


def test_the_table_is_read_back(tmp_path: Path) -> None:
    """Empty fields too; a last line that was cut off is left out."""
    directory = TrainingDirectory(tmp_path)
    begin_table(directory, None, {})
    rows = [Row(0, 1, 50, 0.5, None, 1e-3, 99.0, 1.5), Row(1, 1, 60, 0.25, 0.125, None, None, 2.0)]
    for row in rows:
        add_row(directory.table, row)
    with open(directory.table, "a", encoding="utf-8") as file:
        file.write("0,2,100,0.2")
    assert read_rows(directory.table) == rows
    with open(directory.table, encoding="utf-8") as file:
        assert next(csv.DictReader(file))["images_per_second"] == "99"


@pytest.mark.parametrize("text", ["", "a,b\n", "{head}\n0,1\n", "{head}\n0,1,x,0.5,,,,\n"])
def test_a_broken_table_is_named(tmp_path: Path, text: str) -> None:
    """In one line."""
    path = tmp_path / "training_log.csv"
    path.write_text(text.format(head=",".join(Row._fields)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"training_log\.csv is not a table of a training: .+"):
        read_rows(path)


def test_a_resume_keeps_the_rows_up_to_its_checkpoints(tmp_path: Path) -> None:
    """Nothing that comes again: later steps, an epoch whose end was not saved, another stage."""
    old, new = (TrainingDirectory(tmp_path / name) for name in ("old", "new"))
    for directory in (old, new):
        directory.path.mkdir()
        begin_table(directory, None, {})
    rows = [Row(0, 1, 50, 1, None, 1, 1, 1), Row(0, 1, 60, 1, 1, 1, 1, 1)]
    rows += [Row(1, 1, 50, 1, None, 1, 1, 1), Row(0, 2, 100, 1, None, 1, 1, 1)]
    for row in rows:
        add_row(old.table, row)

    def kept(**state: Any) -> list[Row]:
        found = CheckpointState(stage=0, best=None, **state)
        begin_table(new, old, {0: Results(found, tmp_path, None)})
        return read_rows(new.table)

    assert kept(epoch=1, batch=40, step=100) == [rows[0], rows[1], rows[3]]
    assert kept(epoch=1, batch=0, step=60) == rows[:2]
    assert kept(epoch=0, batch=60, step=60) == rows[:1]
    old.table.write_text("broken", encoding="utf-8")
    with pytest.warns(UserWarning, match="its rows are left out"):
        assert kept(epoch=1, batch=0, step=60) == []


@pytest.mark.slow
def test_a_training_writes_the_table_and_goes_on_with_it(tiny: Settings) -> None:
    """One row an epoch here; a resume with more epochs adds to those, also within the directory."""
    first = train(resolve(**tiny), quiet=True)
    rows = read_rows(first.table)
    assert [row[:3] for row in rows] == [(s, e, 5 * e) for s in (0, 1) for e in (1, 2)]
    assert all(row.valid_loss and row.lr and row.images_per_second for row in rows)
    log = first.progress.read_text()
    for row in rows:  # the same figures as in the log, but for their rounding
        text = rf"stage {row.stage} epoch {row.epoch}/2: loss ([\d.]+), validation ([\d.]+)"
        figures = re.search(text, log)
        assert figures is not None
        losses = [float(figure) for figure in figures.groups()]
        assert losses == pytest.approx([row.train_loss, row.valid_loss], abs=1.1e-5)
    more = resolve(restart_directory=str(first.path), epochs=3)
    second = read_rows(train(more, quiet=True).table)
    assert second[:4] == rows and [row[:3] for row in second[4:]] == [(0, 3, 15), (1, 3, 15)]
    assert second[4].seconds > rows[1].seconds  # those of both runs
    train(resolve(training_directory=str(first.path), epochs=3, stages=1), quiet=True)
    assert [row[:3] for row in read_rows(first.table)][4:] == [(1, 3, 15)]


@pytest.mark.slow
def test_losses_are_read_only_where_the_bar_reads_them(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a loss waits for the device: not at each step."""
    read: list[int] = []
    item = torch.Tensor.item

    def counting(self: torch.Tensor) -> Any:
        read.append(1)
        return item(self)

    monkeypatch.setattr(torch.Tensor, "item", counting)
    monkeypatch.setattr("minimagen.training.table.ROW_STEPS", 10**9)
    counts = []
    for without in (False, True):
        if without:
            monkeypatch.setattr(run.Meter, "add", lambda self, record: None)
        read.clear()
        train(resolve(**tiny), quiet=True)
        counts.append(len(read))
    assert counts[0] == counts[1]


# --- trackers -------------------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed_is_told_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One line, exit code 2, and nothing is made."""
    assert train_main(["--TESTING", "--LOG_WITH", "tensorbord"]) == 2
    assert "'tensorbord', it should be one of aim, comet_ml" in capsys.readouterr().err
    assert train_main(["--TESTING", "--LOG_WITH", "dvclive"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "train.py: error: --LOG_WITH is dvclive, but that is not installed: pip install dvclive\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tensorboard_gets_the_rows_of_all_stages(tiny: Settings) -> None:
    """One run in the training directory, each value at its step."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    directory = train(resolve(**tiny, log_with="tensorboard"), quiet=True)
    found = events.EventAccumulator(str(directory.path / "tensorboard")).Reload()
    rows = read_rows(directory.table)
    for stage in (0, 1):
        for name in ("train_loss", "valid_loss", "lr"):
            values = [(e.step, e.value) for e in found.Scalars(f"stage_{stage}/{name}")]
            due = [(row.step, getattr(row, name)) for row in rows if row.stage == stage]
            assert values == [(s, pytest.approx(value, rel=1e-4)) for s, value in due]
    assert "log_with" not in directory.load_parameters(config.KEPT).flags


def test_a_tracker_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its library raises."""
    from minimagen.training import tracker

    class Broken:
        requires_logging_directory = False

        def __init__(self, name: str) -> None:
            raise KeyError("no account")

    monkeypatch.setitem(tracker.LOGGER_TYPE_TO_CLASS, "wandb", Broken)
    with pytest.raises(RunError, match=r"`log_with` wandb cannot start: .*no account"):
        tracker.Tracker("wandb", TrainingDirectory("."), {}, cpu=True)


# --- samples.png ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_grow_and_change_nothing(tiny: Settings) -> None:
    """A row after every epoch of a stage; the weights are bit for bit those without samples."""
    plain = sharing.train(resolve(**tiny), quiet=True)
    sampled = sharing.train(resolve(**tiny, sample_every=1), quiet=True)
    assert not plain.samples.exists()
    with Image.open(sampled.samples) as picture:
        labels = json.loads(picture.info["rows"])
        rows = picture.convert("RGB")
    base = [["stage 0: epoch 1,", "step 5"], ["stage 0: epoch 2,", "step 10"]]
    assert labels == [*base, *(base[1] + [f"stage 1: epoch {e},", f"step {5 * e}"] for e in (1, 2))]
    height = sheet_module.SIDE + sheet_module.MARGIN
    assert rows.height == sheet_module.HEAD + 4 * height
    bands = [
        rows.crop((sheet_module.LABEL, y, rows.width, y + height)).tobytes()
        for y in range(sheet_module.HEAD, rows.height, height)
    ]
    assert len(set(bands)) == 4
    for stage in (0, 1):
        one, other = (d.load_checkpoint(stage)[0] for d in (plain, sampled))
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    # A training that goes on adds to the rows of the old directory; a row there is not added again.
    more = resolve(restart_directory=str(sampled.path), epochs=3, sample_every=1)
    with Image.open(sharing.train(more, quiet=True).samples) as picture:
        longer = json.loads(picture.info["rows"])
    assert longer[:4] == labels and len(longer) == 6


def test_rows_of_images_of_any_size_have_the_same_columns(tmp_path: Path) -> None:
    """And a long caption has its place."""
    path = tmp_path / "samples.png"
    captions = ["a circle", "a " + "very " * 50 + "long caption 一只红猫"]
    for label, side in (("a", 8), ("b", 16)):
        images = torch.zeros(2, 3, side, side)
        before = path if path.exists() else None
        sheet_module.add_row(path, before, [label], images, captions, 16)
    with Image.open(path) as picture:
        assert json.loads(picture.info["rows"]) == [["a"], ["b"]]
        assert picture.height == sheet_module.HEAD + 2 * (128 + sheet_module.MARGIN)


@pytest.mark.slow
@pytest.mark.processes
def test_nothing_waits_for_samples_when_stages_have_their_processes(tiny: Settings) -> None:
    """They are drawn in another thread; rows come meanwhile; an error of the call is not lost."""
    threads: list[str] = []
    rows: list[int] = []
    waited = threading.Event()

    def after_epoch(running: Running, stage: int, epoch: int) -> str | None:
        threads.append(threading.current_thread().name)
        deadline = time.monotonic() + 60
        while len(read_rows(running.directory.table)) < 4 and time.monotonic() < deadline:
            waited.wait(0.05)
        rows.append(len(read_rows(running.directory.table)))
        if (stage, epoch) == (0, 2):
            raise KeyError("a fault")
        return f"drawn after {stage}, {epoch}"

    with pytest.raises(KeyError, match="a fault"):
        train(resolve(**tiny, threads=2), quiet=True, after_epoch=after_epoch)
    assert rows == [4] * 4 and len(set(threads)) == 1
    assert threads[0] != threading.current_thread().name
    (path,) = Path("out").iterdir()
    log = TrainingDirectory.open(path).progress.read_text()
    assert "drawn after 0, 1" in log and "drawn after 1, 2" in log


@pytest.mark.slow
def test_samples_that_fail_do_not_end_the_training(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says why."""

    def broken(running: Running) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("minimagen.sharing.run.add_samples", broken)
    directory = sharing.train(resolve(**tiny, sample_every=2), quiet=True)
    log = directory.progress.read_text()
    assert "samples.png: no row after epoch 2 of stage 1: the disk is full" in log
    assert "epoch 1 of stage" not in log and "finished" in log


# --- the curve ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_minimagen_curve_draws_the_table(
    made: TrainingDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped model's, for instance; without a table the error names it."""
    assert command.main(["curve", str(made.path)]) == 2
    assert "training_log.csv" in capsys.readouterr().err
    made.table.write_bytes((SHAPES / "training_log.csv").read_bytes())
    assert command.main(["curve", str(made.path)]) == 0
    assert capsys.readouterr().out == f"{made.curve}\n"
    with Image.open(made.curve) as drawn, Image.open(SHAPES / "curve.png") as shipped:
        assert drawn.size == shipped.size


def test_a_table_without_rows_has_no_curve(made: TrainingDirectory) -> None:
    """As before the first epoch."""
    begin_table(made, None, {})
    with pytest.raises(ValueError, match="has no rows yet"):
        sharing.write_curve(made)


# --- measures and their controls ------------------------------------------------------------------


HELD_OUT = make_dataset("shapes-minimal", 16, 6, 0, held_out=True).captions


class Drawings:
    """Stands for ``draw``: the model draws true scenes, its control one scene for each caption,
    and the untrained model a red cross."""

    def __init__(self, imagen: Imagen) -> None:
        self.imagen, self.calls = imagen, [("", 0, range(0))][:0]

    def __call__(
        self,
        model: Imagen,
        encode: object,
        texts: list[str],
        seeds: range,
        *_: object,
        **__: object,
    ) -> list[torch.Tensor]:
        steps = [stage.steps for stage in model.config.stages]
        name = "model" if model is self.imagen else "control" if steps == [1, 1] else "untrained"
        self.calls.append((name, len(texts), seeds))
        scenes = []
        for text, seed in zip(texts, seeds, strict=True):
            rng = random.Random(0 if name == "control" else seed)
            text = "a red cross" if name == "untrained" else text
            scenes.append(place(parse_caption(text), rng, MINIMAL))
        return [render(scenes, 32)]


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> Drawings:
    """What ``measure`` draws with, instead of a trained model."""
    stand_in = Drawings(tiny_imagen())
    monkeypatch.setattr("minimagen.sharing.measured.draw", stand_in)
    monkeypatch.setattr("minimagen.sharing.measured.SEEDS", 5)
    return stand_in


def encode_nothing(captions: Sequence[str]) -> Any:
    """The stand-in reads captions itself."""


def test_measures_have_their_controls(drawings: Drawings) -> None:
    """Each figure is of its own images; the control says what it says, and varies nothing."""
    result = measure(drawings.imagen, encode_nothing, HELD_OUT, 3, "shapes-minimal", covered=4)
    again = range(9, 29)
    assert sorted(drawings.calls) == [
        ("control", 6, range(3, 9)),
        ("control", 20, again),
        ("model", 6, range(3, 9)),
        ("model", 20, again),
        ("untrained", 6, range(3, 9)),
    ]
    assert result.fidelity is not None and result.fidelity.exact_match == 1
    assert (result.control, result.untrained) == (1, 0)
    rotated = [*HELD_OUT[1:], HELD_OUT[0]]
    assert result.shuffled == caption_fidelity(result.images, rotated).exact_match < 1
    assert result.chance == chance_level(HELD_OUT, MINIMAL) and 0 < result.chance < 0.05
    assert result.coverage is not None and result.control_coverage is not None
    assert (result.coverage.captions, result.coverage.images) == (4, 5)
    assert result.coverage.error < 2 < 3 < result.control_coverage.error
    assert result.control_coverage.same_picture == 1
    assert result.images.shape == (6, 3, 32, 32) and result.captions == HELD_OUT
    assert result.repeated is not None and result.repeated.shape == (20, 3, 32, 32)
    text = str(result)
    assert text.startswith(str(result.fidelity)) and str(result.coverage) in text
    assert re.search(r"^exact match 100\.0%; for comparison:$", text, re.M)
    for line in (
        r"  one evaluation of each stage +100\.0%",
        r"  captions shuffled +\d+\.\d%",
        r"  untrained model +0\.0%",
        r"  by chance +\d\.\d%",
        r"error of one evaluation of each stage: \d\.\d \(95 %: \d\.\d to \d\.\d\)",
    ):
        assert re.search(f"^{line}$", text, re.M), line
    assert max(map(len, text.splitlines())) <= 80


def test_without_coverage_less_is_drawn(drawings: Drawings) -> None:
    """As for a model card: the images, and those of the control."""
    result = measure(drawings.imagen, encode_nothing, HELD_OUT, 3, "shapes-minimal")
    assert [name for name, *_ in drawings.calls] == ["model", "control"]
    assert result.control == 1 and result.shuffled is not None and result.chance is not None
    left = (result.untrained, result.coverage, result.control_coverage, result.repeated)
    assert left == (None,) * 4
    text = str(result)
    assert "one evaluation of each stage" in text
    assert "untrained" not in text and "coverage" not in text
    assert str(Measured(result.images, HELD_OUT)) == ""


def test_a_model_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random weights: bars, seeds and figures that are numbers; it stays as it was."""
    monkeypatch.setattr("minimagen.sharing.measured.SEEDS", 2)
    imagen = tiny_imagen()
    before = imagen.config
    encode = load_text_encoder("t5_tiny").encode
    result = measure(imagen, encode, HELD_OUT[:3], 0, "shapes-minimal", covered=2, progress=True)
    assert imagen.config is before
    assert torch.equal(result.images, draw(imagen, encode, HELD_OUT[:3], range(3))[-1])
    assert result.repeated is not None and len(result.repeated) == 4
    assert not torch.equal(result.repeated[0], result.repeated[1])
    for share in (result.control, result.untrained, result.shuffled, result.chance):
        assert share is not None and 0 <= share <= 1
    assert result.coverage is not None and result.coverage.error > 1
    with pytest.raises(ValueError, match="a cat"):
        measure(imagen, encode, ["a cat"], 0, "shapes-minimal")


# --- the card -------------------------------------------------------------------------------------


def test_the_card_says_what_is_known(made: TrainingDirectory) -> None:
    """Sizes, text encoder, data with their licence, command, and how to load it."""
    write_card(made, 27_000)
    card = ModelCard.load(made.card)
    assert card.data.pipeline_tag == "text-to-image"  # type: ignore[attr-defined]
    parameters = made.load_parameters()
    first = Imagen(parameters.imagen, parameters.unets).stages[0]
    weights = sum(weight.numel() for weight in first.parameters())
    assert f"| 0 | 16 × 16 | {weights:,} |" in card.text and "`t5_tiny`" in card.text
    assert "27,000 images trained on. Licence of the data: MIT" in card.text
    assert re.search(r"^minimagen train --[A-Z_]+ .*--EPOCHS \d+,\d+", card.text, re.M)
    assert 'load_imagen("mine")' in card.text and "curve.png" not in card.text
    assert "sheet.png" not in card.text
    rename(made, "owner/name")
    text = made.card.read_text(encoding="utf-8")
    assert "mine" not in text and "\n# owner/name\n" in text and text.count("owner/name") == 3


def test_the_card_of_other_data_names_no_folder_of_the_machine(
    made: TrainingDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the last part of a path; a licence that nobody told is "not told"."""
    parameters = made.load_parameters(config.KEPT)
    changes = {"dataset": "/far/away/pictures", "data_license": "none"}

    def saved(known: object) -> object:
        return parameters._replace(flags=parameters.flags | changes)

    monkeypatch.setattr(made, "load_parameters", saved)
    write_card(made)
    text = made.card.read_text(encoding="utf-8")
    assert "/far/away" not in text
    assert "A local data set, `pictures`. Licence of the data: not told." in text
    changes["data_license"] = "CC BY 4.0"
    write_card(made)
    assert "Licence of the data: CC BY 4.0." in made.card.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_training_writes_a_card_with_its_pictures(tiny: Settings) -> None:
    """Of a world: held-out captions, with their fidelity; a model of its own: its parameters."""
    directory = sharing.train(resolve(**tiny, data_license="MIT"), quiet=True)
    text = directory.card.read_text(encoding="utf-8")
    assert "(curve.png)" in text and "(sheet.png)" in text and "of 20 images" in text
    assert "exact match" in text and "a model of its own" in text
    for name in ("one evaluation of each stage", "captions shuffled", "by chance"):
        assert re.search(rf"^  {name} +\d+\.\d%$", text, re.M)
    assert "20 images trained on. Licence of the data: MIT." in text
    assert "--NUM_IMAGES 24" in text and "--OUTPUT_DIRECTORY" not in text
    for name in ("curve.png", "sheet.png"):
        with Image.open(directory.path / name) as picture:
            assert picture.width > 200


def test_the_card_has_the_figures_with_their_control(
    made: TrainingDirectory, drawings: Drawings
) -> None:
    """All that was measured, as it is printed; coverage is not named where it was not measured."""
    result = measure(drawings.imagen, encode_nothing, HELD_OUT, 3, "shapes-minimal", covered=4)
    write_card(made, 27_000, result)
    text = made.card.read_text(encoding="utf-8")
    assert f"```\n{result}\n```" in text
    assert "the share of 6 images that show what their captions say" in text
    assert "one evaluation of each stage" in text and "(sheet.png)" in text
    assert "whether what they leave open varies" in text
    write_card(made, 27_000, result._replace(coverage=None, control_coverage=None))
    text = made.card.read_text(encoding="utf-8")
    assert "what their captions say:" in text and "coverage" not in text


@pytest.mark.slow
def test_measured_images_are_used_again(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """main.py measures anyway: nothing is drawn twice."""
    plan = resolve(**tiny)
    followed = sharing.follow(plan, quiet=True)
    monkeypatch.setattr("minimagen.sharing.run._measure", None)
    sharing.finish(plan, followed, Measured(torch.zeros(2, 3, 32, 32), ["a", "b"], None), True)
    text = followed.directory.card.read_text(encoding="utf-8")
    assert "(sheet.png)" in text and "fidelity" not in text


@pytest.mark.slow
def test_a_stage_without_weights_means_no_card(tiny: Settings) -> None:
    """Only a note: train.py --STAGES 0 is no mistake."""
    with pytest.warns(UserWarning, match="there is no model card: .*stage 1 has not finished"):
        directory = sharing.train(resolve(**tiny, stages=0), quiet=True)
    assert directory.curve.exists() and not directory.card.exists()


# --- the Hub --------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """A stand-in of the Hugging Face Hub: those calls that huggingface_hub makes here."""

    server: HubServer

    def do_GET(self) -> None:
        self.answer("")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def answer(self, text: str) -> None:
        """Answer a call; ``text`` is what was sent."""
        path, files = self.path.partition("?")[0], self.server.files
        self.server.calls.append(f"{self.command} {path}")
        known = self.headers.get("Authorization") == "Bearer hf_known"
        if path.startswith("/api") and self.command == "POST" and self.server.refuses:
            return self.send(503, {"error": "down for maintenance"})
        if path == "/api/whoami-v2":
            role = {"auth": {"accessToken": {"role": self.server.role}}}
            user = {"name": "owner", "orgs": [{"name": "club"}], **role}
            return self.send(200 if known else 401, user if known else {"error": "who?"})
        if path == "/api/repos/create":
            return self.send(200, {"url": f"{self.server.url}/owner/name"})
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if path == "/api/models/owner/name/preupload/main":
            asked = [item["path"] for item in json.loads(text)["files"]]
            how = {"uploadMode": "regular", "shouldIgnore": False}
            return self.send(200, {"files": [{"path": name, **how} for name in asked]})
        if path == "/api/models/owner/name/commit/main":
            for line in map(json.loads, text.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    files[line["value"]["path"]] = content
            return self.send(
                200,
                {
                    "commitUrl": f"{self.server.url}/owner/name/commit/{'a' * 40}",
                    "commitOid": "a" * 40,
                },
            )
        if path == "/api/models/owner/name/revision/main" and files:
            return self.send(200, {"id": "owner/name", "sha": "a" * 40, "siblings": []})
        if path == f"/api/models/owner/name/tree/{'a' * 40}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": tag(data)}
                for name, data in files.items()
            ]
            return self.send(200, tree)
        name = path.removeprefix(f"/owner/name/resolve/{'a' * 40}/")
        if name in files:
            return self.send(200, files[name], {"ETag": tag(files[name])})
        self.send(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

    def send(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        about = {"Content-Length": str(len(data)), "X-Repo-Commit": "a" * 40}
        for name, value in (about | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def tag(data: bytes) -> str:
    """The name of a content."""
    return hashlib.sha1(data).hexdigest()


class HubServer(ThreadingHTTPServer):
    """The stand-in, and what it was given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.role, self.refuses = "write", False


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running stand-in, whose known user is logged in; downloads go to an own cache."""
    server = HubServer()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_training_is_pushed_and_drawn_with_by_its_name(
    tiny: Settings, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up and down again, the same weights; then without the Hub, from the copy on this machine."""
    assert train_main([*flags(tiny), "--PUSH_TO", "owner/name", "--SAMPLE_EVERY", "2"]) == 0
    assert f"uploaded to {hub.url}/owner/name" in capsys.readouterr().out
    names = {re.sub(r"\d{8}_\d{6}", "TS", name) for name in hub.files}
    assert names == {
        *("README.md", "curve.png", "sheet.png", "samples.png"),
        *("training_log.csv", "training_progress.txt"),
        *(f"manifest/{name}.json" for name in ("parameters", "stage_0", "stage_1")),
        *(f"parameters/{name}_TS.json" for name in ("imagen_params", "sources")),
        *(f"parameters/unet_{i}_params_TS.json" for i in (0, 1)),
        *(f"parameters/{name}_TS.txt" for name in ("training_parameters", "words")),
        *(f"state_dicts/unet_{i}_state_TS.safetensors" for i in (0, 1)),
    }
    assert b'load_imagen("owner/name")' in hub.files["README.md"]
    (path,) = Path("out").iterdir()
    for name, weight in load_imagen(path).state_dict().items():
        assert torch.equal(weight, load_imagen("owner/name").state_dict()[name])
    assert inference(["-d", "owner/name", "-c", "a red circle", "--DEVICE", "cpu"]) == 0
    hub.shutdown()
    hub.server_close()
    assert open_model("owner/name").path.is_dir()
    Path("owner/name").mkdir(parents=True)  # what exists here wins
    with pytest.raises(ValueError, match="owner/name is not a training directory"):
        open_model("owner/name")


@pytest.mark.slow
def test_a_push_that_fails_leaves_the_training_and_can_be_repeated(
    tiny: Settings, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 1; the command that it names does the rest."""
    hub.refuses = True
    assert train_main([*flags(tiny), "--PUSH_TO", "owner/name"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "could not be uploaded to owner/name" in error
    (again,) = re.findall(r"try again with: minimagen (push .+)$", error)
    hub.refuses = False
    assert command.main(again.split()) == 0
    assert "README.md" in hub.files and "uploaded to" in capsys.readouterr().out


def test_a_training_without_a_card_gets_one_when_it_is_pushed(
    made: TrainingDirectory, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was stopped."""
    monkeypatch.setattr("minimagen.sharing.run._measure", lambda directory, running: None)
    sharing.publish(made, "owner/name")
    assert b"owner/name" in hub.files["README.md"]


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("name", "hf_known", "`push_to` is 'name', it should be OWNER/NAME on the Hub"),
        ("a/b/c", "hf_known", "`push_to` is 'a/b/c', it should be OWNER/NAME"),
        ("owner/na me", "hf_known", "it should be OWNER/NAME"),
        ("else/name", "hf_known", "you may upload only to models of owner, club"),
        ("owner/name", "hf_wrong", "it does not accept your token, run `hf auth login`"),
        ("owner/name", None, "you are not logged in: run `hf auth login`"),
        ("owner/name", "read", "your token may only read: run `hf auth login`"),
    ],
)
def test_a_push_that_would_be_refused_is_told_before_the_training(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    token: str | None,
    message: str,
) -> None:
    """One line that says what to do."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN")
    if token == "read":
        hub.role, token = "read", "hf_known"
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError) as found:
        check_push(name)
    assert message in str(found.value) and "\n" not in str(found.value)
    assert all(call == "GET /api/whoami-v2" for call in hub.calls)


def test_a_bad_push_ends_train_before_anything_is_made(
    hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit code 2, with the flag."""
    assert train_main(["--TESTING", "--PUSH_TO", "name"]) == 2
    error = "train.py: error: --PUSH_TO is 'name', it should be OWNER/NAME on the Hub\n"
    assert capsys.readouterr().err == error
    assert list(tmp_path.iterdir()) == []
    assert command.main(["push", str(SHAPES), "name"]) == 2
    assert "minimagen push: error: OWNER/NAME is 'name'" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told(hub: HubServer) -> None:
    """Not on the Hub; or no Hub to ask."""
    with pytest.raises(ValueError, match=r"no directory owner/name, and no such model on the Hub"):
        open_model("owner/name")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ValueError, match="download it once with `hf download owner/name`"):
        open_model("owner/name")


def test_names_here_win(hub: HubServer) -> None:
    """A shipped model and a path are not asked for at the Hub."""
    assert open_model("shapes").path == SHAPES
    assert open_model(SHAPES).path == SHAPES
    with pytest.raises(ValueError, match="names of shipped models"):
        open_model("nothing")
    assert hub.calls == []
