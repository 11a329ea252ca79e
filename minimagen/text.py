"""Text encoding: a frozen T5 encoder turns captions into embeddings, once per distinct caption.

Imagen (arXiv 2205.11487, sec. 2.1) encodes captions with a large language model that was trained on
text alone, and does not train it further. So embeddings can be computed in advance:
``EmbeddingCache`` stores them.

    encoder = load_text_encoder("t5_tiny")
    embeddings, mask = encoder.encode(["a red circle", ""])  # (2, N, D) and (2, N)

The empty caption ``""`` is one token, ``</s>``. (Classifier-free guidance does not need it: the
U-Net replaces a hidden caption by a learned vector, ``null_text``.)
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, T5EncoderModel

SHIPPED = Path(__file__).parent / "pretrained" / "t5_tiny"
SHORT_NAMES: dict[str, str] = {  # MinImagen's names; the Flan models have names in their style
    "t5_tiny": str(SHIPPED),
    "t5_small": "google-t5/t5-small",
    "t5_base": "google-t5/t5-base",
    "t5_large": "google-t5/t5-large",
    "t5_3b": "google-t5/t5-3b",
    "t5_11b": "google-t5/t5-11b",
    "small1.1": "google/t5-v1_1-small",
    "base1.1": "google/t5-v1_1-base",
    "large1.1": "google/t5-v1_1-large",
    "xl1.1": "google/t5-v1_1-xl",
    "xxl1.1": "google/t5-v1_1-xxl",
    "flan_t5_small": "google/flan-t5-small",
    "flan_t5_base": "google/flan-t5-base",
    "flan_t5_large": "google/flan-t5-large",
    "flan_t5_xl": "google/flan-t5-xl",
    "flan_t5_xxl": "google/flan-t5-xxl",
}


class T5Encoder:
    """A frozen T5 encoder with its tokenizer; made by ``load_text_encoder``.

    tokenizer:   text to token ids
    model:       token ids to embeddings; in eval mode, without gradients
    max_tokens:  maximum number of tokens per caption, including ``</s>``
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, model: T5EncoderModel, max_tokens: int = 64
    ) -> None:
        if max_tokens < 2:
            raise ValueError(f"max_tokens is {max_tokens}, it should be at least 2: a word, </s>")
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.max_tokens = max_tokens

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        return self.model.config.d_model

    @property
    def device(self) -> torch.device:
        """The device of the weights and of the embeddings."""
        return self.model.device

    def to(self, device: torch.device | str) -> T5Encoder:
        """Move the weights to ``device``; returns self."""
        self.model.to(device)
        return self

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        """The number of tokens of each caption, including ``</s>``, before any is cut off."""
        return [len(ids) for ids in self.tokenizer(list(captions)).input_ids]

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embed captions, padded to the longest of them.

        Returns the embeddings, (B, N, D) float32, zero where padded, and the mask, (B, N) bool,
        True at tokens and False at padding, N at most ``max_tokens``. Longer captions are cut off,
        with a warning. Raises ValueError when ``captions`` is empty or a single string.
        """
        _check(captions)
        long = sum(count > self.max_tokens for count in self.token_counts(captions))
        if long:
            warnings.warn(
                f"{long} of {len(captions)} captions are cut off at {self.max_tokens} tokens",
                stacklevel=2,
            )
        tokens = self.tokenizer(
            list(captions),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        mask = tokens.attention_mask  # (B, N)
        states = self.model(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state
        return states.float() * mask[..., None], mask.bool()

    def fingerprint(self) -> str:
        """A hash of what an embedding depends on: vocabulary, configuration, weights, max_tokens.

        It uses 64 evenly spaced entries of each weight tensor: enough to distinguish models, and
        fast for billions of weights.
        """
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        config = self.model.config
        structure = [config.num_heads, config.d_kv, config.feed_forward_proj, self.max_tokens]
        digest = hashlib.sha256(json.dumps([vocabulary, structure]).encode())
        for name, weight in self.model.state_dict().items():
            flat = weight.flatten()
            entries = flat[:: max(1, len(flat) // 64)].double().tolist()
            digest.update(json.dumps([name, list(weight.shape), entries]).encode())
        return digest.hexdigest()[:16]


def _check(captions: Sequence[str]) -> None:
    if isinstance(captions, str):
        raise ValueError(f"captions is the string {captions!r}, it should be a list of strings")
    if not len(captions):
        raise ValueError("captions is empty, it should hold at least one caption")


def _source(name: str) -> str:
    """The directory or Hub id that a name stands for."""
    source = SHORT_NAMES.get(name.replace("-", "_"), name)
    if not source or (not Path(source).is_dir() and source.count("/") != 1):
        raise ValueError(
            f"text encoder {name!r} is not known, it should be a directory, a Hub id such as "
            f"'google-t5/t5-small', or one of {', '.join(SHORT_NAMES)}"
        )
    return source


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Silence the library, and shorten its errors to one line."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # this module prints nothing
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"text encoder {name!r} cannot be loaded: {reason}") from None
    finally:
        if bars:
            logging.enable_progress_bar()


def _configuration(source: str) -> PretrainedConfig:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    if config.model_type != "t5":  # other weights would be skipped silently
        raise ValueError(f"it is a model of type {config.model_type!r}, it should be a 't5'")
    return config


def embedding_width(name: str) -> int:
    """Width D of an encoder's embeddings; reads no weights. Errors as in ``load_text_encoder``."""
    source = _source(name)
    with _loading(name):
        return int(_configuration(source).d_model)


