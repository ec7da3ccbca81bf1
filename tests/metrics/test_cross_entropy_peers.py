"""Our losses agree with those of torch, Keras (on torch) and, if installed, TensorFlow and JAX to 1e-6 on random inputs.

Their means are over one batch, so ours is given one batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xent_metrics import CrossEntropy, TokenAccuracy
from xent_metrics.metrics import BinaryCrossEntropy, TopKAccuracy

ROWS, CLASSES = 64, 11


@pytest.fixture(scope="session")
def keras(tmp_path_factory):
    """Keras 3 on torch, with its configuration file outside of the home folder."""
    os.environ["KERAS_BACKEND"] = "torch"
    os.environ["KERAS_HOME"] = str(tmp_path_factory.mktemp("keras"))
    import keras

    assert keras.backend.backend() == "torch"
    return keras


@pytest.fixture
def rows():
    return 3 * torch.randn(ROWS, CLASSES), torch.randint(CLASSES, (ROWS,))


@pytest.fixture
def binary_rows():
    return 3 * torch.randn(ROWS), torch.randint(2, (ROWS,))


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute().item()


def close(number):
    return pytest.approx(float(number), rel=1e-6)


class TestTorch:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_cross_entropy_loss(self, rows, smoothing, weighted):
        logits, target = rows
        target[::5] = -100
        weight = torch.rand(CLASSES) if weighted else None
        theirs = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)
        ours = CrossEntropy(class_weight=weight, label_smoothing=smoothing)
        assert value(ours, logits, target) == close(theirs(logits, target))

    def test_soft_targets(self, rows):
        logits, soft = rows[0], torch.rand(ROWS, CLASSES).softmax(-1)
        assert value(CrossEntropy(), logits, soft) == close(nn.CrossEntropyLoss()(logits, soft))

    def test_binary_losses(self, binary_rows):
        logits, target = binary_rows
        assert value(BinaryCrossEntropy(), logits, target) == close(nn.BCEWithLogitsLoss()(logits, target.float()))
        prob = logits.sigmoid()
        assert value(BinaryCrossEntropy(from_logits=False), prob, target) == close(nn.BCELoss()(prob, target.float()))

    def test_nll_loss_of_log_probabilities(self, rows):
        logits, target = rows
        assert value(CrossEntropy(), logits.log_softmax(-1), target) == close(
            F.nll_loss(logits.log_softmax(-1), target)
        )


class TestKeras:
    def test_sparse_categorical_cross_entropy(self, keras, rows):
        logits, target = rows
        theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        assert value(CrossEntropy(), logits, target) == close(theirs(target, logits))
        theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=3)
        assert value(CrossEntropy(ignore_index=3), logits, target) == close(theirs(target, logits))

    def test_categorical_cross_entropy_with_label_smoothing(self, keras, rows):
        logits, target = rows
        theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
        found = value(CrossEntropy(label_smoothing=0.1), logits, target)
        assert found == close(theirs(F.one_hot(target, CLASSES).float(), logits))

    def test_sample_weights_are_ours_but_for_what_they_are_divided_by(self, keras, rows):
        logits, target = rows
        weight = torch.rand(ROWS)
        theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        found = value(CrossEntropy(), logits, target, weight=weight) * weight.double().sum().item()
        assert found == close(theirs(target, logits, sample_weight=weight))

    def test_binary_cross_entropy(self, keras, binary_rows):
        logits, target = binary_rows
        theirs = keras.losses.BinaryCrossentropy(from_logits=True)
        assert value(BinaryCrossEntropy(), logits, target) == close(theirs(target[:, None], logits[:, None]))
        prob = logits.clamp(-4, 4).sigmoid()  # Keras clips probabilities at 1e-7
        theirs = keras.losses.BinaryCrossentropy()
        assert value(BinaryCrossEntropy(from_logits=False), prob, target) == close(
            theirs(target[:, None], prob[:, None])
        )

    def test_metrics_over_several_batches(self, keras):
        ours = [CrossEntropy(), TokenAccuracy(), TopKAccuracy(k=3)]
        theirs = [
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True),
            keras.metrics.SparseCategoricalAccuracy(),
            keras.metrics.SparseTopKCategoricalAccuracy(k=3),
        ]
        for size in (5, 40, 19):
            logits, target = 3 * torch.randn(size, CLASSES), torch.randint(CLASSES, (size,))
            for our, their in zip(ours, theirs, strict=True):
                our.update(logits, target)
                their.update_state(target, logits)
        for our, their in zip(ours, theirs, strict=True):
            assert our.compute().item() == close(their.result())


@pytest.fixture
def tensorflow():
    return pytest.importorskip(
        "tensorflow",
        reason="TensorFlow is no dependency; Keras' loss and DLPack arrays (test_inputs.py) stand in for it",
    )


#: Runs in another process: Keras has one backend per process, and here it is torch.
_TENSORFLOWS_LOSS = """
import json, sys
import tensorflow as tf
logits, target = json.load(sys.stdin)
loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
print(float(loss(tf.constant(target), tf.constant(logits))))
"""


class TestTensorFlow:
    def test_sparse_categorical_cross_entropy(self, tensorflow, rows):
        given = json.dumps([tensor.tolist() for tensor in rows])
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
        found = subprocess.run(
            [sys.executable, "-c", _TENSORFLOWS_LOSS],
            input=given, capture_output=True, text=True, env=environment, check=True,
        )  # fmt: skip
        assert value(CrossEntropy(), *rows) == close(float(found.stdout))

    def test_its_tensors_are_taken_as_they_are(self, tensorflow, rows):
        logits, target = (tensorflow.constant(tensor.numpy()) for tensor in rows)
        assert value(CrossEntropy(), logits, target) == value(CrossEntropy(), *rows)


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="JAX is no dependency; DLPack arrays (test_inputs.py) stand in for it")


class TestJAX:
    def test_its_arrays_are_taken_as_they_are(self, jax, rows):
        logits, target = (jax.numpy.asarray(tensor.numpy()) for tensor in rows)
        assert value(CrossEntropy(), logits, target) == value(CrossEntropy(), *rows)
        half = logits.astype(jax.numpy.bfloat16)
        assert value(CrossEntropy(), half, target) == value(CrossEntropy(), rows[0].bfloat16(), rows[1])
