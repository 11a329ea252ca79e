"""Text: the frozen T5 encoder, its names, the cache, and what the shipped t5_tiny knows."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
import torch
from pretrain_t5_tiny import corpus_line, probe, retelling
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from minimagen.data import words
from minimagen.data.shapes import COLOURS, FULL, MINIMAL, ShapesDataset, parse_caption
from minimagen.text import SHIPPED, SHORT_NAMES, EmbeddingCache, T5Encoder, load_text_encoder

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
    with pytest.warns(UserWarning, match="1 of 4 captions are cut off at 5 tokens"):
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


@pytest.mark.parametrize("name", ["t5_smal", "", "no/such/directory"])
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


def test_directories_without_a_whole_t5_are_errors(tmp_path: Path) -> None:
    """Each would otherwise give embeddings that mean nothing, without a word."""
    (tmp_path / "empty").mkdir()
    other = save_random_t5(tmp_path / "other")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"model_type": "t5"', '"model_type": "bert"'))
    wordless = save_random_t5(tmp_path / "wordless")
    (wordless / "tokenizer.json").unlink()
    broken = save_random_t5(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    deeper = save_random_t5(tmp_path / "deeper")
    config = (deeper / "config.json").read_text()
    (deeper / "config.json").write_text(config.replace('"num_layers": 1', '"num_layers": 2'))
    for directory, reason in (
        (tmp_path / "empty", "cannot be loaded"),
        (other, "'bert', it should be a 't5'"),
        (wordless, "knows no words"),
        (broken, "cannot be loaded"),
        (deeper, "weights lack"),
    ):
        with pytest.raises(ValueError, match=reason) as error:
            load_text_encoder(str(directory))
        assert directory.name in str(error.value) and "\n" not in str(error.value)


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


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_cache_computes_a_corrupt_file_anew(
    encoder: T5Encoder, tmp_path: Path, keep: int | float
) -> None:
    """A file cut short anywhere costs the time to encode again, nothing else."""
    cache = EmbeddingCache(encoder, tmp_path)
    expected, _ = cache(CAPTIONS)
    cache.save()
    whole = cache.path.read_bytes()
    cache.path.write_bytes(whole[: int(keep * len(whole)) if keep == 0.5 else keep])
    with pytest.warns(UserWarning, match="computed again"):
        cache = EmbeddingCache(encoder, tmp_path)
    torch.testing.assert_close(cache(CAPTIONS)[0], expected)
    cache.save()
    assert len(EmbeddingCache(encoder, tmp_path)) == len(CAPTIONS)


# --- t5_tiny --------------------------------------------------------------------------------------


def test_shipped_encoder_is_small() -> None:
    """It travels with the package: at most 4 MB in all."""
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 4_000_000


def test_corpus_hides_a_true_retelling() -> None:
    """The decoder says the scene place by place, in one order however the caption puts it."""
    said = "left: small red circle. right: blue square. background: grey."
    for text in (
        "a small red circle left of a blue square on a grey background",
        "on the right a blue square, on the left a small red circle on a grey background",
    ):
        assert retelling(parse_caption(text)) == said
    assert retelling(parse_caption("one red star")) == "middle: red star."
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
    assert learnt["colour word -> role"] >= 0.95
    assert learnt["shape word -> role"] >= 0.9
    assert learnt["shape word -> colour"] >= 0.95

    class BagOfWords(T5Encoder):
        def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = self.tokenizer(captions, padding=True, return_tensors="pt")
            return self.model.shared(tokens.input_ids), tokens.attention_mask.bool()

    bag = probe(BagOfWords(encoder.tokenizer, encoder.model), count=1000)
    assert abs(bag["colour word -> role"] - 0.5) < 0.05
    assert bag["shape word -> colour"] < 0.3


def test_every_word_of_the_worlds_is_one_piece_of_the_shipped_encoder(encoder: T5Encoder) -> None:
    """A word of captions that it never read would come as letters, and cost a sixth of fidelity."""
    for world in (MINIMAL, FULL):
        said = {word for text in ShapesDataset(world, 2000, 16).captions for word in words(text)}
        pieces = {word: encoder.tokenizer.tokenize(word) for word in said}
        assert {word: found for word, found in pieces.items() if len(found) > 1} == {}
    assert len(encoder.tokenizer.tokenize("image")) > 1
