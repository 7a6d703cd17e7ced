"""Frames of training segments equal those that generation reads, wherever a segment begins."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from support import conditioned
from support.audio_files import noise, save
from support.conditioned import RATE, tune
from support.datasets import clips_of, prepare_dataset
from support.scores import PIECE_RATE, piece, rows, shifted, write_midi

from wavenet.audio import mulaw
from wavenet.audio.decoding import load_audio
from wavenet.audio.mel import log_mel
from wavenet.conditioning import registry
from wavenet.conditioning.score import ScoreSource
from wavenet.conditioning.segments import Conditions
from wavenet.config import ConditioningConfig
from wavenet.data.augmentation import Augmentation
from wavenet.data.dataset import DataConfig
from wavenet.data.labels import attach_conditions, class_names, class_of
from wavenet.errors import AudioError, ConfigError

HOP = 50
NAMES = ("cello/one.wav", "cello/two.wav", "piano/three.wav", "piano/four.wav")
SECONDS = {"cello/one.wav": 1.0, "cello/two.wav": 0.7, "piano/three.wav": 0.31, "piano/four.wav": 3.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise that is silent for a while in one file, and a score for each."""
    home = tmp_path_factory.mktemp("conditions")
    for number, name in enumerate(NAMES):
        audio = noise(SECONDS[name], RATE, seed=number, amplitude=0.3)
        if name == "piano/four.wav":
            audio[RATE : 3 * RATE] = 0
        save(home / "audio" / name, audio, RATE)
        midi = (home / "midi" / name).with_suffix(".mid")
        write_midi(midi, tune(number, SECONDS[name], notes=9))
    return home


def with_class_names(config, names):
    conditioning = dataclasses.replace(config.conditioning, class_names=names)
    return dataclasses.replace(config, conditioning=conditioning)


def prepared(folder, kind: str, silence_db: float | None = 40.0, **changes):
    settings = {**conditioned.KINDS[kind], "hop": HOP, **changes}
    config = dataclasses.replace(conditioned.BASE, conditioning=ConditioningConfig(**settings))
    data = prepare_dataset(folder / "audio", folder / "cache", config, DataConfig(silence_db=silence_db))
    if config.conditioning.class_names:
        config = with_class_names(config, class_names(data))
    attach_conditions(data, Conditions(config), folder / "midi" if "score" in kind else None)
    return config, data


def clip_at(clips, place: int):
    """Return the clip that contains a place, or the gap of which precedes it, and its first place."""
    for index, (start, end) in enumerate(zip(clips._starts, clips._ends, strict=True)):
        if place < end:
            return clips.clips[index], int(start)
    return clips.clips[-1], int(clips._starts[-1])


def test_first_frames_of_training_equal_generation(folder):
    from wavenet.music.midi_file import read_midi

    config, data = prepared(folder, "score", silence_db=None)
    clips = data.whole
    for index, clip in enumerate(clips.clips):
        segments = clips.read(np.array([clips._starts[index]]), min(clip.length, 1000))
        frames = segments.frames
        played = ScoreSource(config, read_midi((folder / "midi" / clip.name).with_suffix(".mid")))
        expected = played.read(frames.first, frames.values.shape[2])
        # Another recording precedes the silence of the receptive field, and one follows its end.
        within = slice(
            -frames.first - clips.receptive_field // HOP, -frames.first + min(clip.length, 1000) // HOP
        )
        assert torch.equal(frames.values[:, :, within], expected[:, :, within])
        assert expected.any()


