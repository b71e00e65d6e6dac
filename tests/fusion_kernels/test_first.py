"""First checks."""

import torch

from fusion_kernels import Weighting, fuse_logits


def test_torch_matches_reference():
    torch.manual_seed(0)
    rows, experts = 15, 2
    large = torch.randn(rows, 131) * 3
    base = torch.randn(rows, 140) * 3
    members = [torch.randn(rows, 129) * 3, torch.randn(rows, 150) * 3]
    kind = torch.tensor([Weighting(i % 5) for i in range(rows)], dtype=torch.int8)
    use = torch.rand(rows, experts) > 0.3
    settings = {
        "kind": kind,
        "use": use,
        "alpha": torch.rand(rows, experts) * 2 - 0.5,
        "alpha_max": torch.full((rows,), 2.0),
    }
    want = fuse_logits(large, base, members, **settings, impl="reference")
    got = fuse_logits(large, base, members, **settings, impl="torch")
    for name in ("alpha", "kl_target", "kl_fused", "logits"):
        torch.testing.assert_close(
            getattr(got, name), getattr(want, name), atol=2e-3, rtol=1e-3, msg=lambda m, n=name: n + m
        )
    assert torch.equal(got.fallback, want.fallback)
    none = kind == Weighting.NONE
    assert torch.equal(got.logits[none], large[none])
    empty = {k: v[:0] for k, v in settings.items()}
    assert fuse_logits(large[:0], base[:0], [m[:0] for m in members], **empty, impl="torch").logits.shape == (0, 131)


def test_broken_and_equal():
    torch.manual_seed(0)
    large, base = torch.randn(5, 64), torch.randn(5, 64)
    expert = base.clone()
    expert[1, 3] = torch.nan
    kind = torch.tensor([2, 2, 3, 4, 1], dtype=torch.int8)
    ones = torch.ones(5, 1)
    out = fuse_logits(large, base, [expert], kind=kind, use=ones.bool(), alpha=ones, alpha_max=torch.full((5,), 2.0))
    assert out.fallback.tolist() == [False, True, False, False, False]
    assert out.alpha[:, 0].tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(out.logits[[0, 1, 2, 4]], large[[0, 1, 2, 4]])
    assert torch.equal(out.logits[3], expert[3])
