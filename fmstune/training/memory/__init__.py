"""How much memory a training needs, and which settings make it fit."""
