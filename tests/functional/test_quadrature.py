from __future__ import annotations

import numpy as np
import pytest

from hf_itp.functional.quadrature import gauss_legendre


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 10, 101, 500])
def test_nodes_and_weights_agree_with_numpy(num_nodes):
    nodes, weights = gauss_legendre(num_nodes)
    expected_nodes, expected_weights = np.polynomial.legendre.leggauss(num_nodes)
    assert nodes.numpy() == pytest.approx((1 + expected_nodes) / 2, abs=1e-14)
    assert weights.numpy() == pytest.approx(expected_weights / 2, abs=1e-14)


@pytest.mark.parametrize("num_nodes", [1, 2, 5, 9])
def test_polynomials_are_integrated_exactly_up_to_their_degree_and_no_further(num_nodes):
    nodes, weights = gauss_legendre(num_nodes)
    for degree in range(2 * num_nodes):
        assert (weights * nodes**degree).sum().item() == pytest.approx(1 / (degree + 1), abs=1e-15)
    beyond = 2 * num_nodes
    assert abs((weights * nodes**beyond).sum().item() - 1 / (beyond + 1)) > 1e-12
