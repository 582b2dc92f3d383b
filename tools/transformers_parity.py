"""Compares our models with `transformers`' own, and writes what the tests compare with.

    python tools/transformers_parity.py            # needs: pip install torch transformers

Small SigLIP, Gemma 1, 2, 3 and PaliGemma 1, 2, 3-like models with random weights and odd sizes are
made by transformers, run by transformers, and written to tests/golden/transformers: weights as it
saves them, inputs, logits and greedily generated ids. Then our exports are loaded by transformers:
no key may be missing or unexpected. `tests/checkpoints/hugging_face_test.py` does the rest without
torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from vla_jax.models.presets import PRESETS, DecoderConfig, ModelConfig, VitConfig

GOLDEN = Path(__file__).parents[1] / "tests/golden/transformers"
NEW_TOKENS = 9

_VIT = VitConfig(24, 2, 44, 3, 7)
_GEMMA = DecoderConfig(20, 3, 36, 4, 2, 6, 97)
_GEMMA2 = dataclasses.replace(
    _GEMMA,
    depth=4,
    post_norms=True,
    query_scale=9,
    attention_softcap=2.0,
    logit_softcap=1.5,
    window=7,
    global_every=2,
)
_GEMMA3 = dataclasses.replace(
    _GEMMA,
    depth=7,
    num_kv_heads=1,
    post_norms=True,
    qk_norm=True,
    window=7,
    global_every=6,
    rope_base=1e6,
    rope_scale=8.0,
)
TINY = {
    "gemma": (_VIT, _GEMMA),
    "gemma2": (_VIT, _GEMMA2),
    "gemma3": (_VIT, _GEMMA3),
}
"""Name of the decoder -> our model. Image 21 px: 9 patches."""


def register(name: str) -> ModelConfig:
    """The model as a preset of ours."""
    PRESETS[name] = TINY[name]
    return ModelConfig(name, image_size=21, compute_dtype="float32")


def make_inputs(config: ModelConfig) -> dict[str, np.ndarray]:
    """Three rows: prompts and answers of different lengths, padded at the end."""
    rng = np.random.default_rng(7)
    length = 14
    prompt, end = np.array([[5], [9], [2]]), np.array([[11], [14], [4]])
    position = np.arange(length)
    size = config.image_size
    return {
        "images": rng.integers(0, 256, (3, size, size, 3), np.uint8),
        "tokens": rng.integers(3, config.decoder.vocab_size, (3, length)).astype(np.int32),
        "valid": np.broadcast_to(position < end, (3, length)).copy(),
        "attend_causal": (position >= prompt) & (position < end),
        "prompt": prompt[:, 0],
    }


def run_paligemma(model, config: ModelConfig, inputs: dict[str, np.ndarray]) -> dict:
    """Logits of every text position [B, T, V], and greedy continuations of each prompt."""
    import torch

    image_token = config.decoder.vocab_size
    pixels = torch.tensor(inputs["images"] / np.float32(127.5) - 1).permute(0, 3, 1, 2).float()
    patches = config.num_patches

    def ids_of(tokens: np.ndarray):
        images = np.full((len(tokens), patches), image_token)
        return torch.tensor(np.concatenate([images, tokens], axis=1))

    def with_images(mask: np.ndarray, value: int):
        images = np.full((len(mask), patches), value)
        return torch.tensor(np.concatenate([images, mask.astype(int)], axis=1))

    with torch.no_grad():
        out = model(
            input_ids=ids_of(inputs["tokens"]),
            pixel_values=pixels,
            attention_mask=with_images(inputs["valid"], 1),
            token_type_ids=with_images(inputs["attend_causal"], 0),
        )
        greedy = []
        for row, prompt in enumerate(inputs["prompt"]):
            ids = ids_of(inputs["tokens"][row : row + 1, :prompt])
            made = model.generate(
                input_ids=ids,
                pixel_values=pixels[row : row + 1],
                attention_mask=torch.ones_like(ids),
                token_type_ids=torch.zeros_like(ids),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
            )
            greedy.append(made[0, ids.shape[1] :].numpy())
    return {"logits": out.logits[:, patches:].numpy(), "greedy": np.stack(greedy)}


def run_gemma(model, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Logits [B, T, V] of the tokens alone, without images, causal."""
    import torch

    with torch.no_grad():
        return model(
            input_ids=torch.tensor(inputs["tokens"]).long(),
            attention_mask=torch.tensor(inputs["valid"]).int(),
        ).logits.numpy()


def _randomize(model) -> None:
    """Every parameter, norms and biases too, at a size that makes softcaps and windows matter."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 16
            scale = 0.4 if "position" in name else 1.5 * fan_in**-0.5
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(scale * noise + (1.0 if "layer_norm" in name else 0.0))


def write_golden(name: str) -> None:
    import transformers

    from vla_jax.checkpoints.hugging_face import paligemma_config

    config = register(name)
    theirs = paligemma_config(config)
    del theirs["architectures"], theirs["model_type"]
    model = transformers.PaliGemmaForConditionalGeneration(transformers.PaliGemmaConfig(**theirs))
    model.set_attn_implementation("eager")
    model.eval()
    _randomize(model)
    folder = GOLDEN / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        (folder / "model.safetensors").write_bytes((Path(saved) / "model.safetensors").read_bytes())
    inputs = make_inputs(config)
    text = theirs["text_config"]
    alone = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**text), attn_implementation="eager"
    )
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.tie_weights()
    alone.eval()
    expected = run_paligemma(model, config, inputs)
    expected["gemma_logits"] = run_gemma(alone, inputs)
    import torch

    pixels = torch.tensor(inputs["images"] / np.float32(127.5) - 1).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        features = model.model.vision_tower(pixels).last_hidden_state
    expected["siglip"] = features.numpy()
    np.savez_compressed(folder / "expected.npz", **inputs, **expected)


def check_export(name: str) -> str:
    """Loads our export with transformers and compares its logits with those of the original."""
    import transformers

    from vla_jax.checkpoints.hugging_face import TheirFile, read_hugging_face, write_hugging_face
    from vla_jax.tree import unflatten

    config = register(name)
    found, _ = read_hugging_face(TheirFile(GOLDEN / name), _shapes(config))
    with tempfile.TemporaryDirectory() as folder:
        write_hugging_face(folder, unflatten({k: v.read() for k, v in found.items()}), config)
        model, info = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
    problems = {k: v for k, v in info.items() if v}
    if problems:
        raise SystemExit(f"{name}: transformers reports {problems}")
    expected = np.load(GOLDEN / name / "expected.npz")
    got = run_paligemma(model.eval(), config, dict(expected))
    error = np.abs(got["logits"] - expected["logits"])[expected["valid"]].max()
    return (
        f"transformers loads our export, nothing missing or unexpected; logits differ {error:.1e}"
    )


def _shapes(config: ModelConfig):
    import jax

    from vla_jax.models.vla import init_params

    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for name in TINY:
        write_golden(name)
        print(f"{name}: {check_export(name)}")


if __name__ == "__main__":
    main()
