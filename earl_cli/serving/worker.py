"""The work of the queue: a batch of orders through one editor, as ``earl edit`` draws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from earl_cli.errors import EarlError, ModelError
from earl_cli.generation.editing import Draft, Job, decoded, draft, render
from earl_cli.generation.editor import Editor
from earl_cli.generation.engine import OnProgress
from earl_cli.serving.queue import AbandonedError, Order, Variant, Work


def drawing(editor: Editor) -> Work:
    """How ``editor`` draws a batch. All of it is sampled at once; one order that spoils that is found and left out."""

    def work(orders: Sequence[Order], on_progress: OnProgress) -> Iterator[list[Variant] | Exception]:
        for order, drafts in zip(orders, _drafts(editor, orders, on_progress), strict=True):
            try:
                yield drafts if isinstance(drafts, Exception) else _variants(editor, order, drafts)
            except Exception as failure:  # this order's own
                yield failure

    return work


def _drafts(editor: Editor, orders: Sequence[Order], on_progress: OnProgress) -> list[list[Draft] | Exception]:
    jobs = [Job(order.picture.rgb, order.instruction, order.seeds) for order in orders]
    settings = replace(editor.settings, sampling=orders[0].sampling)
    try:
        return [*draft(editor.model, editor.engine, jobs, settings, on_progress)]
    except AbandonedError:
        raise
    except Exception as failure:  # told to whom it belongs, once that is clear
        if len(orders) == 1:
            return [failure]
        return [drafts for order in orders for drafts in _drafts(editor, [order], on_progress)]


def _variants(editor: Editor, order: Order, drafts: Sequence[Draft]) -> list[Variant]:
    """Every variant at the photo's own size. ModelError if the model drew none at all."""
    before = decoded(editor.model, drafts[0].source)
    variants = []
    for each in drafts:
        try:
            edited = render(editor.model, order.picture.pixels, before, each, "source")
            variants.append(Variant(each.seed, edited.image, edited.problem))
        except EarlError as error:
            variants.append(Variant(each.seed, None, error.what))
    if all(variant.image is None for variant in variants):
        raise ModelError(variants[0].problem or "the model drew no picture")
    return variants
