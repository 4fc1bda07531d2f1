"""A run keeps what it compiled, unless the user keeps it elsewhere."""

import jax
import jax.numpy as jnp
import pytest

from nova_jax import compilation_cache
from nova_jax.runs import train
from tests import tiny_run


@pytest.fixture
def no_cache(monkeypatch):
    """As for a user who named no folder."""
    with compilation_cache._set("jax_compilation_cache_dir", None):
        yield


def compile_anew(number):
    jax.clear_caches()
    jax.jit(lambda x: x + number)(jnp.zeros(3))


def test_programs_are_kept_in_the_run_folder_and_not_after_it(no_cache, tmp_path):
    with compilation_cache.kept_in(tmp_path):
        compile_anew(2.5)
    kept = len(list((tmp_path / "cache").iterdir()))
    assert kept
    compile_anew(3.5)
    assert len(list((tmp_path / "cache").iterdir())) == kept


def test_a_folder_that_the_user_named_stays(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert before
    with compilation_cache.kept_in(tmp_path):
        assert jax.config.jax_compilation_cache_dir == before
    assert not (tmp_path / "cache").exists()


def test_several_processes_keep_nothing(no_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with compilation_cache.kept_in(tmp_path):
        assert jax.config.jax_compilation_cache_dir is None


def test_nothing_is_read_where_the_cache_is_unused(no_cache, tmp_path):
    hits = []
    jax.monitoring.register_event_listener(
        lambda name, **_: hits.append(name) if name == "/jax/compilation_cache/cache_hits" else None
    )
    with compilation_cache.kept_in(tmp_path):
        compile_anew(4.5)
        with compilation_cache.unused():
            compile_anew(4.5)
        assert not hits
        compile_anew(4.5)
    assert hits


@pytest.mark.long
def test_a_run_finds_the_step_that_was_compiled_for_it(no_cache, tmp_path):
    config = tiny_run.make_config(tmp_path)
    config.data.encode()
    train.compile_step(config)
    before = set((tmp_path / "run" / "cache").iterdir())
    assert any(path.name.startswith("jit_step-") for path in before)
    jax.clear_caches()
    train.run(config)
    new = set((tmp_path / "run" / "cache").iterdir()) - before
    assert new
    assert not any(path.name.startswith("jit_step-") for path in new)
