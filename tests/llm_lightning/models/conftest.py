"""The folder of a tiny network to put adapters on."""

import pytest
import torch

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from tests.llm_lightning.conftest import tiny_config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    save_model_folder(Backbone(config=tiny_config()).build(), None, folder)
    return folder
