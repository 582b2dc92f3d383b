"""Wording of the questions, and the categories they ask about."""

from __future__ import annotations

POINT_PHRASES = (
    "point to {}",
    "point to {}",
    "where is {}?",
    "where is {}?",
    "find {}",
    "locate {}",
    "show me {}",
    "which place is {} at?",
)

REACH_PHRASES = (
    "how does the gripper reach the {}?",
    "move the gripper to the {}",
    "what way should the robot take to reach the {}?",
    "what way should the robot take to pick up the {}?",
    "what way should the robot take to pick the {}?",
    "what way should the robot take to grab the {}?",
    "what way should the robot take to lift the {}?",
)
ERRAND_PHRASES = (
    "what way should the robot take to move the {} near the {}?",
    "what way should the robot take to bring the {} to the {}?",
    "what way should the robot take to put the {} on the {}?",
    "what way should the robot take to place the {} on the {}?",
)

CATEGORY_NOUNS = {
    "animal": "an animal",
    "fruit": "a fruit",
    "vegetable": "a vegetable",
    "food": "a food",
    "drink": "a drink",
    "vehicle": "a vehicle",
    "sport": "a ball",
    "building": "a building",
    "plant": "a plant",
    "clothing": "a piece of clothing",
    "instrument": "an instrument",
    "symbol": "a symbol",
    "number": "a number",
    "block": "a plain block",
}
"""Categories that questions ask about, with the noun they use."""

RELATED = {
    "animal": ("face",),
    "fruit": ("vegetable",),
    "vegetable": ("fruit",),
    "food": ("fruit", "vegetable", "drink"),
    "plant": ("fruit", "vegetable"),
    "sport": ("game",),
    "building": ("place",),
    "symbol": ("number", "weather"),
    "number": ("symbol", "clock"),
}
"""Categories that are left out of a scene where a question asks for another one."""
