"""What `pytest --xent-plugin emd` builds the metric with."""

import pytest
import torch


@pytest.hookimpl(optionalhook=True)  # unknown where xent-metrics' plugin of pytest isn't loaded
def pytest_xent_options(metric):
    return {"embeddings": torch.eye(11)} if metric == "embedding_distance" else None
