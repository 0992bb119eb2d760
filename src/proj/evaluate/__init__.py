"""How good a model is and how sure that is: intervals, figures, a page, comparisons. The room can be deleted."""