def test_notes_are_in_the_frames_where_they_sound(folder):
    from wavenet.music.midi_file import read_midi

    _, data = prepared(folder, "score")
    clips = data.whole
    assert len(clips.clips) > len(NAMES)
    rng = np.random.default_rng(0)
    seen = 0
    for place in rng.integers(clips.receptive_field, clips._ends[-1], 60).tolist():
        frames = clips.read(np.array([place]), 130).frames
        found = frames.values[0].numpy()
        for number in range(found.shape[1]):
            at = place + (frames.first + number) * HOP
            clip, start = clip_at(clips, max(at, 0))
            inside = start <= at and at + HOP <= start + clip.length
            if not inside:
                continue
            score = read_midi((folder / "midi" / clip.name).with_suffix(".mid"))
            begin = (clip.start + at - start) / RATE
            for pitch in range(128):
                notes = [
                    (on, velocity) for on, off, each, velocity in rows(score)
                    if each == pitch and on < begin + HOP / RATE - 1e-6 and off > begin + 1e-6
                ]  # fmt: skip
                expected = max(notes)[1] / 127 if notes else 0
                assert found[pitch, number] == pytest.approx(expected)
                starts = any(begin - 1e-6 <= on < begin + HOP / RATE - 1e-6 for on, _ in notes)
                assert found[128 + pitch, number] == starts
                seen += bool(notes)
    assert seen > 50


def mel_of(audio: np.ndarray, config) -> torch.Tensor:
    """The frames that a user makes from a recording, float32 (1, n_mels, frames)."""
    mel = config.conditioning
    frames = log_mel(audio, config.sample_rate, mel.n_fft, mel.hop, mel.n_mels, mel.fmin, mel.fmax)
    return torch.from_numpy(frames)[None]


