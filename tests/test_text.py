"""Text: the frozen T5 encoder, its names, the cache, and what the shipped t5_tiny knows."""

from __future__ import annotations

import json
import os
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pretrain_t5_tiny import corpus_line, probe, retelling
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration

from minimagen.data import words
from minimagen.data.scenes import ShapesDataset
from minimagen.data.shapes import COLOURS, FULL, MINIMAL
from minimagen.data.wording import parse_caption
from minimagen.notes import Note
from minimagen.text import (
    SHIPPED,
    SHORT_NAMES,
    EmbeddingCache,
    T5Encoder,
    embedding_width,
    load_text_encoder,
)

CAPTIONS = ["a red circle", "", "a small green star to the left of a blue square", "one red heart"]


@pytest.fixture(scope="module")
def encoder() -> T5Encoder:
    return load_text_encoder("t5_tiny")


def save_random_t5(directory: Path, seed: int = 0, dim: int = 8) -> Path:
    """A T5 with random weights, as a user's own directory would hold one."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=dim, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    T5EncoderModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


# --- the encoder ----------------------------------------------------------------------------------


def test_caption_survives_encode_and_decode(encoder: T5Encoder) -> None:
    """No word is lost in the tokenizer, not even one that no caption of the shapes world has."""
    for caption in [*CAPTIONS, "two dogs, 3 cats & a piano; why not?"]:
        ids = encoder.tokenizer(caption).input_ids
        assert encoder.tokenizer.unk_token_id not in ids
        assert ids[-1] == encoder.tokenizer.eos_token_id
        decoded = encoder.tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded.replace(" ", "") == caption.replace(" ", "")


def test_words_of_the_shapes_world_are_whole_tokens_whatever_their_case(
    encoder: T5Encoder,
) -> None:
    """One word, one embedding: a colour is a single token, and RED is red."""
    for colour in COLOURS:
        assert encoder.tokenizer.tokenize(f"A {colour.upper()} heart")[1] == f"▁{colour}"


def test_shapes_types_and_mask(encoder: T5Encoder) -> None:
    """(B, N, D) float32 and (B, N) bool; the mask counts tokens; padding is zero."""
    embeddings, mask = encoder.encode(CAPTIONS)
    assert embeddings.shape == (*mask.shape, encoder.dim) and embeddings.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == encoder.token_counts(CAPTIONS) == [4, 1, 12, 4]
    assert (embeddings[~mask] == 0).all() and not embeddings.requires_grad


def test_padding_does_not_change_an_embedding(encoder: T5Encoder) -> None:
    """Alone or padded in a batch, a caption has the same embeddings."""
    embeddings, mask = encoder.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        alone, _ = encoder.encode([caption])
        torch.testing.assert_close(embeddings[row][mask[row]], alone[0], atol=1e-5, rtol=1e-4)


def test_encoder_is_frozen(encoder: T5Encoder) -> None:
    """Imagen never trains its text encoder."""
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_long_captions_are_cut_off_with_a_warning() -> None:
    """At most max_tokens tokens, the last of them </s>, and one line says how many were cut."""
    encoder = load_text_encoder("t5_tiny", max_tokens=5)
    with pytest.warns(Note, match="1 of 4 captions are cut off at 5 tokens"):
        embeddings, mask = encoder.encode(CAPTIONS)
    assert mask.sum(1).tolist() == [4, 1, 5, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept, _ = encoder.encode(["a small green star"])  # its fifth token is </s>
    torch.testing.assert_close(embeddings[2], kept[0])


@pytest.mark.parametrize("captions", ["a red circle", []])
def test_wrong_captions_are_an_error(encoder: T5Encoder, captions: list[str]) -> None:
    """A single string would be read letter by letter."""
    with pytest.raises(ValueError, match=r"^captions is"):
        encoder.encode(captions)
    with pytest.raises(ValueError, match=r"^captions is"):
        EmbeddingCache(encoder)(captions)


def test_max_tokens_leaves_room_for_a_word() -> None:
    """One token would be </s> alone."""
    with pytest.raises(ValueError, match="max_tokens is 1"):
        load_text_encoder("t5_tiny", max_tokens=1)


# --- names ----------------------------------------------------------------------------------------


def test_short_names_are_minimagens() -> None:
    """MinImagen's names mean what they meant there."""
    for size in ("small", "base", "large", "3b", "11b"):
        assert SHORT_NAMES[f"t5_{size}"] == f"google-t5/t5-{size}"
    for size in ("small", "base", "large", "xl", "xxl"):
        assert SHORT_NAMES[f"{size}1.1"] == f"google/t5-v1_1-{size}"
        assert SHORT_NAMES[f"flan_t5_{size}"] == f"google/flan-t5-{size}"


