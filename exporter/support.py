"""Which family goes to which target: what the plan says of the families' published members."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.checkpoint.family import all_families
from exporter.recipe import Recipe, load_recipe, recipe_names
from exporter.targets.base import Refusal, find_target


@dataclass(frozen=True)
class Support:
    """One family on one target, with a shipped recipe. No refusal means that it exports."""

    family: str
    published: str
    recipe: str
    refusals: tuple[Refusal, ...]


def shipped_recipes() -> list[Recipe]:
    """The first shipped recipe of every target."""
    first: dict[str, Recipe] = {}
    for name in recipe_names():
        recipe = load_recipe(name)
        first.setdefault(recipe.target.kind, recipe)
    return list(first.values())


def support_matrix() -> list[Support]:
    """Every family on every target that a shipped recipe is for, families first."""
    found = []
    for name in all_families():
        family = all_families().get(name)
        spec = family.published_spec()
        for recipe in shipped_recipes():
            refusals = find_target(recipe.target.kind).refusals(spec, recipe)
            found.append(Support(name, family.published.name, recipe.name, tuple(refusals)))
    return found
