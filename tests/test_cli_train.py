"""``train.py`` as a user meets it: flags, errors of one line, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from minimagen import files
from minimagen.cli.train import main
from minimagen.parameters import load_parameters
from minimagen.presets import default_architecture
from minimagen.run_directory import TrainingDirectory
from minimagen.training import cascade
from minimagen.training.config import KEPT, TrainConfig

ROOT = Path(__file__).parent.parent
SMALL = ["--NUM_IMAGES", "20", "--EPOCHS", "1", "--DEVICE", "cpu", "--PRECISION", "fp32"]


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where nothing is, so that whatever is left behind shows; stages in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cascade, "_train_in_processes", cascade._train_here)


def only_directory() -> TrainingDirectory:
    (path,) = Path().glob("training_*")
    return TrainingDirectory.open(path)


def test_example_of_parameters_is_the_default_model() -> None:
    """./parameters is what one gets without it, so that a change to a copy is all that differs."""
    example, default = load_parameters(ROOT / "parameters"), default_architecture()
    assert (example.imagen, tuple(example.unets)) == (default.imagen, default.unets)


@pytest.mark.slow
def test_readme_example_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Fault 5: the example's every flag has its effect, --TESTING or not."""
    argv = f"--PARAMETERS {ROOT / 'parameters'} --BATCH_SIZE 2 --TIMESTEPS 25 --TESTING".split()
    assert main([*argv, *SMALL]) == 0
    directory = only_directory()
    model, example = directory.load_parameters(KEPT), load_parameters(ROOT / "parameters")
    assert model.unets == example.unets  # --PARAMETERS
    assert model.imagen.timesteps == 25  # --TIMESTEPS
    assert all(stage.steps <= 25 for stage in model.imagen.stages)
    assert model.flags["batch_size"] == "2" and model.flags["timesteps"] == "25"
    assert model.flags["dataset"] == "shapes-minimal"  # --TESTING
    assert model.flags["num_images"] == "20" and model.flags["epochs"] == "1"  # explicit
    assert directory.load_checkpoint(0)[1].step == 9  # 18 images in batches of 2
    assert "note:" not in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_saved_trains_the_same_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The resolved configuration of one training is a --PARAMETERS for the next."""
    assert main(["--TESTING", "-lr", "1e-3", "-b", "5", *SMALL]) == 0
    first = only_directory()
    assert main(["-p", str(first.parameters), "--OUTPUT_DIRECTORY", "again"]) == 0
    (path,) = Path("again").iterdir()
    second = TrainingDirectory.open(path)
    saved = first.load_parameters(KEPT)
    flags = saved.flags | {"output_directory": "again"}
    assert second.load_parameters(KEPT) == saved._replace(flags=flags)
    weights, again = first.load_best(1), second.load_best(1)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_help_names_and_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """All flags of the contract with their short names, in groups, with defaults."""
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for item in fields(TrainConfig):
        assert f"--{item.name.upper()}" in text
    words = set(text.replace(",", " ").split())
    for short in ("p", "n", "b", "mw", "s", "e", "t5", "f", "t", "lr", "ai", "cn", "vn", "rd"):
        assert f"-{short}" in words
    assert "-test" in words
    assert text.index("model:") < text.index("data:") < text.index("training:")


# --- what is wrong is told before work begins -----------------------------------------------------


def example(change: Callable[[Path], None]) -> str:
    """A copy of ./parameters with something changed in it."""
    shutil.copytree(ROOT / "parameters", "parameters")
    change(Path("parameters"))
    return "parameters"


def edit(pattern: str, key: str, value: object) -> Callable[[Path], None]:
    """Change one key of a JSON file."""

    def change(directory: Path) -> None:
        (path,) = directory.glob(pattern)
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def write(pattern: str, text: str) -> Callable[[Path], None]:
    """Change the whole text of a file."""

    def change(directory: Path) -> None:
        (path,) = directory.glob(pattern)
        path.write_text(text)

    return change


def remove(pattern: str) -> Callable[[Path], None]:
    """Remove a file."""
    return lambda directory: [path.unlink() for path in directory.glob(pattern)] and None


WRONG_FLAGS = [
    ("--BATCH_SIZE 0", "--BATCH_SIZE is 0, it should be at least 1"),
    ("-b -1", "--BATCH_SIZE is -1, it should be at least 1"),
    ("--BATCH_SIZE nan", "--BATCH_SIZE is 'nan', it should be a whole number"),
    ("--BATCH_SIZE 2.5", "--BATCH_SIZE is '2.5', it should be a whole number"),
    ("--BATCH_SIZE", "--BATCH_SIZE/-b: expected one argument"),
    ("--EPOCHS 1,2,3", "--EPOCHS has 3 values, for 2 stages it should have 1 or 2"),
    ("-e 1,", "--EPOCHS is '1,', it should be a whole number, or one per stage"),
    ("--OPTIM_LR nan", "--OPTIM_LR is nan, it should be above 0"),
    ("--OPTIM_LR inf", "--OPTIM_LR is inf, it should be above 0"),
    ("-lr -1", "--OPTIM_LR is -1.0, it should be above 0"),
    ("--TRAIN_VALID_FRAC 1", "--TRAIN_VALID_FRAC is 1.0, it should be above 0 and below 1"),
    ("-f nan", "--TRAIN_VALID_FRAC is nan"),
    ("-f 0.999 --NUM_IMAGES 20", "--TRAIN_VALID_FRAC is 0.999, of 20 images that leaves 20"),
    ("--TIMESTEPS 0", "--TIMESTEPS is 0, it should be at least 1"),
    ("--MAX_NUM_WORDS 1", "--MAX_NUM_WORDS is 1, it should be at least 2"),
    ("--IMG_SIDE_LEN 66", "--IMG_SIDE_LEN is 66, for this model it should be a multiple of"),
    ("--IMG_SIDE_LEN 16", "--IMG_SIDE_LEN is 16, for this model it should be a multiple of"),
    ("--NUM_WORKERS -1", "--NUM_WORKERS is -1, it should be at least 0"),
    ("--ACCUM_ITER 0", "--ACCUM_ITER is 0"),
    ("--CHCKPT_NUM 0", "--CHCKPT_NUM is 0"),
    ("--VALID_NUM 0", "--VALID_NUM is 0"),
    ("--VALID_NUM all", "--VALID_NUM is 'all', it should be a whole number or none"),
    ("--SEED -1", "--SEED is -1"),
    ("--EMA_DECAY 1", "--EMA_DECAY is 1.0, it should be at least 0 and below 1"),
    ("--EMA_DECAY nan", "--EMA_DECAY is nan"),
    ("--WARMUP x", "--WARMUP is 'x', it should be a whole number"),
    ("--DEVICE gpu", "--DEVICE is 'gpu', it should be one of auto, cpu, cuda, mps"),
    ("--PRECISION fp8", "--PRECISION is 'fp8', it should be one of auto, fp32, bf16, fp16"),
    ("--PRECISION fp16 --DEVICE cpu", "--PRECISION is 'fp16', on the CPU it should be"),
    ("--T5_NAME t6", "--T5_NAME: text encoder 't6' is not known"),
    ("--DATASET nowhere", "--DATASET: data set 'nowhere' cannot be found"),
    ("--PARAMETERS nowhere", "--PARAMETERS: nowhere is not a directory"),
    ("--RESTART_DIRECTORY nowhere", "--RESTART_DIRECTORY: nowhere"),
    ("--OUTPUT_DIRECTORY a_file", "--OUTPUT_DIRECTORY is 'a_file', but"),
    ("--BATCHSIZE 2", "--BATCHSIZE"),
    ("--BATCH 2", "--BATCH"),  # no abbreviations
]
WRONG_PARAMETERS = [
    (edit("imagen*", "colour", 1), "unknown key 'colour'"),
    (edit("unet_1*", "channel", 1), "unknown key 'channel'"),
    (edit("unet_0*", "blocks", [1]), "`blocks` has 1 entries"),
    (edit("unet_0*", "lowres", True), "unet lowres is True for the stage of 16 pixels"),
    (edit("unet_0*", "text_dim", 32), "text_dim of a U-Net is 32, it should be 64"),
    (edit("imagen*", "timesteps", 5), "it should be at most timesteps 5"),
    (write("unet_0*", "{"), "is not valid JSON"),
    (write("imagen*", "[]"), "it should be an object"),
    (remove("unet_0*"), "U-Nets [1]"),
    (remove("imagen*"), "has 0 files imagen_params_*.json"),
    (write("training*", "--BATCH_SIZE=3\n--SPEED=9\n"), "line 2: --SPEED is not a flag"),
    (write("training*", "BATCH_SIZE 3\n"), "line 1: 'BATCH_SIZE 3' should be --FLAG=value"),
    (write("training*", "--BATCH_SIZE=0\n"), "--BATCH_SIZE is 0"),
    (write("training*", "--BATCH_SIZE=many\n"), "--BATCH_SIZE is 'many'"),
]


def expect_error(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says it, exit code 2, and no file or directory more than before."""
    before = sorted(Path().rglob("*"))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("train.py: error: ")
    assert err.count("\n") == 1 and "Traceback" not in err
    assert said in err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("flags", "said"), WRONG_FLAGS, ids=[flags for flags, _ in WRONG_FLAGS])
