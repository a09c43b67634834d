"""This library over a dense plan."""

import slidetile_peer
from problem import Case, Problem

NAME = "slidetile dense"
why_not = slidetile_peer.why_not


def prepare(problem: Problem) -> Case:
    case = slidetile_peer.prepare(problem, problem.dense_plan)
    case.dense = True
    return case
