"""Training steps lower for accelerators that are not here."""

import jax
import jax.numpy as jnp
import pytest

from jaxgen import data, models
from jaxgen.train import assembly, session
from jaxgen.train import config as configs

NETS = {
    "vae": ("mlp", "conv"),
    "diffusion": ("unet", "transformer"),
    "flow": ("tarflow", "jet", "glow"),
    "gan": ("residual", "dcgan"),
}
PAIRS = [(family, net) for family in models.FAMILIES for net in NETS[family]]


@pytest.mark.parametrize(("family", "net"), PAIRS)
def test_training_step_lowers_for_gpu_and_tpu(family, net):
    config = configs.RunConfig(
        family=family,
        model=models.FAMILIES[family].config_class(net=net),
        data=data.DataConfig(),
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
