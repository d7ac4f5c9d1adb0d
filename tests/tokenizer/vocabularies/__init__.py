"""Small vocabularies in other formats than tokenizer.json, and the ids that their own libraries give texts."""
