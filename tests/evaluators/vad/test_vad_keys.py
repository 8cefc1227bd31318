"""Public checkpoints fit: names and shapes of every tensor, and errors that say what does not."""

import pytest
import torch

from dwm.errors import InputError
from dwm.models.weights import load_model, save_model
from evaluators.vad import VAD, build_vad
from evaluators.vad.config import CONFIGS
from evaluators.vad.weights import load_public
from tests.evaluators.vad.vad_factories import TINY, public_shapes


@pytest.mark.parametrize(("name", "count"), [("vad_tiny", 746), ("vad_base", 1062)])
def test_a_network_has_exactly_the_tensors_of_the_public_checkpoint(name, count):
    shapes = public_shapes(name)
    assert len(shapes) == count
    with torch.device("meta"):
        model = build_vad(name)
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == shapes
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    model.load_state_dict(state, strict=True, assign=True)


@pytest.mark.parametrize(("name", "parameters", "trained"), [("vad_tiny", 39.87, 39.59), ("vad_base", 58.36, 58.08)])
def test_parameters_are_as_many_as_published(name, parameters, trained):
    with torch.device("meta"):
        model = build_vad(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6 == pytest.approx(trained, abs=0.005)


def test_the_small_network_has_five_to_eight_million_parameters():
    with torch.device("meta"):
        model = build_vad("vad_proving_ground")
    assert 5e6 < sum(p.numel() for p in model.parameters()) < 8e6
    assert all(p.requires_grad for key, p in model.named_parameters() if "code_weights" not in key)


@pytest.fixture
def public_file(tmp_path, monkeypatch):
    """A file as mmcv's runner writes it, of a tiny network, and the tensors in it."""
    monkeypatch.setitem(CONFIGS, "vad_test", TINY)
    noise = torch.Generator().manual_seed(3)
    state = {key: torch.rand(tensor.shape, generator=noise).to(tensor.dtype) for key, tensor in VAD(TINY).state_dict().items()}
    contents = {"meta": {"epoch": 60, "CLASSES": ("car",)}, "state_dict": state, "optimizer": {"state": {}}}
    path = tmp_path / "VAD_test.pth"
    torch.save(contents, path)
    return path, contents


def test_a_public_file_is_loaded_to_the_last_tensor(public_file):
    path, contents = public_file
    model = load_public(path, "vad_test")
    assert not model.training
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, contents["state_dict"][key], rtol=0, atol=0)


def test_what_does_not_fit_is_named(public_file):
    path, contents = public_file
    state = contents["state_dict"]
    state["pts_bbox_head.extra"] = torch.zeros(1)
    del state["pts_bbox_head.ego_query.weight"]
    state["img_backbone.bn1.bias"] = torch.zeros(7)
    torch.save(contents, path)
    with pytest.raises(InputError) as error:
        load_public(path, "vad_test")
    message = str(error.value)
    assert message.startswith(str(path))
    assert "1 tensor 'pts_bbox_head.ego_query.weight' missing" in message
    assert "1 tensor 'pts_bbox_head.extra' unexpected" in message
    assert "1 tensor 'img_backbone.bn1.bias' of another shape" in message
    assert "vad_tiny VAD_tiny.pth" in error.value.fix


def test_weights_that_are_not_finite_are_refused(public_file):
    path, contents = public_file
    contents["state_dict"]["img_backbone.bn1.bias"][0] = float("nan")
    torch.save(contents, path)
    with pytest.raises(InputError, match=r"bn1\.bias' not finite"):
        load_public(path, "vad_test")


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    path = tmp_path / "VAD_tiny.pth"
    with pytest.raises(InputError, match="no such weights file"):
        load_public(path, "vad_tiny")
    path.write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_public(path, "vad_tiny")
    torch.save({"model": {}}, path)
    with pytest.raises(InputError, match="has no 'state_dict'"):
        load_public(path, "vad_tiny")


def test_an_unknown_size_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="no size is called 'vad_huge'; sizes: vad_tiny, vad_base, vad_proving_ground"):
        build_vad("vad_huge")


def test_own_weights_come_back_with_their_configuration(tmp_path):
    model, path = VAD(TINY), tmp_path / "vad.safetensors"
    save_model(model, path, {"steps": "7"})
    loaded, config = load_model(path, "vad")
    assert config == loaded.config == TINY
    for key, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[key], rtol=0, atol=0)
