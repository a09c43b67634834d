"""NATTEN (pip install natten): a window of w tiles is its window of w x tile tokens with the tile as stride, for odd w."""

from problem import Case, Problem

NAME = "NATTEN"


def why_not(problem: Problem) -> str | None:
    try:
        import natten  # noqa: F401
    except ImportError as error:
        return f"not installed ({error})"
    if problem.text or not problem.whole_tiles:
        return "has no text, and borders as ours only for whole tiles"
    even = [w for w, n in zip(problem.window, problem.plan.grid_tiles, strict=True) if w % 2 == 0 and w < n]
    return "an even window is another one there" if even else None


def prepare(problem: Problem) -> Case:
    import natten

    video = [x.unflatten(1, problem.canvas) for x in problem.tensors[:3]]
    window = tuple(min(w * size, extent) for w, size, extent in zip(problem.window, problem.tile, problem.canvas, strict=True))
    stride = tuple(min(size, extent) for size, extent in zip(problem.tile, window, strict=True))
    return Case(lambda: natten.na3d(*video, kernel_size=window, stride=stride).flatten(1, 3))