def test_a_short_name_loads_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """t5_small, t5-small and the Hub id ask the Hub for the same thing."""
    asked = []

    def refuse(source: str) -> None:
        asked.append(source)
        raise OSError("We couldn't connect to the Hub.\nCheck your connection.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    for name in ("t5_small", "t5-small", "google-t5/t5-small"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be loaded: We couldn't") as error:
            load_text_encoder(name)
        assert "\n" not in str(error.value) and error.value.__suppress_context__
    assert asked == ["google-t5/t5-small"] * 3


@pytest.mark.parametrize("name", ["t5_smal", ""])
def test_an_unknown_name_is_an_error_that_says_what_is_known(name: str) -> None:
    """One line that names the culprit and what would be right."""
    with pytest.raises(ValueError, match=rf"'{name}' is not known.*t5_tiny, t5_small") as error:
        load_text_encoder(name)
    assert "\n" not in str(error.value)


def test_a_directory_takes_the_same_path(tmp_path: Path) -> None:
    """A user's own T5 is loaded by its directory, with its own weights."""
    encoder = load_text_encoder(str(save_random_t5(tmp_path / "mine")))
    embeddings, mask = encoder.encode(CAPTIONS)
    assert embeddings.shape == (4, 12, 8)
    saved = T5EncoderModel.from_pretrained(tmp_path / "mine").eval()
    tokens = encoder.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    expected = saved(**tokens).last_hidden_state
    torch.testing.assert_close(embeddings[mask], expected[mask])


def test_no_directory_is_told_as_that() -> None:
    """A path that does not exist is not a wrong name of the Hub, and a file is no directory."""
    for name in ("/nonexistent", "no/such/directory", "./t5", "~/t5", "a b/c"):
        with pytest.raises(ValueError, match=f"^text encoder '{name}': there is no such directory"):
            load_text_encoder(name)
    with pytest.raises(ValueError, match="is a file, it should be a directory"):
        load_text_encoder(__file__)


