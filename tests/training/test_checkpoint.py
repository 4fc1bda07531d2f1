"""A checkpoint is either right or refused: every kind of damage is found, and older ones take over."""

import hashlib
import json
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules
from nova_jax.training import checkpoint, optimizer, step
from nova_jax.types import TrainState


def make_state(number, width=16):
    """Incompressible arrays: Orbax itself would notice a flip in the others."""
    rng = np.random.default_rng(number)
    params = {"mlp": {"up": {"kernel": jnp.asarray(rng.standard_normal((width, 16), np.float32))}}}
    return step.start(params, optimizer.AdamW())._replace(step=jnp.int32(number), extra={"key": jax.random.key(number)})


def abstract(state):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)


def save(directory, *steps, **options):
    with checkpoint.Checkpoints(directory, **options) as checkpoints:
        for number in steps:
            checkpoints.save(number, make_state(number), {"position": 8 * number})
        checkpoints.wait()


def restore(directory, like=None):
    with checkpoint.Checkpoints(directory) as checkpoints:
        return checkpoints.restore(abstract(like or make_state(0)))


def assert_is(state, number):
    def unkeyed(state):
        return state._replace(extra=jax.random.key_data(state.extra["key"]))

    jax.tree.map(np.testing.assert_array_equal, unkeyed(state), unkeyed(make_state(number)))


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def test_a_state_comes_back_to_the_bit_with_its_position_and_metadata(tmp_path):
    save(tmp_path, 3, metadata={"fingerprint": "abc"})
    restored = restore(tmp_path)
    assert (restored.step, restored.metadata, restored.notes) == (3, {"fingerprint": "abc", "position": 24}, ())
    assert isinstance(restored.state, TrainState)
    assert_is(restored.state, 3)


def test_an_empty_folder_restores_nothing(tmp_path):
    assert restore(tmp_path / "new") is None


def test_the_state_may_change_while_it_is_being_saved(tmp_path):
    overwrite = jax.jit(lambda params: jax.tree.map(lambda a: -a, params), donate_argnums=0)
    state = make_state(1)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        overwrite(state.params)
    assert_is(restore(tmp_path).state, 1)


