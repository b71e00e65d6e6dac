"""Random cases, for hypothesis to draw."""

from hypothesis import strategies as st

from bench.cases import AGAINST, DTYPES, KINDS, Case, make
from fusion_kernels import Weighting


def cases(max_vocabulary: int = 300, max_rows: int = 6, max_experts: int = 4) -> st.SearchStrategy[Case]:
    """Cases over shapes, dtypes, vocabularies of unequal length, masks, broken members, and logits from tiny to 1e4;
    experts are compared with the base, with a tensor of their own or with nothing.
    """
    return st.builds(
        make,
        seed=st.integers(0, 2**31),
        rows=st.integers(1, max_rows),
        vocabulary=st.one_of(st.integers(2, 8), st.integers(9, max_vocabulary)),
        number=st.integers(1, max_experts),
        scale=st.sampled_from([0.1, 1.0, 3.0, 10.0]),
        spread=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 3.0, 10.0]),
        kinds=st.permutations(KINDS).map(tuple),
        dtype=st.sampled_from(DTYPES),
        paddings=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
        masked=st.sampled_from([0.0, 0.0, 0.2, 0.9]),
        against=st.lists(st.sampled_from(AGAINST), min_size=1, max_size=4).map(tuple),
        broken=st.sampled_from([0.0, 0.0, 0.0, 0.2]),
    )


def equally_good(rows: int = 24) -> Case:
    """Rows of the paper's grid over two experts that are compared with the large model: at weight 1 the fused model is
    the one or the other, and the objective the same.
    """
    case = make(3, rows, 200, 2, kinds=(Weighting.KL_GRID,), against=("large",))
    case.use[:] = True
    case.alpha_max[:] = 2.0
    return case
