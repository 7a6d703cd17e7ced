"""WAV files that grow while they are written."""

import numpy as np

from wavenet.audio.wav import WavWriter


def test_the_header_is_corrected_after_an_interrupt(tmp_path):
    with open(tmp_path / "x.wav", "wb") as stream:
        writer = WavWriter(stream, 16000, 1000)
        writer.write(np.zeros(100, np.float32))
        stream.write(b"left over")
        writer.finish()
    data = (tmp_path / "x.wav").read_bytes()
    assert len(data) == 44 + 200 and data[40:44] == (200).to_bytes(4, "little")
