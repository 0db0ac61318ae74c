"""Building blocks shared by every algorithm of the package."""
