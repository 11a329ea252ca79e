"""Pre-training of ``t5_tiny``, the small T5 that ships with MinImagen, by span corruption.

    python tools/pretrain_t5_tiny.py --OUTPUT t5_tiny

Span corruption (T5, arXiv 1910.10683, section 3.1.4) hides a span of a text and has a decoder say
what was there. On captions alone it would teach nothing about binding, which colour belongs to
which object: their attributes are independent, there is nothing to predict one from another. So a
line of this corpus tells one scene twice, and the second telling is the span that is hidden:

    a dark blue square right of a small red star.    left: small red star. right: dark blue square.
    ---------------- the encoder reads ----------    ------------- the decoder says --------------

The decoder has one layer and always tells in the same order. To say what is left it can only look
for an embedding that says "I am the colour of the left one", so the encoder must learn to write
that. Like any T5, it reads more than the images show: combinations of colour and shape that the
image model never sees do occur in the text. Only the encoder is kept.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import re
import string
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from minimagen.data.shapes import (
    COLOURS,
    FULL,
    PLACES,
    Description,
    ObjectDescription,
    sample_description,
)
from minimagen.data.wording import caption
from minimagen.text import T5Encoder, load_text_encoder

STEPS, BATCH_SIZE, LR = 1500, 128, 2e-3
SENTINELS = 16  # <extra_id_0>, ...; only the first is used
ROLES = {"left of": ("left", "right"), "above": ("top", "bottom")}  # of two objects


# --- the corpus -----------------------------------------------------------------------------------


def attributes(thing: ObjectDescription) -> list[str]:
    """The words of an object, in the order in which captions have them."""
    words = (thing.size, thing.tilt, thing.shade, thing.colour, thing.shape)
    return [word for word in words if word]


def retelling(description: Description) -> str:
    """The scene object by object: ``left: small red circle. right: tilted blue star.``

    A single object is told with its place, ``upper left: red circle.``, or as ``somewhere: ...``.
    """
    if description.relation:
        roles = ROLES[description.relation]
    else:
        roles = (description.place or "somewhere",)
    said = [
        f"{role}: {' '.join(attributes(thing))}."
        for role, thing in zip(roles, description.objects, strict=True)
    ]
    if description.background:
        said.append(f"background: {description.background}.")
    return " ".join(said)


def corpus_line(rng: random.Random) -> tuple[str, str]:
    """A scene told twice: (what the encoder reads, the hidden span that the decoder says).

    Two of five scenes have one object, since only they have place words.
    """
    count = rng.choice((1, 1, 2, 2, 2))
    description = sample_description(FULL, rng, rng.random() < 0.1, objects=count)
    return caption(description, rng), f"<extra_id_0> {retelling(description)}"


# --- the model ------------------------------------------------------------------------------------


def make_tokenizer(directory: Path, rng: random.Random) -> None:
    """Train a SentencePiece unigram model on the corpus, as ``spiece.model`` in ``directory``.

    The words of the corpus become whole pieces; letters, digits and punctuation are pieces too, so
    that any English text is encoded. Upper and lower case are the same.
    """
    import sentencepiece

    lines = [" ".join(corpus_line(rng)) for _ in range(5000)]
    lines = [re.sub(r"<extra_id_\d+>", "", line) for line in lines]
    words = sorted({word for line in lines for word in re.findall("[a-z]+", line)})
    # a piece must occur in two different surroundings to be a candidate
    lines += [" ".join(word + mark for word in words for mark in ("", *".,:;!?-"))] * 300
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=300,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",  # Unicode normal form with case folding
        required_chars=string.ascii_lowercase + string.digits + string.punctuation,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (directory / "spiece.model").write_bytes(model.getvalue())
    for name in ("tokenizer.json", "tokenizer_config.json"):  # of older words
        (directory / name).unlink(missing_ok=True)


def pretrain(directory: Path, steps: int = STEPS, seed: int = 0) -> Iterator[tuple[int, float]]:
    """Make a tokenizer, pre-train a T5, save its encoder; yields (step, loss) on the way.

    directory:  gets config.json, model.safetensors, spiece.model and tokenizer files
    steps:      optimizer steps, over which the learning rate falls to 0
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    directory.mkdir(parents=True, exist_ok=True)
    make_tokenizer(directory, rng)
    tokenizer = T5Tokenizer.from_pretrained(directory, extra_ids=SENTINELS)
    tokenizer.save_pretrained(directory)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=256,
        num_layers=3,
        num_decoder_layers=1,  # a weak decoder: the encoder must do the work
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=32,
        feed_forward_proj="relu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    for stack in (model.encoder, model.decoder):
        # Heads that start out looking at different distances: from T5's own start, where all words
        # look alike from everywhere, the loss stays for long at what a bag of words can tell.
        torch.nn.init.normal_(
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=1.5
        )
    optimizer = torch.optim.AdamW(model.parameters(), LR, betas=(0.9, 0.98), weight_decay=0.01)

    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        sources, targets = zip(*(corpus_line(rng) for _ in range(BATCH_SIZE)), strict=True)
        source = tokenizer(list(sources), padding=True, return_tensors="pt")
        target = tokenizer(list(targets), padding=True, return_tensors="pt")
        labels = target.input_ids.masked_fill(target.attention_mask == 0, -100)  # (B, M)
        loss = model(
            input_ids=source.input_ids, attention_mask=source.attention_mask, labels=labels
        ).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step, loss.item()

    encoder = T5EncoderModel(config)
    encoder.load_state_dict(model.state_dict(), strict=False)
    encoder.save_pretrained(directory)


