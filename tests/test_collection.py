"""TokenMetricCollection: one scoring pass, the same values as single metrics, and nothing half done."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from jsonargparse import ArgumentParser
from support.metric_kinds import TABLE
from torchmetrics import MetricCollection

from xent_metrics import (
    BitsPerByte,
    CrossEntropy,
    ExtraScore,
    Perplexity,
    RatioMetric,
    StandardError,
    TokenMetricCollection,
    get_metric,
    score_tokens,
)
from xent_metrics.errors import (
    InvalidInputError,
    InvalidTargetError,
    MetricOptionError,
    MissingScoreError,
    UnknownMetricError,
)
from xent_metrics.sums import exact_sum
from xent_metrics.sums import metric as metric_module

NAMES = [
    "cross_entropy",
    "perplexity",
    "token_accuracy",
    "expected_calibration_error",
    "calibration_weighted_cross_entropy",
]


def members():
    return {
        **{name: name for name in NAMES},
        "bits_per_byte": BitsPerByte(token_bytes=TABLE),
        "smoothed": CrossEntropy(label_smoothing=0.1),
        "weighted": CrossEntropy(class_weight=torch.arange(13) / 12),
        "without_3": CrossEntropy(ignore_index=3),
        "accuracy_without_3": "token_accuracy",
    }


@pytest.fixture
def collection():
    return TokenMetricCollection(members())


@pytest.fixture
def targets(batch):
    """Targets that every member takes, whatever it ignores."""
    return batch[0], batch[1].clamp(min=0)


@pytest.fixture
def passes(monkeypatch):
    """The scoring passes that are made, each by its options."""
    calls = []

    def counted(*args, **options):
        calls.append({k: v for k, v in options.items() if v is not None and k != "extra_scores"})
        return score_tokens(*args, **options)

    monkeypatch.setattr(metric_module, "score_tokens", counted)
    return calls


def alone(collection, *batches, **options):
    values = {}
    for key, metric in collection.members().items():
        metric = metric.clone()
        metric.reset()
        for batch in batches:
            metric.update(*batch, **options)
        values[key] = metric.compute()
    return values


def assert_equal(got, want):
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize("weight", [None, torch.arange(24.0).view(3, 8)], ids=["plain", "weighted"])
def test_values_are_those_of_the_metrics_alone(weight, collection, targets):
    batches = [targets, (2 * targets[0], targets[1])]
    for batch in batches:
        collection.update(*batch, weight=weight)
    assert_equal(collection.compute(), alone(collection, *batches, weight=weight))


def test_one_pass_scores_for_all(passes, batch):
    collection = TokenMetricCollection([*NAMES, BitsPerByte(token_bytes=TABLE)])
    collection.update(*batch)
    assert len(passes) == 1
    collection(*batch)
    assert len(passes) == 2


def test_members_that_score_otherwise_have_a_pass_of_their_own(passes, collection, targets):
    collection.update(*targets)
    assert len(passes) == 3
    assert [p["ignore_index"] for p in passes] == [-100, -100, 3]
    assert sum("class_weight" in p for p in passes) == 1


def test_each_sum_is_taken_once(monkeypatch, batch):
    taken = []

    def counted(function):
        return lambda values, *args: (taken.append(len(values)), function(values, *args))[1]

    for name in ("exact_sums", "exact_sums_by_bin"):
        monkeypatch.setattr(exact_sum, name, counted(getattr(exact_sum, name)))
    collection = TokenMetricCollection([
        "cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error", "maximum_calibration_error",
    ])  # fmt: skip
    taken.clear()
    collection.update(*batch)
    # nats, tokens, correct, three counts; tokens, correct and confidence by bin, together
    assert taken == [6, 3]


def test_scores_made_once_serve_it_and_single_metrics(passes, batch):
    collection, single = TokenMetricCollection(NAMES), CrossEntropy()
    scores = score_tokens(*batch)
    collection.update(scores)
    single.update(scores)
    assert passes == []
    assert torch.equal(collection.compute()["cross_entropy"], single.compute())
    with pytest.raises(InvalidInputError, match="pass it alone"):
        collection.update(scores, batch[1])


def test_forward_gives_the_batch_and_adds_it(collection, targets):
    other = (3 * targets[0], targets[1])
    assert_equal(collection(*targets), alone(collection, targets))
    assert_equal(collection(*other), alone(collection, other))
    assert_equal(collection.compute(), alone(collection, targets, other))


def test_prefix_postfix_and_keys(batch):
    collection = TokenMetricCollection(["perplexity", "cross_entropy"], prefix="val/", postfix="_all")
    want = {"val/cross_entropy_all", "val/perplexity_all"}
    assert collection(*batch).keys() == collection.compute().keys() == want
    assert collection.clone(prefix="test/").compute().keys() == {"test/cross_entropy_all", "test/perplexity_all"}
    assert collection.compute().keys() == want
    assert collection.members().keys() == {"cross_entropy", "perplexity"}
    own = TokenMetricCollection({"a": "cross_entropy", "b": CrossEntropy(unit="bits")})
    own.update(*batch)
    assert own.compute().keys() == {"a", "b"}
    assert list(TokenMetricCollection("perplexity").members()) == ["perplexity"]
    assert list(TokenMetricCollection(Perplexity()).members()) == ["perplexity"]


@pytest.mark.parametrize(
    "copied",
    [lambda c: c.clone(), copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],
    ids=["clone", "deepcopy", "pickle"],
)
def test_copies_are_equal_and_independent(copied, collection, targets):
    collection.update(*targets)
    before = collection.compute()
    other = copied(collection)
    assert_equal(other.compute(), before)
    other.update(2 * targets[0], targets[1])
    assert_equal(collection.compute(), before)
    assert not torch.equal(other.compute()["cross_entropy"], before["cross_entropy"])
    other.reset()
    assert_equal(collection.compute(), before)


def test_a_state_dict_brings_everything_back(collection, targets, tmp_path):
    collection.update(*targets)
    assert not [key for key in collection.state_dict() if "sums_" in key]
    collection.persistent(True)
    torch.save(collection.state_dict(), tmp_path / "sums.pt")
    other = TokenMetricCollection(members())
    other.load_state_dict(torch.load(tmp_path / "sums.pt", weights_only=True))
    assert_equal(other.compute(), collection.compute())
    other.update(*targets)
    assert_equal(collection.compute(), alone(collection, targets))


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_a_change_of_dtype_does_no_harm(cast, collection, targets):
    collection.update(*targets)
    want = collection.compute()
    parent = torch.nn.Module()
    parent.metrics = collection
    cast(parent)
    cast(collection)
    collection.set_dtype(torch.float16)
    assert_equal(collection.compute(), want)
    collection.update(*targets)
    assert_equal(collection.compute(), alone(TokenMetricCollection(members()), targets, targets))


def test_members_are_metrics_of_their_own(collection, targets):
    collection.update(*targets)
    want = collection.compute()
    collection["cross_entropy"].reset()
    assert collection["cross_entropy"].counts()["counted"] == 0
    got = collection.compute()
    assert got.pop("cross_entropy").isnan()
    want.pop("cross_entropy")
    assert_equal(got, want)


def test_no_member_takes_anothers_state_however_alike_first_batches_look(targets):
    collection = TokenMetricCollection(members())
    collection.update(torch.zeros(0, 13), torch.zeros(0, dtype=torch.long))
    collection.update(*targets)
    assert_equal(
        collection.compute(), alone(collection, (torch.zeros(0, 13), torch.zeros(0, dtype=torch.long)), targets)
    )


@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda x, y: (x, y[:, :-1]), InvalidInputError),
        (lambda x, y: (x[..., :12], y), InvalidInputError),  # the byte table fits, the class weights don't
        (lambda x, y: (torch.cat([x, x], -1), y), InvalidInputError),  # the byte table is too short
        (lambda x, y: (score_tokens(x, y),), MissingScoreError),  # a later member needs the training loss
        (lambda x, y: (x,), InvalidInputError),
    ],
    ids=["shape", "few classes", "many classes", "missing score", "no target"],
)
def test_a_bad_batch_changes_no_member(spoil, error, call, collection, targets):
    collection.update(*targets)
    before = collection.compute()
    with pytest.raises(error):
        getattr(collection, call)(*spoil(*targets))
    assert_equal(collection.compute(), before)


def test_targets_out_of_range_are_named_in_compute_and_nothing_is_lost(targets):
    collection = TokenMetricCollection(NAMES)
    collection.update(*targets)
    want = collection.compute()
    collection.update(targets[0], torch.full_like(targets[1], 13))
    with pytest.raises(InvalidTargetError, match="24 targets were neither a class"):
        collection.compute()
    assert_equal(collection.compute(nan_policy="omit"), want)


def test_a_metric_under_two_keys_is_updated_once(batch):
    metric, alone = CrossEntropy(), CrossEntropy()
    collection = TokenMetricCollection({"one": metric, "other": metric, "third": "perplexity"})
    alone.update(*batch)
    collection.update(*batch)
    assert torch.equal(metric.state, alone.state)
    alone.update(*batch)
    batch_values = collection(*batch)
    assert torch.equal(metric.state, alone.state)
    values = collection.compute()
    assert batch_values["one"] == batch_values["other"] == values["one"] == values["other"] == alone.compute()
    with collection.sync_context():
        assert torch.equal(metric.state, alone.state)


def test_members_can_be_added_later(passes, batch):
    collection = TokenMetricCollection(["cross_entropy"])
    collection.add_metrics(["token_accuracy"])
    collection.add_metrics({"bits": CrossEntropy(unit="bits")})
    collection.update(*batch)
    assert len(passes) == 1
    assert_equal(collection.compute(), alone(collection, batch))


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ([], MetricOptionError, "needs at least one metric; got none"),
        ({}, MetricOptionError, "needs at least one metric; got none"),
        (
            ["perplexity", Perplexity()],
            MetricOptionError,
            "perplexity is in the list twice; give a dict with a key for",
        ),
        ({"a.b": "perplexity"}, MetricOptionError, r"a key is a string without a dot .* got 'a\.b'"),
        ({"": "perplexity"}, MetricOptionError, "a key is a string without a dot"),
        ({3: "perplexity"}, MetricOptionError, "a key is a string without a dot .* got 3"),
        ({"update": "perplexity"}, MetricOptionError, "no method of the collection; got 'update'"),
        (["ppl"], UnknownMetricError, r"unknown metric 'ppl'\. Did you mean 'perplexity'"),
        ([CrossEntropy], InvalidInputError, r"got the class CrossEntropy\. Write CrossEntropy\(\)"),
        (
            [torch.nn.Linear(1, 1)],
            InvalidInputError,
            r"got Linear\. torchmetrics' own metrics go into a torchmetrics\.Metr",
        ),
    ],
)
def test_what_cannot_be_collected_says_why(metrics, error, message):
    with pytest.raises(error, match=message):
        TokenMetricCollection(metrics)


def test_an_entry_may_be_a_dict_with_options_as_elsewhere():
    listed = TokenMetricCollection(
        [{"metric": "cross_entropy", "unit": "bits", "name": "bits"}, {"metric": "token_accuracy"}, "perplexity"]
    )
    assert set(listed.members()) == {"bits", "token_accuracy", "perplexity"}
    assert listed.members()["bits"].unit == "bits"
    keyed = TokenMetricCollection({"bits": {"metric": "cross_entropy", "unit": "bits"}})
    assert keyed.members()["bits"].unit == "bits"
    with pytest.raises(MetricOptionError, match="Did you mean 'unit'"):
        TokenMetricCollection([{"metric": "cross_entropy", "units": "bits"}])


class Doubled(RatioMetric):
    """A plugin's metric that gives its own terms the names of cross entropy's sums."""

    name = "doubled"

    def sum_names(self):
        return "nats", "tokens"

    def per_token(self, scores):
        return 2 * scores.nll


class Tripled(Doubled):
    name = "tripled"

    def sums(self, scores):
        return {"nats": 3 * scores.weighted(scores.nll), "tokens": scores.weighted(scores.counted)}


COLLIDING = [
    CrossEntropy,
    Perplexity,
    Doubled,
    Tripled,
    lambda: StandardError(Doubled()),
    lambda: StandardError("cross_entropy"),
]


@pytest.mark.parametrize("order", itertools.permutations(range(len(COLLIDING)), 3), ids=str)
def test_a_sum_is_more_than_its_name(order, batch):
    """Whatever stands beside it, a metric keeps its value: updated together, by forward, and from shared scores."""
    made = {str(place): COLLIDING[place]() for place in order}
    alone = {}
    for key, metric in made.items():
        copied = copy.deepcopy(metric)
        copied.update(*batch)
        alone[key] = copied.compute()
    for add in ("update", "forward"):
        together = TokenMetricCollection(copy.deepcopy(made))
        getattr(together, add)(*batch)
        assert_equal(together.compute(), alone)
    scores = score_tokens(*batch)
    for key, metric in made.items():
        metric.update(scores)
        assert torch.equal(metric.compute(), alone[key])


def test_torchmetrics_own_collection_does_not_merge_them_either(batch):
    metrics = MetricCollection([CrossEntropy(), Doubled()], compute_groups=True)
    target = torch.full_like(batch[1], -100)  # the first values agree: there are none
    metrics.update(batch[0], target)
    metrics.update(*batch)
    values = metrics.compute()
    assert values["Doubled"] == pytest.approx(2 * float(values["CrossEntropy"]), rel=1e-12)


def test_extra_scores_of_one_name_and_two_meanings_take_two_passes(batch, passes):
    class Wrong(RatioMetric):
        name = "wrong_rank"

        def extra_scores(self):
            return {"target_rank": ExtraScore(lambda logits, index: torch.full_like(index, 7), of="logits")}

        def per_token(self, scores):
            return scores.extra_scores["target_rank"].double()

    for members in itertools.permutations(["mean_reciprocal_rank", Wrong(), "top_k_accuracy"]):
        together = TokenMetricCollection([copy.deepcopy(member) for member in members])
        passes.clear()
        together.update(*batch)
        assert len(passes) == 2
        values = together.compute()
        assert values["wrong_rank"] == 7
        for name in ("mean_reciprocal_rank", "top_k_accuracy"):
            metric = get_metric(name)
            metric.update(*batch)
            assert values[name] == metric.compute()


def test_a_configuration_file_may_list_names_and_dicts():
    """As LightningCLI reads it: by the annotation."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metrics", type=TokenMetricCollection)
    listed = ["perplexity", {"metric": "cross_entropy", "unit": "bits", "name": "bits"}]
    for given in (listed, {"a": "perplexity", "b": listed[1]}, "perplexity"):
        config = {"class_path": "xent_metrics.TokenMetricCollection", "init_args": {"metrics": given, "prefix": "val/"}}
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its older name
        made = instantiate(parser.parse_object({"metrics": config})).metrics
        assert repr(made) == repr(TokenMetricCollection(given, prefix="val/"))
