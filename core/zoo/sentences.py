"""Sentences that name some factors of a face, as prompts, and the tokenizer and text encoder that read them.

Four of the nine factors can be named. The others are never named, so that they can be found in h-space.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from core.zoo import faces

# factor -> its words, for equal parts of its range from -1 to 1.
WORDS = {
    "hair_length": ("short", "long"),
    "hair_colour": ("dark", "brown", "blond"),
    "glasses": ("no glasses", "glasses"),
    "background": ("blue", "grey", "orange"),
}
MAX_TOKENS = 24
NAMED = 0.6  # probability that a sentence names a factor
UNPROMPTED = 0.12  # share of empty sentences in training: the unconditional part of classifier-free guidance
_OTHER_WORDS = ("a", "an", "face", "with", "hair", "background", "and", ",")
_WIDTH = 64
_END_OF_WORD = "</w>"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def word(factor: str, value: float) -> str:
    """Return the word for a value in [-1, 1] of a factor."""
    words = WORDS[factor]
    return words[min(int((value + 1) / 2 * len(words)), len(words) - 1)]


def sentence(words: dict[str, str]) -> str:
    """Return the sentence with these words, given by factor; "a face" without any.

    For example {"glasses": "no glasses", "hair_colour": "blond"} -> "a face with blond hair and no glasses".
    """
    hair = [words[factor] for factor in ("hair_length", "hair_colour") if factor in words]
    parts = [" ".join([*hair, "hair"])] if hair else []
    parts += [words["glasses"]] if "glasses" in words else []
    if "background" in words:
        article = "an" if words["background"][0] in "aeiou" else "a"
        parts.append(f"{article} {words['background']} background")
    if not parts:
        return "a face"
    return "a face with " + " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


def describe(factors: Tensor, generator: torch.Generator) -> list[str]:
    """Return a sentence for each face that names a random part of WORDS, or an empty one. factors: [N, 9]."""
    sentences = [sentence(words) for words in describe_words(factors, generator)]
    silent = torch.rand(len(factors), generator=generator) < UNPROMPTED
    return ["" if nothing else text for text, nothing in zip(sentences, silent.tolist(), strict=True)]


def describe_words(factors: Tensor, generator: torch.Generator) -> list[dict[str, str]]:
    """Return the words of a random part of WORDS for each face: factor -> word. factors: [N, 9]."""
    named = torch.rand(len(factors), len(WORDS), generator=generator) < NAMED
    columns = factors[:, [faces.FACTORS.index(factor) for factor in WORDS]]
    return [
        {factor: word(factor, value) for factor, value, use in zip(WORDS, row, uses, strict=True) if use}
        for row, uses in zip(columns.tolist(), named.tolist(), strict=True)
    ]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return (token ids, merges) of a byte-pair encoding with one token per word of our sentences.

    Other words become pieces, down to single letters.
    """
    words = sorted({part for words in WORDS.values() for name in words for part in name.split()} | set(_OTHER_WORDS))
    merges: list[tuple[str, str]] = []
    for text in words:
        while len(pieces := _pieces(text, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [","]
    tokens = [*_SPECIAL, *letters, *(letter + _END_OF_WORD for letter in letters), *("".join(pair) for pair in merges)]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


def _pieces(text: str, merges: list[tuple[str, str]]) -> list[str]:
    """Return the pieces of a word after the merges, first to last. The last piece carries the end-of-word mark."""
    pieces = [*text[:-1], text[-1] + _END_OF_WORD]
    for left, right in merges:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == (left, right):
                pieces[i : i + 2] = [left + right]
            i += 1
    return pieces


def make_tokenizer() -> Any:
    """Return the CLIP tokenizer of the vocabulary."""
    tokens, merges = vocabulary()
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=MAX_TOKENS)


def make_text_encoder(tokenizer: Any) -> Any:
    """Return an untrained CLIP text model of two layers: tokens [N, 24] -> states [N, 24, 64]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            projection_dim=_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokens_of(tokenizer: Any, sentences: list[str]) -> Tensor:
    """Return the token ids [N, 24] of sentences, padded as Stable Diffusion's pipeline pads them."""
    ids: Tensor = tokenizer(
        sentences, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
