"""Principal components of rows that come in batches: one pass, bounded memory, independent of any model.

Rows are collected in a store of fixed height. When it is full, its rows are replaced by the leading principal rows of
everything seen so far (incremental merging: Ross et al., IJCV 77, 2008, with their correction of the mean). The
components are exact as long as all rows fit, and always exact where at least as many rows are kept as there are
columns. Otherwise each merge loses only the components after the kept ones. The store is filled row by row, so the
result does not depend on how the rows were cut into batches.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from core.errors import UserError

# Up to this number every row is kept and the result is exact: the first 25 components of 2000 rows of 32,768 columns
# take 2.1 s on one core of an Intel Xeon (benchmarks/results/pca.md).
_EXACT_ROWS = 2048
# For more rows: the height of the store per requested component, and its minimum. Merging N rows of width D takes about
# 4 N D flops for each row of the store. Measured on 6000 rows of width 1000 with deviations 1/sqrt(i), 16 components:
# the worst |cos| to the exact component is 0.99998 with 256 rows and 0.99984 with 130. One-pass Nystrom sketches (Tropp
# et al., NIPS 2017) of twice that memory stay at 0.94 and 0.67.
_ROWS_PER_COMPONENT = 16
_FEWEST_ROWS = 128
_STORE_BYTES = 2 << 30
_BLOCK_ELEMENTS = 1 << 23  # float64 work space of 64 MiB
# The Gram matrix is symmetric, so only half is computed: strips of this many rows, each with the rows up to its end.
_STRIP_ROWS = 256
_SPARE = 8  # components that are computed beyond the requested ones
# A component smaller than this fraction of the first is rounding: the Gram matrix squares the condition number of
# float64 rows, and float32 rows are merged in float32.
_NEGLIGIBLE = {torch.float64: 1e-7, torch.float32: 3e-6}


@dataclass(frozen=True)
class Components:
    """The first k principal components of N rows of width D, largest first; float64.

    vectors: [k, D], orthonormal; the coordinate of largest size of each is positive.
    deviations: [k], the standard deviation of the rows along each vector (divisor N - 1); 0 where the rows do not vary,
    and that vector is then arbitrary. mean: [D].
    """

    vectors: Tensor
    deviations: Tensor
    mean: Tensor


def store_height(width: int, count: int, samples: int | None = None, share: int = 1, itemsize: int = 4) -> int:
    """Return how many rows a store holds for `count` components of rows of `width` numbers of `itemsize` bytes.

    samples: the number of rows to come, where known.
    share: how many stores share the memory, 2 GiB in all; a store takes more only where its minimal height needs more.
    """
    fewest = 2 * count + 2
    height = max(_ROWS_PER_COMPONENT * count, _FEWEST_ROWS)
    affordable = _STORE_BYTES // (share * width * itemsize)
    if samples is not None and samples <= _EXACT_ROWS:
        height = samples + 1
    return max(fewest, min(height, affordable, 2 * width + 2))


class RunningComponents:
    """The principal components of rows that are added once. It holds `height` rows of `width` numbers at any time.

    A merge keeps half of the rows, so at most height // 2 components are available. One row is spare, for the
    correction of the mean. Raises UserError for a height below 3.
    """

    def __init__(self, width: int, height: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        if height < 3:
            raise UserError(f"height: got {height}; a store that takes more rows after a merge has at least 3")
        # Stored in the precision of the rows, at least float32; means are float64.
        self.store = torch.zeros(height, width, dtype=torch.promote_types(dtype, torch.float32), device=device)
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._merged = 0  # number of added rows that the first `_kept` rows of the store represent, around `mean`
        self._kept = self._filled = 0  # rows of the store that are merged; merged and raw rows together

    @property
    def rows_added(self) -> int:
        """Return how many rows were added so far."""
        return self._merged + self._filled - self._kept

    def add(self, rows: Tensor) -> None:
        """Add rows [n, D], any n."""
        while len(rows):
            if self._filled >= len(self.store) - 1:
                self._merge()
            room = len(self.store) - 1 - self._filled
            part, rows = rows[:room], rows[room:]
            self.store[self._filled : self._filled + len(part)] = part
            self._filled += len(part)

    def components(self, count: int) -> Components:
        """Return the first `count` components of all rows added so far. Raises UserError where there are fewer."""
        most = min(self.rows_added - 1, len(self.mean), len(self.store) // 2)
        if not 1 <= count <= most:
            raise UserError(
                f"count: got {count}; {self.rows_added} rows of {len(self.mean)} columns give 1 to {most} components"
            )
        self._centre()
        # Some more than requested, so that the precision of the Gram matrix matters less for where the last ones end.
        leading = _leading(self._gram(), min(count + _SPARE, self._filled)).double()
        rows = torch.cat([leading @ self.store[: self._filled, columns].double() for columns in self._blocks()], dim=1)
        rows = _leading(rows @ rows.T, count) @ rows
        lengths = rows.norm(dim=1)
        real = lengths > _NEGLIGIBLE[self.store.dtype] * lengths[0]
        unit = torch.where(real[:, None], rows / lengths[:, None], 0.0)
        # QR makes the vectors orthogonal beyond rounding and puts arbitrary unit vectors where there is no component.
        basis, upper = torch.linalg.qr(unit.T)
        vectors = _with_positive_peak((basis * torch.where(torch.diagonal(upper) < 0, -1.0, 1.0)).T)
        deviations = torch.where(real, lengths, 0.0) / (self._merged - 1) ** 0.5
        return Components(vectors, deviations, self.mean.clone())

    def _merge(self) -> None:
        """Replace all rows by principal rows: store <- U^T store, for Gram matrix U diag(s^2) U^T."""
        self._centre()
        kept = min(len(self.store) // 2, self._filled)
        leading = _leading(self._gram(), kept).to(self._precision())
        for columns in self._blocks():
            self.store[:kept, columns] = (leading @ self._block(columns)).to(self.store)
        self._kept = self._filled = kept

    def _centre(self) -> None:
        """Subtract the raw rows' own mean from them, and append the row that corrects the mean.

        That row is sqrt(n m / (n + m)) (mean of the m new rows - mean of the n old rows).
        """
        old, new = self._merged, self._filled - self._kept
        if not new:
            return
        raw = slice(self._kept, self._filled)
        for columns in self._blocks():
            mean = self.store[raw, columns].mean(0, dtype=torch.float64)
            step = mean - self.mean[columns]
            self.store[raw, columns] -= mean.to(self.store)
            self.store[self._filled, columns] = ((old * new / (old + new)) ** 0.5 * step).to(self.store)
            self.mean[columns] += new / (old + new) * step
        self._merged += new
        self._filled += 1 if old else 0  # the first rows need no correction
        self._kept = self._filled

    def _gram(self) -> Tensor:
        """Return the Gram matrix of all rows [n, n], summed in float64; what lies above the strips is mirrored."""
        gram = torch.zeros(self._filled, self._filled, dtype=torch.float64, device=self.store.device)
        strips = [slice(start, start + _STRIP_ROWS) for start in range(0, self._filled, _STRIP_ROWS)]
        for columns in self._blocks():
            block = self._block(columns)
            for strip in strips:
                gram[strip, : strip.stop] += block[strip] @ block[: strip.stop].T
        for strip in strips:
            gram[: strip.start, strip] = gram[strip, : strip.start].T
        # Eigenvectors need no more precision than the products have.
        return gram.to(self._precision())

    def _precision(self) -> torch.dtype:
        """Return the precision of products of rows, which are taken some thousand columns at a time.

        This is the store's own, twice as fast as float64 where it is float32, and float64 where torch may shorten
        float32 products or the store is not on the CPU.
        """
        whole = self.store.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
        return self.store.dtype if whole else torch.float64

    def _block(self, columns: slice) -> Tensor:
        return self.store[: self._filled, columns].to(self._precision(), memory_format=torch.contiguous_format)

    def _blocks(self) -> Iterator[slice]:
        wide = max(1, _BLOCK_ELEMENTS // len(self.store))
        for start in range(0, len(self.mean), wide):
            yield slice(start, start + wide)


def _leading(gram: Tensor, count: int) -> Tensor:
    """Return the eigenvectors [count, n] of the `count` largest eigenvalues of `gram` [n, n], largest first."""
    size = len(gram)
    if gram.device.type == "cpu" and count < size // 4:
        # LAPACK can compute only the last eigenvectors; torch does not offer that.
        _, vectors = eigh(gram.numpy(), subset_by_index=(size - count, size - 1), overwrite_a=True, check_finite=False)
        return torch.from_numpy(vectors).T.flip(0)
    leading: Tensor = torch.linalg.eigh(gram)[1][:, -count:].T.flip(0)
    return leading


def principal_components(batches: Iterable[Tensor], count: int, height: int | None = None) -> Components:
    """Return the first `count` principal components of the rows of all batches ([n, D] each, any n), read once.

    height: rows that are held at a time (default: `store_height`).
    Raises UserError where there are fewer than `count` components.
    """
    running: RunningComponents | None = None
    for batch in batches:
        if running is None:
            height = height or store_height(batch.shape[1], count)
            running = RunningComponents(batch.shape[1], height, batch.dtype, batch.device)
        running.add(batch)
    if running is None:
        raise UserError(f"count: got {count}; there are no rows to take components of")
    return running.components(count)


def matched(rows: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of `rows` [M, ...] continues each of `before` [M, ...], and with which sign: (order [M], signs [M]).

    This is the assignment with the largest total |cos|, for rows of unit length. It is needed because components of
    neighbouring steps change places where their sizes cross, and their signs are arbitrary.
    """
    cosines = before.flatten(1) @ rows.flatten(1).T  # [M, M]
    _, partner = linear_sum_assignment(cosines.abs().cpu().numpy(), maximize=True)
    order = torch.as_tensor(partner, device=cosines.device)
    return order, torch.where(cosines.gather(1, order[:, None])[:, 0] < 0, -1.0, 1.0).to(cosines)


def _with_positive_peak(vectors: Tensor) -> Tensor:
    """Return the vectors with the coordinate of largest size positive.

    The sign of a component is arbitrary; a fixed one makes runs repeatable.
    """
    peak = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * torch.where(peak < 0, -1.0, 1.0)
