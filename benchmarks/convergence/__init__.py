"""Does it learn better? Studies on real data, resumable, with machine, commit, versions and seeds in their results."""
