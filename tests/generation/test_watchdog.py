"""Streams that go wrong by chance, from networks whose every transition is known, and how they are mended."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.conditioned import config, network, tune
from support.faulty_networks import BLOCK, CYCLE, NOISE, RATE, SILENT, faulty_generator, sounding_state

from wavenet.audio import faults
from wavenet.audio.faults import KINDS
from wavenet.conditioning.base import CombinedSource
from wavenet.conditioning.classes import Classes
from wavenet.conditioning.score import ScoreSource
from wavenet.conditioning.supplied import SuppliedFrames
from wavenet.engine.sampling import Sampling
from wavenet.generation import watchdog
from wavenet.generation.generator import Generator
from wavenet.generation.watchdog import Rewind, SupervisedStream, fault_policy


def made(supervised: SupervisedStream) -> torch.Tensor:
    return torch.cat(list(supervised), dim=1)


def kinds(generator: Generator, samples: torch.Tensor) -> set[str]:
    return {each.kind for row in generator.decode(samples).numpy() for each in faults.find_faults(row, RATE)}


@pytest.mark.parametrize(
    ("ending", "kind"), [(SILENT, "silence"), (NOISE[0], "noise"), (CYCLE[0], "tone"), (None, None)]
)
def test_a_faulty_passage_is_regenerated(ending, kind):
    generator, steps = faulty_generator(ending), 12 * RATE
    plain = generator.generate(steps, sounding_state(generator, 6))
    supervised = SupervisedStream(generator, sounding_state(generator, 6), steps)
    samples = made(supervised)
    assert samples.shape == (6, steps)
    if kind is None:
        assert supervised.rewinds == [] and torch.equal(samples, plain)
        return
    assert kinds(generator, plain) == {kind} == {each.kind for each in supervised.rewinds}
    assert all(each.regenerated for each in supervised.rewinds)
    assert kinds(generator, samples) == set()
    for row in range(6):
        back = [each.at for each in supervised.rewinds if each.row == row]
        if not back:
            assert torch.equal(samples[row], plain[row])
            continue
        assert torch.equal(samples[row, : min(back)], plain[row, : min(back)])
        # From the last time on: the sub-stream of that number, from a state that has stepped there.
        state = sounding_state(generator, 1, first=row)
        generator.advance(state, samples[row : row + 1, : back[-1]])
        state = dataclasses.replace(state, substream=torch.tensor([len(back)]))
        rest = generator.generate(steps - back[-1], state)
        assert torch.equal(samples[row, back[-1] :], rest[0])


def test_a_stream_does_not_depend_on_batch_or_chunks(monkeypatch):
    generator, steps = faulty_generator(SILENT), 9 * RATE
    together = SupervisedStream(generator, sounding_state(generator, 3), steps)
    samples = made(together)
    assert together.rewinds
    spread = Generator(generator.model, threads=3)
    monkeypatch.setattr("wavenet.generation.generator.CHUNK", 300)
    for row in range(3):
        alone = SupervisedStream(spread, sounding_state(generator, 1, first=row), steps)
        assert torch.equal(made(alone)[0], samples[row])
        assert [each.at for each in alone.rewinds] == [
            each.at for each in together.rewinds if each.row == row
        ]
    longer = made(SupervisedStream(generator, sounding_state(generator, 3), steps + 4 * RATE + 17))
    assert torch.equal(longer[:, : steps - 4 * RATE], samples[:, : steps - 4 * RATE])


def test_the_state_continues_where_the_take_ends():
    generator = faulty_generator(SILENT)
    supervised = SupervisedStream(generator, sounding_state(generator, 3), 30 * RATE)
    samples = made(supervised)
    state = supervised.state_after()
    assert len({number for number in state.substream.tolist()}) > 1
    expected = sounding_state(generator, 3)
    generator.advance(expected, samples)
    assert torch.equal(state.position, expected.position)
    assert torch.equal(state.last_sample, expected.last_sample)
    assert torch.equal(state.queues, expected.queues)


def test_live_output_is_immediate_and_final():
    generator = faulty_generator(SILENT)
    supervised, given, held = SupervisedStream(generator, sounding_state(generator), None, live=True), [], []
    for chunk in supervised:
        given.append(chunk)
        held.append(supervised.generated - sum(each.shape[1] for each in given))
        assert all(each.at >= 0 for each in supervised.rewinds)
        if sum(each.shape[1] for each in given) > 40 * RATE:
            break
    assert given[0].shape[1] == BLOCK and max(held) == watchdog.HELD_BLOCKS * BLOCK
    # While it is saved up, three blocks of four are given out.
    early = [each.shape[1] // BLOCK for each in given[:12]]
    assert sum(early) == 9 and max(early) == 1
    samples = torch.cat([*given, supervised.flush()], dim=1)
    assert supervised.rewinds and kinds(generator, samples) <= {"silence"}
    again = SupervisedStream(generator, sounding_state(generator), samples.shape[1], live=True)
    assert torch.equal(made(again)[:, : 40 * RATE], samples[:, : 40 * RATE])


def test_an_endless_stream_takes_bounded_memory():
    generator = faulty_generator(SILENT)
    supervised = SupervisedStream(generator, sounding_state(generator), None, live=True)
    for number, _ in enumerate(supervised):
        row = supervised._rows[0]
        assert len(row.samples) <= 2 * watchdog.HELD_BLOCKS and len(row.snapshots) <= 2
        assert len(row.statistics) <= max(faults.WINDOWS.values())
        if number > 400:
            break


def test_attempts_at_a_persistent_fault_are_bounded(monkeypatch):
    generator, drawn = faulty_generator(NOISE[0], chance=1.0, recovery=0), []
    stream = generator.stream
    monkeypatch.setattr(
        generator,
        "stream",
        lambda state, steps, **rest: [drawn.append(steps)] and stream(state, steps, **rest),
    )
    plain = generator.generate(20 * RATE, sounding_state(generator))
    drawn.clear()
    supervised = SupervisedStream(generator, sounding_state(generator), 20 * RATE)
    assert torch.equal(made(supervised), plain)
    assert torch.equal(supervised.state_after().position, torch.tensor([4 + 20 * RATE]))
    assert supervised.state_after().substream.tolist() == [0]
    # Nothing was well before it: one more second says that it is no chance.
    assert [(each.at, each.regenerated) for each in supervised.rewinds] == [(0, True), (0, False)]
    assert sum(drawn) == 21 * RATE
    # What is looked for from the third second on has something before it to go back to.
    drawn.clear()
    supervised = SupervisedStream(
        generator,
        sounding_state(generator),
        20 * RATE,
        fault_policy=lambda first, stop: KINDS if first >= 2 * RATE else (),
    )
    assert torch.equal(made(supervised), plain)
    assert [each.regenerated for each in supervised.rewinds] == [True] * watchdog.MAX_ATTEMPTS + [False]
    assert sum(drawn) <= (20 + watchdog.MAX_ATTEMPTS * 4) * RATE


@pytest.mark.parametrize("ending", [SILENT, CYCLE[0]])
def test_a_fault_at_the_start_is_retried(ending):
    generator = faulty_generator(ending, chance=1.0, recovery=0)
    plain = generator.generate(12 * RATE, sounding_state(generator, 2))
    supervised = SupervisedStream(generator, sounding_state(generator, 2), 12 * RATE)
    assert torch.equal(made(supervised), plain)
    tried = watchdog.MAX_ATTEMPTS if ending == SILENT else watchdog.MAX_ATTEMPTS_FROM_START
    for row in range(2):
        found = [each.regenerated for each in supervised.rewinds if each.row == row]
        assert found == [True] * tried + [False]


def test_an_interrupted_stream_can_be_continued():
    generator = faulty_generator(SILENT)
    whole = made(SupervisedStream(generator, sounding_state(generator, 2), 12 * RATE))
    supervised = SupervisedStream(generator, sounding_state(generator, 2), 12 * RATE)
    given = [chunk for chunk, _ in zip(supervised, range(30), strict=False)]
    state = supervised.state_after()
    done = sum(each.shape[1] for each in given)
    assert state.position.tolist() == [4 + done] * 2
    given.append(supervised.flush())
    assert given[-1].shape[1] > 0
    state = supervised.state_after()
    samples = torch.cat(given, dim=1)
    assert state.position.tolist() == [4 + samples.shape[1]] * 2
    expected = sounding_state(generator, 2)
    generator.advance(expected, samples)
    assert torch.equal(state.queues, expected.queues)
    assert torch.equal(samples[:, :done], whole[:, :done])


def test_without_randomness_or_checks_nothing_changes():
    generator = faulty_generator(NOISE[0])
    plain = generator.generate(12 * RATE, sounding_state(generator, 2))
    unsupervised = SupervisedStream(generator, sounding_state(generator, 2), 12 * RATE, fault_policy=None)
    chunks = list(unsupervised)
    assert torch.equal(torch.cat(chunks, dim=1), plain) and len(chunks) == 48
    start = sounding_state(generator).with_sampling(Sampling(0))
    greedy = generator.generate(5 * RATE, start.clone())
    assert torch.equal(made(SupervisedStream(generator, start, 5 * RATE)), greedy)


def test_silence_of_the_conditioning_is_no_fault():
    score, mel, both = config("score"), config("mel"), config("class+score")
    played = tune(0, 10.0)
    played = dataclasses.replace(played, onset=played.onset + 5, release=played.release + 5)
    notes = fault_policy(ScoreSource(score, played), RATE)
    assert set(notes(0, 5 * RATE)) == {"noise"}
    assert set(notes(4 * RATE, 8 * RATE)) == {"noise", "silence"}
    assert set(notes(60 * RATE, 64 * RATE)) == {"noise"}
    # A note that begins as the stretch ends may not be heard in it yet.
    first = round(float(played.onset[0]) * RATE)
    assert set(notes(first - 2 * RATE, first + 10)) == {"noise"}
    assert not fault_policy(SuppliedFrames(mel, torch.zeros(6, 10)), RATE)(0, RATE)
    constant = Classes(both, [(0.0, {"piano": 1.0})])
    glide = Classes(both, [(0.0, {"piano": 1.0}), (2.0, {"cello": 1.0})])
    assert set(fault_policy(None, RATE)(0, 1)) == set(fault_policy(constant, RATE)(0, 1)) == set(faults.KINDS)
    assert set(fault_policy(glide, RATE)(0, 1)) == {"noise", "tone"}
    together = fault_policy(CombinedSource(glide, ScoreSource(both, played)), RATE)
    assert set(together(5 * RATE, 9 * RATE)) == {"noise"}


def test_regeneration_rewinds_the_conditioning():
    """A random network makes noise: it is taken back once, and what it is told counts on from there."""
    settings = config("score")
    generator = Generator(network(settings), threads=1)
    source = ScoreSource(settings, tune(0, 3.0))
    steering, policy = generator.gate_bias_provider(source), fault_policy(source, RATE)
    state = generator.start(1, gate_bias=steering)

    def once(first: int, stop: int):
        return () if supervised.rewinds else policy(first, stop)

    supervised = SupervisedStream(generator, state.clone(), 5 * RATE, gate_bias=steering, fault_policy=once)
    samples = made(supervised)
    (rewind,) = supervised.rewinds
    assert rewind == Rewind(0, "noise", rewind.at, True)
    plain = generator.generate(5 * RATE, state.clone(), gate_bias=generator.gate_bias_provider(source))
    assert torch.equal(samples[:, : rewind.at], plain[:, : rewind.at])
    generator.advance(state, samples[:, : rewind.at], generator.gate_bias_provider(source))
    state = dataclasses.replace(state, substream=torch.tensor([1]))
    rest = generator.generate(5 * RATE - rewind.at, state, gate_bias=generator.gate_bias_provider(source))
    assert torch.equal(rest, samples[:, rewind.at :]) and not torch.equal(samples, plain)
