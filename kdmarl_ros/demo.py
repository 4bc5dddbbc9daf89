"""`kdmarl demo`: the whole path from the shipped teacher to a flying team."""
