"""This library over a dense plan."""

from problem import Case, Problem

from slidetile.torch import attention

NAME = "slidetile dense"


def why_not(problem: Problem) -> str | None:
    return None


def prepare(problem: Problem) -> Case:
    q, k, v, _ = problem.tensors
    return Case(lambda: attention(q, k, v, problem.dense_plan, layout="bshd"), dense=True)
