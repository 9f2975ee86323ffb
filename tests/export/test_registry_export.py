"""An exported release in the hands of others: transformers with peft computes what the adapter says."""

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.weights import read_weights
from fleetdraft.export.merged import write_merged
from fleetdraft.server.registry.catalogue import Catalogue
from fleetdraft.server.registry.export import export
from fleetdraft.server.registry.registry import Registry

TOKENS = torch.tensor([[1, 5, 9, 200, 30, 7]])


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(TOKENS).logits.numpy()


@pytest.mark.filterwarnings("ignore")  # of transformers and peft about each other
def test_peft_loads_an_exported_release_by_the_base_it_names(tiny_model, random_adapter, tmp_path) -> None:
    model = tiny_model()
    shape = DecoderShape.from_directory(model)
    layout = LoraLayout(rank=4, alpha=8.0, shape=shape)
    with Registry(tmp_path / "registry", layout, "base") as registry:
        registry.begin(layout.initial(seed=0))
        adapter = random_adapter(layout)
        registry.write(adapter, round=1, rule="fedit", participants=(), rejected={}, families={}, carried=b"moments")
    catalogue = Catalogue(tmp_path / "registry")
    export(catalogue, catalogue.find(1), tmp_path / "out", base_model=str(model))
    write_merged(tmp_path / "merged", adapter.merged(read_weights(model, shape)), model, "fp32", {})
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert np.abs(expected - logits(AutoModelForCausalLM.from_pretrained(model))).max() > 0.02
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(logits(loaded), expected, atol=2e-4)
