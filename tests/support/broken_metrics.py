"""Metrics that break one promise of the contract each, and what check_metric must say of them."""

from __future__ import annotations

import torch

from xent_metrics import RatioMetric, TokenMetric


class Broken(RatioMetric):
    """Sound as it stands; each subclass breaks one promise."""

    name = "broken"

    def __init__(self, power: float = 1.0, shift: int = 0, loud: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.power, self.shift, self.loud = power, shift, loud

    def per_token(self, scores):
        return scores.nll**self.power + self.shift


class NotATensor(Broken):
    def value(self, sums):
        return float(super().value(sums))


class NotAScalar(Broken):
    def value(self, sums):
        return super().value(sums)[None]


class Float32(Broken):
    def value(self, sums):
        return super().value(sums).float()


class NotFinite(Broken):
    def per_token(self, scores):
        return torch.log(1 - scores.confidence.ceil())


class StateInPython(Broken):
    total = 0

    def per_token(self, scores):
        self.total = self.total + float(scores.weighted(scores.nll).sum())
        return scores.nll

    def value(self, sums):
        return super().value(sums) * self.total


class CountsUpdates(Broken):
    def value(self, sums):
        return super().value(sums) / max(self.update_count, 1)


class MergesNothing(Broken):
    def merge_state(self, incoming_state):
        pass


class OrderDependent(Broken):
    def per_token(self, scores):
        return scores.nll * torch.arange(scores.num_rows).reshape(scores.nll.shape)


class BatchMean(Broken):
    def per_token(self, scores):
        return torch.ones_like(scores.nll) * scores.nll.mean()


class NonLinear(TokenMetric):
    name = "broken"

    def sums(self, scores):
        return {"nats": scores.weighted(scores.nll).sum() ** 2, "tokens": scores.weighted(scores.counted)}

    def value(self, sums):
        return sums["nats"] / sums["tokens"]


class ZeroForNothing(Broken):
    def value(self, sums):
        return super().value(sums).nan_to_num(0.0)


class RaisesForNothing(Broken):
    def value(self, sums):
        if sums[self.ratio_names()[1]] == 0:
            raise ZeroDivisionError("no tokens")
        return super().value(sums)


class CountsIgnored(TokenMetric):
    name = "broken"

    def sums(self, scores):
        return {"hits": scores.correct, "rows": torch.ones_like(scores.counted)}

    def value(self, sums):
        return sums["hits"] / sums["rows"]


class NanWhereIgnored(TokenMetric):
    name = "broken"

    def sums(self, scores):
        weight = scores.counted * (1.0 if scores.weight is None else scores.weight)
        return {"confidence": scores.confidence * weight, "tokens": scores.weighted(scores.counted)}

    def value(self, sums):
        return sums["confidence"] / sums["tokens"]


class OptionNotInName(Broken):
    def sum_names(self):
        return "powers", "rows"


class OneOptionNotInName(Broken):
    def sum_names(self):
        return f"{self.described('shift')}.numerator", "rows"


class AddressInName(Broken):
    def sum_names(self):
        return f"powers of {object.__repr__(type(self))}", "tokens"


class SpoilsTheScores(Broken):
    def per_token(self, scores):
        scores.confidence.zero_()
        return scores.nll


class OwnForward(Broken):
    def forward(self, scores):
        self.update(scores)
        return self.compute()


class NotPicklable(Broken):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.function = lambda value: value


class SharedWithCopies(Broken):
    cells = (torch.zeros(1),)

    def per_token(self, scores):
        self.cells[0].add_(1)
        return scores.nll

    def value(self, sums):
        return super().value(sums) * self.cells[0].double().squeeze()


class PersistentAlways(Broken):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("sums_so_far", torch.zeros(1))


class FloatBuffer(Broken):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("scale", torch.tensor(0.1), persistent=False)

    def per_token(self, scores):
        return scores.nll * self.scale.float()


class ReadsAValue(Broken):
    def per_token(self, scores):
        return scores.nll * (2 if scores.counted.any().item() else 1)


class MasksByBoolean(Broken):
    def per_token(self, scores):
        values = scores.nll.clone()
        values[scores.counted] = values[scores.counted] * 1
        return values


class CountsNan(Broken):
    def sums(self, scores):
        return {**super().sums(scores), "rows": scores.counted * 4.0}

    def value(self, sums):
        return sums[self.ratio_names()[0]] / sums["rows"]


class CopiesToTheHost(Broken):
    def per_token(self, scores):
        return scores.nll.cpu().to(scores.device)


class ConstantOnTheHost(Broken):
    table = torch.ones(11)

    def per_token(self, scores):
        return scores.nll * self.table[scores.target]


class NeedsMore(Broken):
    requires = frozenset({"moon_phase"})


#: What the error says after the metric's name, by promise.
BROKEN = {
    "ordinary scores give a finite 0-d float64. the value is a float": NotATensor,
    "ordinary scores give a finite 0-d float64. the value has shape": NotAScalar,
    "ordinary scores give a finite 0-d float64. the value is torch.float32": Float32,
    "ordinary scores give a finite 0-d float64. the value of ordinary": NotFinite,
    "the value is a function of the sums alone. the value of the sums alone": StateInPython,
    "the value is a function of the sums alone": SharedWithCopies,
    "any partition, order and merge tree gives the same bits. the sums of 1 shuffled": OrderDependent,
    "any partition, order and merge tree gives the same bits. the sums of": BatchMean,
    "any partition, order and merge tree gives the same bits. the sums of 2": NonLinear,
    "no rows change nothing and have the value nan. the value of no rows is 0.0": ZeroForNothing,
    "no rows change nothing and have the value nan. ZeroDivisionError": RaisesForNothing,
    "no rows change nothing and have the value nan. the value after an all-ignored batch": (
        CountsIgnored,
        CountsUpdates,
    ),
    "ignored rows don't matter. the sums with junk": NanWhereIgnored,
    "a row of nan makes the value nan, counts once, and nan_policy='omit' leaves it out of every sum. the": CountsNan,
    "sum names carry every option that changes what is added. option power changes": OptionNotInName,
    "sum names carry every option that changes what is added. option shift changes": OneOptionNotInName,
    "sum names carry every option that changes what is added. the sum name": AddressInName,
    "beside every registered metric, each keeps its value. the sums of": SpoilsTheScores,
    "forward gives the batch's value and accumulates": OwnForward,
    "copies are equal and independent. ": NotPicklable,
    "a state_dict brings the sums back, on request. sums are saved": PersistentAlways,
    "a change of dtype does no harm. what an update adds after .to(bfloat16)": FloatBuffer,
    "per-document sums merge to the same value. the value by merge_state": MergesNothing,
    "an update never waits for the device, and its tensors are buffers. DataDependentOutputException": ReadsAValue,
    "an update never waits for the device, and its tensors are buffers. DynamicOutputShapeException": MasksByBoolean,
    "an update never waits for the device, and its tensors are buffers. RuntimeError: a tensor is copied": CopiesToTheHost,
    "an update never waits for the device, and its tensors are buffers. Please convert": ConstantOnTheHost,
    "ordinary scores give a finite 0-d float64. MissingScoreError: broken needs `moon_phase`": NeedsMore,
}
