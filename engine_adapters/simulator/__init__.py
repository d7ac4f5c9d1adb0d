"""An executor without a GPU: batches like an engine, answers shipped texts, speaks the step stream."""
