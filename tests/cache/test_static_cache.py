"""The static cache under random joins, leaves, reorders and moves, against lists of the history of each row."""