def test_the_newest_and_every_kth_checkpoint_are_kept(tmp_path):
    save(tmp_path, *range(1, 9), keep=2, keep_every=3)
    assert checkpoint.Checkpoints(tmp_path).steps() == [3, 6, 7, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000003", "00000006", "00000007", "00000008"]


def test_the_manifest_can_be_checked_with_sha256sum(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "00000001"
    head, *lines = (folder / checkpoint.MANIFEST).read_text().splitlines()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {line[66:] for line in lines} == files - {checkpoint.MANIFEST}
    assert all(len(line.split("  ")[0]) == 64 for line in lines)
    assert head == f"# {len(lines)} files"
    if shutil.which("sha256sum"):
        checked = ["sha256sum", "--check", "--strict", checkpoint.MANIFEST]
        assert subprocess.run(checked, cwd=folder, capture_output=True, check=True).stderr == b""


def test_a_manifest_cut_anywhere_is_noticed_and_one_of_an_earlier_version_is_read(tmp_path):
    save(tmp_path, 1)
    place = tmp_path / "00000001" / checkpoint.MANIFEST
    whole = place.read_text().splitlines(keepends=True)
    for kept in range(len(whole)):
        place.write_text("".join(whole[:kept]))
        assert checkpoint.differences(place.parent) == [f"{checkpoint.MANIFEST} changed"], kept
    place.write_text("".join(whole[1:]))
    assert checkpoint.differences(place.parent) == []


def test_a_flipped_bit_in_any_file_is_found(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "00000001"
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 6
    rng = np.random.default_rng(0)
    for file in files:
        bits = 8 * file.stat().st_size
        for bit in {0, bits - 1, *rng.integers(bits, size=12).tolist()}:
            flip(file, bit)
            assert checkpoint.differences(folder), f"bit {bit} of {file.relative_to(folder)}"
            flip(file, bit)
    assert checkpoint.differences(folder) == []


@pytest.mark.parametrize("damage", ["truncate", "zero", "delete"])
def test_other_damage_is_found_and_named(tmp_path, damage):
    save(tmp_path, 1)
    folder = tmp_path / "00000001"
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    match damage:
        case "truncate":
            file.write_bytes(file.read_bytes()[:-1])
        case "zero":
            data = file.read_bytes()
            file.write_bytes(data[:100] + bytes(64) + data[164:])
        case "delete":
            file.unlink()
    (fault,) = checkpoint.differences(folder)
    assert {"delete": "is missing"}.get(damage, "changed") in fault


def test_files_that_the_manifest_does_not_name_are_no_damage(tmp_path):
    save(tmp_path, 1, 2)
    for name in (".DS_Store", "._data", "Thumbs.db", "notes.txt", "kernel (1)"):
        for place in (".", "00000002", "00000002/state"):
            (tmp_path / place / name).write_text("stray")
    assert checkpoint.read_ema(tmp_path)[0] == 2
    restored = restore(tmp_path)
    assert (restored.step, restored.notes) == (2, ())
    assert_is(restored.state, 2)
    save(tmp_path, 3)
    assert checkpoint.Checkpoints(tmp_path).steps() == [2, 3]


def test_what_a_file_browser_left_before_the_commit_may_change_and_vanish(tmp_path, monkeypatch):
    hash_files = checkpoint._hash

    def visited(path, is_mine):
        (path / "state" / ".DS_Store").write_text("seen")
        return hash_files(path, is_mine)

    monkeypatch.setattr(checkpoint, "_hash", visited)
    save(tmp_path, 1)
    (tmp_path / "00000001" / "state" / ".DS_Store").unlink()
    assert checkpoint.differences(tmp_path / "00000001") == []


@pytest.mark.parametrize("text", ["", "\n", "x", "0" * 64 + "  state\n", "0" * 64 + " *a\n"])
def test_a_manifest_that_is_none_is_damage(tmp_path, text):
    save(tmp_path, 1)
    whole = (tmp_path / "00000001" / checkpoint.MANIFEST).read_text()
    for broken in {text, whole + text} - {whole}:
        (tmp_path / "00000001" / checkpoint.MANIFEST).write_text(broken)
        assert checkpoint.differences(tmp_path / "00000001")


def test_who_reads_an_older_checkpoint_is_told_which_and_why(tmp_path, caplog):
    save(tmp_path, 1, 2, 3, keep=3)
    assert (checkpoint.read_ema(tmp_path)[0], caplog.text) == (3, "")
    flip(tmp_path / "00000003" / "state" / "_METADATA", 99)
    (tmp_path / "00000002" / checkpoint.MANIFEST).unlink()
    assert checkpoint.read_ema(tmp_path)[0] == 1
    assert "reading step 1, not the newest: " in caplog.text
    assert "00000003 is damaged: state/_METADATA changed" in caplog.text
    assert "00000002 is not whole: it has no manifest.sha256" in caplog.text
    restore(tmp_path)
    caplog.clear()
    assert checkpoint.read_ema(tmp_path)[0] == 1
    assert "00000003.damaged was set aside" in caplog.text
    save(tmp_path, 4)
    caplog.clear()
    assert (checkpoint.read_ema(tmp_path)[0], caplog.text) == (4, "")


def test_a_folder_of_damaged_checkpoints_says_what_is_wrong_with_each(tmp_path):
    save(tmp_path, 1)
    flip(tmp_path / "00000001" / "state" / "_METADATA", 99)
    for number in (None, 1):
        with pytest.raises(checkpoint.CheckpointError, match=r"00000001 is damaged: state/_METADATA changed"):
            checkpoint.read_ema(tmp_path, step=number)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path):
    save(tmp_path, 1, 2, 3, keep=3)
    for number in (2, 3):
        data = max((tmp_path / f"{number:08d}").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
        flip(data, 999)
    restored = restore(tmp_path)
    assert restored.step == 1
    assert_is(restored.state, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000002.damaged", "00000003.damaged"]
    assert len(restored.notes) == 2
    assert "00000003.damaged" in restored.notes[0]
    assert "changed" in restored.notes[0]


def test_when_all_are_damaged_the_run_stops_with_a_list_and_keeps_stopping(tmp_path):
    save(tmp_path, 1, 2)
    for folder in tmp_path.iterdir():
        (folder / "state" / "_METADATA").unlink()
    for _ in range(2):  # also when it is started again
        with pytest.raises(checkpoint.CheckpointError, match=r"every checkpoint in .* is damaged") as error:
            restore(tmp_path)
        assert "00000001.damaged" in str(error.value)
        assert "00000002.damaged" in str(error.value)


def test_a_checkpoint_without_a_manifest_was_never_committed(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "00000002" / checkpoint.MANIFEST).unlink()
    restored = restore(tmp_path)
    assert restored.step == 1
    assert "00000002.incomplete: the run ended while it was being saved" in restored.notes[0]
    save(tmp_path, 2)  # the step can be saved again
    assert restore(tmp_path).step == 2


def test_a_first_checkpoint_that_was_not_committed_is_no_reason_to_stop(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "00000001" / checkpoint.MANIFEST).unlink()
    assert restore(tmp_path) is None


def test_remains_of_an_interrupted_save_or_deletion_are_cleared(tmp_path):
    save(tmp_path, 1)
    for name in ("00000002.orbax-checkpoint-tmp", "00000000.deleting"):
        shutil.copytree(tmp_path / "00000001", tmp_path / name)
    assert restore(tmp_path).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_state_is_restored_onto_other_devices(tmp_path):
    def placed(**sizes):
        state = make_state(5)._replace(extra=())
        return jax.device_put(state, rules.shardings(state, meshes.MeshConfig(**sizes).make()))

    saved, wanted = placed(fsdp=4, tensor=2), placed(fsdp=2)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, saved, {})
    restored = restore(tmp_path, like=wanted).state
    assert jax.tree.map(lambda a: a.sharding, restored) == jax.tree.map(lambda a: a.sharding, wanted)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(saved))


def test_the_ema_can_be_read_alone_and_never_from_a_damaged_checkpoint(tmp_path):
    save(tmp_path, 1, 2)
    flip(tmp_path / "00000002" / "state" / "_METADATA", 99)
    before = sorted(path.name for path in tmp_path.iterdir())
    number, ema = checkpoint.read_ema(tmp_path)
    assert number == 1
    jax.tree.map(np.testing.assert_array_equal, ema, make_state(1).ema)
    with pytest.raises(checkpoint.CheckpointError, match=r"no intact checkpoint of step 2 \(committed steps: 1, 2\)"):
        checkpoint.read_ema(tmp_path, step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_ema_is_placed_on_a_mesh(tmp_path):
    save(tmp_path, 1)
    mesh = meshes.MeshConfig(fsdp=2, tensor=2).make()
    _, ema = checkpoint.read_ema(tmp_path, mesh=mesh)
    assert jax.tree.map(lambda a: a.sharding, ema) == rules.shardings(ema, mesh)


def test_a_checkpoint_of_another_model_names_what_differs_and_is_not_called_damaged(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(checkpoint.CheckpointError, match="holds another model or optimizer") as error:
        restore(tmp_path, like=make_state(0, width=8))
    assert "params/mlp/up/kernel: saved (16, 16), this run has (8, 16)" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 0, 100))
    with pytest.raises(checkpoint.CheckpointError, match=r"needs up to 4,1\d\d bytes and .* has 100 free"):
        save(tmp_path, 2)
    assert checkpoint.Checkpoints(tmp_path).steps() == [1]


def test_a_failure_in_the_background_is_raised_by_the_next_call(tmp_path, monkeypatch):
    def fail(path, digests):
        raise OSError(28, "No space left on device")

    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoint, "_write_manifest", fail)
        checkpoints.save(1, make_state(1), {})
        with pytest.raises(checkpoint.CheckpointError, match=r"older checkpoints are intact: .*No space left"):
            checkpoints.wait()


def test_saving_behind_the_newest_checkpoint_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(checkpoint.CheckpointError, match="exists already"):
        save(tmp_path, 1)


def test_metadata_is_plain_json(tmp_path):
    save(tmp_path, 1, metadata={"fingerprint": "abc"})
    found = [json.loads(path.read_text()) for path in pathlib.Path(tmp_path).rglob("_CHECKPOINT_METADATA")]
    assert found[0]["custom_metadata"] == {"fingerprint": "abc", "position": 8}


def test_a_checkpoint_is_remembered_by_the_digest_of_its_manifest(tmp_path):
    save(tmp_path, 1, 2)
    flip(tmp_path / "00000002" / "state" / "_METADATA", 99)
    found = checkpoint.origin(tmp_path)
    assert found["checkpoint"] == str(tmp_path / "00000001")
    text = (tmp_path / "00000001" / checkpoint.MANIFEST).read_bytes()
    assert found["sha256"] == hashlib.sha256(text).hexdigest()
