"""Counts how often an edit does what it says and nothing else, with a judge of rendered faces.

    python -m benchmarks.edit_success             # the table of the README, about 20 minutes on 2 cores
    python -m benchmarks.edit_success --faces 32  # a quick look

The judge (tools/judge.py) is trained on rendered faces only. For every attribute, held-out faces that lack it are
edited at several strengths. Faces that have it are edited at -1. "as wanted" is the share of edited faces that have the
attribute (at -1: that lack it). "others kept" is the share of the other three labels that are as before. The process is
that of new runs, without boosting. Beside it stands the symmetric step, which is one of DDIM: 40 + 40 steps, with an
inversion refined twice.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from asyrp.diffusion.solvers import DPMSolver
from asyrp.directions.edits import parse_edit
from asyrp.directions.forms import load_direction
from asyrp.directions.shift import shift_for
from asyrp.models.find import find_model
from asyrp.models.folder import ModelFolder
from asyrp.models.load import Model, load_model
from tools.judge import CACHE, accuracy, load_or_train
from tools.render_avatars import LABELS, load_or_render
from tools.trial import Score, Trial

SEED, COUNT, DDIM_STEPS, STEPS = 5, 640, 40, 20


@dataclass(frozen=True)
class Question:
    """One cell of the table: an edit at a strength on `faces` faces; `symmetric`: with the shift in both halves."""

    attribute: str
    strength: float
    symmetric: bool
    faces: int

    @property
    def adds(self) -> bool:
        return self.strength > 0


@cache
def loaded() -> tuple[ModelFolder, Model]:
    torch.set_num_threads(1)
    folder = find_model("avatars")
    return folder, load_model(folder)


def trial_of(attribute: str, adds: bool, symmetric: bool, count: int) -> Trial:
    """Held-out faces that lack the attribute, if it `adds`, or that have it, if it is to be removed."""
    model = loaded()[1]
    faces = load_or_render(CACHE / "edit_success.npz", COUNT, SEED)
    chosen = np.nonzero(faces[attribute] != adds)[0][:count]
    solver = None if symmetric else DPMSolver(model.unet, model.schedule, STEPS)
    chosen_faces = {name: column[chosen] for name, column in faces.items()}
    return Trial(model, load_or_train(), chosen_faces, DDIM_STEPS, solver=solver)


def answer(question: Question, trial: Trial) -> Score:
    direction = load_direction(loaded()[0].direction_files()[question.attribute])
    shift = shift_for(trial.solver, parse_edit(f"edit={question.strength}"), {"edit": direction})
    return trial.score(question.attribute, shift, question.adds, question.faces, question.symmetric)


def answer_all(questions: list[Question]) -> tuple[float, list[Score]]:
    """The share of labels that inversion keeps, and the answers to the questions on one attribute.

    All in one process, with one inversion per face.
    """
    most: dict[tuple[bool, bool], int] = {}
    for question in questions:
        kind = (question.adds, question.symmetric)
        most[kind] = max(most.get(kind, 0), question.faces)
    trials = {kind: trial_of(questions[0].attribute, *kind, count) for kind, count in most.items()}
    answers = [answer(question, trials[question.adds, question.symmetric]) for question in questions]
    return trials[True, False].reconstruction(), answers


def questions_on(attribute: str, faces: int, fewer: int) -> list[Question]:
    """The questions on an attribute: both kinds of step at every strength, and the removal."""
    both = [
        Question(attribute, strength, symmetric, faces if strength == 1.0 and not symmetric else fewer)
        for strength in (0.5, 1.0, 1.5, 2.0)
        for symmetric in (False, True)
    ]
    return [*both, Question(attribute, -1.0, False, fewer)]


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=256, help="faces per attribute at strength 1")
    parser.add_argument("--fewer", type=int, default=32, help="faces per attribute at the other strengths")
    arguments = parser.parse_args()
    fewer = min(arguments.fewer, arguments.faces)
    print("judge on held-out renders:", ", ".join(f"{k} {100 * v:.1f} %" for k, v in accuracy(load_or_train()).items()))
    load_or_render(CACHE / "edit_success.npz", COUNT, SEED)
    questions = [questions_on(attribute, arguments.faces, fewer) for attribute in LABELS]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(answer_all, questions))
    kept = sum(value for value, _ in results) / len(results)
    print(f"reconstruction without an edit keeps {100 * kept:.1f} % of the labels\n")
    print("| edit | strength | faces | as wanted | others kept | symmetric: as wanted | others kept |")
    print("|---|---|---|---|---|---|---|")
    for asked, (_, scores) in zip(questions, results, strict=True):
        print_rows({(q.strength, q.symmetric): (q, score) for q, score in zip(asked, scores, strict=True)})


def print_rows(answers: dict[tuple[float, bool], tuple[Question, Score]]) -> None:
    for (strength, symmetric), (question, score) in answers.items():
        if not symmetric:
            twin = answers.get((strength, True))
            beside = f"{percent(twin[1].target)} | {percent(twin[1].others)}" if twin else "- | -"
            print(
                f"| {question.attribute} | {strength:g} | {question.faces} | {percent(score.target)} "
                f"| {percent(score.others)} | {beside} |"
            )


if __name__ == "__main__":
    main()
