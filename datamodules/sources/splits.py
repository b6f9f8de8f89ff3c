"""Which files are for training, for validation and for testing, by the names that the Hugging Face hub goes by.

The words, and where they may stand in a name, are those of `datasets` 5 (`datasets.data_files`), which is not imported
here: it takes seconds. Upper and lower case count as the same, unlike there.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

TRAIN, VALIDATION, TEST = "train", "validation", "test"
ALL = "all"
"""Every file, whatever split its name tells."""
UNNAMED = ""
"""The split of files whose name tells none."""
BESIDE = "no split"
"""That of files which lie beside those that are named as `datasets` names them."""

WORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "dev", "val"),
    TEST: ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in WORDS.items() for word in words}
_WORD = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(_SPLIT_OF_WORD)})(?=[-._ 0-9]|$)", re.IGNORECASE)
_SHARD = re.compile(r"(?:.*/)?data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")

SAVED = "dataset_dict.json"
"""`datasets.DatasetDict.save_to_disk` leaves it in a folder that has a folder for each split."""


def splits_of(files: Sequence[str], base: Path) -> dict[str, list[str]]:
    """The files by split, in their order: `train`, `validation`, `test`, a set's own splits, and `UNNAMED` or `BESIDE`.

    Where files are called `data/SPLIT-00000-of-00001.EXT`, or the folder was saved by `datasets`, the split is what
    stands there, such as `train_sft`; a split is one of the three by another word (`dev`) or with an addition
    (`test_sft`) where it is the only one such. Else a folder's name tells the split of all that lies in it, and only
    outside of such folders a file's own name counts.
    """
    relative = {file: Path(file).relative_to(base).as_posix() for file in files}
    if (base / SAVED).exists():
        named = {file: PurePath(name).parts[0] for file, name in relative.items() if "/" in name}
    else:
        shards = {file: _SHARD.fullmatch(name) for file, name in relative.items()}
        named = {file: shard[1] for file, shard in shards.items() if shard}
    splits: dict[str, list[str]] = {}
    for file in files:
        split = named.get(file, BESIDE) if named else _by_words(PurePath(relative[file]))
        splits.setdefault(split, []).append(file)
    for split in WORDS if named else ():
        alike = [name for name in splits if _split_of(name) == split]
        if split not in splits and len(alike) == 1:
            splits[split] = splits.pop(alike[0])
    return splits


def _by_words(path: PurePath) -> str:
    folders = (_split_of(folder) for folder in path.parts[:-1])
    return next(filter(None, folders), None) or _split_of(path.name)


def _split_of(name: str) -> str:
    word = _WORD.search(name)
    return _SPLIT_OF_WORD[word[1].lower()] if word else UNNAMED
