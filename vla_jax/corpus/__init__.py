"""A picture/word corpus made on the fly: emoji, numbers and colour blocks with questions."""
