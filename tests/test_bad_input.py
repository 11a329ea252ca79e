"""Bad input: every flag of the three scripts with values that are wrong, and what each row gets.

A row is a shell line and how its message begins. Each gets one line on stderr and exit code 2,
before anything is made. {L} stands for 400 digits, which messages shorten.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from minimagen.cli.inference import main as inference
from minimagen.cli.main import main as main_job
from minimagen.cli.train import main as train
from minimagen.generation import GenerationConfig
from minimagen.presets import default_architecture
from minimagen.settings import flag_name
from minimagen.training import TrainConfig

MAINS: dict[str, Callable[..., int]] = {
    "train.py": train,
    "inference.py": inference,
    "main.py": main_job,
}
LONG = "9" * 400
MOST = 1100  # characters of a line


NAMED = (  # always run: segmentation faults, allocations and hangs of older versions
    "--THREADS 100000",
    "--IMG_SIDE_LEN 100000",
    "--NUM_WORKERS 300",
    "--NUM_IMAGES 10000000000",
    "--IMAGES_PER_CAPTION 1000000000000000000",
    "--MAX_NUM_WORDS {L}",
    "--ACCUM_ITER {L}",
    "-d ''",
    "-d .",
    "imagen stages.0.aug_power NaN",
    "unet_0 blocks [100000, 1]",
)


def rows(table: str) -> list[Any]:
    """The rows ``flags -> message`` of a table; quick are ``NAMED`` and each twelfth."""
    found = []
    for number, line in enumerate(table.strip().splitlines()):
        flags, message = line.split(" -> ", 1)
        marks = [] if flags in NAMED or number % 12 == 0 else [pytest.mark.slow]
        if "/dev/" in flags:
            marks.append(pytest.mark.skipif(os.name == "nt", reason="Windows has no such files"))
        found.append(pytest.param(flags, message, marks=marks, id=flags))
    return found


TRAIN = rows(
    """
