"""Fetch enwik8: the first 10^8 bytes of an English Wikipedia dump, a benchmark of byte models."""

import hashlib
import os
import tempfile
from pathlib import Path

from sparse_tx.data.compression import read_pieces
from sparse_tx.errors import UserError
from sparse_tx.files import remove_abandoned

BASE_URL = "http://mattmahoney.net/dc"

# Of the unpacked 100,000,000 bytes.
MD5 = "a1fa5ffddb56f4953e226637dabbb36a"

_UNFINISHED = "unfinished-enwik8-"

# Seconds without a sign of life from the server.
_TIMEOUT = 30


def fetch_enwik8(cache_dir: Path, *, base_url: str = BASE_URL, md5: str = MD5) -> Path:
    """Return the path of a checked ``enwik8.zip`` in ``cache_dir``; download it if it is not there.

    The download gets its name only once the md5 of its unpacked bytes is right, so that what has
    the name is good.

    Args:
        cache_dir: folder of downloads, made if need be.
        base_url: where ``enwik8.zip`` lies.
        md5: of the unpacked bytes, in hexadecimal.

    Raises:
        UserError: no download, not the right bytes, or no place to keep them; and the way out.
    """
    target = cache_dir / "enwik8.zip"
    if target.exists():
        return target
    import pooch

    url = f"{base_url.rstrip('/')}/enwik8.zip"
    by_hand = f"download {url} by hand and give the file as the source, --data enwik8.zip"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        remove_abandoned(cache_dir, f"{_UNFINISHED}*")
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=_UNFINISHED) as folder:
            download = Path(folder) / target.name
            with open(download, "wb") as file:
                # Not streamed, as pooch leaves the connection of a refused stream open.
                pooch.HTTPDownloader(timeout=_TIMEOUT, stream=False)(url, file, pooch=None)
            digest = hashlib.md5(usedforsecurity=False)
            try:
                for piece in read_pieces(download):
                    digest.update(piece)
            except UserError:
                raise UserError(
                    f"what {url} gave is no whole zip file; try again, or {by_hand}"
                ) from None
            if digest.hexdigest() != md5:
                raise UserError(
                    f"what {url} gave unpacks to md5 {digest.hexdigest()} and not to {md5}, so it"
                    f" is not enwik8; try again, or {by_hand}"
                )
            os.replace(download, target)
    except OSError as error:  # of the network and of the disk alike
        raise UserError(f"enwik8 could not be downloaded ({error}); {by_hand}") from None
    return target
