"""The quality benchmark's tasks are what they claim, its controls read what they say, and it resumes."""

import random
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from flows.commands.bench import bench
from pipelines.benchmarks.quality import controls, listops, mqar, planted
from pipelines.benchmarks.quality.results import Key, Results, digest, table
from sparse_model.config import Budget
from sparse_model.model import SparseEncoder


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),  # the example of Nangia and Bowman (2018), who introduced the task
        ("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]", 5),  # the example of Tay et al. (2020)
        ("[SM 9 9 [SM 5 5 ] ]", 8),
        ("[MED 1 4 ]", 2),  # 2.5, rounded down as in the published generator
        ("7", 7),
    ],
)
def test_listops_expressions_have_their_published_values(expression: str, value: int) -> None:
    assert listops.evaluate(expression.split()) == value


def test_listops_keeps_to_the_specification() -> None:
    source = random.Random(0)
    for _ in range(30):
        tokens, value = listops.expression(source)
        assert 500 < len(tokens) < 2000
        assert listops.evaluate(tokens) == value
        assert 0 <= value <= 9
        depth, arguments = 0, [0]
        for token in tokens:
            if token == "]":
                assert 2 <= arguments.pop() <= 10
            else:
                arguments[-1] += 1
                if token in listops.OPERATORS:
                    arguments.append(0)
            depth = max(depth, len(arguments) - 1)
        assert depth <= 9  # operations; the values below them are the tenth level


def test_listops_batches_are_whole_expressions_of_similar_length() -> None:
    codes, values = listops.make(seed=3, count=12)
    drawn = listops.sampler(codes, values)(4, 0, torch.Generator().manual_seed(0))
    assert drawn.lengths_B is not None
    assert drawn.categorical_BNC.shape[1] == int(drawn.lengths_B.max())
    for row, length in enumerate(drawn.lengths_B.tolist()):
        answer, *tokens = (listops.TOKENS[code] for code in drawn.categorical_BNC[row, :length, 0].tolist())
        assert answer == "<answer>"
        assert listops.evaluate(tokens) == int(drawn.labels_BA[row, 0])


@pytest.mark.parametrize("num_steps", [256, 4096, 16384])
def test_mqar_asks_for_values_of_keys_from_a_vocabulary_larger_than_the_sequence(num_steps: int) -> None:
    vocabulary = mqar.vocabulary_for((num_steps,))
    assert vocabulary > num_steps
    drawn = mqar.batch(2, num_steps, torch.Generator().manual_seed(1), vocabulary)
    tokens_BN, pairs = drawn.categorical_BNC[..., 0], num_steps // mqar.STEPS_PER_PAIR
    assert tokens_BN.max() < vocabulary
    assert drawn.asked_BA.min() >= 2 * pairs
    for tokens, asked, labels in zip(
        tokens_BN.tolist(), drawn.asked_BA.tolist(), drawn.labels_BA, strict=True
    ):
        value_of = dict(zip(tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        assert len(value_of) == pairs == len(set(asked))
        answers = [value_of[tokens[step]] - vocabulary // 2 for step in asked]
        assert answers == labels.tolist()


def test_planted_answers_can_be_found_by_comparing_keys_and_lie_far_back() -> None:
    drawn, sources_BA = planted.planted(3, 1024, torch.Generator().manual_seed(2))
    kinds_BN = drawn.categorical_BNC[..., 0]
    for row in range(3):
        events = (kinds_BN[row] >= planted.FIRST_CLASS).nonzero()[:, 0]
        assert len(events) == planted.NUM_EVENTS
        assert events.max() < 256 <= drawn.asked_BA[row].min()
        asked = drawn.asked_BA[row]
        same = (drawn.numeric_BNF[row, asked][:, None] == drawn.numeric_BNF[row, events][None]).all(-1)
        assert (same.sum(1) == 1).all()  # keys differ, so exactly one event fits
        found = events[same.float().argmax(1)]
        assert torch.equal(found, sources_BA[row])
        assert torch.equal(kinds_BN[row, found] - planted.FIRST_CLASS, drawn.labels_BA[row])


def test_every_way_of_choosing_reads_the_same_number_of_blocks_and_its_own() -> None:
    model = SparseEncoder(planted.config(block_size=16, selector_heads=2))
    drawn, sources_BA = planted.planted(2, 256, torch.Generator().manual_seed(3))
    x_BNW = model.embed(drawn.numeric_BNF, torch.ones_like(drawn.numeric_BNF), drawn.categorical_BNC)
    rules = (
        controls.random_blocks,
        controls.local_and_strided,
        controls.mean_pooled,
        controls.attention_oracle,
        controls.planted_oracle(drawn.asked_BA, sources_BA),
        None,
    )
    for rule in rules:
        attention = controls.use(model, rule).layers[0].attention
        read_BSQJ = attention.select(x_BNW, Budget(0.25)).read_mask()  # pyright: ignore
        assert (read_BSQJ.sum(-1) == 4).all()
        assert read_BSQJ.diagonal(dim1=-2, dim2=-1).all()


def test_the_local_control_reads_neighbours_and_a_grid() -> None:
    attention = SparseEncoder(planted.config(block_size=16)).layers[0].attention
    scores_QJ = controls.local_and_strided(attention, torch.zeros(1, 256, 128))[0, 0]  # pyright: ignore
    assert {0, 8, 4, 5, 6} <= set(scores_QJ[5].topk(8).indices.tolist())


def test_the_oracle_reads_the_blocks_that_hold_the_answers() -> None:
    model = SparseEncoder(planted.config(block_size=16))
    drawn, sources_BA = planted.planted(2, 512, torch.Generator().manual_seed(4))
    controls.use(model, controls.planted_oracle(drawn.asked_BA, sources_BA))
    read_BSQJ = model.layers[0].attention.select(torch.zeros(2, 512, 128), Budget(0.5)).read_mask()  # pyright: ignore
    batch = torch.arange(2)[:, None]
    assert read_BSQJ[batch, 0, drawn.asked_BA // 16, sources_BA // 16].all()


def test_a_measurement_replaces_its_forerunner_and_is_known_by_its_configuration(tmp_path: Path) -> None:
    results, device = Results(tmp_path / "quality.json"), torch.device("cpu")
    keys = [Key("planted", "ours", 8192, 0.25, seed) for seed in (0, 1)]
    old, new = {"updates": 1}, {"updates": 2}
    results.add(keys[0], {"accuracy": 0.5}, old, device)
    assert results.has(keys[:1], digest(old))
    assert not results.has(keys, digest(old))
    results.add(keys[0], {"accuracy": 0.75}, new, device)
    results.add(keys[1], {"accuracy": 0.25}, new, device)
    whole = results.load()
    assert not results.has(keys[:1], digest(old))
    assert list(whole["configurations"].values()) == [new]
    assert {"device", "torch", "date"} <= whole["measurements"][0]["environment"].keys()
    assert "| planted | 8192 | ours | 0.500 (0.250-0.750, n=2) |" in table(whole["measurements"])


def test_the_command_runs_in_seconds_on_a_cpu_and_measures_nothing_twice(tmp_path: Path) -> None:
    command = ["quality", "--quick", "--task", "pilot", "--out", str(tmp_path)]
    first = CliRunner().invoke(bench, command, catch_exceptions=False)
    assert "pilot frozen, 16 channels seed 0: measured" in first.output
    assert "| pilot |" in first.output
    again = CliRunner().invoke(bench, command, catch_exceptions=False)
    assert "pilot frozen, 16 channels seed 0: already measured" in again.output
    assert again.output.count(": measured") == 0
