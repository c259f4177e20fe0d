"""How to learn: the loop, its state, the store and the conductor.

Imports of this package bring torch. It knows no recipe and no command line.
"""

from surefoot.engine.adopt import read_weights
from surefoot.engine.auto.fit import Pins, Plan
from surefoot.engine.create import adopt
from surefoot.engine.job import Drawing, Job, Shared
from surefoot.engine.kit.answers import free_running, wilson
from surefoot.engine.kit.curriculum import TeacherForcing
from surefoot.engine.kit.sample import generate
from surefoot.engine.kit.speak import Answerer, Request, Silent, Speaker, TextSpeaker
from surefoot.engine.kit.validate import (
    NextTokens,
    Scores,
    confusions,
    loss_by_place,
    next_token_scores,
)
from surefoot.engine.learner import Learner, Loss
from surefoot.engine.loop import Reading, Report, steps
from surefoot.engine.run import Result, begin, resume
from surefoot.engine.state import TrainState
from surefoot.engine.store import Checkpoint, Store
from surefoot.engine.world import World, every_rank, first_rank, open_world, seen_by_all

__all__ = [
    "Answerer",
    "Checkpoint",
    "Drawing",
    "Job",
    "Learner",
    "Loss",
    "NextTokens",
    "Pins",
    "Plan",
    "Reading",
    "Report",
    "Request",
    "Result",
    "Scores",
    "Shared",
    "Silent",
    "Speaker",
    "Store",
    "TeacherForcing",
    "TextSpeaker",
    "TrainState",
    "World",
    "adopt",
    "begin",
    "confusions",
    "every_rank",
    "first_rank",
    "free_running",
    "generate",
    "loss_by_place",
    "next_token_scores",
    "open_world",
    "read_weights",
    "resume",
    "seen_by_all",
    "steps",
    "wilson",
]
