"""Score attributes that are given as words, with a CLIP model of `transformers`: no labels, no training.

The score of a word is how much nearer an image is to one text than to the opposite text. CLIP sees 224 pixels and knows
what it was trained on, so names from it are guesses, and a set records that (`Dial.named_by`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import UserError
from core.predictors.attributes import Attributes
from core.predictors.preprocessing import behind_processor

# Name -> (a text for more of it, a text for less). Faces first, since most unconditional models draw them.
WORDS = {
    "smile": ("a photo of a smiling face", "a photo of a serious face"),
    "age": ("a photo of an old person", "a photo of a young person"),
    "masculinity": ("a photo of a man", "a photo of a woman"),
    "glasses": ("a photo of a face with glasses", "a photo of a face without glasses"),
    "beard": ("a photo of a face with a beard", "a photo of a clean-shaven face"),
    "makeup": ("a photo of a face with makeup", "a photo of a face without makeup"),
    "open mouth": ("a photo of a face with an open mouth", "a photo of a face with a closed mouth"),
    "closed eyes": ("a photo of a face with closed eyes", "a photo of a face with open eyes"),
    "long hair": ("a photo of a person with long hair", "a photo of a person with short hair"),
    "blond hair": ("a photo of a person with blond hair", "a photo of a person with black hair"),
    "curly hair": ("a photo of a person with curly hair", "a photo of a person with straight hair"),
    "bald": ("a photo of a bald person", "a photo of a person with hair"),
    "pale skin": ("a photo of a person with pale skin", "a photo of a person with dark skin"),
    "hat": ("a photo of a person with a hat", "a photo of a person without a hat"),
    "turned head": ("a photo of a face from the side", "a photo of a face from the front"),
    "bright": ("a bright photo", "a dark photo"),
    "warm colours": ("a photo in warm colours", "a photo in cold colours"),
    "colourful": ("a colourful photo", "a grey photo"),
    "sharp": ("a sharp photo", "a blurred photo"),
    "close": ("a photo taken from near", "a photo taken from far away"),
    "cluttered background": ("a photo with a cluttered background", "a photo with a plain background"),
    "day": ("a photo taken by day", "a photo taken at night"),
    "snow": ("a photo with snow", "a photo without snow"),
    "trees": ("a photo with trees", "a photo without trees"),
    "windows": ("a photo of a building with many windows", "a photo of a building with few windows"),
}


def parse_words(text: str) -> dict[str, tuple[str, str]]:
    """Return name -> (text, opposite text) of words such as `smile, a red car|a blue car`.

    Words of WORDS have their texts; other words are compared with the text behind the bar, or with "a photo". Raises
    UserError where no word is given, or one twice.
    """
    words: dict[str, tuple[str, str]] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, opposite = map(str.strip, part.partition("|"))
        if not name or name in words:
            raise UserError(f"words: got '{part}'; allowed: different words, as in 'smile, a red car|a blue car'")
        words[name] = WORDS[name] if name in WORDS and not opposite else (name, opposite or "a photo")
    if not words:
        raise UserError("words: got none; allowed: one or more, as in 'smile, a red car|a blue car'")
    return words


def attributes(
    folder: Path, words: Mapping[str, tuple[str, str]] = WORDS, device: torch.device | str = "cpu"
) -> Attributes:
    """Return a predictor: images [N, 1 or 3, H, W] in [-1, 1] -> for each word the difference of two logits, [N, A].

    folder: of a CLIP model with its processor, safetensors only. For `score`, images become 8-bit pictures;
    `score_through` is None where core.predictors.preprocessing does not know the processor.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    options: Any = {"local_files_only": True, "trust_remote_code": False}
    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
    net: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
    net = net.to(device).eval().requires_grad_(False)
    texts = [text for pair in words.values() for text in pair]
    tokens = tokenizer(texts, return_tensors="pt", padding=True).to(device)

    def scores_of(**inputs: Tensor) -> Tensor:
        logits: Tensor = net(**tokens, **inputs).logits_per_image  # [N, 2 A]
        return logits[:, 0::2] - logits[:, 1::2]

    return Attributes(tuple(words), *behind_processor(processor, scores_of, device))
