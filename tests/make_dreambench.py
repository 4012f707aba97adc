"""DreamBooth's published data set: a tiny copy of its layout, or the real one where that is to be had."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from training.tasks.dreambench import FILE, PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
OTHER_CLASSES = {
    "backpack_dog": "backpack", "bear_plushie": "stuffed animal", "berry_bowl": "bowl", "colorful_sneaker": "sneaker",
    "duck_toy": "toy", "fancy_boot": "boot", "grey_sloth_plushie": "stuffed animal", "monster_toy": "toy",
    "pink_sunglasses": "glasses", "poop_emoji": "toy", "rc_car": "toy", "red_cartoon": "cartoon", "robot_toy": "toy",
    "shiny_sneaker": "sneaker", "wolf_plushie": "stuffed animal",
}  # fmt: skip
CLASSES = {name: OTHER_CLASSES.get(name, name.rstrip("0123456789")) for name in PUBLISHED}
REAL = Path(
    os.environ.get("PLATEAU_DREAMBENCH")
    or Path(os.environ.get("PLATEAU_REAL_DATA", ROOT.parent / "shared" / "data")) / "dreambench"
)


def published_text(num_prompts: int = 25) -> str:
    """A file in the published layout, whose prompts say their number."""
    rows = "\n".join(f"{name},{cls}" for name, cls in CLASSES.items())
    lists = {
        heading: "\n".join(
            f"'a {{0}} {{1}} {place} {n}'.format(unique_token, class_token)," for n in range(num_prompts)
        )
        for heading, place in (("Object Prompts", "on a table"), ("Live Subject Prompts", "in the snow"))
    }
    prompts = "\n\n".join(f"{heading}\n\nprompt_list = [\n{text}\n]" for heading, text in lists.items())
    return f"Classes\n\nsubject_name,class\n{rows}\n\nPrompts\n\n{prompts}\n"


def make_dreambench(folder: Path) -> Path:
    """A whole copy with tiny pictures, whose colours say their subject and number."""
    for place, (name, count) in enumerate(PUBLISHED.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 6), (30 * number, 8 * place, 200)).save(folder / name / f"{number:02d}.jpg")
    (folder / FILE).write_text(published_text())
    return folder