-- -> unrecognized arguments: --
-- -b 0 -> unrecognized arguments: -- -b 0
--ACCUM_ITER 0 -> --ACCUM_ITER is 0, it should be at least 1
--ACCUM_ITER {L} -> --ACCUM_ITER is {L}, it should be at least 1 and at most 100000
--ACCUM_ITER '' -> --ACCUM_ITER is '', it should be a whole number
--ACCUM_ITER 2,2 -> --ACCUM_ITER is '2,2', it should be a whole number
--ACCUM_ITER 1000000 -> --ACCUM_ITER is 1000000, it should be at least 1 and at most 100000
--BATCH 2 -> unknown flag --BATCH, did you mean --BATCH_SIZE?
--BATCHSIZE 2 -> unknown flag --BATCHSIZE, did you mean --BATCH_SIZE?
--BATCH_SIZE 0 -> --BATCH_SIZE is 0, it should be at least 1
--BATCH_SIZE nan -> --BATCH_SIZE is 'nan', it should be a whole number, or one per stage with comm
--BATCH_SIZE 2.5 -> --BATCH_SIZE is '2.5', it should be a whole number, or one per stage with comm
--BATCH_SIZE -> --BATCH_SIZE/-b: expected one argument (one such as -2,1 needs =: --FLAG=-2,1)
--BATCH_SIZE 16,16,16 -> --BATCH_SIZE has 3 values, for 2 stages it should have 1 or 2
--BATCH_SIZE {L} -> --BATCH_SIZE is {L}, it should be at least 1 and at most 100000
--BATCH_SIZE 1000000 -> --BATCH_SIZE is 1000000, it should be at least 1 and at most 100000
--CACHE_DIRECTORY {L} -> --CACHE_DIRECTORY: '
--CACHE_DIRECTORY '' -> --CACHE_DIRECTORY: '' is blank
--CAPTIONS 'a red circle' -> unknown flag --CAPTIONS, did you mean --CAPTION_COLUMN?
--CAPTION_COLUMN -> --CAPTION_COLUMN: expected one argument (one such as -2,1 needs =: --FLAG=-2,1
--CAPTION_COLUMN '' -> --CAPTION_COLUMN: '' is blank
--CAPTION_COLUMN {L} -> --CAPTION_COLUMN: '{L}' is too long for a name
--CHCKPT_NUM 0 -> --CHCKPT_NUM is 0, it should be at least 1
--CHCKPT_NUM {L} -> --CHCKPT_NUM is {L}, it should be at least 1 and at most 1000000000
--CHCKPT_NUM -5 -> --CHCKPT_NUM is -5, it should be at least 1
--CHCKPT_NUM x -> --CHCKPT_NUM is 'x', it should be a whole number
--CHCKPT_NUM 10,20 -> --CHCKPT_NUM is '10,20', it should be a whole number
--CLIP_NORM 0 -> --CLIP_NORM is 0.0, it should be above 0
--CLIP_NORM inf -> --CLIP_NORM is inf, it should be above 0
--CLIP_NORM nan -> --CLIP_NORM is nan, it should be above 0
--CLIP_NORM off -> --CLIP_NORM is 'off', it should be a number
--CLIP_NORM -1 -> --CLIP_NORM is -1.0, it should be above 0
--CLIP_NORM 1,1 -> --CLIP_NORM is '1,1', it should be a number
--CLIP_NORM {L} -> --CLIP_NORM is inf, it should be above 0
--CROP center -> --CROP is 'center', it should be one of centre, random
--CROP '' -> --CROP is '', it should be one of centre, random
--CROP Random -> --CROP is 'Random', it should be one of centre, random
--CROP -> --CROP: expected one argument (one such as -2,1 needs =: --FLAG=-2,1)
--CROP_SIDE 0 -> --CROP_SIDE is 0, it should be at least 1
--CROP_SIDE -32 -> --CROP_SIDE is -32, it should be at least 1
--CROP_SIDE 30 -> --CROP_SIDE is 30, the U-Net for 64 pixels needs a multiple of 4
--CROP_SIDE 32,32 -> --CROP_SIDE is '32,32', it should be a whole number or none
--CROP_SIDE {L} -> --CROP_SIDE is {L}, it should be at least 1 and at most 4096
--CROP_SIDE half -> --CROP_SIDE is 'half', it should be a whole number or none
--CROP_SIDE nan -> --CROP_SIDE is 'nan', it should be a whole number or none
--CROP_SIDE 100000 -> --CROP_SIDE is 100000, it should be at least 1 and at most 4096
--DATASET '' -> --DATASET: '' is blank
--DATASET ' ' -> --DATASET: ' ' is blank
--DATASET nowhere -> --DATASET: data set 'nowhere' cannot be found, it should be one of shapes-min
--DATASET SHAPES -> --DATASET: data set 'SHAPES' cannot be found, it should be one of shapes-minim
--DATASET /dev/null -> --DATASET: /dev/null is neither a folder nor a .parquet: name the folder of
--DATASET {L} -> --DATASET: '{L}' is too long for a name
--DATASET .  -> --DATASET:
--DATASET a.csv -> --DATASET: data set 'a.csv' cannot be found, it should be one of shapes-minimal
--DATASET a/b/c -> --DATASET: data set 'a/b/c' cannot be found, it should be one of shapes-minimal
--DATA_LICENSE '' -> --DATA_LICENSE: '' is blank
--DATA_LICENSE ' ' -> --DATA_LICENSE: ' ' is blank
--DATA_LICENSE '  ' -> --DATA_LICENSE: ' ' is blank
--DEBUG=1 -> --DEBUG: it takes no value, but has '1'
--DEVICE gpu -> --DEVICE is 'gpu', it should be one of auto, cpu, cuda, mps
--DEVICE CPU -> --DEVICE is 'CPU', it should be one of auto, cpu, cuda, mps
--DEVICE '' -> --DEVICE is '', it should be one of auto, cpu, cuda, mps
--DEVICE cuda -> --DEVICE is 'cuda', here it should be one of auto, cpu
--DEVICE cuda:0 -> --DEVICE is 'cuda:0', it should be one of auto, cpu, cuda, mps
--DEVICE cpu,cpu -> --DEVICE is 'cpu,cpu', it should be one of auto, cpu, cuda, mps
--EMA_DECAY 1 -> --EMA_DECAY is 1.0, it should be at least 0 and below 1
--EMA_DECAY nan -> --EMA_DECAY is nan, it should be at least 0 and below 1
--EMA_DECAY -0.1 -> --EMA_DECAY is -0.1, it should be at least 0 and below 1
--EMA_DECAY '' -> --EMA_DECAY is '', it should be a number
--EMA_DECAY 0.9,0.9 -> --EMA_DECAY is '0.9,0.9', it should be a number
--EMA_DECAY {L} -> --EMA_DECAY is inf, it should be at least 0 and below 1
--EMA_DECAY high -> --EMA_DECAY is 'high', it should be a number
--EPOCHS '' -> --EPOCHS is '', it should be a whole number, or one per stage with commas between
--EPOCHS , -> --EPOCHS is ',', it should be a whole number, or one per stage with commas between
--EPOCHS 1, -> --EPOCHS is '1,', it should be a whole number, or one per stage with commas between
--EPOCHS 1,2,3 -> --EPOCHS has 3 values, for 2 stages it should have 1 or 2
--EPOCHS 0 -> --EPOCHS is 0, it should be at least 1
--EPOCHS 8,0 -> --EPOCHS is 0, it should be at least 1
--EPOCHS 2.5 -> --EPOCHS is '2.5', it should be a whole number, or one per stage with commas betwe
--EPOCHS '1 2' -> --EPOCHS is '1 2', it should be a whole number, or one per stage with commas bet
--EPOCHS {L} -> --EPOCHS is {L}, it should be at least 1 and at most 1000000000
--EPOCHS 1,{L} -> --EPOCHS is {L}, it should be at least 1 and at most 1000000000
--FLIP yes -> unrecognized arguments: yes
--FLIP=1 -> --FLIP: it takes no value, but has '1'
--HELPP -> unknown flag --HELPP, did you mean --FLIP?
--IMAGE_COLUMN -> --IMAGE_COLUMN: expected one argument (one such as -2,1 needs =: --FLAG=-2,1)
--IMAGE_COLUMN '' -> --IMAGE_COLUMN: '' is blank
--IMG_SIDE_LEN '' -> --IMG_SIDE_LEN is '', it should be a whole number or none
--IMG_SIDE_LEN 64.5 -> --IMG_SIDE_LEN is '64.5', it should be a whole number or none
--IMG_SIDE_LEN 0 -> --IMG_SIDE_LEN is 0, it should be at least 1
--IMG_SIDE_LEN -64 -> --IMG_SIDE_LEN is -64, it should be at least 1
--IMG_SIDE_LEN 66 -> --IMG_SIDE_LEN is 66, for this model it should be a multiple of 4 and above 1
--IMG_SIDE_LEN 16 -> --IMG_SIDE_LEN is 16, for this model it should be a multiple of 4 and above 1
--IMG_SIDE_LEN 100000 -> --IMG_SIDE_LEN is 100000, it should be at least 1 and at most 4096
--IMG_SIDE_LEN {L} -> --IMG_SIDE_LEN is {L}, it should be at least 1 and at most 4096
--IMG_SIDE_LEN 64,64 -> --IMG_SIDE_LEN is '64,64', it should be a whole number or none
--IMG_SIDE_LEN nan -> --IMG_SIDE_LEN is 'nan', it should be a whole number or none
--LOG_WITH '' -> --LOG_WITH: '' is blank
--LOG_WITH TensorBoard -> --LOG_WITH is 'TensorBoard', it should be one of aim, comet_ml, mlflow,
--LOG_WITH paper -> --LOG_WITH is 'paper', it should be one of aim, comet_ml, mlflow, tensorboard,
--LOG_WITH none -> --LOG_WITH is 'none', it should be one of aim, comet_ml, mlflow, tensorboard, w
--LOG_WITH {L} -> --LOG_WITH: '{L}' is too long for a name
--MAX_LEFT_OUT 1.1 -> --MAX_LEFT_OUT is 1.1, it should be from 0 to 1
--MAX_LEFT_OUT -0.1 -> --MAX_LEFT_OUT is -0.1, it should be from 0 to 1
--MAX_LEFT_OUT nan -> --MAX_LEFT_OUT is nan, it should be from 0 to 1
--MAX_LEFT_OUT 10% -> --MAX_LEFT_OUT is '10%', it should be a number
--MAX_LEFT_OUT '' -> --MAX_LEFT_OUT is '', it should be a number
--MAX_NUM_WORDS 1 -> --MAX_NUM_WORDS is 1, it should be at least 2
--MAX_NUM_WORDS x -> --MAX_NUM_WORDS is 'x', it should be a whole number or none
--MAX_NUM_WORDS {L} -> --MAX_NUM_WORDS is {L}, it should be at least 2 and at most 4096
--MAX_NUM_WORDS -{L} -> --MAX_NUM_WORDS is -{L}, it should be at least 2
--MAX_NUM_WORDS 5000 -> --MAX_NUM_WORDS is 5000, it should be at least 2 and at most 4096
--MAX_NUM_WORDS '' -> --MAX_NUM_WORDS is '', it should be a whole number or none
--MAX_NUM_WORDS 64,64 -> --MAX_NUM_WORDS is '64,64', it should be a whole number or none
--NUM_IMAGES 1 -> --NUM_IMAGES is 1, it should be at least 2
--NUM_IMAGES all -> --NUM_IMAGES is 'all', it should be a whole number or none
--NUM_IMAGES -3 -> --NUM_IMAGES is -3, it should be at least 2
--NUM_IMAGES 10000000000 -> --NUM_IMAGES is 10000000000, it should be at least 2 and at most 10000
--NUM_IMAGES {L} -> --NUM_IMAGES is {L}, it should be at least 2 and at most 100000000
--NUM_IMAGES 1e4 -> --NUM_IMAGES is '1e4', it should be a whole number or none
--NUM_IMAGES nan -> --NUM_IMAGES is 'nan', it should be a whole number or none
--NUM_IMAGES '' -> --NUM_IMAGES is '', it should be a whole number or none
--NUM_IMAGES 2,2 -> --NUM_IMAGES is '2,2', it should be a whole number or none
--NUM_WORKERS -1 -> --NUM_WORKERS is -1, it should be at least 0
--NUM_WORKERS 300 -> --NUM_WORKERS is 300, it should be at least 0 and at most 128
--NUM_WORKERS two -> --NUM_WORKERS is 'two', it should be a whole number
--NUM_WORKERS {L} -> --NUM_WORKERS is {L}, it should be at least 0 and at most 128
--NUM_WORKERS 1.5 -> --NUM_WORKERS is '1.5', it should be a whole number
--NUM_WORKERS '' -> --NUM_WORKERS is '', it should be a whole number
--OPTIM_LR 0 -> --OPTIM_LR is 0.0, it should be above 0
--OPTIM_LR nan -> --OPTIM_LR is nan, it should be above 0
--OPTIM_LR inf -> --OPTIM_LR is inf, it should be above 0
--OPTIM_LR 1e10 -> --OPTIM_LR is 10000000000.0, it should be above 0 and at most 10
--OPTIM_LR {L} -> --OPTIM_LR is inf, it should be above 0
--OPTIM_LR fast -> --OPTIM_LR is 'fast', it should be a number, or one per stage with commas betwe
--OPTIM_LR 1e-3;1e-4 -> --OPTIM_LR is '1e-3;1e-4', it should be a number, or one per stage with co
--OPTIM_LR 1e-3,1e-3,1e-3 -> --OPTIM_LR has 3 values, for 2 stages it should have 1 or 2
--OPTIM_LR 1e-3, -> --OPTIM_LR is '1e-3,', it should be a number, or one per stage with commas bet
--OPTIM_LR '' -> --OPTIM_LR is '', it should be a number, or one per stage with commas between
--OPTIM_LR 1e-3,nan -> --OPTIM_LR is nan, it should be above 0
--OTHER_DATA x -> unrecognized arguments: x
--OTHER_DATA=1 -> --OTHER_DATA: it takes no value, but has '1'
--OUTPUT_DIRECTORY /dev/null -> --OUTPUT_DIRECTORY is '/dev/null', but /dev/null is not a director
--OUTPUT_DIRECTORY /dev/null/x -> --OUTPUT_DIRECTORY is '/dev/null/x', but /dev/null is not a dire
--OUTPUT_DIRECTORY '' -> --OUTPUT_DIRECTORY: '' is blank
--OUTPUT_DIRECTORY {L} -> --OUTPUT_DIRECTORY: '{L}' is too long for a name
--PARAMETERS nowhere -> --PARAMETERS: nowhere is not a directory, it should hold imagen_params_*.j
--PARAMETERS '' -> --PARAMETERS: '' is blank
--PARAMETERS /dev/null -> --PARAMETERS: /dev/null is not a directory, it should hold imagen_params
--PARAMETERS . -> --PARAMETERS: . has 0 files imagen_params_*.json, it should have one
--PARAMETERS {L} -> --PARAMETERS: '{L}' is too long for a name
--PRECISION fp8 -> --PRECISION is 'fp8', it should be one of auto, fp32, bf16, fp16
--PRECISION BF16 -> --PRECISION is 'BF16', it should be one of auto, fp32, bf16, fp16
--PRECISION fp16 --DEVICE cpu -> --PRECISION is 'fp16', on the CPU it should be auto, fp32 or bf16
--PRECISION '' -> --PRECISION is '', it should be one of auto, fp32, bf16, fp16
--PRECISION float32 -> --PRECISION is 'float32', it should be one of auto, fp32, bf16, fp16
--PUSH_TO '' -> --PUSH_TO: '' is blank
--PUSH_TO name -> --PUSH_TO is 'name', it should be OWNER/NAME on the Hub
--PUSH_TO a/b/c -> --PUSH_TO is 'a/b/c', it should be OWNER/NAME on the Hub
--PUSH_TO 'a b/c' -> --PUSH_TO is 'a b/c', it should be OWNER/NAME on the Hub
--PUSH_TO https://hub/a/b -> --PUSH_TO is 'https://hub/a/b', it should be OWNER/NAME on the Hub
--PUSH_TO {L} -> --PUSH_TO: '{L}' is too long for a name
--RESTART_DIRECTORY nowhere -> --RESTART_DIRECTORY: nowhere is not a training directory: it has no
--RESTART_DIRECTORY '' -> --RESTART_DIRECTORY: '' is blank
--RESTART_DIRECTORY . -> --RESTART_DIRECTORY: . is not a training directory: it has no parameters/
--RESTART_DIRECTORY {L} -> --RESTART_DIRECTORY: '{L}' is too long for a name
--RESTART_DIRECTORY /dev/null -> --RESTART_DIRECTORY: /dev/null is not a training directory: it ha
--RESTART_DIRECTORY shapes -> --RESTART_DIRECTORY:
--RESTART_DIRECTORY a --TRAINING_DIRECTORY b -> --RESTART_DIRECTORY: a is not a training directory
--SAMPLE_EVERY 0 -> --SAMPLE_EVERY is 0, it should be at least 1
--SAMPLE_EVERY -1 -> --SAMPLE_EVERY is -1, it should be at least 1
--SAMPLE_EVERY 1.5 -> --SAMPLE_EVERY is '1.5', it should be a whole number or none
--SAMPLE_EVERY often -> --SAMPLE_EVERY is 'often', it should be a whole number or none
--SAMPLE_EVERY {L} -> --SAMPLE_EVERY is {L}, it should be at least 1 and at most 1000000000
--SAMPLE_EVERY 1,2 -> --SAMPLE_EVERY is '1,2', it should be a whole number or none
--SEED -1 -> --SEED is -1, it should be at least 0 and below 4611686018427387904
--SEED 1.5 -> --SEED is '1.5', it should be a whole number
--SEED {L} -> --SEED is {L}, it should be at least 0 and below 4611686018427387904
--SEED 4611686018427387904 -> --SEED is 4611686018427387904, it should be at least 0 and below 461
--SEED 0x10 -> --SEED is '0x10', it should be a whole number
--SEED 1 --SEED x -> --SEED is 'x', it should be a whole number
--SEED '' -> --SEED is '', it should be a whole number
--SEED 1,2 -> --SEED is '1,2', it should be a whole number
--SEED 1e3 -> --SEED is '1e3', it should be a whole number
--SEED nan -> --SEED is 'nan', it should be a whole number
--STAGES 2 -> --STAGES is 2, the stages of this model are 0 to 1
--STAGES -1 -> --STAGES is -1, it should be at least 0
--STAGES all -> --STAGES is 'all', it should be a whole number, or one per stage with commas betwe
--STAGES '' -> --STAGES is '', it should be a whole number, or one per stage with commas between
--STAGES 0,5 -> --STAGES is 5, the stages of this model are 0 to 1
--STAGES {L} -> --STAGES is {L}, it should be at least 0 and at most 1000000000
--STAGES 0.5 -> --STAGES is '0.5', it should be a whole number, or one per stage with commas betwe
--STAGES 0, -> --STAGES is '0,', it should be a whole number, or one per stage with commas between
--STAGES , -> --STAGES is ',', it should be a whole number, or one per stage with commas between
--STREAMING -> --STREAMING is for real images, --DATASET is shapes
--STREAMING --DATASET . -> --DATASET: --STREAMING is for data sets of the Hub, '
--STREAMING=true -> --STREAMING: it takes no value, but has 'true'
--T5_NAME '' -> --T5_NAME: '' is blank
--T5_NAME ' ' -> --T5_NAME: ' ' is blank
--T5_NAME t6 -> --T5_NAME: text encoder 't6' is not known, it should be a directory, a Hub id such
--T5_NAME T5_TINY -> --T5_NAME: text encoder 'T5_TINY' is not known, it should be a directory, a H
--T5_NAME /nonexistent -> --T5_NAME: text encoder '/nonexistent': there is no such directory
--T5_NAME {L} -> --T5_NAME: '{L}' is too long for a name
--T5_NAME /dev/null -> --T5_NAME: text encoder '/dev/null' is a file, it should be a directory
--T5_NAME a/b/c -> --T5_NAME: text encoder 'a/b/c': there is no such directory
--TESTING yes -> unrecognized arguments: yes
--TESTING=yes -> --TESTING/-test: it takes no value, but has 'yes'
--THREADS 0 -> --THREADS is 0, it should be at least 1
--THREADS 100000 -> --THREADS is 100000, it should be at least 1 and at most 1024
--THREADS {L} -> --THREADS is {L}, it should be at least 1 and at most 1024
--THREADS -2 -> --THREADS is -2, it should be at least 1
--THREADS 1.5 -> --THREADS is '1.5', it should be a whole number or none
--THREADS two -> --THREADS is 'two', it should be a whole number or none
--THREADS '' -> --THREADS is '', it should be a whole number or none
--THREADS 1,2 -> --THREADS is '1,2', it should be a whole number or none
--TIMESTEPS 0 -> --TIMESTEPS is 0, it should be at least 1
--TIMESTEPS 1e3 -> --TIMESTEPS is '1e3', it should be a whole number or none
--TIMESTEPS {L} -> --TIMESTEPS is {L}, it should be at least 1 and at most 1000000
--TIMESTEPS 1000000000000 -> --TIMESTEPS is 1000000000000, it should be at least 1 and at most 100
--TIMESTEPS -1 -> --TIMESTEPS is -1, it should be at least 1
--TIMESTEPS '' -> --TIMESTEPS is '', it should be a whole number or none
--TIMESTEPS 10,10 -> --TIMESTEPS is '10,10', it should be a whole number or none
--TRAINING_DIRECTORY nowhere -> --TRAINING_DIRECTORY: nowhere is not a training directory: it has
--TRAINING_DIRECTORY /dev/null -> --TRAINING_DIRECTORY: /dev/null is not a training directory: it
--TRAINING_DIRECTORY '' -> --TRAINING_DIRECTORY: '' is blank
--TRAINING_DIRECTORY {L} -> --TRAINING_DIRECTORY: '{L}' is too long for a name
--TRAINING_DIRECTORY shapes --SEED 3 -> --TRAINING_DIRECTORY:
--TRAIN_VALID_FRAC 0 -> --TRAIN_VALID_FRAC is 0.0, it should be above 0 and below 1
--TRAIN_VALID_FRAC 1 -> --TRAIN_VALID_FRAC is 1.0, it should be above 0 and below 1
--TRAIN_VALID_FRAC nan -> --TRAIN_VALID_FRAC is nan, it should be above 0 and below 1
--TRAIN_VALID_FRAC inf -> --TRAIN_VALID_FRAC is inf, it should be above 0 and below 1
--TRAIN_VALID_FRAC 90% -> --TRAIN_VALID_FRAC is '90%', it should be a number
--TRAIN_VALID_FRAC 0,9 -> --TRAIN_VALID_FRAC is '0,9', it should be a number
--TRAIN_VALID_FRAC {L} -> --TRAIN_VALID_FRAC is inf, it should be above 0 and below 1
--TRAIN_VALID_FRAC 0.999 --NUM_IMAGES 20 -> --TRAIN_VALID_FRAC is 0.999, of 20 images that leaves
--VALID_NUM 0 -> --VALID_NUM is 0, it should be at least 1
--VALID_NUM all -> --VALID_NUM is 'all', it should be a whole number or none
--VALID_NUM {L} -> --VALID_NUM is {L}, it should be at least 1 and at most 1000000000
--VALID_NUM -1 -> --VALID_NUM is -1, it should be at least 1
--VALID_NUM 0.5 -> --VALID_NUM is '0.5', it should be a whole number or none
--VALID_NUM 1,2 -> --VALID_NUM is '1,2', it should be a whole number or none
--WARMUP x -> --WARMUP is 'x', it should be a whole number
--WARMUP -1 -> --WARMUP is -1, it should be at least 0
--WARMUP {L} -> --WARMUP is {L}, it should be at least 0 and at most 1000000000
--WARMUP 2.5 -> --WARMUP is '2.5', it should be a whole number
--WARMUP 5,5 -> --WARMUP is '5,5', it should be a whole number
--batch_size 2 -> unknown flag --batch_size, did you mean --BATCH_SIZE?
-b -1 -> --BATCH_SIZE is -1, it should be at least 1
-b -> --BATCH_SIZE/-b: expected one argument (one such as -2,1 needs =: --FLAG=-2,1)
-lr -1 -> --OPTIM_LR is -1.0, it should be above 0
-q -> unrecognized arguments: -q
-z 3 -> unrecognized arguments: -z 3
stray -> unrecognized arguments: stray
"""
)

INFERENCE = rows(
    """
-c 'a red circle' -> --TRAINING_DIRECTORY is missing, it should be a training_<TIMESTAMP>/
-d '' -> --TRAINING_DIRECTORY: '' is blank
-d . -> --TRAINING_DIRECTORY: . is not a training directory: it has no parameters/; names of shipp
-d nowhere -> --TRAINING_DIRECTORY: nowhere is not a training directory: it has no parameters/; na
-d .. -> --TRAINING_DIRECTORY: .. is not a training directory: it has no parameters/
-d SHAPES -> --TRAINING_DIRECTORY: SHAPES is not a training directory: it has no parameters/; name
-d {L} -> --TRAINING_DIRECTORY: '{L}' is too long for a name
-d /dev/null -> --TRAINING_DIRECTORY: /dev/null is not a training directory: it has no parameters/
-d shapes/ -> --TRAINING_DIRECTORY: shapes/ is not a training directory: it has no parameters/; na
-d shapes -c '' -> --CAPTIONS is '', it should hold at least one caption
-d shapes -c ' ' -> --CAPTIONS is ' ', it should hold at least one caption
-d shapes -c nothing.txt -> --CAPTIONS is 'nothing.txt', it should be a text file with one caption
-d shapes -c .txt -> --CAPTIONS is '.txt', it should be a text file with one caption per line: No
-d shapes -c /dev/null -> --CAPTIONS is the path '/dev/null', a file of captions should be a .txt
-d shapes -c . -> --CAPTIONS is the path '.', a file of captions should be a .txt
-d shapes -c {L}.txt -> --CAPTIONS is '{L}.txt', it should be a text file with one caption per lin
-d shapes --IMAGES_PER_CAPTION 0 -> --IMAGES_PER_CAPTION is 0, it should be at least 1
-d shapes --IMAGES_PER_CAPTION 1.5 -> --IMAGES_PER_CAPTION is '1.5', it should be a whole number
-d shapes --IMAGES_PER_CAPTION 1000000000000000000 -> --IMAGES_PER_CAPTION is 1000000000000000000,
-d shapes --SEED one -> --SEED is 'one', it should be a whole number
-d shapes --SEED -1 -> --SEED is -1, it should be at least 0 and below 4611686018427387904
-d shapes --SEED {L} -> --SEED is {L}, it should be at least 0 and below 4611686018427387904
-d shapes --GUIDANCE_WEIGHT nan -> --GUIDANCE_WEIGHT is nan, it should be from -1000000 to 1000000
-d shapes --GUIDANCE_WEIGHT inf -> --GUIDANCE_WEIGHT is inf, it should be from -1000000 to 1000000
-d shapes --GUIDANCE_WEIGHT 1e7 -> --GUIDANCE_WEIGHT is 10000000.0, it should be from -1000000 to
-d shapes --GUIDANCE_WEIGHT 1,2,3 -> --GUIDANCE_WEIGHT has 3 values, for 2 stages it should have 1
-d shapes --GUIDANCE_WEIGHT '' -> --GUIDANCE_WEIGHT is '', it should be a number, or one per stage
-d shapes --GUIDANCE_WEIGHT {L} -> --GUIDANCE_WEIGHT is inf, it should be from -1000000 to 1000000
-d shapes --GUIDANCE_WEIGHT -2,1 -> --GUIDANCE_WEIGHT: expected one argument (one such as -2,1 nee
-d shapes --SAMPLER euler -> --SAMPLER is 'euler', it should be one of ddpm, ddim, dpmpp, heun, or
-d shapes --SAMPLER DDIM -> --SAMPLER is 'DDIM', it should be one of ddpm, ddim, dpmpp, heun, or o
-d shapes --SAMPLER ddim, -> --SAMPLER is 'ddim,', it should be one of ddpm, ddim, dpmpp, heun, or
-d shapes --SAMPLING_STEPS 0 -> --SAMPLING_STEPS is 0, it should be at least 1
-d shapes --SAMPLING_STEPS 1001 -> --SAMPLING_STEPS is 1001, it should be at most the model's time
-d shapes --SAMPLING_STEPS 3, -> --SAMPLING_STEPS is '3,', it should be a whole number, or one per
-d shapes --SAMPLING_STEPS {L} -> --SAMPLING_STEPS is {L}, it should be at least 1 and at most 100
-d shapes --SAMPLING_STEPS 2.5 -> --SAMPLING_STEPS is '2.5', it should be a whole number, or one p
-d shapes --AUG_LEVEL 1.1 -> --AUG_LEVEL is 1.1, it should be from 0 to 1
-d shapes --AUG_LEVEL -0.1 -> --AUG_LEVEL is -0.1, it should be from 0 to 1
-d shapes --AUG_LEVEL nan -> --AUG_LEVEL is nan, it should be from 0 to 1
-d shapes --AUG_LEVEL 0.1,0.1,0.1 -> --AUG_LEVEL has 3 values, for 2 stages it should have 1 or 2
-d shapes --BATCH_SIZE 0 -> --BATCH_SIZE is 0, it should be at least 1
-d shapes --BATCH_SIZE {L} -> --BATCH_SIZE is {L}, it should be at least 1 and at most 100000
-d shapes --DEVICE tpu -> --DEVICE is 'tpu', it should be one of auto, cpu, cuda, mps
-d shapes --PRECISION fp8 -> --PRECISION is 'fp8', it should be one of auto, fp32, bf16, fp16
-d shapes --PRECISION fp16 --DEVICE cpu -> --PRECISION is 'fp16', on the CPU it should be auto, fp
-d shapes --THREADS 0 -> --THREADS is 0, it should be at least 1
-d shapes --THREADS 100000 -> --THREADS is 100000, it should be at least 1 and at most 1024
-d shapes --OUTPUT_DIRECTORY '' -> --OUTPUT_DIRECTORY: '' is blank
-d shapes --ALL_STAGES=1 -> --ALL_STAGES: it takes no value, but has '1'
-d shapes --ANIMATION x -> unrecognized arguments: x
-d shapes --CAPTION x -> unknown flag --CAPTION, did you mean --CAPTIONS?
-d shapes --SEED -> --SEED: expected one argument (one such as -2,1 needs =: --FLAG=-2,1)
stray -> unrecognized arguments: stray
-d shapes --T5_NAME '' -> --T5_NAME: '' is blank
-d shapes --T5_NAME ' ' -> --T5_NAME: ' ' is blank
-d shapes --T5_NAME t6 -> --T5_NAME: text encoder 't6' is not known, it should be a directory, a H
-d shapes --T5_NAME nowhere -> --T5_NAME: text encoder 'nowhere' is not known, it should be a dire
-d shapes --T5_NAME /nonexistent -> --T5_NAME: text encoder '/nonexistent': there is no such direc
-d shapes --T5_NAME {L} -> --T5_NAME: '{L}' is too long for a name
-d shapes --T5_NAME /dev/null -> --T5_NAME: text encoder '/dev/null' is a file, it should be a dir
-d shapes --T5_NAME . -> --T5_NAME: text encoder '.' cannot be loaded: it has no config.json, it s
-d a/b/c -> --TRAINING_DIRECTORY: a/b/c is not a training directory: it has no parameters/; names
-d ' ' -> --TRAINING_DIRECTORY: ' ' is blank
 -> --TRAINING_DIRECTORY is missing, it should be a training_<TIMESTAMP>/
-d shapes --IMAGES_PER_CAPTION -1 -> --IMAGES_PER_CAPTION is -1, it should be at least 1
-d shapes --IMAGES_PER_CAPTION {L} -> --IMAGES_PER_CAPTION is {L}, it should be at least 1 and at
-d shapes --IMAGES_PER_CAPTION 100000 -> --IMAGES_PER_CAPTION is 100000, times 12 captions: it sho
-d shapes --IMAGES_PER_CAPTION '' -> --IMAGES_PER_CAPTION is '', it should be a whole number
-d shapes --IMAGES_PER_CAPTION 2,2 -> --IMAGES_PER_CAPTION is '2,2', it should be a whole number
-d shapes --GUIDANCE_WEIGHT strong -> --GUIDANCE_WEIGHT is 'strong', it should be a number, or one
-d shapes --GUIDANCE_WEIGHT 1,nan -> --GUIDANCE_WEIGHT is nan, it should be from -1000000 to 10000
-d shapes --SAMPLER '' -> --SAMPLER is '', it should be one of ddpm, ddim, dpmpp, heun, or one per
-d shapes --SAMPLER ddim,ddim,ddim -> --SAMPLER has 3 values, for 2 stages it should have 1 or 2
-d shapes --SAMPLING_STEPS -1 -> --SAMPLING_STEPS is -1, it should be at least 1
-d shapes --SAMPLING_STEPS 5,5,5 -> --SAMPLING_STEPS has 3 values, for 2 stages it should have 1 o
-d shapes --AUG_LEVEL '' -> --AUG_LEVEL is '', it should be a number, or one per stage with commas
-d shapes --AUG_LEVEL low -> --AUG_LEVEL is 'low', it should be a number, or one per stage with co
-d shapes --BATCH_SIZE 2,2 -> --BATCH_SIZE is '2,2', it should be a whole number
-d shapes --BATCH_SIZE x -> --BATCH_SIZE is 'x', it should be a whole number
-d shapes --DEVICE cuda -> --DEVICE is 'cuda', here it should be one of auto, cpu
-d shapes --DEVICE '' -> --DEVICE is '', it should be one of auto, cpu, cuda, mps
-d shapes --PRECISION '' -> --PRECISION is '', it should be one of auto, fp32, bf16, fp16
-d shapes --THREADS '' -> --THREADS is '', it should be a whole number or none
-d shapes --THREADS {L} -> --THREADS is {L}, it should be at least 1 and at most 1024
-d shapes --OUTPUT_DIRECTORY /dev/null -> --OUTPUT_DIRECTORY is '/dev/null', but /dev/null is not
-d shapes --OUTPUT_DIRECTORY {L} -> --OUTPUT_DIRECTORY: '{L}' is too long for a name
-d shapes --TESTING -> unrecognized arguments: --TESTING
-d shapes --EPOCHS 3 -> unrecognized arguments: --EPOCHS 3
--HELP -> unrecognized arguments: --HELP
-d -> --TRAINING_DIRECTORY/-d: expected one argument (one such as -2,1 needs =: --FLAG=-2,1)
-d shapes --AUG_LEVEL inf -> --AUG_LEVEL is inf, it should be from 0 to 1
-d shapes --SEED 4611686018427387904 -> --SEED is 4611686018427387904, it should be at least 0 and
-d shapes --SAMPLING_STEPS nan -> --SAMPLING_STEPS is 'nan', it should be a whole number, or one p
"""
)

MAIN = rows(
    """
--ACCUM_ITER {L} -> --ACCUM_ITER is {L}, it should be at least 1 and at most 100000
--ACCUM_ITER 0 -> --ACCUM_ITER is 0, it should be at least 1
--ALL_STAGES=1 -> --ALL_STAGES: it takes no value, but has '1'
--ANIMATION=1 -> --ANIMATION: it takes no value, but has '1'
--AUG_LEVEL 2 -> --AUG_LEVEL is 2.0, it should be from 0 to 1
--BATCH_SIZE {L} -> --BATCH_SIZE is {L}, it should be at least 1 and at most 100000
--CACHE_DIRECTORY '' -> --CACHE_DIRECTORY: '' is blank
--CAPTIONS '' -> --CAPTIONS is '', it should hold at least one caption
--CAPTION_COLUMN ' ' -> --CAPTION_COLUMN: ' ' is blank
--CHCKPT_NUM 0 -> --CHCKPT_NUM is 0, it should be at least 1
--CHECKPOINT 3 -> unknown flag --CHECKPOINT, did you mean --CHCKPT_NUM?
--CLIP_NORM nan -> --CLIP_NORM is nan, it should be above 0
--CROP left -> --CROP is 'left', it should be one of centre, random
--CROP_SIDE 30 -> --CROP_SIDE is 30, the U-Net for 64 pixels needs a multiple of 4
--DATASET nowhere -> --DATASET: data set 'nowhere' cannot be found, it should be one of shapes-min
--DATASET '' -> --DATASET: '' is blank
--DATA_LICENSE '' -> --DATA_LICENSE: '' is blank
--DEVICE gpu -> --DEVICE is 'gpu', it should be one of auto, cpu, cuda, mps
--EMA_DECAY 1 -> --EMA_DECAY is 1.0, it should be at least 0 and below 1
--EPOCHS 0 -> --EPOCHS is 0, it should be at least 1
--EPOCHS 1,2,3 -> --EPOCHS has 3 values, for 2 stages it should have 1 or 2
--FLIP=1 -> --FLIP: it takes no value, but has '1'
--GUIDANCE_WEIGHT nan -> --GUIDANCE_WEIGHT is nan, it should be from -1000000 to 1000000
--GUIDANCE_WEIGHT 1,2,3 -> --GUIDANCE_WEIGHT has 3 values, for 2 stages it should have 1 or 2
--IMAGES_PER_CAPTION 1000000000000000000 -> --IMAGES_PER_CAPTION is 1000000000000000000, it should
--IMAGES_PER_CAPTION 0 -> --IMAGES_PER_CAPTION is 0, it should be at least 1
--IMAGE_COLUMN '' -> --IMAGE_COLUMN: '' is blank
--IMG_SIDE_LEN 100000 -> --IMG_SIDE_LEN is 100000, it should be at least 1 and at most 4096
--LOG_WITH paper -> --LOG_WITH is 'paper', it should be one of aim, comet_ml, mlflow, tensorboard,
--MAX_LEFT_OUT nan -> --MAX_LEFT_OUT is nan, it should be from 0 to 1
--MAX_NUM_WORDS {L} -> --MAX_NUM_WORDS is {L}, it should be at least 2 and at most 4096
--NUM_IMAGES 10000000000 -> --NUM_IMAGES is 10000000000, it should be at least 2 and at most 10000
--NUM_WORKERS 300 -> --NUM_WORKERS is 300, it should be at least 0 and at most 128
--OPTIM_LR nan -> --OPTIM_LR is nan, it should be above 0
--OTHER_DATA=1 -> --OTHER_DATA: it takes no value, but has '1'
--OUTPUT_DIRECTORY '' -> --OUTPUT_DIRECTORY: '' is blank
--OUTPUT_DIRECTORY /dev/null -> --OUTPUT_DIRECTORY is '/dev/null', but /dev/null is not a director
--OUTPUT_DIRECTORY {L} -> --OUTPUT_DIRECTORY: '{L}' is too long for a name
--PARAMETERS nowhere -> --PARAMETERS: nowhere is not a directory, it should hold imagen_params_*.j
--PRECISION fp8 -> --PRECISION is 'fp8', it should be one of auto, fp32, bf16, fp16
--PUSH_TO name -> --PUSH_TO is 'name', it should be OWNER/NAME on the Hub
--RESTART_DIRECTORY x -> unknown flag --RESTART_DIRECTORY, did you mean train.py --RESTART_DIRECTO
--SAMPLER Heun -> --SAMPLER is 'Heun', it should be one of ddpm, ddim, dpmpp, heun, or one per sta
--SAMPLE_EVERY 0 -> --SAMPLE_EVERY is 0, it should be at least 1
--SAMPLING_STEPS 1001 -> --SAMPLING_STEPS is 1001, it should be at most the model's timesteps, 100
--SAMPLING_STEPS {L} -> --SAMPLING_STEPS is {L}, it should be at least 1 and at most 1000000
--SEED -1 -> --SEED is -1, it should be at least 0 and below 4611686018427387904
--STAGES 0 -> unknown flag --STAGES, did you mean train.py --STAGES?
--STREAMING -> --STREAMING is for real images, --DATASET is shapes-minimal
--T5_NAME '' -> --T5_NAME: '' is blank
--TESTING=1 -> --TESTING/-test: it takes no value, but has '1'
--THREADS 100000 -> --THREADS is 100000, it should be at least 1 and at most 1024
--TIMESTEPS 10 --SAMPLING_STEPS 11 -> --SAMPLING_STEPS is 11, it should be at most the model's tim
--TIMESTEPS 0 -> --TIMESTEPS is 0, it should be at least 1
--TRAIN_VALID_FRAC 1 -> --TRAIN_VALID_FRAC is 1.0, it should be above 0 and below 1
--VALID_NUM 0 -> --VALID_NUM is 0, it should be at least 1
--WARMUP {L} -> --WARMUP is {L}, it should be at least 0 and at most 1000000000
-c . -> --CAPTIONS is the path '.', a file of captions should be a .txt
-c nothing.txt -> --CAPTIONS is 'nothing.txt', it should be a text file with one caption per line:
stray -> unrecognized arguments: stray
"""
)

# The file, a key of it, its value as JSON, and how the message goes on after the file's name.
KEYS = rows(
    """
imagen timesteps 1000000000000000000000000000000 -> --TIMESTEPS is 1000000000000000000000000000000
imagen timesteps {L} -> --TIMESTEPS is {L}, it should be at least 1 and at most 1000000
imagen timesteps 0 -> --TIMESTEPS is 0, it should be at least 1
imagen timesteps -5 -> --TIMESTEPS is -5, it should be at least 1
imagen timesteps 1.5 -> --TIMESTEPS is 1.5, it should be a whole number
imagen timesteps "1000" -> --TIMESTEPS is '1000', it should be a whole number
imagen timesteps null -> --TIMESTEPS is None, it should be a whole number
imagen timesteps NaN -> --TIMESTEPS is nan, it should be a whole number
imagen timesteps 10 -> `stages[0].steps` is 20, it should be at most timesteps 10
imagen max_tokens 1 -> `max_tokens` is 1, it should be at least 2
imagen max_tokens 1000000000000000000000000000000 -> `max_tokens` is 10000000000000000000000000000
imagen max_tokens true -> `max_tokens` is True, it should be a whole number
imagen text_encoder 5 -> `text_encoder` is 5, it should be text
imagen text_encoder "" -> `text_encoder`: '' is blank
imagen text_encoder "t6" -> --T5_NAME: text encoder 't6' is not known, it should be a directory, a
imagen text_encoder "\\u0000" -> `text_encoder`: '\\x00' has a line break or another control charact
imagen text_encoder "\\ud800" -> it is not valid JSON: unexpected end of hex escape at line 1 colum
imagen text_dropout 1.5 -> `text_dropout` is 1.5, it should be from 0 to 1
imagen text_dropout NaN -> `text_dropout` is nan, it should be from 0 to 1
imagen text_dropout "0.1" -> `text_dropout` is '0.1', it should be a number
imagen stages [] -> --STAGES is empty, it should have at least one stage
imagen stages {} -> --STAGES is {}, it should be a list
imagen stages 5 -> --STAGES is 5, it should be a list
imagen stages null -> --STAGES is None, it should be a list
imagen stages [{}] -> has files for U-Nets [0, 1], its imagen_params file has 1 stages: it should
imagen stages [{"side": 64}, {"side": 16}] -> --STAGES have sides [64, 16], these should grow
imagen stages [[]] -> `stages[0]` is [], it should be an object with keys, {...}
imagen surprise 1 -> unknown key 'surprise', known keys are stages, timesteps, text_encoder, max_t
imagen stages.0.side 0 -> `stages[0].side` is 0, it should be at least 1
imagen stages.0.side 1000000 -> `stages[0].side` is 1000000, it should be at least 1 and at most 4
imagen stages.0.side 64 -> --STAGES have sides [64, 64], these should grow
imagen stages.0.side 15 -> stage side is 15, its U-Net needs a multiple of 2
imagen stages.1.side 65 -> stage side is 65, its U-Net needs a multiple of 4
imagen stages.0.side "16" -> `stages[0].side` is '16', it should be a whole number
imagen stages.0.schedule "cosine" -> `stages[0].schedule` is 'cosine', it should be an object with
imagen stages.0.schedule {"name": "linear2"} -> `stages[0].schedule.name` is 'linear2', it should
imagen stages.0.schedule {"shift": NaN} -> `stages[0].schedule.shift` is nan, it should be above 0
imagen stages.0.schedule {"shift": 0} -> `stages[0].schedule.shift` is 0, it should be above 0
imagen stages.0.schedule {"shift": 1e308} -> `stages[0].schedule.shift` is 1e+308, it should be ab
imagen stages.0.parameterization "y" -> `stages[0].parameterization` is 'y', it should be one of e
imagen stages.0.weighting "none" -> `stages[0].weighting` is 'none', it should be one of uniform,
imagen stages.0.guidance_weight 1e308 -> `stages[0].guidance_weight` is 1e+308, it should be from
imagen stages.0.guidance_weight -1e308 -> `stages[0].guidance_weight` is -1e+308, it should be fro
imagen stages.0.guidance_weight NaN -> `stages[0].guidance_weight` is nan, it should be from -1000
imagen stages.0.guidance_weight Infinity -> `stages[0].guidance_weight` is inf, it should be from
imagen stages.0.guidance_weight 1e999 -> `stages[0].guidance_weight` is inf, it should be from -10
imagen stages.0.guidance_weight [1.0] -> `stages[0].guidance_weight` is [1.0], it should be a numb
imagen stages.0.guidance_interval [0.6, 0.5] -> `stages[0]`: `guidance_interval` is (0.6, 0.5), it
imagen stages.0.guidance_interval [0.5] -> `stages[0].guidance_interval` is [0.5], it should be a
imagen stages.0.guidance_interval [0, NaN] -> `stages[0].guidance_interval[1]` is nan, it should b
imagen stages.0.guidance_interval 0.5 -> `stages[0].guidance_interval` is 0.5, it should be a list
imagen stages.0.threshold "Dynamic" -> `stages[0].threshold` is 'Dynamic', it should be one of non
imagen stages.0.percentile 0 -> `stages[0].percentile` is 0, it should be above 0 and at most 1
imagen stages.0.percentile 1.5 -> `stages[0].percentile` is 1.5, it should be above 0 and at most
imagen stages.0.sampler "DDIM" -> `stages[0].sampler` is 'DDIM', it should be one of ddpm, ddim, d
imagen stages.0.steps 0 -> `stages[0].steps` is 0, it should be at least 1
imagen stages.0.steps 1001 -> `stages[0].steps` is 1001, it should be at most timesteps 1000
imagen stages.0.steps 1000000000000000000000000000000 -> `stages[0].steps` is 10000000000000000000
imagen stages.0.steps 20.0 -> `stages[0].steps` is 20.0, it should be a whole number
imagen stages.0.eta -1 -> `stages[0].eta` is -1, it should be from 0 to 1
imagen stages.0.eta NaN -> `stages[0].eta` is nan, it should be from 0 to 1
imagen stages.0.aug_level 2 -> `stages[0].aug_level` is 2, it should be from 0 to 1
imagen stages.0.aug_level null -> `stages[0].aug_level` is None, it should be a number
imagen stages.0.aug_power NaN -> `stages[0].aug_power` is nan, it should be at least 0
imagen stages.0.aug_power Infinity -> `stages[0].aug_power` is inf, it should be at least 0
imagen stages.0.aug_power -1 -> `stages[0].aug_power` is -1, it should be at least 0
imagen stages.0.aug_power 1e308 -> `stages[0].aug_power` is 1e+308, it should be at least 0 and at
imagen stages.0.sampelr "ddim" -> unknown key 'stages[0].sampelr', did you mean 'sampler'?
unet_0 channels [1000000, 64] -> `channels[0]` is 1000000, it should be at least 16 and at most 16
unet_0 channels [17, 64] -> `channels[0]` is 17, it should be at least 16 and a multiple of 16
unet_0 channels [0, 64] -> `channels[0]` is 0, it should be at least 16 and a multiple of 16
unet_0 channels [] -> `channels` is empty, it should have one entry per level
unet_0 channels 32 -> `channels` is 32, it should be a list
unet_0 channels [32] -> `blocks` has 2 entries, it should have one per level, as `channels` has: 1
unet_0 channels [32.5, 64] -> `channels[0]` is 32.5, it should be a whole number
unet_0 channels [{L}, 64] -> `channels[0]` is {L}, it should be at least 16 and a multiple of 16
unet_0 channels ["32", "64"] -> `channels[0]` is '32', it should be a whole number
unet_0 channels [16,16,16,16,16,16,16,16,16,16,16,16,16,16,16,16,16] -> `channels` has 17 entries,
unet_0 blocks [100000, 1] -> `blocks[0]` is 100000, it should be at least 1 and at most 128
unet_0 blocks [0, 1] -> `blocks[0]` is 0, it should be at least 1
unet_0 blocks [1] -> `blocks` has 1 entries, it should have one per level, as `channels` has: 2
unet_0 blocks 1 -> `blocks` is 1, it should be a list
unet_0 self_attention [1, 0] -> `self_attention[0]` is 1, it should be true or false
unet_0 self_attention [true] -> `self_attention` has 1 entries, it should have one per level, as `
unet_0 self_attention "yes" -> `self_attention` is 'yes', it should be a list
unet_0 text_attention [null, null] -> `text_attention[0]` is None, it should be true or false
unet_0 text_attention {} -> `text_attention` is {}, it should be a list
unet_0 heads 1000000 -> `heads` is 1000000, it should be at least 1 and at most 128
unet_0 heads 0 -> `heads` is 0, it should be at least 1
unet_0 heads 2.5 -> `heads` is 2.5, it should be a whole number
unet_0 head_dim 1000000 -> `head_dim` is 1000000, it should be at least 1 and at most 16384
unet_0 head_dim -1 -> `head_dim` is -1, it should be at least 1
unet_0 head_dim {L} -> `head_dim` is {L}, it should be at least 1 and at most 16384
unet_0 text_dim 0 -> `text_dim` is 0, it should be at least 1
unet_0 text_dim 1000000 -> `text_dim` is 1000000, it should be at least 1 and at most 16384
unet_0 text_dim 65 -> text_dim of a U-Net is 65, it should be 64, the width of t5_tiny
unet_0 pool_queries 1000000 -> `pool_queries` is 1000000, it should be at least 1 and at most 1638
unet_0 pool_queries 0 -> `pool_queries` is 0, it should be at least 1
unet_0 cond_dim 3 -> `cond_dim` is 3, it should be at least 2 and a multiple of 2
unet_0 cond_dim 1000000 -> `cond_dim` is 1000000, it should be at least 2 and at most 16384 and a
unet_0 position_dim 1 -> `position_dim` is 1, it should be at least 2 and a multiple of 2
unet_0 position_dim 1000000 -> `position_dim` is 1000000, it should be at least 2 and at most 1638
unet_0 lowres 1 -> `lowres` is 1, it should be true or false
unet_0 lowres true -> unet lowres is True for the stage of 16 pixels, it should be false for the f
unet_1 lowres false -> unet lowres is False for the stage of 64 pixels, it should be false for the
unet_0 efficient "false" -> `efficient` is 'false', it should be true or false
unet_0 patch 0 -> `patch` is 0, it should be at least 1
unet_0 patch 3 -> stage side is 16, its U-Net needs a multiple of 6
unet_0 patch 1000000 -> `patch` is 1000000, it should be at least 1 and at most 128
unet_0 dropout 1 -> `dropout` is 1, it should be at least 0 and below 1
unet_0 dropout NaN -> `dropout` is nan, it should be at least 0 and below 1
unet_0 dropout -0.5 -> `dropout` is -0.5, it should be at least 0 and below 1
unet_0 chanels [32, 64] -> unknown key 'chanels', did you mean 'channels'?
unet_1 text_dim 32 -> text_dim of a U-Net is 32, it should be 64, the width of t5_tiny
"""
)

# The file, what is in it, and a part of the message.
FILES: list[tuple[str, bytes, str]] = [
    ("imagen_params_1.json", b"[" * 10**5, "it is not valid JSON: recursion limit exceeded a"),
    ("imagen_params_1.json", b'{"a":' * 10**5, "it is not valid JSON: recursion limit exceed"),
    ("unet_0_params_1.json", b"[" * 10**5, "it is not valid JSON: recursion limit exceeded a"),
    ("imagen_params_1.json", b"", "it is not valid JSON: EOF while parsing a value at line 1"),
    ("unet_1_params_1.json", b"{}\0", "it is not valid JSON: trailing characters at line 1 c"),
    ("imagen_params_1.json", b"[]", "it is [], it should be an object with keys, {...}"),
    ("imagen_params_1.json", b"null", "it is None, it should be an object with keys, {...}"),
    ("imagen_params_1.json", b"NaN", "it is nan, it should be an object with keys, {...}"),
    ("imagen_params_1.json", b"{}", "key 'stages' is missing"),
    ("imagen_params_1.json", b"\xff\xfe{}", "it is not valid JSON: expected value at line 1"),
    ("unet_0_params_1.json", b"\xef\xbb\xbf{}", "it is not valid JSON: expected value at lin"),
    ("unet_0_params_1.json", b"9" * 10**6, "it is not valid JSON: number out of range at lin"),
    ("unet_0_params_1.json", b'"' + b"x" * 10**6 + b'"', "it is 'xxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("unet_0_params_1.json", b'{"heads": 4,', "it is not valid JSON: EOF while parsing a val"),
    ("unet_0_params_1.json", b'{"heads": ' + b"9" * 5000 + b"}", "it is not valid JSON: numb"),
    ("unet_0_params_1.json", b'{"' + b"k" * 10**6 + b'": 1}', "unknown key 'kkkkkkkkkkkkkkkk"),
    ("imagen_params_2.json", b"{}", "has 2 files imagen_params_*.json, it should have one"),
    ("unet_0_params_2.json", b"{}", "has 2 files unet_0_params_*.json, it should have one"),
    ("training_parameters_2.txt", b"", "has 2 files training_parameters_*.txt, it should hav"),
    ("unet_2_params_1.json", b"{}", "has files for U-Nets [0, 1, 2], its imagen_params file"),
    ("unet_99999999999999999999_params_1.json", b"{}", "has files for U-Nets [0, 1, 99999999"),
    ("training_parameters_1.txt", b"\xff", "is not UTF-8 text"),
    ("training_parameters_1.txt", b"--EPOCHS 1", ", line 1: '--EPOCHS 1' should be --FLAG=va"),
    ("training_parameters_1.txt", b"--EPOCHS=x", "--EPOCHS is 'x', it should be a whole numb"),
    ("training_parameters_1.txt", b"--EPOCHS=0", "--EPOCHS is 0, it should be at least 1"),
    ("training_parameters_1.txt", b"--EPOCHS=", "--EPOCHS is '', it should be a whole number"),
    ("training_parameters_1.txt", b"--EPOCHS=1,2,3", "--EPOCHS has 3 values, for 2 stages it"),
    ("training_parameters_1.txt", b"--epochs=1", ", line 1: '--epochs=1' should be --FLAG=va"),
    ("training_parameters_1.txt", b"--STAGES=0", ", line 1: --STAGES is not a flag of the tr"),
    ("training_parameters_1.txt", b"--WHAT=1", ", line 1: --WHAT is not a flag of the traini"),
    ("training_parameters_1.txt", b"--TIMESTEPS=5", "has --TIMESTEPS=5, but its imagen_param"),
    ("training_parameters_1.txt", b"--DATASET=a\0b", "--DATASET: 'a\\x00b' has a line break o"),
    ("training_parameters_1.txt", b"--DATASET=", "--DATASET: '' is blank"),
    ("training_parameters_1.txt", b"--SEED=" + b"9" * 5000, "--SEED is {L}, it should be at"),
    ("training_parameters_1.txt", b"x" * 10**6, ", line 1: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("training_parameters_1.txt", b"--OPTIM_LR=nan", "--OPTIM_LR is nan, it should be above"),
    ("training_parameters_1.txt", b"--TESTING=perhaps", "--TESTING is 'perhaps', it should b"),
    ("training_parameters_1.txt", b"\0\0", ", line 1: '\\x00\\x00' should be --FLAG=value"),
]

CAPTIONS: list[tuple[bytes, str]] = [
    ("café".encode("latin-1"), "it is not UTF-8 text"),
    (b"\xff\xfe\x00\xd8", "it is not UTF-8 text"),
    ("a red circle".encode("utf-16"), "it is not UTF-8 text"),
    ("a red circle".encode("utf-16-le"), "it has NUL characters, is it UTF-16? It should be UTF-8"),
    (b"a red circle\0\n", "it has NUL characters, is it UTF-16? It should be UTF-8"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def error_of(program: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that is wrong: one line, exit code 2, and nothing is made."""
    code = MAINS[program](argv, program=program)
    out, err = capsys.readouterr()
    begin = f"{program}: error: "
    assert (code, out) == (2, "") and err.startswith(begin), err
    assert err.endswith("\n") and len(err.splitlines()) == 1 and len(err) <= MOST
    assert "Traceback" not in err and not any(Path().iterdir())
    return re.sub(r"9{50,}(\.\.\.9+)?", "{L}", err.removeprefix(begin).rstrip("\n"))


@pytest.mark.parametrize(("flags", "message"), TRAIN)
def test_train(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = shlex.split(flags.replace("{L}", LONG))
    assert error_of("train.py", argv, capsys).startswith(message)


@pytest.mark.parametrize(("flags", "message"), INFERENCE)
def test_inference(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = shlex.split(flags.replace("{L}", LONG))
    assert error_of("inference.py", argv, capsys).startswith(message)


@pytest.mark.parametrize(("flags", "message"), MAIN)
def test_main(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = shlex.split(flags.replace("{L}", LONG))
    assert error_of("main.py", argv, capsys).startswith(message)


@pytest.mark.parametrize("program", MAINS)
def test_bytes_that_are_no_letter(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Python hands a byte that is not UTF-8 over as a lone surrogate."""
    for argv in (["--OUTPUT_DIRECTORY", "caf\udce9"], ["--SEED", "\udce9"]):
        message = f"{argv[0]} is {argv[1]!r}, it should be UTF-8 text"
        assert error_of(program, argv, capsys) == message
    if program != "train.py":
        message = "--CAPTIONS is 'caf\\udce9', it should be UTF-8 text"
        assert error_of(program, ["-c", "caf\udce9"], capsys) == message


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "a\x1b[31m"])
def test_characters_of_no_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags are kept as lines of a file, so that a name is one line."""
    for flag in ("--DATASET", "--T5_NAME", "--DATA_LICENSE", "--OUTPUT_DIRECTORY", "--PARAMETERS"):
        line = error_of("train.py", [flag, name], capsys)
        assert line.startswith(f"{flag}: ") and "has a line break or another control" in line


@pytest.mark.parametrize(("content", "message"), CAPTIONS)
@pytest.mark.parametrize("program", ["inference.py", "main.py"])
def test_files_of_captions(
    program: str,
    content: bytes,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file in another encoding is told, not drawn."""
    path = tmp_path / "captions.txt"
    path.write_bytes(content)
    line = error_of(program, ["-c", str(path), *["-d", "shapes"][: 2 * (program < "m")]], capsys)
    assert line.startswith("--CAPTIONS is '") and line.endswith(f"one caption per line: {message}")


@pytest.fixture
def parameters(tmp_path: Path) -> Path:
    """The default model as a directory of --PARAMETERS."""
    directory = tmp_path / "parameters"
    directory.mkdir()
    imagen, unets = default_architecture()
    configs = {"imagen": imagen, "unet_0": unets[0], "unet_1": unets[1]}
    for name, config in configs.items():
        (directory / f"{name}_params_1.json").write_text(json.dumps(asdict(config)))
    (directory / "training_parameters_1.txt").write_text("--EPOCHS=1\n")
    return directory


@pytest.mark.parametrize(("key", "message"), KEYS)
def test_values_in_files_of_parameters(
    key: str, message: str, parameters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, key, value = key.split(maxsplit=2)
    path = parameters / f"{name}_params_1.json"
    config = json.loads(path.read_text())
    inner = config
    *above, last = key.split(".")
    for part in above:
        inner = inner[int(part) if part.isdigit() else part]
    inner[last] = "@"
    path.write_text(json.dumps(config).replace('"@"', value.replace("{L}", LONG)))
    line = error_of("train.py", ["--PARAMETERS", str(parameters)], capsys)
    for name in ("--PARAMETERS: ", f"{path}: ", f"{parameters} "):
        line = line.removeprefix(name)
    assert line.startswith(message)


@pytest.mark.parametrize(("name", "content", "message"), FILES)
def test_files_of_parameters(
    name: str,
    content: bytes,
    message: str,
    parameters: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (parameters / name).write_bytes(content)
    line = error_of("train.py", ["--PARAMETERS", str(parameters)], capsys)
    assert message in line
    assert str(parameters) in line or "EPOCHS has 3 values" in message


def test_missing_files_of_parameters(parameters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named."""
    for name in ("unet_1", "unet_0", "imagen"):
        (parameters / f"{name}_params_1.json").unlink()
        line = error_of("train.py", ["--PARAMETERS", str(parameters)], capsys)
        wanted = "0 files imagen_params" if name == "imagen" else "it should have unet_0_params"
        assert line.startswith(f"--PARAMETERS: {parameters} has ") and wanted in line


def test_there_are_enough_rows() -> None:
    """Every flag of a script is in one of its rows."""
    for table, kind in ((TRAIN, TrainConfig), (INFERENCE, GenerationConfig)):
        flags = {word for row in table for word in row.values[0].replace("=", " ").split()}
        short = {"-d": "--TRAINING_DIRECTORY", "-c": "--CAPTIONS"}
        flags |= {short.get(flag, flag) for flag in flags}
        assert {flag_name(item.name) for item in fields(kind)} <= flags
    assert len(TRAIN) + len(INFERENCE) + len(MAIN) + len(KEYS) + len(FILES) >= 500
