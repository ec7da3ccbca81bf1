"""The masks of trees: every id sees its own window, and blocks that nobody sees are skipped."""

from __future__ import annotations

import pytest
import torch
from support.hf_model import VOCAB, choices, switched_off, tiny_model
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward
from xent_metrics.hosts.lm_eval.models.masks import Trees
from xent_metrics.hosts.lm_eval.models.packing import Row, after
from xent_metrics.hosts.lm_eval.models.windows import Window


def rows(prefix, sizes):
    """Rows after a prefix, each with two levels of branches of the given sizes."""
    generator = torch.Generator().manual_seed(len(sizes))

    def ids(count):
        return tuple(torch.randint(VOCAB, (count,), generator=generator).tolist())

    begin, made = ids(prefix), []
    for size in sizes:
        question = ids(size)
        answers = [ids(size // 2), ids(size)]
        windows = [Window((*begin, *question, *answer, *ids(5)), (1, 2)) for answer in answers for _ in range(2)]
        made += after(prefix, windows, packing=True).rows
    return made


def trees(given):
    forward = HFForward(tiny_model("llama_tied"), device=torch.device("cpu"))
    return forward._trees(given)


def expected(given, window):
    """The mask by the definition, from the rows' own: the prefix is seen by all, and padding sees itself."""
    prefix, length = given[0].prefix, max(map(len, given))
    found = torch.zeros(len(given), 1, length, prefix + length, dtype=torch.bool)
    found[..., :prefix] = True
    for i, row in enumerate(given):
        found[i, 0, :, prefix:] = torch.eye(length, dtype=torch.bool)
        found[i, 0, : len(row), prefix : prefix + len(row)] = row.sees()
        depths = torch.tensor(row.depths + [0] * (length - len(row)))
        near = depths[:, None] - torch.cat([torch.arange(prefix), depths]) < (window or 10**6)
        found[i, 0] &= near
    return found


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("prefix", [0, 5, 200])
def test_each_id_sees_its_window_and_the_prefix(prefix, window):
    given = rows(prefix, [120, 30, 61])
    assert not all(row.is_chain for row in given)
    assert torch.equal(trees(given).dense(window), expected(given, window))


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("prefix", [0, 128, 300])
def test_no_block_is_skipped_that_is_seen_or_taken_whole_that_is_not(prefix, window):
    made = trees(rows(prefix, [300, 30, 161]))
    batch, keys = made.ends.shape
    found = made.blocks(window)
    wanted = create_block_mask(made.sees(window), batch, None, keys - prefix, keys, device="cpu")
    seen, full = wanted.to_dense() > 0, whole(wanted)
    assert found.shape == wanted.shape
    assert ((found.to_dense() > 0) | ~seen).all()
    assert (full | ~whole(found)).all()
    if window is None:
        assert torch.equal(whole(found), full)
        assert not (found.to_dense() > 0).all()  # some are skipped


def whole(mask):
    """The blocks that are taken without asking the mask."""
    _, _, queries, keys = mask.kv_indices.shape
    chosen = torch.arange(keys) < mask.full_kv_num_blocks[..., None]
    return torch.zeros(len(chosen), 1, queries, keys, dtype=torch.bool).scatter(-1, mask.full_kv_indices.long(), chosen)


@pytest.mark.parametrize("name", ["llama_tied", "gemma2", "gemma3", "mistral_window"])
def test_flex_attention_gets_blocks_and_gives_the_same_scores(name, tokenizer, monkeypatch):
    model = tiny_model(name)
    model.set_attn_implementation("eager")  # the default of older transformers for Gemma 2 leaves out its softcap
    answers = choices(XentHFLM(pretrained=model, tokenizer=tokenizer, batch_size=4))
    given, blocks = [], Trees.blocks
    monkeypatch.setattr(Trees, "blocks", lambda *args: given.append(blocks(*args)) or given[-1])
    monkeypatch.setattr(Trees, "dense", lambda *args: pytest.fail("a dense mask was made"))
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):  # compiling takes a minute on a CPU
        lm = XentHFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
        found = choices(lm)
    assert switched_off(lm) == set()
    assert all(isinstance(mask, BlockMask) for mask in given)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in answers], rel=1e-5)


def test_a_row_without_branches_is_causal():
    row = Row()
    row.add(0, Window((1, 2, 3), (4,)))
    assert row.ends() == [3, 3, 3]
    assert torch.equal(trees([row]).dense()[0, 0], torch.ones(3, 3, dtype=torch.bool).tril())
