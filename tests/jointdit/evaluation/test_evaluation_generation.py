"""FID, Inception score and CLIP score through networks given by path, against sums written out with NumPy."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jointdit.errors import InputError, ModelError
from jointdit.evaluation.features import InceptionFeatures, TransformersFeatures, VaeFeatures, load_clip, load_features
from jointdit.evaluation.generation import check_installed, clip_score, frechet_distance, inception_score
from jointdit.evaluation.inception import Inception, load_inception
from jointdit.scenes import render_scene
from tests.small_models import save_clip


@pytest.fixture(scope="module")
def rgb_images():
    return [render_scene(seed, 48, 48).rgb for seed in range(24)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A small random image classifier of transformers with its processor."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("models") / "resnet-small"
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=5, downsample_in_first_stage=True
    )
    network = ResNetForImageClassification(config).eval()
    with torch.no_grad():
        network.classifier[1].weight.mul_(40)
    network.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def frechet_by_eigenvalues(one, other):
    """FID of features (N, F) and (M, F), by the eigenvalues of the symmetric product of roots."""
    means = one.mean(axis=0) - other.mean(axis=0)
    first, second = (np.cov(features, rowvar=False) for features in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    return means @ means + np.trace(first) + np.trace(second) - 2 * shared


def features_of(network, rgb_images):
    with torch.no_grad():
        return network(torch.from_numpy(np.stack(rgb_images)).permute(0, 3, 1, 2)).double().numpy()


def test_fid_equals_an_independent_computation(classifier, rgb_images):
    network = load_features(str(classifier))
    assert isinstance(network, TransformersFeatures)
    assert network.num_features == 12
    # shifted to red, so that means and covariances both differ
    redder = np.array([40, 0, 0])
    generated = [np.clip(image.astype(int) + redder, 0, 255).astype(np.uint8) for image in rgb_images[:18]]
    found = frechet_distance(network, rgb_images, generated)
    by_hand = frechet_by_eigenvalues(features_of(network, rgb_images), features_of(network, generated))
    assert found == pytest.approx(by_hand, rel=1e-4)
    assert found > 0
    assert frechet_distance(network, rgb_images, rgb_images) == pytest.approx(0, abs=1e-4 * found)


def test_fid_through_the_checkpoints_own_vae(small_pipeline, rgb_images):
    network = VaeFeatures(small_pipeline.vae, "small")
    assert network.num_features == 32
    found = frechet_distance(network, rgb_images[:12], rgb_images[12:])
    by_hand = frechet_by_eigenvalues(features_of(network, rgb_images[:12]), features_of(network, rgb_images[12:]))
    assert found == pytest.approx(by_hand, rel=1e-3)
    with pytest.raises(InputError, match="give an image classifier"):
        inception_score(network, rgb_images)


def test_the_features_of_a_classifier_are_those_before_its_classes(classifier, rgb_images):
    from transformers import ResNetForImageClassification

    network = TransformersFeatures(str(classifier))
    batch = torch.from_numpy(np.stack(rgb_images[:2])).permute(0, 3, 1, 2)
    with torch.no_grad():
        own = ResNetForImageClassification.from_pretrained(classifier).eval()
        logits = own.classifier(network(batch)[:, :, None, None])
        np.testing.assert_allclose(logits.numpy(), network.logits(batch).numpy(), rtol=1e-4, atol=1e-4)


def test_inception_score_equals_an_independent_computation(classifier, rgb_images):
    network = TransformersFeatures(str(classifier))
    batch = torch.from_numpy(np.stack(rgb_images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        shares = network.logits(batch).double().softmax(dim=1).numpy()
    divergence = (shares * (np.log(shares) - np.log(shares.mean(axis=0)))).sum(axis=1).mean()
    state = torch.random.get_rng_state()
    found = inception_score(network, rgb_images, splits=1)
    assert found == pytest.approx(np.exp(divergence), rel=1e-4)
    assert found > 1.01
    assert torch.equal(torch.random.get_rng_state(), state)
    assert inception_score(network, rgb_images, splits=4) == inception_score(network, rgb_images, splits=4)
    with pytest.raises(InputError, match="3 images are fewer than the 10 parts"):
        inception_score(network, rgb_images[:3])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("models") / "clip-small")


def test_clip_score_is_the_mean_cosine_and_long_prompts_are_cut_at_the_end(clip_folder, rgb_images):
    clip = load_clip(str(clip_folder))
    prompts = [f"a {word} thing" for word in ("red", "blue", "green")] + ["many words " * 10]
    found = clip_score(clip, rgb_images[:4], prompts)
    inputs = clip.processor(text=prompts, images=rgb_images[:4], return_tensors="pt", padding=True, truncation=True)
    assert inputs["input_ids"].shape[1] == 24
    with torch.no_grad():
        out = clip.model(**inputs)
    cosines = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    assert found == pytest.approx(100 * float(cosines.mean()), rel=1e-3)
    with pytest.raises(InputError, match="4 images and 2 prompts"):
        clip_score(clip, rgb_images[:4], prompts[:2])


def test_bad_sets_and_bad_networks_are_one_sentence(classifier, rgb_images, tmp_path):
    check_installed()
    network = load_features(str(classifier))
    with pytest.raises(InputError, match="1 real and 24 generated"):
        frechet_distance(network, rgb_images[:1], rgb_images)
    with pytest.raises(InputError, match="images have sizes"):
        frechet_distance(network, [rgb_images[0], rgb_images[1][:32]], rgb_images)
    with pytest.raises(ModelError, match=r"inception\.pth is a pickle"):
        load_features(str(tmp_path / "inception.pth"))
    with pytest.raises(ModelError, match="neither an Inception-v3 safetensors file nor a vision model"):
        load_features(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="no CLIP model"):
        load_clip(str(classifier / "nowhere"))


def filled(network):
    """Weights drawn by name order: the same on every machine (NumPy's PCG64)."""
    rng = np.random.default_rng(7)
    tensors = {}
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            tensors[name] = tensor
            continue
        values = rng.standard_normal(tuple(tensor.shape), dtype=np.float32)
        if tensor.ndim > 1:
            values *= np.sqrt(2 / np.prod(tensor.shape[1:]))
        elif name.endswith(("bn.weight", "running_var")):
            values = 1 + 0.1 * np.tanh(values)
        else:
            values *= 0.1
        tensors[name] = torch.from_numpy(values.astype(np.float32))
    return tensors


# What torch-fidelity 0.4.0 (FeatureExtractorInceptionV3) gave for these weights and this image.
FEATURES = [0.029244, 1.105129, 2.762129, 1.160233, 0.0, 0.004175, 0.002559, 0.10513]
LOGITS = [-1.932374, -3.07757, -1.89414, -2.895418, -0.24389, -0.064663, 2.566801, 0.73986]


def test_inception_gives_what_torch_fidelity_gives_and_refuses_other_weights(tmp_path):
    tensors = filled(Inception())
    path = tmp_path / "inception.safetensors"
    save_file(tensors, path)
    network = load_features(str(path))
    assert isinstance(network, InceptionFeatures)
    image = torch.from_numpy(np.random.default_rng(8).integers(0, 256, (2, 3, 70, 101), dtype=np.uint8))[:1]
    image[:, :, 20:50, 30:80] //= 4
    with torch.no_grad():
        features, logits = network(image), network.logits(image)
    assert features.shape == (1, network.num_features)
    np.testing.assert_allclose(features[0, ::256].numpy(), FEATURES, atol=1e-4)
    np.testing.assert_allclose(logits[0, ::126].numpy(), LOGITS, atol=1e-4)

    with pytest.raises(ModelError, match=r"nowhere\.safetensors does not exist"):
        load_inception(tmp_path / "nowhere.safetensors")
    save_file({"fc.weight": torch.zeros(10, 2048)}, path)
    with pytest.raises(ModelError, match=r"(is missing|has shape)"):
        load_inception(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"inception\.safetensors is not a safetensors file"):
        load_inception(path)
