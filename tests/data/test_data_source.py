"""DataSource and probes: a pure function of (config, step), every stream on its own."""

import dataclasses
import email
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.config import RunConfig
from spectral.data import DataSource, attention_probe, chain_probe, period_range, probes, source
from spectral.data.distribution import draw_sequences
from spectral.errors import ConfigError

TEXT = str(Path(email.__file__).parent)
KINDS = {
    "repeated": {},
    "patterns": {"n_patterns": 2, "max_pattern_length": 4},
    "ngram": {"vocab_size": 10},
    "text": {"text_path": TEXT, "vocab_size": 256},
}
PROBES = ("curvature_probe", "behaviour_probe", "repeat_probe", "attention_probe")


def config_of(kind="repeated", **options):
    values = {"seq_length": 40, "min_period": 4, "max_period": 12, "batch_size": 8, "behaviour_probe_size": 24}
    return RunConfig(**(values | {"data": kind} | KINDS[kind] | options))


def hashes(source):
    singles = {name: getattr(source, name).sha256() for name in PROBES}
    return singles | {f"period {period}": batch.sha256() for period, batch in source.period_probes.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_a_pure_function_of_seed_and_step(kind):
    config = config_of(kind)
    first, second = DataSource(config, "cpu"), DataSource(config, torch.device("cpu"))
    forward = [first.batch(step).sha256() for step in (0, 1, 2)]
    hashes(second)  # drawing probes in between must change nothing
    assert [second.batch(step).sha256() for step in (2, 1, 0)] == forward[::-1]
    assert len(set(forward)) == 3
    other = DataSource(dataclasses.replace(config, seed=1), "cpu")
    assert other.batch(0).sha256() not in forward
    batch = first.batch(0)
    assert batch.tokens.shape == (8, 40)
    assert batch.tokens.dtype == torch.int64
    assert ((batch.tokens >= 0) & (batch.tokens < config.vocab_size)).all()
    assert batch.predictable.any()


@pytest.mark.parametrize("kind", KINDS)
def test_draws_leave_the_global_generator_alone(kind):
    state = torch.random.get_rng_state()
    source = DataSource(config_of(kind), "cpu")
    source.batch(0)
    hashes(source)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_probes_are_cached_reproducible_and_all_different(kind):
    source = DataSource(config_of(kind), "cpu")
    assert all(getattr(source, name) is getattr(source, name) for name in (*PROBES, "period_probes"))
    values = hashes(source)
    assert values == hashes(DataSource(config_of(kind), "cpu"))
    assert len(set(values.values())) == len(values)
    assert all(values[name] != other for name, other in hashes(DataSource(config_of(kind, seed=5), "cpu")).items())


def test_probes_are_held_out_from_training():
    config = config_of(eigen_probe_size=8, behaviour_probe_size=8)
    source = DataSource(config, "cpu")
    trained = {tuple(row) for step in range(50) for row in source.batch(step).tokens.tolist()}
    for name in ("curvature_probe", "behaviour_probe"):
        assert not trained & {tuple(row) for row in getattr(source, name).tokens.tolist()}


def test_changing_one_stream_leaves_the_others_unchanged(monkeypatch):
    before = hashes(DataSource(config_of(), "cpu"))
    train_before = DataSource(config_of(), "cpu").batch(3).sha256()
    original = probes.torch_generator

    def altered(seed, stream, *args, **kwargs):
        return original(seed + (stream == "probe/curvature"), stream, *args, **kwargs)

    monkeypatch.setattr(probes, "torch_generator", altered)
    monkeypatch.setattr(source, "torch_generator", altered)
    after = hashes(DataSource(config_of(), "cpu"))
    assert {name for name in before if before[name] != after[name]} == {"curvature_probe"}
    assert DataSource(config_of(), "cpu").batch(3).sha256() == train_before


def test_size_of_one_probe_leaves_training_and_other_probes_unchanged():
    small, large = (DataSource(config_of(eigen_probe_size=size), "cpu") for size in (4, 16))
    assert small.batch(0).sha256() == large.batch(0).sha256()
    before, after = hashes(small), hashes(large)
    assert {name for name in before if before[name] != after[name]} == {"curvature_probe"}
    assert len(large.curvature_probe) == 16


def test_finite_training_set_repeats_in_order():
    source = DataSource(config_of(n_sequences=27), "cpu")
    drawn = [source.batch(step).sha256() for step in range(7)]
    assert source.n_batches == 3
    assert len(set(drawn)) == 3
    assert drawn[3:6] == drawn[:3]
    assert drawn[6] == drawn[0]
    assert drawn[:3] == [DataSource(config_of(), "cpu").batch(step).sha256() for step in range(3)]


def test_training_set_below_one_batch_is_refused():
    with pytest.raises(ConfigError, match=r"--n_sequences 7 does not fill one batch; raise it to at least --batch_siz"):
        DataSource(config_of(n_sequences=7), "cpu")


def test_text_faults_show_when_the_source_is_built(tmp_path):
    with pytest.raises(ConfigError, match=r"--text_path .* does not exist"):
        DataSource(config_of("text", text_path=str(tmp_path / "none")), "cpu")
    (tmp_path / "short").write_text("too short")
    with pytest.raises(ConfigError, match="--seq_length 40 needs 400"):
        DataSource(config_of("text", text_path=str(tmp_path / "short")), "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_repeat_probe_has_distinct_blocks_of_varying_length_in_two_copies(kind):
    config = config_of(kind)
    low, high = period_range(config)
    probe = DataSource(config, "cpu").repeat_probe
    assert len(probe) == 24
    assert len(probe.period.unique()) > 1
    for row, period in zip(probe.tokens.tolist(), probe.period.tolist(), strict=True):
        assert low <= period <= min(high, 20, config.vocab_size)
        assert len(set(row)) == period
        assert row[period:] == row[:-period]


def test_repeat_probe_stays_distinct_or_says_independent_in_a_small_vocabulary():
    capped = DataSource(config_of(vocab_size=6), "cpu").repeat_probe
    assert int(capped.period.max()) <= 6
    assert all(len(set(row)) == p for row, p in zip(capped.tokens.tolist(), capped.period.tolist(), strict=True))
    independent = DataSource(config_of(vocab_size=2), "cpu").repeat_probe
    assert set(independent.period.tolist()) <= set(range(4, 13))


def test_period_probes_follow_the_config_and_are_distinct_where_possible():
    source = DataSource(config_of(probe_periods=(5, 30), vocab_size=20), "cpu")
    assert list(source.period_probes) == [5, 30]
    for period, probe in source.period_probes.items():
        assert set(probe.period.tolist()) == {period}
        assert probe.predictable.sum(dim=1).tolist() == [40 - 1 - period] * 24
    assert all(len(set(row)) == 5 for row in source.period_probes[5].tokens.tolist())
    assert list(DataSource(config_of(), "cpu").period_probes) == list(config_of().resolved_probe_periods)


@pytest.mark.parametrize("positions", [1, 2, 3, 16, 40, 64])
def test_attention_probe_is_one_short_sequence_with_several_copies(positions):
    probe = DataSource(config_of(attention_positions=positions), "cpu").attention_probe
    assert probe.tokens.shape == (1, min(positions, 40))
    if positions > 1:
        assert int(probe.period[0]) * 2 <= min(positions, 40)


def test_chain_probe_is_the_behaviour_probe_with_the_tables_that_made_it():
    config = RunConfig(data="ngram", vocab_size=5, seq_length=20, behaviour_probe_size=6, device="cpu")
    chains = chain_probe(config, 4)
    behaviour = DataSource(config, "cpu").behaviour_probe
    assert torch.equal(chains.tokens, behaviour.tokens[:4])
    assert torch.equal(chains.predictable, behaviour.predictable[:4])
    assert chains.tables.shape == (4, 5, 5)
    large = RunConfig(data="ngram", vocab_size=700, seq_length=20, behaviour_probe_size=64, batch_size=4)
    assert chain_probe(large, 4).tables is None  # a quarter of a gigabyte
    assert chain_probe(RunConfig(), 4) is None


def test_no_attention_probe_is_drawn_where_none_is_stored():
    assert attention_probe(config_of(attention_positions=0)) is None
    assert DataSource(config_of(attention_positions=0), "cpu").attention_probe is None


def test_probes_draw_a_period_per_sequence_even_if_training_draws_one_per_batch():
    source = DataSource(config_of(period_per="batch"), "cpu")
    assert len(source.batch(0).period.unique()) == 1
    assert len(source.behaviour_probe.period.unique()) > 1


def test_text_probes_repeat_bytes_that_training_shows():
    source = DataSource(config_of("text"), "cpu")
    shown = set(source.corpus.byte_frequencies.nonzero().flatten().tolist())
    for probe in (source.behaviour_probe, source.repeat_probe, source.attention_probe):
        assert set(probe.tokens.flatten().tolist()) <= shown
        assert probe.predictable.any()
    held_out = bytes(source.corpus.split("held_out").tolist())
    assert all(bytes(row) in held_out for row in source.curvature_probe.tokens.tolist())


def test_text_without_corpus_is_refused():
    with pytest.raises(ValueError, match="no corpus was given"):
        draw_sequences(
            config_of("text"),
            batch_size=1,
            period_per="sequence",
            split="train",
            corpus=None,
            generator=torch.Generator(),
            device="cpu",
        )


def test_icl_positions_lie_inside_the_first_block_and_at_the_end():
    assert DataSource(config_of(min_period=20, max_period=29, seq_length=80), "cpu").icl_positions == (9, 78)
    for kind in KINDS:
        source = DataSource(config_of(kind), "cpu")
        first, last = source.icl_positions
        assert 0 <= first < last == 38
        if source.behaviour_probe.period is not None:
            assert first <= int(source.behaviour_probe.period.min()) - 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_valid_size_yields_all_probes(data):
    seq_length = data.draw(st.integers(3, 30))
    high = data.draw(st.integers(1, seq_length - 2))
    config = config_of(
        data.draw(st.sampled_from(["repeated", "ngram"])),
        seq_length=seq_length,
        vocab_size=data.draw(st.integers(2, 12)),
        min_period=data.draw(st.integers(1, high)),
        max_period=high,
        max_prefix=data.draw(st.integers(0, seq_length - 2 - high)),
        attention_positions=data.draw(st.integers(1, 40)),
        behaviour_probe_size=2,
        eigen_probe_size=2,
    )
    source = DataSource(config, "cpu")
    assert len(hashes(source)) == 4 + len(config.resolved_probe_periods)
    assert source.batch(0).tokens.shape == (8, seq_length)
    first, last = source.icl_positions
    assert 0 <= first < last == seq_length - 2
