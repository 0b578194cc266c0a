"""Experiments of `metafast run`, each a package: recipes, trainings as resumable records, results and a report."""
