"""TabM: an ensemble of multilayer perceptrons for tables that share most of their weights."""

import tabm
import torch
from torch import Tensor, nn

from proj.nets.layers import Dropout, FittedLinear, TableInputs, piecewise_linear
from proj.schema import Schema


class TabM(nn.Module):
    """TabM with piecewise linear embeddings (Gorishniy et al. 2025, arXiv:2410.24210).

    The ensemble is that of the authors' package. Each member is trained by its own loss; their
    predictions are averaged.

    Args:
        schema: schema of the table.
        members: members of the ensemble. More are slower and slightly better.
        width: units of a hidden layer.
        blocks: hidden layers.
        dropout: share of hidden units that are set to zero in each training step.
        embedding: width of the embedding of a number.
        linear: whether half of the members begin with the linear model of a small table, which is
            in the schema, and learn what it leaves over.
    """

    def __init__(
        self,
        schema: Schema,
        members: int = 16,
        width: int = 256,
        blocks: int = 2,
        dropout: float = 0.1,
        embedding: int = 16,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.table = TableInputs(schema)
        bins = self.table.bins
        self.ensemble = tabm.TabM.make(
            n_num_features=len(bins),
            cat_cardinalities=self.table.cardinalities,
            d_out=schema.num_outputs,
            num_embeddings=piecewise_linear(bins, embedding) if bins else None,
            k=members,
            d_block=width,
            n_blocks=blocks,
            dropout=dropout,
        )
        for module in list(self.ensemble.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, Dropout(child.p))
        has_model = linear and schema.linear
        self.linear = FittedLinear(schema, self.table.cardinalities) if has_model else None
        if self.linear is not None:
            has_linear = torch.arange(members) < members // 2
            # The share of the linear model in each member is trained, too.
            self.shares = nn.Parameter(has_linear.float()[:, None])
            with torch.no_grad():  # These members begin with what the linear model predicts.
                for parameter in self.ensemble.output.parameters():
                    parameter[has_linear] = 0.0

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Return raw outputs of each member [rows, members, outputs]."""
        numbers, categories = self.table(x)
        ensemble = self.ensemble
        vectors = []
        if self.table.bins:
            vectors.append(ensemble.num_module(numbers).flatten(1))
        if self.table.cardinalities:
            vectors.append(ensemble.cat_module(categories))
        # `ensemble(…)` does the same, but torch.export would take its `len(x)` for a constant.
        hidden = ensemble.backbone(ensemble.ensemble_view(torch.cat(vectors, dim=1)))
        outputs: Tensor = ensemble.output(hidden)
        if self.linear is not None:
            outputs = outputs + self.shares * self.linear(x["numeric"], categories)[:, None]
        return outputs