def load_text_encoder(name: str, max_tokens: int = 64) -> T5Encoder:
    """Load a frozen T5 encoder.

    name:        a short name (``SHORT_NAMES``: ``t5_tiny``, which ships with the package, or
                 ``t5_small``, ...), a directory, or a Hub id such as ``google-t5/t5-small``
    max_tokens:  maximum number of tokens per caption, at least 2

    Raises ValueError, with a one-line message, if there is no such model or it is not a T5 encoder.
    """
    source = _source(name)
    from transformers import AutoTokenizer, T5EncoderModel  # takes a second

    with _loading(name):
        _configuration(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        if tokenizer.unk_token_id in tokenizer("a red circle").input_ids:
            # without a vocabulary file, transformers silently makes an empty vocabulary
            raise ValueError("its tokenizer knows no words, are its tokenizer files missing?")
        loaded: Any = T5EncoderModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
        model, found = loaded
        if found["missing_keys"]:
            raise ValueError(f"its weights lack {sorted(found['missing_keys'])[0]}")
    return T5Encoder(tokenizer, model, max_tokens)


class EmbeddingCache:
    """The embeddings of captions; each distinct caption is encoded once.

    Call it like ``encoder.encode``: it returns the same, on the encoder's device. The cache stores
    embeddings on the CPU, without padding and in float16, so results have that precision.

    encoder:    encodes the captions that are new
    directory:  ``save`` writes the embeddings here, for the next cache of the same encoder. The
                name of the file is the encoder's fingerprint, so that other weights or another
                ``max_tokens`` use another file. None: keep the embeddings in memory only
    batch_size: captions encoded at the same time
    """

    def __init__(
        self, encoder: T5Encoder, directory: Path | None = None, batch_size: int = 64
    ) -> None:
        self.encoder: T5Encoder | None = encoder
        self.batch_size = batch_size
        self.path = directory and Path(directory) / f"{encoder.fingerprint()}.safetensors"
        self._embeddings: dict[str, Tensor] = {}  # each (N, D)
        if self.path is not None and self.path.is_file():
            try:
                self._embeddings = _load_embeddings(self.path)
            except ValueError as error:
                warnings.warn(f"{error}, they are computed again", stacklevel=2)

    @classmethod
    def saved(cls, path: Path) -> EmbeddingCache:
        """Load what ``save`` wrote, without an encoder. Raises ValueError if that fails."""
        cache = cls.__new__(cls)
        cache.encoder, cache.batch_size, cache.path = None, 64, path
        cache._embeddings = _load_embeddings(path)
        return cache

    def __len__(self) -> int:
        return len(self._embeddings)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, N, D) float32 and mask (B, N) bool of captions, as ``T5Encoder.encode``.

        Raises ValueError when ``captions`` is empty or a single string.
        """
        _check(captions)
        device: torch.device | str = "cpu"
        if self.encoder is not None:
            self.add(captions)
            device = self.encoder.device
        rows = [self._embeddings[caption] for caption in captions]
        lengths = torch.tensor([len(row) for row in rows])
        embeddings = pad_sequence(rows, batch_first=True)  # (B, N, D)
        mask = torch.arange(embeddings.shape[1]) < lengths[:, None]  # (B, N)
        return embeddings.to(device, torch.float32), mask.to(device)

    def release_encoder(self) -> None:
        """Free the encoder's memory: from now on this only looks up known captions, on the CPU."""
        self.encoder = None

    def add(self, captions: Sequence[str]) -> int:
        """Encode the captions that are new; returns their number."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._embeddings]
        if not new:
            return 0
        if self.encoder is None:
            raise ValueError(f"caption {new[0]!r} has no embedding and the encoder was released")
        new.sort(key=len)  # little padding within a batch
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            embeddings, mask = self.encoder.encode(batch)
            tokens = embeddings[mask].to("cpu", torch.float16)  # (B, N, D) -> (tokens, D)
            rows = tokens.split(mask.sum(1).tolist())
            self._embeddings.update(zip(batch, rows, strict=True))
        return len(new)

    def save(self) -> None:
        """Write the embeddings to the directory; without a directory, do nothing.

        A temporary file is written and then renamed, so that the file is never incomplete.
        """
        if self.path is None or not self._embeddings:
            return
        rows = list(self._embeddings.values())
        captions = json.dumps(list(self._embeddings)).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(f".{os.getpid()}.tmp")
        save_file(
            {
                "embeddings": torch.cat(rows),  # (tokens of all captions, D)
                "lengths": torch.tensor([len(row) for row in rows]),
                "captions": torch.frombuffer(bytearray(captions), dtype=torch.uint8),  # JSON
            },
            aside,
        )
        os.replace(aside, self.path)


def _load_embeddings(path: Path) -> dict[str, Tensor]:
    try:
        saved = load(path.read_bytes())  # no memory map: Windows cannot replace it
        captions = json.loads(bytes(saved["captions"].tolist()))
        rows = saved["embeddings"].split(saved["lengths"].tolist())
        return dict(zip(captions, rows, strict=True))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"embeddings in {path} cannot be read ({error})") from None
