"""The registry of conditions, and a condition of one's own from its entry to a guided, grown network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.scenes import source
from data_pipelines.sources import base
from nova_jax import conditions
from nova_jax.diffusion import DropRates, FlowMatching, conditioning, guidance, make_denoiser
from nova_jax.generation import prompts
from nova_jax.models import embedders, growth
from nova_jax.training import step
from nova_jax.types import Conditioning
from tests import tiny_run
from tests.distillation import students


@pytest.fixture
def aesthetic(monkeypatch):
    """Registers a score in [0, 1], -1 when it is left out."""
    monkeypatch.setattr(conditions, "CONDITIONS", dict(conditions.CONDITIONS))
    monkeypatch.setattr(embedders, "EMBEDDERS", dict(embedders.EMBEDDERS))
    null = {"aesthetic": lambda score: jnp.full_like(score, -1)}
    entry = conditions.Condition(
        name="aesthetic", fields=("aesthetic",), joins="vector", parameters=("aesthetic_embed",), null=null,
        drop_rate=0.1, is_guided=True,
    )  # fmt: skip
    conditions.register(entry)

    @embedders.register("aesthetic")
    def embed_aesthetic(network, cond, t):
        score = cond.get("aesthetic")
        score = jnp.full(t.shape[0], -1.0) if score is None else score
        return embedders.embed_scalar(network, "aesthetic_embed", score[:, None])


class Scored(base.Source):
    """Scenes with a score beside image and caption."""

    scenes = source.Scenes(length=12)

    def __len__(self):
        return len(self.scenes)

    def read(self, index):
        return {**self.scenes[index], "aesthetic": np.float32(index / 12)}

    def fingerprint(self):
        return "scored"


@pytest.mark.parametrize("in_memory", [True, False])
def test_latents_keep_the_arrays_of_a_registered_condition(aesthetic, in_memory, tmp_path):
    config = tiny_run.make_config(tmp_path).data
    data = dataclasses.replace(config, source=Scored(), text_encoder=tiny_run.ENCODER, in_memory=in_memory)
    batch = next(data.batches(0, 12))
    np.testing.assert_allclose(np.sort(batch.cond.get("aesthetic")), np.arange(12) / 12, rtol=1e-6)


def scored(position):
    batch = students.rows(position)
    return batch._replace(cond=batch.cond.put(aesthetic=np.linspace(0, 1, students.BATCH, dtype=np.float32)))


@pytest.mark.long
def test_a_condition_of_ones_own_grows_trains_drops_and_guides(aesthetic):
    old, model = students.make_teacher(), students.make_model(extra_conditions=("aesthetic",))
    x, t, cond = jnp.asarray(scored(0).x0), jnp.full(students.BATCH, 0.7), jax.tree.map(jnp.asarray, scored(0).cond)
    params = growth.grow(jax.jit(model.init)(jax.random.key(0), x, t, Conditioning())["params"], old.params)
    apply = jax.jit(lambda params, x, t, cond: model.apply({"params": params}, x, t, cond))
    before = jax.jit(old.network.apply)({"params": old.params}, x, t, cond._replace(extra=None))
    np.testing.assert_array_equal(apply(params, x, t, cond), before)

    objective = FlowMatching(drop_rates=DropRates(extra=(("aesthetic", 0.5),)))
    fit = step.make_step(objective, apply, students.OPTIMIZER, ema_decay=0.9)
    state = step.start(params, students.OPTIMIZER)
    for position in range(3):
        state, metrics = fit(state, scored(position))
    assert np.isfinite(metrics["loss"])

    denoise = make_denoiser(apply, state.params, objective.schedule, objective.prediction)
    with_score, without = (denoise(x, t, c).x0 for c in (cond, conditioning.null(cond, parts=("aesthetic",))))
    np.testing.assert_array_equal(without, denoise(x, t, cond._replace(extra=None)).x0)
    assert np.abs(with_score - without).max() > 0
    guided = guidance.classifier_free(denoise, 3.0, lambda c: conditioning.null(c, parts=("aesthetic",)))(x, t, cond)
    np.testing.assert_allclose(guided.x0, without + 3 * (with_score - without), atol=1e-4)


def test_every_field_of_a_conditioning_belongs_to_one_entry():
    fields = [name for c in conditions.BUILT_IN for name in (*c.fields, *c.details)]
    assert sorted((*fields, "extra", "text_keys")) == sorted(Conditioning._fields)  # keys are made of those of the text


def test_every_entry_has_an_embedder_and_a_setting_of_the_network_switches_it_on():
    model = students.make_model(
        pooled_dim=1, aligned_channels=1, num_frame_roles=1, has_second_time=True, has_guidance=True, has_palette=True,
        num_tasks=1,
    )  # fmt: skip
    assert embedders.read_by(model) == list(conditions.BUILT_IN)
    assert set(embedders.EMBEDDERS) == {c.name for c in conditions.BUILT_IN}
    assert [c.name for c in embedders.read_by(students.make_model())] == ["text"]


def test_arrays_of_registered_names_travel_beside_the_fields(aesthetic):
    cond = conditions.from_arrays({"latents": 0, "caption": "", "task": np.zeros(2), "aesthetic": np.ones(2)})
    assert cond == Conditioning(task=cond.task, extra={"aesthetic": cond.get("aesthetic")})
    assert cond.get("pooled") is None
    assert Conditioning().get("aesthetic") is None
    assert cond.put(r=1).extra == cond.extra
    assert jax.tree.structure(Conditioning().put(task=0)) == jax.tree.structure(Conditioning(task=0))


def test_what_a_condition_adds_to_each_sample():
    cond = Conditioning(text=np.ones((2, 5, 3)), frames=np.ones((2, 3, 4, 4, 1)), palette=np.ones((2, 4, 3)))
    assert conditions.sizes(cond) == (5, 3, 4)
    assert conditions.sizes(cond._replace(task=np.ones(2), pooled=np.ones((2, 9)))) == (5, 3, 5)
    assert conditions.sizes(Conditioning()) == (0, 0, 0)


def test_an_own_condition_is_dropped_at_its_rate_whatever_else_is_registered(aesthetic):
    count, rates = 10_000, DropRates(text=0.3)
    cond = Conditioning(text=jnp.ones((count, 2, 1)), extra={"aesthetic": jnp.ones(count)})
    dropped = conditioning.drop(cond, jax.random.key(0), rates)
    is_gone = dropped.get("aesthetic") == -1
    assert abs(is_gone.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / count)
    alone = conditioning.drop(cond._replace(extra=None), jax.random.key(0), rates)
    np.testing.assert_array_equal(alone.text, dropped.text)
    assert abs((is_gone & ~dropped.text_mask[:, 1]).mean() - 0.03) < 4 * np.sqrt(0.03 * 0.97 / count)
    assert not conditioning.null(cond, parts=("aesthetic",)).get("aesthetic").max() > -1
    assert DropRates(extra=(("aesthetic", 0.7),)).by_condition()["aesthetic"] == 0.7


def test_guidance_of_a_request_strengthens_the_conditions_that_say_so(aesthetic):
    encoded = Conditioning(text=jnp.ones((2, 3, 4))), Conditioning(text=jnp.zeros((1, 3, 4)))
    extra = Conditioning(
        extra={"aesthetic": np.ones(2)}, aligned=np.ones((2, 1, 2, 2, 1)), palette=np.ones((2, 1, 3)), task=np.ones(2)
    )
    cond, against = prompts.join(encoded, extra, None)
    for name in ("aesthetic", "aligned", "palette", "task", "text"):
        assert cond.get(name).all(), name
    assert against.aligned.all()
    assert against.task.all()
    assert (against.get("aesthetic") == -1).all()
    assert not against.palette_mask.any()
    assert not against.text.any()


def test_conditions_that_are_not_known_are_refused(aesthetic):
    with pytest.raises(ValueError, match=r"no condition 'style' among text, .*import the module"):
        students.make_model(extra_conditions=("style",))
    with pytest.raises(ValueError, match=r"no condition \['style'\] can be dropped"):
        DropRates(extra=(("style", 0.1),))
    entry = conditions.find("aesthetic")
    with pytest.raises(ValueError, match="palette belongs to a condition of the library"):
        conditions.register(conditions.Condition(name="colors", fields=("palette",), joins="tokens"))
    conditions.register(entry)
    batch, model = students.rows(0), students.make_model()
    scores = batch.cond.put(aesthetic=np.ones(students.BATCH, np.float32))
    with pytest.raises(ValueError, match=r"cond.extra has 'aesthetic', but this network has extra_conditions=\(\)"):
        jax.eval_shape(model.init, jax.random.key(0), batch.x0, jnp.zeros(students.BATCH), scores)
    del embedders.EMBEDDERS["aesthetic"]
    with pytest.raises(ValueError, match="'aesthetic' has no embedder"):
        students.make_model(extra_conditions=("aesthetic",))
