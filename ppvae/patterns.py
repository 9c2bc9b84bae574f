"""Rows grouped by which of their entries are observed, so that work done once for a pattern serves all of its rows."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

BLOCK = 16  # rows that share one copy of their pattern's matrices in a batched product


@dataclass(frozen=True)
class Patterns:
    """The distinct rows of a mask, and the rows in blocks of one pattern each.

    unique: (P, D) bool.  of_row: (B,) the pattern of each row.  blocks: (M, BLOCK) row numbers, padded with B.  of_block: (M,).
    """

    unique: Tensor
    of_row: Tensor
    blocks: Tensor
    of_block: Tensor

    @classmethod
    def of(cls, observed: Tensor) -> "Patterns":
        """Group the rows of `observed` (B, D)."""
        rows = len(observed)
        packed = np.packbits(observed.cpu().numpy(), axis=1)
        keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
        _, first, of_row = np.unique(keys, return_index=True, return_inverse=True)
        of_row = of_row.reshape(-1)
        counts = np.bincount(of_row, minlength=len(first))
        n_blocks = -(-counts // BLOCK)
        of_block = np.repeat(np.arange(len(first)), n_blocks)
        order = np.argsort(of_row, kind="stable")
        # The place of each sorted row: its pattern's first block, then its rank within the pattern.
        rank = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
        place = np.repeat((np.cumsum(n_blocks) - n_blocks) * BLOCK, counts) + rank
        blocks = np.full(len(of_block) * BLOCK, rows)
        blocks[place] = order
        to = partial(torch.as_tensor, device=observed.device)
        return cls(
            observed[to(first)],
            to(of_row),
            to(blocks.reshape(-1, BLOCK)),
            to(of_block),
        )

    def apply(self, matrices: Tensor, rows: Tensor) -> Tensor:
        """Each row through its own pattern's matrix: matrices (P, D, E), rows (B, D) -> (B, E)."""
        padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        products = torch.bmm(padded[self.blocks], matrices[self.of_block])
        out = rows.new_empty(len(rows) + 1, products.shape[-1])
        out[self.blocks.reshape(-1)] = products.reshape(-1, products.shape[-1])
        return out[:-1]

    def weighted_products(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Sums over each pattern's rows of w_nk r_n r_n^T: rows (B, E), weights (B, K) -> (P, K, E, E)."""
        padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[self.blocks]
        counted = torch.cat([weights, weights.new_zeros(1, weights.shape[1])])[self.blocks]
        weighted = (counted.unsqueeze(-1) * padded.unsqueeze(-2)).flatten(-2)
        products = torch.bmm(weighted.mT, padded).unflatten(1, (weights.shape[1], rows.shape[1]))
        return products.new_zeros(len(self.unique), *products.shape[1:]).index_add_(0, self.of_block, products)

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sums over each pattern's rows: values (B, ...) -> (P, ...)."""
        return values.new_zeros(len(self.unique), *values.shape[1:]).index_add_(0, self.of_row, values)
