"""Figures of the report as the reader sees them: labels, and what the caption says."""

import base64
import re

import numpy as np

from jaxgen.evaluate import figures


def drawn(**options):
    """The figure's caption and the texts of its SVG."""
    positions = np.geomspace(0.005, 50.0, 24, dtype=np.float32)
    lines = {"network": (positions, positions / 50), "other": (positions, positions)}
    title = "error of the estimate of x_0 by noise level, on test images"
    page = figures.figure(title, "share", lines, **options)
    svg = base64.b64decode(re.findall(r"base64,([^\"]+)", page)[0]).decode()
    return page.split("<figcaption>")[1], re.findall(r"<text[^>]*>([^<]*)<", svg)


def test_a_logarithmic_axis_has_plain_and_few_numbers():
    _, texts = drawn(xlabel="sigma / alpha", log=True)
    numbers = [text for text in texts if re.fullmatch(r"[\d.,]+", text)]
    assert {"0.01", "1"} <= set(numbers)
    assert not any("$" in text for text in texts)
    assert len(numbers) < 16


def test_a_long_title_is_broken_and_the_caption_is_short_of_digits():
    caption, texts = drawn(xlabel="sigma / alpha", log=True)
    assert "error of the estimate of x_0 by noise" in texts
    assert "at sigma / alpha 50." in caption
    assert "50.000" not in caption
    caption, _ = drawn()
    assert "at step 50." in caption