# --- what it learnt -------------------------------------------------------------------------------


def _ridge_accuracy(features: Tensor, labels: Tensor, test: Tensor, penalty: float = 1e-2) -> float:
    """Share of right answers, on ``test``, of a linear classifier fitted to the other rows."""
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    x, y = features[~test], torch.nn.functional.one_hot(labels[~test]).double()
    gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1])
    weights = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))
    answers = (features[test] @ weights + y.mean(0)).argmax(1)
    return (answers == labels[test]).double().mean().item()


def _read(
    encoder: T5Encoder, descriptions: list[Description], rng: random.Random
) -> Iterator[tuple[Tensor, list[str]]]:
    """The embeddings (L, C) of one caption for each description, and its pieces."""
    captions = [caption(description, rng) for description in descriptions]
    for start in range(0, len(captions), 500):
        batch = captions[start : start + 500]
        embeddings, mask = encoder.encode(batch)
        for row, text in enumerate(batch):
            words = [piece.lstrip("▁") for piece in encoder.tokenizer.tokenize(text)]
            yield embeddings[row][mask[row]], words


def _positions(words: list[str], thing: ObjectDescription) -> dict[str, int]:
    """Where the words of an object are in a caption: by "size", "tilt", ... as far as it has them.

    They are next to each other and end with the shape, which no other object of the caption has.
    """
    at = words.index(thing.shape)
    found = {}
    for kind in ("shape", "colour", "shade", "tilt", "size"):
        if getattr(thing, kind):
            found[kind] = at
            at -= 1
    return found


def probe(encoder: T5Encoder, count: int = 4000, seed: int = 1) -> dict[str, float]:
    """How well a linear probe reads who has which attribute from the embeddings of captions.

    Closed-form ridge regression on the frozen embeddings of single captions. Fitted to ``count``
    captions without held-out combinations, asked about as many in which every caption has one.
    Returns accuracies in [0, 1], first of captions with two objects that differ in colour and in
    shape:

    colour word -> role      is its object the left/top or the right/bottom one? (chance 0.50)
    shape word -> role       likewise; size, tilt and shade word -> role too
    shape word -> colour     the colour of its own object (chance 0.13)

    then of captions with one object (chance 0.25):

    place word -> place      from the embedding of "upper", "lower", "top" or "bottom"
    caption -> place         from the mean of all embeddings of the caption
    """
    rng = random.Random(seed)
    features: dict[str, list[Tensor]] = {}
    labels: dict[str, list[int]] = {}
    tests: dict[str, list[bool]] = {}

    def note(name: str, vector: Tensor, label: int, test: bool) -> None:
        features.setdefault(name, []).append(vector)
        labels.setdefault(name, []).append(label)
        tests.setdefault(name, []).append(test)

    for objects, held_out in ((2, False), (2, True), (1, False), (1, True)):
        drawn: list[Description] = []
        while len(drawn) < count:
            description = sample_description(FULL, rng, held_out, objects)
            first, last = description.objects[0], description.objects[-1]
            differ = first.colour != last.colour and first.shape != last.shape
            if differ or description.place:
                drawn.append(description)
        for description, (tokens, words) in zip(drawn, _read(encoder, drawn, rng), strict=True):
            if description.place:
                where = list(PLACES).index(description.place)
                vertical = ("upper", "lower", "top", "bottom")
                (at,) = (i for i, word in enumerate(words) if word in vertical)
                note("place word -> place", tokens[at], where, held_out)
                note("caption -> place", tokens.mean(0), where, held_out)
                continue
            for role, thing in enumerate(description.objects):
                found = _positions(words, thing)
                for kind in ("colour", "shape", "size", "tilt", "shade"):
                    if kind in found:
                        note(f"{kind} word -> role", tokens[found[kind]], role, held_out)
                colour = list(COLOURS).index(thing.colour)
                note("shape word -> colour", tokens[found["shape"]], colour, held_out)
    return {
        name: _ridge_accuracy(
            torch.stack(rows), torch.tensor(labels[name]), torch.tensor(tests[name])
        )
        for name, rows in features.items()
    }


def main() -> None:
    """The command line: pre-train, save, probe."""
    parser = argparse.ArgumentParser(description="Pre-train t5_tiny on the captioned shapes.")
    parser.add_argument("--OUTPUT", type=Path, required=True, help="directory to write it to")
    parser.add_argument("--STEPS", type=int, default=STEPS, help="optimizer steps (%(default)s)")
    parser.add_argument("--SEED", type=int, default=0, help="of weights and corpus (%(default)s)")
    args = parser.parse_args()
    for step, loss in pretrain(args.OUTPUT, args.STEPS, args.SEED):
        if step % 100 == 0:
            print(f"step {step}: loss {loss:.3f}", flush=True)
    for name, accuracy in probe(load_text_encoder(str(args.OUTPUT))).items():
        print(f"{name}: {accuracy:.3f}")


if __name__ == "__main__":
    main()