def test_training_mel_frames_equal_the_users(folder):
    """`log_mel` of the file gives the frames of training segments to the bit."""
    config, data = prepared(folder, "mel", silence_db=None, n_fft=128)
    clips = data.whole
    for index, clip in enumerate(clips.clips):
        expected = mel_of(load_audio(folder / "audio" / clip.name, RATE), config)
        start = int(clips._starts[index])
        for place in (0, HOP, 3 * HOP):
            frames = clips.read(np.array([start + place]), 500).frames
            # The gaps here are shorter than a window: two frames at the borders of clips include neighbours.
            low = max(place // HOP, 2 if index else 0)
            high = min(place // HOP + frames.values.shape[2] + frames.first, expected.shape[2] - 2)
            assert high - low > 5
            offset = -frames.first - place // HOP
            assert torch.equal(frames.values[:, :, low + offset : high + offset], expected[:, :, low:high])


def test_mel_frames_of_converted_recordings(tmp_path):
    """Resampled and normalised audio is rounded to 16 bits; its frames agree within that rounding."""
    save(tmp_path / "audio" / "one.wav", noise(1.0, 11025, seed=5, amplitude=0.3), 11025, encoding="FLOAT")
    settings = {**conditioned.KINDS["mel"], "hop": HOP}
    config = dataclasses.replace(
        conditioned.BASE, normalization="loudness", conditioning=ConditioningConfig(**settings)
    )
    data = prepare_dataset(tmp_path / "audio", tmp_path / "cache", config, DataConfig(silence_db=None))
    attach_conditions(data, Conditions(config))
    expected = mel_of(load_audio(tmp_path / "audio" / "one.wav", RATE, "loudness"), config)
    start = int(data.whole._starts[0])
    frames = data.whole.read(np.array([start]), 3000).frames
    found = frames.values[:, :, -frames.first :]
    assert not torch.equal(found[:, :, :60], expected[:, :, :60])
    # Half a 16-bit step is 1.5e-5; the magnitudes here are above 0.05 and the scale is 2 / (HIGH - LOW).
    assert (found[:, :, :60] - expected[:, :, :60]).abs().max() < 5e-4


def test_mel_frames_between_those_of_the_recording(folder):
    """A segment at any position has frames of its own, from the audio of the recording."""
    config, data = prepared(folder, "mel", silence_db=None)
    clips = data.whole
    start = int(clips._starts[0])
    audio = load_audio(folder / "audio" / clips.clips[0].name, RATE)[3:]
    expected = mel_of(audio, config)[:, :, 5:15]
    found = clips.read(np.array([start + 3]), 1000).frames
    assert torch.equal(found.values[:, :, 5 - found.first : 15 - found.first], expected)


def test_frames_have_the_class_of_their_recording(folder):
    config, data = prepared(folder, "class")
    assert config.conditioning.class_names == ("cello", "piano")
    clips = data.whole
    for place in range(clips.receptive_field, int(clips._ends[-1]) - 200, 97):
        frames = clips.read(np.array([place]), 100).frames
        for number in range(frames.values.shape[2]):
            at = place + (frames.first + number) * HOP
            if at < 0:
                continue
            clip, _ = clip_at(clips, at)
            expected = [clip.name.startswith("cello"), clip.name.startswith("piano")]
            assert frames.values[0, :, number].tolist() == expected


def test_random_segments_have_frames(folder):
    """As a ring the timeline goes on past its ends, and frames with it."""
    for kind in conditioned.KINDS:
        config, data = prepared(folder, kind)
        for step in range(5):
            inputs, targets, frames = data.train.batch(step, 3, 90, 0)
            again = data.train.batch(step, 3, 90, 0)
            assert torch.equal(frames.values, again.frames.values)
            assert frames.values.shape[:2] == (3, registry.channels(config.conditioning))
            plain = dataclasses.replace(config, conditioning=None)
            alone = prepare_dataset(folder / "audio", folder / "cache", plain, DataConfig())
            found = alone.train.batch(step, 3, 90, 0)
            assert torch.equal(found.inputs, inputs) and torch.equal(found.targets, targets)


def test_condition_dropout_masks_segments(folder):
    config, data = prepared(folder, "class+score")
    data.train.conditions.condition_dropout = 0.25
    model = conditioned.network(config)
    dropped = 0
    for step in range(100):
        frames = data.train.batch(step, 4, 90, 0).frames
        dropped += int((~frames.conditioned_mask).sum())
        biased = model.gate_bias_for(frames).values.flatten(1).any(dim=1)
        assert torch.equal(biased, frames.conditioned_mask)
        assert torch.equal(frames.rows(slice(1, 3)).conditioned_mask, frames.conditioned_mask[1:3])
        # Whoever takes a part of a step's segments drops the same ones of them.
        part = data.train.batch(step, 2, 90, 0, first=2).frames
        assert torch.equal(part.conditioned_mask, frames.conditioned_mask[2:])
    # Of 400 draws at 1 in 4: five standard deviations.
    assert abs(dropped - 100) < 44
    assert data.validation.read(data.validation.places(50)[:2], 50).frames.conditioned_mask is None


def test_unsuitable_scores_are_refused(folder, tmp_path):
    config, data = prepared(folder, "score")
    with pytest.raises(ConfigError, match="the folder with the score"):
        attach_conditions(data, Conditions(config))
    with pytest.raises(AudioError, match="is not a folder"):
        attach_conditions(data, Conditions(config), tmp_path / "none")
    with pytest.raises(
        AudioError, match=r"no score for 4 of 4 recording\(s\), as .*cello/one.wav.* and 1 more"
    ):
        attach_conditions(data, Conditions(config), tmp_path)
    for name in NAMES:
        write_midi((tmp_path / name).with_suffix(".mid"), tune(0, 100.0 if "two" in name else SECONDS[name]))
    with pytest.raises(AudioError, match=r"1 score\(s\) do not match .*cello/two.wav \(the score lasts"):
        attach_conditions(data, Conditions(config), tmp_path)
    (tmp_path / "cello/two.mid").write_bytes(b"no score")
    with pytest.raises(AudioError, match=r"two\.mid"):
        attach_conditions(data, Conditions(config), tmp_path)


def test_a_misaligned_score_is_reported(tmp_path):
    for seed, late in ((1, 0.0), (2, 0.3), (3, 0.0)):
        audio, score = piece(seed, notes=30)
        save(tmp_path / f"audio/{seed}.wav", audio, PIECE_RATE)
        write_midi(tmp_path / f"midi/{seed}.mid", shifted(score, late))
    config = dataclasses.replace(conditioned.config("score"), sample_rate=PIECE_RATE)
    data = prepare_dataset(tmp_path / "audio", tmp_path / "cache", config, DataConfig())
    lines: list[str] = []
    attach_conditions(data, Conditions(config), tmp_path / "midi", log=lines.append)
    assert len(lines) == 2 and lines[0].startswith("scores      3 read")
    assert re.match(
        r"warning: 1 score\(s\) may not be aligned .*: 2\.wav \(0\.(29|30|31) s late\);", lines[1]
    )


def test_classes_need_folders(folder, tmp_path):
    config, data = prepared(folder, "class")
    with pytest.raises(AudioError, match="is in no subfolder"):
        class_of("alone.wav")
    other = dataclasses.replace(config.conditioning, class_names=("cello", "harp"))
    with pytest.raises(
        AudioError, match=r"of class 'piano', which this network does not have; .*cello, harp"
    ):
        attach_conditions(data, Conditions(dataclasses.replace(config, conditioning=other)))
    single = prepare_dataset(folder / "audio", folder / "cache", config, DataConfig(), patterns=["piano/*"])
    with pytest.raises(AudioError, match="all recordings are in one folder, cello"):
        class_names(single)


# -- segments at another speed --------------------------------------------------------------------------


def faster(arrays, folder, kind, labels=None, **changes):
    """Clips with conditions, whose segments are played at other speeds."""
    settings = {**conditioned.KINDS[kind], "hop": HOP, **changes}
    config = dataclasses.replace(
        conditioned.BASE, quantization_channels=256, conditioning=ConditioningConfig(**settings)
    )
    encoded = [mulaw.encode(np.asarray(array)) for array in arrays]
    clips = clips_of(folder, encoded, config.receptive_field)
    clips.conditions = Conditions(config, {} if labels is None else {"classes": labels})
    clips.augmentation = Augmentation(speed=0.3)
    return clips


def test_classes_do_not_depend_on_the_speed(tmp_path):
    """Recordings of one class lie above zero, those of the other below."""
    sign = [1, -1, 1, -1]
    arrays = [0.5 * s * np.ones(length) for s, length in zip(sign, (700, 300, 450, 800), strict=True)]
    clips = faster(arrays, tmp_path, "class+mel", labels=[0, 1, 0, 1])
    compared = 0
    for step in range(20):
        _, targets, frames = clips.batch(step, 4, 600, 0)
        for row, frame_values in zip(targets.numpy(), frames.values.numpy(), strict=True):
            for frame in range(600 // HOP):
                value = row[frame * HOP]
                # Near a border the filter swings.
                around = row[max(0, frame * HOP - 40) : frame * HOP + 40]
                if value < 0 or (around < 0).any():
                    continue
                number = 0 if value > 128 else 1
                assert (
                    frame_values[number, frame - frames.first] == 1
                    and frame_values[1 - number, frame - frames.first] == 0
                )
                compared += 1
    assert compared > 200


def test_mel_frames_follow_the_changed_speed(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 700 * np.arange(6000) / RATE)
    clips = faster([tone], tmp_path, "mel", n_mels=40, n_fft=256, hop=HOP)
    speeds = clips.augmentation.speeds(0, 12, 0)
    _, targets, frames = clips.batch(0, 12, 1000, 0)
    tops = {}
    for row, frame_values, speed in zip(targets.numpy(), frames.values.numpy(), speeds, strict=True):
        if (row >= 0).all():
            tops[speed] = int(np.argmax(frame_values[:, 10 - frames.first]))
    rates = sorted(tops)
    assert len(rates) > 5 and rates[-1] / rates[0] > 1.3
    bands = librosa_mel_frequencies(42, 50.0, 2000.0)[1:-1]
    for speed, band in tops.items():
        assert abs(np.argmin(np.abs(bands - 700 * speed)) - band) <= 1


def librosa_mel_frequencies(count, low, high):
    import librosa

    return librosa.mel_frequencies(count, fmin=low, fmax=high)


def test_scores_refuse_a_changed_speed(folder):
    _, data = prepared(folder, "score")
    data.train.batch(0, 2, 100, 0)
    data.train.augmentation = Augmentation(speed=0.1)
    with pytest.raises(ConfigError, match="changes pitches but not those of the score features"):
        data.train.batch(0, 2, 100, 0)
