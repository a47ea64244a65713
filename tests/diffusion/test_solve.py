import torch

from subjunctive.diffusion.solve import solve


def test_linear_equations_are_solved_row_by_row():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(5, 4, 4, dtype=torch.float64)).Q
    slopes = torch.tensor([0.05, 0.3, 0.7, 1.0], dtype=torch.float64)
    matrix = basis * slopes @ basis.mT
    target = torch.randn(5, 4, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, target)

    def function(x):
        return (matrix[: len(x)] @ x[..., None])[..., 0]

    found = solve(function, target, target, 1.0, 12, 1e-12)
    assert (found - exact).abs().max() < 1e-6
    plain = target
    for _ in range(12):
        plain = plain + target - function(plain)
    assert (plain - exact).abs().max() > 0.1
    alone = solve(function, target[:1], target[:1], 1.0, 12, 1e-12)
    assert (alone - exact[:1]).abs().max() < 1e-6


def test_shapes_survive_and_no_correction_is_the_guess():
    guess = torch.randn(3, 1, 2, 2)
    assert torch.equal(solve(torch.sin, guess, guess, 1.0, 0, 1e-6), guess)
    target = 0.5 * torch.rand(3, 1, 2, 2)
    found = solve(torch.sin, target, target, 1.0, 20, 1e-7)
    torch.testing.assert_close(found, target.asin(), rtol=0, atol=1e-5)


def test_a_row_never_gets_worse():
    torch.manual_seed(0)
    target, guess = torch.randn(2, 200, 3)

    def wild(x):
        return 5 * torch.sin(20 * x)

    def miss(x):
        return (target - wild(x)).square().mean(1)

    assert (miss(solve(wild, target, guess, 1.0, 10, 1e-6)) <= miss(guess)).all()


def test_it_stops_when_all_rows_are_done():
    calls = []

    def function(x):
        calls.append(1)
        return x

    solve(function, torch.ones(4, 2), torch.zeros(4, 2), 1.0, 50, 1e-6)
    assert len(calls) == 2
