"""Image classifiers of transformers behind the boundary: names, answers, pixels, refusals. 20 seconds, most of them the
import of that library."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("transformers")

from support.families import FAMILIES, SIDE, edit, model_of, rename, write

from hfmega.errors import SourceError
from hfmega.models import library
from hfmega.models.graph.trace import spaces_of
from hfmega.weights import align
from hfmega.weights.checkpoint import Checkpoint, from_folder, load_each, load_weights, save_weights
from hfmega.weights.mergeable import check_mergeable
from hfmega.weights.permute import permute, random_permutations


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """The folder of a tiny vision transformer, to be spoilt."""
    return write("vit", tmp_path / "vit")


SIZES = [(32, 32), (48, 36), (35, 61), (101, 99)]  # width, height


def images() -> list[Image.Image]:
    """Noise, which every resize and every crop changes."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (high, wide, 3), dtype=np.uint8)) for wide, high in SIZES]


def network(checkpoint: Checkpoint) -> torch.nn.Module:
    model = library.build(checkpoint.spec)
    library.load_into(checkpoint.spec, model, load_weights(checkpoint))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_are_those_of_the_official_pipeline(family: str, tmp_path: Path) -> None:
    import transformers

    checkpoint = from_folder(write(family, tmp_path))
    official: Any = transformers.pipeline("image-classification", model=str(tmp_path))
    model, pixels = network(checkpoint), library.transform(checkpoint.spec)
    normalize = library.normalizer(checkpoint.spec, torch.device("cpu"))
    assert checkpoint.spec.labels == tuple(map(str, range(10)))
    with torch.inference_mode():
        for image in images():
            expected = official.preprocess(image)
            seen = normalize(pixels(image)[None])
            assert (seen - expected["pixel_values"]).abs().max() < 1e-5
            assert (model(seen) - official.model(**expected).logits).abs().max() < 1e-5


OFFICIAL: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {},
    "Beit": {"do_center_crop": True},
    "ConvNext": {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
    "ConvNext at 384": {"size": {"shortest_edge": 384}},
    "Bit": {},
    "CLIP": {},
    "Siglip": {},
    "MobileNetV2": {},
    "MobileViT": {},  # blue first
    "EfficientNet": {"include_top": True},  # divides by the standard deviation twice
    "EfficientNet with offset": {"rescale_offset": True, "include_top": False},
    "Levit": {},
    "Pvt": {},
    "PoolFormer": {},
    "PPLCNet": {},
    "Perceiver": {},
    "Segformer": {},
}


@pytest.mark.parametrize("kind", OFFICIAL)
def test_pixels_are_those_of_the_official_processor(kind: str) -> None:
    import transformers

    from hfmega.models.transformers.images import Processor

    official = getattr(transformers, f"{kind.split()[0]}ImageProcessor")(**OFFICIAL[kind])
    ours = Processor(json.loads(official.to_json_string()), "vit", "RGB", "here")
    normalize = ours.probe().normalizer(torch.device("cpu"))
    for image in images():
        expected = official(image, return_tensors="pt")["pixel_values"]
        assert (normalize(ours.levels(image)[None]) - expected).abs().max() < 1e-5


def test_names_are_those_of_the_file(tmp_path: Path) -> None:
    checkpoint = from_folder(write("vit", tmp_path))
    state = load_weights(checkpoint)
    assert library.sizes(checkpoint.spec) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    model = network(checkpoint)
    assert library.state_of(checkpoint.spec, model).keys() == state.keys()
    assert sum(not name.endswith(key) for key, name in checkpoint.spec.names.own.items()) > 20  # or this tests nothing
    for name, tensor in library.parameters_of(checkpoint.spec, model).items():
        assert torch.equal(tensor, state[name])


# How many spaces a family has, and the share of its numbers that they move: of a vision transformer one for each MLP,
# one for the heads of each attention, and the residual stream. SigLIP's text side and unused head stay.
SPACES = {
    "vit": (5, 1.0),
    "swin": (6, 1.0),
    "dinov2": (5, 1.0),
    "beit": (3, 0.97),
    "siglip": (5, 0.76),
    "resnet": (5, 1.0),
}


