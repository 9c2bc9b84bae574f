"""Everything that runs or reads a Pyro program: log joints row by row, its sites, and its capture as a compiled graph."""
