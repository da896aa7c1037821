"""What a model can do, measured: here the texts of the package, what they tell of a model's files, and its report."""
