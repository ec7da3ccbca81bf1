"""The demo's crops and windows."""

import torch

from xent_metrics.demo.data import WINDOW, Crops, validation_loader
from xent_metrics.hosts.lm_eval.python_docs import documents


def test_crops_are_seeded_and_never_predict_bos():
    crops = Crops(50)
    inputs, targets = zip(*[crops[i] for i in range(50)], strict=True)
    assert torch.equal(torch.stack(inputs), torch.stack([Crops(50)[i][0] for i in range(50)]))
    assert not torch.equal(crops[0][0], Crops(50, seed=1)[0][0])
    begins = torch.stack(inputs)[:, 1:] == 256
    assert begins.any()
    assert torch.equal(torch.stack(targets)[:, :-1] == -100, begins)
    assert torch.equal(torch.stack(targets)[:, :-1][~begins], torch.stack(inputs)[:, 1:][~begins])


def test_validation_predicts_every_byte_of_the_held_out_documents_once():
    batches = list(validation_loader())
    predicted = torch.cat([target[target != -100] for _, target in batches])
    assert bytes(predicted.tolist()).decode() == "".join(documents("validation").values())
    assert {ids.shape[1] for ids, _ in batches} == {WINDOW}