def test_wrong_flag_gets_one_line(
    flags: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each wrong flag is named, before anything is made."""
    Path("a_file").write_text("")
    expect_error(flags.split(), said, capsys)


@pytest.mark.parametrize(
    ("change", "said"), WRONG_PARAMETERS, ids=[said for _, said in WRONG_PARAMETERS]
)
def test_wrong_parameters_get_one_line(
    change: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each wrong file of --PARAMETERS is named, and the key or line in it."""
    expect_error(["--PARAMETERS", example(change), "--TESTING"], said, capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training directory."""
    output = tmp_path_factory.mktemp("trained")
    argv = ["--TESTING", "--OUTPUT_DIRECTORY", str(output), "--CACHE_DIRECTORY", "none", *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "_train_in_processes", cascade._train_here)
        assert main(argv) == 0
    return next(output.iterdir())


def truncate(directory: TrainingDirectory) -> None:
    path = directory.checkpoint(1)
    path.write_bytes(path.read_bytes()[:5000])


def forget(directory: TrainingDirectory) -> None:
    for stage in range(2):
        directory.checkpoint(stage).unlink()


def swap(directory: TrainingDirectory) -> None:
    shutil.copyfile(directory.checkpoint(0), directory.checkpoint(1))


def shrink(directory: TrainingDirectory) -> None:
    edit("unet_1*", "cond_dim", 64)(directory.parameters)


@pytest.mark.parametrize(
    ("flags", "change", "said"),
    [
        ("", truncate, "unet_1_checkpoint.safetensors is damaged: its SHA-256 is not"),
        ("", forget, "unet_0_checkpoint.safetensors is missing"),
        ("", swap, "unet_1_checkpoint.safetensors is damaged: its SHA-256 is not"),
        ("", shrink, ".json is damaged: its SHA-256 is not the one in"),
        ("-b 2", None, "--BATCH_SIZE is 2, but the training of --RESTART_DIRECTORY has 16"),
        ("-p parameters", None, "--PARAMETERS is parameters, but the training of"),
    ],
)
def test_wrong_restart_gets_one_line(
    trained: Path,
    flags: str,
    change: Callable[[TrainingDirectory], None] | None,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A broken checkpoint, or a flag that a resumed training cannot change."""
    shutil.copytree(trained, "old")
    if change:
        change(TrainingDirectory.open("old"))
    expect_error(["--RESTART_DIRECTORY", "old", *flags.split()], said, capsys)


def test_restart_keeps_flags_and_may_change_some(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not given is as in the old training, also under another name of the directory."""
    shutil.copytree(trained, "renamed")
    argv = ["-rd", "renamed", "-cn", "3", "--TESTING", "--OUTPUT_DIRECTORY", "."]
    assert main(argv) == 0
    flags = only_directory().load_parameters(KEPT).flags
    assert flags["chckpt_num"] == "3" and flags["num_images"] == "20"
    assert (
        only_directory().load_best(1).keys()
        == TrainingDirectory.open("renamed").load_best(1).keys()
    )


def test_full_disk_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback when a checkpoint cannot be written, and no half-written file."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    assert main(["--TESTING", "--CACHE_DIRECTORY", "none", *SMALL]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err
    assert not list(Path().rglob("*.part")) and not list(Path().rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of another process are POSIX")
def test_sigterm_of_the_script_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    """The real process: exit code 143, one line on stderr, a checkpoint that can be resumed."""
    argv = [sys.executable, str(ROOT / "train.py"), "--TESTING", *SMALL, "-e", "500"]
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 300  # of a machine that has much else to do
        while not list(tmp_path.glob("training_*/tmp/unet_0_checkpoint.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    directory = only_directory()
    assert err.count("\n") == 1 and f"--RESTART_DIRECTORY {directory.path.name}" in err
    assert "stage 0 epoch 1/500" in out
    assert directory.load_checkpoint(0)[1].step > 0


@pytest.mark.slow
def test_what_the_text_encoder_cannot_read_is_told_and_training_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the log and on the terminal; and a cache that cannot be written is a note, not the end."""
    Path("pictures").mkdir()
    captions = ["红猫", "🐱", "a grinning face", "a tiger", "a red circle " * 30, "a red star"]
    rows = ["file_name,text"]
    for i, caption in enumerate(captions * 2):
        Image.new("RGB", (20, 20), (20 * i, 0, 0)).save(f"pictures/{i}.png")
        rows.append(f"{i}.png,{caption}")
    Path("pictures/metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    Path("a_file").touch()
    argv = ["--TESTING", "--DATASET", "pictures", "--CACHE_DIRECTORY", "a_file/within", *SMALL]
    assert main(argv) == 0
    out, log = capsys.readouterr().out, only_directory().progress.read_text(encoding="utf-8")
    for said in (
        "captions: the text encoder cuts off 1 of 6 at 64 tokens; does not know words of 2 of 6, "
        'such as "🐱", "红猫"; reads 2 of 6 the same as another; see ',
        "captions: the text encoder reads 50% of their words letter by letter",
        "captions: their embeddings could not be saved: ",
    ):
        assert said in log and said in out
