"""Hub data sets as units: one for each shard, at a pinned revision."""

import contextlib
from pathlib import Path

from datamodules.cache import key_of
from datamodules.errors import DataError
from datamodules.sources.table_formats import hub_stream
from datamodules.sources.units import Unit
from llm_lightning_safety.seals import read_json, write_json


def hub_units(path: str, name: str | None, split: str, root: Path, look_again: bool = True) -> list[Unit]:
    """The shards of a hub data set.

    What was found is remembered, so that a data set that is already in the cache can be used without a network.

    Args:
        root: the cache's folder.
        look_again: False: what is remembered is good enough.

    Raises:
        DataError: the data set cannot be reached and was never seen, or has no such configuration or split.
    """
    memo = root / "hub" / f"{key_of(path, name, split)}.json"
    if not look_again:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return _remembered(memo)
    try:
        revision = _revision(path)
        stream = hub_stream(path, name, split, revision)
    except (DataError, OSError) as error:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return _remembered(memo)
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"path: {path!r} is not here, and the Hugging Face hub cannot be reached to look there"
        ) from error
    digest = f"{key_of(path, name, split)}@{revision}"
    units = [Unit(path, "hub", digest, shard, shard + 1, name=name, split=split) for shard in range(stream.num_shards)]
    write_json(memo, {"units": [vars(unit) for unit in units]})
    return units


def _remembered(memo: Path) -> list[Unit]:
    known = read_json(memo)
    return [Unit(**unit) for unit in (known["units"] if isinstance(known, dict) else known)]


def _revision(path: str) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().dataset_info(path).sha
    except HfHubHTTPError as error:
        raise DataError(f"path: {path!r} is no file or folder here and no data set on the Hugging Face hub") from error
