"""The pocket pipeline: a Stable Diffusion of a few million parameters, its scorers, its subjects, and their recipe.

``python -m tools.pocket.build`` remakes every file in ``pipeline/``, ``clip/``, ``dino/`` and ``subjects/`` from three
npm packages of emoji. See MODEL_CARD.md for data, licences and measured qualities.
"""
