"""The published sliding tile attention kernel (pip install fastvideo-kernel); tokens permuted into tile order and back.

Its wheels bundle a libcuda, and launches fail until that file is replaced by the system's.
"""

from problem import Case, Problem

NAME = "published STA kernel"
CANVASES = {(30, 48, 80): True, (36, 48, 48): False, (18, 48, 80): False}  # canvas: with text


def why_not(problem: Problem) -> str | None:
    try:
        from fastvideo_kernel import sliding_tile_attention  # noqa: F401
    except ImportError as error:
        return f"not installed ({error})"
    if problem.canvas not in CANVASES or problem.tile != (6, 8, 8) or problem.head_dim != 128:
        return "takes three canvases, tile 6x8x8 and head_dim 128 only"
    if CANVASES[problem.canvas] != (problem.text > 0):
        return f"takes canvas {'x'.join(map(str, problem.canvas))} {'with' if CANVASES[problem.canvas] else 'without'} text only"
    return None


def prepare(problem: Problem) -> Case:
    from fastvideo_kernel import sliding_tile_attention

    q, k, v, _ = problem.tensors
    windows, shape = [problem.window] * problem.heads, "x".join(map(str, problem.canvas))

    def forward():
        inputs = (problem.tiled(x) for x in (q, k, v))
        return problem.untiled(sliding_tile_attention(*inputs, windows, problem.text, problem.text > 0, shape))

    return Case(forward)
