"""Layers that take their constants from the schema, and a faster dropout."""

import warnings

import torch
from torch import Tensor, nn

from proj.errors import UserError
from proj.schema import Column, Schema

# The smallest and the largest training number get normal scores of about -3 and 3.
QUANTILE_MARGIN = 0.001


class Standardize(nn.Module):
    """Scale inputs to mean 0 and standard deviation 1 per feature (per channel for images).

    The statistics are those of the schema. They are buffers, so they travel in checkpoints and
    exports.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        shape = (-1, *[1] * (len(schema.input_shape) - 1))
        self.register_buffer("mean", torch.tensor(schema.input_mean).view(shape))
        self.register_buffer("std", torch.tensor(schema.input_std).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits per unit.

    On a CPU, torch's own takes a third of a TabM's training step. In a compiled step, torch 2.13's
    Inductor may use torch's own mask before it is drawn; this one is safe there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1):
            return super().forward(x)
        words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        mask = bits >= round(self.p * 2**16) - 2**15
        return x * (mask.to(x.dtype) / (1 - self.p))


class QuantileTransform(nn.Module):
    """Transform numbers to normal scores by the quantiles of the training split.

    A number's share of smaller training numbers becomes the point of the standard normal
    distribution with that share below it, with linear interpolation between quantiles, as in
    scikit-learn's QuantileTransformer. Outliers and skewed columns do no harm then. A missing
    number becomes the median, 0, and sets a flag if the column had missing values in training.

    Args:
        columns: the numeric columns of a schema.
    """

    edges: Tensor  # [numbers, quantiles], the last one repeated in columns with fewer
    scores: Tensor  # [numbers, quantiles], normal scores of the edges
    flagged: Tensor  # [flags], numbers of the columns that have a flag

    def __init__(self, columns: tuple[Column, ...]) -> None:
        super().__init__()
        self.bins = [_normal_scores(column) for column in columns]
        self.register_buffer("edges", _pad([torch.tensor(column.edges) for column in columns]))
        self.register_buffer("scores", _pad(self.bins))
        flagged = [i for i, column in enumerate(columns) if column.missing]
        self.register_buffer("flagged", torch.tensor(flagged, dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [rows, numbers] and flags of 0 and 1 [rows, flags] of ``x``, int64."""
        missing = x.isnan()
        filled = torch.where(missing, self.edges[:, 0], x).T.contiguous()  # [numbers, rows]
        if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
            # ONNX has no searchsorted. This takes a value in memory for each pair.
            right = (self.edges[:, None] < filled[:, :, None]).sum(2)
        else:
            right = torch.searchsorted(self.edges, filled)
        right = right.clamp(1, self.edges.shape[1] - 1)
        low, high = self.edges.gather(1, right - 1), self.edges.gather(1, right)
        share = ((filled - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)).clamp(0, 1)
        low_score, high_score = self.scores.gather(1, right - 1), self.scores.gather(1, right)
        scores = torch.lerp(low_score, high_score, share).T
        return torch.where(missing, 0.0, scores), missing[:, self.flagged].long()


def _normal_scores(column: Column) -> Tensor:
    shares = torch.tensor(column.shares, dtype=torch.float64)
    scores: Tensor = torch.special.ndtri(shares * (1 - 2 * QUANTILE_MARGIN) + QUANTILE_MARGIN)
    return scores.float()


def _pad(rows: list[Tensor]) -> Tensor:
    """Stack rows of different length, repeating the last value of shorter ones."""
    if not rows:
        return torch.zeros(0, 2)
    width = max(len(row) for row in rows)
    return torch.stack([torch.cat([row, row[-1:].expand(width - len(row))]) for row in rows])


class TableInputs(nn.Module):
    """Convert a batch of a table to numbers and categories.

    Attributes:
        cardinalities: number of values of each category: missing, other, and those of the schema.
        bins: for each number, the scores between which an embedding of it is linear.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        if not schema.columns:
            raise UserError(
                "this net is for tables: expected columns, got rows of shape "
                f"{schema.input_shape}; use the net MLP."
            )
        self.normalize = QuantileTransform(schema.numeric)
        self.bins = self.normalize.bins
        flags = [2] * len(self.normalize.flagged)
        self.cardinalities = [2 + len(column.categories) for column in schema.categorical] + flags

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return numbers [rows, numbers] and categories [rows, categories and flags]."""
        numbers, flags = self.normalize(x["numeric"])
        return numbers, torch.cat([x["categorical"].long(), flags], dim=1)


class FittedLinear(nn.Module):
    """The linear model of a table's schema. Its weights are buffers, which are not trained.

    Args:
        schema: schema of the table, with a linear model.
        counts: number of values of each category, as TableInputs has them.
    """

    mean: Tensor  # [numbers]
    std: Tensor  # [numbers]
    weight: Tensor  # [inputs, outputs]
    bias: Tensor  # [outputs]

    def __init__(self, schema: Schema, counts: list[int]) -> None:
        super().__init__()
        for name, values in zip(("mean", "std", "weight", "bias"), schema.linear, strict=True):
            self.register_buffer(name, torch.tensor(values))
        self.weight = self.weight.view(-1, len(self.bias))
        starts = [len(self.mean) + sum(counts[:i]) for i in range(len(counts))]
        limits = [(column.edges[0], column.edges[-1]) for column in schema.numeric]
        self.starts = nn.Buffer(torch.tensor(starts, dtype=torch.int64))
        self.limits = nn.Buffer(torch.tensor(limits).view(-1, 2).T.contiguous())

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Return raw outputs [rows, outputs].

        ``numbers`` [rows, numbers] are those of the batch, ``categories`` those of TableInputs.
        """
        limited = numbers.clamp(self.limits[0], self.limits[1])
        scaled = (torch.where(numbers.isnan(), self.mean, limited) - self.mean) / self.std
        outputs = self.bias + scaled @ self.weight[: len(self.mean)]
        return outputs + self.weight[categories + self.starts].sum(1)


class TableEmbedding(nn.Module):
    """Embed a batch of a table as one vector per row [rows, width].

    Numbers get piecewise linear embeddings (Gorishniy et al. 2022, arXiv:2203.05556), categories
    learned vectors.

    Args:
        schema: schema of the table.
        size: width of the embedding of a number.
    """

    def __init__(self, schema: Schema, size: int = 8) -> None:
        super().__init__()
        self.table = TableInputs(schema)
        bins, cardinalities = self.table.bins, self.table.cardinalities
        sizes = [min(50, (count + 3) // 2) for count in cardinalities]
        self.numbers = piecewise_linear(bins, size) if bins else None
        self.categories = nn.ModuleList(map(nn.Embedding, cardinalities, sizes))
        self.width = size * len(bins) + sum(sizes)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        numbers, categories = self.table(x)
        vectors = [embed(categories[:, i]) for i, embed in enumerate(self.categories)]
        if self.numbers is not None:
            vectors.append(self.numbers(numbers).flatten(1))
        return torch.cat(vectors, dim=1)


def piecewise_linear(bins: list[Tensor], size: int) -> nn.Module:
    """Return embeddings of normalized numbers: [rows, numbers] to [rows, numbers, size]."""
    # It imports scikit-learn, which takes long and which MLPs on arrays do not need.
    from rtdl_num_embeddings import PiecewiseLinearEmbeddings

    with warnings.catch_warnings():
        # A column of 0 and 1 has a single bin, which is right.
        warnings.filterwarnings("ignore", "The .* feature has just two bin edges")
        embeddings: nn.Module = PiecewiseLinearEmbeddings(bins, size, activation=False, version="B")
    return embeddings
