"""Open picture files that may come from anyone. torch is not imported, so that pages are made without it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from core.errors import UserError, first_line

# Only these decoders may read a file, whatever its name ends in: the file may come from anyone.
_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
_KNOWN = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
MAX_PIXELS = 1 << 26  # of one picture; a file of a few bytes can declare billions


@contextmanager
def open_picture(path: Path, what: str) -> Iterator[Image.Image]:
    """Open a picture of at most MAX_PIXELS pixels without decoding it.

    what: the first word of error messages. Raises UserError where the picture cannot be opened, is too large, or cannot
    be decoded inside the `with` block.
    """
    if not path.is_file():  # this also excludes pipes, from which reading may never return
        raise UserError(f"{what}: {path} is not there")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield picture
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{what}: {path} is larger than {MAX_PIXELS} pixels; save it smaller") from None
    except UnidentifiedImageError:
        raise UserError(f"{what}: {path} cannot be read as a picture (it is no {_KNOWN})") from None
    except (OSError, SyntaxError, ValueError) as error:  # what PIL's decoders raise
        raise UserError(f"{what}: {path} cannot be read as a picture ({first_line(error)})") from error
