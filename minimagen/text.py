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
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minimagen.files import load_tensors, save_tensors
from minimagen.notes import note

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
WORDS_NAMED = 8  # maximum number of words in a note
PROBE = "A RED Größe, 3 cats & 红猫"  # a tokenizer shows by it what it does with letters


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
        return [len(ids) for ids in self._ids(captions)]

    def _ids(self, captions: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(captions)).input_ids
        return ids

    def unread(self, captions: Sequence[str]) -> str:
        """What this encoder cannot read of captions, in words; "" if it reads all of them.

        It does not read what lies beyond ``max_tokens``. Each part that its vocabulary lacks, such
        as a Chinese word, becomes the same token, ``<unk>``: captions may become equal by that.
        """
        captions, unk = list(dict.fromkeys(captions)), self.tokenizer.unk_token_id
        cut, unknown, named = 0, 0, dict[str, None]()
        tokens: Counter[tuple[int, ...]] = Counter()  # of the captions that are not read whole
        for start in range(0, len(captions), 512):
            batch = captions[start : start + 512]
            for caption, ids in zip(batch, self._ids(batch), strict=True):
                read = tuple(ids[: self.max_tokens - 1])  # without </s>, if it is cut off
                long, strange = len(ids) > self.max_tokens, unk in read
                cut, unknown = cut + long, unknown + strange
                if long or strange:
                    tokens[read] += 1
                if strange and len(named) < WORDS_NAMED:
                    words = dict.fromkeys(caption.split()[: self.max_tokens])
                    named |= {word: None for word in words if unk in self._ids([word])[0]}
        equal = sum(number for number in tokens.values() if number > 1)
        said = []
        if cut:
            said.append(f"cuts off {cut} of {len(captions)} at {self.max_tokens} tokens")
        if unknown:
            some = ", ".join([f'"{word[:40]}"' for word in named][:WORDS_NAMED])
            said.append(f"does not know words of {unknown} of {len(captions)}, such as {some}")
        if equal:
            said.append(f"reads {equal} of {len(captions)} the same as another")
        return f"captions: the text encoder {'; '.join(said)}" if said else ""

    def spelt(self, captions: Sequence[str]) -> float:
        """The share of distinct words, of three letters or more, that it reads letter by letter.

        0 for an encoder such as ByT5, which was trained to read all words so.
        """
        words = {word for caption in captions for word in re.findall(r"[^\W\d_]{3,}", caption)}
        vocabulary = set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens)
        if not words or max(len(token.strip("▁")) for token in vocabulary) < 2:
            return 0.0
        order = sorted(words)
        counts = self.token_counts(order)
        return sum(n > len(word) for word, n in zip(order, counts, strict=True)) / len(order)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embed captions, padded to the longest of them.

        Returns the embeddings, (B, N, D) float32, zero where padded, and the mask, (B, N) bool,
        True at tokens and False at padding, N at most ``max_tokens``. Longer captions are cut off,
        with a note. Raises ValueError when ``captions`` is empty, a single string, or not text.
        """
        _check(captions)
        long = sum(count > self.max_tokens for count in self.token_counts(captions))
        if long:
            note(f"{long} of {len(captions)} captions are cut off at {self.max_tokens} tokens")
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

        It reads every weight, at about a gigabyte a second.
        """
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        config = self.model.config
        structure = [config.num_heads, config.d_kv, config.feed_forward_proj, self.max_tokens]
        known = [vocabulary, self._ids([PROBE]), structure]
        digest = hashlib.sha256(json.dumps(known).encode())
        for name, weight in sorted(self.model.named_parameters()):
            digest.update(json.dumps([name, list(weight.shape)]).encode())
            digest.update(weight.cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def _check(captions: Sequence[str]) -> None:
    if isinstance(captions, str):
        raise ValueError(f"captions is the string {captions!r}, it should be a list of strings")
    if not len(captions):
        raise ValueError("captions is empty, it should hold at least one caption")
    for caption in captions:
        check_text(caption)


def check_text(caption: str) -> None:
    """Raise ValueError, naming the caption, if it is not text: if it has bytes of no letter."""
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        shown = ascii(caption[max(0, error.start - 20) : error.end + 20])
        raise ValueError(f"caption {shown} is not text, it should be UTF-8") from None


# --- names and loading ----------------------------------------------------------------------------


def _source(name: str) -> str:
    """The directory or Hub id that a name stands for."""
    source = SHORT_NAMES.get(name.replace("-", "_"), name)
    if os.path.isdir(source) or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        return source
    if os.path.exists(source):
        raise ValueError(f"text encoder {name!r} is a file, it should be a directory")
    if "/" in source or os.sep in source:
        raise ValueError(f"text encoder {name!r}: there is no such directory")
    raise ValueError(
        f"text encoder {name!r} is not known, it should be a directory, a Hub id such as "
        f"'google-t5/t5-small', or one of {', '.join(SHORT_NAMES)}"
    )


@contextmanager
def _loading(name: str, source: str) -> Iterator[None]:
    """Silence the library, and turn its errors into one line."""
    from huggingface_hub import logging as hub_logging
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    before = [(part, part.get_verbosity()) for part in (logging, hub_logging)]
    logging.disable_progress_bar()  # this module prints nothing
    for part, _ in before:
        part.set_verbosity_error()
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a library that reads a broken file may raise any
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise ValueError(
                f"text encoder {name!r} is not a directory here, it was not downloaded, and the "
                f"Hugging Face Hub cannot be reached: download it once with `hf download {source}`"
            ) from None
        reason = next(iter(str(error).strip().splitlines()), "")
        if isinstance(error, UnpicklingError):
            reason = "its weights file holds more than weights, it should be a model.safetensors"
        elif not isinstance(error, OSError | ValueError):  # the text may be a mere key
            reason = f"its files do not fit each other or are damaged ({reason})"
        raise ValueError(f"text encoder {name!r} cannot be loaded: {reason}") from None
    finally:
        for part, verbosity in before:
            part.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _configuration(source: str) -> PretrainedConfig:
    from transformers import AutoConfig

    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        raise ValueError("it has no config.json, it should be a directory that holds a T5")
    config = AutoConfig.from_pretrained(source)
    if config.model_type != "t5":  # other weights would be skipped silently
        raise ValueError(f"it is a model of type {config.model_type!r}, it should be a 't5'")
    return config


def embedding_width(name: str) -> int:
    """Width D of an encoder's embeddings; reads no weights. Errors as in ``load_text_encoder``."""
    source = _source(name)
    with _loading(name, source):
        return int(_configuration(source).d_model)


def load_text_encoder(name: str, max_tokens: int = 64) -> T5Encoder:
    """Load a frozen T5 encoder.

    name:        a short name (``SHORT_NAMES``: ``t5_tiny``, which ships with the package, or
                 ``t5_small``, ...), a directory, or a Hub id such as ``google-t5/t5-small``
    max_tokens:  maximum number of tokens per caption, at least 2

    Raises ValueError, with a one-line message, if there is no such model, if it is not a T5
    encoder, or if its files are damaged or do not fit each other.
    """
    source = _source(name)
    from transformers import AutoTokenizer, T5EncoderModel  # takes a second

    with _loading(name, source):
        _configuration(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        if tokenizer.unk_token_id in tokenizer("a red circle").input_ids:
            # without a vocabulary file, transformers silently makes an empty vocabulary
            raise ValueError("its tokenizer knows no words, are its tokenizer files missing?")
        loaded: Any = T5EncoderModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
        model, found = loaded
        _check_weights(model, found)
        rows = model.get_input_embeddings().num_embeddings
        most = max(tokenizer.get_vocab().values())
        if most >= rows:
            raise ValueError(
                f"its tokenizer has tokens up to {most}, but its weights have embeddings of {rows}"
            )
        with torch.no_grad():  # for what only shows in use, such as no token for padding
            model(**tokenizer(["", "a"], padding=True, return_tensors="pt"))
    return T5Encoder(tokenizer, model, max_tokens)


def _check_weights(model: T5EncoderModel, found: dict[str, Any]) -> None:
    """Raise ValueError if weights lack, are left over, have another shape, or are not finite."""
    for name, there, due in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"its weights do not fit its config.json: {name} is {list(there)}, it should be "
            f"{list(due)}"
        )
    if found["missing_keys"]:
        raise ValueError(f"its weights lack {sorted(found['missing_keys'])[0]}")
    for name in sorted(found["unexpected_keys"]):  # those of a decoder are not used
        if name.startswith("encoder.block"):
            raise ValueError(f"its weights have {name}, which its config.json does not")
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"its weights are damaged: {name} has values that are not finite")


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
        self.fingerprint = encoder.fingerprint()
        self.path = directory and Path(directory) / f"{self.fingerprint}.safetensors"
        self._embeddings: dict[str, Tensor] = {}  # each (N, D)
        if self.path is not None and os.path.isfile(self.path):
            try:
                self._embeddings = _load_embeddings(self.path, encoder.dim)
            except ValueError as error:
                note(f"{error}, they are computed again")

    @classmethod
    def saved(cls, path: Path) -> EmbeddingCache:
        """Load what ``save`` wrote, without an encoder. Raises ValueError if that fails."""
        cache = cls.__new__(cls)
        cache.encoder, cache.batch_size, cache.path = None, 64, path
        cache.fingerprint = path.stem
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

        The whole file is written, or nothing. Raises OSError, naming the file, if that fails.
        """
        if self.path is None or not self._embeddings:
            return
        rows = list(self._embeddings.values())
        captions = json.dumps(list(self._embeddings)).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "embeddings": torch.cat(rows),  # (tokens of all captions, D)
            "lengths": torch.tensor([len(row) for row in rows]),
            "captions": torch.frombuffer(bytearray(captions), dtype=torch.uint8),  # JSON
        }
        save_tensors(self.path, tensors)


def _load_embeddings(path: Path, dim: int | None = None) -> dict[str, Tensor]:
    """What ``EmbeddingCache.save`` wrote; ``dim``: the width that is due."""
    try:
        saved = load_tensors(path)[0]
        captions = json.loads(bytes(saved["captions"].tolist()))
        embeddings = saved["embeddings"]  # (tokens of all captions, D)
        if embeddings.shape[1] != (dim or embeddings.shape[1]) or not embeddings.isfinite().all():
            raise ValueError("they are not of this encoder")
        rows = embeddings.split(saved["lengths"].tolist())
        return dict(zip(captions, rows, strict=True))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"embeddings in {path} cannot be read ({error})") from None
