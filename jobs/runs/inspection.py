"""Resolves the inspection of a spec: finds and checks the texts, labels and nets that the actors need."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from asyrp.directions import presets
from asyrp.directions.edits import Edit
from asyrp.directions.info import DirectionInfo
from asyrp.errors import UserError
from asyrp.measures.names import OF_TEXTS, Judges
from asyrp.models.folder import ModelFolder
from jobs.spec.inspection import InspectionSpec
from jobs.spec.process import Process
from jobs.spec.run import RunSpec
from pipeline.stages.models import net_digest
from pipeline.stages.settings import Inspection, SecondInversion
from pipeline.storage.store import is_below, open_filesystem

DirectionInfos = Mapping[str, DirectionInfo]
"""What is known of directions, by name."""


def resolve_inspection(
    spec: RunSpec,
    process: Process,
    folder: ModelFolder,
    infos: DirectionInfos,
    edits: Sequence[Edit],
    staged: bool,
) -> Inspection | None:
    """What a run measures; None if it measures nothing.

    Raises:
        UserError: if a metric lacks its texts or its net, or a staged run is asked for what only a fused run can do.
    """
    per_image = spec.t_edit.per_image is not None
    asked = spec.inspection or (InspectionSpec() if per_image or spec.augmentation else None)  # type: ignore[call-arg]
    if asked is None:
        return None
    if spec.augmentation:
        _refuse_with_augmentation(asked, staged)
    judges = _judges(asked, folder)
    _refuse_code_in_output(judges, spec.output)
    retry = SecondInversion(asked.retry.n_inv or process.n_inv, asked.retry.refine) if asked.retry else None
    wants_texts = bool(OF_TEXTS & set(asked.measured()))
    inspection = Inspection(
        metrics=asked.measured(),
        judges=judges,
        texts={edit.id: _texts(edit, asked, folder, infos) for edit in edits} if wants_texts else {},
        changed={edit.id: frozenset(_changed(edit, spec)) & {*judges.labels} for edit in edits},
        gates=asked.conditions(),
        search=asked.searching(),
        retry=retry,
        share=asked.sample,
    )
    if staged and (inspection.measures_reconstruction or inspection.search or per_image):
        raise UserError(
            "a staged run does not invert and edit in one pass, so it can neither search strengths, nor end edits per "
            "image, nor measure recon_psnr, recon_lpips and recon_clip of every image: leave these out, or take "
            "--stages fused"
        )
    names = [edit.name for edit in edits]
    if inspection.search and len(set(names)) < len(names):
        raise UserError("a search finds the strength of an edit: give each edit once, not at several strengths")
    return inspection


def _refuse_code_in_output(judges: Judges, output: str) -> None:
    """Refuse a callable whose file lies in the root of the run.

    `retry` and `extend` take the spec from run.json. Whoever may write to the root must not have them run code with it.
    """
    fs, root = open_filesystem(output)
    for net in filter(None, (judges.identity, judges.segmenter, judges.classifier)):
        file = net.rpartition(":")[0]
        if file.endswith(".py") and isinstance(fs, LocalFileSystem) and is_below(Path(file), Path(root).resolve()):
            raise UserError(
                f"{net} is code in the output {output}, where whoever may write images could change it: keep it in "
                "another folder"
            )


def _refuse_with_augmentation(asked: InspectionSpec, staged: bool) -> None:
    if staged:
        raise UserError("images that draw their edits are inverted and edited in one pass: take --stages fused")
    if asked.search is not None:
        raise UserError("an augmentation draws the strengths of its edits: leave out inspection.search")
    if asked.classifier and asked.sample < 1:
        raise UserError("the classifier confirms the labels of every augmented image, so inspection.sample must be 1")


def _changed(edit: Edit, spec: RunSpec) -> set[str]:
    """The labels that an edit is meant to change."""
    said = spec.augmentation.changed(edit) if spec.augmentation else set()
    return said | {name for name, _ in edit.weights}


def judged_by(inspection: Inspection) -> dict[str, Any]:
    """What the metrics depend on beside the spec: the nets, by the digests of their files, and the texts that were
    found.

    Raises:
        UserError: if a net is not there.
    """
    judges = inspection.judges
    named = {"face model": judges.identity, "segmenter": judges.segmenter, "classifier": judges.classifier}
    digests = {what: net_digest(name, what) for what, name in named.items() if name}
    return {"clip": judges.clip, "texts": {edit: list(pair) for edit, pair in inspection.texts.items()}, **digests}


def _judges(asked: InspectionSpec, folder: ModelFolder) -> Judges:
    clip = segmenter = None
    if asked.needs_clip():
        from asyrp.measures.clip import default_clip  # torch and open_clip load only where they are needed

        clip = asked.clip or default_clip(folder.name)
    if "segmentation" in asked.measured():
        segmenter = asked.segmenter or (str(folder.segmenter) if folder.segmenter else None)
        if segmenter is None:
            raise UserError(
                f"the metric segmentation needs a net, and {folder.name} has none: give inspection.segmenter"
            )
    classifier = asked.classifier
    return Judges(
        clip=clip,
        identity=asked.identity,
        segmenter=segmenter,
        classifier=classifier.file if classifier else None,
        labels=tuple(classifier.labels) if classifier else (),
        threshold=classifier.threshold if classifier else Judges.threshold,
    )


def _texts(edit: Edit, asked: InspectionSpec, folder: ModelFolder, infos: DirectionInfos) -> tuple[str, str]:
    """The source and target text of an edit: from the spec, else from the file of its direction, else from the model or
    the presets."""
    pair = asked.texts.get(edit.name)
    if pair is None and len(edit.weights) == 1:
        [(name, _)] = edit.weights
        notes = infos[name].notes
        noted = (notes["source_text"], notes["target_text"]) if "target_text" in notes else None
        pair = noted or folder.texts.get(name) or presets.texts(name)
    if pair is None:
        raise UserError(
            f"nothing says which texts the edit '{edit.name}' goes between, which {', '.join(sorted(OF_TEXTS))} need: "
            f"give inspection.texts with '{edit.name}: [source text, target text]'"
        )
    return pair if edit.strength >= 0 else (pair[1], pair[0])