@pytest.mark.parametrize("family", SPACES)
def test_permuted_networks_compute_the_same(family: str, tmp_path: Path) -> None:
    checkpoint = from_folder(write(family, tmp_path))
    draw = torch.Generator().manual_seed(0)
    state = {
        n: t + 0.1 * torch.rand(t.shape, generator=draw) * (t.dim() == 1) for n, t in load_weights(checkpoint).items()
    }
    spaces, model = spaces_of(checkpoint.spec), library.build(checkpoint.spec).double()
    turned = permute(state, spaces, random_permutations(spaces, 1))
    seen = torch.randn(2, *checkpoint.spec.preprocessing.input_size, generator=draw, dtype=torch.float64)
    found = []
    with torch.inference_mode():
        for tensors in (state, turned):
            library.load_into(checkpoint.spec, model, tensors)
            found.append(model(seen))
    assert (found[0] - found[1]).abs().max() < 1e-12 * found[0].abs().max()
    touched = {axis.tensor for space in spaces.spaces for axis in space.axes}
    share = sum(state[name].numel() for name in touched) / sum(tensor.numel() for tensor in state.values())
    assert (len(spaces.spaces), round(share, 2)) == SPACES[family]
    assert sum(not torch.equal(state[name], turned[name]) for name in touched) > 0.9 * len(touched)
    back = permute(turned, spaces, align.match_weights(state, turned, spaces))
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_matching_activations_undoes_a_permutation_of_heads(tmp_path: Path) -> None:
    checkpoint = from_folder(write("vit", tmp_path))
    state, spaces = load_weights(checkpoint), spaces_of(checkpoint.spec)
    heads = [space for space in spaces.spaces if any(axis.width == 8 for axis in space.axes)]
    assert [space.size for space in heads] == [3, 3]
    turned = permute(state, spaces, random_permutations(spaces, 2))
    seen = torch.randn(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    orders = align.match_activations(checkpoint.spec, state, turned, spaces, seen)
    back = permute(turned, spaces, orders)
    assert all(torch.equal(back[name], state[name]) for name in state)


def refusal(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        from_folder(folder)
    return str(caught.value)


def never(*_: object, **__: object) -> None:
    raise AssertionError("a socket was opened")


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "code": ({"auto_map": {"AutoConfig": "evil.Config"}}, "names code of its own, which hfmega never runs (auto_map)"),
    "quantized": ({"quantization_config": {"quant_method": "bnb"}}, "has quantized weights"),
    "several labels": ({"problem_type": "multi_label_classification"}, "gives several labels to an image"),
    "numbers": ({"problem_type": "regression"}, "predicts numbers"),
    "layers": ({"num_hidden_layers": 10**7}, "10000000 is out of range (at num_hidden_layers)"),
    "width": ({"hidden_size": 10**9}, "1000000000 is out of range (at hidden_size)"),
    "wide, but possible": ({"hidden_size": 2**20}, "numbers in its weights, its config describes"),
    "infinite": ({"layer_norm_eps": float("nan")}, "nan is out of range (at layer_norm_eps)"),
    "heads of no size": ({"num_attention_heads": 7}, "of its config of shape (21,)"),
    "text for a number": ({"hidden_size": "large"}, "Validation error for field 'hidden_size'"),
    "labels with holes": ({"id2label": {"0": "a", "2": "b"}}, "id2label does not number its labels from 0 on"),
    "labels of no number": ({"id2label": {"a": "a"}}, "(at id2label)"),
    "labels beyond count": ({"id2label": None, "num_labels": 10**9}, "1000000000 classes (at num_labels)"),
    "other classes": ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "classifier.bias of shape (10,)"),
    "another class": ({"architectures": ["ViTModel"]}, "is no image classifier that transformers"),
    "a language model": ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is no image classifier"),
    "no type": ({"model_type": "../../evil", "architectures": None}, "is no image classifier"),
    "one more layer": ({"num_hidden_layers": 3}, "lacks the tensor vit.layers.2."),
    "larger images": ({"image_size": 64}, "position_embeddings of shape"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_config_is_refused_in_a_sentence(kind: str, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, expected = HOSTILE[kind]
    edit(vit, lambda document: document.update(changes))
    monkeypatch.setattr(socket, "socket", never)
    said = refusal(vit)
    assert expected in said


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_config_cannot_have_code_fetched(key: str, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = from_folder(vit)
    edit(vit, lambda document: document.update({key: "kernels-community/flash-attn", "dtype": "bfloat16"}))
    monkeypatch.setattr(socket, "socket", never)
    checkpoint = from_folder(vit)
    assert checkpoint.spec.identity == plain.spec.identity
    seen = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(network(checkpoint)(seen), network(plain)(seen))
    assert key not in library.merged_config(checkpoint.spec, None)


PROCESSORS: dict[str, tuple[dict[str, Any], str]] = {
    "no common size": ({"size": {"shortest_edge": SIDE}, "image_processor_type": "BitImageProcessor",
                        "do_center_crop": False, "crop_size": None}, "have no common size"),
    "no resize": ({"do_resize": False}, "have no common size"),
    "another size than the network": ({"size": {"height": 48, "width": 48}}, "does not take the images of its"),
    "a huge size": ({"size": {"height": 10**6, "width": 10**6}}, "is out of range (at size.height)"),
    "clusters": ({"image_processor_type": "ImageGPTImageProcessor"}, "Clusters must be provided"),
    "patches": ({"image_processor_type": "Siglip2ImageProcessor"}, "does not make one image of one image"),
    "code": ({"auto_map": {"AutoImageProcessor": "evil.Processor"}}, "names code of its own"),
    "a class of no processor": ({"image_processor_type": "ViTForImageClassification"}, "which hfmega does not know"),
    "a module": ({"image_processor_type": "os.system"}, "which hfmega does not know"),
    "a standard deviation of zero": ({"image_std": [0.0, 1.0, 1.0]}, "does more to a pixel than to scale it"),
    "words": ({"image_mean": "grey"}, "the ViTImageProcessor of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_processor_that_cannot_be_taken_is_refused_in_a_sentence(kind: str, vit: Path) -> None:
    changes, expected = PROCESSORS[kind]
    edit(vit, lambda document: document.update(changes), "preprocessor_config.json")
    said = refusal(vit)
    assert expected in said
    assert "\n" not in said


def test_a_checkpoint_without_processor_is_refused(vit: Path) -> None:
    (vit / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in refusal(vit)


def test_old_processor_files_are_those_of_today(vit: Path) -> None:
    today = from_folder(vit).spec.identity
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": SIDE, "image_processor_type": None}
    edit(vit, lambda document: document.update(old), "preprocessor_config.json")
    assert from_folder(vit).spec.identity == today


def test_the_same_shapes_of_another_function_are_refused_by_the_name_of_the_key(tmp_path: Path) -> None:
    three, six = (from_folder(write("vit", tmp_path / str(n), num_attention_heads=n)) for n in (3, 6))
    with pytest.raises(SourceError, match=r"differ in model arguments: num_attention_heads \(6 and 3\)"):
        check_mergeable([three, six], [load_weights(three), load_weights(six)])


def test_what_versions_and_trainers_write_differently_is_the_same_network(vit: Path, tmp_path: Path) -> None:
    other = write("vit", tmp_path / "other", 2)
    first = from_folder(vit)

    def older(document: dict[str, Any]) -> None:
        document.update(
            problem_type="single_label_classification", torch_dtype="float32", transformers_version="4.20.0"
        )
        for key in ("dtype", "pooler_act", "pooler_output_size", "encoder_stride"):
            document.pop(key, None)

    edit(other, older)
    second = from_folder(other)
    check_mergeable([first, second], [load_weights(first), load_weights(second)])


def test_labels_are_sorted_by_their_numbers(vit: Path) -> None:
    names = {str(k): f"n{k}" for k in range(10)}
    edit(vit, lambda document: document.update(id2label=dict(sorted(names.items(), key=lambda item: item[1][::-1]))))
    assert from_folder(vit).spec.labels == tuple(names.values())
    edit(vit, lambda document: document.update(id2label={str(k): f"LABEL_{k}" for k in range(10)}))
    assert from_folder(vit).spec.labels is None


def test_surplus_tensors_are_kept_and_names_of_other_writers_are_brought_together(tmp_path: Path) -> None:
    first, second = (write("swin", tmp_path / str(seed), seed) for seed in (1, 2))
    index = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    state = load_file(first / "model.safetensors")
    save_weights({**state, index: torch.arange(256).view(16, 16)}, first / "model.safetensors")  # as v4 wrote it
    rename(second, lambda name: name.removeprefix("swin."))  # a base model's names
    checkpoints = [from_folder(first), from_folder(second)]
    assert checkpoints[0].spec.names.surplus == {index}
    states = load_each(checkpoints)
    check_mergeable(checkpoints, states)
    assert states[1].keys() == states[0].keys()
    seen = torch.randn(1, 3, SIDE, SIDE)
    model = library.build(checkpoints[0].spec)
    library.load_into(checkpoints[0].spec, model, states[1])
    assert torch.equal(model(seen), model_of("swin", 2)(seen).logits)


def test_counters_that_older_writers_left_out_are_not_missed(tmp_path: Path) -> None:
    folder = write("resnet", tmp_path)
    state = load_file(folder / "model.safetensors")
    save_weights({n: t for n, t in state.items() if "num_batches" not in n}, folder / "model.safetensors")
    checkpoint = from_folder(folder)
    check_mergeable([checkpoint], [load_weights(checkpoint)])
    seen = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(network(checkpoint)(seen), model_of("resnet")(seen).logits)


@pytest.mark.parametrize("family", ["vit", "swin", "resnet", "mobilenet_v2"])
def test_a_stage_is_a_block(family: str, tmp_path: Path) -> None:
    spec = from_folder(write(family, tmp_path)).spec
    stages = {library.stage_of(spec)(name) for name in library.sizes(spec)}
    numbered = {stage for stage in stages if stage[-1].isdigit() and stage != "classifier.1"}
    assert {"vit": 2, "swin": 2, "resnet": 2, "mobilenet_v2": 16}[family] == len(numbered), stages
