"""Training steps lower for accelerators that are not here."""

import jax
import jax.numpy as jnp
import pytest

from jaxgen import data, models
from jaxgen.train import assembly, session
from jaxgen.train import config as configs

NETS = {
    "vae": [{"net": "mlp"}, {"net": "conv"}],
    "diffusion": [{"net": "unet"}, {"net": "transformer"}],
    "flow": [{"net": "tarflow"}, {"net": "jet"}, {"net": "glow"}],
    "gan": [{"net": "residual"}, {"net": "dcgan"}],
    "masked": [{"order": "any"}, {"order": "causal"}],
}
PAIRS = [(family, options) for family in models.FAMILIES for options in NETS[family]]


@pytest.mark.parametrize(("family", "options"), PAIRS)
def test_training_step_lowers_for_gpu_and_tpu(family, options):
    config = configs.RunConfig(
        family=family,
        model=models.FAMILIES[family].config_class(**options),
        data=configs.default(family).data,
        train=configs.TrainConfig(batch_size=8),
    )
    dataset = data.open_dataset(config.data)
    bound = session.bind(session.resolve(config, dataset))
    layout = assembly.make_layout(bound.config.train)
    advance = jax.jit(assembly.make_advance(bound, layout))
    batch = {"x": jax.ShapeDtypeStruct((8, *dataset.shape), jnp.uint8)}
    exported = jax.export.export(advance, platforms=["cuda", "tpu"])(
        session.abstract_state(bound), batch, jax.random.key(0)
    )
    assert exported.platforms == ("cuda", "tpu")
    assert "stablehlo." in exported.mlir_module()
