"""Configurations name our classes by their short names, which jsonargparse takes only where one class has it."""

from collections.abc import Iterator

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

import llm_lightning.cli  # noqa: F401 (imports all that a configuration can name)

OURS = ("callbacks", "datamodules", "llm_lightning")


def subclasses(base: type) -> Iterator[type]:
    for each in base.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.mark.parametrize("base", [Callback, LightningModule, LightningDataModule, Logger, Strategy])
def test_no_class_of_ours_has_the_name_of_a_librarys(base):
    found = {each for each in subclasses(base) if not each.__module__.startswith("test")}
    ours = {each for each in found if each.__module__.split(".")[0] in OURS}
    assert ours
    assert not {each.__name__ for each in ours} & {each.__name__ for each in found - ours}
