"""Stage ``pictures``: read the emoji of three vendors out of their npm packages into one array.

Noto (google) and Fluent train everything; Twemoji (twitter) is the held-out vendor and only ever becomes subjects.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64  # pixels on a side, everywhere in the pocket
MARGIN = 2  # transparent pixels around the longest side
PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
}
TRAIN_VENDORS = ("google", "fluent")
HELD_OUT_VENDOR = "twitter"
CLASSES_CSV = Path(__file__).with_name("classes.csv")


@dataclass(frozen=True)
class PictureSet:
    """All pictures of a set of vendors.

    pixels: uint8 ``[n, 64, 64, 4]``, straight alpha. names: caption noun of each. vendors, codes: where it comes from.
    is_class: whether the U-Net learns it (classes.csv).
    """

    pixels: np.ndarray
    names: np.ndarray
    vendors: np.ndarray
    codes: np.ndarray
    is_class: np.ndarray

    def where(self, mask: np.ndarray) -> PictureSet:
        """The pictures that a boolean mask keeps."""
        return PictureSet(*(getattr(self, f)[mask] for f in self.__dataclass_fields__))

    def of(self, *vendors: str) -> PictureSet:
        """The pictures of the named vendors."""
        return self.where(np.isin(self.vendors, vendors))


def read_classes() -> dict[str, tuple[str, str]]:
    """classes.csv as ``{code: (class, kind)}``; kind is ``live`` or ``object``."""
    with CLASSES_CSV.open(encoding="utf-8") as file:
        return {row["code"]: (row["class"], row["kind"]) for row in csv.DictReader(file)}


def read_groups() -> dict[str, str]:
    """classes.csv as ``{class: group}``: animal, food, plant, thing, vehicle, clothing."""
    with CLASSES_CSV.open(encoding="utf-8") as file:
        return {row["class"]: row["group"] for row in csv.DictReader(file)}


def bare_code(text: str) -> str:
    """A code point sequence without the variation selector, lower case, so that vendors agree on it."""
    return text.lower().removesuffix(".png").removesuffix(".webp").replace("-fe0f", "")


def fetch_packages(work: Path, packages: Path | None) -> dict[str, Path]:
    """Unpack the three packages under ``work/raw``; from ``packages`` (a folder of .tgz) or, if None, by ``npm pack``."""
    return {vendor: _fetch(vendor, spec, work, packages) for vendor, spec in PACKAGES.items()}


def _fetch(vendor: str, spec: str, work: Path, packages: Path | None) -> Path:
    target = work / "raw" / vendor
    if (target / "package.json").exists():
        return target
    tarball = _find_tarball(spec, packages) if packages else _npm_pack(spec, work)
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(tarball) as archive:
        archive.extractall(partial, filter="data")
    (partial / "package").rename(target)
    return target


def _find_tarball(spec: str, packages: Path) -> Path:
    stem = spec.removeprefix("@").replace("/", "-").replace("@", "-")
    path = packages / f"{stem}.tgz"
    if not path.exists():
        raise FileNotFoundError(f"package {spec}: no {path}; leave out --packages to download it with npm")
    return path


def _npm_pack(spec: str, work: Path) -> Path:
    (work / "raw").mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["npm", "pack", "--silent", spec],
        cwd=work / "raw",
        check=True,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    return work / "raw" / done.stdout.split()[-1]


def clean_name(unicode_name: str) -> str:
    """A Unicode name as a caption noun: lower case, plain words."""
    words = unicode_name.lower().replace("’", "").replace("-", " ").replace("_", " ")
    kept = "".join(c if c.isalnum() or c == " " else " " for c in words).split()
    while len(kept) > 1 and kept[-1] in ("face", "symbol", "sign"):
        kept.pop()
    return " ".join(kept[:6])


def fit(image: Image.Image) -> np.ndarray:
    """Crop to what is visible, scale its longest side to 60 pixels, centre it on 64 x 64; premultiplied while scaling."""
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    rows, columns = np.nonzero(rgba[..., 3] > 0.05)
    rgba = rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    ratio = (SIZE - 2 * MARGIN) / max(rgba.shape[:2])
    height, width = (max(1, round(side * ratio)) for side in rgba.shape[:2])
    bands = [Image.fromarray(rgba[..., c]).resize((width, height), Image.Resampling.LANCZOS) for c in range(4)]
    scaled = np.stack([np.asarray(band) for band in bands], -1).clip(0, 1)
    canvas = np.zeros((SIZE, SIZE, 4), np.float32)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    canvas[top : top + height, left : left + width] = scaled
    canvas[..., :3] /= np.maximum(canvas[..., 3:], 1e-3)
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8)


def _files_of(vendor: str, root: Path) -> dict[str, Path]:
    folder = root / "assets" if vendor == "fluent" else root / "img" / vendor / "64"
    return {bare_code(path.name): path for path in sorted(folder.iterdir())}


def _nouns(google: Path) -> dict[str, str]:
    """Caption noun per code; other codes whose noun equals a class are left out, so that a class name means one thing."""
    classes = read_classes()
    taken = {name for name, _ in classes.values()}
    nouns = {}
    for entry in json.loads((google / "emoji.json").read_text(encoding="utf-8")):
        code, noun = bare_code(entry["image"]), clean_name(entry["name"])
        if code in classes:
            nouns[code] = classes[code][0]
        elif noun not in taken:
            nouns[code] = noun
            taken.add(noun)
    return nouns


def build_pictures(work: Path, packages: Path | None) -> PictureSet:
    """Make ``work/pictures.npz`` (once) and return it."""
    path = work / "pictures.npz"
    if not path.exists():
        roots = fetch_packages(work, packages)
        np.savez(path.with_suffix(".partial.npz"), **_read_all(roots))  # type: ignore[arg-type]
        path.with_suffix(".partial.npz").rename(path)
    return load_pictures(work)


def _read_all(roots: dict[str, Path]) -> dict[str, np.ndarray]:
    nouns, classes, rows = _nouns(roots["google"]), read_classes(), []
    files = {vendor: _files_of(vendor, root) for vendor, root in roots.items()}
    for code, noun in nouns.items():
        if all(code in of_vendor for of_vendor in files.values()):
            for vendor, of_vendor in files.items():
                with Image.open(of_vendor[code]) as image:
                    rows.append((fit(image), noun, vendor, code, code in classes))
    return dict(zip(("pixels", "names", "vendors", "codes", "is_class"), map(np.array, zip(*rows)), strict=True))


def load_pictures(work: Path) -> PictureSet:
    """Read ``work/pictures.npz``."""
    with np.load(work / "pictures.npz") as data:
        return PictureSet(**{field: data[field] for field in PictureSet.__dataclass_fields__})