def test_without_a_network_the_line_says_how_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """One command, once; the library's line names an address and a cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_text_encoder, embedding_width):
        with pytest.raises(ValueError, match=r"download it once with `hf download me/my-t5`$"):
            load("me/my-t5")


def change(**values: object) -> Callable[[Path], None]:
    """A change of config.json."""

    def apply(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def put(name: str, content: bytes | None) -> Callable[[Path], None]:
    """Another content of a file; None removes it."""

    def apply(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        if content is not None:
            (directory / name).write_bytes(content)

    return apply


class Hostile:
    """An object whose pickle makes a directory when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def hostile(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(
        pickle.dumps({"a": Hostile(directory / "was here")})
    )


def not_finite(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["encoder.final_layer_norm.weight"][3] = float("nan")
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def small_vocabulary(directory: Path) -> None:
    config = T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(directory)


def cut(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_padding(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "d_model": (
        change(d_model=16),
        r"do not fit its config.json: .* is \[8, 8\], it should",
    ),
    "d_ff": (change(d_ff=10**6), "do not fit its config.json: .*DenseReluDense"),
    "d_kv": (change(d_kv=2), "do not fit its config.json: .*SelfAttention"),
    "vocab_size": (change(vocab_size=50), r"shared.weight is \[145, 8\], it should be \[50, 8\]"),
    "vocabulary": (small_vocabulary, "tokens up to 144, but its weights have embeddings of 50"),
    "more layers": (change(num_layers=2), "its weights lack encoder.block.1"),
    "fewer layers": (change(num_layers=0), "its weights have encoder.block.0"),
    "no heads": (change(num_heads=0), "do not fit each other or are damaged"),
    "negative": (change(d_model=-1), "do not fit each other or are damaged"),
    "text as a number": (change(d_model="x"), "do not fit each other or are damaged .*d_model"),
    "bert": (change(model_type="bert"), "is a model of type 'bert', it should be a 't5'"),
    "mt5": (change(model_type="mt5"), "is a model of type 'mt5', it should be a 't5'"),
    "no type": (change(model_type=None), "model type"),
    "no config": (put("config.json", None), "it has no config.json"),
    "config cut": (put("config.json", b"{"), "config.json' is not a valid JSON file"),
    "config a list": (put("config.json", b"[]"), "model_type"),
    "config deep": (put("config.json", b"[" * 100_000), "damaged .*recursion"),
    "no weights": (put("model.safetensors", None), "no file named model.safetensors"),
    "weights empty": (put("model.safetensors", b""), "damaged .*header"),
    "weights cut": (cut, "damaged .*header"),
    "weights nan": (not_finite, "encoder.final_layer_norm.weight has values that are not finite"),
    "hostile": (hostile, "holds more than weights, it should be a model.safetensors"),
    "no tokenizer": (put("tokenizer.json", None), "knows no words, are its tokenizer files miss"),
    "tokenizer cut": (put("tokenizer.json", b"{"), "cannot be loaded: Expecting property name"),
    "tokenizer empty": (put("tokenizer.json", b"{}"), "damaged .*added_tokens"),
    "no padding": (without_padding, "does not have a padding token"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_directory_that_does_not_fit_is_told_in_one_line(tmp_path: Path, kind: str) -> None:
    """Each would be a traceback, or embeddings that mean nothing; no code of the files is run."""
    damage, reason = DAMAGED[kind]
    directory = save_random_t5(tmp_path / "mine")
    damage(directory)
    with pytest.raises(ValueError, match=f"^text encoder '{directory}' .*{reason}") as error:
        load_text_encoder(str(directory))
    assert "\n" not in str(error.value) and error.value.__suppress_context__
    assert not (directory / "was here").exists()


def test_decoder_weights_are_left_aside(tmp_path: Path) -> None:
    """A whole T5, as on the Hub, has more than an encoder."""
    directory = save_random_t5(tmp_path / "whole")
    config = T5Config.from_pretrained(directory)
    T5ForConditionalGeneration(config).save_pretrained(directory)
    assert load_text_encoder(str(directory)).dim == 8


# --- what it cannot read --------------------------------------------------------------------------


def test_what_it_reads_whole_gets_no_word(encoder: T5Encoder) -> None:
    """Also upper case, double captions and unknown words of plain letters."""
    assert encoder.unread([*CAPTIONS, *CAPTIONS, "A RED CIRCLE", "two zebras"]) == ""


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        (["一只红猫", "a cat"], 'does not know words of 1 of 2, such as "一只红猫"'),
        (["größe", "café", "café"], 'does not know words of 2 of 2, such as "größe", "café"'),
        (["красный круг"], 'does not know words of 1 of 1, such as "красный", "круг"'),
        (
            ["一只红猫", "🐱", "a 🐱", "a star"],
            'does not know words of 3 of 4, such as "一只红猫", "🐱"; reads 2 of 4 the same',
        ),
        (["a red circle " * 30], "cuts off 1 of 1 at 64 tokens"),
        (
            ["red " * 63 + "a", "red " * 63 + "b", "red " * 70 + "猫"],
            "cuts off 3 of 3 at 64 tokens; reads 3 of 3 the same as another",
        ),
        (
            [f"{letter} é" for letter in "一只红猫两条蓝狗大"],
            'such as "一", "é", "只", "红", "猫", "两", "条", "蓝"; reads 9 of 9 the same',
        ),
    ],
)
def test_what_it_cannot_read_is_counted_and_named(
    encoder: T5Encoder, captions: list[str], said: str
) -> None:
    """Chinese, emoji and accents become one token, so that captions become equal, silently."""
    found = encoder.unread(captions)
    assert found.startswith("captions: the text encoder ") and said in found


def test_equal_captions_are_truly_equal(encoder: T5Encoder) -> None:
    """What ``unread`` says of them: their embeddings do not differ at all."""
    one, other = (encoder.encode([caption])[0] for caption in ("一只红猫", "🐱"))
    assert one.equal(other)


def test_words_that_are_spelt_are_counted(encoder: T5Encoder) -> None:
    """t5_tiny knows the words of the shapes world as wholes, and spells others."""
    assert encoder.spelt(CAPTIONS) == encoder.spelt(["a", ""]) == 0
    assert encoder.spelt(["a red tiger", "a grinning face"]) == 0.75


@pytest.mark.parametrize("caption", ["caf\udce9", "\ud83d"])
def test_what_is_not_text_is_an_error(encoder: T5Encoder, caption: str) -> None:
    """Bytes that are no letters, and halves of an emoji: the tokenizer would end in a traceback."""
    for read in (encoder.encode, EmbeddingCache(encoder)):
        with pytest.raises(ValueError, match="is not text, it should be UTF-8"):
            read(["a red circle", caption])


# --- the cache ------------------------------------------------------------------------------------


class CountingEncoder(T5Encoder):
    """Remembers what it was asked to encode."""

    def __init__(self, encoder: T5Encoder, max_tokens: int = 64) -> None:
        super().__init__(encoder.tokenizer, encoder.model, max_tokens)
        self.asked: list[str] = []

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked += captions
        return super().encode(captions)


def test_cache_encodes_each_distinct_caption_once(encoder: T5Encoder) -> None:
    """Repetitions within a call and in later calls cost nothing, whatever the batch size."""
    counting = CountingEncoder(encoder)
    cache = EmbeddingCache(counting, batch_size=2)
    cache(CAPTIONS + CAPTIONS)
    cache(CAPTIONS[::-1])
    assert sorted(counting.asked) == sorted(CAPTIONS) and len(cache) == len(CAPTIONS)


def test_cache_returns_what_the_encoder_does(encoder: T5Encoder, tmp_path: Path) -> None:
    """Same order, same padding, same mask, embeddings to float16 precision; also from disk."""
    expected, expected_mask = encoder.encode(CAPTIONS)
    counting = CountingEncoder(encoder)
    first = EmbeddingCache(counting, tmp_path)
    in_memory, mask = first(CAPTIONS)
    first.save()
    second = EmbeddingCache(counting, tmp_path)
    from_disk, disk_mask = second(CAPTIONS)
    assert len(counting.asked) == len(CAPTIONS)
    assert mask.equal(expected_mask) and disk_mask.equal(expected_mask)
    assert in_memory.equal(from_disk) and in_memory.dtype == torch.float32
    torch.testing.assert_close(in_memory, expected, atol=1e-3, rtol=1e-3)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_cache_on_disk_grows(encoder: T5Encoder, tmp_path: Path) -> None:
    """A second run adds its captions to those of the first."""
    for captions in (CAPTIONS[:2], CAPTIONS[2:]):
        cache = EmbeddingCache(encoder, tmp_path)
        cache.add(captions)
        cache.save()
    assert EmbeddingCache(encoder, tmp_path).add(CAPTIONS) == 0


def test_cache_never_mixes_encoders_or_lengths(encoder: T5Encoder, tmp_path: Path) -> None:
    """Other weights of the same shape, or another max_tokens, find an empty cache."""
    same = load_text_encoder(str(save_random_t5(tmp_path / "a", seed=1)))
    other = load_text_encoder(str(save_random_t5(tmp_path / "b", seed=2)))
    shorter = T5Encoder(same.tokenizer, same.model, max_tokens=5)
    cache = EmbeddingCache(same, tmp_path / "cache")
    cache.add(CAPTIONS)
    cache.save()
    again = load_text_encoder(str(tmp_path / "a"))
    assert len(EmbeddingCache(again, tmp_path / "cache")) == len(CAPTIONS)
    for different in (other, shorter, encoder):
        assert len(EmbeddingCache(different, tmp_path / "cache")) == 0


def test_every_weight_is_in_the_fingerprint(tmp_path: Path) -> None:
    """One changed value of thousands is another encoder, and so are other words."""
    directory = save_random_t5(tmp_path / "t5")
    before = load_text_encoder(str(directory)).fingerprint()
    assert load_text_encoder(str(directory)).fingerprint() == before
    encoder = load_text_encoder(str(directory))
    encoder.model.shared.weight[100, 3] += 1e-6
    assert encoder.fingerprint() != before
    text = (directory / "tokenizer.json").read_text(encoding="utf-8")
    (directory / "tokenizer.json").write_text(text.replace("▁red", "▁der"), encoding="utf-8")
    assert load_text_encoder(str(directory)).fingerprint() != before


def rewritten(path: Path, **tensors: torch.Tensor) -> bytes:
    return save(load_file(path) | tensors)


BROKEN_CACHE: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda path: b"",
    "cut": lambda path: path.read_bytes()[:100],
    "cut in half": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "one byte short": lambda path: path.read_bytes()[:-1],
    "noise": lambda path: random.Random(0).randbytes(1000),
    "no captions": lambda path: save({"a": torch.ones(1)}),
    "captions no JSON": lambda path: rewritten(path, captions=torch.tensor([1, 2]).byte()),
    "captions a number": lambda path: rewritten(path, captions=torch.tensor([49]).byte()),
    "lengths": lambda path: rewritten(path, lengths=torch.tensor([-1, 5])),
    "width": lambda path: rewritten(path, embeddings=torch.ones(21, 3)),
    "no width": lambda path: rewritten(path, embeddings=torch.ones(21)),
    "not finite": lambda path: rewritten(path, embeddings=torch.full((21, 64), float("nan"))),
}


@pytest.mark.parametrize("kind", BROKEN_CACHE)
def test_cache_computes_a_broken_file_anew(encoder: T5Encoder, tmp_path: Path, kind: str) -> None:
    """A damaged file costs the time to encode again, nothing else."""
    cache = EmbeddingCache(encoder, tmp_path)
    expected, _ = cache(CAPTIONS)
    cache.save()
    assert cache.path is not None
    cache.path.write_bytes(BROKEN_CACHE[kind](cache.path))
    with pytest.warns(Note, match=f"{cache.path.name} .*computed again"):
        cache = EmbeddingCache(encoder, tmp_path)
    torch.testing.assert_close(cache(CAPTIONS)[0], expected)
    cache.save()
    assert len(EmbeddingCache(encoder, tmp_path)) == len(CAPTIONS)


@pytest.mark.parametrize("kind", ["a file", "a directory in its place", "full"])
def test_a_cache_that_cannot_be_written_is_an_os_error(
    encoder: T5Encoder, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind of error that a training notes and goes on after; safetensors has one of its own."""
    directory = tmp_path / "cache"
    cache = EmbeddingCache(encoder, directory)
    cache.add(CAPTIONS)
    assert cache.path is not None
    if kind == "a file":
        directory.write_bytes(b"")
    elif kind == "full":

        def full(*arguments: object) -> None:
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("minimagen.files.save_file", full)
    else:
        (directory / cache.path.name).mkdir(parents=True)
    assert len(EmbeddingCache(encoder, directory)) == 0
    with pytest.raises(OSError, match="cache"):
        cache.save()
    assert not list(tmp_path.glob("**/.*"))  # nothing half-written


# --- t5_tiny --------------------------------------------------------------------------------------


def test_shipped_encoder_is_small() -> None:
    """It travels with the package: at most 4 MB in all."""
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 4_000_000


def test_corpus_hides_a_true_retelling() -> None:
    """The decoder says the scene object by object, in one order however the caption puts it."""
    said = "left: small red circle. right: blue square. background: grey."
    for text in (
        "a small red circle left of a blue square on a grey background",
        "on the right a blue square, on the left a small red circle on a grey background",
    ):
        assert retelling(parse_caption(text)) == said
    assert retelling(parse_caption("one red star")) == "somewhere: red star."
    text = "in the top left corner, a little tilted dark red star against a gray background"
    said = "upper left: small tilted dark red star. background: grey."
    assert retelling(parse_caption(text)) == said
    rng = random.Random(0)
    pairs = set()
    for _ in range(500):
        source, target = corpus_line(rng)
        description = parse_caption(source)
        assert target == f"<extra_id_0> {retelling(description)}"
        pairs |= {(thing.colour, thing.shape) for thing in description.objects}
    assert pairs == set(FULL.combinations)  # text may tell of what the images hold out


@pytest.mark.slow
def test_shipped_encoder_knows_which_colour_belongs_to_which_object(encoder: T5Encoder) -> None:
    """A linear probe reads bindings from its embeddings, on held-out combinations; words alone
    (the same probe on T5's input embeddings, a bag of words) leave it at chance."""
    learnt = probe(encoder, count=1000)
    for word in ("colour", "shape", "size", "tilt", "shade"):
        assert learnt[f"{word} word -> role"] >= 0.95, word
    assert learnt["shape word -> colour"] >= 0.95
    assert min(learnt["place word -> place"], learnt["caption -> place"]) >= 0.97

    class BagOfWords(T5Encoder):
        def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = self.tokenizer(captions, padding=True, return_tensors="pt")
            return self.model.shared(tokens.input_ids), tokens.attention_mask.bool()

    bag = probe(BagOfWords(encoder.tokenizer, encoder.model), count=1000)
    assert abs(bag["colour word -> role"] - 0.5) < 0.05
    assert bag["shape word -> colour"] < 0.3
    assert bag["place word -> place"] < 0.6  # "upper" is left as often as right


def test_every_word_of_the_worlds_is_one_piece_of_the_shipped_encoder(encoder: T5Encoder) -> None:
    """A word of captions that it never read would come as letters, and cost a sixth of fidelity."""
    for world in (MINIMAL, FULL):
        said = {word for text in ShapesDataset(world, 2000, 16).captions for word in words(text)}
        pieces = {word: encoder.tokenizer.tokenize(word) for word in said}
        assert {word: found for word, found in pieces.items() if len(found) > 1} == {}
    assert len(encoder.tokenizer.tokenize("image")) > 1
