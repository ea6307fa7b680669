"""What a user takes away: a set of directions with its card, its pages, and how it leaves a sweep."""
