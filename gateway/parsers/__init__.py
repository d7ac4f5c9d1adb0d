"""What reads a model's text while it is being written: `feed` gives what is certain, `flush` the rest."""
