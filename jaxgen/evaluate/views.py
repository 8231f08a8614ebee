"""The pictures and curves that a model has for its report."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen.evaluate import asked, figures, formats
from jaxgen.train import pictures, session

NUM_TEST = 64  # test images that the views are made of
IMAGE_WIDTH = 48  # CSS pixels of one image in a view, about


def section(loaded: session.Loaded, dataset: data.Dataset) -> str:
    """Curves and pictures of some test images; of a run on a task first its answers."""
    num = min(NUM_TEST, dataset.test.num_examples)
    chosen = data.spread(dataset.test.num_examples, num)
    batch = {"x": jnp.asarray(dataset.test.take(chosen)["x"])}
    transform: Any = loaded.config.data.transform
    x = data.prepare(batch, jax.random.key(0), transform=transform)["x"]
    shown = []
    for curve in loaded.model.curves:
        positions, values = jax.jit(curve.lines)(loaded.params, x)
        lines = {n: (np.asarray(positions), np.asarray(v)) for n, v in values.items()}
        shown.append(
            figures.figure(
                curve.caption, curve.ylabel, lines, xlabel=curve.xlabel, log=True
            )
        )
    made = [
        (caption, np.asarray(jax.jit(view)(loaded.params, x)))
        for caption, view in loaded.model.views
    ]
    if loaded.config.data.task is not None:
        made = [(asked.CAPTION, asked.picture(loaded, dataset.test)), *made]
    for caption, images in made:
        images = pictures.to_uint8(images)
        picture = pictures.grid(images)
        width = picture.shape[1] * max(1, round(IMAGE_WIDTH / images.shape[3]))
        text = formats.text(f"{caption[:1].upper()}{caption[1:]}.")
        source = (
            f'style="width:{width}px" src="{formats.uri("png", pictures.png(picture))}"'
        )
        image = f'<img class="pixels" alt="{text}" {source}>'
        shown.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return "\n".join(shown) or "<p>This family has none.</p>"
